"""How much of each leaf is kept, so that a share of them all is."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping as Dict
from typing import TypeAlias

from mapping.optimizers.rules import check_globs, label
from mapping.registry import register
from mapping.sparse.largest import Array
from mapping.sparse.masks import check_share
from mapping.sparse.shares import by_shape

Shapes: TypeAlias = "dict[str, tuple[int, ...]]"
"""The shapes of the leaves that are made sparse, by path."""


@register("value", "sparse_uniform")
@dataclasses.dataclass(frozen=True)
class Uniform:
    """The same share of each leaf. Made by [`uniform`][].

    Subclass it for a distribution of your own.
    """

    joins = False  # whether there is one threshold for all leaves

    def densities(self, shapes: Shapes, density: Array) -> dict[str, Array]:
        """The share kept of each leaf, by path.

        Args:
            shapes: by path.
            density: the share kept of all, a number or a traced float32.
        """
        return dict.fromkeys(shapes, density)


def uniform() -> Uniform:
    """Keeps the same share of each leaf.

    >>> uniform().densities({"a": (2, 2), "b": (4, 4)}, 0.25)
    {'a': 0.25, 'b': 0.25}
    """
    return Uniform()


@register("value", "sparse_global")
@dataclasses.dataclass(frozen=True)
class Global(Uniform):
    """One threshold for all leaves. Made by [`global_`][]."""

    joins = True


def global_() -> Global:
    """Keeps the largest scores wherever they are: leaves compete with each other.

    A leaf of small weights may lose all of them.

    >>> global_()
    Global()
    """
    return Global()


@register("value", "sparse_erk")
@dataclasses.dataclass(frozen=True)
class Erk(Uniform):
    """More of small leaves than of large ones. Made by [`erk`][]."""

    def densities(self, shapes: Shapes, density: Array) -> dict[str, Array]:
        """Proportional to the sum of the shape over its product, at most 1."""
        return by_shape(shapes, density)


def erk() -> Erk:
    r"""Keeps more of small leaves: the Erdős–Rényi-Kernel distribution.

    $$ d_l = \min\left(1,\; \epsilon\, \frac{\sum_i n^l_i}{\prod_i n^l_i}\right) $$

    for a leaf of shape $n^l$, with the $\epsilon$ at which all leaves together keep
    the density. Evci et al., "Rigging the Lottery", 2020,
    https://arxiv.org/abs/1911.11134; for dense layers Mocanu et al., 2018.

    >>> kept = erk().densities({"small": (2, 8), "large": (32, 32)}, 0.25)
    >>> {path: round(float(share), 3) for path, share in kept.items()}
    {'small': 1.0, 'large': 0.238}
    """
    return Erk()


@register("value", "sparse_by_path")
@dataclasses.dataclass(frozen=True)
class ByPath(Uniform):
    """Each leaf as a rule says. Made by [`by_path`][].

    Attributes:
        rules: pairs of a glob and a share of the sparsity.
    """

    rules: tuple[tuple[str, float], ...] = ()

    def __post_init__(self) -> None:
        check_globs([glob for glob, _ in self.rules], "by_path")
        for glob, share in self.rules:
            check_share(share, f"by_path[{glob!r}]")

    def densities(self, shapes: Shapes, density: Array) -> dict[str, Array]:
        """One less that share of the sparsity."""
        rules = dict(self.rules)
        globs = label(dict.fromkeys(shapes, 0), [*rules], "by_path")
        return {path: 1 - rules[globs[path]] * (1 - density) for path in shapes}


def by_path(rules: Dict[str, float]) -> ByPath:
    """Makes each leaf as sparse as the first rule says whose glob names it.

    Args:
        rules: by glob, the leaf's sparsity over that of the schedule, from 0 to 1:
            with a schedule that ends at 1, the sparsity itself.

    Raises:
        UnknownPathError: when it meets a leaf that no rule names, or a rule that
            names none.

    >>> by_path({"head/*": 0.5, "*": 1.0}).densities({"head/a": (2,), "b": (2,)}, 0.2)
    {'head/a': 0.6, 'b': 0.19999999999999996}
    """
    return ByPath(tuple(rules.items()))
