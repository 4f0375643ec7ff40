"""Adapters: a few new parameters that are trained in place of the weights."""

from compiler.passes.adapt.lora import Lora as Lora
from compiler.passes.adapt.lora import lora as lora
from compiler.passes.adapt.merge import Merge as Merge
from compiler.passes.adapt.merge import merge as merge
