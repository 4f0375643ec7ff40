"""The structural matcher: where in one view the equations of another stand."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from collections.abc import Mapping as Dict
from typing import Any, NamedTuple

from compiler.errors import PatternError
from compiler.passes.patterns.same import difference, same_constant
from compiler.passes.patterns.view import Node, Value, View, meant
from mapping.core import describe

_COMMUTATIVE = {"add", "add_any", "mul", "max", "min", "and", "or", "xor", "eq", "ne"}

_STEPS = 2000
"""How many operands are compared at one place before it is given up."""


class Solution(NamedTuple):
    """One way in which a pattern stands at a place.

    Attributes:
        values: what stands for each value of the pattern, its arguments included.
        nodes: what stands for each equation of the pattern.
    """

    values: dict[Value, Value]
    nodes: dict[Node, Node]


@dataclasses.dataclass
class Closest:
    """The place that came closest to a match, and what differed there.

    Attributes:
        agreed: how many equations agreed there.
        exact: whether all primitives did, so that only their params differed.
        node: the equation at fault.
        why: what was expected there, and what was found.
    """

    agreed: int = -1
    exact: bool = False
    node: Node | None = None
    why: str = ""

    def note(self, agreed: int, exact: bool, node: Node, why: str) -> None:
        """Keeps a failure if it came closer than those before."""
        if (exact, agreed) > (self.exact, self.agreed):
            self.agreed, self.exact, self.node, self.why = agreed, exact, node, why


class _State(NamedTuple):
    values: dict[Value, Value]
    nodes: dict[Node, Node]
    goals: Any = None
    """Pairs of values that remain to be compared, as a linked list."""


class Matcher:
    """Finds a pattern in a graph, by depth-first search with a bounded effort.

    Attributes:
        pattern: the equations to find; the last is the one a place is found by.
        exact: whether params and constants must agree too, or primitives and wiring
            alone.
        closest: where failures are noted.
        gave_up: whether there were more ways to match than are looked at.
    """

    def __init__(self, pattern: View, exact: bool, closest: Closest) -> None:
        self.pattern = pattern
        self.exact = exact
        self.closest = closest
        self.gave_up = False

    def solutions(self, anchor: Node, given: Dict[Value, Value]) -> Iterator[Solution]:
        """Every way in which the pattern's last equation is the anchor.

        Args:
            anchor: an equation of the graph.
            given: what stands for some of the pattern's arguments.
        """
        start = _State(dict(given), {})
        stack = self._pair(start, self.pattern.nodes[-1], anchor)
        for _ in range(_STEPS):
            if not stack:
                return
            state = stack.pop()
            if state.goals is not None:
                (expected, found), rest = state.goals
                state = state._replace(goals=rest)
                stack += self._value(state, expected, found, anchor)
            elif len(state.nodes) < len(self.pattern.nodes):
                stack += self._grow(state)
            else:
                yield Solution(state.values, state.nodes)
        self.gave_up = True

    def _grow(self, state: _State) -> list[_State]:
        """Continues at another output, from a value that it shares with the others."""
        for node in self.pattern.nodes:
            bound = [v for v in node.inputs if v in state.values and not v.constant]
            if node in state.nodes or not bound:
                continue
            users = [state.values[value].consumers for value in bound]
            taken = set(state.nodes.values())
            grown: list[_State] = []
            for user in reversed(min(users, key=len)):
                if user.name == node.name and user not in taken:
                    grown += self._pair(state, node, user)
            if not grown:
                last = next(reversed(state.nodes.values()))
                why = f"expected another {node.name} of the same operand, found none"
                self.closest.note(len(state.nodes), self.exact, last, why)
            return grown
        raise PatternError(
            "its outputs share no argument and no intermediate value, so nothing says "
            "which belong together. Replace them one by one."
        )

    def _pair(self, state: _State, expected: Node, found: Node) -> list[_State]:
        """Takes one equation for another; their operands remain to be compared."""
        if len(expected.inputs) != len(found.inputs):
            count = f"expected {len(expected.inputs)} operands, has {len(found.inputs)}"
            return self._fail(state, found, f"{found.name}: {count}")
        if len(expected.outputs) != len(found.outputs):
            return self._fail(state, found, f"{found.name}: has another signature")
        if self.exact:
            why = difference(expected.equation, found.equation)
            if why is not None:
                return self._fail(state, found, f"{found.name}: {why}")
        values = state.values | dict(zip(expected.outputs, found.outputs, strict=True))
        nodes = state.nodes | {expected: found}
        states = []
        for order in self._orders(expected, found):
            goals = state.goals
            for pair in reversed(list(zip(expected.inputs, order, strict=True))):
                goals = (pair, goals)
            states.append(_State(values, nodes, goals))
        return states

    def _orders(self, expected: Node, found: Node) -> list[list[Value]]:
        """The orders of the operands to try, the last first."""
        given = found.inputs
        if expected.name not in _COMMUTATIVE or given[0] is given[1]:
            return [given]
        orders = [
            order
            for order in (given[::-1], given)
            if all(map(_plausible, expected.inputs, order))
        ]
        return orders or [given]

    def _value(
        self, state: _State, expected: Value, found: Value, anchor: Node
    ) -> list[_State]:
        """Takes one value for another, if it is or can be made the same way."""
        given, found = found, meant(found)
        bound = state.values.get(expected)
        if expected.constant:
            exact = self.exact and found.constant
            fits = same_constant(expected, found) if exact else found.constant
        elif bound is not None:
            fits = meant(bound) is found or _same(bound, found)
        elif expected.producer is None:
            return [state._replace(values=state.values | {expected: given})]
        elif found.producer and _plausible(expected, found):
            return self._pair(state, expected.producer, found.producer)
        else:
            fits = False
        if fits:
            return [state]
        wanted = _told(expected) if bound is None else f"{_told(bound)} again"
        why = f"expected {wanted}, found {_told(found)}"
        return self._fail(state, given.producer or anchor, why)

    def _fail(self, state: _State, node: Node, why: str) -> list[_State]:
        self.closest.note(len(state.nodes), self.exact, node, why)
        return []


def _same(first: Value, second: Value) -> bool:
    return first.constant and second.constant and same_constant(first, second)


def _plausible(expected: Value, found: Value) -> bool:
    """Whether one value may stand for another, by a first look."""
    found = meant(found)
    if expected.constant:
        return found.constant
    made, wanted = found.producer, expected.producer
    if made is None or wanted is None:
        return wanted is None
    return made.name == wanted.name and found.place == expected.place


def _told(value: Value) -> str:
    """What a value is, in an error message."""
    if value.constant and value.aval.shape:
        return f"a constant {describe(value.spec)} (as an argument it could be any)"
    if value.constant:
        return f"the constant {value.value}"
    if value.producer is None:
        return "an input" if not value.known else "a leaf"
    return value.producer.name
