"""A graph with adapters beside its weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from compiler import jaxprs
from compiler.graph import Graph, drop_dead
from compiler.passes.adapt.plan import Adapter, Partitioned, Plan
from compiler.passes.adapt.storage import Storage
from compiler.passes.factorize.rewriting import Report, factored
from compiler.passes.factorize.symbolic import evaluate
from compiler.rewrite import Event, Events


def adapted(before: Storage, decided: Plan, events: Events) -> Graph:
    """The graph with adapters, what is trained told from what is frozen."""
    report, graph = Report(), before.logical
    new = _with_adapters(before, decided, report, set())
    if report.repeated:
        new = _with_adapters(before, decided, Report(), report.repeated)
    for adapter in decided.adapters:
        events.fired.append(_told(adapter, report.multiplied(adapter.matrix.path)))
    old = graph.packing
    old = old.before if isinstance(old, Partitioned) else old
    return dataclasses.replace(new, packing=Partitioned(None, True, before=old))


def _with_adapters(
    before: Storage, decided: Plan, report: Report, whole: set[str]
) -> Graph:
    """The graph with adapters; those of `whole` are multiplied out once, first."""
    graph, integer = before.logical, before.integer
    specs = decided.specs(graph)
    adapters = {adapter.base: adapter for adapter in decided.adapters}

    def value(path: str, new: str, given: dict[str, Any]) -> Any:
        if new not in adapters:
            return given[new]
        one = adapters[new]
        a, b, base = given[one.a], given[one.b], given[new]
        apart = path in integer
        made = factored(one.matrix, a, b, report, base, one.scale, apart)
        return made.dense() if path in whole else made

    def function(*arguments: Any) -> list[Any]:
        given = dict(zip(specs, arguments, strict=False))
        leaves = [value(path, new, given) for path, new in decided.renamed]
        return evaluate(graph.jaxpr, [*leaves, *arguments[len(specs) :]])

    jaxpr = drop_dead(jaxprs.make(function, [*specs.values(), *graph.inputs]))
    return graph.with_leaves(list(specs), jaxpr)


def _told(adapter: Adapter, dense: Sequence[str]) -> Event:
    stack, rows, columns = adapter.matrix.extents
    text = (
        f"{rows} x {columns} adapted with rank {adapter.rank}, "
        f"{stack * adapter.rank * (rows + columns)} numbers to train"
    )
    if dense:
        text += f"; multiplied out for {', '.join(dense)}"
    return Event(adapter.matrix.path, text)
