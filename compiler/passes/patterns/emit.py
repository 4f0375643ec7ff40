"""The program with the replacements in place of what matched."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from compiler import jaxprs
from compiler.graph import drop_dead
from compiler.passes.patterns.pattern import name_of
from compiler.passes.patterns.place import Place
from compiler.passes.patterns.replacement import Replacement
from compiler.passes.patterns.search import Plan
from compiler.passes.patterns.view import Node, Value
from compiler.rewrite import Events


class Emit:
    """Emits what plans say.

    Attributes:
        replacement: what stands in the places.
        events: where what is done is recorded.
    """

    def __init__(self, replacement: Replacement, events: Events) -> None:
        self.replacement = replacement
        self.events = events
        self._named = 0  # how many axes with names what is emitted is inside of

    def jaxpr(self, plan: Plan) -> jaxprs.Jaxpr:
        """The planned program as a jaxpr."""
        specs = [value.spec for value in plan.view.inputs]
        return drop_dead(jaxprs.make(lambda *values: self._run(plan, values), specs))

    def _run(self, plan: Plan, values: Sequence[Any]) -> list[Any]:
        env = dict(zip(plan.view.inputs, values, strict=True))
        outer = jaxprs.current_scope()
        for step in _steps(plan):
            if isinstance(step, Place):
                env.update(self._replaced(step, env))
                continue
            with jaxprs.provenance(step.equation, outer + step.scope):
                made = zip(step.outputs, self._node(plan, step, env), strict=True)
            env.update({v: result for v, result in made if v not in env})
        return [_read(env, value) for value in plan.view.outputs]

    def _node(self, plan: Plan, node: Node, env: dict[Value, Any]) -> list[Any]:
        operands = [_read(env, value) for value in node.inputs]
        plans = plan.bodies.get(node, [])
        if all(inner.empty for inner in plans):
            return jaxprs.bind(node.equation, operands)
        if node.name == "shard_map":  # its axes have names inside only
            return self._sharded(plans[0], node, operands)
        bodies = [
            body if inner.empty else body._replace(jaxpr=self.jaxpr(inner))
            for body, inner in zip(jaxprs.bodies(node.equation), plans, strict=True)
        ]
        return jaxprs.rebind(node.equation, operands, bodies)

    def _sharded(self, plan: Plan, node: Node, operands: list[Any]) -> list[Any]:
        def run(*values: Any) -> tuple[Any, ...]:
            return tuple(self._run(plan, values))

        self._named += 1
        results = jaxprs.sharded(node.equation, run)(*operands)
        self._named -= 1
        return list(results)

    def _replaced(self, place: Place, env: dict[Value, Any]) -> dict[Value, Any]:
        flat = [v.number if v.constant else env[v] for v in place.arguments]
        results = self.replacement.emit(place, flat, self._named > 0)
        told = (
            f"{self.replacement.pattern.name} -> {name_of(self.replacement.function)}"
        )
        self.events.fired.append(place.event(told))
        return dict(zip(place.outputs, results, strict=True))


def _steps(plan: Plan) -> list[Node | Place]:
    """The equations that stay and the places, in an order that computes them."""
    gone = {node for place in plan.places for node in place.nodes - place.kept}
    staying = [(node.number, 1, node) for node in plan.view.nodes if node not in gone]
    places = [(place.slot, 0, place) for place in plan.places]
    ordered = sorted([*staying, *places], key=lambda step: step[:2])
    return [step for _, _, step in ordered]


def _read(env: dict[Value, Any], value: Value) -> Any:
    return value.value if value.constant else env[value]
