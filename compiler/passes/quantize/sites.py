"""Where a program uses its leaves as weights, seen through views, loops and calls."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from compiler import jaxprs
from compiler.graph import Graph

Axes = tuple[int | None, ...]
"""For each axis of a value, the axis of the leaf it is, or None."""


@dataclasses.dataclass(frozen=True)
class View:
    """A value that is a leaf, seen with its axes re-arranged.

    Attributes:
        leaf: the leaf's position.
        axes: for each axis of the value, the leaf's.
    """

    leaf: int
    axes: Axes


@dataclasses.dataclass
class Use:
    """How a leaf is used as a weight.

    Attributes:
        equations: the products and look-ups that read it.
        summed: the leaf's axes that a product sums over, or a look-up reads whole.
    """

    equations: list[jaxprs.Equation] = dataclasses.field(default_factory=list)
    summed: set[int] = dataclasses.field(default_factory=set)


def weight_uses(graph: Graph) -> dict[int, Use]:
    """Finds the leaves that reach a product or a look-up, by position."""
    uses: dict[int, Use] = {}
    views: list[View | None] = [
        View(i, tuple(range(len(leaf.spec.shape))))
        for i, leaf in enumerate(graph.leaves)
    ]
    rest = len(graph.jaxpr.jaxpr.invars) - len(views)
    _follow(graph.jaxpr, [*views, *[None] * rest], uses)
    return uses


def _follow(
    jaxpr: jaxprs.Jaxpr, views: Sequence[View | None], uses: dict[int, Use]
) -> list[View | None]:
    env: dict[Any, View] = {
        var: view
        for var, view in zip(jaxpr.jaxpr.invars, views, strict=True)
        if view is not None
    }

    def look(var: Any) -> View | None:
        return None if jaxprs.is_literal(var) else env.get(var)

    for equation in jaxprs.equations(jaxpr):
        given = [look(var) for var in equation.invars]
        if not any(given):
            continue
        for body in jaxprs.bodies(equation):
            inner = _follow(body.jaxpr, _enter(equation, body, given), uses)
            if equation.primitive.name in ("jit", "closed_call", "remat2"):
                pairs = zip(equation.outvars, inner, strict=True)
                env.update((var, view) for var, view in pairs if view is not None)
        for place, view in enumerate(given):
            if view is not None:
                _record(equation, place, view, uses)
        moved = _through(equation, given[0])
        if moved is not None:
            env[equation.outvars[0]] = moved
    return [look(var) for var in jaxpr.jaxpr.outvars]


def _enter(
    equation: jaxprs.Equation, body: jaxprs.Body, given: Sequence[View | None]
) -> list[View | None]:
    """What the operands look like inside a body: a scan sees one slice at a time."""
    inside = [given[i] for i in body.operands]
    inside = [None if c else v for v, c in zip(inside, body.carried, strict=True)]
    if equation.primitive.name != "scan":
        return inside
    first = sum(jaxprs.scan_counts(equation))
    return [
        View(v.leaf, v.axes[1:]) if v is not None and i >= first else v
        for i, v in enumerate(inside)
    ]


def _record(
    equation: jaxprs.Equation, place: int, view: View, uses: dict[int, Use]
) -> None:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        summed = params["dimension_numbers"][0][place]
    elif name == "conv_general_dilated" and place == 1:
        output = params["dimension_numbers"].rhs_spec[0]
        summed = [axis for axis in range(len(view.axes)) if axis != output]
    elif name == "gather" and place == 0:
        looked_up = set(params["dimension_numbers"].start_index_map)
        summed = [axis for axis in range(len(view.axes)) if axis not in looked_up]
    else:
        return
    use = uses.setdefault(view.leaf, Use())
    use.equations.append(equation)
    axes = (view.axes[axis] for axis in summed)
    use.summed.update(axis for axis in axes if axis is not None)


def _through(equation: jaxprs.Equation, view: View | None) -> View | None:
    """Follows a leaf through an equation that only re-arranges or casts it."""
    if view is None:
        return None
    name, params = equation.primitive.name, equation.params
    if name in ("convert_element_type", "copy", "stop_gradient"):
        return view
    if name == "transpose":
        return View(view.leaf, tuple(view.axes[i] for i in params["permutation"]))
    if name == "squeeze":
        gone = set(params["dimensions"])
        kept = tuple(a for i, a in enumerate(view.axes) if i not in gone)
        return View(view.leaf, kept)
    if name == "broadcast_in_dim":
        axes: list[int | None] = [None] * len(params["shape"])
        for axis, target in enumerate(params["broadcast_dimensions"]):
            axes[target] = view.axes[axis]
        return View(view.leaf, tuple(axes))
    if name in ("reshape", "slice", "dynamic_slice", "mul", "rev"):
        return View(view.leaf, _same_extents(equation, view))
    return None


def _same_extents(equation: jaxprs.Equation, view: View) -> Axes:
    """Axes that a reshape or slice leaves in place, told from the outer side."""
    before, after = equation.invars[0].aval.shape, equation.outvars[0].aval.shape
    axes: list[int | None] = [None] * len(after)
    if equation.primitive.name != "reshape":
        return view.axes
    for i, (old, new) in enumerate(zip(before, after, strict=False)):
        if old != new:
            break
        axes[i] = view.axes[i]
    for i in range(1, 1 + min(len(before), len(after))):
        if before[-i] != after[-i]:
            break
        axes[-i] = view.axes[-i]
    return tuple(axes)
