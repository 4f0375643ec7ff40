"""Mappings as flax.nnx modules."""

from __future__ import annotations

from typing import Any

import jax
from flax import nnx

from mapping.core import Context, Mapping, Variables, fold_name


class MappingState(nnx.BatchStat):
    """State of a mapping, as nnx sees it."""


class NnxModule(nnx.Module):
    """A mapping, as nnx sees it. Made by [`to_nnx`][]."""

    def __init__(self, mapping: Mapping, variables: Variables, key: jax.Array) -> None:
        self.mapping = mapping
        self.params = nnx.data(jax.tree.map(nnx.Param, variables.params))
        self.state = nnx.data(jax.tree.map(MappingState, variables.state))
        self.rngs = nnx.Rngs(dropout=key)
        self.deterministic = False

    def __call__(self, *inputs: Any) -> Any:
        """Applies the mapping in the module's mode, and keeps its new state."""
        train = not self.deterministic
        ctx = Context(self.rngs.dropout() if train else None, train)
        variables = Variables(_values(self.params), _values(self.state))
        outputs, state = self.mapping.apply(variables, *inputs, ctx=ctx)
        if train:
            jax.tree.map(
                lambda cell, value: cell.set_value(value),
                self.state,
                state,
                is_leaf=_is_variable,
            )
        return outputs

    def set_view(self, deterministic: bool | None = None) -> None:
        """Sets the mode, as `nnx.view` asks for it.

        Args:
            deterministic: whether it is inference.
        """
        if deterministic is not None:
            self.deterministic = deterministic


def to_nnx(mapping: Mapping, key: jax.Array, *specs: Any) -> NnxModule:
    """Makes a flax.nnx module of a mapping.

    Its `nnx.Param`s are in `module.params`, by the mapping's own names; its state is
    `nnx.BatchStat`s in `module.state`. Like other nnx modules it starts in training
    mode; `module.eval()` and `module.train()` set it. Randomness comes from
    `module.rngs.dropout`.

    Args:
        mapping: any mapping.
        key: the variables and the random stream are made from it.
        *specs: inputs, or their shapes.

    >>> from mapping.layers import Dense
    >>> x = jax.numpy.ones((1, 3))
    >>> module = to_nnx(Dense(2), jax.random.key(0), x)
    >>> module.params["kernel"].shape, module(x).shape
    ((3, 2), (1, 2))
    """
    variables = mapping.init(key, *specs)
    return NnxModule(mapping, variables, fold_name(key, "dropout"))


def _values(tree: Any) -> Any:
    return jax.tree.map(lambda cell: cell.get_value(), tree, is_leaf=_is_variable)


def _is_variable(leaf: Any) -> bool:
    return isinstance(leaf, nnx.Variable)
