"""The least time a program can take on a machine."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

from compiler.cost.amount import Amount, Cost
from compiler.cost.count import cost
from compiler.cost.machine import Machine
from compiler.cost.table import scaled, table
from compiler.graph import Graph

if TYPE_CHECKING:
    from compiler.program import Program


@dataclasses.dataclass(frozen=True)
class Bound:
    """The least time of one path.

    Attributes:
        path: names joined by `/`; empty for what belongs to no part alone.
        amount: what it costs.
        seconds: the least time.
        limit: `"compute"` or `"memory"`, whichever takes longer.
    """

    path: str
    amount: Amount
    seconds: float
    limit: str


@dataclasses.dataclass(frozen=True)
class Roofline:
    """Every path's least time. Print it, or look a path up.

    Attributes:
        machine: the rates.
        bounds: of the paths that do anything, each by itself.
        uncounted: primitives whose cost is not in it, or counted once.
    """

    machine: Machine
    bounds: tuple[Bound, ...]
    uncounted: tuple[str, ...]

    @property
    def seconds(self) -> float:
        """Of all paths one after the other, and the call itself."""
        return self.machine.dispatch + sum(bound.seconds for bound in self.bounds)

    def __getitem__(self, path: str) -> Bound:
        """A path's least time, without what is below it."""
        found = {bound.path: bound for bound in self.bounds}
        if path not in found:
            raise KeyError(f"{path!r}: does nothing. There are: {', '.join(found)}.")
        return found[path]

    def __str__(self) -> str:
        """The table."""
        columns = ("path", "FLOPs", "bytes", "FLOPs/byte", "seconds", "bound")
        rows = [_cells(b.path or "(none)", b.amount, b.seconds, b.limit)
                for b in self.bounds]  # fmt: skip
        whole = sum((bound.amount for bound in self.bounds), Amount())
        told = self.machine
        lines = [
            f"{told.name}: {scaled(told.peak_flops)}FLOP/s, "
            f"{scaled(told.bandwidth)}B/s, balance {told.balance:.1f} FLOPs/byte, "
            f"{scaled(told.dispatch)}s a call",
            table(columns, rows, _cells("total", whole, self.seconds, "")),
        ]
        if self.uncounted:
            lines.append(f"not counted, or counted once: {', '.join(self.uncounted)}")
        return "\n".join(lines)


def roofline(
    program: Program | Graph | Cost, machine: Machine, *, depth: int | None = None
) -> Roofline:
    """Estimates the least time of each path on a machine.

    The bytes are those of fused elementwise chains; that a weight may stay in a cache
    from one call to the next is not considered, so a small program can be faster.

    Args:
        program: a program, its graph, or its cost.
        machine: measured by `calibrate`, or known.
        depth: how many names of a path are told apart; all by default.

    >>> import jax.numpy as jnp, compiler as mc
    >>> program = mc.trace(lambda w, x: x @ w, jnp.eye(64), jnp.ones((1, 64)))
    >>> found = roofline(program, Machine(peak_flops=1e9, bandwidth=1e9))
    >>> found.bounds[0].limit, round(found.seconds * 1e6, 3)
    ('memory', 16.896)
    """
    found = program if isinstance(program, Cost) else cost(program)
    found = found if depth is None else found.grouped(depth)
    bounds = tuple(
        bound(path, amount, machine)
        for path, amount in found.by_path.items()
        if amount.flops or amount.transcendentals or amount.bytes
    )
    return Roofline(machine, bounds, found.uncounted)


def bound(path: str, amount: Amount, machine: Machine) -> Bound:
    """What limits one path, and the least time it takes."""
    computing = machine.computing(amount.flops, amount.transcendentals)
    seconds = machine.seconds(amount.flops, amount.transcendentals, amount.bytes)
    return Bound(path, amount, seconds, "compute" if seconds == computing else "memory")


def _cells(name: str, amount: Amount, seconds: float, limit: str) -> Sequence[str]:
    return (
        name,
        f"{amount.flops:,}",
        f"{amount.bytes:,}",
        f"{amount.intensity:.2f}",
        f"{scaled(seconds)}s",
        limit,
    )
