"""Codes of few bits to bytes and back.

A byte holds one code from each *plane*: the axis is cut into as many equal planes as
codes fit into a byte, plane k stands in bits `k * bits` and up, and only the end of the
last plane is padded (with zeros). Unpacking is a concatenation of whole planes: no
element changes its neighbour, so it costs the same along any axis, and a product can
take one plane at a time with a contiguous part of the activation.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array


def packed(count: int, bits: int) -> int:
    """How many bytes so many codes take along their axis.

    >>> packed(5, 4), packed(5, 2), packed(5, 8)
    (3, 2, 5)
    """
    return -(-count * bits // 8) if count else 0


def pack(codes: Array, bits: int, axis: int) -> Array:
    """Packs codes along an axis, two or four to a byte.

    Args:
        codes: int8 or uint8; only their low `bits` are kept.
        bits: 2 or 4.
        axis: the one that shrinks.

    >>> pack(jnp.array([1, 2, -1]), 4, 0).tolist()
    [241, 2]
    """
    size = packed(codes.shape[axis], bits)
    widths = [(0, 0)] * codes.ndim
    widths[axis] = (0, size * (8 // bits) - codes.shape[axis])
    low = jnp.pad(codes.astype(jnp.uint8) & np.uint8(2**bits - 1), widths)
    result = jnp.zeros((), jnp.uint8)
    for k in range(8 // bits):
        plane = jax.lax.slice_in_dim(low, k * size, (k + 1) * size, axis=axis)
        shifted = plane << np.uint8(k * bits)
        result = shifted if k == 0 else result | shifted
    return result


def planes(data: Array, bits: int, signed: bool = True) -> list[Array]:
    """The codes of each plane: int8 if signed, else uint8; shaped like the bytes."""
    if not signed:
        mask = np.uint8(2**bits - 1)
        return [(data >> np.uint8(k * bits)) & mask for k in range(8 // bits)]
    whole = jax.lax.bitcast_convert_type(data, jnp.int8)
    lifts = [np.int8(8 - bits * (k + 1)) for k in range(8 // bits)]
    lifted = [whole << lift if lift else whole for lift in lifts]
    return [plane >> np.int8(8 - bits) for plane in lifted]


def unpack(data: Array, bits: int, axis: int, count: int, signed: bool = True) -> Array:
    """The codes that [`pack`][] packed.

    Args:
        data: uint8.
        bits: 2 or 4.
        axis: the one that grows.
        count: how long it was.
        signed: whether codes are two's complement.

    >>> unpack(pack(jnp.array([1, 2, -1]), 4, 0), 4, 0, 3).tolist()
    [1, 2, -1]
    """
    return first(jnp.concatenate(planes(data, bits, signed), axis), count, axis)


def first(array: Array, count: int, axis: int) -> Array:
    """So many of an axis, from its beginning; the array itself if that is all.

    >>> first(jnp.arange(5), 2, 0).tolist()
    [0, 1]
    """
    if array.shape[axis] == count:
        return array
    return jax.lax.slice_in_dim(array, 0, count, axis=axis)
