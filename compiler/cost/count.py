"""What a program costs, counted on its graph."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from compiler.cost.amount import Amount, Cost
from compiler.cost.arithmetic import Arithmetic, arithmetic
from compiler.cost.flow import Region, Step, Value, clusters, flow
from compiler.cost.memory import donated, peak
from compiler.cost.symbols import require_numbers
from compiler.graph import Graph
from compiler.paths import owner

if TYPE_CHECKING:
    from compiler.program import Program


def cost(program: Program | Graph, *, donate: Sequence[str | int] = ()) -> Cost:
    """Counts what one call of a program costs, for the sample's shapes.

    A `scan` multiplies by its length, of a `cond` the dearest branch counts, a
    `while` counts once. Moving data is no arithmetic. Bytes are counted twice: every
    equation by itself, and fused: elementwise steps computed where they are used.
    Linear in the number of equations; nothing is compiled or run.

    Args:
        program: a program or its graph.
        donate: what the caller gives up, so that its memory can be used again:
            `"variables"`, `"inputs"`, or the places of inputs.

    Raises:
        InputMismatchError: if it was traced on symbolic extents, or `donate` names
            no input.

    >>> import jax.numpy as jnp, compiler as mc
    >>> program = mc.trace(lambda w, x: jnp.tanh(x @ w), jnp.eye(3), jnp.ones((2, 3)))
    >>> found = cost(program)
    >>> found.flops, found.transcendentals, found.total.read, found.total.written
    (36, 6, 84, 48)
    >>> found.peak  # w, x, the product and its tanh
    108
    """
    graph = program if isinstance(program, Graph) else program.graph
    require_numbers(graph)
    region = flow(graph)
    counter = _Counter()
    amounts = counter.region(region)
    given = donated(graph, donate)
    highest, live = peak(region, given, fused=False)
    fused, _ = peak(region, given, fused=True)
    for path, size in live.items():
        _add(amounts, path, live=size)
    for leaf in graph.leaves:
        _add(amounts, owner(leaf), params=leaf.bytes)
    return Cost(
        {path: Amount(**counts) for path, counts in amounts.items()},
        highest,
        fused,
        tuple(sorted(counter.uncounted)),
    )


_Amounts = dict[str, Counter[str]]


class _Counter:
    """Adds up regions; remembers what it could not count."""

    def __init__(self) -> None:
        self.uncounted: set[str] = set()

    def region(self, region: Region) -> _Amounts:
        """What a region costs, by path."""
        amounts: _Amounts = {}
        for step in region.steps:
            self._step(step, amounts)
        self._fused(region, amounts)
        return amounts

    def _step(self, step: Step, amounts: _Amounts) -> None:
        equation, path = step.operation.equation, step.operation.path
        found = arithmetic(equation)
        if found is None or step.name == "while":
            self.uncounted.add(step.name)
        flops, transcendentals = found or Arithmetic()
        reads, written = step.traffic()
        times = step.operation.times
        _add(
            amounts,
            path,
            flops=times * flops,
            transcendentals=times * transcendentals,
            unfused_read=times * sum(size for _, size in reads),
            unfused_written=times * written,
        )
        inside = [self.region(region) for region in step.regions]
        if step.name == "cond" and inside:
            inside = [max(inside, key=_arithmetic_and_bytes)]
        for found in inside:
            for name, counts in found.items():
                _add(amounts, name, **counts)

    def _fused(self, region: Region, amounts: _Amounts) -> None:
        at = clusters(region)
        inside: dict[int, set[Value]] = {}
        for place, step in enumerate(region.steps):
            for kernel in at[place]:
                inside.setdefault(kernel, set()).update(step.writes)
        seen: set[tuple[int, Value]] = set()
        for place, step in enumerate(region.steps):
            reads, written = step.traffic()
            times, path = step.operation.times, step.operation.path
            for kernel in at[place]:
                for value, size in reads:
                    if value in inside[kernel] or (kernel, value) in seen:
                        continue
                    if size == value.bytes:
                        seen.add((kernel, value))
                    _add(amounts, path, read=times * size)
            if place in at[place]:
                _add(amounts, path, written=times * written)


def _add(amounts: _Amounts, path: str, **counts: int) -> None:
    amounts.setdefault(path, Counter()).update(counts)


def _arithmetic_and_bytes(amounts: _Amounts) -> tuple[int, int]:
    def total(names: Iterable[str]) -> int:
        return sum(counts[name] for counts in amounts.values() for name in names)

    return total(["flops", "transcendentals"]), total(["read", "written"])
