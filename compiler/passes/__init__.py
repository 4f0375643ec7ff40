"""Passes: program in, program out. Composed with `>>`."""

from compiler.passes import prune as prune
from compiler.passes import quantize as quantize
from compiler.passes.adapt import lora as lora
from compiler.passes.adapt import merge as merge
from compiler.passes.factorize import low_rank as low_rank
from compiler.passes.fold import Fold as Fold
from compiler.passes.fold import fold as fold
from compiler.passes.patterns import Replace as Replace
from compiler.passes.patterns import replace as replace
from compiler.passes.precision import cast as cast
from compiler.passes.remat import remat as remat
from compiler.passes.simplify import Simplify as Simplify
from compiler.passes.simplify import simplify as simplify
