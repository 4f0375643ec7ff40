"""Batches of in-memory arrays, in an order that is a function of (seed, epoch)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from mapping.core import describe
from mapping.errors import DataError


def batches(
    arrays: Sequence[Any], size: int, *, seed: int | None = None, epoch: int = 0
) -> Iterator[tuple[np.ndarray, ...]]:
    """Yields batches of equal size, shuffled where a seed is given.

    Shuffled, the examples left over at the end are dropped (another epoch's
    shuffle brings them in), so that every batch has one shape and one compiled
    step serves them all. Unshuffled, the last batch may be short.

    Args:
        arrays: arrays with one leading axis of equal length.
        size: examples in a batch; at most all there are.
        seed: of the order; None keeps the arrays' own.
        epoch: each has an order of its own.

    Raises:
        DataError: if the arrays differ in length or are empty, or size < 1.

    >>> [x.tolist() for x, in batches([np.arange(5)], 2)]
    [[0, 1], [2, 3], [4]]
    >>> len(list(batches([np.arange(5)], 2, seed=0)))
    2
    """
    data = [np.asarray(array) for array in arrays]
    count = check_lengths(data)
    if size < 1:
        raise DataError(f"size: expected at least 1 example in a batch, got {size}.")
    size = min(size, count)
    if seed is None:
        order, stop = np.arange(count), count
    else:
        order = np.random.default_rng([seed, epoch]).permutation(count)
        stop = count - count % size
    for start in range(0, stop, size):
        chosen = order[start : start + size]
        yield tuple(array[chosen] for array in data)


def check_lengths(arrays: Sequence[np.ndarray]) -> int:
    """Returns the common length of the leading axes, or says how they differ."""
    lengths = {array.shape[0] if array.ndim else 0 for array in arrays}
    if len(lengths) != 1 or 0 in lengths:
        raise DataError(
            "arrays: expected one leading axis of equal, non-zero length, got "
            f"{', '.join(map(describe, arrays))}. Pass (inputs, targets) of as many "
            "examples each."
        )
    return lengths.pop()
