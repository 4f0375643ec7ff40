"""Measurement of compiled programs."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from collections.abc import Mapping as Dict
from typing import Any

import jax


def latency(
    calls: Dict[str, Callable[[], Any]], *, rounds: int = 7, seconds: float = 0.03
) -> dict[str, float]:
    """Measures calls against each other, in seconds.

    Each is warmed up, then they take turns in slices of about `seconds`, so that
    what else the machine does falls on all alike; each call waits for its result.

    Args:
        calls: by name, functions without arguments.
        rounds: slices each gets.
        seconds: length of a slice.

    Returns:
        By name, the median over slices of the mean time of a call.

    >>> times = latency({"sum": lambda: sum(range(10))}, rounds=3, seconds=0.001)
    >>> 0 < times["sum"] < 1
    True
    """
    counts = {}
    for name, run in calls.items():
        jax.block_until_ready(run())
        counts[name] = max(1, int(seconds / _timed(run, 1)))
    slices: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, run in calls.items():
            slices[name].append(_timed(run, counts[name]))
    return {name: statistics.median(times) for name, times in slices.items()}


def _timed(run: Callable[[], Any], count: int) -> float:
    began = time.perf_counter()
    for _ in range(count):
        jax.block_until_ready(run())
    return (time.perf_counter() - began) / count
