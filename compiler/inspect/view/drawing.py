"""A program, or two side by side, as a picture: SVG without scripts."""

from __future__ import annotations

import dataclasses
import html
from collections.abc import Iterator, Sequence

from compiler.inspect.view.amounts import bytes_of, percent, short
from compiler.inspect.view.boxes import Box, Tree
from compiler.inspect.view.flow import flow
from compiler.inspect.view.layout import GAP_Y, Layout, Line, arrange
from compiler.inspect.view.opening import opened

WIDTH, ROW, PAD, HEAD = 214, 44, 16, 54
_MARGIN, _TITLE, _APART = 20, 34, 60


@dataclasses.dataclass(frozen=True)
class Placed:
    """What is open of a box, laid out.

    Attributes:
        box: the box.
        layout: of its children.
        inner: each child, where it is open too.
        sizes: of the children.
    """

    box: Box
    layout: Layout
    inner: tuple[Placed | None, ...]
    sizes: tuple[tuple[float, float], ...]


@dataclasses.dataclass(frozen=True)
class Rectangle:
    """A box of the picture, in pixels."""

    box: Box
    x: float
    y: float
    width: float
    height: float
    open: bool


def drawing(trees: Sequence[Tree], depth: int | None = None) -> str:
    """Draws what is open of one program, or of two that are aligned.

    Args:
        trees: one, or two.
        depth: how many levels are open; as many as can be looked at by default.
    """
    parts, x, height = [], float(_MARGIN), 0.0
    for side, tree in enumerate(trees):
        placed = place(tree, opened(tree, depth))
        label = ("before", "after")[side] if len(trees) > 1 else ""
        parts.append(_side(tree, placed, x, label))
        title_width = 7.5 * len(_title(tree))
        x += max(placed.layout.width, title_width) + _APART
        height = max(height, placed.layout.height)
    width, height = x - _APART + _MARGIN, height + _TITLE + 2 * _MARGIN
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" '
        f'width="{width:g}" height="{height:g}" role="img"><style>{_STYLE}</style>'
        f'<rect class="page" width="100%" height="100%"/>{"".join(parts)}</svg>\n'
    )


def place(tree: Tree, shown: set[Box]) -> Placed:
    """Lays out the open boxes of a tree, from the inside out."""
    edges = flow(tree)

    def measure(box: Box) -> Placed:
        inner = tuple(
            measure(child) if child in shown and child.children else None
            for child in box.children
        )
        sizes = tuple(_size(one) for one in inner)
        early = {i for i, child in enumerate(box.children) if child.early}
        return Placed(box, arrange(sizes, edges.get(box, ()), early), inner, sizes)

    return measure(tree.root)


def rectangles(placed: Placed, x: float, y: float) -> Iterator[Rectangle]:
    """The boxes inside a box, in the picture; outer ones first."""
    for i, child in enumerate(placed.box.children):
        (width, height), spot = placed.sizes[i], placed.layout.places[i]
        inner = placed.inner[i]
        at = x + spot.x, y + spot.y
        yield Rectangle(child, *at, width, height, inner is not None)
        if inner is not None:
            shift = (width - inner.layout.width) / 2
            yield from rectangles(inner, at[0] + shift, at[1] + HEAD)


def _size(inner: Placed | None) -> tuple[float, float]:
    if inner is None:
        return WIDTH, ROW
    width = max(inner.layout.width, WIDTH) + 2 * PAD
    return width, inner.layout.height + HEAD + PAD


def _side(tree: Tree, placed: Placed, x: float, label: str) -> str:
    y = _MARGIN + _TITLE
    boxes = list(rectangles(placed, x, y))
    back = [_frame(one, tree, label) for one in boxes]
    title = f'<text class="title" x="{x:g}" y="{_MARGIN + 14}">{_text(_title(tree))}'
    return f"{title}</text>{''.join(back)}{''.join(_lines(placed, x, y))}"


def _title(tree: Tree) -> str:
    root = tree.root
    return (
        f"{tree.title}: {root.count:,} operations, {tree.arithmetic}, "
        f"{bytes_of(root.bytes)} of parameters"
    )


def _frame(one: Rectangle, tree: Tree, label: str) -> str:
    box = one.box
    names = [box.kind, box.category, "open" if one.open else ""]
    names += [box.mark, label] if box.mark in ("only", "changed") else []
    share = percent(tree.share(box)) if tree.share(box) >= 0.001 else ""
    x, y = one.x, one.y
    room = int((one.width - 24) / 7) - len(share)
    told = "\n".join(filter(None, (box.path, box.name, box.shape, box.source)))
    bar = ""
    if not one.open and tree.share(box) >= 0.02:
        bar = (
            f'<rect class="bar" x="{x + 4:g}" y="{y + one.height - 3:g}" '
            f'width="{(one.width - 8) * tree.share(box):.1f}" height="2.5"/>'
        )
    return (
        f'<g class="{" ".join(filter(None, names))}"><title>{_text(told)}</title>'
        f'<rect class="box" x="{x:g}" y="{y:g}" width="{one.width:g}" '
        f'height="{one.height:g}" rx="{ROW / 2 if box.kind in _ENDS else 6:g}"/>'
        f'<rect class="edge" x="{x:g}" y="{y + 3:g}" width="3.5" '
        f'height="{one.height - 6:g}"/>{bar}'
        f'<text class="name" x="{x + 12:g}" y="{y + 18:g}">{_text(box.name, room)}'
        f'</text><text class="more" x="{x + one.width - 10:g}" y="{y + 18:g}" '
        f'text-anchor="end">{share}</text><text class="more" x="{x + 12:g}" '
        f'y="{y + 34:g}">{_text(_second(box), int((one.width - 20) / 5.8))}</text></g>'
    )


_ENDS = ("input", "output")


def _second(box: Box) -> str:
    """The second line of a box: a shape and what is read, or how much is inside."""
    if box.kind in ("operation", *_ENDS):
        reads = [leaf.path.split("/")[-1] for leaf in box.reads]
        return " ".join((box.shape, *reads))
    count = f"{box.count:,} op{'s' if box.count != 1 else ''}"
    facts = [box.note, count if box.count else f"{len(box.children)} values"]
    facts += [f"{short(box.flops)} FLOPs"] if box.flops else []
    facts += [bytes_of(box.bytes)] if box.bytes else []
    return " · ".join(filter(None, facts))


def _lines(placed: Placed, x: float, y: float) -> Iterator[str]:
    layout = placed.layout
    for line in layout.lines:
        yield _line(placed, line, x, y)
    for i, inner in enumerate(placed.inner):
        if inner is not None:
            spot = layout.places[i]
            shift = (placed.sizes[i][0] - inner.layout.width) / 2
            yield from _lines(inner, x + spot.x + shift, y + spot.y + HEAD)


def _line(placed: Placed, line: Line, x: float, y: float) -> str:
    """The way of an edge: down, or down a lane, or up one, with a tip at its end."""
    places, sizes, g = placed.layout.places, placed.sizes, GAP_Y
    start, end = places[line.start], places[line.end]
    x1, x2 = x + start.x + sizes[line.start][0] / 2, x + end.x + sizes[line.end][0] / 2
    y1, y2 = y + start.y + sizes[line.start][1], y + end.y
    leave, enter, stop = y + line.leave, y + line.enter, y2 - 5
    way = f"M{x1:g} {y1:g}V{leave:g}"
    if line.lane is None:
        way += f"C{x1:g} {leave + g * 0.6:g} {x2:g} {enter - g * 0.6:g} {x2:g} {stop:g}"
    elif end.layer > start.layer:
        at = x + line.lane
        way += (
            f"C{x1:g} {leave + g * 0.7:g} {at:g} {leave + g * 0.3:g} "
            f"{at:g} {leave + g:g}V{enter - g:g}C{at:g} {enter - g * 0.3:g} "
            f"{x2:g} {enter - g * 0.7:g} {x2:g} {stop:g}"
        )
    else:
        at = x + line.lane
        way += (
            f"C{x1:g} {leave + g:g} {at:g} {leave + g:g} {at:g} {leave:g}V{enter:g}"
            f"C{at:g} {enter - g:g} {x2:g} {enter - g:g} {x2:g} {stop:g}"
        )
    back = ' class="back"' if end.layer <= start.layer else ""
    return (
        f'<path{back} d="{way}"/><path class="tip" '
        f'd="M{x2 - 3.5:g} {y2 - 6:g}h7l-3.5 6z"/>'
    )


def _text(text: str, length: int = 400) -> str:
    cut = text if len(text) <= length else f"{text[: max(length - 1, 1)]}…"
    return html.escape(cut, quote=True)


_STYLE = """
svg{--page:#f6f7f9;--box:#fff;--ink:#1b2330;--soft:#5d6878;--line:#d9dee5;--way:#9aa5b4;
--b:#fde3e1;--a:#d9f2e1;--c:#fdefc8;--bar:#2563c9;--shade:rgba(25,40,65,.035);
font:13px system-ui,"Segoe UI",Roboto,"DejaVu Sans",sans-serif}
@media(prefers-color-scheme:dark){svg{--page:#11151b;--box:#1f2631;--ink:#e5eaf1;
--soft:#a0acbc;--line:#313a48;--way:#66748a;--b:#4b2523;--a:#1b402a;--c:#453818;
--bar:#78a9ff;--shade:rgba(255,255,255,.03)}}
.page{fill:var(--page)}.box{fill:var(--box);stroke:var(--line)}
text{fill:var(--ink)}.name,.title{font-weight:600}.more{fill:var(--soft);font-size:11px}
.open>.box{fill:var(--shade)}.bar{fill:var(--bar);opacity:.8}.edge{fill:none}
.operation>.edge{fill:#a3adba}.product>.edge{fill:#2563c9}.reduce>.edge{fill:#0f8a86}
.control>.edge{fill:#8450c4}.elementwise>.edge{fill:#c98a1b}
.input>.box,.output>.box{stroke-dasharray:4 3;stroke:var(--way)}
.only.before>.box{fill:var(--b)}.only.after>.box{fill:var(--a)}.changed>.box{fill:var(--c)}
path{fill:none;stroke:var(--way);stroke-width:1.25}.back{stroke-dasharray:4 3}
path.tip{fill:var(--way);stroke:none}
""".replace("\n", "")
