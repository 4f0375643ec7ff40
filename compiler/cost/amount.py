"""What was counted, by path."""

from __future__ import annotations

import dataclasses
from collections import Counter

from compiler.cost.table import scaled, table


@dataclasses.dataclass(frozen=True)
class Amount:
    """What one path costs, or several together.

    Attributes:
        flops: additions, multiplications, comparisons and selections of one call; a
            multiply-add is two.
        transcendentals: evaluations of exp, log, tanh, sqrt, power and their like.
        read: bytes read from memory if elementwise chains are fused: an estimate of
            what a compiler makes of it.
        written: bytes written to memory, likewise.
        unfused_read: bytes of the operands of every equation by itself.
        unfused_written: bytes of the results of every equation by itself.
        params: bytes of the leaves.
        live: bytes that are held at the moment of the peak.
    """

    flops: int = 0
    transcendentals: int = 0
    read: int = 0
    written: int = 0
    unfused_read: int = 0
    unfused_written: int = 0
    params: int = 0
    live: int = 0

    @property
    def bytes(self) -> int:
        """Bytes read and written, fused."""
        return self.read + self.written

    @property
    def unfused_bytes(self) -> int:
        """Bytes read and written, every equation by itself."""
        return self.unfused_read + self.unfused_written

    @property
    def intensity(self) -> float:
        """FLOPs for each byte that is read or written."""
        return self.flops / self.bytes if self.bytes else 0.0

    def __add__(self, other: Amount) -> Amount:
        """Both together."""
        return Amount(
            *(a + b for a, b in zip(_fields(self), _fields(other), strict=True))
        )


@dataclasses.dataclass(frozen=True)
class Cost:
    """What one call of a program costs. Print it, or look a path up.

    Attributes:
        by_path: what each path costs by itself, without what is below it; the empty
            path is of what belongs to no part alone.
        peak: the most bytes held at one moment: variables, inputs, outputs and what
            is computed between, every equation's result in memory until its last use.
        fused_peak: the same if elementwise chains are fused and results take the
            place of operands that are used up.
        uncounted: primitives whose inside cannot be seen, or whose number of
            iterations is not known (`while`, counted once).
    """

    by_path: dict[str, Amount]
    peak: int
    fused_peak: int
    uncounted: tuple[str, ...]

    @property
    def total(self) -> Amount:
        """Of all paths together."""
        return sum(self.by_path.values(), Amount())

    @property
    def flops(self) -> int:
        """Additions, multiplications, comparisons and selections of one call."""
        return self.total.flops

    @property
    def transcendentals(self) -> int:
        """Evaluations of exp, log, tanh, sqrt, power and their like."""
        return self.total.transcendentals

    @property
    def by_scope(self) -> Counter[str]:
        """The FLOPs of each path by itself."""
        return Counter({path: found.flops for path, found in self.by_path.items()})

    def __getitem__(self, path: str) -> Amount:
        """What a path costs together with everything below it; all of it for `""`."""
        below = [a for p, a in self.by_path.items() if not path or within(p, path)]
        if not below:
            raise KeyError(
                f"{path!r}: not counted. There are: {', '.join(self.by_path)}."
            )
        return sum(below, Amount())

    def grouped(self, depth: int) -> Cost:
        """The same with paths told apart by their first names only."""
        return dataclasses.replace(self, by_path=grouped(self.by_path, depth))

    def __str__(self) -> str:
        """The table: a line for each path, what it costs by itself."""
        columns = ("path", "FLOPs", "transc.", "read", "written", "params", "at peak")
        rows = [(path or "(none)", *_cells(a)) for path, a in self.by_path.items()]
        text = table(columns, rows, ("total", *_cells(self.total)))
        lines = [text, f"peak {scaled(self.peak)}B, fused {scaled(self.fused_peak)}B"]
        if self.uncounted:
            lines.append(f"not counted, or counted once: {', '.join(self.uncounted)}")
        return "\n".join(lines)


def within(path: str, outer: str) -> bool:
    """Whether a path is another or below it."""
    return path == outer or path.startswith(f"{outer}/")


def grouped(by_path: dict[str, Amount], depth: int) -> dict[str, Amount]:
    """Amounts by the first names of their paths."""
    found: dict[str, Amount] = {}
    for path, amount in by_path.items():
        top = "/".join(path.split("/")[:depth])
        found[top] = found.get(top, Amount()) + amount
    return found


def _fields(amount: Amount) -> tuple[int, ...]:
    return tuple(getattr(amount, field.name) for field in dataclasses.fields(Amount))


def _cells(amount: Amount) -> tuple[str, ...]:
    found = (
        amount.flops,
        amount.transcendentals,
        amount.read,
        amount.written,
        amount.params,
        amount.live,
    )
    return tuple(f"{n:,}" if n else "" for n in found)
