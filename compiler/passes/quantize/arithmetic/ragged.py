"""Products of rows with the matrix of their own group, in integers."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp

from compiler import jaxprs
from compiler.passes.quantize.arithmetic.activations import Rounded

if TYPE_CHECKING:
    from compiler.passes.quantize.arithmetic.quantized import Quantized


def fits(value: Quantized, equation: jaxprs.Equation) -> bool:
    """Whether it is [tokens, rows] with [groups, rows, columns] of one scale each."""
    numbers = equation.params["ragged_dot_dimension_numbers"]
    (given, summed), batched = numbers.dot_dimension_numbers
    scheme, encoding = value.encoding.scheme, value.encoding
    return (
        batched == ((), ())
        and tuple(given) == (1,)
        and tuple(summed) == (1,)
        and tuple(numbers.lhs_ragged_dimensions) == (0,)
        and tuple(numbers.rhs_group_dimensions) == (0,)
        and [value.view.whole(axis) for axis in range(3)] == [0, 1, 2]
        and encoding.rows == (1,)
        and encoding.stack == (0,)
        and scheme.symmetric
        and not isinstance(scheme.group, int)
    )


def sums(
    value: Quantized, equation: jaxprs.Equation
) -> Callable[[Rounded, dict[str, Any], Any], tuple[Any, Any]]:
    """What sums up the codes of each row with those of its group's matrix."""
    encoding = value.encoding

    def add(x: Rounded, stored: dict[str, Any], sizes: Any) -> tuple[Any, Any]:
        codes = encoding.split(encoding.codes(stored))
        rows = x.codes.shape[0]
        groups = jnp.arange(sizes.shape[0], dtype=jnp.int32)
        group = jnp.repeat(groups, sizes, total_repeat_length=rows)
        total = _product(equation, x.codes, codes, sizes)
        if x.zero is not None:
            lost = jnp.sum(codes.astype(jnp.int32), axis=1)
            total = total - x.zero.astype(jnp.int32) * lost[group]
        scale = encoding.scales(stored).astype(jnp.float32)
        shape = (sizes.shape[0], encoding.shape[2])
        return total, x.scale * jnp.broadcast_to(scale[:, 0], shape)[group]

    return add


def _product(equation: jaxprs.Equation, codes: Any, kernel: Any, sizes: Any) -> Any:
    wide = {"preferred_element_type": jnp.dtype(jnp.int32)}
    return jaxprs.bind(equation, [codes, kernel, sizes], **wide)[0]
