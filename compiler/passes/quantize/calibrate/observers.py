"""From a histogram to the range that a few bits should cover."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from compiler.passes.quantize.calibrate.histogram import Cells

Observer = str | tuple[str, float]
"""`"minmax"`, `"moving_average"`, `"percentile"` (99.9) or `("percentile", 99.99)`,
`"mse"`, `"entropy"`."""

_OBSERVERS = ("minmax", "moving_average", "percentile", "mse", "entropy")
_PERCENT = 99.9
_SPREAD = 1e-4


def parse(observer: Observer) -> tuple[str, float]:
    """The name of an observer, and the percentage it keeps.

    Raises:
        ValueError: if there is none of that name, or no such percentage.
    """
    given = (observer, _PERCENT) if isinstance(observer, str) else tuple(observer)
    name = given[0] if len(given) == 2 else None
    if name not in _OBSERVERS:
        raise ValueError(
            f"observer: expected one of {', '.join(_OBSERVERS)}, or "
            f"('percentile', 99.99), got {observer!r}."
        )
    if not 50 < float(given[1]) <= 100:
        raise ValueError(
            f"observer: expected more than 50 and at most 100 percent, got {given[1]}."
        )
    return str(name), float(given[1])


def percentile(
    cells: Cells, percent: float, symmetric: bool, bits: int
) -> tuple[float, float]:
    """The range that leaves out the largest numbers.

    Symmetric, a percentage of all magnitudes is inside; else the percentage of all
    numbers is below its upper end, and as many are above its lower end. Known to the
    width of a bin, 1/64 of the number.
    """
    del bits
    if symmetric:
        limit = cells.absolute().quantile(percent / 100)
        return -limit, limit
    return cells.quantile(1 - percent / 100), cells.quantile(percent / 100)


def least_squares(
    cells: Cells, percent: float, symmetric: bool, bits: int
) -> tuple[float, float]:
    r"""The range whose rounding error is least.

    $$ \min_{l, h} \sum_x \left(x - s\,\mathrm{clip}(\mathrm{round}(x / s))\right)^2 $$

    where $s$ is the step of the range $[l, h]$: what is cut off against what is rounded
    coarsely. Ends are tried in steps of a quarter of an octave, down to ten octaves
    below what occurs, and around the best in steps of a 32nd; asymmetric, both together
    first and then one after the other.
    """
    del percent
    low, high = float(cells.low[0]), float(cells.high[-1])
    if symmetric:
        limit = max(-low, high)
        limit *= _best(lambda f: _errors(cells, -limit * f, limit * f, True, bits))
        return -limit, limit
    low, high = min(low, 0.0), max(high, 0.0)
    both = _best(lambda f: _errors(cells, low * f, high * f, False, bits))
    least, most = low * both, high * both
    for _ in range(2):
        most = high * _best(_one_end(cells, least, high, bits))
        least = low * _best(_one_end(cells, most, low, bits))
    return least, most


def _one_end(
    cells: Cells, fixed: float, moved: float, bits: int
) -> Callable[[Any], Any]:
    """The errors when one end of a range stays and the other moves by factors."""

    def errors(factors: Any) -> Any:
        ends = moved * factors, np.full_like(factors, fixed)
        low, high = np.minimum(*ends), np.maximum(*ends)
        return _errors(cells, low, high, False, bits)

    return errors


def _best(errors: Callable[[Any], Any]) -> float:
    """The factor of at most one with the least error."""
    coarse = 2.0 ** (-np.arange(41) / 4)
    near = coarse[np.argmin(errors(coarse))] * 2.0 ** (np.arange(-8, 9) / 32)
    near = near[near <= 1]
    return float(near[np.argmin(errors(near))])


def divergence(
    cells: Cells, percent: float, symmetric: bool, bits: int
) -> tuple[float, float]:
    r"""The range that loses least information about the magnitudes.

    $$ \min_t \sum_i P_i \log (P_i / Q_i) $$

    $P$ are the magnitudes in 2048 bins, what is above $t$ counted where $t$ is; $Q$ are
    those below $t$ in as many levels as there are positive codes, spread again over the
    bins that held any (and a ten-thousandth over all, so that it is nowhere zero).
    Zeros are left out: every range has them exactly. $t$ is tried at every sixteenth
    bin. Asymmetric, the same limit cuts off either side.

    Migacz, "8-bit inference with TensorRT", GTC 2017.
    """
    del percent
    magnitudes = cells.absolute()
    largest = float(magnitudes.high.max())
    edges = np.linspace(0.0, largest, 2049)
    nonzero = magnitudes.low > 0
    counted = Cells(*(part[nonzero] for part in magnitudes))
    limit = edges[best_cut(np.diff(counted.below(edges)), 2 ** (bits - 1))]
    if symmetric:
        return -float(limit), float(limit)
    return max(float(cells.low[0]), -limit), min(float(cells.high[-1]), limit)


def best_cut(counts: Any, levels: int, step: int = 16) -> int:
    """How many of the first bins to keep so that the divergence is least.

    >>> best_cut(np.array([8.0] * 64 + [0.0] * 191 + [0.01]), levels=16)
    64
    """
    tried = range(max(levels, step), len(counts) + 1, step)
    found = {kept: _divergence(counts, kept, levels) for kept in tried}
    return min(found, key=found.__getitem__, default=len(counts))


def _divergence(counts: Any, kept: int, levels: int) -> float:
    """Of the counts, with the last of those kept taking all the others, from levels."""
    inside = counts[:kept]
    wanted = inside.copy()
    wanted[-1] += counts[kept:].sum()
    level = (np.arange(kept) * levels) // kept
    held = inside > 0
    mass = np.bincount(level, inside, levels)
    spread = mass / np.maximum(np.bincount(level, held, levels), 1)
    given = np.where(held, spread[level], 0.0)
    if not given.any():
        return math.inf
    there = wanted > 0
    p, q = wanted[there] / wanted.sum(), given[there] / given.sum()
    return float((p * np.log(p / ((1 - _SPREAD) * q + _SPREAD / kept))).sum())


def _errors(cells: Cells, low: Any, high: Any, symmetric: bool, bits: int) -> Any:
    """The squared error of rounding to the grids of some ranges."""
    if symmetric:
        last = np.full(np.shape(high), 2.0 ** (bits - 1) - 1)
        step, first = high / last, -last
    else:
        step = (high - low) / (2.0**bits - 1)
        first = np.round(low / step)
        last = first + 2.0**bits - 1
    grid = [np.asarray(value)[:, None] for value in (step, first, last)]
    width = cells.high - cells.low
    narrow = width < 1e-3 * grid[0]
    edges, place = np.unique([cells.low, cells.high], return_inverse=True)
    begins, ends = place.reshape(2, -1)
    whole = _integral(edges, *grid)
    mean = (whole[:, ends] - whole[:, begins]) / np.where(narrow, 1.0, width)
    middle = _remainder((cells.high + cells.low) / 2, *grid)[1] ** 2
    return np.where(narrow, middle, mean) @ cells.counts


def _integral(x: Any, step: Any, first: Any, last: Any) -> Any:
    """The squared rounding error integrated from zero to x, for numbers spread evenly.

    One code's share is step^3 / 12; beyond the last code it is a cube.
    """
    code, rest = _remainder(x, step, first, last)
    return code * step**3 / 12 + rest**3 / 3


def _remainder(x: Any, step: Any, first: Any, last: Any) -> tuple[Any, Any]:
    code = np.clip(np.round(x / step), first, last)
    return code, x - code * step


SEARCHES: dict[str, Callable[[Cells, float, bool, int], tuple[float, float]]] = {
    "percentile": percentile,
    "mse": least_squares,
    "entropy": divergence,
}
"""The observers that need the histogram."""
