"""Products of integers whose groups of rows have scales of their own."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from compiler.passes.quantize.storage.scheme import Scheme
from compiler.targets import choose
from compiler.targets.matrices import Parts
from compiler.targets.tiled import tiled

if TYPE_CHECKING:
    from compiler.passes.quantize.storage.encoding import Encoding

Array = jax.Array
EXACT = 2**15
"""So many products of two int8 differences cannot leave the range of int32."""


def by_group(encoding: Encoding, x: Array, parts: Parts, zero: Array | None) -> Array:
    r"""Sums each group of rows in int32, scales the sums, and adds them in float32.

    $$ y_{tc} = \sum_g s_{gc} \sum_{i \in g} (q_{ti} - z_t)(Q_{ic} - z_{gc}) $$

    Args:
        encoding: of one matrix of integers, as `matrices.normal` gives it.
        x: int8 [tokens, rows].
        parts: of the matrix.
        zero: int32 [tokens, 1], or None.

    Returns:
        float32 [tokens, columns].
    """
    encoding, parts = _cuttable(encoding, parts)
    size = encoding.group

    def multiply(x: Array, tile: Encoding, parts: Parts) -> Array:
        given = _in_groups(x, 1, size)
        codes = _in_groups(tile.codes(parts), tile.axis, size)
        total = _dot(given, codes, tile.axis)
        sums = jnp.sum(given, 2, dtype=jnp.int32).T[..., None]
        if zero is not None:
            own = jnp.sum(codes, tile.axis + 1, dtype=jnp.int32)
            total = total - zero[None] * _groups_first(own, tile.axis)
            rows = np.clip(tile.count - size * np.arange(tile.groups), 0, size)
            sums = sums - zero[None] * jnp.asarray(rows, jnp.int32)[:, None, None]
        zeros = tile.zeros(parts)
        if zeros is not None:
            shift = _groups_first(zeros.astype(jnp.int32), tile.axis)
            total = total - sums * shift
        scale = tile.scales(parts).astype(jnp.float32)
        scaled = total.astype(jnp.float32) * _groups_first(scale, tile.axis)
        return jnp.sum(scaled, 0)

    extent = choose.groups_at_once(x.shape[0], encoding) * size
    tiling = choose.Tiling(encoding.axis, extent)
    if extent >= encoding.count:
        return multiply(x, encoding, parts)
    return tiled(x, encoding, parts, tiling, multiply, jnp.float32)


def _cuttable(encoding: Encoding, parts: Parts) -> tuple[Encoding, Parts]:
    """The same with one code in each byte, and no group that could overflow."""
    size = encoding.group
    group = min(size, EXACT) if encoding.groups == 1 else math.gcd(size, EXACT)
    group = size if size <= EXACT else group
    scheme = Scheme("int8", group, encoding.scheme.symmetric)
    plain = dataclasses.replace(encoding, scheme=scheme)

    def shared(part: Array) -> Array:
        part = jnp.repeat(part, -(-size // group), encoding.axis)
        part = jax.lax.slice_in_dim(part, 0, plain.groups, axis=encoding.axis)
        shape = list(encoding.shape)
        shape[encoding.axis] = plain.groups
        return jnp.broadcast_to(part, shape)

    found = {"values": encoding.codes(parts), "scale": shared(encoding.scales(parts))}
    zeros = encoding.zeros(parts)
    return plain, found if zeros is None else found | {"zero": shared(zeros)}


def _dot(x: Array, codes: Array, axis: int) -> Array:
    """[tokens, groups, rows] times codes in groups: [groups, tokens, columns]."""
    numbers = (((2,), (axis + 1,)), ((1,), (axis,)))
    y = jax.lax.dot_general(x, codes, numbers, preferred_element_type=jnp.int32)
    return y.reshape(*y.shape[:2], -1)


def _groups_first(shared: Array, axis: int) -> Array:
    """What groups share as [groups, 1, columns or 1]."""
    shared = jnp.moveaxis(shared, axis, 0)
    return shared.reshape(shared.shape[0], 1, -1)


def _in_groups(array: Array, axis: int, size: int) -> Array:
    """An axis as groups, the last filled up with zeros."""
    count = -(-array.shape[axis] // size)
    widths = [(0, 0)] * array.ndim
    widths[axis] = (0, count * size - array.shape[axis])
    shape = (*array.shape[:axis], count, size, *array.shape[axis + 1 :])
    return jnp.pad(array, widths).reshape(shape)
