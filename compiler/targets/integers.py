"""Products of integers with integers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from compiler.targets import choose
from compiler.targets.groups import EXACT, by_group
from compiler.targets.matrices import (
    Parts,
    by_column,
    columns,
    contract,
    normal,
    planes,
)
from compiler.targets.tiled import tiled
from compiler.targets.weight_only import each, weight_only

if TYPE_CHECKING:
    from compiler.passes.quantize.storage.encoding import Encoding

Array = jax.Array


def integer_product(
    codes: Array, scale: Array, zero: Array | None, encoding: Encoding, parts: Parts
) -> tuple[Array, Array | None]:
    r"""Multiplies rounded activations by a weight of integers.

    $$ y_{tc} = s_t \sum_g s_{gc} \sum_{i \in g} (q_{ti} - z_t)(Q_{ic} - z_{gc}) $$

    The inner sums are int32, and exact.

    Args:
        codes: [*stack, tokens, rows], int8.
        scale: float32; broadcasts to [*stack, tokens, 1].
        zero: like `scale`, integers; None if there is none.
        encoding: of the weight, an integer format.
        parts: of the weight.

    Returns:
        Where all rows of a column share a scale: the sums [*stack, tokens, columns],
        int32, and the scale they are to be multiplied by, which broadcasts to them.
        Else the product, float32, and None; so too for codes of another dtype (float8),
        whose products are not exact.
    """
    *stack, tokens, rows = codes.shape
    if codes.dtype != jnp.int8:
        return weight_only(codes.astype(jnp.float32) * scale, encoding, parts), None
    one, stored = normal(encoding, parts)
    shape, count = (*stack, tokens, columns(one)), stored["values"].shape[0]
    if 0 in (*shape, rows):
        return jnp.zeros(shape, jnp.int32), scale
    x = codes.reshape(count, tokens, rows)
    if zero is not None:
        zero = jnp.broadcast_to(zero.astype(jnp.int32), (*stack, tokens, 1))
        zero = zero.reshape(count, tokens, 1)
    if one.groups > 1 or rows > EXACT:
        y = each(lambda *given: by_group(one, *given), x, stored, zero)
        return y.reshape(shape) * scale, None
    total = each(
        lambda *given: _shifted(one, *given), _sums(one, x, stored), x, stored, zero
    )
    own = jax.vmap(lambda parts: by_column(one, parts, jnp.float32))(stored)
    return total.reshape(shape), scale * own.reshape(*stack, *own.shape[1:])


def _sums(encoding: Encoding, x: Array, stored: Parts) -> Array:
    """The products of the codes alone."""
    tokens, axis = x.shape[1], encoding.axis
    tiling = choose.integer_tiling(tokens, encoding, stored["values"].shape[axis + 1])

    def multiply(x: Array, tile: Encoding, parts: Parts) -> Array:
        total, start = jnp.zeros((), jnp.int32), 0
        for codes in planes(tile, parts):
            rows = x[:, start : start + codes.shape[axis]]
            start += codes.shape[axis]
            total = total + contract(rows, codes, axis, into=jnp.int32)
        return total

    def plain(x: Array, parts: Parts) -> Array:
        return multiply(x, encoding, parts)

    def on_cpu(x: Array, parts: Parts) -> Array:
        # XLA's CPU back end has a fast product of int8 matrices, but not of a vector.
        x = jnp.pad(x, ((0, choose.few(tokens, 1)), (0, 0)))
        return tiled(x, encoding, parts, tiling, multiply, jnp.int32)[:tokens]

    if not choose.few(tokens, 1) and tiling is None:
        return each(plain, x, stored)
    return jax.lax.platform_dependent(
        x,
        stored,
        cpu=lambda x, parts: each(on_cpu, x, parts),
        default=lambda x, parts: each(plain, x, parts),
    )


def _shifted(
    encoding: Encoding, total: Array, x: Array, parts: Parts, zero: Array | None
) -> Array:
    """The sums, as if zero points had been subtracted from both factors."""
    sums = jnp.sum(x, 1, dtype=jnp.int32, keepdims=True)
    if zero is not None:
        own = jnp.sum(encoding.codes(parts), encoding.axis, dtype=jnp.int32)
        total = total - zero * own.reshape(1, -1)
        sums = sums - np.int32(encoding.count) * zero
    zeros = encoding.zeros(parts)
    if zeros is None:
        return total
    return total - sums * zeros.astype(jnp.int32).reshape(1, -1)
