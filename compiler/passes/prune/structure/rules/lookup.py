"""Look-ups by index: the axis that is indexed stays, unless the indices are known."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from compiler import jaxprs
from compiler.passes.prune.structure.atoms import Array
from compiler.passes.prune.structure.emit import Emit
from compiler.passes.prune.structure.frame import Place
from compiler.passes.prune.structure.labels import Axes, Vector
from compiler.passes.prune.structure.numbers import Numbering, first_of, fix, together
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
    single = list(numbers.collapsed_slice_dims)
    for target, axis in zip(offsets, window, strict=True):
        if sizes[axis] == shape[axis]:
            axes[target] = operand[axis]
        elif sizes[axis] == 1:
            single.append(axis)
        else:
            place.freeze(operand[axis])
    others = [i for i in range(rank) if i not in offsets]
    known = _known_indices(place)
    if known is not None:
        axis = numbers.start_index_map[0]
        place.note = axis, known, others[0]
        vector = operand[axis]
        place.freeze(*(operand[i] for i in single if i != axis))
        axes[others[0]] = None if vector is None else vector[known]
        return [tuple(axes)]
    looked_up(place, operand, numbers.start_index_map, single)
    if isinstance(own := place.number(0), Numbering) and not own.root.free:
        place.frame.numbers[place.equation.outvars[0]] = own
    for target, vector in zip(others, indices[:-1], strict=True):
        axes[target] = vector
    pairs = zip(batched, numbers.start_indices_batching_dims, strict=True)
    for axis, index in pairs:
        axes[others[index]] = place.labels.unify(operand[axis], indices[index])
    return [tuple(axes)]


def looked_up(
    place: Place, operand: Axes, along: Sequence[int], single: Sequence[int]
) -> None:
    """The axes of which single indices are taken stay, if these are no numbers of them.

    Args:
        place: of the look-up; its second operand are the indices.
        operand: the axes of what is looked up in.
        along: for each number of an index the axis it is along.
        single: the axes.
    """
    numbers = place.number(1)
    each = numbers if isinstance(numbers, tuple) else (numbers,) * len(along)
    if numbers is not None and not isinstance(numbers, tuple) and len(along) > 1:
        fix(place.labels, numbers)
        each = (None,) * len(along)
    told = dict(zip(along, each, strict=True))
    for axis in single:
        one = told.pop(axis, None)
        if one is None or one.root.free:
            place.freeze(operand[axis])
        else:
            one.along(place.labels, operand[axis])
    for one in told.values():
        fix(place.labels, one)


def _known_indices(place: Place) -> Array | None:
    """The indices along one axis, if they are known and all inside it."""
    numbers, indices = place.params["dimension_numbers"], place.known(1)
    along = tuple(numbers.start_index_map)
    plain = len(along) == 1 and tuple(numbers.collapsed_slice_dims) == along
    if indices is None or not plain or numbers.operand_batching_dims:
        return None
    if indices.ndim != 2 or indices.size == 0:
        return None
    sizes = zip(place.params["slice_sizes"], place.shape(0), strict=True)
    if any(n != m for i, (n, m) in enumerate(sizes) if i not in along):
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
    indexed = numbers.scatter_dims_to_operand_dims
    looked_up(place, operand, indexed, numbers.inserted_window_dims)
    given = [place.number(which) for which in (0, 1, 2)]
    if place.equation.primitive.name == "scatter" and (one := first_of(given[::2])):
        for which in (0, 2):
            together(place, one, which, given[which], place.known(which))
        place.frame.numbers[place.equation.outvars[0]] = one
    for which in (0, 2):
        if not place.frame.number(place.equation.outvars[0]):
            fix(place.labels, given[which])
    others = [i for i in range(len(place.shape(2))) if i not in updated]
    for source, vector in zip(others, indices[:-1], strict=True):
        unify(updates[source], vector)
    pairs = zip(batched, numbers.scatter_indices_batching_dims, strict=True)
    for axis, index in pairs:
        axes[axis] = unify(axes[axis], indices[index])
    return [tuple(axes)]
