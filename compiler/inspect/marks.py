"""Which path an operation of a compiled program belongs to."""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Sequence
from typing import Any

import jax

from compiler import jaxprs
from compiler.cost import arithmetic
from compiler.graph import Graph
from compiler.paths import Operation, flatten, operations

_MARK = "mapping.at-"
_MARKED = re.compile(re.escape(_MARK) + r"(\d+)")


_TRANSCENDENTAL = 16
"""Roughly how many multiplications one exp takes, to divide a fused operation."""


def mark(graph: Graph) -> tuple[Graph, list[Operation]]:
    """The same graph with a number in the scope of every equation; what they stand for.

    The compiler keeps scopes, so the numbers are found in what it makes of the graph.
    """
    numbered: list[Operation] = []

    def scope(operation: Operation) -> Any:
        numbered.append(operation)
        with jax.named_scope(f"{_MARK}{len(numbered) - 1}"):
            return jaxprs.current_scope()

    def marked(jaxpr: jaxprs.Jaxpr, inside: Sequence[Operation]) -> jaxprs.Jaxpr:
        kept = []
        for operation in inside:
            own = scope(operation)
            bodies = [
                body._replace(jaxpr=marked(body.jaxpr, within))
                for body, within in zip(
                    jaxprs.bodies(operation.equation), operation.bodies, strict=True
                )
            ]
            kept.append(jaxprs.placed(operation.equation, own, bodies))
        return jaxprs.with_equations(jaxpr, kept)

    new = marked(graph.jaxpr, operations(graph))
    return dataclasses.replace(graph, jaxpr=new), numbered


def place(operation: Operation) -> str:
    """The path of an operation; of a loop without one, what all it runs is inside."""
    if operation.path or not operation.bodies:
        return operation.path
    paths = {o.path for body in operation.bodies for o in flatten(body) if o.path}
    columns = zip(*(path.split("/") for path in paths), strict=False)
    shared = itertools.takewhile(lambda names: len(set(names)) == 1, columns)
    return "/".join(names[0] for names in shared)


def shares(
    scope: str, inside: Sequence[str], numbered: Sequence[Operation]
) -> dict[str, float]:
    """Which paths an operation of the compiled program belongs to, adding up to one.

    What was fused of several is divided by the arithmetic each has in it.

    Args:
        scope: of the compiled operation.
        inside: the scopes of what was fused into it.
        numbered: what the numbers in the scopes stand for.
    """
    found = dict.fromkeys(n for s in inside for n in _MARKED.findall(s)[-1:])
    parts: dict[str, float] = {}
    for operation in (numbered[int(number)] for number in found):
        flops, transcendentals = arithmetic(operation.equation) or (0, 0)
        work = flops + _TRANSCENDENTAL * transcendentals
        parts[place(operation)] = parts.get(place(operation), 0.0) + work
    whole = sum(parts.values())
    if whole:
        return {path: work / whole for path, work in parts.items() if work}
    last = _MARKED.findall(scope)[-1:]
    return {place(numbered[int(last[0])]) if last else "": 1.0}


def cut(path: str, depth: int | None) -> str:
    """The first names of a path."""
    return path if depth is None else "/".join(path.split("/")[:depth])
