"""Operations that take parts of an array, or put arrays together."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from compiler import jaxprs
from compiler.passes.prune.structure.atoms import Array
from compiler.passes.prune.structure.emit import Emit
from compiler.passes.prune.structure.frame import Place
from compiler.passes.prune.structure.labels import Axes, Vector
from compiler.passes.prune.structure.numbers import Numbering, fix
from compiler.passes.prune.structure.registry import RULES
from compiler.passes.prune.structure.rules.means import carry


def _sliced(emit: Emit, place: Place, values: list[Any]) -> list[Any]:
    """What stays of the indices taken; a slice where they are evenly apart."""
    value, params = values[0], place.params
    rank = value.ndim
    strides = params["strides"] or (1,) * rank
    ranges = []
    for axis in range(rank):
        start, limit = params["start_indices"][axis], params["limit_indices"][axis]
        kept = emit.keep(place.operands[0][axis])
        if kept is not None:
            taken = np.arange(start, limit, strides[axis])
            value, span = _taken(value, axis, remap(kept, taken))
            ranges.append(span)
        else:
            ranges.append((start, limit, strides[axis]))
    starts, limits, steps = zip(*ranges, strict=True)
    return [lax.slice(value, starts, limits, steps)]


def remap(kept: Array, indices: Array) -> Array:
    """Where indices of an axis that stay have moved to."""
    return (np.cumsum(kept) - 1)[indices[kept[indices]]]


def _taken(value: Any, axis: int, indices: Array) -> tuple[Any, tuple[int, int, int]]:
    """An array and the range of one of its axes that these indices are."""
    steps = np.diff(indices)
    if len(indices) and (steps == steps[:1].sum()).all() and (steps > 0).all():
        step = int(steps[0]) if len(steps) else 1
        return value, (int(indices[0]), int(indices[-1]) + 1, step)
    return jnp.take(value, indices, axis=axis), (0, len(indices), 1)


@RULES.on("slice", shrink=_sliced)
def sliced(place: Place) -> list[Axes]:
    """The labels of the indices that are taken."""
    carry(place)
    params, operand = place.params, place.operands[0]
    strides = params["strides"] or (1,) * len(operand)
    ranges = zip(params["start_indices"], params["limit_indices"], strides, strict=True)
    return [
        tuple(
            None if vector is None else vector[start:limit:stride]
            for vector, (start, limit, stride) in zip(operand, ranges, strict=True)
        )
    ]


def _divided(emit: Emit, place: Place, values: list[Any]) -> list[Any]:
    axis = place.params["axis"]
    sizes = [emit.result_shape(place, i)[axis] for i in range(len(place.results))]
    return jaxprs.bind(place.equation, values, sizes=tuple(sizes))


@RULES.on("split", shrink=_divided)
def divided(place: Place) -> list[Axes]:
    """Each piece has the labels of its indices."""
    axis, operand = place.params["axis"], place.operands[0]
    ends = np.cumsum([int(size) for size in place.params["sizes"]])
    pieces = []
    for end, size in zip(ends, place.params["sizes"], strict=True):
        own = list(operand)
        if own[axis] is not None:
            own[axis] = own[axis][int(end) - int(size) : int(end)]
        pieces.append(tuple(own))
    return pieces


@RULES.on("concatenate")
def joined(place: Place) -> list[Axes]:
    """Labels one after the other along one axis; the other axes are one."""
    axis = place.params["dimension"]
    axes = _together(place, axis)
    parts = [
        (labels[axis], place.shape(i)[axis]) for i, labels in enumerate(place.operands)
    ]
    axes[axis] = concatenated(parts)
    return [tuple(axes)]


def _together(place: Place, along: int | None) -> list[Vector]:
    """The axes of all operands made one, except along one."""
    sums = [place.frame.sum(operand) for operand in place.equation.invars]
    if sums[0] and all(one == sums[0] for one in sums):
        place.frame.sums[place.equation.outvars[0]] = sums[0]
    axes = list(place.operands[0])
    for labels in place.operands[1:]:
        for axis, vector in enumerate(labels):
            if axis != along:
                axes[axis] = place.labels.unify(axes[axis], vector)
    return axes


def concatenated(parts: list[tuple[Vector, Any]]) -> Vector:
    """Labels one after the other; zeros for those that stay."""
    if all(vector is None for vector, _ in parts):
        return None
    width = max(vector.shape[1] for vector, _ in parts if vector is not None)
    rows = []
    for vector, extent in parts:
        own = np.zeros((extent, width), np.int64)
        if vector is not None:
            own[:, : vector.shape[1]] = vector
        rows.append(own)
    return np.concatenate(rows)


@RULES.on("stack")
def stacked(place: Place) -> list[Axes]:
    """All axes are one; the new one stays."""
    axes = _together(place, None)
    axes.insert(place.params["axis"], None)
    return [tuple(axes)]


@RULES.on("unstack")
def unstacked(place: Place) -> list[Axes]:
    """The axis that is taken apart stays."""
    axis = place.params["axis"]
    place.freeze(place.operands[0][axis])
    rest = tuple(v for i, v in enumerate(place.operands[0]) if i != axis)
    return [rest] * len(place.equation.outvars)


def _padded(emit: Emit, place: Place, values: list[Any]) -> list[Any]:
    config = list(place.params["padding_config"])
    for axis, (low, high) in place.note.items():
        before, after, _ = config[axis]
        config[axis] = emit.count(low, before), emit.count(high, after), 0
    return jaxprs.bind(place.equation, values, padding_config=tuple(config))


@RULES.on("pad", shrink=_padded)
def padded(place: Place) -> list[Axes]:
    """What is put around an axis is free to follow what it meets."""
    axes: list[Vector] = []
    place.note = {}
    config = place.params["padding_config"]
    for axis, (vector, (low, high, inside)) in enumerate(
        zip(place.operands[0], config, strict=True)
    ):
        if vector is None or (low, high, inside) == (0, 0, 0):
            axes.append(vector)
        elif inside or low < 0 or high < 0:
            place.freeze(vector)
            axes.append(None)
        else:
            # One index alone may go here: the axis keeps others.
            around = [
                place.labels.atoms.fresh(n)[:, None] if n else None for n in (low, high)
            ]
            place.note[axis] = tuple(around)
            parts = [(around[0], low), (vector, len(vector)), (around[1], high)]
            axes.append(concatenated([part for part in parts if part[1]]))
    return [tuple(axes)]


def _window(emit: Emit, place: Place, values: list[Any]) -> list[Any]:
    shape = emit.result_shape(place)
    if place.note is None:
        return jaxprs.bind(place.equation, values, slice_sizes=shape)
    starts, sizes = place.note, place.params["slice_sizes"]
    value = values[0]
    for axis, (start, size) in enumerate(zip(starts, sizes, strict=True)):
        kept = emit.keep(place.operands[0][axis])
        if size == place.shape(0)[axis]:
            continue
        taken = np.arange(start, start + size)
        moved = taken if kept is None else remap(kept, taken)
        value = lax.slice_in_dim(*_span(value, axis, moved), axis=axis)
    return [value]


def _span(value: Any, axis: int, indices: Array) -> tuple[Any, int, int]:
    value, (start, limit, step) = _taken(value, axis, indices)
    if step != 1:
        return jnp.take(value, indices, axis=axis), 0, len(indices)
    return value, start, limit


@RULES.on("dynamic_slice", shrink=_window)
def window(place: Place) -> list[Axes]:
    """Whole axes pass; of others the labels, if it is known which are taken."""
    operand, shape, sizes = (
        place.operands[0],
        place.shape(0),
        place.params["slice_sizes"],
    )
    starts = _starts(place, shape, sizes, 1)
    place.note = starts
    axes: list[Vector] = []
    for axis, (vector, extent, size) in enumerate(
        zip(operand, shape, sizes, strict=True)
    ):
        if extent == size or vector is None:
            axes.append(vector if extent == size else None)
        elif starts is not None:
            axes.append(vector[starts[axis] : starts[axis] + size])
        else:
            one = place.number(1 + axis)
            if size == 1 and isinstance(one, Numbering) and not one.root.free:
                one.along(place.labels, vector)
            else:
                place.freeze(vector)
            axes.append(None)
    for axis in range(len(shape)):
        if sizes[axis] != 1:
            fix(place.labels, place.number(1 + axis))
    if isinstance(own := place.number(0), Numbering) and not own.root.free:
        place.frame.numbers[place.equation.outvars[0]] = own
    return [tuple(axes)]


def _starts(place: Place, shape: Any, sizes: Any, first: int) -> list[int] | None:
    """Where a window begins, if that is known."""
    values = [place.known(first + axis) for axis in range(len(shape))]
    if any(v is None for v, n, m in zip(values, shape, sizes, strict=True) if n != m):
        return None
    return [
        0 if value is None else int(np.clip(value, 0, extent - size))
        for value, extent, size in zip(values, shape, sizes, strict=True)
    ]


@RULES.on("dynamic_update_slice")
def updated(place: Place) -> list[Axes]:
    """Whole axes are one with those of the update; others stay."""
    axes: list[Vector] = []
    parts = zip(*place.operands[:2], place.shape(0), place.shape(1), strict=True)
    for vector, update, extent, size in parts:
        if extent == size:
            axes.append(place.labels.unify(vector, update))
        else:
            place.freeze(vector, update)
            axes.append(None)
    return [tuple(axes)]
