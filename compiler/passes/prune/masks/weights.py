"""Which leaves can have zeros put into them, and as which matrices."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from compiler import jaxprs
from compiler.graph import Graph, Leaf
from compiler.passes.quantize.physical import parts
from compiler.sites import WeightSite

_ADAPTERS = ("/lora_a", "/lora_b")


@dataclasses.dataclass(frozen=True)
class Weight:
    """A leaf as a stack of matrices: its axes by what its first product does with them.

    The normal form of it is `[stack, outer, features, columns]`.

    Attributes:
        path: the leaf's.
        shape: the leaf's.
        stack: the axes that number matrices of their own (layers, experts).
        outer: those summed over that number no features: the extent of a kernel.
        features: the others that are summed over; groups of n:m run along them.
        columns: those it produces.
        groups: how many groups of columns see features of their own.
        mixed: whether its product sums over a part of an axis only.
        derived: whether arithmetic stands between the leaf and its product.
    """

    path: str
    shape: tuple[int, ...]
    stack: tuple[int, ...]
    outer: tuple[int, ...]
    features: tuple[int, ...]
    columns: tuple[int, ...]
    groups: int = 1
    mixed: bool = False
    derived: bool = False

    @property
    def extents(self) -> tuple[int, int, int, int]:
        """The shape of the normal form."""
        stack, outer, features, columns = (
            math.prod(self.shape[axis] for axis in axes) for axes in self._parts
        )
        return stack, outer, features, columns

    @property
    def matrix(self) -> tuple[int, ...]:
        """The shape of one matrix of the stack: of a kernel, all its extents."""
        outer = [self.shape[axis] for axis in self.outer]
        return (*outer, *self.extents[2:])

    @property
    def rows(self) -> tuple[int, ...]:
        """The axes it is summed over, as they stand in the leaf."""
        return tuple(sorted(self.outer + self.features))

    @functools.cached_property
    def turn(self) -> np.ndarray:
        """For each row of the normal form, its number where rows go by the leaf."""
        shape = [self.shape[axis] for axis in self.rows]
        numbers = np.arange(math.prod(shape)).reshape(shape)
        order = [self.rows.index(axis) for axis in self.outer + self.features]
        return numbers.transpose(order).ravel()

    def normal(self, array: Any) -> Any:
        """An array of the leaf's shape in the normal form.

        >>> kernel = Weight("w", (3, 3, 8, 4), (), (0, 1), (2,), (3,))
        >>> kernel.normal(np.ones((3, 3, 8, 4))).shape
        (1, 9, 8, 4)
        """
        return array.transpose(self._order).reshape(self.extents)

    def array(self, normal: Any) -> Any:
        """The array of the leaf's shape that a normal form is of."""
        order = self._order
        array = normal.reshape([self.shape[axis] for axis in order])
        return array.transpose([order.index(axis) for axis in range(len(order))])

    @property
    def _parts(self) -> tuple[tuple[int, ...], ...]:
        return self.stack, self.outer, self.features, self.columns

    @property
    def _order(self) -> list[int]:
        return [axis for axes in self._parts for axis in axes]


def as_weight(
    graph: Graph, leaf: Leaf, sites: Sequence[WeightSite], *, lookups: bool = False
) -> Weight | str:
    """How a leaf is a weight; or why it stays as it is.

    Args:
        graph: whose leaf it is.
        leaf: the leaf.
        sites: where it is used.
        lookups: whether one that is looked up only counts too.
    """
    products = [site for site in sites if site.kind != "lookup"] or list(sites)
    why = _why_not(graph, leaf, sites, lookups)
    if why:
        return why
    axes = range(len(leaf.spec.shape))
    stack = frozenset(axes).intersection(*(site.batched for site in products))
    first = products[0]
    rows = first.contracted - stack
    if not rows:
        return "is summed over along no axis"
    features = _features(first) - stack
    return Weight(
        leaf.path,
        leaf.spec.shape,
        tuple(sorted(stack)),
        tuple(sorted(rows - features)),
        tuple(sorted(features)),
        tuple(axis for axis in axes if axis not in stack | rows),
        first.groups,
        _is_mixed(first),
        first.derived,
    )


def is_loaded(graph: Graph) -> bool:
    """Whether a graph has insides that cannot be seen."""
    return any(
        equation.primitive.name == "call_exported"
        for equation, _ in jaxprs.nested(graph.jaxpr)
    )


def _why_not(
    graph: Graph, leaf: Leaf, sites: Sequence[WeightSite], lookups: bool
) -> str:
    if leaf.path in graph.carried:
        return "returned by the function, moved: it has to stay what it is"
    if leaf.path in parts(graph):
        return "belongs to a weight that is quantized already; prune before"
    if not jnp.issubdtype(leaf.spec.dtype, jnp.floating):
        return f"not floating: {leaf.spec.dtype}"
    if leaf.path.endswith(_ADAPTERS):
        return "is an adapter"
    if not sites and is_loaded(graph):
        return "belongs to a loaded program, whose inside cannot be seen"
    if not sites:
        return "reaches no product, convolution or look-up as a weight"
    if not lookups and all(site.kind == "lookup" for site in sites):
        return "is looked up only; a rule for it prunes it"
    if len(leaf.spec.shape) < 2:
        return "has fewer than two axes"
    return "is empty" if 0 in leaf.spec.shape else ""


def _features(site: WeightSite) -> frozenset[int]:
    """The leaf's axes along which a product's inputs have their features."""
    if site.kind != "conv":
        return site.contracted
    numbers = site.equation.params["dimension_numbers"]
    channels = frozenset(site.axes[numbers.rhs_spec[1]])
    spatial = {axis for place in numbers.rhs_spec[2:] for axis in site.axes[place]}
    # One input channel may have no axis of its own in the leaf.
    return channels or site.contracted - spatial


def _is_mixed(site: WeightSite) -> bool:
    """Whether an axis of the leaf is summed over in part, and numbers outputs too."""
    if site.kind != "dot":
        return False
    summed = site.equation.params["dimension_numbers"][0][site.operand]
    others = [axes for place, axes in enumerate(site.axes) if place not in summed]
    return any(axis in site.contracted for axes in others for axis in axes)
