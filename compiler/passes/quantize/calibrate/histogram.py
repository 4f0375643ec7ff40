"""A histogram that needs no range beforehand and adds up: by leading bits of floats.

A float32 is a sign, an exponent and a fraction. Its sign, its exponent and the first
six bits of its fraction number a bin: 64 bins of equal width for each octave, positive
and negative numbers apart, for every number there is. No bin is wider than 1/64 of the
numbers in it, and histograms of two batches are added.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

_FRACTION = 6
_SHIFT = 23 - _FRACTION
_SIGN = 1 << (8 + _FRACTION)
BINS = 2 * _SIGN
"""How many bins there are."""

RESOLUTION = 2.0**-_FRACTION
"""The width of a bin, relative to the smallest number in it."""


def histogram(x: Any) -> Any:
    """Counts the numbers of an array in each bin: int32 `[BINS]`.

    >>> counts = histogram(jnp.array([0.5, 0.5, -3.0]))
    >>> cells = Cells.of(np.asarray(counts), -3.0, 0.5)
    >>> cells.counts.tolist(), cells.low.tolist()
    ([1, 2], [-3.0, 0.5])
    """
    flat = jnp.ravel(x).astype(jnp.float32)
    bits = jax.lax.bitcast_convert_type(flat, jnp.uint32)
    return jnp.bincount((bits >> _SHIFT).astype(jnp.int32), length=BINS)


def infinite(counts: Any) -> int:
    """How many of the numbers counted are infinite or nan: their exponent is the last.

    >>> infinite(np.asarray(histogram(jnp.array([1.0, jnp.nan, -jnp.inf, 3e38]))))
    2
    """
    exponents = counts.reshape(-1, 2, 256, 1 << _FRACTION)
    return int(exponents[:, :, 255].sum())


class Cells(NamedTuple):
    """The bins that hold numbers, from the smallest number to the largest.

    Attributes:
        low: where each begins, float64.
        high: where each ends.
        counts: how many numbers it holds.
    """

    low: Any
    high: Any
    counts: Any

    @classmethod
    def of(cls, counts: Any, low: float, high: float) -> Cells:
        """The bins of a histogram of numbers between two that occur."""
        kept = np.flatnonzero(counts)
        size, negative = kept % _SIGN, kept >= _SIGN
        inner, outer = _edge(size), _edge(size + 1)
        first = np.where(negative, -outer, inner)
        last = np.where(negative, -inner, outer)
        order = np.argsort(first, kind="stable")
        first, last = (np.clip(edge[order], low, high) for edge in (first, last))
        return cls(first, last, counts[kept][order].astype(np.int64))

    @property
    def total(self) -> int:
        """How many numbers there are."""
        return int(self.counts.sum())

    def absolute(self) -> Cells:
        """The same of the magnitudes; bins of both signs stay apart."""
        ends = np.abs(self.low), np.abs(self.high)
        low, high = np.minimum(*ends), np.maximum(*ends)
        order = np.argsort(low, kind="stable")
        return Cells(low[order], high[order], self.counts[order])

    def below(self, limits: Any) -> Any:
        """How many numbers are not above some limits, those of a bin spread over it."""
        limits, width = np.asarray(limits)[..., None], self.high - self.low
        share = (limits - self.low) / np.where(width > 0, width, 1.0)
        share = np.where(limits >= self.high, 1.0, np.clip(share, 0.0, 1.0))
        return (share * self.counts).sum(-1)

    def quantile(self, fraction: float) -> float:
        """The number that a fraction of all are not above, as `numpy.quantile`."""
        rank = fraction * (self.total - 1)
        first, share = int(np.floor(rank)), rank - np.floor(rank)
        last = min(first + 1, self.total - 1)
        return (1 - share) * self._ranked(first) + share * self._ranked(last)

    def _ranked(self, rank: int) -> float:
        ends = np.cumsum(self.counts)
        place = int(np.searchsorted(ends, rank, side="right"))
        inside = rank - (ends[place] - self.counts[place]) + 0.5
        width = self.high[place] - self.low[place]
        return float(self.low[place] + width * inside / self.counts[place])


def _edge(number: Any) -> Any:
    """Where a bin of positive numbers begins."""
    bits = (number.astype(np.uint64) << _SHIFT).astype(np.uint32)
    return bits.view(np.float32).astype(np.float64)
