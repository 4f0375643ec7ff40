"""A program, or what passes made of it, to look at."""

from __future__ import annotations

import dataclasses
import functools
import html
from collections.abc import Callable
from pathlib import Path
from typing import overload

from compiler.errors import FormatError
from compiler.graph import Graph
from compiler.inspect.view.align import align
from compiler.inspect.view.boxes import Tree
from compiler.inspect.view.drawing import drawing
from compiler.inspect.view.grouping import tree
from compiler.inspect.view.happenings import Happening, happenings
from compiler.inspect.view.outline import outline
from compiler.inspect.view.page import page
from compiler.program import Program

_FORMATS = {".html": "html", ".svg": "svg", ".txt": "text"}


@dataclasses.dataclass(frozen=True, eq=False)
class View:
    """One program, or two side by side, ready to be drawn. Made by `show`.

    A notebook draws it by itself; `str` is its text; `save` writes it.

    Attributes:
        before: the program, or the first of two.
        after: the second, if there are two.
        depth: how many levels are open at first; as many as can be looked at.
    """

    before: Program | Graph
    after: Program | Graph | None = None
    depth: int | None = None

    @functools.cached_property
    def _drawn(self) -> tuple[tuple[Tree, ...], dict[str, int] | None, list[Happening]]:
        if self.after is None:
            return (tree(_graph(self.before)),), None, []
        trees = tree(_graph(self.before), "before"), tree(_graph(self.after), "after")
        counts, passes = align(*trees), []
        if isinstance(self.before, Program) and isinstance(self.after, Program):
            passes = happenings(self.before, self.after, trees)
        return trees, counts, passes

    @property
    def html(self) -> str:
        """One page that fetches nothing: groups open and close, and can be searched."""
        trees, counts, passes = self._drawn
        return page(trees, counts, passes, self.depth)

    @property
    def svg(self) -> str:
        """A picture of what is open at `depth`."""
        trees, _, _ = self._drawn
        return drawing(trees, self.depth)

    def __str__(self) -> str:
        """An indented tree with shapes and costs; of two programs, the difference."""
        trees, counts, passes = self._drawn
        return outline(trees, counts, passes, self.depth)

    def _repr_html_(self) -> str:
        """The page in a frame of its own, for a notebook."""
        return (
            f'<iframe srcdoc="{html.escape(self.html, quote=True)}" title="program" '
            'style="width:100%;height:640px;border:1px solid #8884;border-radius:8px" '
            'sandbox="allow-scripts"></iframe>'
        )

    def save(self, path: str | Path, format: str | None = None) -> Path:
        """Writes it; what is written follows from the ending of the path.

        Args:
            path: ending in `.html`, `.svg` or `.txt`; a folder for TensorBoard.
            format: `html`, `svg`, `text` or `tensorboard`, instead of the ending.

        Raises:
            FormatError: if neither the ending nor the format is known.
        """
        path = Path(path)
        chosen = format or _FORMATS.get(path.suffix.lower())
        if chosen == "tensorboard":
            return self._tensorboard(path)
        writers: dict[str | None, Callable[[], str]] = {
            "html": lambda: self.html,
            "svg": lambda: self.svg,
            "text": lambda: f"{self}\n",
        }
        if chosen not in writers:
            raise FormatError(
                f"{path}: expected a path that ends in .html, .svg or .txt, or format= "
                f"'html', 'svg', 'text' or 'tensorboard', got format={format!r}. Name "
                "one of them."
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(writers[chosen](), encoding="utf-8")
        return path

    def _tensorboard(self, folder: Path) -> Path:
        from compiler.inspect.view.tensorboard import write

        trees, _, _ = self._drawn
        for one in trees:
            write(one, folder if len(trees) == 1 else folder / one.title)
        return folder


@overload
def show(
    before: Program | Graph,
    after: Program | Graph | None = None,
    *,
    path: None = None,
    format: str | None = None,
    depth: int | None = None,
) -> View: ...
@overload
def show(
    before: Program | Graph,
    after: Program | Graph | None = None,
    *,
    path: str | Path,
    format: str | None = None,
    depth: int | None = None,
) -> Path: ...
def show(
    before: Program | Graph,
    after: Program | Graph | None = None,
    *,
    path: str | Path | None = None,
    format: str | None = None,
    depth: int | None = None,
) -> View | Path:
    """Draws a program, or two side by side with what changed.

    Operations are grouped by path, and by what they are inside of: loops, branches,
    calls. Each group and each operation has its shape, its arithmetic, its share of
    the whole, the leaves it reads and the line of code it comes from. With two
    programs, operations are paired by path, primitive and shapes; what is `changed`,
    or in one program `only`, is coloured, and what the passes did is listed. Extents
    that are symbols are written as such, and what depends on them is not counted.

    - `.html`: one file that fetches nothing. Groups open and close, a search opens
      what it finds; `graph.html#search=dense&expand=encoder` is a link to a view.
    - `.svg`: what is open at `depth`, as a picture.
    - `.txt`: an indented tree; of two programs, their difference.
    - `format="tensorboard"`: an event file for TensorBoard's graph view (needs the
      extra `tensorboard`); two programs are two runs.

    Args:
        before: the first program.
        after: the second.
        path: the file, or for TensorBoard the folder, to write.
        format: `html`, `svg`, `text` or `tensorboard`; by default what the path ends
            in.
        depth: how many levels are open at first; as many as can be looked at.

    Returns:
        The path, or without one a `View` that a notebook draws.

    Raises:
        FormatError: if the path has another ending, or the format is not known.
        MissingExtraError: if tensorboard is asked for and not installed.

    >>> import jax, jax.numpy as jnp, compiler as mc
    >>> def net(w, x):
    ...     with jax.named_scope("dense"):
    ...         x = jnp.tanh(x @ w)
    ...     with jax.named_scope("head"):
    ...         return jnp.sum(x)
    >>> program = mc.trace(net, jnp.eye(2), jnp.ones((1, 2)))
    >>> print(show(program))
    program: 3 operations, 4 parameters (16 B), 9 FLOPs
      input 0        float32[1, 2]
      dense                         2 ops  8  89%  16 B
        dot_general  float32[1, 2]         8  89%  16 B  reads variables
        tanh         float32[1, 2]
      head                          1 ops  1  11%
        reduce_sum   float32[]             1  11%
      output         float32[]
    """
    view = View(before, after, depth)
    return view if path is None else view.save(path, format)


def _graph(program: Program | Graph) -> Graph:
    return program if isinstance(program, Graph) else program.graph
