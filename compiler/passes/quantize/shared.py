"""Which activations have to share a scale, because the graph puts them side by side.

What is concatenated, added to a residual, pooled or only moved stays in integers only
if all of it is on one grid.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from compiler import jaxprs
from compiler.graph import Graph
from compiler.sites import keyed

_SAME_GRID = frozenset(
    (
        "broadcast_in_dim",
        "concatenate",
        "convert_element_type",
        "copy",
        "dynamic_slice",
        "expand_dims",
        "gather",
        "pad",
        "reduce_max",
        "reduce_window_max",
        "reshape",
        "rev",
        "select_n",
        "slice",
        "split",
        "squeeze",
        "stop_gradient",
        "transpose",
    )
)
_CALLS = frozenset(
    ("jit", "closed_call", "remat2", "custom_jvp_call", "custom_vjp_call")
)


def shared(graph: Graph) -> list[tuple[str, ...]]:
    """The keys of products whose activations share a scale, in groups of two or more.

    >>> import jax.numpy as jnp, compiler as mc
    >>> def f(v, x, y):
    ...     both = jnp.concatenate([x, y], 1)
    ...     return x @ v["a"], y @ v["b"], both @ v["c"], jnp.tanh(x) @ v["d"]
    >>> v = {"a": jnp.eye(4), "b": jnp.eye(4), "c": jnp.eye(8), "d": jnp.eye(4)}
    >>> program = mc.trace(f, v, jnp.ones((2, 4)), jnp.ones((2, 4)))
    >>> shared(program.graph)
    [('a', 'b', 'c')]
    """
    graph = dataclasses.replace(graph, jaxpr=jaxprs.distinct(graph.jaxpr))
    walk = _Walk(graph)
    walk.follow(graph.jaxpr, [_Node() for _ in graph.jaxpr.jaxpr.invars])
    groups: dict[_Node, list[str]] = {}
    for key, nodes in walk.activations.items():
        for node in nodes[1:]:
            nodes[0].join(node)
        groups.setdefault(nodes[0].root(), []).append(key)
    merged: dict[_Node, list[str]] = {}
    for node, keys in groups.items():
        merged.setdefault(node.root(), []).extend(keys)
    return [tuple(sorted(keys)) for keys in merged.values() if len(keys) > 1]


class _Node:
    """A value; those that were joined have one root."""

    def __init__(self) -> None:
        self.parent: _Node | None = None

    def root(self) -> _Node:
        node = self
        while node.parent is not None:
            node = node.parent
        return node

    def join(self, other: _Node) -> None:
        one, another = self.root(), other.root()
        if one is not another:
            another.parent = one


class _Walk:
    """Follows values through a graph, and joins those on one grid."""

    def __init__(self, graph: Graph) -> None:
        self.activations: dict[str, list[_Node]] = {}
        self._sites: dict[int, list[tuple[str, int]]] = {}
        for key, site in keyed(graph).items():
            if site.kind != "lookup":
                found = self._sites.setdefault(id(site.equation), [])
                found.append((key, 1 - site.operand))

    def follow(self, jaxpr: jaxprs.Jaxpr, given: Sequence[_Node]) -> list[_Node]:
        """What the outputs of a jaxpr are on one grid with."""
        env: dict[Any, _Node] = {v: _Node() for v in jaxpr.jaxpr.constvars}
        env |= zip(jaxpr.jaxpr.invars, given, strict=True)

        def look(var: Any) -> _Node:
            return _Node() if jaxprs.is_literal(var) else env[var]

        for equation in jaxprs.equations(jaxpr):
            operands = [look(var) for var in equation.invars]
            for key, place in self._sites.get(id(equation), ()):
                self.activations.setdefault(key, []).append(operands[place])
            results = self._results(equation, operands)
            env.update(zip(equation.outvars, results, strict=True))
        return [look(var) for var in jaxpr.jaxpr.outvars]

    def _results(
        self, equation: jaxprs.Equation, operands: Sequence[_Node]
    ) -> Sequence[_Node]:
        name, bodies = equation.primitive.name, jaxprs.bodies(equation)
        if name in _CALLS and bodies:
            body = bodies[0]
            return self.follow(body.jaxpr, [operands[i] for i in body.operands])
        for body in bodies:
            self.follow(body.jaxpr, [_Node() for _ in body.operands])
        results = [_Node() for _ in equation.outvars]
        if name in _SAME_GRID or _cuts_off(equation):
            together = [*_moved(equation, operands), *results]
            for node in together[1:]:
                together[0].join(node)
        elif name == "add":
            operands[0].join(operands[1])
        return results


def _moved(equation: jaxprs.Equation, operands: Sequence[_Node]) -> Sequence[_Node]:
    """The operands whose values the result holds: no indices, no condition."""
    name = equation.primitive.name
    if name == "concatenate":
        return operands
    if name == "select_n":
        return operands[1:]
    return operands[:1]


def _cuts_off(equation: jaxprs.Equation) -> bool:
    """Whether it is a maximum or minimum with a number (relu, relu6)."""
    limits = equation.primitive.name in ("max", "min")
    return limits and any(map(jaxprs.is_literal, equation.invars))
