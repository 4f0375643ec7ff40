"""Passes: program in, program out. Composed with `>>`."""

from compiler.passes import quantize as quantize
from compiler.passes.fold import Fold as Fold
from compiler.passes.fold import fold as fold
