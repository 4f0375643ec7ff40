"""Look-ups by index: the axis that is indexed stays, unless the indices are known."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np

from compiler import jaxprs
from compiler.passes.prune.structure.atoms import Array
from compiler.passes.prune.structure.emit import Emit
from compiler.passes.prune.structure.frame import Place
from compiler.passes.prune.structure.labels import Axes, Vector
from compiler.passes.prune.structure.registry import RULES
from compiler.passes.prune.structure.rules.parts import remap


def _gathered(emit: Emit, place: Place, values: list[Any]) -> list[Any]:
    if place.note is not None:
        return [_taken(emit, place, values[0])]
    sizes = tuple(
        emit.count(vector, size) if size == extent else size
        for vector, size, extent in zip(
            place.operands[0], place.params["slice_sizes"], place.shape(0), strict=True
        )
    )
    return jaxprs.bind(place.equation, values, slice_sizes=sizes)


def _taken(emit: Emit, place: Place, value: Any) -> Any:
    """What stays of the known indices along one axis."""
    axis, indices, target = place.note
    kept = emit.keep(place.operands[0][axis])
    if kept is not None:
        indices = remap(kept, indices)
    return jnp.moveaxis(jnp.take(value, indices, axis=axis), axis, target)


@RULES.on("gather", shrink=_gathered)
def gather(place: Place) -> list[Axes]:
    """Whole windows pass, the axes of the indices pass, what is indexed stays."""
    numbers, (operand, indices) = place.params["dimension_numbers"], place.operands[:2]
    shape, sizes = place.shape(0), place.params["slice_sizes"]
    offsets = sorted(numbers.offset_dims)
    rank = len(place.equation.outvars[0].aval.shape)
    axes: list[Vector] = [None] * rank
    batched = numbers.operand_batching_dims
    window = [
        i
        for i in range(len(shape))
        if i not in numbers.collapsed_slice_dims and i not in batched
    ]
    for target, axis in zip(offsets, window, strict=True):
        if sizes[axis] == shape[axis]:
            axes[target] = operand[axis]
        else:
            place.freeze(operand[axis])
    others = [i for i in range(rank) if i not in offsets]
    known = _known_indices(place)
    if known is not None:
        axis = numbers.start_index_map[0]
        place.note = axis, known, others[0]
        vector = operand[axis]
        axes[others[0]] = None if vector is None else vector[known]
        return [tuple(axes)]
    place.freeze(*(operand[i] for i in numbers.collapsed_slice_dims))
    for target, vector in zip(others, indices[:-1], strict=True):
        axes[target] = vector
    pairs = zip(batched, numbers.start_indices_batching_dims, strict=True)
    for axis, index in pairs:
        axes[others[index]] = place.labels.unify(operand[axis], indices[index])
    return [tuple(axes)]


def _known_indices(place: Place) -> Array | None:
    """The indices along one axis, if they are known and all inside it."""
    numbers, indices = place.params["dimension_numbers"], place.known(1)
    along = tuple(numbers.start_index_map)
    plain = len(along) == 1 and tuple(numbers.collapsed_slice_dims) == along
    if indices is None or not plain or numbers.operand_batching_dims:
        return None
    if indices.ndim != 2 or indices.size == 0:
        return None
    extent = place.shape(0)[along[0]]
    inside = isinstance(extent, int) and indices.min() >= 0 and indices.max() < extent
    return indices[:, 0].astype(np.int64) if inside else None


@RULES.on(
    "scatter", "scatter-add", "scatter-mul", "scatter-sub", "scatter-min", "scatter-max"
)
def scatter(place: Place) -> list[Axes]:
    """Whole windows are one with those of the updates; what is indexed stays."""
    numbers = place.params["dimension_numbers"]
    (operand, indices, updates), unify = place.operands, place.labels.unify
    shape, given = place.shape(0), place.shape(2)
    axes: list[Vector] = list(operand)
    batched = numbers.operand_batching_dims
    window = [
        i
        for i in range(len(shape))
        if i not in numbers.inserted_window_dims and i not in batched
    ]
    updated = sorted(numbers.update_window_dims)
    for source, axis in zip(updated, window, strict=True):
        if given[source] == shape[axis]:
            axes[axis] = unify(operand[axis], updates[source])
        else:
            place.freeze(operand[axis], updates[source])
            axes[axis] = None
    for axis in numbers.inserted_window_dims:
        place.freeze(operand[axis])
        axes[axis] = None
    others = [i for i in range(len(given)) if i not in updated]
    for source, vector in zip(others, indices[:-1], strict=True):
        unify(updates[source], vector)
    pairs = zip(batched, numbers.scatter_indices_batching_dims, strict=True)
    for axis, index in pairs:
        axes[axis] = unify(axes[axis], indices[index])
    return [tuple(axes)]
