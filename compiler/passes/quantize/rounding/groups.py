"""Which weights can be balanced against their inputs, and which of them together."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from compiler import jaxprs
from compiler.graph import Graph, Leaf, drop_dead, free_path
from compiler.passes.factorize.symbolic import evaluate
from compiler.passes.quantize.arithmetic.operand import Arrangement
from compiler.passes.quantize.rounding.accompanied import Report, spread
from compiler.passes.quantize.rounding.balanced import Balanced, Divisor
from compiler.rewrite import Event, Events
from compiler.sites import WeightSite

NAME = "smoothing"
"""What the leaf is called that inputs are multiplied by."""


@dataclasses.dataclass(frozen=True)
class Member:
    """A weight of one product.

    Attributes:
        path: of the leaf, and the key of its product.
        shape: of the leaf.
        dtype: of the leaf.
        stack: its axes that number matrices.
        rows: its axes that are summed over.
        features: those of the rows along which inputs have factors of their own: not
            the extent of a convolution's kernel.
    """

    path: str
    shape: tuple[int, ...]
    dtype: Any
    stack: tuple[int, ...]
    rows: tuple[int, ...]
    features: tuple[int, ...]

    @property
    def extents(self) -> tuple[int, ...]:
        """The shape of its factors: `[*stack, *features]`."""
        return tuple(self.shape[axis] for axis in (*self.stack, *self.features))

    def on_leaf(self, factors: Any) -> Any:
        """Factors of that shape, as they lie along the leaf."""
        axes = (*self.stack, *self.features)
        shape = [n if axis in axes else 1 for axis, n in enumerate(self.shape)]
        return spread(factors, axes, shape)

    def by_row(self, values: Any) -> Any:
        """Values `[*stack, rows]` as `[stack, features, the rest of the rows]`."""
        rest = [axis for axis in self.rows if axis not in self.features]
        count = len(self.stack)
        array = jnp.reshape(values, [self.shape[a] for a in (*self.stack, *self.rows)])
        order = [count + self.rows.index(axis) for axis in (*self.features, *rest)]
        array = jnp.transpose(array, [*range(count), *order])
        return jnp.reshape(array, (*self.matrices, -1))

    @property
    def matrices(self) -> tuple[int, int]:
        """How many matrices, and how many factors each has."""
        sizes = [
            math.prod(self.shape[a] for a in axes)
            for axes in (self.stack, self.features)
        ]
        return sizes[0], sizes[1]

    @property
    def feature(self) -> tuple[int, ...]:
        """For each row, which feature of the inputs it multiplies."""
        sizes = [self.shape[a] if a in self.features else 1 for a in self.rows]
        index = np.arange(math.prod(sizes)).reshape(sizes)
        whole = np.broadcast_to(index, [self.shape[axis] for axis in self.rows])
        return tuple(whole.ravel().tolist())


@dataclasses.dataclass(frozen=True)
class Group:
    """Weights that read the same inputs.

    Attributes:
        members: the weights; the leaf of factors stands beside the first.
    """

    members: tuple[Member, ...]

    @property
    def path(self) -> str:
        """Of the first weight."""
        return self.members[0].path

    @property
    def spec(self) -> jax.ShapeDtypeStruct:
        """Of the leaf of factors."""
        first = self.members[0]
        return jax.ShapeDtypeStruct(first.extents, first.dtype)


def member(leaf: Leaf, sites: Sequence[WeightSite]) -> Member | str:
    """How a leaf could be balanced, or why it could not."""
    if not jnp.issubdtype(leaf.spec.dtype, jnp.floating):
        return f"not floating: {leaf.spec.dtype}"
    if not sites:
        return "reaches no product as a weight"
    if all(site.kind == "lookup" for site in sites):
        return "is looked up only"
    if len(sites) > 1:
        return f"is used {len(sites)} times, with inputs of their own"
    (site,) = sites
    if site.kind == "ragged":
        return "which rows an expert meets depends on values"
    if site.groups > 1:
        return "is the kernel of a grouped convolution"
    if 0 in leaf.spec.shape:
        return "is empty"
    features = set(site.contracted)
    if site.kind == "conv":
        features = set(site.axes[site.equation.params["dimension_numbers"].rhs_spec[1]])
    axes = [tuple(sorted(a)) for a in (site.batched, site.contracted, features)]
    return Member(leaf.path, leaf.spec.shape, leaf.spec.dtype, *axes)


def groups(graph: Graph, found: Sequence[Member], events: Events) -> tuple[Group, ...]:
    """The weights that can be balanced, by what they read."""
    report = Report()
    balanced(graph, {m.path: Group((m,)) for m in found}, report)
    together: dict[Any, list[Member]] = {}
    for one in found:
        why = report.why_not(one.path)
        if why:
            events.skipped.append(Event(one.path, why))
        else:
            key = report.inputs[one.path], one.extents, str(one.dtype)
            together.setdefault(key, []).append(one)
    return tuple(Group(tuple(members)) for members in together.values())


def balanced(
    graph: Graph, owners: Mapping[str, Group], report: Report
) -> tuple[list[str], jaxprs.Jaxpr]:
    """The equations with inputs divided.

    Args:
        graph: whose weights are multiplied already.
        owners: by the path of a weight, its group.
        report: told of what becomes of them.

    Returns:
        The paths of the new leaves, and the equations that take them.
    """
    firsts = {group.path: group for group in owners.values()}
    names, specs, taken = [], [], set(graph.paths)
    made: dict[str, int] = {}
    for leaf in graph.leaves:
        names.append(leaf.path)
        specs.append(leaf.spec)
        if leaf.path in firsts:
            made[leaf.path] = len(names)
            names.append(free_path(f"{leaf.path}/{NAME}", taken))
            taken.add(names[-1])
            specs.append(firsts[leaf.path].spec)

    def value(leaf: Leaf, arguments: Sequence[Any]) -> Any:
        array = arguments[names.index(leaf.path)]
        if leaf.path not in owners:
            earlier = leaf.path.rsplit("/", 1)[-1].startswith(NAME)
            return Divisor(array) if earlier else array
        group = owners[leaf.path]
        own = next(m for m in group.members if m.path == leaf.path)
        inverse = own.on_leaf(arguments[made[group.path]])
        view = Arrangement.of(leaf.spec.shape)
        return Balanced(leaf.path, array, inverse, view, leaf.spec.dtype, report)

    def function(*arguments: Any) -> list[Any]:
        leaves = [value(leaf, arguments) for leaf in graph.leaves]
        return evaluate(graph.jaxpr, [*leaves, *arguments[len(names) :]])

    jaxpr = jaxprs.make(function, [*specs, *graph.inputs])
    return names, drop_dead(jaxpr)
