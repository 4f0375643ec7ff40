"""An encoded array as matrices that can be cut, and their products.

A matrix is [rows, columns] or [columns, rows], as it is stored; or [columns, rows,
columns], where rows stand between columns. No axis of extent one is last: loops along
it would not be vectorised.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from compiler.passes.quantize.storage import packing

if TYPE_CHECKING:
    from compiler.passes.quantize.storage.encoding import Encoding

Array = jax.Array
Parts = Mapping[str, Array]


def normal(encoding: Encoding, parts: Parts) -> tuple[Encoding, dict[str, Array]]:
    """One matrix's encoding, and the parts of all that an array holds.

    Args:
        encoding: of any array.
        parts: of the array.

    Returns:
        The encoding of a matrix, and its parts with the stack, as one axis, in front.
        Nothing is moved where that is in front already and rows are side by side.
    """
    places = [encoding.place(axis) for axis in encoding.stack]
    one = encoding
    for axis in reversed(encoding.stack):
        one = one.sliced(axis)
    before, rows, after = _three(one.merged, one.axis, 1)
    kept = [0, 1] if after == 1 else [1, 2] if before == 1 else [0, 1, 2]
    shape = tuple((before, rows, after)[i] for i in kept)
    matrix = dataclasses.replace(one, shape=shape, rows=(kept.index(1),))
    order, width = range(len(one.merged)), 1
    if not one.scheme.merges:
        others = [a for a in range(len(one.shape)) if a not in one.rows]
        order = [*others[: one.axis], *one.rows, *others[one.axis :]]
        width = len(one.rows)
    moved = {}
    for name, part in parts.items():
        part = jnp.moveaxis(part, places, range(len(places)))
        count = math.prod(part.shape[: len(places)])
        part = part.reshape(count, *part.shape[len(places) :])
        part = jnp.transpose(part, (0, *(axis + 1 for axis in order)))
        three = _three(part.shape[1:], one.axis, width)
        moved[name] = part.reshape(count, *(three[i] for i in kept))
    return matrix, moved


def _three(shape: Sequence[int], axis: int, width: int) -> tuple[int, int, int]:
    """How many there are before some axes, of them, and after them."""
    ends = shape[:axis], shape[axis : axis + width], shape[axis + width :]
    before, rows, after = map(math.prod, ends)
    return before, rows, after


def columns(encoding: Encoding) -> int:
    """How many columns a matrix has."""
    return math.prod(n for a, n in enumerate(encoding.shape) if a != encoding.axis)


def planes(encoding: Encoding, parts: Parts) -> list[Array]:
    """The stored codes of a matrix, some of its rows in each.

    Where several codes share a byte, each belongs to another part of the rows. Those
    parts need never be joined: a loop over what is being joined is not vectorised.
    """
    values, form, axis = parts["values"], encoding.scheme.format, encoding.axis
    if not form.packed:
        return [values]
    size, left = values.shape[axis], encoding.count
    found = []
    for plane in packing.planes(values, form.bits, form.kind == "integer"):
        found.append(jax.lax.slice_in_dim(plane, 0, min(size, left), axis=axis))
        left -= size
        if left <= 0:
            break
    return found


def numbers(encoding: Encoding, parts: Parts, dtype: Any) -> list[Array]:
    """A matrix as floats, but for what `late` gives: the rows of each plane.

    Args:
        encoding: of one matrix, as `normal` gives it.
        parts: of that matrix.
        dtype: that is computed in.
    """
    found, start = [], 0
    scales, zeros = encoding.scales(parts).astype(dtype), encoding.zeros(parts)
    for plane in planes(encoding, parts):
        matrix = encoding.scheme.format.value(plane).astype(dtype)
        if zeros is not None:
            zero = zeros.astype(dtype)
            matrix = _by_group(jnp.subtract, matrix, zero, encoding, start)
        if encoding.groups > 1:
            matrix = _by_group(jnp.multiply, matrix, scales, encoding, start)
        found.append(matrix)
        start += plane.shape[encoding.axis]
    return found


def late(encoding: Encoding, parts: Parts, dtype: Any) -> Array | None:
    """What a product with `numbers` is multiplied by: [1, columns or 1], or None.

    Where all rows of a column share a scale, the product has fewer numbers to
    multiply than the matrix.
    """
    return None if encoding.groups > 1 else by_column(encoding, parts, dtype)


def by_column(encoding: Encoding, parts: Parts, dtype: Any) -> Array:
    """The scales of a matrix with one group of rows: [1, columns or 1]."""
    return encoding.scales(parts).astype(dtype).reshape(1, -1)


def contract(
    x: Array, matrix: Array, axis: int, *, into: Any, precision: Any = None
) -> Array:
    """[tokens, rows] times a matrix whose rows are at an axis: [tokens, columns].

    >>> contract(jnp.ones((2, 3)), jnp.ones((4, 3, 5)), 1, into=jnp.float32).shape
    (2, 20)
    """
    y = jax.lax.dot_general(
        x,
        matrix,
        (((1,), (axis,)), ((), ())),
        precision=precision,
        preferred_element_type=into,
    )
    return y.reshape(x.shape[0], math.prod(y.shape[1:]))


def _by_group(
    do: Callable[[Array, Array], Array],
    matrix: Array,
    shared: Array,
    encoding: Encoding,
    start: int,
) -> Array:
    """Does something with each row, from `start` on, and what its group shares."""
    axis, size = encoding.axis, encoding.group
    stop = start + matrix.shape[axis]
    if encoding.groups == 1:
        return do(matrix, shared)
    if start % size or stop % size:
        spread = encoding.spread(shared)
        return do(matrix, jax.lax.slice_in_dim(spread, start, stop, axis=axis))
    own = jax.lax.slice_in_dim(shared, start // size, stop // size, axis=axis)
    shape = (*matrix.shape[:axis], -1, size, *matrix.shape[axis + 1 :])
    own = jnp.expand_dims(own, axis + 1)
    return do(matrix.reshape(shape), own).reshape(matrix.shape)
