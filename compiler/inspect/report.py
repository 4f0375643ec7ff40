"""Before and after, as numbers."""

from __future__ import annotations

import dataclasses
import math
import re
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from collections.abc import Mapping as Dict
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from compiler.agreement import Difference
from compiler.cost import cost
from compiler.errors import ArtifactError, InputMismatchError
from compiler.events import Event
from compiler.executable import latency
from compiler.program import Program


@dataclasses.dataclass(frozen=True)
class Row:
    """One quantity of both programs.

    Attributes:
        name: what was measured.
        before: of the first program.
        after: of the second.
        unit: `"count"`, `"bytes"`, `"seconds"` or `"value"`.
    """

    name: str
    before: float
    after: float
    unit: str

    def __str__(self) -> str:
        """One line of the table: both values, and the second as a share."""
        write = _WRITERS[self.unit]
        share = (
            ""
            if self.unit == "value" or not self.before
            else (f"{self.after / self.before:8.2f}x")
        )
        return f"{self.name:26}{write(self.before):>14}{write(self.after):>14}{share}"


@dataclasses.dataclass(frozen=True)
class Report:
    """Two programs compared. Print it, or look a row up by name.

    Attributes:
        rows: the quantities.
        difference: largest absolute difference between their outputs, or nan.
        notes: what was done to the second and what was left alone, how often and
            where; with a sample, how far each pass moved the outputs.
    """

    rows: tuple[Row, ...]
    difference: float
    notes: tuple[str, ...]

    def __getitem__(self, name: str) -> Row:
        """The row of this name."""
        found = {row.name: row for row in self.rows}
        if name not in found:
            raise KeyError(f"{name!r}: not measured. There are: {', '.join(found)}.")
        return found[name]

    def __str__(self) -> str:
        """The table, the difference and the notes."""
        lines = [f"{'':26}{'before':>14}{'after':>14}", *map(str, self.rows)]
        if not math.isnan(self.difference):
            lines.append(f"{'largest output difference':26}{self.difference:>28.3g}")
        return "\n".join([*lines, "", *self.notes])


def report(
    before: Program,
    after: Program,
    *inputs: Any,
    metrics: Dict[str, Callable[[Any], float]] | None = None,
    batch_sizes: Sequence[int] = (1, 256),
) -> Report:
    """Compares two programs that should compute the same.

    Parameters, bytes in memory and saved, arithmetic, bytes moved and held at most;
    and, where inputs are given, the time of a call for some batch sizes (taking turns,
    medians), the largest difference of the outputs, and whatever `metrics` measure.

    Args:
        before: usually the traced program.
        after: usually the rewritten one.
        *inputs: real inputs with a leading batch axis.
        metrics: by name, a function from all outputs to a number.
        batch_sizes: the sizes to time; inputs are repeated to fill them.

    Raises:
        InputMismatchError: if a program was traced on symbolic extents.

    >>> import compiler as mc
    >>> program = mc.trace(lambda w, x: x @ w * 2.0, jnp.eye(8), jnp.ones((1, 8)))
    >>> found = mc.report(program, mc.fold()(program))
    >>> found["FLOPs"].before, found["FLOPs"].after
    (136, 128)
    """
    pair = (before, after)
    costs = {program: cost(program) for program in pair}
    rows = [
        _row("parameters", pair, lambda p: p.size, "count"),
        _row("bytes in memory", pair, lambda p: p.bytes, "bytes"),
        _row("bytes on disk", pair, bytes_on_disk, "bytes"),
        _row("FLOPs", pair, lambda p: costs[p].flops, "count"),
        _row("bytes moved", pair, lambda p: costs[p].total.bytes, "bytes"),
        _row("peak memory", pair, lambda p: costs[p].fused_peak, "bytes"),
    ]
    difference = math.nan
    if inputs:
        rows += [_timed(pair, inputs, size) for size in batch_sizes]
        outputs = [jax.device_get(program(*inputs)) for program in pair]
        difference = largest_difference(*outputs)
        for name, metric in (metrics or {}).items():
            rows.append(Row(name, *map(float, map(metric, outputs)), unit="value"))
    return Report(tuple(rows), difference, tuple(_notes(after)))


def bytes_on_disk(program: Program) -> float:
    """The size of everything `save` writes for a program; nan if it cannot be saved."""
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a fixed batch size matters to who ships it
        try:
            path = program.save(Path(folder) / "program")
        except ArtifactError:
            return math.nan
        return sum(file.stat().st_size for file in path.iterdir())


def largest_difference(first: Any, second: Any) -> float:
    """The largest absolute difference between two results of one structure."""
    pairs = zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True)
    wide = ((np.asarray(a, np.float64), np.asarray(b, np.float64)) for a, b in pairs)
    return max(
        (float(np.max(np.abs(a - b), initial=0.0)) for a, b in wide), default=0.0
    )


def _row(
    name: str, pair: Sequence[Program], measure: Callable[[Program], float], unit: str
) -> Row:
    return Row(name, *map(measure, pair), unit=unit)


def _timed(pair: Sequence[Program], inputs: Sequence[Any], size: int) -> Row:
    """Times both on a batch; nan where the function takes no such batch."""
    batch = _resized(inputs, size)
    calls = {str(i): lambda p=program: p(*batch) for i, program in enumerate(pair)}
    try:
        times = latency(calls)
    except InputMismatchError:
        times = {"0": math.nan, "1": math.nan}
    return Row(f"latency, batch {size}", times["0"], times["1"], "seconds")


def _resized(inputs: Sequence[Any], size: int) -> Any:
    """Repeats or cuts the leading axis that most arrays share; the rest stays."""
    leading = [np.shape(x)[0] for x in jax.tree.leaves(inputs) if np.ndim(x)]
    common = max(leading, key=leading.count, default=None)

    def resize(x: Any) -> Any:
        if common is None or not np.ndim(x) or np.shape(x)[0] != common:
            return x
        return jnp.take(jnp.asarray(x), jnp.arange(size) % common, axis=0)

    return jax.tree.map(resize, tuple(inputs))


def _notes(program: Program) -> list[str]:
    """What each pass did, by kind, and where."""
    lines = []
    for applied in program.history:
        fired, skipped = applied.events.fired, applied.events.skipped
        lines.append(
            f"{applied.step}: {len(fired)} fired, {len(skipped)} skipped"
            + ("" if fired else " (nothing changed)")
            + _moved(applied.difference)
        )
        lines += _told(fired, "")
        lines += _told(skipped, "left: ")
    unseen = cost(program.graph).uncounted
    if unseen:
        lines.append(f"FLOPs leave out, or count once: {', '.join(unseen)}")
    return lines


def _moved(found: Difference | None) -> str:
    """How far a pass moved the outputs, where a sample was given."""
    if found is None:
        return ""
    where = f" at {found.path}" if found.path and found.relative else ""
    return f", relative difference {found.relative:.3g}{where}"


def _told(events: Sequence[Event], prefix: str) -> Iterator[str]:
    """Two lines for each kind: how often, and at which places first."""
    counts: Counter[str] = Counter()
    places: dict[str, dict[str, None]] = {}
    for event in events:
        kind, times = _kind(event)
        counts[kind] += times
        places.setdefault(kind, {})[_place(event)] = None
    for kind, count in counts.most_common():
        yield f"  {count:4} {prefix}{kind}"
        first = [place for place in places[kind] if place]
        more = f", and {len(first) - _PLACES} more" if len(first) > _PLACES else ""
        if first:
            yield f"       at {', '.join(first[:_PLACES])}{more}"


_PLACES = 3
"""How many places of one kind are listed."""

_TIMES = re.compile(r", (\d+) times$")
_LINE = re.compile(r"^(?P<file>.*?):(?P<line>\d+)(?::\d+)?(?: \(.*\))?$")


def _kind(event: Event) -> tuple[str, int]:
    """What happened, without what is told of one place, and how often it did."""
    times = _TIMES.search(event.what)
    what = _TIMES.sub("", event.what)
    return what.split(" (")[0], int(times[1]) if times else 1


def _place(event: Event) -> str:
    """The path, and the file and line without folders and function."""
    found = _LINE.match(event.source)
    source = f"{Path(found['file']).name}:{found['line']}" if found else event.source
    return f"{event.path} ({source})" if event.path and source else event.path or source


def _count(value: float) -> str:
    return "n/a" if math.isnan(value) else f"{value:,.0f}"


def _seconds(value: float) -> str:
    if math.isnan(value):
        return "n/a"
    return f"{value * 1e6:,.1f} us" if value < 1e-3 else f"{value * 1e3:,.2f} ms"


_WRITERS: dict[str, Callable[[float], str]] = {
    "count": _count,
    "bytes": _count,
    "seconds": _seconds,
    "value": lambda value: f"{value:.4f}",
}
