"""Trees of arrays, addressed by path: select, change, split, join."""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Callable
from typing import Any

import jax

from mapping.core import Tree, leaf_paths, path_string
from mapping.errors import UnknownPathError
from mapping.paths import nearest


def matches(glob: str, path: str) -> bool:
    """Whether `glob` names `path`; `*` also crosses `/`.

    >>> matches("encoder/*/kernel", "encoder/block/query/kernel")
    True
    """
    return fnmatch.fnmatchcase(path, glob)


@dataclasses.dataclass(frozen=True)
class Selection:
    """Some leaves of a tree. Made by `select(tree).at(glob)`.

    Attributes:
        tree: the whole tree; it is never changed in place.
        paths: the selected leaves, in the tree's order.
    """

    tree: Tree
    paths: tuple[str, ...]

    def at(self, *globs: str) -> Selection:
        """Narrows the selection to the leaves that any of the globs names.

        Raises:
            UnknownPathError: if a glob names none of them.
        """
        for glob in globs:
            if not any(matches(glob, path) for path in self.paths):
                raise UnknownPathError(
                    f"{glob}: names none of {len(self.paths)} leaves. Nearest: "
                    f"{nearest(glob, self.paths)}."
                )
        kept = [p for p in self.paths if any(matches(g, p) for g in globs)]
        return Selection(self.tree, tuple(kept))

    def count(self) -> int:
        """How many leaves are selected."""
        return len(self.paths)

    def leaves(self) -> dict[str, Any]:
        """The selected leaves by path."""
        everything = leaf_paths(self.tree)
        return {path: everything[path] for path in self.paths}

    def apply(self, function: Callable[[Any], Any]) -> Tree:
        """Returns the tree with `function` applied to each selected leaf."""
        chosen = set(self.paths)
        return jax.tree_util.tree_map_with_path(
            lambda path, x: function(x) if path_string(path) in chosen else x,
            self.tree,
        )

    def set(self, value: Any) -> Tree:
        """Returns the tree with each selected leaf replaced by `value`."""
        return self.apply(lambda _: value)

    def mask(self) -> Tree:
        """Returns a tree of booleans, true where selected (what optax.masked takes)."""
        chosen = set(self.paths)
        return jax.tree_util.tree_map_with_path(
            lambda path, _: path_string(path) in chosen, self.tree
        )


def select(tree: Tree) -> Selection:
    """Selects every leaf of a tree; narrow it with `.at(glob)`.

    >>> params = {"body": {"kernel": 1.0, "bias": 2.0}, "head": {"kernel": 3.0}}
    >>> select(params).at("*/kernel").apply(lambda x: -x)
    {'body': {'bias': 2.0, 'kernel': -1.0}, 'head': {'kernel': -3.0}}
    >>> select(params).at("body/kernle")
    Traceback (most recent call last):
    ...
    mapping.errors.UnknownPathError: body/kernle: names none of 3 leaves. Nearest:
    body/kernel, head/kernel, body/bias.
    """
    return Selection(tree, tuple(leaf_paths(tree)))
