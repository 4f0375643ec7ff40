"""Look-ups in tables of few bits: only what was looked up is decoded."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from compiler import jaxprs

if TYPE_CHECKING:
    from compiler.passes.quantize.arithmetic.quantized import Quantized


def look_up(
    value: Quantized, equation: jaxprs.Equation, operands: Sequence[Any], place: int
) -> Any | None:
    """Looks the codes up and decodes what is found; None for another kind of gather."""
    at = _looked_up(value, equation)
    if place != 0 or at is None:
        return None
    row = value.view.whole(at)
    if row is None or row in value.encoding.rows or not value.sliceable(row):
        return None
    table = dataclasses.replace(value, view=_leading(value, at), scales={})
    stacked = table.stacked()
    if stacked is None:
        return None
    parts, make = stacked
    numbers = equation.params["dimension_numbers"]
    index = operands[1][..., numbers.start_index_map.index(at)]
    mode = equation.params["mode"]

    def rows(part: Any) -> Any:
        got = part.at[index].get(mode=mode, wrap_negative_indices=False)
        return jnp.reshape(got, (index.size, *part.shape[1:]))

    found = jax.vmap(lambda each: make(each).dense())(jax.tree.map(rows, parts))
    found = jnp.reshape(found, (*index.shape, *found.shape[1:]))
    if _fills(equation):
        found = _filled(found, index, value.shape[at], equation.params["fill_value"])
    if at not in numbers.collapsed_slice_dims:
        found = jnp.expand_dims(found, index.ndim + at)
    offsets = list(range(index.ndim, found.ndim))
    return jnp.moveaxis(found, offsets, list(numbers.offset_dims))


def _fills(equation: jaxprs.Equation) -> bool:
    """Whether an index out of bounds gives a value of its own."""
    return equation.params["mode"] == jax.lax.GatherScatterMode.FILL_OR_DROP


def _filled(found: Any, index: Any, extent: int, fill: Any) -> Any:
    """What was found; for indices that are out of bounds the value, or nan."""
    outside = (index < 0) | (index >= extent)
    outside = jnp.reshape(outside, (*index.shape, *[1] * (found.ndim - index.ndim)))
    value = jnp.full((), jnp.nan if fill is None else fill, found.dtype)
    return jnp.where(outside, value, found)


def _looked_up(value: Quantized, equation: jaxprs.Equation) -> int | None:
    """The axis of which one index is taken, if the slices are whole along all others.

    Where they are, an index into them is clipped to zero; in a mode that fills, it
    might be out of bounds.
    """
    params = equation.params
    numbers, sizes = params["dimension_numbers"], params["slice_sizes"]
    cut = [axis for axis, n in enumerate(value.shape) if sizes[axis] != n]
    if len(cut) != 1 or sizes[cut[0]] != 1 or cut[0] not in numbers.start_index_map:
        return None
    if numbers.operand_batching_dims or (
        _fills(equation) and len(numbers.start_index_map) > 1
    ):
        return None
    return None if set(numbers.collapsed_slice_dims) - set(cut) else cut[0]


def _leading(value: Quantized, axis: int) -> Any:
    """The view with the axis that is indexed first."""
    order = [axis, *(i for i in range(len(value.shape)) if i != axis)]
    return value.view.transposed(order)
