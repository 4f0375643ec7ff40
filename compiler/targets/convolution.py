"""Convolutions of integers."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

if TYPE_CHECKING:
    from compiler import jaxprs

Array = jax.Array
_NAMES = (
    "window_strides",
    "padding",
    "lhs_dilation",
    "rhs_dilation",
    "dimension_numbers",
    "feature_group_count",
    "batch_group_count",
)
_EXACT = 2**10
"""So many products of two int8 are summed exactly in float32."""


def integer_convolution(equation: jaxprs.Equation, x: Array, kernel: Array) -> Array:
    """A convolution of int8 codes, summed exactly.

    XLA's CPU back end is faster with int8 than with float32, but for grouped and
    depthwise convolutions. Those are computed in float32 there, which gives the same
    integers as long as every sum has at most 2^10 terms.

    Args:
        equation: the `conv_general_dilated` it stands for.
        x: int8 activations, laid out as the equation's.
        kernel: int8, laid out as the equation's.

    Returns:
        int32, laid out as the equation's result; bit for bit the same everywhere, as
        long as no sum leaves the range of int32.
    """
    params = {name: equation.params[name] for name in _NAMES}

    def exact(x: Array, kernel: Array) -> Array:
        return jax.lax.conv_general_dilated(
            x, kernel, preferred_element_type=jnp.int32, **params
        )

    def in_floats(x: Array, kernel: Array) -> Array:
        operands: list[Any] = [x.astype(jnp.float32), kernel.astype(jnp.float32)]
        y = jax.lax.conv_general_dilated(
            *operands, precision=jax.lax.Precision.HIGHEST, **params
        )
        return y.astype(jnp.int32)

    output = params["dimension_numbers"].rhs_spec[0]
    terms = math.prod(kernel.shape) // max(kernel.shape[output], 1)
    if params["feature_group_count"] == 1 or terms > _EXACT:
        return exact(x, kernel)
    return jax.lax.platform_dependent(x, kernel, cpu=in_floats, default=exact)
