"""The least ratio whose amount is within a limit, in few evaluations."""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple


class Tried(NamedTuple):
    """A ratio, and what is left at it."""

    ratio: float
    amount: float


_FEW = 6
"""How many ratios are tried between the ends, where trying one takes seconds."""


def cheapest(
    ratios: Sequence[float],
    amount: Callable[[float], float],
    limit: float,
    *,
    near: float = 0.0,
    few: bool = False,
) -> tuple[Tried | None, Tried]:
    """Finds the least ratio at which an amount is within a limit.

    The amount falls as the ratio rises. Where it should go on is interpolated between
    a ratio that is too low and one that is high enough, as amounts are about quadratic
    in what is kept; every other step halves the distance, so that it always ends.

    Args:
        ratios: ascending; at least one.
        amount: what is left at a ratio.
        limit: what may be left.
        near: the share of the limit that may be left over for the search to end.
        few: whether to stop after a handful, wherever that is; then amounts may be
            noisy, and only what was found within the limit is returned.

    Returns:
        The least within the limit, None if there is none; and the last of all, which
        leaves least.

    >>> cheapest([0.0, 0.25, 0.5, 0.75, 1.0], lambda r: (1 - r) ** 2 * 100, 30)
    (Tried(ratio=0.5, amount=25.0), Tried(ratio=1.0, amount=0.0))
    """
    low, high = 0, len(ratios) - 1
    last = Tried(ratios[high], amount(ratios[high]))
    first = Tried(ratios[low], amount(ratios[low]))
    if first.amount <= limit:
        return first, last
    if last.amount > limit:
        return None, last
    over, under = first, last
    turns = 0
    while high - low > 1 and under.amount < (1 - near) * limit:
        if few and turns == _FEW:
            break
        place = low + _step(ratios[low : high + 1], over, under, limit, turns % 2 == 1)
        tried = Tried(ratios[place], amount(ratios[place]))
        if tried.amount <= limit:
            high, under = place, tried
        else:
            low, over = place, tried
        turns += 1
    return under, last


def _step(
    ratios: Sequence[float], over: Tried, under: Tried, limit: float, halve: bool
) -> int:
    """The place to try next, strictly between the ends."""
    last = len(ratios) - 1
    if halve:
        return last // 2
    root, high, low = (math.sqrt(max(a, 0)) for a in (limit, over.amount, under.amount))
    share = (high - root) / (high - low) if high > low else 0.5
    wanted = over.ratio + share * (under.ratio - over.ratio)
    return min(max(bisect.bisect_left(ratios, wanted), 1), last - 1)
