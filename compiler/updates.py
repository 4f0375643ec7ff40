"""What a function returns of its variables, to be given to it again.

A training step returns the params and moments it was given, moved; a model in training
its statistics. Such leaves mean something to the caller, so no pass may replace them by
what is computed from them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax


def returned(variables: Any, outputs: Any) -> set[Any]:
    """The leaves of variables whose tree is found again among the outputs.

    A tree is found again if a part of the outputs has its structure and its leaves'
    shapes and dtypes. A lone leaf is not told from any other array of its shape.

    Args:
        variables: a tree of typed variables of a jaxpr.
        outputs: another.

    >>> w, b = jax.ShapeDtypeStruct((2,), "float32"), jax.ShapeDtypeStruct((), "int32")
    >>> returned({"w": w, "b": b}, (b, {"w": w, "b": b})) == {w, b}
    True
    >>> returned({"w": w, "b": b}, {"w": w})
    set()
    """
    there = {_signature(node) for node in _nodes(outputs)}

    def find(tree: Any) -> Iterator[Any]:
        if jax.tree.leaves(tree) and _signature(tree) in there:
            yield from jax.tree.leaves(tree)
        else:
            for child in _children(tree):
                yield from find(child)

    return set(find(variables)) if there else set()


def _nodes(tree: Any) -> Iterator[Any]:
    """Every inner node of a tree."""
    children = _children(tree)
    if children:
        yield tree
    for child in children:
        yield from _nodes(child)


def _children(tree: Any) -> list[Any]:
    """What a node holds; nothing for a leaf."""
    children = jax.tree.leaves(tree, is_leaf=lambda node: node is not tree)
    return [] if len(children) == 1 and children[0] is tree else children


def _signature(tree: Any) -> Any:
    leaves, structure = jax.tree.flatten(tree)
    types = [getattr(leaf, "aval", leaf) for leaf in leaves]
    return structure, tuple((t.shape, str(t.dtype)) for t in types)
