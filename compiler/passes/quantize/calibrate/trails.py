"""How each leaf came to the products it is a weight of: through which loops and views.

`sites` names the products; this adds what calibration has to know besides. A statistic
is kept apart for each turn of a loop that hands out the weight slice by slice, and
merged over the turns of any other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from compiler import jaxprs
from compiler.graph import Graph
from compiler.passes.quantize.arithmetic.operand import Arrangement
from compiler.passes.quantize.arithmetic.views import CUTS, VIEWS, rearranged


class Trail(NamedTuple):
    """A value made of a leaf.

    Attributes:
        loops: for each scan around it, the outermost first, whether it goes along it.
        view: how the value is the leaf, or a slice of it; None where it is computed.
        axes: the leaf's axes that the slice still has.
        taken: the leaf's axes that loops went along, and the lengths of these.
        joined: the axis of the value along which others were put beside it, if any.
    """

    loops: tuple[bool, ...]
    view: Arrangement | None
    axes: tuple[int, ...]
    taken: tuple[tuple[int, int], ...] = ()
    joined: int | None = None

    def computed(self) -> Trail:
        """Something computed from it."""
        return self._replace(view=None, joined=None)

    def beside(self, axis: int) -> Trail:
        """The same with others beside it."""
        return (
            self.computed() if self.joined is not None else self._replace(joined=axis)
        )

    def sharded(self, shape: Sequence[int]) -> Trail:
        """The part of it that one device has."""
        whole = self.view is not None and self.view.extents == tuple(shape)
        return self if whole else self.computed()

    def kept(self) -> Trail:
        """The same as a constant of a scan."""
        return self._replace(loops=(*self.loops, False))

    def sliced(self) -> Trail:
        """One slice of it, in a scan that goes along it."""
        looped = self._replace(loops=(*self.loops, True))
        axis = None if self.view is None else _first(self.view)
        if self.view is None or axis is None or self.joined is not None:
            return looped.computed()
        axes = self.axes[:axis] + self.axes[axis + 1 :]
        taken = (*self.taken, (self.axes[axis], self.view.shape[axis]))
        return looped._replace(view=self.view.without(axis), axes=axes, taken=taken)


def _first(view: Arrangement) -> int | None:
    """The array's axis that the first of a view is; any of extent one for such one."""
    if view.extents[0] == 1:
        return view.shape.index(1) if 1 in view.shape else None
    return view.whole(0)


Trails = Mapping[int, Trail]
"""By leaf."""


def trails(graph: Graph) -> dict[tuple[int, int], Trails]:
    """What every operand is made of, by the identity of the equation and its place.

    Equations have to be distinct objects (see `jaxprs.distinct`).
    """
    found: dict[tuple[int, int], Trails] = {}
    values: list[Trails] = []
    for i, leaf in enumerate(graph.leaves):
        shape = leaf.spec.shape
        values.append({i: Trail((), Arrangement.of(shape), tuple(range(len(shape))))})
    _follow(graph.jaxpr, [*values, *[{}] * len(graph.inputs)], found)
    return found


def _follow(
    jaxpr: jaxprs.Jaxpr,
    values: Sequence[Trails],
    found: dict[tuple[int, int], Trails],
) -> list[Trails]:
    env: dict[Any, Trails] = {var: {} for var in jaxpr.jaxpr.constvars}
    env |= zip(jaxpr.jaxpr.invars, values, strict=True)

    def look(var: Any) -> Trails:
        return {} if jaxprs.is_literal(var) else env[var]

    for equation in jaxprs.equations(jaxpr):
        given = [look(var) for var in equation.invars]
        found |= {(id(equation), i): trails for i, trails in enumerate(given)}
        results = _results(equation, given)
        for body in jaxprs.bodies(equation):
            last = _follow(body.jaxpr, _enter(equation, body, given), found)
            if equation.primitive.name in _TRANSPARENT:
                results = last
        env.update(zip(equation.outvars, results, strict=True))
    return [look(var) for var in jaxpr.jaxpr.outvars]


_TRANSPARENT = ("jit", "closed_call", "remat2")


def _enter(
    equation: jaxprs.Equation, body: jaxprs.Body, given: Sequence[Trails]
) -> list[Trails]:
    inside: list[Trails] = [given[i] for i in body.operands]
    inside = [{} if c else v for v, c in zip(inside, body.carried, strict=True)]
    if equation.primitive.name == "shard_map":
        shapes = [var.aval.shape for var in body.jaxpr.jaxpr.invars]
        return [
            {leaf: t.sharded(shape) for leaf, t in v.items()}
            for v, shape in zip(inside, shapes, strict=True)
        ]
    if equation.primitive.name != "scan":
        return inside
    first = sum(jaxprs.scan_counts(equation))
    kept = [{leaf: t.kept() for leaf, t in v.items()} for v in inside[:first]]
    return kept + [{leaf: t.sliced() for leaf, t in v.items()} for v in inside[first:]]


def _results(equation: jaxprs.Equation, given: Sequence[Trails]) -> list[Trails]:
    """What an equation's results are made of."""
    name = equation.primitive.name
    if name == "concatenate":
        axis = equation.params["dimension"]
        beside = {
            leaf: t.beside(axis) for trails in given for leaf, t in trails.items()
        }
        return [beside]
    if name in _ADJUSTS:
        return [{leaf: t.computed() for trails in given for leaf, t in trails.items()}]
    if name not in (*VIEWS, *_SAME, *CUTS) or not given[0]:
        return [{}] * len(equation.outvars)
    return [
        {leaf: _seen(trail, equation, out) for leaf, trail in given[0].items()}
        for out in equation.outvars
    ]


def _seen(trail: Trail, equation: jaxprs.Equation, out: Any) -> Trail:
    """One result that is a view; others beside it may only be cast or transposed."""
    name, joined = equation.primitive.name, trail.joined
    if trail.view is None or (joined is not None and name not in _WITH_OTHERS):
        return trail.computed()
    if joined is not None and name == "transpose":
        joined = equation.params["permutation"].index(joined)
    view: Arrangement | None = trail.view
    if name in VIEWS:
        view = rearranged(trail.view, equation)
    elif name in CUTS:
        view = _cut(trail.view, out)
    return trail._replace(view=view, joined=joined)


_ADJUSTS = ("mul", "div", "add", "sub", "neg", "select_n", "rev")
"""After these `sites` still takes a weight for the weight."""

_SAME = ("pvary", "pcast")

_WITH_OTHERS = ("convert_element_type", "copy", "transpose")


def _cut(view: Arrangement, out: Any) -> Arrangement | None:
    """A slice: fewer of some axes, each of them a whole one of the leaf."""
    found: Arrangement | None = view
    for place, (size, extent) in enumerate(
        zip(out.aval.shape, view.extents, strict=True)
    ):
        if size != extent and found is not None:
            found = found.narrowed(place, size)
    return found
