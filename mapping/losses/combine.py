"""Several losses as one."""

from __future__ import annotations

import dataclasses
from typing import Any, Self

import jax

from mapping.combinators import Serial, as_mapping
from mapping.core import (
    Context,
    Mapping,
    State,
    Variables,
    call,
    describe,
    fold_name,
    init,
)
from mapping.errors import FieldError, ShapeMismatchError
from mapping.losses.loss import check_number
from mapping.nesting import gather
from mapping.registry import Example, register, spec


def _example() -> Example:
    from mapping.losses.regression import MeanAbsoluteError, MeanSquaredError

    combined = Combine((1.0, MeanSquaredError()), (0.1, MeanAbsoluteError()))
    return Example(combined, (spec(4, 3), spec(4, 3)), batched=False)


@register("loss", "combine", examples=_example)
@dataclasses.dataclass(frozen=True, init=False)
class Combine(Mapping):
    r"""A weighted sum of losses of the same inputs.

    $$ \ell = \sum_k w_k \ell_k $$

    Inputs go to every loss as they are. Losses are named after their kind, as the
    steps of a `Serial` are. Their reductions have to give one shape.

    Attributes:
        terms: pairs of a weight, >= 0, and a loss (a mapping or a function).

    Raises:
        FieldError: if a term is no such pair.
        ShapeMismatchError: if the losses are of different shapes.

    >>> import jax.numpy as jnp
    >>> from mapping.losses import MeanAbsoluteError, MeanSquaredError
    >>> loss = Combine((1.0, MeanSquaredError()), (0.5, MeanAbsoluteError()))
    >>> float(loss({}, jnp.array([3.0]), jnp.array([1.0])))
    5.0
    """

    terms: tuple[tuple[float, Mapping], ...]

    def __init__(self, *terms: Any) -> None:
        for term in terms:
            if not isinstance(term, tuple) or len(term) != 2:
                raise FieldError(
                    f"Combine.terms: expected pairs of a weight and a loss, got "
                    f"{term!r}. Write Combine((1.0, loss), (0.1, other))."
                )
        pairs = tuple((weight, as_mapping(loss)) for weight, loss in terms)
        object.__setattr__(self, "terms", pairs)
        self.__post_init__()

    def __post_init__(self) -> None:
        if not self.terms:
            raise FieldError("Combine.terms: expected a loss at least, got none.")
        for number, (weight, _) in enumerate(self.terms):
            check_number(weight, f"Combine.terms[{number}]", 0)

    @classmethod
    def from_fields(cls, *, terms: tuple[tuple[float, Mapping], ...]) -> Self:
        """Builds it from its terms."""
        return cls(*terms)

    def init(self, key: jax.Array, *specs: Any) -> Variables:
        """Initialises every loss."""
        return gather(
            {
                name: init(name, loss, fold_name(key, name), *specs)
                for name, _, loss in self._named()
            }
        )

    def apply(
        self, variables: Variables, *inputs: Any, ctx: Context
    ) -> tuple[jax.Array, State]:
        """Takes what each of the losses takes."""
        values, new_state = [], dict(variables.state)
        for name, weight, loss in self._named():
            value, state = call(name, loss, variables, *inputs, ctx=ctx)
            values.append(value * weight)
            if state:
                new_state[name] = state
        if any(value.shape != values[0].shape for value in values):
            raise ShapeMismatchError(
                f"{ctx.where} (Combine): expected losses of one shape, got "
                f"{describe(values)}. Give them one reduction."
            )
        return sum(values[1:], start=values[0]), new_state

    def _named(self) -> list[tuple[str, float, Mapping]]:
        steps = Serial(*(loss for _, loss in self.terms))
        return [
            (name, weight, loss)
            for name, (weight, loss) in zip(steps.names, self.terms, strict=True)
        ]
