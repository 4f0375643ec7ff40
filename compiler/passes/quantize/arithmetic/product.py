"""One product of an activation with a weight: its value, and its derivative.

The value is that of what is stored and rounded; the derivative that of the floating
numbers the codes stand for.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, cast

import jax.numpy as jnp

from compiler import jaxprs
from compiler.passes.quantize.arithmetic.accumulator import Accumulator
from compiler.passes.quantize.arithmetic.activations import (
    Activations,
    learned,
    measured,
    rounded,
    within,
)
from compiler.passes.quantize.arithmetic.quantized import Quantized

Sums = Callable[..., tuple[Any, Any]]
"""Gives integers and their scale, or a product and None, of an activation and more."""


@dataclasses.dataclass(frozen=True, eq=False)
class Product:
    """Where a weight meets an activation.

    Attributes:
        value: the weight.
        equation: the product.
        place: which operand the weight is.
        x: the activation.
        rest: further operands.
    """

    value: Quantized
    equation: jaxprs.Equation
    place: int
    x: Any
    rest: tuple[Any, ...] = ()

    @property
    def key(self) -> str:
        """The name of this use of the weight."""
        return self.value.uses.key(self.value.path, self.equation)

    @property
    def spec(self) -> Activations | None:
        """How the activation is rounded, if it is and the weight has integers."""
        integer = self.value.encoding.scheme.integer
        return self.value.uses.activations.get(self.key) if integer else None

    def plainly(self) -> Any:
        """The product with the decoded weight."""
        return self._bound(self.x, self.value.dense(), self.rest)

    def by_codes(
        self, shaped: Callable[[Any], Any], axes: tuple[int, ...] | None, add: Sums
    ) -> Accumulator:
        """The product of the rounded activation.

        Args:
            shaped: brings the activation to the shape it is rounded in.
            axes: those of that shape that share a scale; all if None.
            add: gives the sums, of the rounded activation, what is stored and the rest.
        """
        spec = cast(Activations, self.spec)
        self.value.uses.integer.add(self.key)

        def scales(x: Any, value: Quantized) -> tuple[Any, Any]:
            given = value.scales.get(self.key)
            if given is None:
                return measured(x, spec, tuple(range(x.ndim)) if axes is None else axes)
            scale, *zero = (jnp.reshape(each, (1,) * x.ndim) for each in given)
            return scale, (zero[0] if zero else None)

        def sums(x: Any, value: Quantized, *rest: Any) -> tuple[Any, Any]:
            x = shaped(x)
            return add(rounded(x, *scales(x, value), spec), value.stored, *rest)

        def cut(x: Any, value: Quantized) -> Any:
            if self.key not in value.scales:
                return x
            end = within if value.carrier is None else learned
            return end(x, *scales(x, value), spec).astype(x.dtype)

        return self.of(sums, cut)

    def of(
        self, sums: Sums, cut: Callable[[Any, Quantized], Any] = lambda x, _: x
    ) -> Accumulator:
        """A product by its sums; `cut` limits the activation for the derivative."""
        arrays, make = self.value.parts()

        def weight(arrays: Any) -> Quantized:
            return cast(Quantized, make(arrays))

        def floats(x: Any, arrays: Any, *rest: Any) -> Any:
            value = weight(arrays)
            return self._bound(cut(x, value), value.floats(), rest)

        return Accumulator(
            jaxprs.spec(self.equation.outvars[0]),
            (self.x, arrays, *self.rest),
            lambda x, arrays, *rest: sums(x, weight(arrays), *rest),
            floats,
        )

    def _bound(self, x: Any, weight: Any, rest: tuple[Any, ...]) -> Any:
        sides = [weight, x] if self.place == 0 else [x, weight]
        return jaxprs.bind(self.equation, [*sides, *rest])[0]
