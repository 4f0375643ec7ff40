"""How many products a convolution needs, exactly."""

from __future__ import annotations

import math

from compiler import jaxprs


def products(equation: jaxprs.Equation) -> int:
    """Counts the multiply-adds of a convolution, as XLA does.

    Taps that fall on padding, or on the zeros dilation puts between inputs, are not
    computed with. Strides, both dilations, both kinds of groups.
    """
    left, right = (v.aval.shape for v in equation.invars[:2])
    params = equation.params
    numbers = params["dimension_numbers"]
    batch, features, *inside = (left[axis] for axis in numbers.lhs_spec)
    made, _, *kernel = (right[axis] for axis in numbers.rhs_spec)
    output = equation.outvars[0].aval.shape
    outside = [output[axis] for axis in numbers.out_spec[2:]]
    met = math.prod(
        taps(*sizes, low=padding[0])
        for *sizes, padding in zip(
            outside,
            kernel,
            inside,
            params["window_strides"],
            params["lhs_dilation"],
            params["rhs_dilation"],
            params["padding"],
            strict=True,
        )
    )
    groups = params["feature_group_count"] * params["batch_group_count"]
    return met * batch * features * made // groups


def taps(
    outputs: int, kernel: int, inputs: int, stride: int, spread: int, gap: int, low: int
) -> int:
    """Counts pairs (output, tap) of one axis that meet an input.

    Tap k of output o reads position $$ p = o \\, stride + k \\, gap - low $$ of an axis
    where input i stands at i * spread.

    >>> taps(outputs=3, kernel=3, inputs=3, stride=1, spread=1, gap=1, low=1)
    7
    """
    last = (inputs - 1) * spread
    period = spread // math.gcd(spread, stride)  # outputs from one meeting to the next
    count = 0
    for tap in range(kernel if inputs else 0):
        shift = tap * gap - low
        first = max(0, -(shift // stride))  # of p >= 0
        end = min(outputs, (last - shift) // stride + 1)  # of p <= last
        for start in range(first, min(first + period, end)):
            if (start * stride + shift) % spread == 0:
                count += -(-(end - start) // period)
                break
    return count
