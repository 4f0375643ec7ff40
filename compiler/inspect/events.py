"""What ran when: the operations of a compiled program in JAX's profiler trace."""

from __future__ import annotations

import dataclasses
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import jax

_INSTRUCTION = re.compile(
    r"^\s*(?:ROOT )?%?(?P<name>[\w.-]+) = .*?[\]})] (?P<kind>[\w-]+)\(", re.ASCII
)
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?(?P<name>[\w.-]+) \(.*\{$")
_CALLS = re.compile(r"\bcalls=%?([\w.-]+)")
_OP_NAME = re.compile(r'op_name="((?:[^"\\]|\\.)*)"')
_CONTAINERS = frozenset(["while", "call", "conditional"])


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of an optimised program.

    Attributes:
        kind: its opcode.
        scope: the scopes of what it computes, its last step if it is a fusion.
        scopes: those of everything that was fused into it.
    """

    kind: str
    scope: str
    scopes: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Interval:
    """An operation that ran.

    Attributes:
        name: of the instruction.
        start: in nanoseconds.
        stop: when the thread that started it went on.
        done: when its last part was done by other threads, as far as that is known.
    """

    name: str
    start: float
    stop: float
    done: float


def instructions(text: str) -> dict[str, Instruction]:
    """The instructions of an optimised HLO module, by name."""
    found: dict[str, tuple[str, str, str]] = {}
    inside: dict[str, list[str]] = {}
    last: dict[str, str] = {}
    computation = ""
    for line in text.splitlines():
        if opened := _COMPUTATION.match(line):
            computation = opened["name"]
        elif match := _INSTRUCTION.match(line):
            scope, calls = _OP_NAME.search(line), _CALLS.search(line)
            name = scope[1] if scope else ""
            found[match["name"]] = (match["kind"], name, calls[1] if calls else "")
            if name:
                inside.setdefault(computation, []).append(name)
                last[computation] = name  # the root stands last
    return {
        name: Instruction(
            kind,
            scope or last.get(calls, ""),
            tuple(dict.fromkeys(inside.get(calls, ()))),
        )
        for name, (kind, scope, calls) in found.items()
    }


def traced(run: Callable[[], Any], calls: int, module: str) -> list[Interval]:
    """The operations of a module that ran while it was called, by JAX's profiler.

    None if the back end tells nothing about operations.

    Raises:
        RuntimeError: if a profile is being taken already.
    """
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder, profiler_options=options):
            for _ in range(calls):
                jax.block_until_ready(run())
        found: list[Interval] = []
        for file in sorted(Path(folder).rglob("*.xplane.pb")):
            data = jax.profiler.ProfileData.from_file(str(file))
            found.extend(_intervals(data, module))
    return found


def _intervals(data: Any, module: str) -> Iterator[Interval]:
    started: list[tuple[Any, Any]] = []
    done: dict[Any, float] = {}
    for event in (e for p in data.planes for line in p.lines for e in line.events):
        if event.name.startswith("end: "):
            done[dict(event.stats).get("_c")] = event.start_ns
            continue
        stats = dict(event.stats)
        if stats.get("hlo_module") == module and "hlo_op" in stats:
            started.append((event, stats))
    for event, stats in started:
        stop = event.start_ns + event.duration_ns
        end = max(stop, done.get(stats.get("_p"), stop))
        yield Interval(stats["hlo_op"], event.start_ns, stop, end)


def shared_out(
    intervals: Iterable[Interval], kinds: dict[str, Instruction]
) -> dict[str, float]:
    """Nanoseconds by instruction, every instant given out once.

    An instant belongs to the operations that run then, in equal parts; while none
    runs, to the one that was started last and is still worked on by other threads;
    and to a loop or a call only while nothing inside it runs.
    """
    moments: list[tuple[float, int, int, str]] = []
    for number, interval in enumerate(intervals):
        known = kinds.get(interval.name)
        container = known is not None and known.kind in _CONTAINERS
        kind = 2 if container else 0
        moments.append((interval.start, 1, number * 3 + kind, interval.name))
        moments.append((interval.stop, 0, number * 3 + kind, interval.name))
        if not container and interval.done > interval.stop:
            moments.append((interval.stop, 1, number * 3 + 1, interval.name))
            moments.append((interval.done, 0, number * 3 + 1, interval.name))
    moments.sort(key=lambda moment: moment[:2])
    active: tuple[dict[int, str], ...] = ({}, {}, {})
    spent: dict[str, float] = {}
    before = 0.0
    for now, begins, key, name in moments:
        running, waited, around = active
        if now > before:
            last = list(waited.values())[-1:] or list(around.values())[-1:]
            names = list(running.values()) or last
            for one in names:
                spent[one] = spent.get(one, 0.0) + (now - before) / len(names)
        before = now
        if begins:
            active[key % 3][key] = name
        else:
            active[key % 3].pop(key, None)
    return spent
