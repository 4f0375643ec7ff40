"""Rules that merge an affine map into the product before it.

    (x W + b) s + t  ->  x (W s) + (b s + t)

for every `dot_general` and `conv_general_dilated` (grouped, dilated and transposed
convolutions are the same primitive) whose kernel is known, when `s` and `t` are
known and constant along every axis the kernel does not produce. A batch norm in
inference is such a map, so it disappears.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from compiler.rewrite import Operand, Result, Rules, Site

COLLAPSE = Rules()


@dataclasses.dataclass(frozen=True)
class Product:
    """What is noted of a value that is a product with a known kernel, plus a bias.

    Attributes:
        emit: computes the product (without the bias) for another kernel.
        kernel: the kernel it has now.
        axes: for each axis of the value, the kernel's axis it comes from, or None.
        bias: what is added to it, of the value's rank (extent 1 where constant).
        shared: whether the kernel is used elsewhere too.
    """

    emit: Callable[[Any], Any]
    kernel: Any
    axes: tuple[int | None, ...]
    bias: Any = None
    shared: bool = False


@dataclasses.dataclass(frozen=True)
class Spread:
    """What is noted of a known value that was broadcast: what it was before.

    Attributes:
        value: the same rank, extent 1 on the axes it is constant along.
    """

    value: Any


@COLLAPSE.on("dot_general")
def note_dot(site: Site, *operands: Operand) -> list[Result] | None:
    """Notes a product of an input with a known kernel, on either side."""
    place = _kernel_place(operands)
    if place is None:
        return None
    (contracted, batched) = site.equation.params["dimension_numbers"]
    axes: list[int | None] = []
    for side in range(2):
        rank = len(operands[side].shape)
        taken = {*contracted[side], *batched[side]}
        free = [axis for axis in range(rank) if axis not in taken]
        axes += [axis if side == place else None for axis in free]
    return _note(site, operands, place, (*batched[place], *axes))


@COLLAPSE.on("conv_general_dilated")
def note_convolution(site: Site, *operands: Operand) -> list[Result] | None:
    """Notes a convolution with a known kernel."""
    if _kernel_place(operands) != 1 or site.equation.params["batch_group_count"] != 1:
        return None
    numbers = site.equation.params["dimension_numbers"]
    axes: list[int | None] = [None] * len(operands[0].shape)
    axes[numbers.out_spec[1]] = numbers.rhs_spec[0]
    return _note(site, operands, 1, tuple(axes))


@COLLAPSE.on("broadcast_in_dim")
def note_broadcast(site: Site, *operands: Operand) -> list[Result] | None:
    """Notes what a broadcast value was before, so that it need not be stored."""
    if not operands[0].known or len(operands) > 1:
        return _follow(site, operands[0])
    shape = [1] * len(site.equation.params["shape"])
    for axis, target in enumerate(site.equation.params["broadcast_dimensions"]):
        shape[target] = operands[0].shape[axis]
    small = jnp.reshape(operands[0].value, shape)
    return [Result(site.emit(operands[0].value)[0], Spread(small))]


@COLLAPSE.on("mul", "div")
def scale_product(site: Site, *operands: Operand) -> list[Result] | None:
    """Merges a known factor into the kernel and the bias."""
    found = _product_and_other(operands)
    if found is None:
        return None
    product, factor, place = found
    if site.equation.primitive.name == "div":
        if place == 1:
            return None
        with site.early():
            factor = 1 / factor
    if not _fits(product, factor):
        return None
    if product.kernel.dtype == jnp.float16:
        site.skipped("float16 has too small a range to merge a scale in")
        return None
    if product.shared:
        site.skipped(
            "the kernel is used elsewhere too; scaling it would store it twice"
        )
        return None
    with site.early():
        kernel = product.kernel * _as_kernel(product, factor)
        bias = None if product.bias is None else product.bias * factor
    site.fired("scale merged into the kernel before it")
    return _result(dataclasses.replace(product, kernel=kernel, bias=bias))


@COLLAPSE.on("add", "sub")
def shift_product(site: Site, *operands: Operand) -> list[Result] | None:
    """Merges a known term into the bias."""
    found = _product_and_other(operands)
    if found is None:
        return None
    product, term, place = found
    if not _fits(product, term):
        return None
    if site.equation.primitive.name == "sub":
        if place == 1:
            return None
        with site.early():
            term = -term
    if product.bias is None:
        (value,) = site.emit(*(operand.value for operand in operands))
        return [Result(value, dataclasses.replace(product, bias=term))]
    with site.early():
        bias = product.bias + term
    site.fired("shift merged into the bias before it")
    return _result(dataclasses.replace(product, bias=bias))


@COLLAPSE.on("transpose", "reshape", "squeeze")
def follow_view(site: Site, *operands: Operand) -> list[Result] | None:
    """Carries the note of a product through a change of axes."""
    if operands[0].known or len(operands) > 1:
        return None
    return _follow(site, operands[0])


def _kernel_place(operands: Sequence[Operand]) -> int | None:
    """Which operand is the kernel: the known one, if the other is not."""
    if len(operands) != 2 or operands[0].known == operands[1].known:
        return None
    return 0 if operands[0].known else 1


def _note(
    site: Site, operands: Sequence[Operand], place: int, axes: tuple[int | None, ...]
) -> list[Result] | None:
    other, kernel = operands[1 - place], operands[place]

    def emit(new: Any) -> Any:
        pair = (new, other.value) if place == 0 else (other.value, new)
        return site.emit(*pair)[0]

    value = emit(kernel.value)
    if value.dtype != kernel.dtype or not jnp.issubdtype(kernel.dtype, jnp.floating):
        return [Result(value)]
    shared = kernel.shared or kernel.uses > 1
    return [Result(value, Product(emit, kernel.value, axes, None, shared))]


def _product_and_other(
    operands: Sequence[Operand],
) -> tuple[Product, Any, int] | None:
    """Finds a product used here alone, a known value, and the product's place."""
    for place, operand in enumerate(operands):
        other = operands[1 - place]
        if isinstance(operand.note, Product) and operand.uses == 1 and other.known:
            value = other.note.value if isinstance(other.note, Spread) else other.value
            if not isinstance(value, jax.Array):
                value = np.asarray(value)
            return (
                (operand.note, value, place) if value.dtype == operand.dtype else None
            )
    return None


def _fits(product: Product, value: Any) -> bool:
    """Whether a value is constant along every axis the kernel does not produce."""
    shape = np.shape(value)
    if not shape:
        return True
    return len(shape) == len(product.axes) and all(
        extent == 1 or axis is not None
        for extent, axis in zip(shape, product.axes, strict=True)
    )


def _as_kernel(product: Product, factor: Any) -> Any:
    """Lays a factor out along the kernel's axes."""
    if not np.shape(factor):
        return factor
    placed = [(axis, i) for i, axis in enumerate(product.axes) if axis is not None]
    order = [i for _, i in sorted(placed)]
    shape = [1] * len(product.kernel.shape)
    for axis, i in placed:
        shape[axis] = factor.shape[i]
    rest = [i for i in range(len(product.axes)) if i not in order]
    return jnp.reshape(jnp.transpose(factor, [*order, *rest]), shape)


def _result(product: Product) -> list[Result]:
    value = product.emit(product.kernel)
    if product.bias is not None:
        value = value + product.bias
    return [Result(value, product)]


def _follow(site: Site, operand: Operand) -> list[Result] | None:
    product = operand.note
    if not isinstance(product, Product) or operand.uses != 1:
        return None
    (value,) = site.emit(operand.value)
    moved = _moved_axes(operand.shape, value.shape, site)
    if moved is None:
        return [Result(value)]
    axes = tuple(None if i is None else product.axes[i] for i in moved)
    lost = set(product.axes) - set(axes) - {None}
    if any(product.kernel.shape[axis] != 1 for axis in lost):
        return [Result(value)]

    def emit(kernel: Any) -> Any:
        return site.emit(product.emit(kernel))[0]

    bias = product.bias
    if bias is not None:
        bias = _move(jnp.broadcast_to(bias, _bias_shape(product, bias)), moved)
    new = dataclasses.replace(product, emit=emit, axes=axes, bias=bias)
    return [Result(value, new)]


def _moved_axes(
    old: Sequence[Any], new: Sequence[Any], site: Site
) -> list[int | None] | None:
    """For each new axis the old one it is, None for those that are none of them."""
    params = site.equation.params
    if site.equation.primitive.name == "transpose":
        return list(params["permutation"])
    if site.equation.primitive.name == "broadcast_in_dim":
        back = {target: i for i, target in enumerate(params["broadcast_dimensions"])}
        found = [back.get(i) for i in range(len(new))]
        return [
            i if i is not None and old[i] == n else None
            for i, n in zip(found, new, strict=True)
        ]
    if site.equation.primitive.name == "reshape" and params["dimensions"] is not None:
        return None
    before = {_prefix(old, i): i for i in reversed(range(len(old))) if old[i] != 1}
    return [
        None if extent == 1 else before.get(_prefix(new, i))
        for i, extent in enumerate(new)
    ]


def _prefix(shape: Sequence[Any], axis: int) -> tuple[Any, Any]:
    """An axis of a row-major array is told by its extent and all before it."""
    size = 1
    for extent in shape[:axis]:
        size = size * extent
    return size, shape[axis]


def _bias_shape(product: Product, bias: Any) -> tuple[Any, ...]:
    return np.shape(bias) or (1,) * len(product.axes)


def _move(bias: Any, moved: Sequence[int | None]) -> Any:
    order = [i for i in moved if i is not None]
    rest = [i for i in range(bias.ndim) if i not in order]
    shape = [1 if i is None else bias.shape[i] for i in moved]
    return jnp.reshape(jnp.transpose(bias, [*order, *rest]), shape)
