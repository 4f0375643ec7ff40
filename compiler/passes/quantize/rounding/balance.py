r"""Moving size from the inputs of a product to its weight, or back, row by row.

$$ x W = (x / s)\,(s W) $$

is the same for every positive s, of one number for each row. What is rounded is not.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from compiler.passes.quantize.rounding.grid import Grid
from compiler.passes.quantize.rounding.hessian import moved
from compiler.passes.quantize.storage.scheme import Scheme

Array = jax.Array

_SMALL = 1e-5
"""The least share of the largest row that a row counts as having."""

_POINTS = 20
"""How many exponents of the inputs' size are tried, after none."""


def smooth_factors(inputs: Array, weights: Array, alpha: float = 0.5) -> Array:
    r"""What to divide inputs by so that they are as hard to round as the weights.

    $$ s_j = \max |X_j|^{\alpha} / \max |W_j|^{1 - \alpha} $$

    Rows that nothing goes into, or that are not finite, count as small; the factors of
    one matrix have the geometric mean one.

    Args:
        inputs: the largest size of each row's inputs, `[stack, rows]`.
        weights: the largest size of each row's weights, `[stack, rows]`.
        alpha: in [0, 1]: how much of the inputs' spread the weight takes; with 1
            inputs become all alike, with 0 the weight's rows do.

    Xiao et al., 2022, https://arxiv.org/abs/2211.10438.

    >>> x, w = jnp.asarray([[16.0, 1.0]]), jnp.asarray([[1.0, 1.0]])
    >>> smooth_factors(x, w, 0.5).tolist()
    [[2.0, 0.5]]
    """
    both = alpha * _logs(inputs) - (1 - alpha) * _logs(weights)
    return jnp.exp(both - jnp.mean(both, axis=-1, keepdims=True))


class Reader(NamedTuple):
    """A weight that reads some inputs.

    Attributes:
        weight: `[stack, rows, columns]`.
        hessian: `[stack, rows, rows]`, the mean of $x x^T$ over its inputs.
        scheme: what it will be rounded to.
        feature: for each row, which of the inputs' features it multiplies; a kernel
            meets each of them in several places.
    """

    weight: Array
    hessian: Array
    scheme: Scheme
    feature: Sequence[int]


def awq_factors(inputs: Array, readers: Sequence[Reader]) -> tuple[Array, Array]:
    r"""What to multiply rows by before rounding, so that rows which matter are finer.

    $$ s = a^{\alpha}, \qquad \alpha^* = \arg\min_{\alpha \in [0, 1]}
       \mathrm{E}\,\lVert x^\top (W - \mathrm{round}(s W) / s) \rVert^2 $$

    with a the size of each feature of the inputs. An exponent of zero, which changes
    nothing, is among those tried.

    Args:
        inputs: a, `[stack, features]`.
        readers: the weights that read them.

    Returns:
        The factors, `[stack, features]`, and the exponents, `[stack]`.

    Lin et al., 2023, https://arxiv.org/abs/2306.00978.

    >>> w = jnp.asarray([[[0.6, 0.0], [7.0, 7.0]]])
    >>> hessian = jnp.asarray([[[256.0, 0.0], [0.0, 1.0]]])
    >>> reader = Reader(w, hessian, Scheme("int4"), (0, 1))
    >>> _, alpha = awq_factors(jnp.asarray([[16.0, 1.0]]), [reader])
    >>> bool(alpha[0] > 0)
    True
    """
    grids = [Grid(reader.scheme, reader.weight.dtype) for reader in readers]
    features = [np.asarray(reader.feature) for reader in readers]

    def one(inputs: Array, weights: list[Array], hessians: list[Array]) -> Any:
        logs = _logs(inputs)

        def loss(alpha: Array) -> Array:
            factors = jnp.exp(alpha * logs)
            given = zip(grids, weights, hessians, features, strict=True)
            losses = [_loss(g, w, h, factors[rows, None]) for g, w, h, rows in given]
            return jnp.sum(jnp.stack(losses))

        alphas = jnp.asarray(np.linspace(0, 1, _POINTS + 1, dtype=logs.dtype))
        losses = jax.lax.map(loss, alphas)
        best = alphas[jnp.argmin(jnp.where(jnp.isfinite(losses), losses, jnp.inf))]
        return jnp.exp(best * logs), best

    weights, hessians = ([reader[i] for reader in readers] for i in (0, 1))
    return jax.vmap(one)(inputs, weights, hessians)


def mean_shift(inputs: Array, error: Array) -> Array:
    r"""How far the mean of each column's outputs moves: $\mathrm{E}[x]^\top \Delta$.

    Args:
        inputs: the mean of each row's inputs, `[stack, rows]`.
        error: what the weight has lost, `[stack, rows, columns]`.

    Returns:
        `[stack, columns]`, to be added to a bias.

    Nagel et al., 2019, https://arxiv.org/abs/1906.04721.

    >>> mean_shift(jnp.asarray([[1.0, 2.0]]), jnp.asarray([[[0.5], [0.25]]])).tolist()
    [[1.0]]
    """
    return jnp.matmul(inputs[:, None], error, precision="highest")[:, 0]


def _loss(grid: Grid, matrix: Array, hessian: Array, factors: Array) -> Array:
    """How far the outputs move if rows are rounded multiplied by factors."""
    wide = matrix.astype(grid.wide)
    factors = factors.astype(grid.wide)
    rounded = grid.nearest((wide * factors).astype(grid.dtype))[0] / factors
    return jnp.sum(moved(wide - rounded, hessian.astype(grid.wide)))


def _logs(sizes: Array) -> Array:
    """Logarithms of sizes over their geometric mean, the smallest ones bounded."""
    sizes = sizes.astype(np.promote_types(sizes.dtype, np.float32))
    sizes = jnp.where(jnp.isfinite(sizes), sizes, 0)
    largest = jnp.max(sizes, axis=-1, keepdims=True, initial=0)
    least = jnp.where(largest > 0, largest * _SMALL, 1)
    logs = jnp.log(jnp.maximum(sizes, least))
    return logs - jnp.mean(logs, axis=-1, keepdims=True)
