"""What an equinox module is made of, and where everything in it is."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax

from mapping.core import State, Variables, initialising
from mapping.errors import MissingVariablesError
from mapping.interop.trees import (
    Names,
    Valued,
    Values,
    find,
    is_array,
    is_floating,
    names,
    nest,
)


class EquinoxInstance(Valued):
    """A module that exists, as a value: what an `Equinox` may start from.

    Args:
        module: the module.
        state: its own; taken out of the module if it is still there.
    """

    def __init__(self, module: eqx.Module, state: eqx.nn.State | None = None) -> None:
        if state is None:
            module, state = with_state(lambda: module)
        self.kind = type(module).__name__
        self._leaves, self._tree = jax.tree.flatten((module, state))
        arrays = Values(leaf for leaf in self._leaves if is_array(leaf))
        self._leaves = [_ARRAY if is_array(leaf) else leaf for leaf in self._leaves]
        self.value = (self._tree, tuple(self._leaves), arrays)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self()

    def __call__(self) -> tuple[eqx.Module, eqx.nn.State]:
        """Makes the module and its state again."""
        arrays = iter(self.value[-1].restore())
        leaves = [next(arrays) if leaf is _ARRAY else leaf for leaf in self._leaves]
        return jax.tree.unflatten(self._tree, leaves)


_ARRAY = "(array)"


@dataclasses.dataclass(frozen=True)
class Plan:
    """Where everything is among the leaves of (module, state).

    Attributes:
        kind: the module's class name.
        tree: what the leaves are of.
        leaves: the leaves, with shapes for arrays.
        params: the names of the floating arrays, by number.
        state: those of the other arrays, and of the leaves of the state.
        stateful: whether there is an `eqx.nn.State`.
    """

    kind: str
    tree: Any
    leaves: tuple[Any, ...]
    params: dict[int, Names]
    state: dict[int, Names]
    stateful: bool

    def build(self, variables: Variables, where: str) -> tuple[Any, eqx.nn.State]:
        """Makes the module and its state with these arrays."""
        leaves = list(self.leaves)
        for i, path in self.params.items():
            leaves[i] = find(variables.params, path, where)
        for i, path in self.state.items():
            leaves[i] = find(variables.state, path, where)
        return jax.tree.unflatten(self.tree, leaves)

    def new_state(self, old: State, state: eqx.nn.State, where: str) -> State:
        """Reads the state that the call left behind."""
        moved = jax.tree.leaves(state)
        first = len(self.leaves) - len(moved)
        return nest(
            (path, moved[i - first] if i >= first else find(old, path, where))
            for i, path in self.state.items()
        )


def plan_for(make: Callable[[Any], tuple[Any, eqx.nn.State]]) -> Plan:
    """Makes the plan of what `make(key)` makes, computing nothing."""
    key = jax.ShapeDtypeStruct((), jax.random.key(0).dtype)
    module, state = eqx.filter_eval_shape(make, key)
    leaves, tree = jax.tree.flatten((module, state))
    paths = [names(path) for path, _ in jax.tree_util.tree_leaves_with_path(module)]
    floating = {i: p for i, p in enumerate(paths) if is_floating(leaves[i])}
    other = {
        i: p for i, p in enumerate(paths) if is_array(leaves[i]) and i not in floating
    }
    return Plan(
        kind=type(module).__name__,
        tree=tree,
        leaves=tuple(leaves),
        params=floating,
        state=other | _indices(module, state, len(paths)),
        stateful=bool(jax.tree.leaves(state)),
    )


def _indices(module: Any, state: eqx.nn.State, first: int) -> dict[int, Names]:
    """Names each leaf of the state by the attribute that is its index."""
    count, tree = len(jax.tree.leaves(state)), jax.tree.structure(state)
    numbered = jax.tree.unflatten(tree, range(first, first + count))
    found = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(module, is_leaf=_is_index):
        if _is_index(leaf):
            value = numbered.get(leaf)
            for inner, i in jax.tree_util.tree_leaves_with_path(value):
                found[i] = (*names(path), *names(inner))
    return found


def _is_index(leaf: Any) -> bool:
    return isinstance(leaf, eqx.nn.StateIndex)


def with_state(make: Callable[[], Any]) -> tuple[Any, eqx.nn.State]:
    """Makes a module and takes its state out of it."""
    try:
        return eqx.nn.make_with_state(make)()
    except ValueError as error:
        if "make_with_state" not in str(error):
            raise
        raise MissingVariablesError(
            f"{initialising().where} (Equinox): expected a module with its state, got "
            "one whose state was taken out. Use Equinox.of(module, state)."
        ) from error
