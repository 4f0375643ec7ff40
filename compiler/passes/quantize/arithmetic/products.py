"""What is emitted where a weight in few bits meets a product.

Weight-only products decode the weight a tile at a time. Where the other operand is
rounded too, the product is one of integers,

    y = s_x s_w ((q_x - z_x) @ (q_w - z_w)),

summed in int32.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp

from compiler import jaxprs, targets
from compiler.passes.quantize.arithmetic import convolution, ragged
from compiler.passes.quantize.arithmetic.activations import Rounded
from compiler.passes.quantize.arithmetic.dot import DotForm
from compiler.passes.quantize.arithmetic.lookup import look_up
from compiler.passes.quantize.arithmetic.product import Product
from compiler.passes.quantize.arithmetic.quantized import Quantized


def _dot(
    value: Quantized, equation: jaxprs.Equation, operands: Sequence[Any], place: int
) -> Any | None:
    product = Product(value, equation, place, operands[1 - place])
    encoding, spec = value.encoding, product.spec
    form = DotForm(equation, place, value.view, encoding.stack, encoding.rows)
    if not _is_floating(product.x) or not form.fits():
        return None
    if spec is None:
        return _weight_only(product, form)

    def sums(x: Rounded, stored: dict[str, Any]) -> tuple[Any, Any]:
        total, scale = targets.integer_product(*x, encoding, stored)
        if scale is not None:
            scale = form.result(jnp.broadcast_to(scale, total.shape))
        return form.result(total), scale

    axes = (-1,) if spec.per == "token" else None
    return product.by_codes(form.activation, axes, sums)


def _weight_only(product: Product, form: DotForm) -> Any:
    """The weight is decoded where it is used, and only as much as is used at once."""
    encoding, equation = product.value.encoding, product.equation
    options = {
        "dtype": equation.outvars[0].aval.dtype,
        "precision": equation.params["precision"],
    }

    def multiplied(x: Any, value: Quantized) -> Any:
        rows = form.activation(x)
        return form.result(targets.weight_only(rows, encoding, value.stored, **options))

    if product.value.carrier is None:
        return multiplied(product.x, product.value)
    return product.of(lambda x, value: (multiplied(x, value), None)).dense()


def _convolve(
    value: Quantized, equation: jaxprs.Equation, operands: Sequence[Any], place: int
) -> Any | None:
    """A convolution with a kernel of integers; of any other with all of it decoded."""
    product = Product(value, equation, place, operands[0])
    if place != 1 or not _is_floating(product.x):
        return None
    if product.spec is None or not convolution.fits(value, equation):
        return product.plainly()
    axes = None
    if product.spec.per == "token":
        batch = equation.params["dimension_numbers"].lhs_spec[0]
        axes = tuple(axis for axis in range(product.x.ndim) if axis != batch)
    return product.by_codes(lambda x: x, axes, convolution.sums(value, equation))


def _ragged(
    value: Quantized, equation: jaxprs.Equation, operands: Sequence[Any], place: int
) -> Any | None:
    """Integers for each group; where they do not fit, its matrix decoded."""
    product = Product(value, equation, place, operands[0], tuple(operands[2:]))
    if place != 1 or not _is_floating(product.x):
        return None
    if product.spec is None or not ragged.fits(value, equation):
        return product.plainly()
    axes = (-1,) if product.spec.per == "token" else None
    return product.by_codes(lambda x: x, axes, ragged.sums(value, equation))


def _is_floating(x: Any) -> bool:
    return jnp.issubdtype(x.dtype, jnp.floating)


PRODUCTS: dict[str, Callable[..., Any | None]] = {
    "dot_general": _dot,
    "conv_general_dilated": _convolve,
    "ragged_dot_general": _ragged,
    "gather": look_up,
}
"""By primitive: what it gives for a weight in few bits, or None for the whole."""
