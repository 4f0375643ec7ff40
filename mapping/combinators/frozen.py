"""What is not trained."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax

from mapping.captured import join_captured, split_captured
from mapping.combinators.wrapper import Wrapper
from mapping.core import Context, State, Variables, require_variables
from mapping.errors import MissingVariablesError
from mapping.nesting import check_result, check_variables
from mapping.registry import Example, register, spec


def _examples() -> Example:
    from mapping.layers import Dense

    return Example(Frozen(Dense(4) >> jax.nn.tanh), (spec(2, 4),))


@register("combinator", "frozen", examples=_examples)
@dataclasses.dataclass(frozen=True)
class Frozen(Wrapper):
    r"""A mapping whose params are carried, not trained.

    $$ y = f_{\bar\theta}(x), \qquad \partial y / \partial \bar\theta = 0 $$

    Its params move into the state, under `params` beside its own `state`: no
    gradient reaches them, no optimizer decays them or keeps moments for them.
    Gradients still flow through it to what stands before. It runs as in inference,
    its dropout off and its statistics still, unless `train` says otherwise.

    Attributes:
        inner: the mapping.
        train: whether it keeps its training mode (dropout, moving statistics).

    >>> from mapping.layers import Dense
    >>> backbone = Dense(8)
    >>> x = jax.numpy.ones((2, 4))
    >>> trained = backbone.init(jax.random.key(0), x)
    >>> frozen = Frozen(backbone)
    >>> variables = frozen.start(trained)
    >>> variables.params, sorted(variables.state["params"])
    ({}, ['bias', 'kernel'])
    """

    train: bool = False

    def init(self, key: jax.Array, *specs: Any) -> Variables:
        """Initialises the mapping and freezes it."""
        own = self.mapping.init(key, *specs)
        return self.start(check_variables(self.mapping, own))

    def start(self, variables: Variables) -> Variables:
        """Freezes variables that the mapping already has."""
        held = {"params": variables.params, "state": variables.state}
        return Variables({}, {name: tree for name, tree in held.items() if tree})

    def thaw(self, variables: Variables) -> Variables:
        """Gives the mapping its own variables back."""
        held = variables.state
        return Variables(held.get("params", {}), held.get("state", {}))

    def apply(
        self, variables: Variables, *inputs: Any, ctx: Context
    ) -> tuple[Any, State]:
        """Applies the mapping with params that are constants."""
        require_variables(variables, ctx)
        if variables.params:
            raise MissingVariablesError(
                f"{ctx.where} (Frozen): expects its arrays in the state, got params "
                f"{sorted(variables.params)}. Convert them with Frozen(...).start("
                "variables)."
            )
        own = jax.lax.stop_gradient(self.thaw(variables))
        inner = dataclasses.replace(ctx, train=ctx.train and self.train)
        result = self.mapping.apply(own, *inputs, ctx=inner)
        outputs, state = check_result(self.mapping, result, ctx)
        state, seen = split_captured(state)
        held = self.start(Variables(own.params, state)).state
        return outputs, join_captured(held, seen)
