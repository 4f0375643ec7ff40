"""Plain calls replaced by what they do, so that few bodies are left to look into."""

from __future__ import annotations

import dataclasses
from weakref import WeakKeyDictionary

from compiler.graph import Graph
from compiler.passes.simplify.control import CALLS
from compiler.passes.simplify.record import Record
from compiler.passes.simplify.sweep import Scope, Settings


def inlined(graph: Graph) -> Graph:
    """The same graph with plain calls replaced by what they do."""
    if graph not in _INLINED:
        settings = Settings(CALLS, False, Record(graph))
        jaxpr = Scope(settings).run(graph.jaxpr, {})
        _INLINED[graph] = dataclasses.replace(graph, jaxpr=jaxpr)
    return _INLINED[graph]


_INLINED: WeakKeyDictionary[Graph, Graph] = WeakKeyDictionary()
"""What was done before: a pass asks several times about one graph."""
