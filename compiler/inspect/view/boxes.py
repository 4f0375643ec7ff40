"""A graph as boxes in boxes: groups by path, bodies of loops, operations."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from compiler.graph import Leaf
from compiler.inspect.view.amounts import short

SYMBOLIC = "depends on symbols, not counted"
"""The note of an operation whose cost no number tells."""


@dataclasses.dataclass(eq=False, slots=True)
class Box:
    """One thing that is drawn.

    Attributes:
        kind: `group`, `operation`, `body`, `repeat`, `function`, `input` or `output`.
        name: what is written on it.
        path: the user's path of it.
        shape: of what an operation gives.
        operands: what an operation reads: the box that makes it, a leaf, or a
            constant as it is written.
        source: the line of user code.
        category: `product`, `reduce`, `move`, `control` or `elementwise`.
        details: parameters of an operation that are plain values.
        note: what is not known about its cost.
        times: how often one call runs it.
        flops: the arithmetic of one call, with all that is inside.
        transcendentals: evaluations of exp, tanh and their like, likewise.
        early: whether it depends on leaves and constants alone.
        parent: what it is inside of; None for the whole.
        children: what is inside it.
        leaves: the places of the leaves that are read inside.
        bytes: what those leaves take in memory.
        count: how many operations it is, with those inside.
        index: its place in the order parents come before children.
        end: one more than the index of the last thing inside it.
        mark: compared with another program: `same`, `changed`, `only`, or empty.
        pair: what stands for it in the other program.
    """

    kind: str
    name: str
    path: str = ""
    shape: str = ""
    operands: tuple[Box | Leaf | str, ...] = ()
    source: str = ""
    category: str = ""
    details: tuple[tuple[str, str], ...] = ()
    note: str = ""
    times: int = 1
    flops: int = 0
    transcendentals: int = 0
    early: bool = False
    parent: Box | None = None
    children: list[Box] = dataclasses.field(default_factory=list)
    leaves: dict[int, None] = dataclasses.field(default_factory=dict)
    bytes: int = 0
    count: int = 0
    index: int = 0
    end: int = 0
    mark: str = ""
    pair: Box | None = None

    def add(self, child: Box) -> Box:
        """Puts a box inside this one."""
        child.parent = self
        self.children.append(child)
        return child

    def above(self) -> Iterator[Box]:
        """The box itself and all it is inside of, from the inside out."""
        box: Box | None = self
        while box is not None:
            yield box
            box = box.parent

    def walk(self) -> Iterator[Box]:
        """The box and all that is inside it, parents first."""
        waiting: list[Box] = [self]
        while waiting:
            box = waiting.pop()
            yield box
            waiting.extend(reversed(box.children))

    @property
    def members(self) -> list[Box]:
        """The children, with those of boxes that only shorten the picture."""
        found = []
        for child in self.children:
            found += child.members if child.kind in ("repeat", "function") else [child]
        return found

    @property
    def reads(self) -> list[Leaf]:
        """The leaves an operation reads itself."""
        return [operand for operand in self.operands if isinstance(operand, Leaf)]


@dataclasses.dataclass(frozen=True, eq=False)
class Tree:
    """All boxes of one program.

    Attributes:
        title: of the drawing.
        boxes: parents first; the first is the whole.
        leaves: the arrays the program is parametrised by.
    """

    title: str
    boxes: tuple[Box, ...]
    leaves: tuple[Leaf, ...]

    @property
    def root(self) -> Box:
        """The box all others are in."""
        return self.boxes[0]

    @property
    def arithmetic(self) -> str:
        """What is counted of one call, and whether some of it depends on symbols."""
        rest = any(box.note == SYMBOLIC for box in self.boxes)
        return f"{short(self.root.flops)} FLOPs" + (" and what symbols say" * rest)

    def share(self, box: Box) -> float:
        """How much of the whole's arithmetic a box does, from 0 to 1."""
        return box.flops / self.root.flops if self.root.flops else 0.0


def number(root: Box) -> tuple[Box, ...]:
    """Numbers boxes in the order they are drawn."""
    boxes = tuple(root.walk())
    for index, box in enumerate(boxes):
        box.index = index
        box.end = index + 1
    for box in reversed(boxes):
        if box.parent is not None:
            box.parent.end = max(box.parent.end, box.end)
    return boxes


def plain_value(value: Any) -> str | None:
    """How a parameter is written, or None if it is not a plain value."""
    if isinstance(value, tuple | list):
        parts = [plain_value(part) for part in value]
        return None if None in parts else f"({', '.join(map(str, parts))})"
    if value is None or isinstance(value, bool | int | float | str):
        return str(value)
    kind = type(value)
    plain = hasattr(value, "itemsize") or hasattr(kind, "__members__")
    return str(value) if plain else None
