"""Mappings as flax.linen modules."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mapping.core import Context, Mapping, Variables, outline

STATE = "state"
"""The linen collection that a mapping's state is kept in."""


class LinenModule(nn.Module):
    """A mapping, as linen sees it. Made by [`to_linen`][]."""

    mapping: Mapping

    @nn.compact
    def __call__(self, *inputs: Any, train: bool = False) -> Any:
        """Applies the mapping; `train` is linen's usual flag."""
        if self.is_initializing():
            made = self.mapping.init(self.make_rng("params"), *inputs)
        else:
            made, _ = outline(self.mapping, *inputs)
        params = {name: self._param(name, made.params[name]) for name in made.params}
        cells = {
            name: self.variable(STATE, name, lambda own=own: own)
            for name, own in made.state.items()
        }
        state = {name: cell.value for name, cell in cells.items()}
        key = self.make_rng("dropout") if self.has_rng("dropout") else None
        ctx = Context(key, train and not self.is_initializing(), tuple(self.path))
        outputs, changed = self.mapping.apply(
            Variables(params, state), *inputs, ctx=ctx
        )
        if ctx.train:
            for name, cell in cells.items():
                cell.value = changed[name]
        return outputs

    def _param(self, name: str, made: Any) -> Any:
        """Makes the param, or takes it; linen compares the shapes."""

        def start(key: jax.Array) -> Any:
            return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), made)

        return self.param(name, (lambda _: made) if self.is_initializing() else start)


def to_linen(mapping: Mapping, name: str | None = None) -> nn.Module:
    """Makes a flax.linen module of a mapping.

    Its params have the mapping's own names, its state is the collection `state`, its
    randomness comes from the stream `dropout`, and it is called as
    `module.apply(variables, *inputs, train=...)`. Alone, or inside other modules.

    Args:
        mapping: any mapping.
        name: what linen should call it, where it is part of another module.

    >>> from mapping.layers import Dense
    >>> x = jnp.ones((1, 3))
    >>> module = to_linen(Dense(8) >> jax.nn.relu >> Dense(2))
    >>> variables = module.init(jax.random.key(0), x)
    >>> variables["params"]["dense_2"]["kernel"].shape, module.apply(variables, x).shape
    ((8, 2), (1, 2))
    """
    return LinenModule(mapping, name=name)
