"""Leaves that compete: their units side by side, and how many of them are kept."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from mapping.errors import FieldError
from mapping.paths import Tree
from mapping.sparse.distributions import Shapes, Uniform
from mapping.sparse.largest import Array
from mapping.sparse.leaves import sparse_leaves
from mapping.sparse.masks import check_share
from mapping.sparse.patterns import Single

_ALL = "all leaves"
"""The name of the one contest that joins all leaves."""


@dataclasses.dataclass(frozen=True)
class Contest:
    """Turns leaves by path into contests by name and back.

    A contest is one leaf, or under a distribution that joins them all of them.

    Attributes:
        shapes: of the leaves, by path.
        distribution: how much each keeps.
        pattern: what is kept together.
    """

    shapes: Shapes
    distribution: Uniform
    pattern: Single

    def __post_init__(self) -> None:
        if self.distribution.joins and not self.pattern.joins:
            raise FieldError(
                f"sparse: expected units that compete across leaves for "
                f"{self.distribution}, got {self.pattern}, of which each group keeps "
                "as many. Use uniform()."
            )

    def units(self, leaves: dict[str, Array]) -> dict[str, Array]:
        """The units of each contest, of scores by path."""
        found = {path: self.pattern.units(leaves[path]) for path in self.shapes}
        if not self.distribution.joins:
            return found
        parts = [*found.values()]
        host = all(isinstance(part, np.ndarray) for part in parts)
        return {_ALL: (np if host else jnp).concatenate(parts)}

    def counts(self, density: Array) -> dict[str, Array]:
        """How many units each contest keeps."""
        sizes = {path: self._unit_shape(shape) for path, shape in self.shapes.items()}
        if self.distribution.joins:
            total = (sum(size[0] for size in sizes.values()),)
            return {_ALL: self.pattern.count(total, density)}
        densities = self.distribution.densities(self.shapes, density)
        return {p: self.pattern.count(sizes[p], densities[p]) for p in self.shapes}

    def masks(self, chosen: dict[str, Array]) -> dict[str, Array]:
        """The masks by path, of the units chosen in each contest."""
        masks, start = {}, 0
        for path, shape in self.shapes.items():
            if self.distribution.joins:
                end = start + self._unit_shape(shape)[0]
                own, start = chosen[_ALL][start:end], end
            else:
                own = chosen[path]
            masks[path] = self.pattern.mask(own, shape)
        return masks

    def _unit_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        spec = jax.ShapeDtypeStruct(shape, "float32")
        return jax.eval_shape(self.pattern.units, spec).shape


def choose(
    params: Tree,
    sparsity: float,
    *,
    scores: Tree | None = None,
    distribution: Uniform | None = None,
    pattern: Single | None = None,
    at: tuple[str, ...] = (),
    but: tuple[str, ...] = (),
) -> dict[str, Array]:
    """Chooses masks by magnitude, or by scores of one's own.

    Args:
        params: any tree; leaves of numpy give masks of numpy.
        sparsity: the share of zeros, in [0, 1], of the leaves that are made sparse.
        scores: a tree with the same paths, larger where a weight is worth more.
        distribution: [`uniform`][], [`erk`][], [`global_`][] (the default) or
            [`by_path`][].
        pattern: what is kept together: [`Single`][] weights, [`NOfM`][], [`Block`][].
        at: globs of what is made sparse, instead of the kernels.
        but: globs of what among these stays dense.

    Returns:
        Masks by path, of the leaves that are made sparse.

    Raises:
        UnknownPathError: if a glob names none of the params.
        FieldError: if the sparsity is out of range.

    >>> params = {"kernel": np.array([[1.0, -3.0], [2.0, 0.5]]), "bias": np.ones(2)}
    >>> choose(params, 0.5)["kernel"].tolist()
    [[False, True], [True, False]]
    """
    check_share(sparsity, "choose.sparsity")
    leaves = sparse_leaves(params, at, but, "choose")
    if scores is None:
        ranked = {path: abs(leaf) for path, leaf in leaves.items()}
    else:
        ranked = sparse_leaves(scores, tuple(leaves), (), "choose.scores")
    shapes = {path: leaf.shape for path, leaf in leaves.items()}
    contest = Contest(shapes, distribution or _global(), pattern or Single())
    units, counts = contest.units(ranked), contest.counts(1.0 - sparsity)
    return contest.masks(
        {name: contest.pattern.choose(units[name], counts[name]) for name in units}
    )


def _global() -> Uniform:
    from mapping.sparse.distributions import Global

    return Global()
