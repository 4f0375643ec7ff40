"""The search for all places of a graph that a pattern stands at."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from typing import Any

from compiler.errors import PatternError
from compiler.passes.patterns.match import Closest, Matcher, Solution
from compiler.passes.patterns.pattern import Pattern, name_of
from compiler.passes.patterns.place import Match, Place, match_of
from compiler.passes.patterns.view import Node, Value, View
from compiler.paths import matches
from compiler.rewrite import Event, Events


@dataclasses.dataclass(eq=False)
class Plan:
    """What is replaced in one view, and in the views inside it.

    Attributes:
        view: the view.
        places: what is replaced in it.
        bodies: the plans for the bodies of its equations.
    """

    view: View
    places: list[Place] = dataclasses.field(default_factory=list)
    bodies: dict[Node, list[Plan]] = dataclasses.field(default_factory=dict)

    @property
    def empty(self) -> bool:
        """Whether nothing is replaced in it, at any depth."""
        inside = (plan for plans in self.bodies.values() for plan in plans)
        return not self.places and all(plan.empty for plan in inside)


@dataclasses.dataclass(eq=False)
class Search:
    """Looks for a pattern everywhere, the last places of each body first.

    Attributes:
        pattern: what to look for.
        paths: globs; a place inside none of them is not looked at.
        when: a guard.
        shared: whether a place counts where inner values are used elsewhere too.
        events: where what is left alone is recorded.
        closest: the best of the failures.
    """

    pattern: Pattern
    paths: tuple[str, ...]
    when: Callable[[Match], Any] | None
    shared: bool
    events: Events
    closest: Closest = dataclasses.field(default_factory=Closest)

    def plan(self, view: View, sharded: bool = False) -> Plan:
        """What is to be replaced in a view and inside it.

        Args:
            view: the graph, or a body of it.
            sharded: whether it is what every shard does: loops in it stay, since what
                differs by shard cannot be traced apart.
        """
        plan = Plan(view)
        names = {skeleton.nodes[-1].name for skeleton in self.pattern.skeletons}
        by_primitive = view.by_primitive()
        anchors = [node for name in names for node in by_primitive.get(name, ())]
        taken: dict[Node, Place] = {}
        for anchor in sorted(anchors, key=lambda node: -node.number):
            if anchor in taken or not self._named(anchor):
                continue
            place = self._place(anchor, taken, view)
            if place is not None:
                plan.places.append(place)
                taken.update(dict.fromkeys(place.nodes, place))
        for node in view.nodes:
            if node.bodies and (node not in taken or node in taken[node].kept):
                plan.bodies[node] = [
                    Plan(body) if sharded else self.plan(body, node.name == "shard_map")
                    for body in node.bodies
                ]
        return plan

    def _named(self, node: Node) -> bool:
        return any(matches(glob, node.path) for glob in self.paths)

    def _place(
        self, anchor: Node, taken: dict[Node, Place], view: View
    ) -> Place | None:
        """The first way to match at an anchor that nothing speaks against."""
        first: Event | None = None
        for place in self._candidates(anchor):
            if not taken.keys().isdisjoint(place.nodes):
                continue
            refused = self._refused(place, taken, view)
            if refused is None:
                return place
            first = first or place.event(f"{self.pattern.name}: {refused}")
        if first is not None:
            self.events.skipped.append(first)
        return None

    def _candidates(self, anchor: Node) -> Iterator[Place]:
        """Matches wiring; then all of it, as traced for what is there."""
        for skeleton in self.pattern.skeletons:
            if skeleton.nodes[-1].name != anchor.name:
                continue
            for found in self._solutions(skeleton, False, anchor, {}):
                arguments = [found.values[value] for value in skeleton.inputs]
                yield from self._exact(anchor, arguments, found)

    def _exact(
        self, anchor: Node, arguments: list[Value], found: Solution
    ) -> Iterator[Place]:
        try:
            view, out_tree = self.pattern.at([value.spec for value in arguments])
        except PatternError as error:
            self.closest.note(len(found.nodes), False, anchor, str(error))
            return
        if not view.nodes or view.nodes[-1].name != anchor.name:
            return
        given = dict(zip(view.inputs, arguments, strict=True))
        for exact in self._solutions(view, True, anchor, given):
            outputs = [exact.values[value] for value in view.outputs]
            nodes = set(exact.nodes.values())
            yield Place(anchor, nodes, arguments, outputs, out_tree)

    def _solutions(
        self, view: View, exact: bool, anchor: Node, given: dict[Value, Value]
    ) -> Iterator[Solution]:
        matcher = Matcher(view, exact, self.closest)
        yield from matcher.solutions(anchor, given)
        if matcher.gave_up:
            why = "given up, there are too many orders of its commutative operations"
            self.events.skipped.append(anchor.event(f"{self.pattern.name}: {why}"))

    def _refused(
        self, place: Place, taken: dict[Node, Place], view: View
    ) -> str | None:
        """Why a place is left alone, None if it is not; completes the place."""
        if not self._allowed(place):
            return f"left out by {name_of(self.when) if self.when else 'when'}"
        own = set(place.outputs)
        for node in sorted(place.nodes, key=lambda node: node.number):
            for value in node.outputs:
                if value in own or place.nodes.issuperset(_users(value)):
                    continue
                if not self.shared:
                    return (
                        f"the {node.name} inside it is used elsewhere too; computing "
                        "it twice needs shared=True"
                    )
                place.kept = {n for n in place.nodes if not own.issuperset(n.outputs)}
        return _schedule(place, taken, len(view.nodes))

    def _allowed(self, place: Place) -> bool:
        if self.when is None:
            return True
        match = match_of(place, self.pattern)
        try:
            return bool(self.when(match))
        except Exception as error:
            raise PatternError(
                f"{place}: the guard {name_of(self.when)} failed on {match.operands}: "
                f"{type(error).__name__}: {error}. Make it return True or False."
            ) from error


_OUTSIDE: Any = object()


def _users(value: Value) -> Sequence[Any]:
    return [*value.consumers, _OUTSIDE] if value.escapes else value.consumers


def _schedule(place: Place, taken: dict[Node, Place], count: int) -> str | None:
    """Finds where the replacement goes: after its operands, before its results' use."""
    made = [_made_at(value, taken) for value in place.arguments]
    used = [
        at
        for value in place.outputs
        for user in value.consumers
        if user not in place.nodes or user in place.kept
        for at in _used_at(user, taken)
    ]
    after, before = max([Fraction(-1), *made]), min([Fraction(count), *used])
    if after >= before:
        return "something outside of it uses one of its results to make its operands"
    own = Fraction(place.anchor.number)
    place.slot = own if after < own < before else (after + before) / 2
    return None


def _made_at(value: Value, taken: dict[Node, Place]) -> Fraction:
    if value.producer is None:
        return Fraction(-1)
    place = taken.get(value.producer)
    replaced = place is not None and value in place.outputs
    return place.slot if place and replaced else Fraction(value.producer.number)


def _used_at(user: Node, taken: dict[Node, Place]) -> list[Fraction]:
    place = taken.get(user)
    own = [Fraction(user.number)] if place is None or user in place.kept else []
    return own if place is None else [*own, place.slot]
