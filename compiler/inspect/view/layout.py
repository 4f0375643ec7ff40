"""Where the boxes inside a box stand: in layers, from top to bottom.

`page/layout.js` is the same in the browser, where boxes are opened and closed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence, Set

GAP_X, GAP_Y, LANE, LANES = 18, 30, 10, 12


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a box stands inside another, in pixels; `layer` counts from the top."""

    x: float
    y: float
    layer: int


@dataclasses.dataclass(frozen=True)
class Line:
    """The way of an edge from one box to a later one.

    Attributes:
        start: the place of the box it leaves.
        end: of the box it enters.
        leave: the y below the row it leaves.
        enter: the y above the row it enters.
        lane: the x it goes down at, or None if the rows are next to each other.
    """

    start: int
    end: int
    leave: float
    enter: float
    lane: float | None


@dataclasses.dataclass(frozen=True)
class Layout:
    """Places and lines, and how much room they take."""

    places: tuple[Place, ...]
    lines: tuple[Line, ...]
    width: float
    height: float


def arrange(
    sizes: Sequence[tuple[float, float]],
    edges: Iterable[tuple[int, int]],
    early: Set[int] = frozenset(),
) -> Layout:
    """Lays boxes out in layers, what is on the way first (Sugiyama et al., 1981).

    A box stands below all it reads from; what is early (prepared beside the way
    from inputs to outputs) just above the first that needs it, to the right. An
    edge to the row below goes straight, a longer one down a lane at the nearer side,
    and one that goes back up a lane at the right.

    Args:
        sizes: width and height of each box, in pixels, in the order of the program.
        edges: pairs of places of boxes.
        early: places of boxes that depend on leaves alone.

    >>> arrange([(10, 10), (10, 10)], [(0, 1)]).places[1]
    Place(x=0.0, y=40.0, layer=1)
    """
    edges = list(dict.fromkeys(edges))
    parents: list[list[int]] = [[] for _ in sizes]
    for start, end in edges:
        if start < end:
            parents[end].append(start)
    layer, side = _layers(parents, early)
    rows: list[list[int]] = [[] for _ in range(max(layer, default=-1) + 1)]
    for box, number in enumerate(layer):
        rows[number].append(box)
    tops, bottoms = _heights(rows, sizes)
    x = _columns(rows, parents, sizes, side)
    left = min(x, default=0.0)
    right = max((at + sizes[i][0] for i, at in enumerate(x)), default=0.0)
    middle = [at + size[0] / 2 for at, size in zip(x, sizes, strict=True)]
    lines, far_left, far_right = _lines(
        edges, layer, tops, bottoms, middle, (left, right)
    )
    places = tuple(
        Place(at - far_left, tops[layer[i]], layer[i]) for i, at in enumerate(x)
    )
    moved = tuple(
        dataclasses.replace(line, lane=line.lane - far_left)
        if line.lane is not None
        else line
        for line in lines
    )
    return Layout(places, moved, far_right - far_left, max(bottoms, default=0.0))


def _layers(
    parents: Sequence[Sequence[int]], early: Set[int]
) -> tuple[list[int], set[int]]:
    """The layer of each box, and which stand beside the way."""
    layer: list[int | None] = [None] * len(parents)
    side: set[int] = set()
    for box, above in enumerate(parents):
        if box in early and side.issuperset(above):
            side.add(box)
        else:
            layer[box] = 1 + max(
                (layer[p] or 0 for p in above if p not in side), default=-1
            )
    for box in range(len(parents) - 1, -1, -1):
        below = layer[box]
        below = layer[box] = 0 if below is None else below
        for parent in parents[box]:
            if parent in side:
                now = layer[parent]
                layer[parent] = below - 1 if now is None else min(now, below - 1)
    numbers = [number or 0 for number in layer]
    first = min(numbers, default=0)
    return [number - first for number in numbers], side


def _heights(
    rows: Sequence[Sequence[int]], sizes: Sequence[tuple[float, float]]
) -> tuple[list[float], list[float]]:
    """Where each row begins and ends."""
    tops, bottoms, y = [], [], 0.0
    for row in rows:
        tops.append(y)
        bottoms.append(y + max((sizes[box][1] for box in row), default=0))
        y = bottoms[-1] + GAP_Y
    return tops, bottoms


def _columns(
    rows: Sequence[Sequence[int]],
    parents: Sequence[Sequence[int]],
    sizes: Sequence[tuple[float, float]],
    side: Set[int],
) -> list[float]:
    """The left edge of each box: below its parents, next to one another."""
    middle: dict[int, float] = {}
    for row in rows:
        wanted = {
            box: _mean([middle[p] for p in parents[box] if p in middle]) for box in row
        }
        way = sorted((box for box in row if box not in side), key=wanted.__getitem__)
        at, edge = {}, float("-inf")
        for box in way:
            at[box] = max(wanted[box] - sizes[box][0] / 2, edge)
            edge = at[box] + sizes[box][0] + GAP_X
        drift = _mean([at[b] + sizes[b][0] / 2 - wanted[b] for b in way])
        edge = edge - drift if way else 0.0
        for box in way:
            middle[box] = at[box] - drift + sizes[box][0] / 2
        for box in row:
            if box in side:
                middle[box] = edge + sizes[box][0] / 2
                edge += sizes[box][0] + GAP_X
    return [middle[box] - size[0] / 2 for box, size in enumerate(sizes)]


def _mean(numbers: Sequence[float]) -> float:
    return sum(numbers) / len(numbers) if numbers else 0.0


def _lines(
    edges: Sequence[tuple[int, int]],
    layer: Sequence[int],
    tops: Sequence[float],
    bottoms: Sequence[float],
    middle: Sequence[float],
    ends: tuple[float, float],
) -> tuple[list[Line], float, float]:
    """The ways of the edges, and how far they reach to the left and to the right.

    All long edges that leave a box share a lane, on the side that is nearer to it.
    """
    down: dict[int, int] = {}
    up: dict[int, int] = {}
    for start, end in edges:
        if layer[end] > layer[start] + 1:
            down[start] = max(down.get(start, 0), layer[end])
        elif layer[end] <= layer[start]:
            up[start] = min(up.get(start, layer[start]), layer[end])
    left, right = ends
    half = (left + right) / 2 + 1
    spans = [(layer[box], box, end, middle[box] > half) for box, end in down.items()]
    back = [(end, -1 - box, layer[box] + 1, True) for box, end in up.items()]
    lefts, far_left = _lanes([span[:3] for span in spans if not span[3]])
    rights, far_right = _lanes([span[:3] for span in (*spans, *back) if span[3]])
    at = {box: left - LANE * (lane + 1) for box, lane in lefts.items()}
    at |= {box: right + LANE * (lane + 1) for box, lane in rights.items()}
    lines = []
    for start, end in edges:
        near = layer[end] == layer[start] + 1
        key = start if layer[end] > layer[start] else -1 - start
        lane = None if near else at[key]
        lines.append(Line(start, end, bottoms[layer[start]], tops[layer[end]], lane))
    return lines, left - _room(far_left), right + _room(far_right)


def _room(lanes: int) -> int:
    return LANE * (lanes + 1) if lanes else 0


def _lanes(spans: Iterable[tuple[int, int, int]]) -> tuple[dict[int, int], int]:
    """A lane for each span of rows, so that few overlap, and how many there are."""
    ends: list[int] = []
    chosen: dict[int, int] = {}
    for begin, box, end in sorted(spans):
        free = next((lane for lane, until in enumerate(ends) if until <= begin), -1)
        if free < 0 and len(ends) < LANES:
            free = len(ends)
            ends.append(end)
        lane = free if free >= 0 else ends.index(min(ends))
        ends[lane] = max(end, ends[lane])
        chosen[box] = lane
    return chosen, len(ends)
