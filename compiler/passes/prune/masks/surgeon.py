"""Zeros whose error the weights that stay make up for, row by row."""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from compiler.passes.quantize.rounding.hessian import inverse_factor
from mapping.core import masks

Array = jax.Array


class Choice(NamedTuple):
    """How zeros are chosen.

    Attributes:
        density: the share that is kept in a block of rows, where `pair` is None.
        pair: n and m of n:m.
        block: how many rows choose together, and are corrected one by one.
        damping: the share of the Hessian's mean diagonal that is added to it.
    """

    density: float
    pair: tuple[int, int] | None = None
    block: int = 128
    damping: float = 0.01

    @property
    def rows(self) -> int:
        """Rows of a block: whole groups of n:m."""
        if self.pair is None:
            return self.block
        return -(-self.block // self.pair[1]) * self.pair[1]


@functools.partial(jax.jit, static_argnums=2)
def sparsegpt(weight: Array, hessian: Array, choice: Choice) -> tuple[Array, Array]:
    r"""Zeroes numbers of matrices so that the outputs move little.

    Blocks of rows choose what is zeroed when they are reached, and every row that has
    lost something is made up for by those that follow:

    $$ S_{ic} = W_{ic}^2 / U_{ii}^2, \qquad
       W_j \leftarrow W_j - \frac{U_{ij}}{U_{ii}} (W_i - \hat W_i), \quad j > i,
       \qquad H^{-1} = U^\top U $$

    What is zero already stays so. With n:m, every group chooses when its first row is
    reached.

    Args:
        weight: `[stack, rows, columns]`; or `[stack, outer, features, columns]`, where
            groups of n:m stay inside the features.
        hessian: `[stack, rows, rows]`, the mean of $x x^\top$ over inputs, rows in the
            same order.
        choice: how zeros are chosen.

    Returns:
        The new weights, and what is kept, both of the weights' shape.

    Frantar & Alistarh, 2023, https://arxiv.org/abs/2301.00774.

    >>> w = jnp.asarray([[[1.0], [2.0]]])
    >>> alike = jnp.asarray([[[1.0, 1.0], [1.0, 1.0]]])
    >>> new, kept = sparsegpt(w, alike, Choice(0.5, damping=1e-6))
    >>> print(new.ravel().round(2), kept.ravel())
    [0. 3.] [False  True]
    """
    stack, *rows, columns = weight.shape
    features = rows[-1]
    outer = rows[0] if len(rows) == 2 else 1
    one = functools.partial(_one, choice, outer, features)
    flat = weight.reshape(stack, outer * features, columns)
    values, kept = jax.vmap(one)(flat, hessian)
    return values.reshape(weight.shape), kept.reshape(weight.shape)


def _one(
    choice: Choice, outer: int, features: int, matrix: Array, hessian: Array
) -> tuple[Array, Array]:
    """One matrix, its features filled up to whole groups and its rows to blocks."""
    wide = jnp.promote_types(matrix.dtype, jnp.float32)
    factor = inverse_factor(hessian.astype(wide), choice.damping)
    group = choice.pair[1] if choice.pair else 1
    each = -(-features // group) * group
    size = min(choice.rows, outer * each)
    total = -(-outer * each // size) * size
    place = jnp.arange(outer)[:, None] * each + jnp.arange(features)[None]
    place = place.ravel()
    left = jnp.zeros((total, matrix.shape[1]), wide).at[place].set(matrix.astype(wide))
    spread = jnp.zeros((total, total), wide)
    spread = spread.at[place[:, None], place[None, :]].set(factor)
    real = jnp.zeros(total, bool).at[place].set(True)
    left, kept = _all_blocks(choice, size, outer * each, left, spread, real)
    return left[place].astype(matrix.dtype), kept[place]


def _all_blocks(
    choice: Choice, size: int, filled: int, left: Array, factor: Array, real: Array
) -> tuple[Array, Array]:
    """Goes through blocks of `size` rows; the last may have fewer that count."""
    alive = left != 0
    starts = np.arange(0, left.shape[0], size, dtype=np.int32)
    lengths = np.minimum(starts + size, filled) - starts
    shares = [masks.count(int(n) * left.shape[1], choice.density) for n in lengths]

    def step(left: Array, given: tuple[Array, Array]) -> tuple[Array, Array]:
        start, share = given
        rows, own, living, strip = (
            jax.lax.dynamic_slice_in_dim(a, start, size)
            for a in (left, real, alive, factor)
        )
        corner = jax.lax.dynamic_slice_in_dim(strip, start, size, 1)
        rows, errors, kept = _block(choice, share, rows, corner, own, living)
        # The factor is zero before the block, and the block itself is replaced.
        left = left - jnp.matmul(strip.T, errors, precision="highest")
        return jax.lax.dynamic_update_slice_in_dim(left, rows, start, 0), kept

    given = jnp.asarray(starts), jnp.asarray(shares, jnp.int32)
    left, kept = jax.lax.scan(step, left, given)
    return left, kept.reshape(left.shape)


def _block(
    choice: Choice, share: Array, rows: Array, factor: Array, real: Array, alive: Array
) -> tuple[Array, Array, Array]:
    """Zeroes all but a `share` of one block of rows, and corrects within it.

    Returns:
        The rows, of each its error over the diagonal of the factor, and what is kept.
    """
    diagonal, pair = jnp.diagonal(factor), choice.pair
    inverse = jnp.where(diagonal != 0, 1 / jnp.where(diagonal != 0, diagonal, 1), 0)

    def scores(rows: Array) -> Array:
        # What is filled up goes first, then what is zero, then the rest by its score.
        ranked = jnp.square(rows * inverse[:, None]) + jnp.finfo(rows.dtype).tiny
        return jnp.where(real[:, None], jnp.where(alive, ranked, 0), -1)

    def step(state: tuple[Array, Array], i: Array) -> tuple[tuple[Array, Array], Array]:
        rows, kept = state
        if pair is not None:
            begins = i % pair[1] == 0
            kept = jax.lax.cond(
                begins, lambda: _group(pair, scores(rows), kept, i), lambda: kept
            )
        # What was zero may have moved by now; it is made up for like the rest.
        row, stays = rows[i], kept[i] & alive[i]
        error = jnp.where(stays, 0, row) * inverse[i]
        rows = rows - factor[i][:, None] * error[None]
        return (rows.at[i].set(jnp.where(stays, row, 0)), kept), error

    kept = jnp.zeros(rows.shape, bool) if pair else masks.largest(scores(rows), share)
    index = jnp.arange(rows.shape[0], dtype=jnp.int32)
    (rows, kept), errors = jax.lax.scan(step, (rows, kept), index)
    return rows, errors, kept


def _group(pair: tuple[int, int], scores: Array, kept: Array, first: Array) -> Array:
    """What is kept, with the choice of the group that begins at a row."""
    own = jax.lax.dynamic_slice_in_dim(scores, first, pair[1])
    chosen = masks.n_of_m(own, *pair, axis=0)
    return jax.lax.dynamic_update_slice_in_dim(kept, chosen, first, 0)
