"""A jaxpr as a graph to search: values know who makes and who uses them.

Calls that inlining does not change are inlined, and equations nothing depends on are
left out, so that the same computation looks the same however it was wrapped.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from compiler import jaxprs
from compiler.graph import Graph
from compiler.paths import Namer, Origin, join
from compiler.rewrite import Event


@dataclasses.dataclass(eq=False, slots=True)
class Value:
    """A value of the graph.

    Attributes:
        aval: its abstract value.
        constant: whether it is written into the program, as `value`.
        value: the constant.
        known: whether it follows from leaves and constants alone.
        origin: where it comes from, as paths of operations are told.
        producer: the node that makes it, if one does.
        place: which of the node's outputs it is.
        consumers: the nodes that use it.
        escapes: whether it is an output of the view.
    """

    aval: Any
    constant: bool = False
    value: Any = None
    known: bool = False
    origin: Origin | None = None
    producer: Node | None = None
    place: int = 0
    consumers: list[Node] = dataclasses.field(default_factory=list)
    escapes: bool = False

    @property
    def spec(self) -> jax.ShapeDtypeStruct:
        """Its shape and dtype."""
        return jaxprs.spec(self)

    @property
    def number(self) -> Any:
        """The constant as numpy has it, a Python number where its dtype is weak."""
        if jax.dtypes.issubdtype(self.aval.dtype, jax.dtypes.extended):
            return self.value
        array = np.asarray(self.value, self.aval.dtype)
        return array.item() if self.spec.weak_type and not array.ndim else array[()]


@dataclasses.dataclass(eq=False, slots=True)
class Node:
    """An equation between values.

    Attributes:
        equation: the equation.
        inputs: its operands.
        outputs: its results.
        stack: the names of the scopes of the calls it was inlined from.
        path: where it belongs.
        number: its place in the order of the view.
        bodies: the jaxprs inside it, as views.
    """

    equation: jaxprs.Equation
    inputs: list[Value]
    outputs: list[Value]
    stack: Any
    path: str
    number: int = -1
    bodies: list[View] = dataclasses.field(default_factory=list)

    @property
    def name(self) -> str:
        """The name of its primitive."""
        return self.equation.primitive.name

    def event(self, what: str) -> Event:
        """Something that happened at it."""
        return Event(self.path or self.name, what, jaxprs.source(self.equation))

    @property
    def scope(self) -> Any:
        """The whole scope it is emitted in."""
        own = self.equation.source_info.name_stack
        return own if self.stack is None else self.stack + own


@dataclasses.dataclass(eq=False)
class View:
    """The nodes of one jaxpr that something depends on, in order.

    Attributes:
        nodes: every equation.
        inputs: what the jaxpr takes.
        outputs: what it returns.
    """

    nodes: list[Node]
    inputs: list[Value]
    outputs: list[Value]

    def by_primitive(self) -> dict[str, list[Node]]:
        """The nodes of each primitive, in order."""
        found: dict[str, list[Node]] = defaultdict(list)
        for node in self.nodes:
            found[node.name].append(node)
        return found


def meant(value: Value) -> Value:
    """The value itself, told to vary over the axes of a `shard_map` or not."""
    while value.producer is not None and value.producer.name == "pvary":
        value = value.producer.inputs[value.place]
    return value


def view_of_graph(graph: Graph) -> View:
    """A graph and everything inside it."""
    namer = Namer(graph)
    variables = graph.jaxpr.jaxpr.invars
    inputs = [
        Value(var.aval, known=i < len(graph.leaves), origin=origin)
        for i, (var, origin) in enumerate(
            zip(variables, namer.inputs(graph), strict=True)
        )
    ]
    return _Builder(namer).view(graph.jaxpr, inputs, "")


def view_of_jaxpr(jaxpr: jaxprs.Jaxpr) -> View:
    """A jaxpr that belongs to no program."""
    inputs = [Value(var.aval) for var in jaxpr.jaxpr.invars]
    return _Builder(Namer()).view(jaxpr, inputs, "")


class _Builder:
    def __init__(self, namer: Namer) -> None:
        self._namer = namer
        self._nodes: list[Node] = []

    def view(self, jaxpr: jaxprs.Jaxpr, inputs: list[Value], within: str) -> View:
        """Builds a view of its own, of the graph or of a body."""
        outer, self._nodes = self._nodes, []
        outputs = self._inline(jaxpr, inputs, None, within)
        nodes, self._nodes = _live(self._nodes, outputs), outer
        for number, node in enumerate(nodes):
            node.number = number
            for value in dict.fromkeys(node.inputs):
                value.consumers.append(node)
        for value in outputs:
            value.escapes = True
        return View(nodes, inputs, outputs)

    def _inline(
        self, jaxpr: jaxprs.Jaxpr, inputs: Sequence[Value], stack: Any, within: str
    ) -> list[Value]:
        env = {
            var: Value(var.aval, True, value, True)
            for var, value in zip(jaxpr.jaxpr.constvars, jaxpr.consts, strict=True)
        }
        env.update(zip(jaxpr.jaxpr.invars, inputs, strict=True))
        for equation in jaxprs.equations(jaxpr):
            given = [_operand(env, var) for var in equation.invars]
            scope = join(within, jaxprs.scope(equation))
            if jaxprs.is_plain_jit(equation):
                own = equation.source_info.name_stack
                inner = own if stack is None else stack + own
                (body,) = jaxprs.bodies(equation)
                results = self._inline(body.jaxpr, given, inner, scope)
            else:
                results = self._node(equation, given, stack, scope)
            env.update(zip(equation.outvars, results, strict=True))
        return [_operand(env, var) for var in jaxpr.jaxpr.outvars]

    def _node(
        self, equation: jaxprs.Equation, given: list[Value], stack: Any, scope: str
    ) -> list[Value]:
        equation, given = _spread_once(equation, given)
        origin = self._namer.name(scope, [v.origin for v in given if v.origin])
        known = all(value.known for value in given) and not equation.effects
        node = Node(equation, given, [], stack, origin.path)
        node.outputs = [
            Value(var.aval, known=known, origin=origin, producer=node, place=place)
            for place, var in enumerate(equation.outvars)
        ]
        self._nodes.append(node)
        for body in jaxprs.bodies(equation):
            inputs = [
                Value(
                    var.aval,
                    known=given[position].known and not carried,
                    origin=given[position].origin,
                )
                for var, position, carried in zip(
                    body.jaxpr.jaxpr.invars, body.operands, body.carried, strict=True
                )
            ]
            node.bodies.append(self.view(body.jaxpr, inputs, scope))
        return node.outputs


def _operand(env: dict[Any, Value], var: Any) -> Value:
    if jaxprs.is_literal(var):
        return Value(var.aval, True, var.val, True)
    return env[var]


def _spread_once(
    equation: jaxprs.Equation, given: list[Value]
) -> tuple[jaxprs.Equation, list[Value]]:
    """Makes a scalar that is broadcast in two steps one that is in one.

    `vmap` adds the batch in a second step, where the function without it has one.
    """
    first = given[0].producer if equation.primitive.name == "broadcast_in_dim" else None
    if first is None or first.name != "broadcast_in_dim" or first.inputs[0].aval.shape:
        return equation, given
    return jaxprs.with_params(equation, broadcast_dimensions=()), first.inputs[:1]


def _live(nodes: Sequence[Node], outputs: Sequence[Value]) -> list[Node]:
    """The nodes that some output, or an effect, depends on."""
    needed = {value.producer for value in outputs}
    kept = []
    for node in reversed(nodes):
        if node in needed or node.equation.effects:
            kept.append(node)
            needed.update(value.producer for value in node.inputs)
    return kept[::-1]
