"""Before and after, as a picture: one HTML file, nothing fetched."""

from __future__ import annotations

import dataclasses
import html
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from compiler import jaxprs
from compiler.cost import cost, equation_flops
from compiler.graph import Graph
from compiler.inspect.layout import layered
from compiler.program import Program
from mapping.core import describe

_WIDTH, _HEIGHT, _GAP_X, _GAP_Y = 190, 40, 14, 22


@dataclasses.dataclass(frozen=True)
class Node:
    """One equation, drawn.

    Attributes:
        name: unique in its graph.
        kind: the primitive.
        scope: where it was traced.
        shape: of its outputs.
        leaves: paths of the leaves it reads.
        flops: its arithmetic, with what is inside it.
        source: the line of user code.
        parents: names of the nodes it reads.
        early: whether it depends on leaves and constants alone.
    """

    name: str
    kind: str
    scope: str
    shape: str
    leaves: tuple[str, ...]
    flops: int
    source: str
    parents: tuple[str, ...]
    early: bool

    @property
    def key(self) -> tuple[str, str, str]:
        """What tells whether the other graph has the same node."""
        return self.scope, self.kind, self.shape


def show(before: Program, after: Program | None = None, *, path: str | Path) -> Path:
    """Draws a program, or two side by side, into one self-contained HTML file.

    Every equation is a box with its scope, output shape, arithmetic and the leaves
    it reads; hovering tells the line it comes from. Where two programs are drawn,
    what only one of them has is coloured. A field filters boxes by text.

    Args:
        before: the first program.
        after: the second.
        path: the file to write.

    Returns:
        The path.

    >>> import tempfile, jax.numpy as jnp, compiler as mc
    >>> program = mc.trace(lambda w, x: x @ w * 2.0, jnp.eye(2), jnp.ones((1, 2)))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     page = show(program, mc.fold()(program), path=folder + "/graph.html")
    ...     "dot_general" in page.read_text()
    True
    """
    programs = [before] if after is None else [before, after]
    drawn = [nodes(program.graph) for program in programs]
    panels = []
    for i, program in enumerate(programs):
        other = Counter(n.key for n in drawn[1 - i]) if after is not None else None
        title = ("before", "after")[i] if after is not None else "program"
        panels.append(_panel(title, program, drawn[i], other))
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(_PAGE.replace("{panels}", "\n".join(panels)), encoding="utf-8")
    return path


def nodes(graph: Graph) -> list[Node]:
    """The equations of a graph as nodes, parents first."""
    paths = dict(zip(graph.jaxpr.jaxpr.invars, graph.paths, strict=False))
    maker: dict[Any, str] = {}
    late = set(graph.jaxpr.jaxpr.invars[len(graph.leaves) :])
    found = []
    for i, equation in enumerate(jaxprs.equations(graph.jaxpr)):
        operands = [v for v in equation.invars if not jaxprs.is_literal(v)]
        name, early = f"n{i}", late.isdisjoint(operands)
        late.update(() if early else equation.outvars)
        found.append(
            Node(
                name,
                jaxprs.label(equation),
                jaxprs.scope(equation),
                describe([jaxprs.spec(v) for v in equation.outvars]),
                tuple(paths[v] for v in operands if v in paths),
                _flops(equation),
                jaxprs.source(equation),
                tuple(dict.fromkeys(maker[v] for v in operands if v in maker)),
                early,
            )
        )
        maker.update((v, name) for v in equation.outvars)
    return found


def _flops(equation: jaxprs.Equation) -> int:
    times = equation.params["length"] if equation.primitive.name == "scan" else 1
    inside = sum(
        equation_flops(inner) * count
        for body in jaxprs.bodies(equation)
        for inner, count in jaxprs.nested(body.jaxpr)
    )
    return equation_flops(equation) + inside * times


def _panel(
    title: str, program: Program, drawn: Sequence[Node], other: Counter[Any] | None
) -> str:
    summary = (
        f"{len(drawn)} operations, {program.size:,} parameters, "
        f"{program.bytes:,} bytes, {cost(program.graph).flops:,} FLOPs"
    )
    return (
        f"<section><h2>{title}</h2><p>{summary}</p>{_svg(program, drawn, other)}"
        "</section>"
    )


def _svg(program: Program, drawn: Sequence[Node], other: Counter[Any] | None) -> str:
    side = {n.name for n in drawn if n.early}
    places = layered([n.name for n in drawn], {n.name: n.parents for n in drawn}, side)
    step_x, step_y = _WIDTH + _GAP_X, _HEIGHT + _GAP_Y
    at = {
        name: (10 + place.column * step_x, 50 + place.layer * step_y)
        for name, place in places.items()
    }
    width = 20 + _WIDTH + max((x for x, _ in at.values()), default=0)
    height = 70 + _HEIGHT + max((y for _, y in at.values()), default=0)
    edges = [_edge(at[p], at[n.name]) for n in drawn for p in n.parents]
    left, boxes = Counter(other or {}), []
    for node in drawn:
        same = other is None or left[node.key] > 0
        left[node.key] -= 1
        boxes.append(_box(node, *at[node.name], "same" if same else "changed"))
    ends = (
        f'<text x="10" y="24" class="end">in: {_escape(describe(program.graph.inputs))}'
        f'</text><text x="10" y="{height - 16:.0f}" class="end">out: '
        f"{_escape(describe(program.graph.outputs))}</text>"
    )
    return (
        f'<svg width="{width:.0f}" height="{height:.0f}" role="img">'
        f"{''.join(edges)}{''.join(boxes)}{ends}</svg>"
    )


def _box(node: Node, x: float, y: float, mark: str) -> str:
    weights = ", ".join(node.leaves)
    told = [f"scope: {node.scope or '(root)'}", f"output: {node.shape}"]
    told += [f"leaves: {weights}"] if weights else []
    told += [f"FLOPs: {node.flops:,}", f"from: {node.source}"]
    kind = "weights" if weights else ""
    text = _escape(" ".join((node.kind, node.scope, node.shape, weights)).lower())
    return (
        f'<g class="node {mark} {kind}" data-text="{text}">'
        f"<title>{_escape(chr(10).join((node.kind, *told)))}</title>"
        f'<rect x="{x:.0f}" y="{y:.0f}" width="{_WIDTH}" height="{_HEIGHT}" rx="5"/>'
        f'<text x="{x + 8:.0f}" y="{y + 16:.0f}" class="kind">'
        f"{_escape(_short(node.kind))}</text>"
        f'<text x="{x + 8:.0f}" y="{y + 31:.0f}">'
        f"{_escape(_short(f'{node.scope}  {node.shape}'.strip(), 31))}</text></g>"
    )


def _edge(start: tuple[float, float], end: tuple[float, float]) -> str:
    x1, y1 = start[0] + _WIDTH / 2, start[1] + _HEIGHT
    x2, y2 = end[0] + _WIDTH / 2, end[1]
    middle = (y1 + y2) / 2
    return (
        f'<path d="M{x1:.0f} {y1:.0f}C{x1:.0f} {middle:.0f} {x2:.0f} {middle:.0f} '
        f'{x2:.0f} {y2:.0f}"/>'
    )


def _short(text: str, length: int = 24) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


def _escape(text: str) -> str:
    return html.escape(text, quote=True)


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>program</title><style>
:root { color-scheme: light dark; --line: #8a8f98; --same: #eef1f5; --new: #ffe3b3;
  --ink: #1c2430; --page: #fff; }
@media (prefers-color-scheme: dark) { :root { --same: #2a313c; --new: #6b4a12;
  --ink: #e8ecf1; --page: #14181e; } }
body { font: 14px system-ui, sans-serif; color: var(--ink); background: var(--page);
  margin: 16px; }
main { display: flex; gap: 32px; align-items: flex-start; overflow-x: auto; }
h2 { margin: 8px 0 2px; } p { margin: 0 0 8px; }
input { font: inherit; padding: 4px 8px; width: 22em; }
svg { font: 11px system-ui, sans-serif; }
svg text { fill: var(--ink); } .kind { font-weight: 600; font-size: 12px; }
.end { font-weight: 600; }
path { fill: none; stroke: var(--line); }
rect { fill: var(--same); stroke: var(--line); }
.changed rect { fill: var(--new); } .weights rect { stroke-width: 2.5; }
.dim { opacity: .15; }
.key { display: inline-block; padding: 1px 8px; border: 1px solid var(--line);
  border-radius: 4px; background: var(--same); margin-left: 8px; }
.key.new { background: var(--new); } .key.heavy { border-width: 2.5px; }
</style></head><body>
<input id="filter" type="search" placeholder="filter: operation, scope, shape, leaf"
 aria-label="filter">
<span class="key">in both</span><span class="key new">in this one only</span>
<span class="key heavy">reads weights</span>
<main>
{panels}
</main><script>
document.getElementById("filter").addEventListener("input", (event) => {
  const wanted = event.target.value.trim().toLowerCase();
  for (const node of document.querySelectorAll(".node"))
    node.classList.toggle("dim", !node.dataset.text.includes(wanted));
});
</script></body></html>
"""
