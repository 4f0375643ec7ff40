"""Measured time by path."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax

from compiler.cost import Amount, Machine, cost, scaled, table, within
from compiler.errors import CompileError, VariablesMismatchError
from compiler.graph import is_abstract
from compiler.inspect.measure import Measured, Method, Subject, by_segments, by_trace
from compiler.program import Program


@dataclasses.dataclass(frozen=True)
class Row:
    """One path.

    Attributes:
        path: names joined by `/`; empty for what belongs to no part alone.
        seconds: of one call, spent at this path itself.
        amount: what the path costs.
        divided: of the seconds, those of operations that were fused of several paths
            and are divided by arithmetic: an estimate.
        least: the seconds the machine needs at least, nan without a machine.
    """

    path: str
    seconds: float
    amount: Amount
    divided: float = 0.0
    least: float = math.nan

    @property
    def rate(self) -> float:
        """FLOPs per second reached."""
        return self.amount.flops / self.seconds if self.seconds else 0.0

    @property
    def reached(self) -> float:
        """The share of what the machine could do: least time over measured time."""
        return self.least / self.seconds if self.seconds else math.nan


@dataclasses.dataclass(frozen=True)
class Profile:
    """Where the time of a call goes. Print it, or look a path up.

    The rows' seconds and `unattributed` add up to `seconds`.

    Attributes:
        rows: the slowest first, each path by itself.
        seconds: of one call, measured without the profiler.
        unattributed: what no operation took: the call itself, waiting, threads; below
            zero where the segments were slower alone than together.
        method: `"trace"` or `"segments"`.
        note: how it was done.
    """

    rows: tuple[Row, ...]
    seconds: float
    unattributed: float
    method: Method
    note: str

    def __getitem__(self, path: str) -> Row:
        """A path together with everything below it; all that is known for `""`."""
        below = [row for row in self.rows if not path or within(row.path, path)]
        if not below:
            paths = ", ".join(row.path or "(none)" for row in self.rows)
            raise KeyError(f"{path!r}: took no time. There are: {paths}.")
        return Row(
            path,
            sum(row.seconds for row in below),
            sum((row.amount for row in below), Amount()),
            sum(row.divided for row in below),
            sum(row.least for row in below),
        )

    def __str__(self) -> str:
        """The table."""
        known = not all(math.isnan(row.least) for row in self.rows)
        columns = ["path", "time", "share", "divided", "FLOP/s", "of limit"]
        rows = [self._cells(row) for row in self.rows]
        rest, whole = self.unattributed, self.seconds
        rows.append(["unattributed", f"{scaled(rest)}s", self._share(rest), "", "", ""])
        total = ["total", f"{scaled(whole)}s", self._share(whole), "", "", ""]
        width = len(columns) if known else -1
        text = table(columns[:width], [row[:width] for row in rows], total[:width])
        return f"{text}\n{self.note}"

    def _cells(self, row: Row) -> list[str]:
        rate = f"{scaled(row.rate)}" if row.amount.flops else ""
        reached = f"{row.reached:.0%}" if row.reached > 0 else ""
        divided = f"{row.divided / row.seconds:.0%}" if row.divided else ""
        return [
            row.path or "(none)",
            f"{scaled(row.seconds)}s",
            self._share(row.seconds),
            divided,
            rate,
            reached,
        ]

    def _share(self, seconds: float) -> str:
        return f"{seconds / self.seconds:.1%}" if self.seconds else ""


def profile(
    program: Program,
    *inputs: Any,
    machine: Machine | None = None,
    seconds: float = 0.3,
    depth: int | None = None,
    method: Method | None = None,
) -> Profile:
    """Measures where one call of a program spends its time, by path.

    The program is compiled with every operation marked by its path, called under
    JAX's profiler, and the time of each operation of the compiled program is given
    to the path that the compiler says it came from. One that was fused of several
    paths is divided by the arithmetic each has in it (the column `divided`). The
    total is measured without the profiler; if its overhead makes the parts more than
    that, they are scaled down. Where the back end's profiler tells nothing about
    operations, the program is cut where the path changes, and each segment compiled,
    run and waited for alone.

    Args:
        program: with arrays.
        *inputs: real ones; times may depend on their values.
        machine: to compare with, from `calibrate`.
        seconds: spent on measuring, about.
        depth: how many names of a path are told apart; all by default.
        method: one of the two; by default the first that works.

    Raises:
        CompileError: if `method="trace"` and the profiler tells nothing.
        InputMismatchError: if the program does not take the inputs.

    >>> import jax.numpy as jnp, compiler as mc
    >>> def function(w, x):
    ...     with jax.named_scope("first"):
    ...         x = x @ w
    ...     with jax.named_scope("second"):
    ...         return jnp.sort(x)
    >>> program = mc.trace(function, jnp.ones((64, 64)), jnp.ones((64, 64)))
    >>> found = profile(program, jnp.ones((64, 64)), seconds=0.05)
    >>> sorted(row.path for row in found.rows)
    ['first', 'second']
    """
    if any(map(is_abstract, program.values)):
        raise VariablesMismatchError(
            "profile: expected a program with arrays, this one was traced on shapes "
            "alone. Use program.with_variables(variables)."
        )
    jax.eval_shape(program.function, program.variables, *inputs)  # are they right?
    flat = jax.tree.leaves(inputs)
    specs = [jax.ShapeDtypeStruct(s.shape, s.dtype) for s in map(jax.typeof, flat)]
    subject = Subject(program, program.specialise(specs), flat, seconds, depth)
    if method != "segments":
        found, why = by_trace(subject)
        if found is not None:
            return _described(found, subject, machine)
        if method == "trace":
            raise CompileError(f"profile: {why} Use method='segments'.")
    return _described(by_segments(subject), subject, machine)


def _described(found: Measured, subject: Subject, machine: Machine | None) -> Profile:
    """Puts costs beside the times."""
    counted = cost(subject.graph)
    counted = counted if subject.depth is None else counted.grouped(subject.depth)
    rows = []
    for path, seconds in sorted(found.times.items(), key=lambda item: -item[1]):
        amount = counted.by_path.get(path, Amount())
        work = (amount.flops, amount.transcendentals, amount.bytes)
        least = machine.seconds(*work) if machine else math.nan
        rows.append(Row(path, seconds, amount, found.divided.get(path, 0.0), least))
    rest = found.total - sum(found.times.values())
    rest = 0.0 if abs(rest) < 1e-9 * found.total else rest  # they were scaled to it
    return Profile(tuple(rows), found.total, rest, found.method, found.note)
