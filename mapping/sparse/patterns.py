"""What is kept or pruned together: single weights, n of m neighbours, blocks.

A pattern turns the scores of one array into those of its *units*, along whose last
axis units compete for being kept, and what was chosen of them back into a mask.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from mapping.registry import register
from mapping.sparse import masks
from mapping.sparse.largest import Array, largest


@register("value", "sparse_single")
@dataclasses.dataclass(frozen=True)
class Single:
    """Each weight for itself (unstructured sparsity).

    Subclass it for a pattern of your own.

    >>> pattern = Single()
    >>> units = pattern.units(jnp.array([[3.0, 1.0], [2.0, 4.0]]))
    >>> pattern.mask(pattern.choose(units, 2), (2, 2)).tolist()
    [[True, False], [False, True]]
    """

    joins = True  # units of different arrays may compete

    def units(self, scores: Array) -> Array:
        """The scores of units, which compete along the last axis."""
        return scores.reshape(-1)

    def mask(self, chosen: Array, shape: tuple[int, ...]) -> Array:
        """The mask of an array of that shape in which these units are kept."""
        return chosen.reshape(shape)

    def count(self, shape: tuple[int, ...], density: Array) -> Array:
        """How many of `shape[-1]` units are kept, of units of that shape."""
        return masks.count(shape[-1], density)

    def choose(self, scores: Array, kept: Array) -> Array:
        """Marks the `kept` best units along the last axis."""
        return largest(scores, kept)

    def held(self, chosen: Array) -> Array:
        """How many were chosen, in the form `choose` takes it."""
        return chosen.sum(dtype=jnp.int32)


@register("value", "sparse_block")
@dataclasses.dataclass(frozen=True)
class Block(Single):
    """Blocks of the last two axes, scored by their sums.

    Attributes:
        rows: of a block.
        columns: of a block; those at the edges may be smaller.

    >>> pattern = Block(1, 2)
    >>> units = pattern.units(jnp.array([[3.0, 1.0], [2.0, 4.0]]))
    >>> pattern.mask(pattern.choose(units, 1), (2, 2)).tolist()
    [[False, False], [True, True]]
    """

    rows: int
    columns: int

    def __post_init__(self) -> None:
        masks.check_block((self.rows, self.columns), "Block")

    def units(self, scores: Array) -> Array:
        """One for each block, of all leading indices."""
        return masks.sums(scores, (self.rows, self.columns)).reshape(-1)

    def mask(self, chosen: Array, shape: tuple[int, ...]) -> Array:
        """Blocks spread out again."""
        down, across = -(-shape[-2] // self.rows), -(-shape[-1] // self.columns)
        tiles = chosen.reshape(*shape[:-2], down, across)
        return masks.unblocked(tiles, shape, (self.rows, self.columns))


@register("value", "sparse_n_of_m")
@dataclasses.dataclass(frozen=True)
class NOfM(Single):
    """`n` of every `m` neighbours, once the density is below one; all of them before.

    Attributes:
        n: how many are kept.
        m: of how many neighbours.
        axis: along which; -2 are the inputs of a kernel `[inputs, outputs]`.

    >>> pattern = NOfM(1, 2)
    >>> units = pattern.units(jnp.array([[3.0, 1.0], [2.0, 4.0]]))
    >>> kept = pattern.count(units.shape, 0.5)
    >>> pattern.mask(pattern.choose(units, kept), (2, 2)).tolist()
    [[True, False], [False, True]]
    """

    n: int = 2
    m: int = 4
    axis: int = -2
    joins = False

    def __post_init__(self) -> None:
        masks.check_pattern(self.n, self.m, "NOfM")

    def units(self, scores: Array) -> Array:
        """Groups of `m`, along the last axis; the last one is filled up."""
        return masks.groups(scores, self.m, self.axis)

    def mask(self, chosen: Array, shape: tuple[int, ...]) -> Array:
        """Groups in their places again."""
        return masks.ungrouped(chosen, shape, self.axis)

    def count(self, shape: tuple[int, ...], density: Array) -> Array:
        """`n` in each group, whatever the density is, if it is not one."""
        if isinstance(density, jax.Array):
            return jnp.where(density < 1, jnp.int32(self.n), jnp.int32(self.m))
        return self.n if density < 1 else self.m

    def choose(self, scores: Array, kept: Array) -> Array:
        """The best of each group."""
        return masks.ranks(scores) < kept

    def held(self, chosen: Array) -> Array:
        """Of each group."""
        return chosen.sum(-1, keepdims=True, dtype=jnp.int32)
