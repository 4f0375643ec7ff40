"""Factorisation: weights as products of smaller ones."""

from compiler.passes.factorize.low_rank import LowRank as LowRank
from compiler.passes.factorize.low_rank import low_rank as low_rank
