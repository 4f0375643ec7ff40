"""The sum of a product of integers, before it becomes a floating number."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.core
import jax.numpy as jnp

from compiler import jaxprs
from compiler.passes.factorize.symbolic import Marked, Symbolic


class Known(Marked):
    """An array that follows from leaves alone."""

    def through(
        self, equation: jaxprs.Equation, operands: Sequence[Any], place: int
    ) -> list[Any] | None:
        """What is made of known arrays only is known."""
        traced = (jax.core.Tracer, Symbolic)
        others = [o for o in operands if not isinstance(o, Known)]
        if any(isinstance(o, traced) for o in others) or equation.effects:
            return None
        values = [o.array if isinstance(o, Known) else o for o in operands]
        return [Known(value) for value in jaxprs.bind(equation, values)]


@dataclasses.dataclass(frozen=True, eq=False)
class Accumulator(Symbolic):
    r"""Stands for a product of integers, to which a bias may still be added.

    $$ y = s\,(a + \mathrm{round}(b / s)) $$

    with the int32 sums $a$ and their scale $s$. The derivative is that of the product
    in floating point.

    Attributes:
        spec: shape and dtype of the result.
        arguments: arrays that the two functions take.
        sums: gives $a$ and $s$, or the result and None where it is no integer.
        floats: gives the same product in floating point, to be differentiated.
        bias: what was added.
    """

    spec: jax.ShapeDtypeStruct
    arguments: tuple[Any, ...]
    sums: Callable[..., tuple[Any, Any]]
    floats: Callable[..., Any]
    bias: Any = None

    def dense(self) -> Any:
        """The result."""

        @jax.custom_jvp
        def quantized_product(arguments: Any, bias: Any) -> Any:
            total, scale = self.sums(*arguments)
            if scale is None:
                total = total if bias is None else total + bias.astype(total.dtype)
                return total.astype(self.spec.dtype)
            if bias is not None:
                steps = jnp.round(bias.astype(jnp.float32) * (jnp.float32(1) / scale))
                total = total + steps.astype(jnp.int32)
            return (total.astype(jnp.float32) * scale).astype(self.spec.dtype)

        @quantized_product.defjvp
        def differentiate(primals: Any, tangents: Any) -> tuple[Any, Any]:
            _, moved = jax.jvp(self._in_floats, primals, tangents)
            return quantized_product(*primals), moved

        return quantized_product(self.arguments, self.bias)

    def _in_floats(self, arguments: Any, bias: Any) -> Any:
        result = self.floats(*arguments)
        result = result if bias is None else result + bias.astype(result.dtype)
        return result.astype(self.spec.dtype)

    def through(
        self, equation: jaxprs.Equation, operands: Sequence[Any], place: int
    ) -> list[Any] | None:
        """Takes a bias that is known up in its sums."""
        if equation.primitive.name != "add" or self.bias is not None:
            return None
        other = operands[1 - place]
        if not isinstance(other, Known) or not self._is_bias(other.array.shape):
            return None
        return [dataclasses.replace(self, bias=other.array)]

    def _is_bias(self, shape: Sequence[int]) -> bool:
        """Whether an array is as large as the result, but for axes of extent one."""
        own = self.spec.shape
        return len(shape) == len(own) and all(
            a in (1, b) for a, b in zip(shape, own, strict=True)
        )

    def parts(self) -> tuple[Any, Callable[[Any], Symbolic]]:
        """Its result: nothing goes into a branch as a sum."""
        return self.dense(), _plain


def _plain(value: Any) -> Any:
    return value
