"""How a factored weight is used in a product: one factor at a time, never multiplied
out.

    x @ (L @ R) = (x @ L) @ R          conv(x, L * R) = conv(conv(x, L), R)
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp

from compiler import jaxprs
from compiler.passes.factorize.factored import RANK, Factor, Factored, contract, wider


def _dot(equation: jaxprs.Equation, operands: Sequence[Any], place: int) -> Any | None:
    """Contracts the other operand with the factor that sums most of it first."""
    weight, other = operands[place], operands[1 - place]
    contracted, batched = equation.params["dimension_numbers"]
    labels: list[int] = [-2 - i for i in range(other.ndim)]
    for pairs in (contracted, batched):
        for own, its in zip(pairs[place], pairs[1 - place], strict=True):
            labels[its] = weight.labels[own]
    summed = {weight.labels[axis] for axis in contracted[place]}
    batch = [weight.labels[axis] for axis in batched[place]]
    sides = (weight.labels, labels) if place == 0 else (labels, weight.labels)
    free = [e for side in sides for e in side if e not in summed and e not in batch]
    options = {k: equation.params[k] for k in ("precision", "preferred_element_type")}
    near, far = _order(_complete(weight, summed), summed)
    kept = {*batch, *free, *far.labels}
    first = contract(Factor(other, tuple(labels)), near, list(kept), **options)
    last = contract(weight.scaled(first), far, [*batch, *free], **options)
    return last.ordered([*batch, *free])


def _complete(weight: Factored, labels: set[int]) -> tuple[Factor, Factor]:
    """The factors, the first with the axes of extent one that neither has."""
    left, right = weight.pair
    lost = tuple(labels - {*left.labels, *right.labels})
    array = jnp.reshape(left.array, left.array.shape + (1,) * len(lost))
    return Factor(array, (*left.labels, *lost)), right


def _order(pair: Sequence[Factor], summed: set[int]) -> Sequence[Factor]:
    """The factors, the one with more to sum over first."""

    def size(factor: Factor) -> int:
        return math.prod(factor.extent(label) for label in summed)

    return sorted(pair, key=size, reverse=True)


def _convolve(
    equation: jaxprs.Equation, operands: Sequence[Any], place: int
) -> Any | None:
    """Convolves with one factor and then the other, each along its own axes."""
    params, weight = equation.params, operands[place]
    out, into, *space = params["dimension_numbers"].rhs_spec
    groups = params["feature_group_count"] * params["batch_group_count"]
    first = [f for f in weight.pair if weight.labels[into] in f.labels]
    last = [f for f in weight.pair if weight.labels[out] in f.labels]
    both = set(weight.left.labels) & set(weight.right.labels) - {RANK}
    if place != 1 or groups != 1 or both or len(first) > 1 or len(last) > 1:
        return None
    near = first[0] if first else next(f for f in weight.pair if f not in last)
    (far,) = (f for f in weight.pair if f is not near)
    if last == [near]:  # both channels are of one factor: space against channels
        return None
    mine = [weight.labels[axis] in far.labels for axis in space]
    kernel = near.ordered(_relabelled(weight.labels, {out: RANK}))
    value = _emit(equation, operands[0], kernel, [not m for m in mine])
    kernel = weight.scaled(far).ordered(_relabelled(weight.labels, {into: RANK}))
    return _emit(equation, value, kernel.astype(value.dtype), mine)


def _relabelled(labels: Sequence[int], new: dict[int, int]) -> list[int]:
    return [new.get(axis, label) for axis, label in enumerate(labels)]


def _emit(
    equation: jaxprs.Equation, value: Any, kernel: Any, active: Sequence[bool]
) -> Any:
    """The convolution with a kernel that extends along the active axes only."""
    params = equation.params

    def where(name: str, neutral: Any) -> tuple[Any, ...]:
        pairs = zip(params[name], active, strict=True)
        return tuple(given if on else neutral for given, on in pairs)

    options = {
        "window_strides": where("window_strides", 1),
        "padding": where("padding", (0, 0)),
        "lhs_dilation": where("lhs_dilation", 1),
        "rhs_dilation": where("rhs_dilation", 1),
    }
    dtype = wider(value.dtype, kernel.dtype)
    operands = [value.astype(dtype), kernel.astype(dtype)]
    return jaxprs.bind(equation, operands, **options)[0]


def _ragged(
    equation: jaxprs.Equation, operands: Sequence[Any], place: int
) -> Any | None:
    """Multiplies the rows of each group by one factor of its weight, then the other."""
    weight, numbers = operands[place], equation.params["ragged_dot_dimension_numbers"]
    contracted, batched = numbers.dot_dimension_numbers
    groups = numbers.rhs_group_dimensions
    lhs = operands[0].ndim - 1
    if place != 1 or len(groups) != 1 or batched != ((), ()) or len(weight.labels) != 3:
        return None
    if tuple(contracted[0]) != (lhs,) or len(contracted[1]) != 1:
        return None
    group, into = groups[0], contracted[1][0]
    (out,) = {0, 1, 2} - {group, into}
    near, far = _order(weight.pair, {weight.labels[into]})
    if {weight.labels[group], weight.labels[into], RANK} != set(near.labels):
        return None
    if {weight.labels[group], weight.labels[out], RANK} != set(far.labels):
        return None
    sizes = operands[2:]
    kernel = near.ordered(_relabelled(weight.labels, {out: RANK}))
    (value,) = jaxprs.bind(equation, [operands[0], kernel, *sizes])
    kernel = weight.scaled(far).ordered(_relabelled(weight.labels, {into: RANK}))
    return jaxprs.bind(equation, [value, kernel.astype(value.dtype), *sizes])[0]


def _look_up(
    equation: jaxprs.Equation, operands: Sequence[Any], place: int
) -> Any | None:
    """Looks rows up in the factor that has them, and multiplies them by the other."""
    params, weight = equation.params, operands[place]
    numbers = params["dimension_numbers"]
    rows = numbers.start_index_map
    if place != 0 or len(weight.labels) != 2 or len(rows) != 1:
        return None
    row, column = rows[0], 1 - rows[0]
    inner = weight.labels[column]
    near = [f for f in weight.pair if weight.labels[row] in f.labels]
    far = [f for f in weight.pair if inner in f.labels]
    full = params["slice_sizes"][column] == weight.shape[column]
    single = (
        numbers.collapsed_slice_dims == (row,) and not numbers.operand_batching_dims
    )
    if len(near) != 1 or len(far) != 1 or near == far or not full or not single:
        return None
    table = weight.scaled(near[0]).ordered(_relabelled(weight.labels, {column: RANK}))
    sizes = list(params["slice_sizes"])
    sizes[column] = table.shape[column]
    (found,) = jaxprs.bind(equation, [table, operands[1]], slice_sizes=tuple(sizes))
    (offset,) = numbers.offset_dims
    fresh = itertools.count(-2, -1)
    labels = [RANK if i == offset else next(fresh) for i in range(found.ndim)]
    kept = [inner if label == RANK else label for label in labels]
    return contract(Factor(found, tuple(labels)), far[0], kept).ordered(kept)


PRODUCTS: dict[str, Callable[..., Any | None]] = {
    "dot_general": _dot,
    "conv_general_dilated": _convolve,
    "ragged_dot_general": _ragged,
    "gather": _look_up,
}
"""By primitive: what it gives for the product of the factors, or None."""
