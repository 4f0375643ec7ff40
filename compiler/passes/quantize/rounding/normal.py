"""Arrays as stacks of matrices, and what is stored of them.

The normal form of a weight is `[stack, rows, columns]`: axes that number matrices,
those a product sums over, all others; each in the order the array has them.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp

from compiler.passes.quantize.rounding.feedback import Rounded
from compiler.passes.quantize.storage import scales
from compiler.passes.quantize.storage.encoding import Encoding

Array = jax.Array


def matrices(encoding: Encoding, array: Any) -> Array:
    """An array of the encoding's shape in the normal form.

    >>> from compiler.passes.quantize.storage.scheme import Scheme
    >>> code = Encoding(Scheme("int8"), (5, 2, 3), "float32", rows=(0, 2))
    >>> matrices(code, jnp.ones((5, 2, 3))).shape
    (1, 15, 2)
    """
    parts = _axes(encoding)
    sizes = [math.prod(encoding.shape[a] for a in axes) for axes in parts]
    order = [axis for axes in parts for axis in axes]
    return jnp.reshape(jnp.transpose(array, order), sizes)


def array_of(encoding: Encoding, normal: Array) -> Array:
    """The array of the encoding's shape that a normal form is of."""
    order = [axis for axes in _axes(encoding) for axis in axes]
    array = jnp.reshape(normal, [encoding.shape[axis] for axis in order])
    return jnp.transpose(array, [order.index(axis) for axis in range(len(order))])


def stored(encoding: Encoding, rounded: Rounded) -> dict[str, Array]:
    """What is stored of matrices that are rounded to the encoding's scheme."""
    array = array_of(encoding, rounded.values)
    dtype = encoding.specs["scale"].dtype
    scale = _shared(encoding, scales.stored(encoding.scheme, rounded.scale, dtype))
    zero = None if rounded.zero is None else _shared(encoding, rounded.zero)
    return encoding.encode(array, scale, zero)


def _axes(encoding: Encoding) -> tuple[tuple[int, ...], ...]:
    gone = encoding.stack + encoding.rows
    columns = tuple(a for a in range(len(encoding.shape)) if a not in gone)
    return encoding.stack, encoding.rows, columns


def _shared(encoding: Encoding, shared: Array) -> Array:
    """What groups share, `[stack, groups, columns]`, as the encoding lays it out."""
    stack, rows, columns = _axes(encoding)
    whole = shared.shape[2] > 1
    kept = [encoding.shape[a] if whole else 1 for a in columns]
    extents = [encoding.shape[a] for a in stack]
    array = jnp.reshape(shared, [*extents, shared.shape[1], *kept])
    given = [*stack, rows[0], *columns]
    array = jnp.transpose(array, [given.index(axis) for axis in sorted(given)])
    return jnp.reshape(array, encoding.specs["scale"].shape)
