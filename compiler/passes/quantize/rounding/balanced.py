"""A weight whose inputs are divided by what its rows have been multiplied by."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp

from compiler import jaxprs
from compiler.passes.factorize.symbolic import Marked, Symbolic
from compiler.passes.quantize.arithmetic.views import VIEWS
from compiler.passes.quantize.rounding.accompanied import Accompanied, spread


@dataclasses.dataclass(frozen=True, eq=False)
class Balanced(Accompanied):
    """Stands for `array * beside`; at a product `beside` goes to the other operand."""

    def alone(self) -> Any:
        """The weight as it was, as the leaf has it."""
        return self.array * jnp.broadcast_to(self.beside, self.array.shape)

    def met(
        self, equation: jaxprs.Equation, operands: Sequence[Any], place: int
    ) -> list[Any] | None:
        """The product with its inputs divided."""
        axes = _common(equation, place)
        inverse = None if axes is None else self.along(axes[0])
        if axes is None or inverse is None:
            return None
        x, pair = operands[1 - place], [self.weight()] * 2
        if isinstance(x, Divided):
            self.report.divided.add(self.path)
            pair[1 - place] = x.array
            return jaxprs.bind(equation, pair)
        if isinstance(x, Symbolic) or not jnp.issubdtype(x.dtype, jnp.floating):
            return None
        order = sorted(zip(axes[1], axes[0], strict=True))
        layout = self.layout([own for _, own in order])
        self.report.read(self.path, x, (tuple(sorted(axes[1])), layout))
        pair[1 - place] = x * spread(inverse.astype(x.dtype), axes[1], x.shape)
        return jaxprs.bind(equation, pair)


class Divisor(Marked):
    """An inverse that an earlier pass has put in."""

    def through(
        self, equation: jaxprs.Equation, operands: Sequence[Any], place: int
    ) -> list[Any] | None:
        """Marks what it is multiplied with."""
        kind = {"mul": Divided}.get(equation.primitive.name)
        if equation.primitive.name in (*VIEWS, "dynamic_slice") and place == 0:
            kind = type(self)
        if kind is None:
            return None
        arrays = [o.dense() if isinstance(o, Symbolic) else o for o in operands]
        return [kind(array) for array in jaxprs.bind(equation, arrays)]


class Divided(Divisor):
    """Inputs that an earlier pass has divided."""


def _common(
    equation: jaxprs.Equation, place: int
) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """The axes a weight has in common with the other operand, of each of them."""
    params = equation.params
    if equation.primitive.name == "dot_general":
        contracted, batched = params["dimension_numbers"]
        own, others = ((*batched[i], *contracted[i]) for i in (place, 1 - place))
        return own, others
    if params["feature_group_count"] * params["batch_group_count"] > 1:
        return None
    numbers = params["dimension_numbers"]
    return (numbers.rhs_spec[1],), (numbers.lhs_spec[1],)
