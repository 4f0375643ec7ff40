"""Rounding a matrix row by row, each error made up for by the rows that follow."""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from compiler.passes.quantize.rounding.grid import Grid, Range
from compiler.passes.quantize.rounding.hessian import inverse_factor, moved
from compiler.passes.quantize.storage.scheme import Scheme

Array = jax.Array

_BLOCK = 128
"""How many rows are corrected one by one before the rest is by a matrix product."""


class Rounded(NamedTuple):
    """Matrices rounded to numbers that a scheme has.

    Attributes:
        values: `[stack, rows, columns]`, each exactly one that a code stands for.
        scale: `[stack, groups, columns]` (or one column), such as can be stored.
        zero: like `scale`, or None if the scheme is symmetric.
        loss: `[stack, columns]`: how far the outputs move, squared and on average.
    """

    values: Array
    scale: Array
    zero: Array | None
    loss: Array


def nearest(weight: Array, hessian: Array, scheme: Scheme) -> Rounded:
    """Rounds each number to the nearest, and tells how far that moves the outputs.

    Args:
        weight: `[stack, rows, columns]`.
        hessian: `[stack, rows, rows]`.
        scheme: what to round to.
    """
    grid = Grid(scheme, weight.dtype)
    return jax.vmap(functools.partial(_plain, grid))(weight, hessian)


def gptq(
    weight: Array,
    hessian: Array,
    scheme: Scheme,
    *,
    order: bool = False,
    damping: float = 0.01,
) -> Rounded:
    r"""Rounds matrices so that the outputs move little, whatever the weights do.

    Rows are rounded one after the other; what row i errs is made up for, as far as
    the inputs allow it, by those that are not rounded yet:

    $$ W_{j} \leftarrow W_{j} - \frac{U_{ij}}{U_{ii}} (W_i - Q_i), \quad j > i, \qquad
       H^{-1} = U^\top U $$

    Rows are corrected one by one within blocks, the rest by one matrix product for
    each block. The range of a group of rows is chosen when the first of them is
    reached. A column keeps what is nearest if that is better after all, so no column
    moves the outputs farther than rounding to nearest does.

    Args:
        weight: `[stack, rows, columns]`.
        hessian: `[stack, rows, rows]`, the mean of $x x^\top$ over inputs; one that
            is not finite says nothing.
        scheme: what to round to.
        order: whether rows go by the size of their inputs, the largest first, while
            much can still be made up for; ranges are then those of the weight as it
            was.
        damping: the share of the mean diagonal that is added to it.

    Frantar et al., 2022, https://arxiv.org/abs/2210.17323.

    >>> w = jnp.asarray([[[1.4], [1.4], [7.0]]])
    >>> alike = jnp.asarray([[[1.0, 0.9, 0.0], [0.9, 1.0, 0.0], [0.0, 0.0, 1.0]]])
    >>> gptq(w, alike, Scheme("int4")).values.ravel().tolist()
    [1.0, 2.0, 7.0]
    """
    grid = Grid(scheme, weight.dtype)

    def one(matrix: Array, hessian: Array) -> Rounded:
        plain = _plain(grid, matrix, hessian)
        hessian = hessian.astype(grid.wide)
        if order:
            values, shared = _by_size(grid, matrix, hessian, damping)
        else:
            values, shared = _in_turn(grid, matrix, hessian, damping)
        better = _judged(grid, matrix, hessian, values, shared)
        return jax.tree.map(
            functools.partial(_pick, better.loss < plain.loss), better, plain
        )

    return jax.vmap(one)(weight, hessian)


def _plain(grid: Grid, matrix: Array, hessian: Array) -> Rounded:
    return _judged(grid, matrix, hessian, *grid.nearest(matrix))


def _judged(
    grid: Grid, matrix: Array, hessian: Array, values: Array, shared: Range
) -> Rounded:
    error = matrix.astype(grid.wide) - values
    return Rounded(values, *shared, moved(error, hessian.astype(grid.wide)))


def _pick(better: Array, given: Array, plain: Array) -> Array:
    """By column; a range that all columns share is the same in both."""
    if given.shape[-1] == better.shape[-1]:
        return jnp.where(jnp.broadcast_to(better, given.shape), given, plain)
    return given


def _in_turn(
    grid: Grid, matrix: Array, hessian: Array, damping: float
) -> tuple[Array, Range]:
    """Rounds rows as they come, choosing the range of each group when it begins."""
    rows = matrix.shape[0]
    size, counts = grid.group(rows), grid.counts(rows)
    whole = len(counts) * size
    left, factor = _padded(grid, matrix, inverse_factor(hessian, damping), whole)

    def step(left: Array, start: Array, count: int = size) -> tuple[Array, Range]:
        group = jax.lax.dynamic_slice_in_dim(left, start, size)
        shared = grid.range(group[None], np.array([count]))
        shared = jax.tree.map(lambda x: x[0], shared)
        return _corrected(grid, left, factor, shared, start, size), shared

    starts = np.arange(len(counts), dtype=np.int32) * size
    left, shared = jax.lax.scan(step, left, jnp.asarray(starts[:-1]))
    left, last = step(left, jnp.asarray(starts[-1]), int(counts[-1]))
    shared = jax.tree.map(lambda x, y: jnp.concatenate([x, y[None]]), shared, last)
    return left[:rows], jax.tree.map(lambda x: jnp.squeeze(x, 1), shared)


def _by_size(
    grid: Grid, matrix: Array, hessian: Array, damping: float
) -> tuple[Array, Range]:
    """Rounds rows by the size of their inputs, with the ranges the weight has."""
    rows = matrix.shape[0]
    shared = grid.nearest(matrix)[1]
    turn = jnp.argsort(-jnp.diagonal(hessian), stable=True)
    factor = inverse_factor(hessian[turn][:, turn], damping)
    left, factor = _padded(grid, matrix[turn], factor, rows)
    each = jax.tree.map(lambda x: x[turn // grid.group(rows)], shared)
    left = _corrected(grid, left, factor, each, jnp.int32(0), rows)
    back = jnp.argsort(turn)
    return left[:rows][back], shared


def _padded(grid: Grid, matrix: Array, factor: Array, rows: int) -> tuple[Array, Array]:
    """With rows of zeros at the end, which take no part."""
    more = rows - matrix.shape[0] + min(rows, _BLOCK)
    left = jnp.pad(matrix.astype(grid.wide), ((0, more), (0, 0)))
    return left, jnp.pad(factor.astype(grid.wide), ((0, more), (0, more)))


def _corrected(
    grid: Grid, left: Array, factor: Array, shared: Range, start: Array, size: int
) -> Array:
    """Rounds rows `start` to `start + size`, and corrects all that follow.

    Args:
        grid: what to round to.
        left: rows that are rounded, and rows that are yet to be.
        factor: U of all rows.
        shared: one range for these rows, or one for each of them.
        start: the first of them.
        size: how many they are.
    """
    length = min(size, _BLOCK)
    stop = start + size

    def step(left: Array, first: Array) -> tuple[Array, None]:
        rows = jax.lax.dynamic_slice_in_dim(left, first, length)
        strip = jax.lax.dynamic_slice_in_dim(factor, first, length)
        corner = jax.lax.dynamic_slice_in_dim(strip, first, length, 1)
        local = jax.tree.map(lambda x: _rows(x, first - start, length), shared)
        rows, errors = _one_by_one(grid, rows, corner, local, stop - first)
        # The factor is zero before the block, and the block itself is replaced.
        left = left - jnp.matmul(strip.T, errors, precision="highest")
        return jax.lax.dynamic_update_slice_in_dim(left, rows, first, 0), None

    firsts = start + jnp.arange(-(-size // length), dtype=jnp.int32) * length
    return jax.lax.scan(step, left, firsts)[0]


def _rows(shared: Array, first: Array, length: int) -> Array:
    """The ranges of some rows, of one for all or one for each."""
    if shared.shape[0] == 1:
        return jnp.broadcast_to(shared, (length, *shared.shape[1:]))
    spare = jnp.pad(shared, ((0, length), (0, 0)), mode="edge")
    return jax.lax.dynamic_slice_in_dim(spare, first, length)


def _one_by_one(
    grid: Grid, rows: Array, factor: Array, shared: Range, count: Array
) -> tuple[Array, Array]:
    """Rounds the first `count` rows of a block, correcting within it.

    Returns:
        The rows, and of each its error over the diagonal of the factor.
    """

    def step(rows: Array, given: tuple[Array, Array, Range]) -> tuple[Array, Array]:
        i, along, own = given
        row = rows[i]
        rounded = grid.round(row[None], jax.tree.map(lambda x: x[None], own))[0]
        own_factor = jnp.where(along[i] != 0, along[i], 1)
        error = jnp.where(i < count, (row - rounded) / own_factor, 0)
        rows = rows - along[:, None] * error[None]
        return rows.at[i].set(jnp.where(i < count, rounded, row)), error

    index = jnp.arange(rows.shape[0], dtype=jnp.int32)
    return jax.lax.scan(step, rows, (index, factor, shared))
