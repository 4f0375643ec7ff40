"""What flows where in a graph, through every call, loop and branch, as one flat list.

Every value of every body at every place has a number of its own, so one question
(what depends on this, what is needed without that) has one answer for the whole graph.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Container, Sequence
from typing import Any

from compiler import jaxprs
from compiler.graph import Graph
from compiler.paths import join

Place = tuple[int, ...]
"""Where an equation stands: its number, or that of what holds it, of the body in that,
and its number there."""

_CONSTANT = 0
"""The number of whatever is written into an equation."""

_ENTERED = frozenset(("jit", "closed_call", "remat2", "scan", "while", "cond"))


@dataclasses.dataclass
class Step:
    """One equation at one place, or a value on its way into a body or out of it.

    Attributes:
        inputs: numbers of the values it reads.
        outputs: of those it makes.
        equation: None where a value passes the border of a body.
        place: of the equation.
        scope: the whole scope it stands in.
        holders: names of the primitives it stands inside of.
        border: the primitive of the body it passes the border of, or none.
        feeds: values that come back in the next turn of a loop.
    """

    inputs: list[int]
    outputs: list[int]
    equation: jaxprs.Equation | None
    place: Place
    scope: str
    holders: tuple[str, ...]
    border: str = ""
    feeds: list[int] = dataclasses.field(default_factory=list)


class Flow:
    """The flow of one graph.

    Attributes:
        steps: in an order in which each comes after what it reads.
        made: for each value the number of the step that makes it, -1 for the graph's
            own inputs and constants.
        leaves: for each value that follows from leaves alone, bits of these leaves;
            None for the others.
        given: the values of the graph's own inputs, the leaves first.
        outputs: the values that leave the graph, or that something with effects reads.
    """

    def __init__(self, graph: Graph) -> None:
        """Numbers every value; plain calls should be inlined before."""
        self.steps: list[Step] = []
        self.made: list[int] = []
        self.leaves: list[int | None] = []
        self._effects: list[int] = []
        self._value(-1, 0)  # _CONSTANT
        count = len(graph.leaves)
        self.given = [
            self._value(-1, 1 << i if i < count else None)
            for i in range(len(graph.jaxpr.jaxpr.invars))
        ]
        outputs = self._enter(graph.jaxpr, self.given, (), "", ())
        self.outputs = [*outputs, *self._effects]

    def needed(self, instead: dict[int, int] | None = None) -> bytearray:
        """For each value, whether anything that leaves the graph depends on it.

        Args:
            instead: by the number of a step, the one value that stands for its result.
        """
        instead = instead or {}
        found = bytearray(len(self.made))
        waiting = list(self.outputs)
        while waiting:
            value = waiting.pop()
            if found[value]:
                continue
            found[value] = 1
            number = self.made[value]
            if number < 0:
                continue
            if number in instead:
                waiting.append(instead[number])
                continue
            step = self.steps[number]
            waiting.extend(step.inputs)
            waiting.extend(step.feeds)
        return found

    def before(self, value: int, since: int, stop: Container[int] = ()) -> set[int]:
        """A value and what it was made of, back to step `since` or where to stop."""
        found: set[int] = set()
        waiting = [value]
        while waiting:
            value = waiting.pop()
            if value in found:
                continue
            found.add(value)
            if self.made[value] > since and value not in stop:
                waiting.extend(self.steps[self.made[value]].inputs)
        return found

    def between(self, roots: set[int], value: int) -> set[int]:
        """What was made of some values on the way to another, which is among it."""
        since = min(self.made[root] for root in roots)
        behind = self.before(value, since, roots)
        found = roots & behind
        for step in self.steps[since + 1 :]:
            if not found.isdisjoint(step.inputs):
                found |= behind.intersection(step.outputs)
            if value in step.outputs:
                break
        return found - roots

    def _value(self, made: int, leaves: int | None) -> int:
        self.made.append(made)
        self.leaves.append(leaves)
        return len(self.made) - 1

    def _step(
        self,
        inputs: list[int],
        count: int,
        equation: jaxprs.Equation | None,
        where: tuple[Place, str, tuple[str, ...]],
        known: bool = True,
        border: str = "",
    ) -> Step:
        """Adds a step; what it makes is known if all it reads is."""
        bits: int | None = 0 if known else None
        for value in inputs:
            own = self.leaves[value]
            bits = None if bits is None or own is None else bits | own
        outputs = [self._value(len(self.steps), bits) for _ in range(count)]
        step = Step(inputs, outputs, equation, *where, border)
        self.steps.append(step)
        return step

    def _enter(
        self,
        jaxpr: jaxprs.Jaxpr,
        given: Sequence[int],
        place: Place,
        scope: str,
        holders: tuple[str, ...],
    ) -> list[int]:
        """Adds the steps of a jaxpr; returns the values of its outputs."""
        env: dict[Any, int] = dict(zip(jaxpr.jaxpr.invars, given, strict=True))
        env |= {var: self._value(-1, 0) for var in jaxpr.jaxpr.constvars}

        def look(var: Any) -> int:
            return _CONSTANT if jaxprs.is_literal(var) else env[var]

        for number, equation in enumerate(jaxprs.equations(jaxpr)):
            own = join(scope, jaxprs.scope(equation))
            where = ((*place, number), own, holders)
            inputs = [look(var) for var in equation.invars]
            outputs = self._add(equation, inputs, where)
            env.update(zip(equation.outvars, outputs, strict=True))
        return [look(var) for var in jaxpr.jaxpr.outvars]

    def _add(
        self,
        equation: jaxprs.Equation,
        inputs: list[int],
        where: tuple[Place, str, tuple[str, ...]],
    ) -> list[int]:
        bodies = jaxprs.bodies(equation)
        entered = equation.primitive.name in _ENTERED and not equation.effects
        if not bodies or not entered or any(jaxprs.has_refs(b.jaxpr) for b in bodies):
            known = not equation.effects
            step = self._step(inputs, len(equation.outvars), equation, where, known)
            if equation.effects:
                self._effects.extend(step.inputs)
            return step.outputs
        return self._through(equation, bodies, inputs, where)

    def _through(
        self,
        equation: jaxprs.Equation,
        bodies: Sequence[jaxprs.Body],
        inputs: list[int],
        where: tuple[Place, str, tuple[str, ...]],
    ) -> list[int]:
        """The values an equation makes with its bodies."""
        place, scope, holders = where
        name = equation.primitive.name
        inside = (*holders, name)
        results, entries = [], []
        for index, body in enumerate(bodies):
            doors = [
                self._step([inputs[i]], 1, None, where, not carried, name)
                for i, carried in zip(body.operands, body.carried, strict=True)
            ]
            given = [door.outputs[0] for door in doors]
            at = (*place, index)
            results.append(self._enter(body.jaxpr, given, at, scope, inside))
            entries.append(doors)
        decides: list[int] = [inputs[0]] if name == "cond" else []
        if name == "while":
            decides, results = results[0], results[1:]
        self._feed(equation, entries, results)
        outputs = []
        for number in range(len(equation.outvars)):
            read = [row[number] for row in results] + decides
            if name == "while":
                read.append(inputs[len(inputs) - len(results[0]) + number])
            outputs.extend(self._step(read, 1, None, where, border=name).outputs)
        return outputs

    def _feed(
        self,
        equation: jaxprs.Equation,
        entries: list[list[Step]],
        results: list[list[int]],
    ) -> None:
        """What a loop's body gives back comes in again."""
        name, params = equation.primitive.name, equation.params
        if name == "scan":
            starts = [
                (jaxprs.scan_counts(equation)[0], jaxprs.scan_counts(equation)[1])
            ]
        elif name == "while":
            count = len(results[0])
            starts = [(params["cond_nconsts"], count), (params["body_nconsts"], count)]
        else:
            return
        for doors, (start, count) in zip(entries, starts, strict=True):
            for number in range(count):
                doors[start + number].feeds.append(results[0][number])
