"""Where the nodes of a graph stand when it is drawn from top to bottom."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping as Dict
from collections.abc import Sequence, Set


@dataclasses.dataclass(frozen=True)
class Place:
    """A cell of the drawing: layers go down, columns go right, both from zero."""

    layer: int
    column: int


def layered(
    nodes: Sequence[str], parents: Dict[str, Sequence[str]], side: Set[str]
) -> dict[str, Place]:
    """Lays a directed acyclic graph out in layers, what is on the way first.

    A node stands one layer below its lowest parent; one of the `side` (what is
    prepared beside the way from inputs to outputs) just above the first node that
    needs it. In a layer the way comes first, in the order of the columns of the
    parents (a barycentre sweep, Sugiyama et al., 1981), then the side.

    Args:
        nodes: in an order where parents come first.
        parents: of each node.
        side: the nodes beside the way; all of a side node's parents are too.

    >>> places = layered(["w", "a", "b"], {"a": [], "b": ["a", "w"]}, {"w"})
    >>> [(p.layer, p.column) for p in places.values()]
    [(0, 0), (0, 1), (1, 0)]
    """
    layer: dict[str, int] = {}
    for node in nodes:
        if node not in side:
            above = [layer[p] for p in parents.get(node, ()) if p not in side]
            layer[node] = 1 + max(above, default=-1)
    for node in reversed(nodes):
        for parent in parents.get(node, ()):
            if parent in side:
                below = layer.setdefault(node, 0)
                layer[parent] = min(layer.get(parent, below), below - 1)
    first = min(layer.values(), default=0)
    rows: dict[int, list[str]] = {}
    for node in nodes:
        rows.setdefault(layer.setdefault(node, 0) - first, []).append(node)
    places: dict[str, Place] = {}
    for number, row in sorted(rows.items()):
        columns = {node: _column(parents.get(node, ()), places) for node in row}
        row.sort(key=lambda node, at=columns: (node in side, at[node]))
        places |= {node: Place(number, i) for i, node in enumerate(row)}
    return places


def _column(parents: Sequence[str], places: dict[str, Place]) -> float:
    """The mean column of the parents placed so far."""
    columns = [places[parent].column for parent in parents if parent in places]
    return sum(columns) / len(columns) if columns else 0.0
