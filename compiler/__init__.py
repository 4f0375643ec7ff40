"""Rewrite any pure JAX function: trace it, compose passes, measure, save.

>>> import jax.numpy as jnp, compiler as mc
>>> program = mc.trace(lambda w, x: x @ w, jnp.eye(64), jnp.ones((1, 64)))
>>> small = (mc.fold() >> mc.quantize.weights("int8"))(program)
>>> small(jnp.ones((3, 64))).shape
(3, 64)
"""

from compiler import errors as errors
from compiler.agreement import difference as difference
from compiler.artifact import load as load
from compiler.artifact import save as save
from compiler.cost import Machine as Machine
from compiler.cost import calibrate as calibrate
from compiler.cost import cost as cost
from compiler.cost import roofline as roofline
from compiler.distill import Match as Match
from compiler.distill import distill as distill
from compiler.distill import fine_tune as fine_tune
from compiler.distill import fine_tuner as fine_tuner
from compiler.distill import recover as recover
from compiler.distill import tap as tap
from compiler.executable import Executable as Executable
from compiler.executable import compile as compile
from compiler.executable import latency as latency
from compiler.inspect import profile as profile
from compiler.inspect import report as report
from compiler.inspect import show as show
from compiler.inspect import summary as summary
from compiler.passes import Fold as Fold
from compiler.passes import Simplify as Simplify
from compiler.passes import cast as cast
from compiler.passes import fold as fold
from compiler.passes import lora as lora
from compiler.passes import low_rank as low_rank
from compiler.passes import merge as merge
from compiler.passes import prune as prune
from compiler.passes import quantize as quantize
from compiler.passes import remat as remat
from compiler.passes import replace as replace
from compiler.passes import simplify as simplify
from compiler.passes.base import Pass as Pass
from compiler.passes.base import Rewrite as Rewrite
from compiler.program import Program as Program
from compiler.trace import trace as trace
