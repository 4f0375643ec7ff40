"""Products of a floating activation with a weight in few bits."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from compiler.targets import choose
from compiler.targets.matrices import Parts, columns, contract, late, normal, numbers
from compiler.targets.tiled import tiled

if TYPE_CHECKING:
    from compiler.passes.quantize.storage.encoding import Encoding

Array = jax.Array


def weight_only(
    x: Array,
    encoding: Encoding,
    parts: Parts,
    *,
    dtype: Any = None,
    precision: Any = None,
) -> Array:
    r"""Multiplies by a weight in few bits, which is decoded as it is used.

    $$ y_{tc} = \sum_i x_{ti}\,s_{g(i)c}\,(Q_{ic} - z_{g(i)c}) $$

    On a CPU, XLA would write the whole decoded matrix to memory: there, large ones are
    decoded a tile at a time. On other platforms XLA decodes while it multiplies. In
    reverse mode nothing decoded is kept either.

    Args:
        x: [*stack, tokens, rows], floating. Rows, like columns, are all axes of that
            kind in the order the array has them.
        encoding: of the weight.
        parts: of the weight.
        dtype: of the result; None for that of `x`.
        precision: of the products, as `jax.lax.dot_general` takes it.

    Returns:
        [*stack, tokens, columns], summed in float32 or more.

    >>> from compiler.passes.quantize.storage.encoding import Encoding
    >>> from compiler.passes.quantize.storage.scheme import Scheme
    >>> code = Encoding(Scheme("int4", group=2), (4, 3), "float32", rows=(0,))
    >>> weight_only(jnp.ones((1, 4)), code, code.encode(jnp.eye(4, 3))).tolist()
    [[1.0, 1.0, 1.0]]
    """
    *stack, tokens, rows = x.shape
    into = _summed_in(x.dtype)
    one, stored = normal(encoding, parts)
    shape, count = (*stack, tokens, columns(one)), stored["values"].shape[0]
    if 0 in (*shape, rows):
        return jnp.zeros(shape, dtype or x.dtype)
    x = x.reshape(count, tokens, rows)

    tiling = choose.tiling(tokens, one, stored["values"].shape[one.axis + 1])

    def plain(x: Array, parts: Parts) -> Array:
        return _product(x, one, parts, None, x.dtype, precision)

    def in_tiles(x: Array, parts: Parts) -> Array:
        return _product(x, one, parts, tiling, into, precision)

    if choose.pays(count, tokens, one):
        y = jax.lax.platform_dependent(
            x,
            stored,
            cpu=lambda x, parts: each(in_tiles, x, parts, one_by_one=True),
            default=lambda x, parts: each(plain, x, parts),
        )
    else:
        y = each(plain, x, stored)
    return y.reshape(shape).astype(dtype or x.dtype)


def each(
    product: Callable[..., Array], *stacked: Any, one_by_one: bool = False
) -> Array:
    """A product for each matrix of a stack, all at once or one by one."""
    if jax.tree.leaves(stacked)[0].shape[0] == 1:
        return product(*jax.tree.map(lambda array: array[0], stacked))[None]
    if one_by_one:
        return jax.lax.map(lambda given: product(*given), stacked)
    return jax.vmap(product)(*stacked)


def _product(
    x: Array,
    encoding: Encoding,
    parts: Parts,
    tiling: choose.Tiling | None,
    operand: Any,
    precision: Any,
) -> Array:
    """[tokens, rows] times one matrix, in float32 or more."""
    into = _summed_in(x.dtype)

    def multiply(x: Array, tile: Encoding, parts: Parts) -> Array:
        @jax.checkpoint
        def times(x: Array, parts: Parts) -> Array:
            terms, start = [], 0
            for matrix in numbers(tile, parts, into):
                stop = start + matrix.shape[tile.axis]
                rows, matrix = (a.astype(operand) for a in (x[:, start:stop], matrix))
                terms.append(
                    contract(rows, matrix, tile.axis, into=into, precision=precision)
                )
                start = stop
            return functools.reduce(jnp.add, terms)

        return times(x, parts)

    y = tiled(x, encoding, parts, tiling, multiply, into)
    scale = late(encoding, parts, into)
    return y if scale is None else y * scale


def _summed_in(dtype: Any) -> Any:
    return jnp.dtype(jnp.float64 if dtype == jnp.float64 else jnp.float32)
