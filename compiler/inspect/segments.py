"""A graph cut where the path changes, to run its parts alone."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

from compiler import jaxprs
from compiler.graph import Graph, evaluate
from compiler.inspect.marks import cut, place
from compiler.paths import operations


def parts(
    graph: Graph, depth: int | None
) -> Iterator[tuple[str, list[Any], list[Any]]]:
    """Runs of equations of one path, with what each reads and what it must return."""
    runs = [
        (path, [operation.equation for operation in run])
        for path, run in itertools.groupby(
            operations(graph), key=lambda operation: cut(place(operation), depth or 1)
        )
    ]
    needed = jaxprs.variables(graph.jaxpr.jaxpr.outvars)
    constants = set(graph.jaxpr.jaxpr.constvars)
    found = []
    for path, equations in reversed(runs):
        made = {v: None for equation in equations for v in equation.outvars}
        read = {
            v: None for equation in equations for v in jaxprs.reads(equation.invars)
            if v not in made and v not in constants
        }  # fmt: skip
        writes = [v for v in made if v in needed]
        needed.update(read)
        if writes:
            found.append((path, list(read), writes))
    yield from reversed(found)


def part(
    jaxpr: jaxprs.Jaxpr, reads: Sequence[Any], writes: Sequence[Any], values: Any
) -> list[Any]:
    """Computes what a segment writes from what it reads."""
    return evaluate(jaxpr, dict(zip(reads, values, strict=True)), writes)
