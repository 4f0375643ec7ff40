"""Which leaves are weights that have a rank, and along which axes."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import jax.numpy as jnp

from compiler.errors import UnknownPathError
from compiler.graph import Graph, Leaf
from compiler.passes.globs import names_of
from compiler.paths import matches
from compiler.sites import WeightSite, sites_by_leaf
from mapping.core import register


@register("value", "matrix")
@dataclasses.dataclass(frozen=True)
class Matrix:
    """How a leaf is a stack of matrices: its axes by what they are for.

    Attributes:
        path: the leaf's.
        shape: the leaf's.
        stack: the axes that number matrices (layers of a scan, experts).
        rows: the axes a product sums over.
        columns: the axes it produces.

    >>> Matrix("w", (3, 4, 2, 8), (0,), (1,), (2, 3)).extents
    (3, 4, 16)
    """

    path: str
    shape: tuple[int, ...]
    stack: tuple[int, ...]
    rows: tuple[int, ...]
    columns: tuple[int, ...]

    def __post_init__(self) -> None:
        for name in ("shape", "stack", "rows", "columns"):
            object.__setattr__(self, name, tuple(getattr(self, name)))

    @property
    def extents(self) -> tuple[int, int, int]:
        """How many matrices of how many rows and columns."""
        stack, rows, columns = (
            math.prod(self.shape[axis] for axis in axes)
            for axes in (self.stack, self.rows, self.columns)
        )
        return stack, rows, columns

    def factors(self, rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The shapes of two factors: (stack, rows, rank) and (stack, rank, columns)."""
        stack, rows, columns = (
            tuple(self.shape[axis] for axis in axes)
            for axes in (self.stack, self.rows, self.columns)
        )
        return (*stack, *rows, rank), (*stack, rank, *columns)


def chosen(graph: Graph, globs: Sequence[str]) -> list[tuple[Leaf, list[WeightSite]]]:
    """The leaves that globs name, by their own paths or those of where they are used.

    Raises:
        UnknownPathError: if a glob names nothing in the program.
    """
    uses = sites_by_leaf(graph)
    named = [names_of(leaf, uses.get(i, ())) for i, leaf in enumerate(graph.leaves)]
    for glob in globs:
        if not any(_match(glob, names) for names in named):
            raise UnknownPathError(
                f"{glob}: names no leaf of the program and no operation that uses "
                f"one. Its leaves: {', '.join(graph.paths[:8])}"
                f"{', ...' if len(named) > 8 else ''}."
            )
    return [
        (leaf, uses.get(i, []))
        for i, leaf in enumerate(graph.leaves)
        if any(_match(glob, named[i]) for glob in globs)
    ]


def as_matrix(leaf: Leaf, sites: Sequence[WeightSite]) -> Matrix | str:
    """How a leaf is a matrix, as its first product sees it; or why it is none."""
    if not jnp.issubdtype(leaf.spec.dtype, jnp.floating):
        return f"not floating: {leaf.spec.dtype}"
    if not sites:
        return "reaches no product, convolution or look-up as a weight"
    products = [site for site in sites if site.kind != "lookup"]
    first = (products or sites)[0]
    axes = range(len(leaf.spec.shape))
    stack = tuple(sorted(first.batched))
    rows = tuple(sorted(first.contracted))
    columns = tuple(a for a in axes if a not in first.batched | first.contracted)
    matrix = Matrix(leaf.path, leaf.spec.shape, stack, rows, columns)
    if 0 in leaf.spec.shape:
        return "is empty"
    if min(matrix.extents[1:]) < 2:
        return f"is no matrix: {matrix.extents[1]} rows, {matrix.extents[2]} columns"
    return matrix


def _match(glob: str, names: Sequence[str]) -> bool:
    return any(matches(glob, name) for name in names)
