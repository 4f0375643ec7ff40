"""One score of the several slices of a unit."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

Reduce = Callable[[np.ma.MaskedArray], np.ma.MaskedArray]
"""Takes scores `[slots, units]`, masked where a slot has nothing of a unit."""


def reduced(parts: Sequence[np.ndarray], reduction: str) -> np.ndarray:
    """The score of each unit over its slices.

    Args:
        parts: for each slice a number for each unit, masked where it has none of it.
        reduction: a name in [`REDUCTIONS`][].

    Returns:
        One number for each unit; nan for a unit that no slice has any of.

    >>> slices = [np.array([1.0, 2.0]), np.ma.masked_array([3.0, 0.0], [False, True])]
    >>> reduced(slices, "mean"), reduced(slices, "gate")
    (array([2., 2.]), array([3., 2.]))
    """
    scores = np.ma.stack([np.ma.asarray(part, np.float64) for part in parts])
    return np.ma.filled(REDUCTIONS[reduction](scores), np.nan)


def _first(scores: np.ma.MaskedArray) -> np.ma.MaskedArray:
    place = (~np.ma.getmaskarray(scores)).argmax(axis=0)
    return scores[place, np.arange(scores.shape[1])]


def _gate(scores: np.ma.MaskedArray) -> np.ma.MaskedArray:
    return _first(scores[::-1])


REDUCTIONS: dict[str, Reduce] = {
    "mean": lambda scores: scores.mean(axis=0),
    "sum": lambda scores: scores.sum(axis=0),
    "max": lambda scores: scores.max(axis=0),
    "prod": lambda scores: scores.prod(axis=0),
    "first": _first,
    "gate": _gate,
}
"""By name. `first` is a slice that makes the unit, `gate` one that reads it last."""
