"""What goes round a mapping."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax

from mapping.combinators.join import joined
from mapping.combinators.lift import as_mapping
from mapping.combinators.wrapper import Wrapper
from mapping.core import (
    Context,
    Mapping,
    State,
    Variables,
    call,
    fold_name,
    init,
    require_variables,
)
from mapping.nesting import gather
from mapping.registry import Example, register, spec


def _examples() -> tuple[Example, ...]:
    from mapping.layers import Dense

    return (
        Example(Residual(Dense(4) >> jax.nn.tanh), (spec(2, 4),)),
        Example(Residual(Dense(3), shortcut=Dense(3)), (spec(2, 4),)),
    )


@register("combinator", "residual", examples=_examples)
@dataclasses.dataclass(frozen=True)
class Residual(Wrapper):
    r"""Adds a mapping's output to its input.

    $$ y = s(x) + f(x) $$

    with $s$ the shortcut, the identity by default. Further inputs (a mask) go to
    $f$ alone. Variables are under `inner` and `shortcut`.

    He et al., "Deep Residual Learning", 2015, https://arxiv.org/abs/1512.03385.

    Attributes:
        inner: the mapping f.
        shortcut: what the input goes through on its way round, such as a dense
            layer or a 1x1 convolution where shapes change.

    >>> Residual(jax.numpy.exp)({}, jax.numpy.zeros(2)).tolist()
    [1.0, 1.0]
    """

    shortcut: Mapping | Callable[..., Any] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.shortcut is not None:
            object.__setattr__(self, "shortcut", as_mapping(self.shortcut))

    def init(self, key: jax.Array, *specs: Any) -> Variables:
        """Initialises the mapping, and the shortcut for the first input."""
        children = {
            "inner": init("inner", self.mapping, fold_name(key, "inner"), *specs)
        }
        if self.shortcut is not None:
            own, shortcut = fold_name(key, "shortcut"), as_mapping(self.shortcut)
            children["shortcut"] = init("shortcut", shortcut, own, specs[0])
        return gather(children)

    def apply(
        self, variables: Variables, *inputs: Any, ctx: Context
    ) -> tuple[Any, State]:
        """Adds both ways."""
        require_variables(variables, ctx)
        new_state, around = dict(variables.state), inputs[0]
        if self.shortcut is not None:
            shortcut = as_mapping(self.shortcut)
            around, state = call("shortcut", shortcut, variables, around, ctx=ctx)
            if state:
                new_state["shortcut"] = state
        output, state = call("inner", self.mapping, variables, *inputs, ctx=ctx)
        if state:
            new_state["inner"] = state
        return joined("sum", (around, output), ("shortcut", "inner"), ctx), new_state
