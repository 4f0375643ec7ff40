"""What each leaf is to the units it belongs to: a weight, a scale, a shift."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import jax.numpy as jnp

from compiler import jaxprs
from compiler.graph import Graph
from compiler.paths import owner_and_kind
from compiler.sites import sites_by_leaf

WEIGHT, SCALE, SHIFT, OTHER = "weight", "scale", "shift", "other"

_VIEWS = frozenset(
    (
        "convert_element_type",
        "copy",
        "reshape",
        "transpose",
        "squeeze",
        "expand_dims",
        "broadcast_in_dim",
        "slice",
        "dynamic_slice",
        "split",
        "rev",
        "stop_gradient",
        "pvary",
        "pcast",
    )
)
_TRANSPARENT = frozenset(("jit", "closed_call", "remat2"))


def roles(graph: Graph) -> tuple[str, ...]:
    """The role of each leaf, told from what is done with it and not by its name.

    `"weight"`: it is multiplied with in a product, a convolution or a look-up, or has
    two axes or more and multiplies elementwise. `"scale"`: it multiplies values along
    one axis, as the gain of a norm does. `"shift"`: it is added, as a bias is.
    `"other"`: statistics and whatever else the function carries, counters, integers.

    >>> import jax.numpy as jnp, compiler as mc
    >>> def layer(v, x):
    ...     return (x @ v["kernel"]) * v["gain"] + v["bias"]
    >>> v = {"kernel": jnp.eye(3), "gain": jnp.ones(3), "bias": jnp.ones(3)}
    >>> program = mc.trace(layer, v, jnp.ones((2, 3)))
    >>> dict(zip(program.graph.paths, roles(program.graph)))
    {'bias': 'shift', 'gain': 'scale', 'kernel': 'weight'}
    """
    if graph not in _KNOWN:
        _KNOWN[graph] = tuple(_roles(graph))
    return _KNOWN[graph]


_KNOWN: WeakKeyDictionary[Graph, tuple[str, ...]] = WeakKeyDictionary()


class _View(NamedTuple):
    """A value that is a leaf re-arranged.

    Attributes:
        leaf: its position.
        wide: along how many axes it differs, before it was spread.
    """

    leaf: int
    wide: int


_Values = Sequence[_View | None]


def _roles(graph: Graph) -> list[str]:
    uses = sites_by_leaf(graph)
    given = graph.jaxpr.jaxpr.invars[: len(graph.leaves)]
    found: dict[int, set[str]] = {}
    views = [_View(i, _wide(var.aval.shape)) for i, var in enumerate(given)]
    _follow(graph.jaxpr, [*views, *[None] * len(graph.inputs)], found)
    made = []
    for place, leaf in enumerate(graph.leaves):
        frozen = leaf.path.startswith("state/params/")  # weights that do not train
        moved = leaf.path in graph.carried or (owner_and_kind(leaf)[1] and not frozen)
        met = found.get(place, set())
        role = WEIGHT if place in uses else min(met, key=_ORDER.index, default=OTHER)
        real = jnp.issubdtype(leaf.spec.dtype, jnp.inexact)
        made.append(OTHER if moved or not real else role)
    return made


_ORDER = (WEIGHT, SCALE, SHIFT, OTHER)


def _wide(shape: Sequence[int]) -> int:
    return sum(extent > 1 for extent in shape)


def _follow(
    jaxpr: jaxprs.Jaxpr, values: _Values, found: dict[int, set[str]]
) -> list[_View | None]:
    """Notes what is done first with the views of leaves; returns those put out."""
    env = dict(zip(jaxpr.jaxpr.invars, values, strict=True))

    def look(var: Any) -> _View | None:
        return None if jaxprs.is_literal(var) else env.get(var)

    for equation in jaxprs.equations(jaxpr):
        given = [look(var) for var in equation.invars]
        if not any(given):
            continue
        name, results = equation.primitive.name, [None] * len(equation.outvars)
        for body in jaxprs.bodies(equation):
            last = _follow(body.jaxpr, _inside(equation, body, given), found)
            results = last if name in _TRANSPARENT else results
        if name in _VIEWS:
            results = [given[0]] * len(equation.outvars)
        elif not jaxprs.bodies(equation):
            _note(equation, given, found)
        env.update(zip(equation.outvars, results, strict=True))
    return [look(var) for var in jaxpr.jaxpr.outvars]


def _inside(
    equation: jaxprs.Equation, body: jaxprs.Body, given: _Values
) -> list[_View | None]:
    """The views as a body sees them: those that change from turn to turn are none."""
    seen = [given[i] for i in body.operands]
    seen = [None if c else v for v, c in zip(seen, body.carried, strict=True)]
    if equation.primitive.name != "scan":
        return seen
    first = sum(jaxprs.scan_counts(equation))
    shapes = [var.aval.shape for var in body.jaxpr.jaxpr.invars[first:]]
    slices = [
        v and v._replace(wide=min(v.wide, _wide(shape)))
        for v, shape in zip(seen[first:], shapes, strict=True)
    ]
    return [*seen[:first], *slices]


def _note(
    equation: jaxprs.Equation, given: _Values, found: dict[int, set[str]]
) -> None:
    """What an equation does with the leaves it is given.

    By a literal number nothing is scaled or shifted but the leaf itself: the moving
    average of a statistic, the epsilon of a variance.
    """
    name = equation.primitive.name
    alone = any(map(jaxprs.is_literal, equation.invars))
    for view in filter(None, given):
        role = OTHER
        if name in ("mul", "div") and not alone:
            role = SCALE if view.wide <= 1 else WEIGHT
        elif name in ("add", "add_any") and not alone:
            role = SHIFT
        found.setdefault(view.leaf, set()).add(role)
