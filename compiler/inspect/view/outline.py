"""A program as text: an indented tree, or the difference of two."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

from compiler.cost import has_symbols
from compiler.inspect.view.amounts import bytes_of, percent, short
from compiler.inspect.view.boxes import Box, Tree
from compiler.inspect.view.happenings import Happening
from compiler.inspect.view.opening import opened

_CONTEXT = 2
"""How many lines that are the same are written around those that differ."""

Row = tuple[str, ...]


def outline(
    trees: Sequence[Tree],
    counts: dict[str, int] | None = None,
    passes: Sequence[Happening] = (),
    depth: int | None = None,
) -> str:
    """Writes a program, or what differs between two that are aligned.

    Args:
        trees: one, or two.
        counts: of operations that are the same, changed, or in one only.
        passes: what the passes did.
        depth: how many levels are written; all by default.
    """
    if len(trees) == 1:
        tree = trees[0]
        shown = opened(tree, depth) if depth is not None else set(tree.boxes)
        rows = [_row(box, level, tree) for box, level in _open(tree.root, shown, 1)]
        return "\n".join([_title(tree), *_columns(rows)])
    before, after = trees
    lines = [_title(before), _title(after)]
    lines.append(
        ", ".join(f"{number:,} {what}" for what, number in (counts or {}).items())
    )
    lines += _columns(list(_difference(before, after)))
    for one in passes:
        lines.append(f"{one.step}: {len(one.fired)} fired, {len(one.skipped)} skipped")
        lines += [f"  fired    {event}" for event, _ in one.fired]
        lines += [f"  skipped  {event}" for event, _ in one.skipped]
    return "\n".join(lines)


def _title(tree: Tree) -> str:
    known = [leaf for leaf in tree.leaves if not has_symbols(leaf.spec)]
    size = sum(leaf.spec.size for leaf in known)
    amount = bytes_of(sum(leaf.bytes for leaf in known))
    return (
        f"{tree.title}: {tree.root.count:,} operations, {size:,} parameters "
        f"({amount}), {tree.arithmetic}"
    )


def _open(box: Box, shown: set[Box], level: int) -> Iterator[tuple[Box, int]]:
    for child in box.children:
        yield child, level
        if child in shown:
            yield from _open(child, shown, level + 1)


def _row(box: Box, level: int, tree: Tree, mark: str = "") -> Row:
    """The cells of one line: name, shape, operations, FLOPs, share, bytes, the rest."""
    count = f"{box.count:,} ops" if box.children and box.count else ""
    reads = ", ".join(leaf.path for leaf in box.reads if not box.children)
    note = f"({box.note})" if box.note else ""
    return (
        mark + "  " * level + box.name,
        box.shape,
        count,
        short(box.flops) if box.flops else "",
        percent(tree.share(box)),
        bytes_of(box.bytes) if box.bytes else "",
        " ".join(filter(None, (note, f"reads {reads}" if reads else ""))),
    )


def _columns(rows: Sequence[Row]) -> list[str]:
    """Cells below one another; numbers to the right."""
    if not rows:
        return []
    widths = [min(max(map(len, column)), 60) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [
            cell.rjust(width) if 2 <= place <= 5 else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
            if width
        ]
        lines.append("  ".join(cells).rstrip())
    return lines


def _difference(before: Tree, after: Tree) -> Iterator[Row]:
    """Lines of both trees; what holds no difference is not opened."""
    differs: dict[Box, bool] = {}
    for tree in (before, after):
        for box in reversed(tree.boxes):
            own = box.mark == "changed" or box.mark == "only"
            differs[box] = own or any(differs[child] for child in box.children)

    def lines(old: Sequence[Box], new: Sequence[Box], level: int) -> Iterator[Row]:
        merged = list(_merged(old, new))
        for same, run in groupby(merged, key=lambda p: not any(map(differs.get, p))):
            pairs = list(run)
            left_out = len(pairs) - 2 * _CONTEXT if same else 0
            for place, pair in enumerate(pairs):
                if left_out > 1 and _CONTEXT <= place < _CONTEXT + left_out:
                    if place == _CONTEXT:
                        yield _left_out(left_out, level)
                else:
                    yield from line(*pair, level)

    def line(one: Box | None, other: Box | None, level: int) -> Iterator[Row]:
        if one is None or other is None:
            mark, tree = ("+", after) if one is None else ("-", before)
            for box, deep in _whole(one or other, level):
                yield _row(box, deep, tree, mark)
            return
        if one.mark == "changed":
            yield _row(one, level, before, "-")
            yield _row(other, level, after, "+")
        else:
            yield _joined(_row(one, level, before), _row(other, level, after))
        if differs[one] or differs[other]:
            yield from lines(one.members, other.members, level + 1)

    yield from lines(before.root.members, after.root.members, 0)


def _left_out(count: int, level: int) -> Row:
    return (f" {'  ' * level}… {count} the same", "", "", "", "", "", "")


def _joined(old: Row, new: Row) -> Row:
    """One line for what is in both, with both numbers where they differ."""
    cells = list(new)
    for place in (2, 3, 5):  # operations, FLOPs, bytes
        if old[place] != new[place]:
            was, now = old[place] or "0", new[place] or "0"
            cells[place] = f"{was.removesuffix(' ops')} → {now}"
    return (f" {new[0]}", *cells[1:])


def _whole(box: Box | None, level: int) -> Iterator[tuple[Box, int]]:
    if box is not None:
        yield box, level
        for child in box.children:
            yield from _whole(child, level + 1)


def _merged(
    old: Sequence[Box], new: Sequence[Box]
) -> Iterator[tuple[Box | None, Box | None]]:
    """Pairs in the order of the second; what is gone stands where it was."""
    place = {box: i for i, box in enumerate(old)}
    at = 0
    for box in new:
        if box.pair is None:
            yield None, box
            continue
        until = place[box.pair]
        yield from ((one, None) for one in old[at:until] if one.pair is None)
        at = max(at, until + 1)
        yield box.pair, box
    yield from ((one, None) for one in old[at:] if one.pair is None)
