"""Convolutions of integers."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp

from compiler import jaxprs, targets
from compiler.passes.quantize.arithmetic.activations import Rounded

if TYPE_CHECKING:
    from compiler.passes.quantize.arithmetic.quantized import Quantized


def fits(value: Quantized, equation: jaxprs.Equation) -> bool:
    """Whether one scale belongs to each output channel, and none to a part of it."""
    encoding, params = value.encoding, equation.params
    output = params["dimension_numbers"].rhs_spec[0]
    summed = [value.view.whole(a) for a in range(len(value.shape)) if a != output]
    rows = {axis for axis in summed if axis is not None}
    own = {axis for axis in encoding.rows if encoding.shape[axis] != 1}
    return (
        encoding.scheme.symmetric
        and not encoding.stack
        and not isinstance(encoding.scheme.group, int)
        and rows == own
        and params["batch_group_count"] == 1
    )


def sums(
    value: Quantized, equation: jaxprs.Equation
) -> Callable[[Rounded, dict[str, Any]], tuple[Any, Any]]:
    """What sums up a convolution of codes, and gives the scale of each channel.

    A zero point is subtracted afterwards, so that padding stays zero:
    (q - z) * w = q * w - z (1 * w).
    """
    numbers = equation.params["dimension_numbers"]
    output, channel = numbers.rhs_spec[0], numbers.out_spec[1]
    encoding = value.encoding

    def add(x: Rounded, stored: dict[str, Any]) -> tuple[Any, Any]:
        kernel = value.view.apply(encoding.split(encoding.codes(stored)))
        total = targets.integer_convolution(equation, x.codes, kernel)
        if x.zero is not None:
            first = x.codes[:1] if numbers.lhs_spec[0] == 0 else x.codes
            ones = jnp.ones_like(first)
            lost = targets.integer_convolution(equation, ones, kernel)
            zero = jnp.transpose(x.zero, _batch_first(equation)).astype(jnp.int32)
            total = total - zero * lost
        scale = _channels(value, stored, output)
        shape = [1] * total.ndim
        shape[channel] = scale.size
        by_example = jnp.transpose(x.scale, _batch_first(equation))
        return total, by_example * jnp.reshape(scale, shape)

    return add


def _batch_first(equation: jaxprs.Equation) -> list[int]:
    """The order of axes that brings a scale for each example to the result's layout."""
    numbers = equation.params["dimension_numbers"]
    order = [0] * len(numbers.out_spec)
    for given, made in zip(numbers.lhs_spec, numbers.out_spec, strict=True):
        order[made] = given
    return order


def _channels(value: Quantized, stored: dict[str, Any], output: int) -> Any:
    """One scale for each output channel, in their order."""
    scale = value.encoding.scales(stored).astype(jnp.float32)
    extent = value.shape[output]
    return jnp.broadcast_to(jnp.reshape(scale, (-1,)), (extent,))
