"""Runs of groups that are alike, put into one box: layers_0 ... layers_499."""

from __future__ import annotations

import re
from collections.abc import Sequence

from compiler.inspect.view.boxes import Box

_LEAST, _LONGEST = 4, 64


def fold_repeats(root: Box) -> None:
    """Puts runs of alike groups, with what stands between them, into boxes.

    Groups are alike if their names differ in numbers only and they hold alike
    operations of the same shapes. A run has at least four of them.
    """
    known: dict[tuple[object, ...], int] = {}
    alike: dict[Box, int] = {}
    for box in reversed(list(root.walk())):
        name = re.sub(r"\d+", "#", box.name) if box.kind == "group" else box.name
        inside = tuple(alike[child] for child in box.children)
        own = (box.kind, name, box.shape, box.flops, inside)
        alike[box] = known.setdefault(own, len(known))
    for box in list(root.walk()):
        if len(box.children) > _LEAST:
            box.children = _folded(box, [alike[child] for child in box.children])


def _folded(box: Box, kinds: Sequence[int]) -> list[Box]:
    children, made, start = box.children, [], 0
    while start < len(children):
        length = _run(kinds, start) if children[start].kind == "group" else 0
        if length:
            made.append(_repeat(box, children[start : start + length]))
            start += length
        else:
            made.append(children[start])
            start += 1
    return made


def _run(kinds: Sequence[int], start: int) -> int:
    """How many boxes from `start` on repeat with some period, 0 if too few."""
    best = 0
    for period in range(1, _LONGEST + 1):
        last = start + period
        if last >= len(kinds) or kinds[last] != kinds[start]:
            continue
        while last < len(kinds) and kinds[last] == kinds[last - period]:
            last += 1
        whole = (last - start) // period
        if whole >= _LEAST:
            best = max(best, whole * period)
            break
    return best


def _repeat(box: Box, run: list[Box]) -> Box:
    groups = [child for child in run if child.kind == "group"]
    name = f"{groups[0].name} … {groups[-1].name}"
    made = Box("repeat", name, box.path, parent=box, note=f"{len(groups)} alike")
    for child in run:
        made.add(child)
    return made
