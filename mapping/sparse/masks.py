"""Masks from scores: which numbers of one array are kept.

Each function takes scores, the larger the more worth keeping, and returns booleans of
the same shape. Of equal scores the earlier is kept, so that the count is exact; NaN
counts as the smallest. Scores of numpy give a mask of numpy, without a compilation;
those of JAX one of JAX, under any transformation.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mapping.errors import FieldError, ShapeMismatchError
from mapping.fields import check_count
from mapping.sparse.largest import Array, ordered
from mapping.sparse.largest import largest as largest


def count(size: int, density: Array) -> Array:
    r"""Returns how many of `size` numbers a density keeps.

    $$ k = \lfloor size \cdot density + 1/2 \rfloor $$

    at least one where both are above 0 (a kernel with nothing left passes nothing
    on), at most `size`. A traced density is read in float32 and gives an int32.

    Raises:
        FieldError: if a density that is no array is not within [0, 1].

    >>> count(10, 0.25), count(10, 0.0), count(10, 0.001)
    (3, 0, 1)
    """
    if isinstance(density, jax.Array):
        share = density.astype(jnp.float32)
        kept = jnp.floor(share * jnp.float32(size) + jnp.float32(0.5))
        least = jnp.minimum((share > 0).astype(jnp.int32), jnp.int32(size))
        return jnp.clip(kept.astype(jnp.int32), least, jnp.int32(size))
    check_share(density, "density")
    kept = math.floor(size * float(density) + 0.5)
    return min(size, max(kept, int(density > 0)))


def top_k(scores: Array, density: Array) -> Array:
    """Keeps the largest scores, as many as [`count`][] says.

    Args:
        scores: real numbers of any shape.
        density: the share kept, in [0, 1]; may be traced.

    Raises:
        FieldError: if the density is out of range, or the scores are not real.

    >>> top_k(np.array([[3.0, 1.0], [2.0, 2.0]]), 0.5).tolist()
    [[True, False], [True, False]]
    """
    return largest(scores, count(scores.size, density))


def n_of_m(scores: Array, n: int, m: int, axis: int = -1) -> Array:
    """Keeps the `n` largest of every `m` neighbours along an axis.

    What is left over at the end is a shorter group, which keeps `min(n, its length)`.
    Mishra et al., "Accelerating Sparse Deep Neural Networks", 2021,
    https://arxiv.org/abs/2104.08378: 2 of 4, along the axis a product sums over.

    Args:
        scores: real numbers, of rank 1 or more.
        n: how many are kept, from 1 to `m`.
        m: how many are neighbours.
        axis: along which; for a kernel `[inputs, outputs]` the inputs, -2.

    Raises:
        FieldError: if `n` and `m` make no pattern.
        ShapeMismatchError: if there is no such axis.

    >>> n_of_m(np.array([4.0, 1.0, 3.0, 2.0, 0.5]), 2, 4).tolist()
    [True, False, True, False, True]
    """
    check_pattern(n, m, "n_of_m")
    return _run(_n_of_m, scores)(scores, n, m, axis)


def _n_of_m(scores: Array, n: int, m: int, axis: int) -> Array:
    return ungrouped(ranks(groups(scores, m, axis)) < n, scores.shape, axis)


def blocks(scores: Array, density: Array, block: tuple[int, int]) -> Array:
    """Keeps whole blocks of the last two axes, those of the largest sums.

    Blocks at the ragged edges are smaller. All blocks of the array compete, those of
    different leading indices too; [`count`][] says how many of them are kept.

    Args:
        scores: real numbers, of rank 2 or more.
        density: the share of the blocks kept, in [0, 1]; may be traced.
        block: rows and columns of a block.

    Raises:
        FieldError: if the block or the density makes no sense.
        ShapeMismatchError: if the rank is below 2.

    >>> blocks(np.array([[1.0, 1.0, 9.0], [1.0, 1.0, 0.0]]), 0.5, (2, 2)).tolist()
    [[False, False, True], [False, False, True]]
    """
    check_block(block, "blocks")
    tiles = _run(sums, scores)(scores, block)
    chosen = top_k(tiles, density)
    return _run(unblocked, chosen)(chosen, scores.shape, block)


def sums(scores: Array, block: tuple[int, int]) -> Array:
    """The sum of each block of the last two axes, in float32 at least.

    >>> sums(np.array([[1.0, 2.0, 3.0]]), (2, 2)).tolist()
    [[3.0, 3.0]]
    """
    if scores.ndim < 2:
        raise ShapeMismatchError(
            f"blocks: expected scores of rank 2 or more, got {list(scores.shape)}. Use "
            "single weights."
        )
    (rows, columns), (height, width) = scores.shape[-2:], block
    real = ordered(scores)
    wide = real.astype(np.float32) if real.dtype.itemsize < 4 else real
    edges = [(0, 0)] * (scores.ndim - 2) + [(0, -rows % height), (0, -columns % width)]
    tiles = _library(scores).pad(wide, edges)
    down, across = -(-rows // height), -(-columns // width)
    shape = (*scores.shape[:-2], down, height, across, width)
    return tiles.reshape(shape).sum((-3, -1), dtype=wide.dtype)


def unblocked(kept: Array, shape: tuple[int, ...], block: tuple[int, int]) -> Array:
    """Says of each number what is said of its block."""
    (height, width), repeat = block, _library(kept).repeat
    return repeat(repeat(kept, height, -2), width, -1)[..., : shape[-2], : shape[-1]]


def groups(scores: Array, m: int, axis: int) -> Array:
    """The scores with `m` neighbours along the axis as a last axis of their own.

    The last group is filled with the lowest, which comes after all that are real.

    Raises:
        ShapeMismatchError: if there is no such axis.
    """
    if not -scores.ndim <= axis < scores.ndim:
        raise ShapeMismatchError(
            f"n_of_m: expected scores with an axis {axis}, got {list(scores.shape)}."
        )
    real, numbers = ordered(scores), _library(scores)
    integral = jnp.issubdtype(real.dtype, np.integer)
    lowest = np.asarray(np.iinfo(real.dtype).min if integral else -np.inf, real.dtype)
    lines = numbers.moveaxis(real, axis, -1)
    length = -(-lines.shape[-1] // m)
    edges = [(0, 0)] * (lines.ndim - 1) + [(0, length * m - lines.shape[-1])]
    filled = numbers.pad(lines, edges, constant_values=lowest)
    return filled.reshape(*lines.shape[:-1], length, m)


def ungrouped(kept: Array, shape: tuple[int, ...], axis: int) -> Array:
    """Puts what is said of groups in its place again."""
    flat = kept.reshape(*kept.shape[:-2], kept.shape[-2] * kept.shape[-1])
    return _library(kept).moveaxis(flat[..., : shape[axis]], -1, axis)


def ranks(scores: Array) -> Array:
    """How many come before each along the last axis: the larger, the equal to its left.

    One comparison with all for each place: groups are small, and nothing as large as
    their square is ever held.

    >>> ranks(np.array([2.0, 5.0, 5.0])).tolist()
    [2, 0, 1]
    """
    size = scores.shape[-1]
    places = np.arange(size).reshape([1] * (scores.ndim - 1) + [size])
    found = _library(scores).zeros(scores.shape, np.int32)
    for place in range(size):
        one = scores[..., place : place + 1]
        before = (one > scores) | ((one == scores) & (places > place))
        found = found + before.astype(np.int32)
    return found


def check_share(share: Any, where: str) -> None:
    """Refuses what is no share of a whole."""
    real = isinstance(share, int | float | np.number) and not isinstance(share, bool)
    if not real or not 0 <= share <= 1:
        raise FieldError(f"{where}: expected a share, from 0 to 1, got {share!r}.")


def check_pattern(n: Any, m: Any, where: str) -> None:
    """Refuses what is no `n` of `m`."""
    check_count(n, f"{where}.n")
    check_count(m, f"{where}.m")
    if n > m:
        raise FieldError(
            f"{where}: expected n of m with n <= m, got {n} of {m}. Swap them."
        )


def check_block(block: Any, where: str) -> None:
    """Refuses what is no pair of sizes."""
    if not isinstance(block, tuple) or len(block) != 2:
        raise FieldError(
            f"{where}: expected a pair (rows, columns) for a block, got {block!r}."
        )
    for size in block:
        check_count(size, f"{where}.block")


@functools.cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compiled whole where it is called eagerly, but for its first argument static."""
    static = tuple(range(1, len(inspect.signature(function).parameters)))
    return jax.jit(function, static_argnums=static)


def _run(function: Callable[..., Any], scores: Array) -> Callable[..., Any]:
    return function if _library(scores) is np else _compiled(function)


def _library(scores: Array) -> Any:
    return np if isinstance(scores, np.ndarray | np.generic) else jnp
