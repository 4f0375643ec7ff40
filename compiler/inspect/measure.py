"""The two ways to find out which path takes how long."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Sequence
from typing import Any, Literal

import jax

from compiler.executable import latency
from compiler.graph import Graph
from compiler.inspect.events import Instruction, instructions, shared_out, traced
from compiler.inspect.marks import cut, mark, shares
from compiler.inspect.segments import part, parts
from compiler.program import Program

Method = Literal["trace", "segments"]


@dataclasses.dataclass(frozen=True)
class Subject:
    """What is measured.

    Attributes:
        program: whose variables are used.
        graph: its equations for the inputs' shapes.
        inputs: flat.
        seconds: to spend, about.
        depth: how many names of a path are told apart, all if None.
    """

    program: Program
    graph: Graph
    inputs: Sequence[Any]
    seconds: float
    depth: int | None

    @property
    def given(self) -> tuple[Any, ...]:
        """The arrays a call takes."""
        return (*self.program.values, *self.inputs)


@dataclasses.dataclass(frozen=True)
class Measured:
    """Where the time of a call went.

    Attributes:
        times: seconds by path.
        divided: of those, what is an estimate, as operations were fused of several.
        total: seconds of a call, measured apart.
        method: how they were found.
        note: for people.
    """

    times: dict[str, float]
    divided: dict[str, float]
    total: float
    method: Method
    note: str


def by_trace(subject: Subject) -> tuple[Measured | None, str]:
    """Times by JAX's profiler; or None, and why."""
    marked, numbered = mark(subject.graph)
    compiled = _compiled(marked, subject.given)
    run = functools.partial(compiled, *subject.given)
    total = latency({"": run}, rounds=5, seconds=subject.seconds / 8)[""]
    text = compiled.as_text() or ""
    module = re.search(r"^HloModule ([\w.-]+)", text)
    calls = max(3, min(1000, int(subject.seconds / 2 / total)))
    try:
        ran = traced(run, calls, module[1] if module else "")
    except RuntimeError as error:
        return None, f"the profiler could not be started: {error}."
    if not ran:
        return None, "the profiler of this back end tells nothing of operations."
    known = instructions(text)
    spent = {n: s * 1e-9 / calls for n, s in shared_out(ran, known).items()}
    slowed = max(1.0, sum(spent.values()) / total)
    times: dict[str, float] = {}
    divided: dict[str, float] = {}
    for name, seconds in spent.items():
        found = known.get(name, Instruction("", ""))
        for path, share in shares(found.scope, found.scopes, numbered).items():
            path, own = cut(path, subject.depth), share * seconds / slowed
            times[path] = times.get(path, 0.0) + own
            if share < 1:
                divided[path] = divided.get(path, 0.0) + own
    note = f"profiler trace of {calls} calls"
    note += f", whose times are divided by {slowed:.2f}" if slowed > 1 else ""
    return Measured(times, divided, total, "trace", note), ""


def by_segments(subject: Subject) -> Measured:
    """Times of the parts of a program, each run alone."""
    whole = functools.partial(_compiled(subject.graph, subject.given), *subject.given)
    total = latency({"": whole}, rounds=5, seconds=subject.seconds / 8)[""]
    env = dict(zip(subject.graph.jaxpr.jaxpr.invars, subject.given, strict=True))
    found = list(parts(subject.graph, subject.depth))
    times: dict[str, float] = {}
    for path, reads, writes in found:
        run = jax.jit(functools.partial(part, subject.graph.jaxpr, reads, writes))
        given = [env[var] for var in reads]
        env.update(zip(writes, run(given), strict=True))
        call = functools.partial(run, given)
        slices = subject.seconds / 2 / len(found) / 3
        taken = latency({"": call}, rounds=3, seconds=slices)[""]
        times[path] = times.get(path, 0.0) + taken
    note = f"{len(found)} segments, each run alone: none is fused with another"
    return Measured(times, {}, total, "segments", note)


def _compiled(graph: Graph, given: Sequence[Any]) -> jax.stages.Compiled:
    def mapping_profile(*values: Any) -> list[Any]:
        count = len(graph.leaves)
        return graph.evaluate(values[:count], values[count:])

    return jax.jit(mapping_profile).lower(*given).compile()
