"""Where the nodes of a graph stand when it is drawn from top to bottom."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping as Dict
from collections.abc import Sequence


@dataclasses.dataclass(frozen=True)
class Place:
    """The centre of a node: layers go down, columns go right, both from zero."""

    layer: int
    column: float


def layered(
    nodes: Sequence[str], parents: Dict[str, Sequence[str]]
) -> dict[str, Place]:
    """Lays a directed acyclic graph out in layers.

    Each node stands one layer below its lowest parent, and in its layer in the
    order of the mean column of its parents (one barycentre sweep of Sugiyama et
    al., 1981), centred.

    Args:
        nodes: in an order where parents come first.
        parents: of each node.

    >>> layered(["a", "b", "c"], {"b": ["a"], "c": ["a", "b"]})["c"].layer
    2
    """
    layer: dict[str, int] = {}
    for node in nodes:
        layer[node] = 1 + max((layer[p] for p in parents.get(node, ())), default=-1)
    rows: dict[int, list[str]] = {}
    for node in nodes:
        rows.setdefault(layer[node], []).append(node)
    column: dict[str, float] = {}
    for _, row in sorted(rows.items()):
        row.sort(key=lambda node: _mean([column[p] for p in parents.get(node, ())]))
        for i, node in enumerate(row):
            column[node] = i - (len(row) - 1) / 2
    left = min(column.values(), default=0.0)
    return {node: Place(layer[node], column[node] - left) for node in nodes}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
