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
        seed: of the order, at least 0; None keeps the arrays' own.
        epoch: each has an order of its own.

    Raises:
        DataError: if the arrays differ in length, are empty or hold no numbers, or
            if size or seed is no such number.

    >>> [x.tolist() for x, in batches([np.arange(5)], 2)]
    [[0, 1], [2, 3], [4]]
    >>> len(list(batches([np.arange(5)], 2, seed=0)))
    2
    """
    data = as_arrays(arrays)
    count = len(data[0])
    check_size(size)
    size = min(size, count)
    if seed is None:
        order, stop = np.arange(count), count
    else:
        check_seed(seed)
        order = np.random.default_rng([seed, epoch]).permutation(count)
        stop = count - count % size
    for start in range(0, stop, size):
        chosen = order[start : start + size]
        yield tuple(array[chosen] for array in data)


def as_arrays(arrays: Sequence[Any]) -> tuple[np.ndarray, ...]:
    """Returns numpy arrays with one leading axis of equal length, or says why not."""
    if hasattr(arrays, "shape"):
        raise DataError(
            f"arrays: expected a tuple of arrays, got one array {describe(arrays)}. "
            "Pass (inputs, targets)."
        )
    try:
        data = tuple(np.asarray(array) for array in arrays)
    except (TypeError, ValueError) as error:
        raise DataError(
            f"arrays: expected arrays of numbers, got something ragged: {error}. Pad "
            "the examples to one length."
        ) from error
    for array in data:
        if array.dtype.kind in "OSUMm":
            raise DataError(
                f"arrays: expected numbers, got {describe(array)}. Encode them first."
            )
    lengths = {array.shape[0] if array.ndim else 0 for array in data}
    if len(lengths) != 1 or 0 in lengths:
        raise DataError(
            "arrays: expected one leading axis of equal, non-zero length, got "
            f"{', '.join(map(describe, data)) or 'nothing'}. Pass (inputs, targets) of "
            "as many examples each."
        )
    return data


def check_size(size: Any) -> None:
    """Refuses what is no number of examples."""
    if not isinstance(size, int | np.integer) or size < 1:
        raise DataError(f"size: expected at least 1 example in a batch, got {size}.")


def check_seed(seed: Any) -> None:
    """Refuses what is no seed."""
    if not isinstance(seed, int | np.integer) or seed < 0:
        raise DataError(f"seed: expected a whole number of at least 0, got {seed!r}.")
