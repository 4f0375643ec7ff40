"""A program, or two side by side, as one HTML file that fetches nothing."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

from compiler.cost import has_symbols
from compiler.graph import Leaf
from compiler.inspect.view.boxes import Box, Tree
from compiler.inspect.view.happenings import Happening
from compiler.inspect.view.opening import opened

_SCRIPTS = ("model.js", "layout.js", "canvas.js", "panel.js", "search.js", "main.js")


def page(
    trees: Sequence[Tree],
    counts: dict[str, int] | None = None,
    passes: Sequence[Happening] = (),
    depth: int | None = None,
) -> str:
    """Writes the page.

    Args:
        trees: one program, or the two to compare, already aligned.
        counts: how many operations are the same, changed, or in one only.
        passes: what the passes did.
        depth: how many levels are open at first; as many as can be looked at.
    """
    data = {
        "sides": [side(tree, opened(tree, depth)) for tree in trees],
        "counts": counts,
        "passes": [one.as_data() for one in passes],
    }
    folder = files("compiler.inspect.view") / "page"
    scripts = "\n".join((folder / name).read_text("utf-8") for name in _SCRIPTS)
    parts = {
        "style": (folder / "page.css").read_text("utf-8"),
        "script": scripts,
        "data": embedded(data),  # last: the text in it is not ours
    }
    text = (folder / "page.html").read_text("utf-8")
    for name, part in parts.items():
        before, _, after = text.partition(f"/*{name}*/")
        text = before + part + after
    return text


def embedded(data: Any) -> str:
    """JSON that can stand inside a script element whatever the text in it is."""
    text = json.dumps(data, separators=(",", ":"), ensure_ascii=True)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def side(tree: Tree, shown: set[Box]) -> dict[str, Any]:
    """One program as columns of numbers; text is written once and referred to.

    An operand is the index of a box, or ~i for the i-th text.
    """
    texts: dict[str, int] = {}

    def text(value: str) -> int:
        return texts.setdefault(value, len(texts))

    def operand(one: Box | Leaf | str) -> int:
        if isinstance(one, Box):
            return one.index
        return ~text(one.path if isinstance(one, Leaf) else one)

    boxes, columns = tree.boxes, {}
    for name in ("name", "path", "shape", "source", "note"):
        columns[name] = [text(getattr(box, name)) for box in boxes]
    columns["details"] = [
        text(", ".join(f"{k}={v}" for k, v in box.details)) for box in boxes
    ]
    for name in ("flops", "transcendentals", "bytes", "count", "times"):
        columns[name] = [getattr(box, name) for box in boxes]
    return columns | {
        "title": tree.title,
        "up": [box.parent.index if box.parent else -1 for box in boxes],
        "kind": "".join("x" if b.kind == "output" else b.kind[0] for b in boxes),
        "category": "".join(box.category[:1] or "-" for box in boxes),
        "early": "".join("01"[box.early] for box in boxes),
        "mark": "".join(box.mark[:1] or "-" for box in boxes),
        "pair": [box.pair.index if box.pair else -1 for box in boxes],
        "operands": [[operand(one) for one in box.operands] for box in boxes],
        "open": sorted(box.index for box in shown),
        "leaves": {
            text(leaf.path): [f"{leaf.spec.dtype}{list(leaf.spec.shape)}", _size(leaf)]
            for leaf in tree.leaves
        },
        "texts": list(texts),
    }


def _size(leaf: Leaf) -> int:
    return 0 if has_symbols(leaf.spec) else leaf.bytes
