"""Where a program uses its leaves as weights, seen through views, loops and calls.

A weight seldom reaches a product as it is stored: it is cast, transposed, split into
heads, stacked for a scan. `weight_sites` follows each leaf through all that and tells,
for every product it reaches, which of its axes are summed over, which are produced and
which number separate weights.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary

from compiler import jaxprs
from compiler.graph import Graph
from compiler.paths import Operation, operations

Axes = tuple[tuple[int, ...], ...]
"""For each axis of a value, the axes of the leaf it is made of: none where it was
broadcast, several where they were merged; parts of one axis are all that axis."""

PRODUCTS = {
    "dot_general": "dot",
    "conv_general_dilated": "conv",
    "ragged_dot_general": "ragged",
    "gather": "lookup",
}
"""The primitives that use a weight, and what a use by them is called."""

_ELEMENTWISE = frozenset(("mul", "div", "add", "sub", "neg", "select_n"))
_SAME_AXES = frozenset(
    (
        "convert_element_type",
        "copy",
        "rev",
        "slice",
        "dynamic_slice",
        "split",
        "pvary",
        "pcast",
    )
)
_TRANSPARENT = frozenset(("jit", "closed_call", "remat2"))


@dataclasses.dataclass(frozen=True)
class View:
    """A value that is a leaf, seen with its axes re-arranged.

    Attributes:
        leaf: the leaf's position.
        axes: what its axes are of the leaf's.
        stacked: the leaf's axes a loop goes along, one slice at a time.
        derived: whether arithmetic came in between (a gain, a mask, a norm).
    """

    leaf: int
    axes: Axes
    stacked: tuple[int, ...] = ()
    derived: bool = False


@dataclasses.dataclass(frozen=True, eq=False)
class WeightSite:
    """One use of one leaf as a weight.

    Attributes:
        leaf: the leaf's position among the graph's.
        path: where the operation belongs.
        equation: the product, convolution or look-up.
        operand: which of its operands the weight is.
        axes: what the operand's axes are of the leaf's.
        contracted: the leaf's axes it sums over; those a look-up reads whole.
        batched: the leaf's axes that number weights of their own: stacked for a
            scan, experts, a mapped axis.
        derived: whether arithmetic stands between the leaf and the operand.
        times: how often one call of the program runs it, as far as that is known.
    """

    leaf: int
    path: str
    equation: jaxprs.Equation
    operand: int
    axes: Axes
    contracted: frozenset[int]
    batched: frozenset[int]
    derived: bool = False
    times: int = 1

    @property
    def kind(self) -> str:
        """`dot`, `conv`, `ragged` or `lookup`."""
        return PRODUCTS[self.equation.primitive.name]

    @property
    def groups(self) -> int:
        """How many groups of channels a convolution keeps apart; one elsewhere."""
        params = self.equation.params
        if self.kind != "conv":
            return 1
        return params["feature_group_count"] * params["batch_group_count"]

    @property
    def source(self) -> str:
        """The line of user code it comes from."""
        return jaxprs.source(self.equation)


def weight_sites(graph: Graph) -> tuple[WeightSite, ...]:
    """Finds every use of a leaf as a weight, in the order they run.

    >>> import jax.numpy as jnp, compiler as mc
    >>> program = mc.trace(lambda w, x: x @ w.T, jnp.ones((5, 3)), jnp.ones((2, 3)))
    >>> (site,) = weight_sites(program.graph)
    >>> site.kind, site.operand, site.axes, sorted(site.contracted)
    ('dot', 1, ((1,), (0,)), [1])
    """
    if graph in _FOUND:
        return _FOUND[graph]
    walk = _Walk(graph)
    views: list[Seen] = [
        (View(i, tuple((axis,) for axis in range(len(leaf.spec.shape)))),)
        for i, leaf in enumerate(graph.leaves)
    ]
    views += [None] * len(graph.inputs)
    walk.follow(graph.jaxpr, operations(graph), views)
    return _FOUND.setdefault(graph, tuple(walk.found))


_FOUND: WeakKeyDictionary[Graph, tuple[WeightSite, ...]] = WeakKeyDictionary()
"""Uses found before: a pass asks several times about one graph."""


def sites_by_leaf(graph: Graph) -> dict[int, list[WeightSite]]:
    """The uses of each leaf that has any, by its position."""
    found: dict[int, list[WeightSite]] = {}
    for site in weight_sites(graph):
        found.setdefault(site.leaf, []).append(site)
    return found


def keyed(graph: Graph) -> dict[str, WeightSite]:
    """The uses by a name of their own: the leaf's path, numbered from the second on.

    The same for every trace of one function, whatever the shapes of its inputs.

    >>> import jax.numpy as jnp, compiler as mc
    >>> program = mc.trace(lambda w, x: (x @ w) @ w, jnp.eye(3), jnp.ones((2, 3)))
    >>> list(keyed(program.graph))
    ['variables', 'variables#1']
    """
    return named(graph, sites_by_leaf(graph))


def named(
    graph: Graph, uses: Mapping[int, Sequence[WeightSite]]
) -> dict[str, WeightSite]:
    """Uses that were found, by a name of their own; see [`keyed`][]."""
    return {
        f"{graph.leaves[leaf].path}#{number}"
        if number
        else graph.leaves[leaf].path: site
        for leaf, sites in uses.items()
        for number, site in enumerate(sites)
    }


def regroup(
    before: Sequence[int], after: Sequence[int]
) -> list[tuple[tuple[int, ...], tuple[int, ...]]] | None:
    """Splits a reshape into the smallest independent ones, by axes before and after.

    Axes of extent one are left out. None where an extent is zero.

    >>> regroup((6, 1, 4), (2, 3, 4))
    [((0,), (0, 1)), ((2,), (2,))]
    """
    if 0 in before:
        return None
    old = [(i, n) for i, n in enumerate(before) if n != 1]
    new = [(i, n) for i, n in enumerate(after) if n != 1]
    groups = []
    while old:
        left, right = [old.pop(0)], [new.pop(0)]
        while (a := _size(left)) != (b := _size(right)):
            (left if a < b else right).append((old if a < b else new).pop(0))
        groups.append((tuple(i for i, _ in left), tuple(i for i, _ in right)))
    return groups


def _size(extents: Sequence[tuple[int, int]]) -> int:
    product = 1
    for _, extent in extents:
        product *= extent
    return product


Seen = tuple[View, ...] | None
"""The leaves a value is a view of (several where they were concatenated); None where
it depends on an input."""


class _Walk:
    """Follows views through a graph and gathers their uses."""

    def __init__(self, graph: Graph) -> None:
        self.shapes = [leaf.spec.shape for leaf in graph.leaves]
        self.found: list[WeightSite] = []

    def follow(
        self, jaxpr: jaxprs.Jaxpr, found: Sequence[Operation], values: Sequence[Seen]
    ) -> list[Seen]:
        env: dict[Any, Seen] = dict.fromkeys(jaxpr.jaxpr.constvars, ())
        env |= zip(jaxpr.jaxpr.invars, values, strict=True)

        def look(var: Any) -> Seen:
            return () if jaxprs.is_literal(var) else env[var]

        for operation in found:
            equation = operation.equation
            given = [look(var) for var in equation.invars]
            results = self._results(operation, given)
            env.update(zip(equation.outvars, results, strict=True))
        return [look(var) for var in jaxpr.jaxpr.outvars]

    def _results(self, operation: Operation, given: Sequence[Seen]) -> list[Seen]:
        equation = operation.equation
        count = len(equation.outvars)
        known = None not in given and not equation.effects
        plain: list[Seen] = [() if known else None] * count
        pairs = zip(jaxprs.bodies(equation), operation.bodies, strict=True)
        for body, inside in pairs:
            last = self.follow(body.jaxpr, inside, _enter(equation, body, given))
            if equation.primitive.name in _TRANSPARENT:
                plain = last
        for place, views in enumerate(given):
            for view in views or ():
                self._record(operation, place, view)
        moved = self._through(equation, given)
        return [moved] * count if moved else plain

    def _record(self, operation: Operation, place: int, view: View) -> None:
        roles = _roles(operation.equation, place)
        if roles is None:
            return
        summed, batched = roles
        contracted = {a for axis in summed for a in view.axes[axis]}
        separate = {a for axis in batched for a in view.axes[axis]}
        separate = (separate | self._absent(view)) - contracted
        self.found.append(
            WeightSite(
                view.leaf,
                operation.path,
                operation.equation,
                place,
                view.axes,
                frozenset(contracted),
                frozenset(separate),
                view.derived,
                operation.times,
            )
        )

    def _absent(self, view: View) -> set[int]:
        """The leaf's axes a view has one index of: a loop's, or one picked out."""
        present = {axis for axes in view.axes for axis in axes}
        extents = enumerate(self.shapes[view.leaf])
        return {axis for axis, n in extents if n > 1 and axis not in present}

    def _through(self, equation: jaxprs.Equation, given: Sequence[Seen]) -> Seen:
        """The views an equation's results are, if it re-arranges or adjusts some."""
        name = equation.primitive.name
        if name in _ELEMENTWISE:
            return self._elementwise(equation, given)
        if name == "concatenate":
            views = tuple(view for some in given for view in some or ())
            return tuple(dataclasses.replace(view, derived=True) for view in views)
        moved = []
        for view in (given[0] or ()) if given else ():
            axes = _moved(equation, view.axes)
            if axes is not None:
                moved.append(dataclasses.replace(view, axes=axes))
        return tuple(moved)

    def _elementwise(self, equation: jaxprs.Equation, given: Sequence[Seen]) -> Seen:
        """A weight times a gain is the weight; what is added to it must be known too,
        or it would be an activation that a weight was added to. What is spread over
        an unknown factor is a gain itself."""
        shape = equation.outvars[0].aval.shape
        if None in given and equation.primitive.name not in ("mul", "select_n"):
            return ()
        return tuple(
            dataclasses.replace(view, derived=True)
            for views, var in zip(given, equation.invars, strict=True)
            for view in views or ()
            if shape and var.aval.shape == shape
            if self._absent(view) <= set(view.stacked)
            if None not in given or _is_matrix(view, shape)
        )


def _enter(
    equation: jaxprs.Equation, body: jaxprs.Body, given: Sequence[Seen]
) -> list[Seen]:
    """What the operands look like inside a body: a scan sees one slice at a time."""
    inside = [given[i] for i in body.operands]
    inside = [None if c else v for v, c in zip(inside, body.carried, strict=True)]
    if equation.primitive.name != "scan":
        return inside
    first = sum(jaxprs.scan_counts(equation))
    slices = [views and tuple(map(_slice, views)) for views in inside[first:]]
    return [*inside[:first], *slices]


def _is_matrix(view: View, shape: Sequence[int]) -> bool:
    """Whether a view has two axes or more, and is spread along none."""
    spread = any(n > 1 and not axes for axes, n in zip(view.axes, shape, strict=True))
    return not spread and sum(map(bool, view.axes)) > 1


def _slice(view: View) -> View:
    stacked = (*view.stacked, *view.axes[0])
    return dataclasses.replace(view, axes=view.axes[1:], stacked=stacked)


def _roles(
    equation: jaxprs.Equation, place: int
) -> tuple[Sequence[int], Sequence[int]] | None:
    """The axes of an operand that are summed over, and those that are batched."""
    name, params = equation.primitive.name, equation.params
    rank = len(equation.invars[place].aval.shape)
    if name == "dot_general":
        contracted, batched = params["dimension_numbers"]
        return contracted[place], batched[place]
    if name == "conv_general_dilated" and place == 1:
        output = params["dimension_numbers"].rhs_spec[0]
        return [axis for axis in range(rank) if axis != output], ()
    if name == "ragged_dot_general" and place == 1:
        numbers = params["ragged_dot_dimension_numbers"]
        contracted, batched = numbers.dot_dimension_numbers
        return contracted[1], (*numbers.rhs_group_dimensions, *batched[1])
    if name == "gather" and place == 0:
        sizes, shape = params["slice_sizes"], equation.invars[0].aval.shape
        indexed = params["dimension_numbers"].start_index_map
        looked_up = {axis for axis in indexed if sizes[axis] != shape[axis]}
        return [axis for axis in range(rank) if axis not in looked_up], ()
    return None


def _moved(equation: jaxprs.Equation, axes: Axes) -> Axes | None:
    """The axes of a result that only re-arranges or casts an operand."""
    name, params = equation.primitive.name, equation.params
    if name in _SAME_AXES:
        return axes
    if name == "transpose":
        return tuple(axes[i] for i in params["permutation"])
    if name == "squeeze":
        gone = set(params["dimensions"])
        return tuple(a for i, a in enumerate(axes) if i not in gone)
    if name == "broadcast_in_dim":
        spread: list[tuple[int, ...]] = [()] * len(params["shape"])
        for axis, target in enumerate(params["broadcast_dimensions"]):
            spread[target] = axes[axis]
        return tuple(spread)
    if name == "reshape" and params["dimensions"] is None:
        return _reshaped(equation, axes)
    return None


def _reshaped(equation: jaxprs.Equation, axes: Axes) -> Axes:
    before, after = equation.invars[0].aval.shape, equation.outvars[0].aval.shape
    new: list[tuple[int, ...]] = [()] * len(after)
    for olds, news in regroup(before, after) or ():
        together = tuple(dict.fromkeys(a for old in olds for a in axes[old]))
        for axis in news:
            new[axis] = together
    return tuple(new)
