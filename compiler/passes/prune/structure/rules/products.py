"""Products and convolutions: what is summed over is one axis of both operands."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from compiler import jaxprs
from compiler.passes.prune.structure.emit import Emit
from compiler.passes.prune.structure.frame import Place
from compiler.passes.prune.structure.labels import Axes, Vector
from compiler.passes.prune.structure.registry import RULES
from compiler.passes.prune.structure.rules.means import made


def _masked_dot(emit: Emit, place: Place, values: list[Any]) -> list[Any]:
    contracted, _ = place.params["dimension_numbers"]
    return jaxprs.bind(
        place.equation,
        [
            emit.fill(value, axes, along, 0)
            for value, axes, along in zip(
                values, place.operands, contracted, strict=True
            )
        ],
    )


@RULES.on("dot_general", mask=_masked_dot)
def dot(place: Place) -> list[Axes]:
    """Contracted axes are one, batched ones are one; the others pass."""
    (left, right), unify = place.operands, place.labels.unify
    (left_in, right_in), (left_batch, right_batch) = place.params["dimension_numbers"]
    summed = [unify(left[i], right[j]) for i, j in zip(left_in, right_in, strict=True)]
    batch = [
        unify(left[i], right[j]) for i, j in zip(left_batch, right_batch, strict=True)
    ]
    own = [v for i, v in enumerate(left) if i not in (*left_in, *left_batch)]
    other = [v for i, v in enumerate(right) if i not in (*right_in, *right_batch)]
    if place.is_backward and not summed and not (own and other):
        place.freeze(*own, *other)  # the derivative of an inner product: see `spread`
    _note_roles(place, summed, batch, [*own, *other])
    _note_sum(place, (left_in, right_in), [*own, *other])
    return [(*batch, *own, *other)]


def _note_sum(
    place: Place, along: tuple[Sequence[int], Sequence[int]], free: Sequence[Vector]
) -> None:
    """An inner product is a sum of products; so is a product with ones, or with itself.

    A product of two matrices is none: what divides scores stays what it is.
    """
    left, right = place.operands
    left_in, right_in = along
    ones = [_is_one_number(place.known(operand)) for operand in (0, 1)]
    pairs = list(zip(left_in, right_in, strict=True))
    same = all(left[i] is not None and left[i] is right[j] for i, j in pairs)
    if pairs and (any(ones) or same or not free):
        side, axes = (right, right_in) if ones[0] else (left, left_in)
        extents = [place.shape(0)[i] for i in left_in]
        parts = [(side[i], n) for i, n in zip(axes, extents, strict=True)]
        made(place, parts)


def _is_one_number(value: Any) -> bool:
    return value is not None and value.size > 0 and bool((value == value.flat[0]).all())


def _note_roles(
    place: Place, summed: list[Vector], batch: list[Vector], free: list[Vector]
) -> None:
    """Heads number products of activations; experts those of weights."""
    roles, early = place.analysis.roles, place.frame.is_early
    if not any(early(operand) for operand in place.equation.invars):
        roles.products.append((batch, summed, free))
    else:
        roles.experts.extend(batch)


def _grouped(emit: Emit, place: Place, values: list[Any]) -> list[Any]:
    groups = emit.count(place.note, place.params["feature_group_count"])
    return jaxprs.bind(place.equation, values, feature_group_count=groups)


def _masked_conv(emit: Emit, place: Place, values: list[Any]) -> list[Any]:
    channels = place.params["dimension_numbers"].lhs_spec[1]
    value = emit.fill(values[0], place.operands[0], [channels], 0)
    return jaxprs.bind(place.equation, [value, values[1]])


@RULES.on("conv_general_dilated", shrink=_grouped, mask=_masked_conv)
def convolution(place: Place) -> list[Axes]:
    """The input's channels are the kernel's; groups are an axis of their own."""
    (value, kernel), params, labels = place.operands, place.params, place.labels
    numbers = params["dimension_numbers"]
    result: list[Vector] = [None] * len(value)
    if params["batch_group_count"] != 1:
        place.freeze(*value, *kernel)
        return [tuple(result)]
    place.freeze(*(value[i] for i in numbers.lhs_spec[2:]))
    place.freeze(*(kernel[i] for i in numbers.rhs_spec[2:]))
    batch, channels = numbers.lhs_spec[:2]
    outputs, inputs = numbers.rhs_spec[:2]
    groups = params["feature_group_count"]
    if groups == 1:
        labels.unify(value[channels], kernel[inputs])
    else:
        place.note = _unify_groups(place, value[channels], kernel[outputs], groups)
    result[numbers.out_spec[0]] = value[batch]
    result[numbers.out_spec[1]] = kernel[outputs]
    return [tuple(result)]


def _unify_groups(
    place: Place, channels: Vector, outputs: Vector, groups: int
) -> Vector:
    """Splits channels by group on both sides; returns the labels of the groups."""
    numbers = place.params["dimension_numbers"]
    total = place.shape(0)[numbers.lhs_spec[1]], place.shape(1)[numbers.rhs_spec[0]]
    inputs = place.operands[1][numbers.rhs_spec[1]]
    one, within = place.labels.split(channels, [groups, total[0] // groups])
    other, _ = place.labels.split(outputs, [groups, total[1] // groups])
    if total[0] > groups:
        place.labels.unify(within, inputs)
    return place.labels.unify(one, other)


def _masked_ragged(emit: Emit, place: Place, values: list[Any]) -> list[Any]:
    numbers = place.params["ragged_dot_dimension_numbers"]
    contracted, _ = numbers.dot_dimension_numbers
    filled = [
        emit.fill(value, axes, along, 0)
        for value, axes, along in zip(
            values[:2], place.operands[:2], contracted, strict=True
        )
    ]
    return jaxprs.bind(place.equation, [*filled, *values[2:]])


@RULES.on("ragged_dot_general", mask=_masked_ragged)
def ragged_dot(place: Place) -> list[Axes]:
    """As a product; rows belong to groups by their sizes, and so stay."""
    numbers = place.params["ragged_dot_dimension_numbers"]
    (left_in, right_in), batch = numbers.dot_dimension_numbers
    left, right, sizes = place.operands
    ragged, grouped = numbers.lhs_ragged_dimensions, numbers.rhs_group_dimensions
    if set(ragged) & {*left_in, *batch[0]} or batch[0] or len(grouped) != 1:
        place.freeze(*left, *right, *sizes)
        rank = len(place.equation.outvars[0].aval.shape)
        return [(None,) * rank]
    for i, j in zip(left_in, right_in, strict=True):
        place.labels.unify(left[i], right[j])
    place.analysis.roles.experts.append(right[grouped[0]])
    place.labels.unify(right[grouped[0]], sizes[-1])
    place.freeze(*(left[i] for i in ragged))
    own = [v for i, v in enumerate(left) if i not in left_in]
    other = [v for i, v in enumerate(right) if i not in (*right_in, *grouped)]
    return [(*own, *other)]
