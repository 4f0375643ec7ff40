"""Sorting, and what works on the last axes of a batch: those axes stay."""

from __future__ import annotations

from compiler.passes.prune.structure.frame import Place
from compiler.passes.prune.structure.labels import Axes, Vector
from compiler.passes.prune.structure.registry import RULES


@RULES.on("sort")
def sort(place: Place) -> list[Axes]:
    """The sorted axis stays; the others of all operands are one."""
    along = place.params["dimension"]
    axes: list[Vector] = list(place.operands[0])
    for labels in place.operands:
        for i, vector in enumerate(labels):
            if i == along:
                place.freeze(vector)
            else:
                axes[i] = place.labels.unify(axes[i], vector)
    axes[along] = None
    return [tuple(axes)] * len(place.operands)


@RULES.on("top_k", "approx_top_k")
def top_k(place: Place) -> list[Axes]:
    """The axis that is searched stays."""
    operand = place.operands[0]
    along = place.params.get("axis", place.params.get("reduction_dimension", -1))
    along %= len(operand)
    place.freeze(operand[along])
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
