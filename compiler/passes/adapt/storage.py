"""A program's weights apart from how many bits they are stored in."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

from compiler.graph import Graph
from compiler.passes.quantize.physical import Stored, origin, parts, physical
from compiler.passes.quantize.training.trained import Trained

Held = dict[str, dict[str, Any]]
"""By the path of a weight: what is stored of it, by name."""


@dataclasses.dataclass(frozen=True)
class Storage:
    """A graph of floating weights, and which of them are stored in few bits.

    Attributes:
        logical: the graph.
        stored: how they are stored.
    """

    logical: Graph
    stored: Stored

    @classmethod
    def of(cls, graph: Graph) -> Storage:
        """What a graph was made from; itself if it is not quantized."""
        return cls(*origin(graph))

    @property
    def trained(self) -> bool:
        """Whether weights are still floating, to be stored once they are trained."""
        return isinstance(self.stored, Trained) and bool(self.stored.trained)

    @functools.cached_property
    def parts(self) -> set[str]:
        """The paths of leaves that are parts of a weight rewritten since."""
        return parts(self.logical)

    def scheme(self, path: str) -> str | None:
        """What a weight is stored in; None if it is as it is."""
        encoding = self.stored.encodings.get(path)
        return None if encoding is None else str(encoding.scheme)

    @property
    def integer(self) -> set[str]:
        """The paths of weights that are multiplied as integers."""
        return {key.partition("#")[0] for key in self.stored.activations}

    def changed(self, logical: Graph, names: Mapping[str, str]) -> Storage:
        """Another graph; the weights that have a new name are stored as they were."""
        return Storage(logical, self.stored.renamed(names))

    def physical(self, before: Graph) -> Graph:
        """The graph that takes what is stored.

        Args:
            before: what it was made from, quantized.
        """
        if not self.stored.encodings:
            return self.logical
        graph, _ = physical(self.logical, self.stored)
        return dataclasses.replace(graph, coverage=before.coverage)

    def held(self, leaves: Sequence[Any]) -> Held:
        """The leaves of the physical graph, told apart."""
        given = iter(leaves)
        names = self.stored.names(self.logical)
        return {
            path: {name: next(given) for name in found} for path, found in names.items()
        }

    def value(self, path: str, held: Held) -> Any:
        """The floating weight of a path."""
        if path not in self.stored.encodings:
            return held[path][""]
        return self.stored.encodings[path].decode(held[path])

    def leaves(self, held: Held) -> list[Any]:
        """The leaves of the physical graph."""
        names = self.stored.names(self.logical)
        return [held[path][name] for path, found in names.items() for name in found]
