"""Which value of a graph stands for a path: what a scope hands to the rest last."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Sequence
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

import jax.numpy as jnp

from compiler import jaxprs
from compiler.distill.opened import softmaxes
from compiler.errors import UnknownPathError
from compiler.graph import Graph
from compiler.passes.globs import prefixes
from compiler.paths import Operation, flatten, join, names, operations

_AS_ONE = ("custom_jvp_call", "custom_vjp_call", "remat2")
"""Equations that give what their body does."""


class Place(NamedTuple):
    """A value inside a graph.

    Attributes:
        route: through which equations, and which of their bodies, it is reached.
        equation: number of the one that makes it, in the last of these bodies.
        output: which of its results it is.
    """

    route: tuple[tuple[int, int], ...]
    equation: int
    output: int

    def within(self, equation: int, body: int) -> Place:
        """The same place as seen from outside."""
        return self._replace(route=((equation, body), *self.route))


def find(graph: Graph, globs: Sequence[str]) -> dict[str, Place]:
    """The place of every path that a glob names, by `path` or `path:primitive`.

    Args:
        graph: an opened one.
        globs: see [`tap`][].

    Raises:
        UnknownPathError: if a glob names nothing, with the nearest there is.
    """
    inside = operations(graph)
    found: dict[str, Place] = {}
    for glob in globs:
        path, _, primitive = glob.partition(":")
        search = _Search(graph.jaxpr, inside, primitive)
        own = {name: search.at(name) for name in _named(inside, path, primitive)}
        new = {name: place for name, place in own.items() if place is not None}
        if primitive:  # of each one the path it is at, not all that are around it
            new = {n: p for n, p in new.items() if n == _deepest(p, new)}
        if not new:
            raise UnknownPathError(_nothing(glob, inside))
        end = f":{primitive}" if primitive else ""
        found |= {f"{name}{end}": place for name, place in new.items()}
    return found


def _named(inside: Sequence[Operation], glob: str, primitive: str) -> list[str]:
    """The paths a glob may mean, in the order in which they begin."""
    every = list(flatten(inside))
    paths = dict.fromkeys(p for o in every for p in prefixes(o.path))
    if glob in paths or not glob:
        return [glob]
    return [path for path in paths if path and fnmatchcase(path, glob)]


def _deepest(place: Place, found: dict[str, Place]) -> str:
    """The longest of the names of a place."""
    return max((name for name in found if found[name] == place), key=len)


def _nothing(glob: str, inside: Sequence[Operation]) -> str:
    path, _, primitive = glob.partition(":")
    every = list(flatten(inside))
    known = sorted({p for o in every if o.path for p in prefixes(o.path)})
    if primitive and (not path or any(fnmatchcase(name, path) for name in known)):
        here = [o for o in every if below(path, o.path) or fnmatchcase(o.path, path)]
        kinds = sorted({o.equation.primitive.name for o in here})
        return (
            f"{glob}: expected an operation at that path, found none of that kind. "
            f"There are: {', '.join(kinds)}."
        )
    near = difflib.get_close_matches(path, known, 5, 0.5) or known[:8]
    return (
        f"{glob}: expected a path or glob of operations, names none that gives a "
        f"value. The nearest there are: {', '.join(near) or '(none has a path)'}."
    )


def below(owner: str, path: str) -> bool:
    """Whether a path is another, or inside of it."""
    return not owner or path == owner or path.startswith(f"{owner}/")


class _Search:
    """Looks for the value of a path, from the end of the graph."""

    def __init__(
        self, jaxpr: jaxprs.Jaxpr, inside: Sequence[Operation], primitive: str
    ) -> None:
        self.jaxpr, self.inside, self.primitive = jaxpr, inside, primitive
        self.scoped = {id(operation) for operation in _scoped(inside, "")}

    def at(self, path: str) -> Place | None:
        """The last floating value; where there is none, the last of any dtype.

        What was traced in a scope of this name counts, and nothing that came after it
        in none; where no scope has this name, all that belongs to it.
        """
        look = self._of_kind if self.primitive else self._leaving
        inside = (o for o in flatten(self.inside) if id(o) in self.scoped)
        strict = any(below(path, operation.path) for operation in inside)
        for floating in (True, False):
            view = _View(path, floating, self.scoped if strict and path else None)
            place = look(self.jaxpr, self.inside, view)
            if place is not None:
                return place
        return None

    def _leaving(
        self, jaxpr: jaxprs.Jaxpr, inside: Sequence[Operation], view: _View
    ) -> Place | None:
        """The last value made at the path that something outside of it reads."""
        members = [view.holds(operation) for operation in inside]
        read = jaxprs.variables(jaxpr.jaxpr.outvars)
        for operation, member in zip(inside, members, strict=True):
            if not member:
                read |= jaxprs.variables(operation.equation.invars)
        for number in range(len(inside) - 1, -1, -1):
            if not members[number]:
                place = self._within(inside, number, view, self._leaving)
                if place is not None:
                    return place
                continue
            for i, var in reversed([*enumerate(inside[number].equation.outvars)]):
                if var in read and view.fits(var):
                    return Place((), number, i)
        return None

    def _of_kind(
        self, jaxpr: jaxprs.Jaxpr, inside: Sequence[Operation], view: _View
    ) -> Place | None:
        """The last result of a primitive at the path or anywhere in it."""
        divided = softmaxes(jaxpr) if self.primitive == "softmax" else set()
        for number in range(len(inside) - 1, -1, -1):
            place = self._within(inside, number, view, self._of_kind)
            if place is not None:
                return place
            equation = inside[number].equation
            kinds = (equation.primitive.name, "softmax" if number in divided else "")
            fits = [i for i, var in enumerate(equation.outvars) if view.fits(var)]
            if self.primitive in kinds and fits and view.has(inside[number]):
                return Place((), number, fits[-1])
        return None

    def _within(
        self,
        inside: Sequence[Operation],
        number: int,
        view: _View,
        look: Callable[..., Place | None],
    ) -> Place | None:
        """The place in the bodies of an equation, the last of them first."""
        operation = inside[number]
        if not _forward(operation):
            return None
        bodies = jaxprs.bodies(operation.equation)
        for i in range(len(bodies) - 1, -1, -1):
            place = look(bodies[i].jaxpr, operation.bodies[i], view)
            if place is not None:
                return _as_one(operation.equation, bodies[i], place, number, i)
        return None


class _View(NamedTuple):
    """What is looked for.

    Attributes:
        path: where.
        floating: whether it has to be floating.
        scoped: ids of the operations that count, or None if all do.
    """

    path: str
    floating: bool
    scoped: set[int] | None

    def has(self, operation: Operation) -> bool:
        """Whether an operation is at the path, and no part of a gradient."""
        counts = self.scoped is None or id(operation) in self.scoped
        return counts and below(self.path, operation.path) and _forward(operation)

    def holds(self, operation: Operation) -> bool:
        """Whether all that an operation does is done at the path."""
        inner = (o.path for body in operation.bodies for o in flatten(body))
        return self.has(operation) and all(below(self.path, n) for n in inner if n)

    def fits(self, var: Any) -> bool:
        """Whether a variable is an array of the kind that is wanted."""
        if jaxprs.is_dropped(var) or not jaxprs.is_array(var):
            return False
        return not self.floating or jnp.issubdtype(var.aval.dtype, jnp.floating)


def _scoped(inside: Sequence[Operation], within: str) -> Iterator[Operation]:
    """The operations whose place is told by a scope, and not by what flows in."""
    for operation in inside:
        scope = join(within, jaxprs.scope(operation.equation))
        if names(scope):
            yield operation
        for body in operation.bodies:
            yield from _scoped(body, scope)


def _as_one(
    equation: jaxprs.Equation, body: jaxprs.Body, place: Place, number: int, i: int
) -> Place:
    """The place as a result of the equation, where the body only hands it out."""
    if equation.primitive.name in _AS_ONE and not place.route:
        made = jaxprs.equations(body.jaxpr)[place.equation].outvars[place.output]
        for output, var in enumerate(body.jaxpr.jaxpr.outvars):
            if var is made:
                return Place((), number, output)
    return place.within(number, i)


def _forward(operation: Operation) -> bool:
    """Whether it is no part of a gradient: that has the path of what it is of."""
    return "transpose(" not in jaxprs.scope(operation.equation)
