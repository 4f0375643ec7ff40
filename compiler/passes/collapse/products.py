"""Rules for products: what they absorb of an affine map before them, what they note."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from compiler import jaxprs
from compiler.passes.collapse.layout import lay, reshaped, widened
from compiler.passes.collapse.notes import Affine, Product, affine
from compiler.rewrite import Operand, Result, Rules, Site

PRODUCTS = Rules()


@dataclasses.dataclass(frozen=True)
class Geometry:
    """How the axes of a product's input, kernel and output belong together.

    Attributes:
        place: which operand the kernel is.
        sources: for each axis of the kernel, the output's axis it makes, or None.
        factor: lays out along the kernel what is laid out along the input; None if
            it varies along axes that the kernel does not take.
        response: what a constant added to the input adds to the output, for a kernel.
        edge: why what the response is varies along the output, if it does.
    """

    place: int
    sources: tuple[int | None, ...]
    factor: Callable[[Any], Any]
    response: Callable[[Any, Any], Any]
    edge: str = ""


@PRODUCTS.on("dot_general")
def dot(site: Site, *operands: Operand) -> list[Result] | None:
    """A product of an input with a known kernel, on either side."""
    if operands[0].known == operands[1].known:
        return None
    return _product(site, operands, _of_dot(site, operands))


@PRODUCTS.on("conv_general_dilated")
def convolution(site: Site, *operands: Operand) -> list[Result] | None:
    """A convolution with a known kernel."""
    grouped = site.equation.params["batch_group_count"] != 1
    if operands[0].known or not operands[1].known or grouped:
        return None
    return _product(site, operands, _of_convolution(site, operands))


def _product(
    site: Site, operands: Sequence[Operand], geometry: Geometry
) -> list[Result] | None:
    """Absorbs the affine map before, if there is one, and notes the product."""
    given, kernel = operands[1 - geometry.place], operands[geometry.place]
    dtype = site.equation.outvars[0].aval.dtype
    if not given.dtype == kernel.dtype == dtype or not _is_floating(dtype):
        return None
    note = Product(
        emit=_emit(site, geometry, given.value),
        kernel=kernel.value,
        sources=geometry.sources,
        shared=kernel.shared or kernel.late > 1,
    )
    before = affine(given)
    if before is None or not _fits(site, geometry, given, before, note.shared):
        return [Result(note.product(), note)]
    with (before.site or site).early():
        if before.scale is not None:
            new = kernel.value * geometry.factor(before.scale)
            note = dataclasses.replace(note, kernel=new)
        if before.shift is not None:
            bias = geometry.response(before.shift, kernel.value)
            note = dataclasses.replace(note, bias=bias)
    note = dataclasses.replace(note, emit=_emit(site, geometry, before.base()))
    site.fired("affine map merged into the product after it")
    return [Result(note.value(), note)]


def _emit(site: Site, geometry: Geometry, given: Any) -> Callable[[Any], Any]:
    def emit(kernel: Any) -> Any:
        pair = (given, kernel) if geometry.place else (kernel, given)
        return site.emit(*pair)[0]

    return emit


def _fits(
    site: Site, geometry: Geometry, given: Operand, before: Affine, shared: bool
) -> bool:
    """Whether a product can absorb an affine map; says why where it is not plain."""
    left = site.refused or given.dtype == jnp.float16
    if left or before.shape != given.shape:
        return False
    with site.early():
        known = [v for v in (before.scale, before.shift) if v is not None]
        if any(geometry.factor(value) is None for value in known):
            return False
    if before.scale is not None and shared:
        site.skipped(
            "the kernel is used elsewhere too; scaling it would store it twice"
        )
    elif before.shift is not None and geometry.edge:
        site.skipped(geometry.edge)
    else:
        return True
    return False


def _of_dot(site: Site, operands: Sequence[Operand]) -> Geometry:
    contracted, batched = site.equation.params["dimension_numbers"]
    place = 0 if operands[0].known else 1
    given, kernel = operands[1 - place], operands[place]
    pairs = [*_pairs(contracted, place), *_pairs(batched, place)]
    factors: list[int | None] = [None] * len(kernel.shape)
    whole = [1] * len(given.shape)
    for axis, source in pairs:
        factors[axis], whole[source] = source, given.shape[source]

    def response(shift: Any, weights: Any) -> Any:
        value = widened(shift, whole)
        pair = (value, weights) if place else (weights, value)
        return jaxprs.bind(site.equation, pair)[0]

    taken = {axis for axis, _ in pairs}
    free = [axis for axis in range(len(kernel.shape)) if axis not in taken]
    ahead = len(batched[0]) + (len(given.shape) - len(pairs) if place else 0)
    made = dict(zip(batched[place], range(len(batched[0])), strict=True))
    made |= {axis: ahead + i for i, axis in enumerate(free)}
    return Geometry(
        place,
        tuple(made.get(axis) for axis in range(len(kernel.shape))),
        lambda value: lay(value, factors),
        response,
    )


def _pairs(axes: Sequence[Sequence[int]], place: int) -> list[tuple[int, int]]:
    """The kernel's axes, each with the input's axis that goes with it."""
    return list(zip(axes[place], axes[1 - place], strict=True))


def _of_convolution(site: Site, operands: Sequence[Operand]) -> Geometry:
    params = site.equation.params
    numbers, groups = params["dimension_numbers"], params["feature_group_count"]
    shape = operands[1].shape
    made, taken = numbers.rhs_spec[:2]
    sources = [numbers.out_spec[1] if i == made else None for i in range(len(shape))]

    def factor(value: Any) -> Any:
        features = lay(value, [numbers.lhs_spec[1]])
        if features is None or not np.ndim(features):
            return features
        wide = np.shape(features)[0]
        if wide != 1:
            features = _by_output(features, groups, shape[made], shape[taken])
        else:
            features = reshaped(features, (1, 1))
        axes: list[int | None] = [None] * len(shape)
        axes[made], axes[taken] = 0, 1
        return lay(features, axes)

    def response(shift: Any, weights: Any) -> Any:
        rest = tuple(i for i in range(len(shape)) if i != made)
        total = jnp.sum(weights * factor(shift), rest)
        axes = [0 if i == numbers.out_spec[1] else None for i in range(len(shape))]
        return lay(total, axes)

    return Geometry(1, tuple(sources), factor, response, _edge(site))


def _by_output(features: Any, groups: int, made: int, taken: int) -> Any:
    """For each output feature those of its own group of input features."""
    if groups == 1:
        return reshaped(features, (1, taken))
    grouped = reshaped(features, (groups, 1, taken))
    return reshaped(widened(grouped, (groups, made // groups, taken)), (made, taken))


def _edge(site: Site) -> str:
    """Why a constant added to the input is not one in the output."""
    params = site.equation.params
    if any(low > 0 or high > 0 for low, high in params["padding"]):
        return "the shift is not there in the padding; it stays before the convolution"
    if any(n != 1 for n in params["lhs_dilation"]):
        return "the shift is not there between the inputs; it stays before them"
    return ""


def _is_floating(dtype: Any) -> bool:
    return jnp.issubdtype(dtype, jnp.floating)
