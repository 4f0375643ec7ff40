"""One choice for each weight, of least harm within a budget."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

_STATES = 4096
"""How many partial choices are kept for each weight."""


@dataclasses.dataclass(frozen=True)
class Option:
    """One thing that may be done with one weight.

    Attributes:
        choice: what is done.
        cost: what it takes of the budget: bytes, or seconds.
        harm: what is to be least in sum.
    """

    choice: Any
    cost: float
    harm: float


def least_harm(
    options: Mapping[str, Sequence[Option]], budget: float
) -> dict[str, Option] | None:
    r"""Solves the multiple-choice knapsack problem.

    $$ \min_c \sum_w \mathrm{harm}_{w, c_w} \quad \text{such that} \quad
       \sum_w \mathrm{cost}_{w, c_w} \le B $$

    by dynamic programming over the Pareto frontier of partial sums (Nemhauser &
    Ullmann, 1969, Management Science 15(9)). Exact for as long as the frontier has
    fewer than 4096 points; beyond, of those whose costs are alike the best is kept.
    Of equal harm the cheaper is chosen.

    Args:
        options: by weight, at least one each.
        budget: not exceeded.

    Returns:
        The option of each weight; None if even the cheapest are too much.

    >>> costly = [Option("int8", 4, 0.1), Option("int4", 2, 1.0)]
    >>> cheap = [Option("int8", 4, 0.1), Option("int4", 2, 0.2)]
    >>> found = least_harm({"head": costly, "body": cheap}, 6)
    >>> found["head"].choice, found["body"].choice
    ('int8', 'int4')
    """
    left = smallest(options)
    if left > budget:
        return None
    costs, harms = np.zeros(1), np.zeros(1)
    steps: list[tuple[np.ndarray, np.ndarray]] = []
    for own in options.values():
        left -= min(option.cost for option in own)
        cost = np.add.outer(costs, [option.cost for option in own]).ravel()
        harm = np.add.outer(harms, [option.harm for option in own]).ravel()
        kept = _frontier(cost, harm, budget - left)
        parents, choices = np.divmod(kept.astype(np.int32), np.int32(len(own)))
        steps.append((parents, choices.astype(np.int16)))
        costs, harms = cost[kept], harm[kept]
    place, found = len(costs) - 1, {}
    for (path, own), (parents, choices) in reversed(
        list(zip(options.items(), steps, strict=True))
    ):
        found[path] = own[choices[place]]
        place = parents[place]
    return {path: found[path] for path in options}


def smallest(options: Mapping[str, Sequence[Option]]) -> float:
    """The least that the options can cost together."""
    return float(sum(min(option.cost for option in own) for own in options.values()))


def _frontier(cost: np.ndarray, harm: np.ndarray, limit: float) -> np.ndarray:
    """Places of the sums that no other beats in both, by rising cost."""
    order = np.lexsort((harm, cost))
    # The cheapest is kept in any case: rounding must not make a budget impossible.
    order = order[(cost[order] <= limit) | (order == order[0])]
    before = np.minimum.accumulate(np.concatenate([[np.inf], harm[order]]))[:-1]
    order = order[harm[order] < before]
    if len(order) <= _STATES:
        return order
    low, high = cost[order[0]], cost[order[-1]]
    bins = ((cost[order] - low) / (high - low) * (_STATES - 2)).astype(int)
    last = np.append(bins[1:] != bins[:-1], True)
    last[0] = True
    return order[last]
