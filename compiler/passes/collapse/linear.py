"""Rules for what lies between an affine map and a product and leaves both as they are.

Changes of axes move a scale and a shift to other axes. What is linear along axes a
scale is constant along (a sum, a pooling, a slice) does not see the scale, and makes
of a constant shift that shift times a number.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from compiler.passes.collapse.layout import (
    plain,
    reshaped,
    together,
    widened,
)
from compiler.passes.collapse.notes import (
    MOST_PRODUCTS,
    Affine,
    Blocked,
    Linear,
    Made,
    Spread,
    affine,
    linear,
    moved,
    noted,
    whole,
)
from compiler.passes.collapse.through import Through, through
from compiler.rewrite import Operand, Result, Rules, Site

LINEAR = Rules()


@LINEAR.on("broadcast_in_dim")
def note_broadcast(site: Site, *operands: Operand) -> Sequence[Result] | None:
    """Notes what a broadcast value was before, so that it need not be stored."""
    if len(operands) > 1:
        return None
    shape = site.equation.params["shape"]
    if not operands[0].known:
        return follow(site, *operands)
    axes = site.equation.params["broadcast_dimensions"]
    small = [1] * len(shape)
    for axis, target in enumerate(axes):
        small[target] = operands[0].shape[axis]
    value = reshaped(plain(operands[0].value), small)
    return [Result(site.emit(operands[0].value)[0], Spread(value))]


@LINEAR.on("convert_element_type")
def note_converted(site: Site, *operands: Operand) -> list[Result] | None:
    """Notes a number in another dtype, so that it stays a number."""
    if not operands[0].known or not isinstance(operands[0].value, int | float):
        return None
    value = np.asarray(operands[0].value, site.equation.params["new_dtype"])
    return [Result(site.emit(operands[0].value)[0], Spread(value))]


@LINEAR.on("transpose", "reshape", "squeeze", "reduce_sum", "reduce_window_sum")
@LINEAR.on("slice", "rev", "pad", "copy")
def follow(site: Site, *operands: Operand) -> list[Result] | None:
    """Carries what is noted of a value through a linear map."""
    if operands[0].known or not isinstance(operands[0].note, Linear | Affine):
        return None
    if any(not operand.known for operand in operands[1:]):
        return None
    way = through(site, operands)
    return None if way is None else _follow(site, operands, way)


@LINEAR.on("concatenate")
def join(site: Site, *operands: Operand) -> list[Result] | None:
    """Notes a concatenation of products, which is linear in all the kernels."""
    found = [linear(operand) for operand in operands]
    parts = tuple(part for part in found if part is not None)
    products = sum(part.products for part in parts)
    if len(parts) < len(operands) or products > MOST_PRODUCTS:
        return None
    if site.refused:
        parts = tuple(whole(part) for part in parts)
    axis = site.equation.params["dimension"]
    sizes = [operand.shape[axis] for operand in operands]
    starts = [sum(sizes[:i]) for i in range(len(sizes))]

    def back(factor: Any, i: int) -> Any:
        if not np.ndim(factor) or np.shape(factor)[axis] == 1:
            return factor
        place = [slice(None)] * np.ndim(factor)
        place[axis] = slice(starts[i], starts[i] + sizes[i])
        return factor[tuple(place)]

    note = Made(
        parts=parts,
        emit=lambda *values: site.emit(*values)[0],
        back=back,
        bias=_joined(site, parts, operands, axis),
        shared=any(part.shared for part in parts),
        products=products,
    )
    return [Result(site.emit(*(o.value for o in operands))[0], note)]


def _joined(
    site: Site, parts: Sequence[Linear], operands: Sequence[Operand], axis: int
) -> Any:
    """The biases of what is concatenated, concatenated."""
    if all(part.bias is None for part in parts):
        return None
    ones = (1,) * len(operands[0].shape)
    zero = np.zeros(ones, operands[0].dtype)
    small = [zero if part.bias is None else part.bias for part in parts]
    small = [reshaped(bias, np.shape(bias) or ones) for bias in small]
    common = together(*(np.shape(bias) for bias in small))
    wide = []
    with site.early():
        for bias, operand in zip(small, operands, strict=True):
            shape = (*common[:axis], operand.shape[axis], *common[axis + 1 :])
            wide.append(widened(bias, shape))
        return jax.lax.concatenate(wide, axis)


@LINEAR.on("reduce_window_max", "reduce_max")
def block(site: Site, *operands: Operand) -> list[Result] | None:
    """Notes why no scale gets through a maximum."""
    if linear(operands[0]) is None:
        return None
    why = "a scale passes a maximum only if it is positive, which no one knows here"
    return [Result(site.emit(*(o.value for o in operands))[0], Blocked(why))]


def _follow(
    site: Site, operands: Sequence[Operand], way: Through
) -> list[Result] | None:
    """Carries the note of the first operand through a linear map."""
    first, rest = operands[0], [operand.value for operand in operands[1:]]

    def emit(value: Any) -> Any:
        return site.emit(value, *rest)[0]

    part, before = linear(first), affine(first)
    if part is not None:
        with site.early():
            bias = None if site.refused else way.shift(part.bias)
        if bias is None:
            part = whole(part)
        note = dataclasses.replace(moved(part, emit, way.back), bias=bias)
        return [Result(emit(first.value), note)]
    if before is None or before.shape != first.shape:
        return None
    with site.early():
        scale, shift = way.scale(before.scale), way.shift(before.shift)
    if (scale is None, shift is None) != (before.scale is None, before.shift is None):
        return None
    map_after = Affine(
        base=functools.cache(lambda: emit(before.base())),
        shape=site.equation.outvars[0].aval.shape,
        scale=scale,
        shift=shift,
        steps=0 if way.wider else before.steps,
        site=before.site,
    )
    return noted(site, operands, map_after)
