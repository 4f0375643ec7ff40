"""Mappings as equinox modules."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax

from mapping.core import Context, Mapping, Params, Variables
from mapping.errors import MissingVariablesError


class EquinoxModule(eqx.Module):
    """A mapping with its arrays, as equinox sees it. Made by [`to_equinox`][]."""

    mapping: Mapping = eqx.field(static=True)
    params: Params
    state: eqx.nn.StateIndex | None
    inference: bool

    def __init__(self, mapping: Mapping, variables: Variables) -> None:
        self.mapping = mapping
        self.params = variables.params
        stateful = bool(jax.tree.leaves(variables.state))
        self.state = eqx.nn.StateIndex(variables.state) if stateful else None
        self.inference = False

    def __call__(self, *inputs: Any, key: jax.Array | None = None) -> Any:
        """Returns the outputs; with state as the last input, `(outputs, state)`."""
        ctx = Context(key, train=not self.inference)
        if self.state is None:
            return self.mapping.apply(Variables(self.params), *inputs, ctx=ctx)[0]
        state = inputs[-1] if inputs else None
        if not isinstance(state, eqx.nn.State):
            raise MissingVariablesError(
                f"({self.mapping.kind}): expects its eqx.nn.State as the last input, "
                f"got {type(state).__name__}. Make both with model, state = "
                "eqx.nn.make_with_state(to_equinox)(mapping, variables)."
            )
        variables = Variables(self.params, state.get(self.state))
        outputs, changed = self.mapping.apply(variables, *inputs[:-1], ctx=ctx)
        return outputs, state.set(self.state, changed) if ctx.train else state


def to_equinox(mapping: Mapping, variables: Variables) -> EquinoxModule:
    """Makes an equinox module of a mapping and its variables.

    It takes whole batches, as the mapping does: no `jax.vmap` is needed. Like other
    equinox modules it starts in training mode, which `eqx.nn.inference_mode` ends, and
    takes `key=`. A mapping with state is made and called as equinox has it:

        model, state = eqx.nn.make_with_state(to_equinox)(mapping, variables)
        outputs, state = model(x, state, key=key)

    Args:
        mapping: any mapping.
        variables: its own.

    >>> from mapping.layers import Dense
    >>> x = jax.numpy.ones((1, 3))
    >>> model = to_equinox(Dense(2), Dense(2).init(jax.random.key(0), x))
    >>> model(x).shape
    (1, 2)
    """
    return EquinoxModule(mapping, variables)
