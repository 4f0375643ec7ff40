"""The operands of a product as matrices, rows and columns in the leaf's order."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from compiler import jaxprs
from compiler.passes.quantize.arithmetic.dot import DotForm
from compiler.passes.quantize.arithmetic.operand import Arrangement
from compiler.passes.quantize.calibrate.trails import Trail
from compiler.sites import WeightSite


@dataclasses.dataclass(frozen=True)
class Product:
    """A `dot_general`.

    Attributes:
        form: how it is one of matrices.
        joined: whether other weights stand beside this one, so that the output is not
            its own alone.
    """

    form: DotForm
    joined: bool = False

    def rows(self, x: Any) -> Any:
        """The activation as `[*stack, tokens, rows]`."""
        return self.form.activation(x)

    def pooled(self, x: Any, pool: Callable[..., Any]) -> Any:
        """The activation with examples taken together, where rows stay the same."""
        del pool
        return x

    def columns(self, y: Any) -> Any | None:
        """The output as `[*stack, tokens, columns]`: `DotForm.result` undone."""
        form = self.form
        if self.joined:
            return None
        x = jaxprs.spec(form.equation.invars[1 - form.place])
        *stack, tokens, _ = jax.eval_shape(self.rows, x).shape
        columns = math.prod(
            extent
            for axis, extent in enumerate(form.view.shape)
            if axis not in (*form.rows, *form.stack)
        )
        like = jax.ShapeDtypeStruct((*stack, tokens, columns), y.dtype)
        (found,) = jax.linear_transpose(form.result, like)(y)
        return found


@dataclasses.dataclass(frozen=True)
class Convolution:
    """A `conv_general_dilated`; groups of channels, if it has some, are its stack.

    Attributes:
        equation: the convolution.
        order: the kernel's axes that are summed over, as they stand in the leaf.
    """

    equation: jaxprs.Equation
    order: tuple[int, ...]

    @property
    def stack(self) -> tuple[int, ...]:
        """How many groups of channels there are, if there are several."""
        groups = self.equation.params["feature_group_count"]
        return (groups,) if groups > 1 else ()

    def rows(self, x: Any) -> Any:
        """The patches the kernel meets, `[*stack, tokens, rows]`."""
        numbers = self.equation.params["dimension_numbers"]
        shape = self.equation.invars[1].aval.shape
        channels, *spatial = (shape[axis] for axis in numbers.rhs_spec[1:])
        x = self._padded(jnp.transpose(x, numbers.lhs_spec))
        places = itertools.product(*map(range, spatial))
        patches = jnp.stack([self._at(x, place) for place in places], axis=-1)
        # [batch, groups * channels, *out, kernel] -> [groups, tokens, channels, kernel]
        patches = jnp.moveaxis(patches, 1, 0)
        count, stack = math.prod(patches.shape[1:-1]), self.stack or (1,)
        patches = jnp.reshape(patches, (*stack, channels, count, *spatial))
        axes = [numbers.rhs_spec[1:].index(axis) for axis in self.order]
        patches = jnp.transpose(
            patches, (0, 2, *(axis + 1 + (axis > 0) for axis in axes))
        )
        rows = channels * math.prod(spatial)
        return jnp.reshape(patches, (*self.stack, count, rows))

    def _padded(self, x: Any) -> Any:
        params = self.equation.params
        inner = [n - 1 for n in params["lhs_dilation"]]
        padding = [(*p, i) for p, i in zip(params["padding"], inner, strict=True)]
        none = (0, 0, 0)
        return jax.lax.pad(x, jnp.zeros((), x.dtype), [none, none, *padding])

    def _at(self, x: Any, place: Sequence[int]) -> Any:
        """What one element of the kernel meets, padded: `[batch, channels, *out]`."""
        params = self.equation.params
        out = self.equation.outvars[0].aval.shape
        sizes = [out[axis] for axis in params["dimension_numbers"].out_spec[2:]]
        strides = params["window_strides"]
        start = [i * n for i, n in zip(place, params["rhs_dilation"], strict=True)]
        stop = [
            first + (size - 1) * stride + 1 if size else first
            for first, size, stride in zip(start, sizes, strides, strict=True)
        ]
        first, last = (0, 0, *start), (*x.shape[:2], *stop)
        return jax.lax.slice(x, first, last, (1, 1, *strides))

    def pooled(self, x: Any, pool: Callable[..., Any]) -> Any:
        """The images with all examples taken together: patches of fewer are fewer."""
        batch = self.equation.params["dimension_numbers"].lhs_spec[0]
        return pool(x, axis=batch, keepdims=True)

    def columns(self, y: Any) -> Any:
        """The output as `[*stack, tokens, columns]`."""
        channel = self.equation.params["dimension_numbers"].out_spec[1]
        y = jnp.moveaxis(y, channel, 0)
        columns = y.shape[0] // math.prod(self.stack)
        y = jnp.reshape(y, (*self.stack, columns, math.prod(y.shape[1:])))
        return jnp.swapaxes(y, -1, -2)


Form = Product | Convolution


def form_of(
    site: WeightSite, trail: Trail, shape: Sequence[int]
) -> tuple[Form | None, str]:
    """The product as one of matrices; or None, and why it is none.

    Args:
        site: the product.
        trail: how the weight came to it.
        shape: of the leaf.
    """
    view = trail.view
    if site.kind == "ragged":
        return None, "which rows an expert meets depends on values"
    if view is None:
        return None, "computed from the leaf"
    local = {axis: place for place, axis in enumerate(trail.axes)}
    stack, rows = (
        tuple(axis for axis in sorted(axes) if axis in local)
        for axes in (site.batched, site.contracted)
    )
    whole = {axis: view.shape[local[axis]] == shape[axis] for axis in local}
    if not all(whole[axis] for axis in rows):
        return None, "it sums over a part of the rows"
    lone = all(whole[axis] or view.shape[local[axis]] == 1 for axis in stack)
    if not lone or any(length != shape[axis] for axis, length in trail.taken):
        return None, "it uses a part of the matrices"
    if site.kind == "conv":
        return _convolution(site.equation, view, trail.joined)
    places = [tuple(local[axis] for axis in axes) for axes in (stack, rows)]
    form = DotForm(site.equation, site.operand, view, places[0], places[1])
    summed = site.equation.params["dimension_numbers"][0][site.operand]
    numbered = site.equation.params["dimension_numbers"][1][site.operand]
    if trail.joined in (*summed, *numbered):
        return None, "it is a part of the rows"
    if not form.fits():
        return None, "it mixes rows and columns"
    return Product(form, trail.joined is not None), ""


def _convolution(
    equation: jaxprs.Equation, view: Arrangement, joined: int | None
) -> tuple[Form | None, str]:
    output, *summed = equation.params["dimension_numbers"].rhs_spec
    if joined is not None:
        return None, "other kernels stand beside it"
    if equation.params["batch_group_count"] > 1:
        return None, "a convolution of groups of examples"
    whole = {axis: view.whole(axis) for axis in (output, *summed)}
    if any(view.axes[axis] and found is None for axis, found in whole.items()):
        return None, "the kernel's axes are not those of the leaf"
    # An axis of extent one may stand anywhere.
    order = sorted(summed, key=lambda axis: whole[axis] or 0)
    return Convolution(equation, tuple(order)), ""
