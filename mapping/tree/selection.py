"""Some leaves of a tree: listed, changed, masked, split off."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterable
from typing import Any, ClassVar, Self

import jax

from mapping.core import Mapping, Tree, leaf_paths, path_string
from mapping.errors import UnknownPathError
from mapping.paths import nearest
from mapping.tree.selector import Selector, matcher


@dataclasses.dataclass(frozen=True)
class Selection:
    """Some leaves of a tree. Made by `select(tree).at(...)`.

    Attributes:
        tree: the whole tree; it is never changed in place.
        paths: the selected leaves, in the tree's order.
    """

    tree: Tree
    paths: tuple[str, ...]
    leaves_are: ClassVar[str] = "leaves"

    def everything(self) -> dict[str, Any]:
        """Every leaf of the tree by path, selected or not."""
        return leaf_paths(self.tree)

    def at(self, *selectors: Selector) -> Self:
        """Narrows the selection to the leaves that any of the selectors names.

        Args:
            *selectors: globs of paths (`*` also crosses `/`); types, by `isinstance`;
                dtypes, scalar types such as `jnp.floating` included; or predicates of
                `leaf` or of `path, leaf`.

        Raises:
            UnknownPathError: if a glob names none of them.
            SelectorError: if one is none of these.

        >>> params = {"body": {"kernel": 1.0, "bias": 2.0}, "head": {"kernel": 3.0}}
        >>> select(params).at("head/*").leaves()
        {'head/kernel': 3.0}
        >>> select(params).at(lambda path, leaf: leaf < 3).paths
        ('body/bias', 'body/kernel')
        """
        chosen = self._named(selectors)
        return self._narrowed(path for path in self.paths if path in chosen)

    def without(self, *selectors: Selector) -> Self:
        """Narrows the selection to the leaves that none of the selectors names.

        >>> select({"kernel": 1.0, "bias": 2.0}).without("bias").paths
        ('kernel',)
        """
        chosen = self._named(selectors)
        return self._narrowed(path for path in self.paths if path not in chosen)

    def count(self) -> int:
        """How many leaves are selected."""
        return len(self.paths)

    def leaves(self) -> dict[str, Any]:
        """The selected leaves by path."""
        everything = self.everything()
        return {path: everything[path] for path in self.paths}

    def apply(self, function: Callable[[Any], Any]) -> Tree:
        """Returns the tree with `function` applied to each selected leaf."""
        return self._mapped(lambda chosen, leaf: function(leaf) if chosen else leaf)

    def set(self, value: Any) -> Tree:
        """Returns the tree with each selected leaf replaced by `value`."""
        return self.apply(lambda _: value)

    def mask(self) -> Tree:
        """Returns a tree of booleans, true where selected (what optax.masked takes)."""
        return self._mapped(lambda chosen, _: chosen)

    def partition(self) -> tuple[Tree, Tree]:
        """Splits the tree in two: the selected leaves, and the rest.

        Both keep the whole tree's nodes, with None in place of the other's leaves:
        no leaf at all to `jax.grad` and optax. [`merge`][mapping.tree.merge] joins
        them again.

        >>> select({"kernel": 1.0, "bias": 2.0}).at("bias").partition()
        ({'bias': 2.0, 'kernel': None}, {'bias': None, 'kernel': 1.0})
        """
        selected = self._mapped(lambda chosen, leaf: leaf if chosen else None)
        rest = self._mapped(lambda chosen, leaf: None if chosen else leaf)
        return selected, rest

    def _mapped(self, function: Callable[[bool, Any], Any]) -> Tree:
        chosen = set(self.paths)
        return jax.tree_util.tree_map_with_path(
            lambda path, leaf: function(path_string(path) in chosen, leaf), self.tree
        )

    def _narrowed(self, paths: Iterable[str]) -> Self:
        return dataclasses.replace(self, paths=tuple(paths))

    def _named(self, selectors: tuple[Selector, ...]) -> Collection[str]:
        """The selected paths that any of the selectors names."""
        leaves = self.leaves()
        named: dict[str, Any] = {}
        for selector in selectors:
            match = matcher(selector)
            found = {path: leaf for path, leaf in leaves.items() if match(path, leaf)}
            if isinstance(selector, str) and not found:
                raise UnknownPathError(
                    f"{selector}: names none of {len(leaves)} {self.leaves_are}. "
                    f"Nearest: {nearest(selector, leaves)}."
                )
            named |= found
        return named


def select(tree: Tree) -> Selection:
    """Selects every leaf of a tree, or every mapping nested in a mapping.

    Narrow it with `.at(...)` and `.without(...)`; then `.count()`, `.leaves()`,
    `.set(value)`, `.apply(function)`, and of a tree `.mask()` and `.partition()`.

    Args:
        tree: params, `Variables`, an optimizer's state, any pytree; or a mapping
            (see [`Nested`][mapping.tree.Nested]).

    >>> params = {"body": {"kernel": 1.0, "bias": 2.0}, "head": {"kernel": 3.0}}
    >>> select(params).at("*/kernel").apply(lambda x: -x)
    {'body': {'bias': 2.0, 'kernel': -1.0}, 'head': {'kernel': -3.0}}
    >>> select(params).at("body/kernle")
    Traceback (most recent call last):
    ...
    mapping.errors.UnknownPathError: body/kernle: names none of 3 leaves. Nearest:
    body/kernel, head/kernel, body/bias.
    """
    if isinstance(tree, Mapping):
        from mapping.tree.surgery import Nested

        return Nested.of(tree)
    return Selection(tree, tuple(leaf_paths(tree)))
