"""A weight to whose outputs a term is added for each column."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from compiler import jaxprs
from compiler.passes.factorize.symbolic import Symbolic
from compiler.passes.quantize.rounding.accompanied import Accompanied, spread


@dataclasses.dataclass(frozen=True, eq=False)
class Biased(Accompanied):
    """Stands for `array`; at a product `beside` is added to what it gives."""

    def alone(self) -> Any:
        """The weight."""
        return self.array

    def multiplied(self, equation: jaxprs.Equation | None) -> None:
        """Nothing is lost where the weight is used in another way."""

    def met(
        self, equation: jaxprs.Equation, operands: Sequence[Any], place: int
    ) -> list[Any] | None:
        """The product with the terms added."""
        own, made = _produced(equation, place)
        terms = self.along(own)
        if terms is None or isinstance(operands[1 - place], Symbolic):
            return None
        pair = [*operands]
        pair[place] = self.weight()
        (result,) = jaxprs.bind(equation, pair)
        self.report.read(self.path, result, self.layout(own))
        return [result + spread(terms.astype(result.dtype), made, result.shape)]


def _produced(
    equation: jaxprs.Equation, place: int
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The axes that a weight and the result have in common, of each of them."""
    params = equation.params
    if equation.primitive.name != "dot_general":
        numbers = params["dimension_numbers"]
        return (numbers.rhs_spec[0],), (numbers.out_spec[1],)
    contracted, batched = params["dimension_numbers"]
    free = [
        [i for i in range(len(var.aval.shape)) if i not in (*summed, *shared)]
        for var, summed, shared in zip(
            equation.invars, contracted, batched, strict=True
        )
    ]
    first = len(batched[0]) + (len(free[0]) if place == 1 else 0)
    own = (*batched[place], *free[place])
    count = range(first, first + len(free[place]))
    return own, (*range(len(batched[0])), *count)
