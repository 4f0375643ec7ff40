"""Partial trees, joined."""

from __future__ import annotations

from typing import Any

import jax

from mapping.core import Tree, describe, path_string
from mapping.errors import MergeError


def merge(first: Tree, *others: Tree) -> Tree:
    """Joins trees that hold different leaves; the inverse of `partition`.

    None stands for what a tree does not hold, a leaf or a whole branch; dicts may
    also hold different keys.

    Raises:
        MergeError: if two hold the same leaf, or different nodes in one place.

    >>> from mapping.tree import select
    >>> merge(*select({"kernel": 1.0, "bias": 2.0}).at("bias").partition())
    {'bias': 2.0, 'kernel': 1.0}
    >>> merge({"body": {"kernel": 1.0}}, {"head": {"kernel": 3.0}})
    {'body': {'kernel': 1.0}, 'head': {'kernel': 3.0}}
    >>> merge({"kernel": 1.0}, {"kernel": 2.0})
    Traceback (most recent call last):
    ...
    mapping.errors.MergeError: kernel: expected one tree that holds it, got 2. ...
    """
    return _joined((), (first, *others))


def _joined(path: tuple[Any, ...], parts: tuple[Any, ...]) -> Any:
    parts = tuple(part for part in parts if part is not None)
    if len(parts) < 2:
        return parts[0] if parts else None
    if all(type(part) is dict for part in parts):
        names = dict.fromkeys(name for part in parts for name in part)
        return {
            name: _joined(
                (*path, jax.tree_util.DictKey(name)),
                tuple(part.get(name) for part in parts),
            )
            for name in names
        }
    levels = [_one_level(part) for part in parts]
    (children, structure), others = levels[0], levels[1:]
    if any(level[0] and not level[0][0][0] for level in levels):  # it is its own leaf
        _refuse_leaves(path, parts)
    if any(other[1] != structure for other in others):
        raise MergeError(
            f"{_name(path)}: expected one kind of node, got "
            f"{', '.join(str(level[1]) for level in levels)}. Merge trees of one "
            "structure, with None for what is missing."
        )
    joined = [
        _joined((*path, *name), (child, *(other[0][i][1] for other in others)))
        for i, (name, child) in enumerate(children)
    ]
    return jax.tree.unflatten(structure, joined)


def _one_level(node: Any) -> tuple[Any, Any]:
    return jax.tree_util.tree_flatten_with_path(node, is_leaf=lambda x: x is not node)


def _refuse_leaves(path: tuple[Any, ...], parts: tuple[Any, ...]) -> None:
    raise MergeError(
        f"{_name(path)}: expected one tree that holds it, got {len(parts)}. They hold "
        f"{'; '.join(describe(part) for part in parts)}. Put None into all but one."
    )


def _name(path: tuple[Any, ...]) -> str:
    return path_string(path) or "(root)"
