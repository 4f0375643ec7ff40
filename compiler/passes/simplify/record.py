"""What happened, counted by place and kind, so that a report stays short."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from compiler import jaxprs
from compiler.graph import Graph
from compiler.paths import flatten, join, operations, plain
from compiler.rewrite import Event, Events


@dataclasses.dataclass
class Record:
    """Counts what fires, by the path of the operation and the kind of change.

    Attributes:
        graph: whose operations have the paths.
    """

    graph: Graph

    def __post_init__(self) -> None:
        self._fired: dict[tuple[str, str], tuple[int, jaxprs.Equation]] = {}
        self._paths: dict[Any, str] | None = None

    def draft(self) -> Record:
        """An empty record for what may yet be done otherwise."""
        new = Record(self.graph)
        new._paths = self._known()
        return new

    def fired(self, what: str, equation: jaxprs.Equation) -> None:
        """Counts one change of an equation."""
        key = (self._path(equation), what)
        count, first = self._fired.get(key, (0, equation))
        self._fired[key] = (count + 1, first)

    def merge(self, other: Record) -> None:
        """Counts what another record has counted."""
        for (path, what), (count, equation) in other._fired.items():
            have, first = self._fired.get((path, what), (0, equation))
            self._fired[path, what] = (have + count, first)

    def same_path(
        self, made: Sequence[Any], equation: jaxprs.Equation, outer: jaxprs.Equation
    ) -> None:
        """Equations that take the place of others have the path of those."""
        path = join(self._path(outer), plain(jaxprs.scope(equation)))
        self._known().update(dict.fromkeys(made, path))

    def events(self) -> Events:
        """One event for each place and kind."""
        return Events(
            [
                Event(
                    path or equation.primitive.name,
                    what if count == 1 else f"{what}, {count} times",
                    jaxprs.source(equation),
                )
                for (path, what), (count, equation) in self._fired.items()
            ]
        )

    def _path(self, equation: jaxprs.Equation) -> str:
        outvars = equation.outvars
        return self._known().get(outvars[0], "") if outvars else ""

    def _known(self) -> dict[Any, str]:
        """The path of each variable of the graph; told once something fires."""
        if self._paths is None:
            self._paths = {
                var: operation.path
                for operation in flatten(operations(self.graph))
                for var in operation.equation.outvars
            }
        return self._paths
