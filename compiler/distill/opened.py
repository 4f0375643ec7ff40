"""A graph without calls, and what is found in it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from compiler import jaxprs
from compiler.graph import Graph, run


def opened(graph: Graph) -> Graph:
    """The graph with plain calls inlined, at every depth.

    Every body is then an object of its own, and every scope a whole one.
    """
    return dataclasses.replace(graph, jaxpr=_opened(graph.jaxpr))


def _opened(jaxpr: jaxprs.Jaxpr) -> jaxprs.Jaxpr:
    def step(equation: jaxprs.Equation, operands: list[Any]) -> list[Any]:
        bodies = jaxprs.bodies(equation)
        if jaxprs.is_plain_jit(equation):
            return run(bodies[0].jaxpr, operands, step)
        if equation.primitive.name == "shard_map" or any(
            jaxprs.has_refs(body.jaxpr) for body in bodies
        ):
            return jaxprs.bind(equation, operands)
        inner = [body._replace(jaxpr=_opened(body.jaxpr)) for body in bodies]
        return jaxprs.rebind(equation, operands, inner)

    specs = [jaxprs.spec(var) for var in jaxpr.jaxpr.invars]
    return jaxprs.make(lambda *values: run(jaxpr, values, step), specs)


def softmaxes(jaxpr: jaxprs.Jaxpr) -> set[int]:
    """Numbers of the equations that divide exponentials by their sum."""
    made = {v: e for e in jaxprs.equations(jaxpr) for v in e.outvars}
    return {
        number
        for number, equation in enumerate(jaxprs.equations(jaxpr))
        if equation.primitive.name == "div"
        and _name(made, equation.invars[0]) == "exp"
        and any(
            e.primitive.name == "reduce_sum" and e.invars[0] is equation.invars[0]
            for e in _behind(made, equation.invars[1])
        )
    }


def _name(made: dict[Any, Any], var: Any) -> str:
    known = not jaxprs.is_literal(var) and var in made
    return made[var].primitive.name if known else ""


_VIEWS = ("broadcast_in_dim", "reshape", "expand_dims", "convert_element_type", "copy")


def _behind(made: dict[Any, Any], var: Any) -> Iterator[jaxprs.Equation]:
    """What made a value, and what made what it is a view of."""
    while not jaxprs.is_literal(var) and var in made:
        yield made[var]
        if made[var].primitive.name not in _VIEWS:
            return
        var = made[var].invars[0]
