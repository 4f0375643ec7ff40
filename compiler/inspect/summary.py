"""What a model is made of, as a table by path."""

from __future__ import annotations

import dataclasses
import html
import math
from collections.abc import Iterator, Sequence
from typing import Any

import jax

from compiler import jaxprs
from compiler.cost import aligned, cost, within
from compiler.errors import TraceError
from compiler.graph import nbytes
from compiler.paths import Operation, operations, owner_and_kind
from compiler.program import Program
from compiler.trace import trace
from mapping.core import (
    Context,
    Mapping,
    Variables,
    captured_by_path,
    describe,
    outline,
    split_captured,
)

_COLUMNS = ("path", "output", "params", "state", "bytes", "FLOPs", "share")


@dataclasses.dataclass(frozen=True)
class Line:
    """One path, with everything below it.

    Attributes:
        path: names joined by `/`; empty for the whole.
        output: dtype and shape of what it returns; empty if nothing is known.
        params: number of trained values.
        state: number of carried values.
        bytes: of both in memory.
        flops: arithmetic of one call, a multiply-add counting two.
        share: of all params, between 0 and 1.
    """

    path: str
    output: str
    params: int
    state: int
    bytes: int
    flops: int
    share: float

    def cells(self) -> tuple[str, ...]:
        """What the table shows, the path indented by its depth."""
        name = self.path.rpartition("/")[2] or "total"
        numbers = (self.params, self.state, self.bytes, self.flops)
        return (
            "  " * self.path.count("/") + name,
            self.output,
            *(f"{n:,}" if n else "" for n in numbers),
            f"{self.share:.1%}" if self.params else "",
        )


@dataclasses.dataclass(frozen=True)
class Summary:
    """A table by path. Print it, show it in a notebook, or look a path up.

    Attributes:
        lines: in the order of the computation.
        total: of the whole.
        uncounted: primitives whose arithmetic cannot be known.
    """

    lines: tuple[Line, ...]
    total: Line
    uncounted: tuple[str, ...]

    def __getitem__(self, path: str) -> Line:
        """The line of this path."""
        found = {line.path: line for line in (*self.lines, self.total)}
        if path not in found:
            raise KeyError(f"{path!r}: not listed. There are: {', '.join(found)}.")
        return found[path]

    def __str__(self) -> str:
        """The table as text."""
        table = [_COLUMNS, *(line.cells() for line in (*self.lines, self.total))]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        rows = [aligned(row, widths, left=2) for row in table]
        ruler = "-" * len(rows[0])
        text = [rows[0], ruler, *rows[1:-1], ruler, rows[-1]]
        if self.uncounted:
            text.append(f"not counted: {', '.join(self.uncounted)}")
        return "\n".join(row.rstrip() for row in text)

    def _repr_html_(self) -> str:
        """The table in a notebook."""

        def row(cells: tuple[str, ...], tag: str) -> str:
            first, second, *numbers = map(html.escape, cells)
            indent = len(first) - len(first.lstrip())
            left = [
                f'<{tag} style="text-align:left;padding-left:{0.5 + indent}em">'
                f"{first.strip()}</{tag}>",
                f'<{tag} style="text-align:left">{second}</{tag}>',
            ]
            right = [f"<{tag}>{number}</{tag}>" for number in numbers]
            return f"<tr>{''.join(left + right)}</tr>"

        body = "".join(row(line.cells(), "td") for line in self.lines)
        foot = row(self.total.cells(), "th")
        return f"<table>{row(_COLUMNS, 'th')}{body}{foot}</table>"


def summary(
    model: Mapping | Program, *inputs: Any, depth: int | None = None
) -> Summary:
    """Lists a model by path: outputs, params, state, bytes, FLOPs, share of the params.

    Nothing is computed and no weight is allocated. FLOPs are those of inference, for
    inputs of the given shapes, loops counted as often as they run. Inside a
    `Repeat` or an `Ensemble` outputs have a leading axis of copies.

    Args:
        model: a mapping, with inputs; or any traced program, without.
        *inputs: arrays or `jax.ShapeDtypeStruct`s.
        depth: how many names of a path are told apart; all by default.

    Raises:
        TraceError: if it is neither a mapping nor a program.
        InputMismatchError: if its extents are symbols.

    >>> import jax, mapping as mp
    >>> net = mp.Serial(hidden=mp.layers.Dense(8), act=jax.nn.relu,
    ...                 head=mp.layers.Dense(2))
    >>> print(summary(net, jax.ShapeDtypeStruct((1, 4), "float32")))
    path    output         params  state  bytes  FLOPs   share
    ----------------------------------------------------------
    hidden  float32[1, 8]      40           160     72   69.0%
    act     float32[1, 8]                            8
    head    float32[1, 2]      18            72     34   31.0%
    ----------------------------------------------------------
    total   float32[1, 2]      58           232    114  100.0%
    """
    if isinstance(model, Program):
        program, outputs = model, {}
    elif isinstance(model, Mapping):
        variables, _ = outline(model, *inputs)
        program = trace(model, variables, *inputs)
        outputs = _captured(model, variables, inputs)
    else:
        raise TraceError(
            f"summary: expected a mapping and inputs, or a program, got "
            f"{type(model).__name__}. Trace it first: summary(trace(function, "
            "variables, *inputs))."
        )
    return _tabulate(program, outputs, depth)


def _tabulate(program: Program, outputs: dict[str, str], depth: int | None) -> Summary:
    found = cost(program)
    inside = operations(program.graph)
    flops = {path: 0 for path, _ in _results(inside)} | found.by_scope
    leaves = [(*owner_and_kind(leaf), leaf) for leaf in program.graph.leaves]
    outputs = outputs or _last_outputs(program, inside)
    paths: dict[str, None] = {}
    for path in (*flops, *(path for path, _, _ in leaves)):
        names = path.split("/")
        for n in range(1, len(names) + 1):
            if path and (depth is None or n <= depth):
                paths.setdefault("/".join(names[:n]))
    everything = sum(math.prod(x.spec.shape) for _, kept, x in leaves if not kept)

    def line(path: str) -> Line:
        own = [(kept, x) for p, kept, x in leaves if _below(p, path)]
        sizes = [(kept, math.prod(x.spec.shape)) for kept, x in own]
        params = sum(size for kept, size in sizes if not kept)
        return Line(
            path,
            outputs.get(path, ""),
            params,
            sum(size for kept, size in sizes if kept),
            sum(nbytes(x.spec) for _, x in own),
            sum(count for p, count in flops.items() if _below(p, path)),
            params / everything if everything else 0.0,
        )

    return Summary(tuple(map(line, _nested(paths))), line(""), found.uncounted)


def _captured(
    model: Mapping, variables: Variables, inputs: tuple[Any, ...]
) -> dict[str, str]:
    """What every path of a mapping returns."""

    def run(variables: Variables, *inputs: Any) -> Any:
        outputs, state = model.apply(variables, *inputs, ctx=Context(capture=("*",)))
        return {"": outputs} | captured_by_path(split_captured(state)[1])

    seen = jax.eval_shape(run, variables, *inputs)
    return {path: describe(value) for path, value in seen.items()}


def _last_outputs(program: Program, inside: Sequence[Operation]) -> dict[str, str]:
    """What the last equation of every path returns."""
    outputs: dict[str, str] = {}
    for path, spec in _results(inside):
        names = path.split("/")
        for n in range(1, len(names) + 1):
            outputs["/".join(names[:n])] = describe(spec)
    specs = [jaxprs.spec(v) for v in program.graph.jaxpr.jaxpr.outvars]
    return outputs | {"": describe(specs)}


def _results(inside: Sequence[Operation]) -> Iterator[tuple[str, Any]]:
    """Every path, with what one of its equations returns, the innermost first."""
    for operation in inside:
        for body in operation.bodies:
            yield from _results(body)
        if operation.equation.outvars:
            yield operation.path, jaxprs.spec(operation.equation.outvars[0])


def _below(path: str, owner: str) -> bool:
    return not owner or within(path, owner)


def _nested(paths: dict[str, None], owner: str = "") -> Iterator[str]:
    """Every path, each followed by what is below it, in order of first use."""
    for path in paths:
        if path.rpartition("/")[0] == owner and path != owner:
            yield path
            yield from _nested(paths, path)
