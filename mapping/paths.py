"""Paths: how a leaf of a tree is named, everywhere."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any, TypeAlias

import jax

Tree: TypeAlias = Any
"""Any JAX pytree."""


def leaf_paths(tree: Tree) -> dict[str, Any]:
    """Lists the leaves of a tree by path, in the tree's own order.

    >>> leaf_paths({"dense": {"kernel": 1, "bias": 2}})
    {'dense/bias': 2, 'dense/kernel': 1}
    """
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {path_string(path): leaf for path, leaf in leaves}


def path_string(path: tuple[Any, ...]) -> str:
    """Writes a JAX key path as names joined by `/`.

    >>> leaves, _ = jax.tree_util.tree_flatten_with_path({"a": [1]})
    >>> path_string(leaves[0][0])
    'a/0'
    """
    return jax.tree_util.keystr(path, simple=True, separator="/")


def describe(value: Tree) -> str:
    """Writes the dtypes and shapes of a value, for messages.

    >>> describe(jax.ShapeDtypeStruct((32, 8), "float32"))
    'float32[32, 8]'
    """

    def one(leaf: Any) -> str:
        if not hasattr(leaf, "shape"):
            return type(leaf).__name__
        return f"{leaf.dtype}{list(leaf.shape)}"

    leaves = jax.tree.leaves(value)
    return one(leaves[0]) if len(leaves) == 1 else f"({', '.join(map(one, leaves))})"


def nearest(path: str, known: Iterable[str]) -> str:
    """Lists the known names most like `path`, for error messages."""
    known = list(known)
    close = difflib.get_close_matches(path, known, n=3, cutoff=0.4) or known[:3]
    return ", ".join(close) or "(none)"
