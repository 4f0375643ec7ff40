"""Values that stand for an array, with its axes re-arranged or some of them cut."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from compiler import jaxprs
from compiler.passes.quantize.arithmetic.operand import Arrangement

Cut = Callable[[Any, int], Any]
"""Cuts an array along one axis."""

VIEWS = (
    "convert_element_type",
    "copy",
    "transpose",
    "squeeze",
    "broadcast_in_dim",
    "reshape",
)
"""What re-arranges an array and keeps all of it."""

CUTS = ("slice", "split", "dynamic_slice")
"""What keeps a part of it."""


def rearranged(view: Arrangement, equation: jaxprs.Equation) -> Arrangement | None:
    """How the result of one of `VIEWS` is the array; None where it is not."""
    name, params = equation.primitive.name, equation.params
    if name == "transpose":
        return view.transposed(params["permutation"])
    if name == "squeeze":
        return view.squeezed(params["dimensions"])
    if name == "broadcast_in_dim":
        spread = view.spread(len(params["shape"]), params["broadcast_dimensions"])
        return spread if spread.extents == tuple(params["shape"]) else None
    if name == "reshape":
        sizes, order = params["new_sizes"], params["dimensions"]
        return view.reshaped(sizes) if order is None else None
    floating = jnp.issubdtype(equation.outvars[0].aval.dtype, jnp.floating)
    return view if floating else None


class Viewed(Protocol):
    """A value that stands for an array, seen in some arrangement."""

    @property
    def view(self) -> Arrangement:
        """How the array's axes have been re-arranged."""
        ...

    def cut(self, place: int, extent: int, change: Cut) -> Any | None:
        """With one axis of the view cut by `change`; None if it cannot be."""
        ...


def seen_through(
    value: Viewed,
    equation: jaxprs.Equation,
    operands: Sequence[Any],
    cuts: Sequence[str] = CUTS,
) -> list[Any] | None:
    """What an equation gives for its first operand; None if that is no view of it.

    Args:
        value: a dataclass with the fields `view` and `dtype`.
        equation: any.
        operands: of the equation.
        cuts: the primitives that may cut the value.
    """
    name = equation.primitive.name
    if name in VIEWS:
        view, dtype = rearranged(value.view, equation), equation.outvars[0].aval.dtype
        new: Any = value
        if view is None:
            return None
        return [dataclasses.replace(new, view=view, dtype=dtype)]
    if name not in cuts:
        return None
    if name == "split":
        return _split(value, equation)
    found: Any = value
    for place, limit in enumerate(_limits(equation, operands, value.view.extents)):
        if limit is not None and found is not None:
            found = found.cut(place, *limit)
    return None if found is None else [found]


def _split(value: Viewed, equation: jaxprs.Equation) -> list[Any] | None:
    sizes = [int(n) for n in equation.params["sizes"]]
    ends = list(itertools.accumulate(sizes))
    axis = equation.params["axis"]
    parts = [
        value.cut(axis, size, _static(end - size, end, 1))
        for size, end in zip(sizes, ends, strict=True)
    ]
    return None if None in parts else parts


def _limits(
    equation: jaxprs.Equation, operands: Sequence[Any], extents: Sequence[int]
) -> list[tuple[int, Cut] | None]:
    """For each axis the new extent and what cuts it; None where it stays whole."""
    sizes, params = equation.outvars[0].aval.shape, equation.params
    found: list[tuple[int, Cut] | None] = []
    for place, (size, extent) in enumerate(zip(sizes, extents, strict=True)):
        if size == extent:
            found.append(None)
        elif equation.primitive.name == "dynamic_slice":
            found.append((size, _moving(operands[1 + place], size)))
        else:
            step = (params["strides"] or [1] * len(sizes))[place]
            start, end = params["start_indices"][place], params["limit_indices"][place]
            found.append((size, _static(start, end, step)))
    return found


def _static(start: int, end: int, step: int) -> Cut:
    return lambda array, axis: jax.lax.slice_in_dim(array, start, end, step, axis)


def _moving(start: Any, size: int) -> Cut:
    return lambda array, axis: jax.lax.dynamic_slice_in_dim(array, start, size, axis)
