"""Simplification: identities, numbers, duplicates, dead code."""

from compiler.passes.simplify.passes import Simplify as Simplify
from compiler.passes.simplify.passes import simplify as simplify
