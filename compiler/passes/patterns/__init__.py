"""Patterns: both sides of a rewrite written as functions of arrays."""

from compiler.passes.patterns.place import Captured as Captured
from compiler.passes.patterns.place import Match as Match
from compiler.passes.patterns.replace import Replace as Replace
from compiler.passes.patterns.replace import replace as replace
