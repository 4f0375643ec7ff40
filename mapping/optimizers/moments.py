"""An optimizer's moments as a mapping's state: nested dicts of arrays, by path."""

from __future__ import annotations

from typing import Any

import jax

from mapping.core import Context, State, leaf_paths, path_string
from mapping.errors import MissingVariablesError

_ALONE = "moment"
"""The name of a state that is one bare array."""


def as_state(moments: Any) -> State:
    """Writes optax's tuples as nested dicts, with the same paths.

    >>> import jax.numpy as jnp, optax
    >>> as_state(optax.sgd(0.1, momentum=0.9).init({"w": jnp.zeros(1)}))
    {'0': {'trace': {'w': Array([0.], dtype=float32)}}}
    """
    state: dict[str, Any] = {}
    for path, leaf in leaf_paths(moments).items():
        *above, name = (path or _ALONE).split("/")
        node = state
        for step in above:
            node = node.setdefault(step, {})
        node[name] = leaf
    return state


def as_moments(structure: Any, state: State, ctx: Context) -> Any:
    """Reads them back into optax's tuples.

    Args:
        structure: the moments' shapes, as optax has them.
        state: what [`as_state`][] wrote.
        ctx: for messages.

    Raises:
        MissingVariablesError: if a moment is not there.
    """
    leaves = leaf_paths(state)

    def find(path: tuple[Any, ...], _: Any) -> Any:
        name = path_string(path) or _ALONE
        if name not in leaves:
            raise MissingVariablesError(
                f"{ctx.where}: expected the moment {name}, got none. Pass the "
                "Variables that init returned for these params."
            )
        return leaves[name]

    return jax.tree_util.tree_map_with_path(find, structure)
