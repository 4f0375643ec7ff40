"""What a graph takes when a plan is carried out, without carrying it out."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from compiler.cost import cost
from compiler.graph import nbytes
from compiler.passes.prune.plan import Plan
from compiler.passes.prune.structure import shrink

if TYPE_CHECKING:
    from compiler.passes.prune.structure import Structure


def params(structure: Structure, plan: Plan) -> int:
    """How many numbers its leaves hold."""
    leaves = structure.graph.leaves
    return sum(math.prod(plan.cut(leaf.spec, leaf.path).shape) for leaf in leaves)


def bytes(structure: Structure, plan: Plan) -> int:
    """How many bytes its leaves take."""
    leaves = structure.graph.leaves
    return sum(nbytes(plan.cut(leaf.spec, leaf.path)) for leaf in leaves)


def flops(structure: Structure, plan: Plan) -> int:
    """What one call costs, for the sample's shapes: counted on the smaller graph."""
    return cost(shrink(structure, plan) if plan else structure.graph).flops
