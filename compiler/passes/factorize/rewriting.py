"""Putting factored weights in the place of leaves, and telling what became of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from compiler import jaxprs
from compiler.graph import Graph, Leaf, drop_dead
from compiler.passes.factorize.factored import RANK, Factor, Factored, wider
from compiler.passes.factorize.matrix import Matrix
from compiler.passes.factorize.symbolic import evaluate

LEFT, RIGHT = "left", "right"

Ranked = dict[str, tuple[Matrix, int]]
"""By path: weights and the ranks they get."""


class Report:
    """Where factored weights had to be multiplied out.

    Attributes:
        repeated: the paths of those that were, in a loop, again and again.
    """

    def __init__(self) -> None:
        self.repeated: set[str] = set()
        self._dense: dict[str, dict[str, None]] = {}

    def of(self, path: str) -> Any:
        """What to call with each equation that uses the weight of a path."""

        def record(equation: jaxprs.Equation | None, looped: bool) -> None:
            where = "an output"
            if equation is not None:
                where = f"{equation.primitive.name} ({jaxprs.source(equation)})"
            self._dense.setdefault(path, {})[where] = None
            if looped:
                self.repeated.add(path)

        return record

    def multiplied(self, path: str) -> list[str]:
        """The equations that took the whole array, as `primitive (file:line)`."""
        return list(self._dense.get(path, ()))


def factored(
    matrix: Matrix,
    left: Any,
    right: Any,
    report: Report,
    base: Any = None,
    scale: float = 1.0,
    apart: bool = False,
) -> Factored:
    """The value of a leaf whose factors have the shapes of `matrix.factors`."""
    return Factored(
        Factor(left, (*matrix.stack, *matrix.rows, RANK)),
        Factor(right, (*matrix.stack, RANK, *matrix.columns)),
        tuple(range(len(matrix.shape))),
        left.dtype if base is None else base.dtype,
        base,
        scale,
        report.of(matrix.path),
        apart,
    )


def factorise(matrix: Matrix, value: Any, rank: int) -> tuple[Any, Any]:
    """The two factors of a weight, each with the root of the singular values.

    Computed in float32 at least, returned in the weight's dtype.
    """
    order = (*matrix.stack, *matrix.rows, *matrix.columns)
    wide = wider(value.dtype, jnp.float32)
    array = jnp.transpose(value.astype(wide), order).reshape(matrix.extents)
    u, s, v = jnp.linalg.svd(array, full_matrices=False)
    root = jnp.sqrt(s[:, :rank])
    left, right = matrix.factors(rank)
    return (
        (u[:, :, :rank] * root[:, None, :]).reshape(left).astype(value.dtype),
        (root[:, :, None] * v[:, :rank]).reshape(right).astype(value.dtype),
    )


def prepare(paths: Sequence[str], plan: Ranked, leaves: Sequence[Any]) -> list[Any]:
    """The new leaves from the old."""
    new: list[Any] = []
    for path, value in zip(paths, leaves, strict=True):
        if path in plan:
            matrix, rank = plan[path]
            new += factorise(matrix, value, rank)
        else:
            new.append(value)
    return new


def with_factors(
    graph: Graph, plan: Ranked, report: Report
) -> tuple[list[str], jaxprs.Jaxpr]:
    """The paths of the new leaves, and the equations that take them."""
    specs: dict[str, jax.ShapeDtypeStruct] = {}
    for leaf in graph.leaves:
        specs |= _specs(leaf, plan.get(leaf.path))

    def function(*arguments: Any) -> list[Any]:
        given = iter(arguments)
        leaves = [
            factored(plan[path][0], next(given), next(given), report)
            if path in plan
            else next(given)
            for path in graph.paths
        ]
        return evaluate(graph.jaxpr, [*leaves, *given])

    jaxpr = drop_dead(jaxprs.make(function, [*specs.values(), *graph.inputs]))
    return list(specs), jaxpr


def _specs(
    leaf: Leaf, planned: tuple[Matrix, int] | None
) -> dict[str, jax.ShapeDtypeStruct]:
    if planned is None:
        return {leaf.path: leaf.spec}
    matrix, rank = planned
    names = (f"{leaf.path}/{LEFT}", f"{leaf.path}/{RIGHT}")
    shapes = zip(names, matrix.factors(rank), strict=True)
    return {n: jax.ShapeDtypeStruct(shape, leaf.spec.dtype) for n, shape in shapes}
