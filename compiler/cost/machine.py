"""What a machine does in a second."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class Machine:
    """The rates a program is measured against.

    Attributes:
        peak_flops: additions and multiplications per second in a matrix product.
        bandwidth: bytes per second read from memory.
        transcendentals: evaluations of exp and the like per second; those are taken
            for one operation each where it is None.
        dispatch: seconds a call takes before it computes anything.
        name: for people.
        source: where the figures are from.

    >>> Machine(peak_flops=100e9, bandwidth=25e9).balance
    4.0
    """

    peak_flops: float
    bandwidth: float
    transcendentals: float | None = None
    dispatch: float = 0.0
    name: str = "machine"
    source: str = ""

    @property
    def balance(self) -> float:
        """FLOPs per byte below which a program waits for memory."""
        return self.peak_flops / self.bandwidth

    def seconds(self, flops: float, transcendentals: float, bytes: float) -> float:
        """The least time this can take.

        $$ t = \\max(f / f_{peak} + e / e_{peak}, \\; b / \\mathrm{bandwidth}) $$

        Williams, Waterman & Patterson, "Roofline", 2009,
        https://doi.org/10.1145/1498765.1498785.
        """
        return max(self.computing(flops, transcendentals), bytes / self.bandwidth)

    def computing(self, flops: float, transcendentals: float) -> float:
        """The time the arithmetic alone takes."""
        rate = self.transcendentals or self.peak_flops
        return flops / self.peak_flops + transcendentals / rate


MACHINES = {
    "h100": Machine(
        989.4e12,
        3.35e12,
        name="NVIDIA H100 SXM, bfloat16",
        source="dense tensor cores; NVIDIA H100 Tensor Core GPU data sheet",
    ),
    "tpu-v5e": Machine(
        197e12,
        819e9,
        name="Cloud TPU v5e chip, bfloat16",
        source="https://cloud.google.com/tpu/docs/v5e",
    ),
}
"""Peaks their makers publish. No program reaches them; `calibrate` measures."""


def calibrate(*, seconds: float = 0.25, megabytes: int = 128) -> Machine:
    """Measures what JAX's default device does: about four times `seconds`.

    The best of several runs, as anything that disturbs only makes them slower:
    square float32 products at the default precision, a sum over rows of a matrix too
    large for the caches, exp, and a call that computes nothing.

    Args:
        seconds: spent on each of the four.
        megabytes: size of the array that is read; several times the last cache.

    >>> machine = calibrate(seconds=0.01, megabytes=4)
    >>> machine.peak_flops > 0 and machine.bandwidth > 0 and machine.dispatch > 0
    True
    """
    device = jax.devices()[0]
    large = device.platform != "cpu"
    peak = max(
        _product(n, seconds / 2) for n in ((4096, 8192) if large else (512, 1536))
    )
    rows = jnp.ones((megabytes * 256, 1024), jnp.float32)
    reading = rows.nbytes / best(lambda x: x.sum(1), rows, seconds=seconds)
    few = jnp.linspace(-1, 1, (1 << 24) if large else (1 << 18))
    rate = few.size / best(jnp.exp, few, seconds=seconds)
    dispatch = best(lambda x: x + 1, jnp.ones(()), seconds=seconds, middle=True)
    name = f"{device.platform} {device.device_kind}".strip()
    return Machine(peak, reading, rate, dispatch, name, "measured")


def best(
    function: Callable[..., Any],
    *arguments: Any,
    seconds: float,
    middle: bool = False,
) -> float:
    """The shortest time a compiled function took, or the median; at least of three."""
    run = jax.jit(function)
    jax.block_until_ready(run(*arguments))
    times: list[float] = []
    until = time.perf_counter() + seconds
    while len(times) < 3 or time.perf_counter() < until:
        began = time.perf_counter()
        jax.block_until_ready(run(*arguments))
        times.append(time.perf_counter() - began)
    return statistics.median(times) if middle else min(times)


def _product(size: int, seconds: float) -> float:
    square = jnp.ones((size, size), jnp.float32)
    return 2 * size**3 / best(jnp.dot, square, square, seconds=seconds)
