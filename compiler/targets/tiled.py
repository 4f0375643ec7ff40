"""Products that take one tile of the weight after another."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from compiler.targets.choose import Tiling
from compiler.targets.matrices import Parts, columns

if TYPE_CHECKING:
    from compiler.passes.quantize.storage.encoding import Encoding

Array = jax.Array
Multiply = Callable[[Array, "Encoding", Parts], Array]


def tiled(
    x: Array,
    encoding: Encoding,
    parts: Parts,
    tiling: Tiling | None,
    multiply: Multiply,
    into: Any,
) -> Array:
    """[tokens, rows] times a matrix, of which `multiply` takes one tile at a time.

    Args:
        x: the activation.
        encoding: of one matrix, as `matrices.normal` gives it.
        parts: of that matrix.
        tiling: how it is cut; None: not at all.
        multiply: gives [tokens, columns] of an activation, and of the encoding and the
            parts of a matrix: the whole, or a tile.
        into: the dtype of that.
    """
    if tiling is None:
        return multiply(x, encoding, parts)
    if tiling.axis == encoding.axis:
        return _by_rows(x, encoding, parts, tiling.extent, multiply, into)
    return _by_columns(x, encoding, parts, tiling, multiply)


def _by_columns(
    x: Array, encoding: Encoding, parts: Parts, tiling: Tiling, multiply: Multiply
) -> Array:
    """Each tile gives columns of the result."""
    axis, size = tiling.axis, tiling.extent
    whole = encoding.shape[axis]

    def tile(start: Any, extent: int) -> Array:
        cut = {
            name: _piece(part, start, extent, axis) if part.shape[axis] > 1 else part
            for name, part in parts.items()
        }
        return multiply(x, _resized(encoding, axis, extent), cut)

    count, rest = divmod(whole, size)
    starts = size * jnp.arange(count, dtype=jnp.int32)
    y = jax.lax.map(lambda start: tile(start, size), starts)
    y = jnp.moveaxis(y, 0, 1).reshape(x.shape[0], -1)
    return jnp.concatenate([y, tile(whole - rest, rest)], 1) if rest else y


def _by_rows(
    x: Array,
    encoding: Encoding,
    parts: Parts,
    extent: int,
    multiply: Multiply,
    into: Any,
) -> Array:
    """Each tile gives a term of a sum.

    Where several codes share a byte, each is of another plane of the rows: a tile of
    bytes are the same rows of every plane.
    """
    tokens, axis = x.shape[0], encoding.axis
    size = parts["values"].shape[axis]
    count = encoding.count // size
    x = x.reshape(tokens, count, size)

    def tile(x: Array, start: Any, extent: int) -> Array:
        cut = {
            name: _piece(part, start, extent, axis)
            if name == "values"
            else _of_groups(part, start, extent, encoding, count)
            for name, part in parts.items()
        }
        narrow = _resized(encoding, axis, count * extent)
        return multiply(x.reshape(tokens, -1), narrow, cut)

    steps, rest = divmod(size, extent)
    head = x[:, :, : steps * extent].reshape(tokens, count, steps, extent)
    starts = extent * jnp.arange(steps, dtype=jnp.int32)

    def step(total: Array, given: tuple[Array, Array]) -> tuple[Array, None]:
        return total + tile(*given, extent), None

    total = jnp.zeros((tokens, columns(encoding)), into)
    if rest:
        total = tile(x[:, :, size - rest :], size - rest, rest)
    return jax.lax.scan(step, total, (jnp.moveaxis(head, 2, 0), starts))[0]


def _of_groups(
    shared: Array, start: Any, extent: int, encoding: Encoding, count: int
) -> Array:
    """What the groups in a tile of rows share: their scales or their zero points."""
    axis = encoding.axis
    if encoding.groups == 1:
        return shared
    lead, tail = shared.shape[:axis], shared.shape[axis + 1 :]
    size = -(-extent // encoding.group)
    in_planes = shared.reshape(*lead, count, encoding.groups // count, *tail)
    cut = _piece(in_planes, start // encoding.group, size, axis + 1)
    return cut.reshape(*lead, count * size, *tail)


def _piece(array: Array, start: Any, extent: int, axis: int) -> Array:
    return jax.lax.dynamic_slice_in_dim(array, start, extent, axis)


def _resized(encoding: Encoding, axis: int, extent: int) -> Encoding:
    shape = list(encoding.shape)
    shape[axis] = extent
    return dataclasses.replace(encoding, shape=tuple(shape))
