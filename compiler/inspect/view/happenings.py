"""What passes did, each with the boxes it was done to."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from compiler.inspect.view.boxes import Box, Tree
from compiler.paths import plain
from compiler.rewrite import Event

if TYPE_CHECKING:
    from compiler.program import Program


@dataclasses.dataclass(frozen=True)
class Happening:
    """One pass.

    Attributes:
        step: the pass.
        fired: what it did, with the boxes of each tree it was done to.
        skipped: what it left alone and why, likewise.
    """

    step: str
    fired: tuple[tuple[Event, tuple[Box | None, ...]], ...]
    skipped: tuple[tuple[Event, tuple[Box | None, ...]], ...]

    def as_data(self) -> dict[str, Any]:
        """As the page reads it: a box is its index, or -1."""

        def one(event: Event, boxes: tuple[Box | None, ...]) -> list[Any]:
            found = [-1 if box is None else box.index for box in boxes]
            return [event.path, event.what, event.source, found]

        return {
            "step": self.step,
            "fired": [one(*happened) for happened in self.fired],
            "skipped": [one(*happened) for happened in self.skipped],
        }


def happenings(
    before: Program, after: Program, trees: Sequence[Tree]
) -> list[Happening]:
    """What the passes did that made one program from the other.

    All passes of `after` if it was not made from `before`.
    """
    shared = before.history == after.history[: len(before.history)]
    finders = [_Finder(tree) for tree in trees]
    found = []
    for applied in after.history[len(before.history) if shared else 0 :]:
        fired, skipped = (
            tuple((event, tuple(f.find(event) for f in finders)) for event in events)
            for events in (applied.events.fired, applied.events.skipped)
        )
        found.append(Happening(str(applied.step), fired, skipped))
    return found


class _Finder:
    """Finds the box an event is about: its operation, its leaf, or its group."""

    def __init__(self, tree: Tree) -> None:
        self._lines: dict[tuple[str, str], Box] = {}
        self._paths: dict[str, Box] = {}
        self._leaves: dict[str, Box] = {}
        for box in tree.boxes[1:]:
            if box.source:
                self._lines.setdefault((box.path, box.source), box)
                self._lines.setdefault(("", box.source), box)
            self._paths.setdefault(box.path, box)
            for leaf in box.reads:
                self._leaves.setdefault(leaf.path, box)

    def find(self, event: Event) -> Box | None:
        """The box, or None if the tree has none."""
        for path in (event.path, plain(event.path)):
            if (path, event.source) in self._lines and event.source:
                return self._lines[path, event.source]
            if path and path in self._paths:
                return self._paths[path]
        if event.path in self._leaves:
            return self._leaves[event.path]
        return self._lines.get(("", event.source)) if event.source else None
