"""Sets of positions along an axis, as short text."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence

import numpy as np

_BITS = "bits:"
"""What text begins with that holds one bit for each position, not runs of them."""


def write_indices(indices: Sequence[int]) -> str:
    """Writes sorted positions as runs, or as bits where that is shorter.

    >>> write_indices([0, 1, 2, 3, 7, 9, 10])
    '0-3,7,9-10'
    >>> write_indices(range(1, 50000, 2))[:12], len(write_indices(range(1, 50000, 2)))
    ('bits:qqqqqqq', 8341)
    """
    held = np.asarray(indices, np.int64)
    if not held.size:
        return ""
    ends = np.flatnonzero(np.diff(held) != 1)
    firsts = held[np.concatenate([[0], ends + 1])]
    lasts = held[np.concatenate([ends, [held.size - 1]])]
    pairs = zip(firsts.tolist(), lasts.tolist(), strict=True)
    runs = ",".join(f"{a}-{b}" if b > a else f"{a}" for a, b in pairs)
    if len(runs) <= max(64, held[-1] // 6):
        return runs
    mask = np.zeros(held[-1] + 1, bool)
    mask[held] = True
    packed = np.packbits(mask, bitorder="little").tobytes()
    return min(runs, _BITS + base64.b64encode(packed).decode(), key=len)


def read_indices(text: str, size: int) -> tuple[int, ...]:
    """Reads what [`write_indices`][] wrote, of an axis with `size` positions.

    Raises:
        ValueError: if the text is written otherwise, runs overlap, are out of order or
            beyond the axis.

    >>> read_indices("0-3,7,9-10", 12)
    (0, 1, 2, 3, 7, 9, 10)
    """
    if text.startswith(_BITS):
        return _read_bits(text.removeprefix(_BITS))
    found: list[int] = []
    for run in filter(None, text.split(",")):
        first, _, last = run.partition("-")
        if not (first.isdecimal() and (last or first).isdecimal()):
            raise ValueError(f"a run is written 4 or 4-7, got {run!r:.40}")
        start, stop = int(first), int(last or first)
        if stop < start or (found and start <= found[-1]):
            raise ValueError(f"runs are sorted and do not overlap, got {run!r:.40}")
        if stop >= size:  # before a huge run takes the memory
            raise ValueError(f"the axis has positions 0 to {size - 1}, got {stop}")
        found.extend(range(start, stop + 1))
    return tuple(found)


def _read_bits(text: str) -> tuple[int, ...]:
    try:
        packed = np.frombuffer(base64.b64decode(text, validate=True), np.uint8)
    except binascii.Error as error:
        raise ValueError(f"bits are written in base64: {error}") from error
    return tuple(np.flatnonzero(np.unpackbits(packed, bitorder="little")).tolist())
