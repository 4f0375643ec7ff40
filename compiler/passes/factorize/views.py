"""How a factored weight goes through what only re-arranges it.

Each axis carries a label, and a factor has the axes whose labels it has; so a view of
the whole is a view of each factor. Where a view mixes axes of both (it merges an input
axis with an output axis) there is none.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from compiler import jaxprs
from compiler.passes.factorize.factored import Factor, Factored
from compiler.sites import regroup

_fresh = itertools.count(1 << 16)


def _cast(
    value: Factored, equation: jaxprs.Equation, operands: Sequence[Any]
) -> list[Factored] | None:
    dtype = equation.params["new_dtype"]
    if not jnp.issubdtype(dtype, jnp.floating):
        return None
    cast = value.both(lambda f: Factor(f.array.astype(dtype), f.labels))
    return [dataclasses.replace(cast, dtype=dtype)]


def _copy(
    value: Factored, equation: jaxprs.Equation, operands: Sequence[Any]
) -> list[Factored]:
    return [value]


def _transpose(
    value: Factored, equation: jaxprs.Equation, operands: Sequence[Any]
) -> list[Factored]:
    labels = tuple(value.labels[i] for i in equation.params["permutation"])
    return [dataclasses.replace(value, labels=labels)]


def _squeeze(
    value: Factored, equation: jaxprs.Equation, operands: Sequence[Any]
) -> list[Factored]:
    gone = {value.labels[axis] for axis in equation.params["dimensions"]}
    labels = tuple(label for label in value.labels if label not in gone)
    return [_without(value, gone, labels)]


def _broadcast(
    value: Factored, equation: jaxprs.Equation, operands: Sequence[Any]
) -> list[Factored] | None:
    """Adds axes of extent one; one that repeats the weight takes the array."""
    shape, axes = equation.params["shape"], equation.params["broadcast_dimensions"]
    if math.prod(shape) != math.prod(value.shape):
        return None
    labels = [next(_fresh) for _ in shape]
    for axis, target in enumerate(axes):
        labels[target] = value.labels[axis]
    return [dataclasses.replace(value, labels=tuple(labels))]


def _reshape(
    value: Factored, equation: jaxprs.Equation, operands: Sequence[Any]
) -> list[Factored] | None:
    """Splits and merges axes, as long as those merged belong to the same factors."""
    before, after = value.shape, equation.params["new_sizes"]
    groups = regroup(before, after)
    if equation.params["dimensions"] is not None or groups is None:
        return None
    old, new = value.labels, tuple(next(_fresh) for _ in after)
    value = _without(value, {old[i] for i, n in enumerate(before) if n == 1}, old)
    for olds, news in groups:
        merged = {old[i] for i in olds}
        if any(merged & set(f.labels) not in (set(), merged) for f in value.pair):
            return None
        value = value.both(
            functools.partial(
                Factor.regrouped,
                old=[old[i] for i in olds],
                new=[new[i] for i in news],
                extents=[after[i] for i in news],
            )
        )
    return [dataclasses.replace(value, labels=new)]


def _reverse(
    value: Factored, equation: jaxprs.Equation, operands: Sequence[Any]
) -> list[Factored]:
    for axis in equation.params["dimensions"]:
        value = _along(value, value.labels[axis], jnp.flip)
    return [value]


def _slice(
    value: Factored, equation: jaxprs.Equation, operands: Sequence[Any]
) -> list[Factored]:
    params, full = equation.params, value.shape
    steps = params["strides"] or [1] * len(full)
    limits = zip(params["start_indices"], params["limit_indices"], steps, strict=True)
    for label, extent, limit in zip(value.labels, full, limits, strict=True):
        if limit != (0, extent, 1):
            value = _along(value, label, jax.lax.slice_in_dim, *limit)
    return [value]


def _dynamic_slice(
    value: Factored, equation: jaxprs.Equation, operands: Sequence[Any]
) -> list[Factored]:
    sizes, starts, full = equation.params["slice_sizes"], operands[1:], value.shape
    for label, extent, start, size in zip(
        value.labels, full, starts, sizes, strict=True
    ):
        if size != extent:
            value = _along(value, label, jax.lax.dynamic_slice_in_dim, start, size)
    return [value]


def _split(
    value: Factored, equation: jaxprs.Equation, operands: Sequence[Any]
) -> list[Factored]:
    label = value.labels[equation.params["axis"]]
    ends = list(itertools.accumulate(int(n) for n in equation.params["sizes"]))
    return [
        _along(value, label, jax.lax.slice_in_dim, start, end)
        for start, end in zip([0, *ends[:-1]], ends, strict=True)
    ]


def _along(
    value: Factored, label: int, cut: Callable[..., Any], *limits: Any
) -> Factored:
    """Cuts the axis of a label in each factor that has it."""

    def change(array: Any, axis: int) -> Any:
        return cut(array, *limits, axis=axis)

    return value.both(lambda factor: factor.along(label, change))


def _without(value: Factored, gone: set[int], labels: tuple[int, ...]) -> Factored:
    """Without the axes of some labels, which have extent one, in the factors."""
    for label in gone:
        value = value.both(functools.partial(Factor.dropped, label=label))
    return dataclasses.replace(value, labels=labels)


VIEWS: dict[str, Callable[..., list[Factored] | None]] = {
    "convert_element_type": _cast,
    "copy": _copy,
    "transpose": _transpose,
    "squeeze": _squeeze,
    "broadcast_in_dim": _broadcast,
    "reshape": _reshape,
    "rev": _reverse,
    "slice": _slice,
    "dynamic_slice": _dynamic_slice,
    "split": _split,
}
"""By primitive: the views of `value`, one for each output, or None."""
