"""Sorting, and what works on the last axes of a batch: those axes stay."""

from __future__ import annotations

from typing import Any

from compiler import jaxprs
from compiler.passes.prune.structure.emit import Emit
from compiler.passes.prune.structure.frame import Place
from compiler.passes.prune.structure.labels import Axes, Vector
from compiler.passes.prune.structure.numbers import Numbering
from compiler.passes.prune.structure.registry import RULES
from compiler.passes.prune.structure.rules.reductions import lowest


@RULES.on("sort")
def sort(place: Place) -> list[Axes]:
    """The sorted axis stays; the others of all operands are one."""
    along = place.params["dimension"]
    axes: list[Vector] = list(place.operands[0])
    for labels in place.operands:
        for i, vector in enumerate(labels):
            if i == along:
                place.freeze(vector)
            axes[i] = place.labels.unify(axes[i], vector)
    return [tuple(axes)] * len(place.operands)


def _masked_top(emit: Emit, place: Place, values: list[Any]) -> list[Any]:
    along = _searched(place)
    neutral = lowest(values[0].dtype)
    filled = emit.fill(values[0], place.operands[0], [along], neutral)
    return jaxprs.bind(place.equation, [filled])


def _searched(place: Place) -> int:
    along = place.params.get("axis", place.params.get("reduction_dimension", -1))
    return along % len(place.operands[0])


@RULES.on("top_k", "approx_top_k", mask=_masked_top)
def top_k(place: Place) -> list[Axes]:
    """What it gives are numbers of the indices of the axis that is searched."""
    operand, along = place.operands[0], _searched(place)
    place.analysis.minimum.append((operand[along], place.params["k"]))
    place.analysis.roles.experts.append(operand[along])
    numbers = Numbering.of(operand[along])
    place.frame.numbers[place.equation.outvars[1]] = numbers
    kept = tuple(None if i == along else v for i, v in enumerate(operand))
    return [kept, kept]


@RULES.on(
    "cholesky",
    "eigh",
    "eig",
    "householder_product",
    "lu",
    "qr",
    "svd",
    "triangular_solve",
    "geqrf",
    "schur",
    "tridiagonal",
)
def batched_matrices(place: Place) -> list[Axes]:
    """The two last axes stay; what numbers matrices passes."""
    ranks = [len(axes) for axes in place.operands]
    batch = min(ranks) - 2 if min(ranks) > 1 else 0
    alike = all(rank == ranks[0] for rank in ranks)
    axes: list[Vector] = list(place.operands[0][:batch]) if alike else []
    for labels in place.operands:
        for i, vector in enumerate(labels):
            if i < len(axes):
                axes[i] = place.labels.unify(axes[i], vector)
            else:
                place.freeze(vector)
    results = []
    for var in place.equation.outvars:
        rank = len(var.aval.shape)
        results.append((*axes[:rank], *(None,) * (rank - len(axes[:rank]))))
    return results
