"""As little removed as a budget allows: parameters, bytes, FLOPs or measured time."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from compiler.errors import BudgetError
from compiler.passes.prune.choice import amounts
from compiler.passes.prune.choice.ranking import Ranking
from compiler.passes.prune.choice.scope import Removed
from compiler.passes.prune.choice.search import Tried, cheapest
from compiler.passes.prune.choice.timing import Stopwatch
from compiler.passes.prune.plan import Plan
from mapping.core import register

if TYPE_CHECKING:
    from compiler.passes.prune.importance.importance import Scores
    from compiler.passes.prune.structure import Structure
    from compiler.program import Program

_EFFORT = {
    "params": (0.0, False),
    "bytes": (0.0, False),
    "flops": (1e-3, False),
    "seconds": (1e-2, True),
}
"""The share of a budget that may be left over, and whether to stop after few trials."""


@register("value", "prune_budget")
@dataclasses.dataclass(frozen=True)
class Budget:
    """What a pruned program may take.

    Attributes:
        measure: `"params"`, `"bytes"`, `"flops"`, or `"seconds"` of a call.
        limit: of those, or a share of what the program takes now.
        share: whether it is a share.

    Raises:
        ValueError: if there is no such measure, or the limit is not positive.
    """

    measure: str
    limit: float
    share: bool = False

    def __post_init__(self) -> None:
        if self.measure not in _NOUNS:
            raise ValueError(
                f"prune.Budget: expected a measure of {', '.join(_NOUNS)}, got "
                f"{self.measure!r}."
            )
        if not (math.isfinite(self.limit) and self.limit > 0):
            raise ValueError(
                f"prune.Budget: expected a positive limit, got {self.limit!r}."
            )

    def of(self, now: float) -> float:
        """The limit, for a program that takes so much now.

        >>> budget(flops=0.25).of(1000.0), budget(params=10).of(1000.0)
        (250.0, 10)
        """
        return self.limit * now if self.share else self.limit


def budget(
    *,
    params: float | None = None,
    bytes: float | None = None,
    flops: float | None = None,
    latency: float | None = None,
    seconds: float | None = None,
) -> Budget:
    """What a pruned program may take; give one of them.

    A float of less than one is a share of what the program takes now.

    Args:
        params: how many numbers its leaves hold.
        bytes: how many bytes its leaves take.
        flops: what one call for the sample's shapes costs.
        latency: the share of the time a call takes now, on this machine.
        seconds: how long a call may take, on this machine.

    Raises:
        ValueError: if not exactly one is given, or it is not positive.

    >>> budget(flops=0.25)
    Budget(measure='flops', limit=0.25, share=True)
    >>> budget(params=100_000)
    Budget(measure='params', limit=100000, share=False)
    """
    values = {"params": params, "bytes": bytes, "flops": flops}
    values |= {"latency": latency, "seconds": seconds}
    given = {name: value for name, value in values.items() if value is not None}
    if len(given) != 1:
        raise ValueError(
            f"prune.budget: expected one of {', '.join(values)}, got "
            f"{', '.join(given) or 'none'}. Give one, such as flops=0.25."
        )
    ((name, value),) = given.items()
    if name == "latency":
        return Budget("seconds", value, share=True)
    share = name != "seconds" and isinstance(value, float) and value < 1
    return Budget(name, value, share)


@dataclasses.dataclass(frozen=True, eq=False)
class Fitted:
    """What was found for a budget.

    Attributes:
        removed: the units that go.
        plan: the same, closed.
        ratio: at which they do.
        amount: what the program takes then.
        limit: what it may.
    """

    removed: Removed
    plan: Plan
    ratio: float
    amount: float
    limit: float


def fit(
    program: Program,
    structure: Structure,
    scores: Scores,
    ranking: Ranking,
    budget: Budget,
) -> Fitted:
    """Removes as little as keeps a program within a budget.

    The ratio of the ranking is searched for, among those at which one unit more goes:
    the least one at which the program fits, so that it is as near to the budget as
    whole units, multiples and rules allow. Rules keep their ratios. Parameters and
    bytes follow from the plan, FLOPs from the shapes of the smaller graph. It ends
    early where a thousandth of the budget is left. Time is measured: half a dozen
    programs are compiled, and run in turns with the one there is.

    Args:
        program: what to prune.
        structure: of its graph.
        scores: of its units.
        ranking: which go first; its ratio is not looked at.
        budget: what it may take.

    Raises:
        BudgetError: if even the most that can be removed is not enough.
    """
    measure, now = _gauge(program, structure, budget)
    plans: dict[float, tuple[Removed, Plan]] = {}

    def amount(ratio: float) -> float:
        removed = ranking.at(ratio).rank(structure, scores)
        plans[ratio] = removed, structure.plan(removed)
        return measure(plans[ratio][1])

    steps, limit = ratios(ranking, structure, scores), budget.of(now)
    near, few = _EFFORT[budget.measure]
    found, least = cheapest(steps, amount, limit, near=near, few=few)
    if found is None:
        raise _unreachable(budget, limit, least, now)
    return Fitted(*plans[found.ratio], found.ratio, found.amount, limit)


def ratios(ranking: Ranking, structure: Structure, scores: Scores) -> list[float]:
    """The ratios at which another unit goes, ascending, from 0 to 1."""
    scopes = ranking.scopes(structure, scores)
    totals = {scope.total for scope in scopes if not scope.fixed}
    counts = [np.arange(total + 1) / total for total in totals]
    return np.unique(np.concatenate([[0.0, 1.0], *counts])).tolist()


def _gauge(
    program: Program, structure: Structure, budget: Budget
) -> tuple[Callable[[Plan], float], float]:
    """What the program takes when a plan is carried out, and what it takes now."""
    count = _COUNTS.get(budget.measure)
    if count is not None:
        return functools.partial(count, structure), count(structure, structure.plan({}))
    watch = Stopwatch(program, structure)

    def timed(plan: Plan) -> float:
        if not plan:
            return watch.now
        before, after = watch(plan)
        # The machine may be faster or slower by now: a share is of what ran beside it.
        return after / before * watch.now if budget.share else after

    return timed, watch.now


def _unreachable(budget: Budget, limit: float, least: Tried, now: float) -> BudgetError:
    noun = _NOUNS[budget.measure]
    return BudgetError(
        f"budget: expected at least {_said(least.amount)} {noun} "
        f"({least.amount / max(now, 1e-300):.3g} of {_said(now)}), which is left when "
        f"all goes that may, got {_said(limit)}. Allow more, or let more go: kinds=, "
        "ignore=, rules=, minimum=, max_ratio=, round_to=."
    )


def _said(amount: float) -> str:
    return f"{amount:,.0f}" if amount >= 100 else f"{amount:.3g}"


_COUNTS: dict[str, Callable[[Structure, Plan], int]] = {
    "params": amounts.params,
    "bytes": amounts.bytes,
    "flops": amounts.flops,
}

_NOUNS = {
    "params": "parameters",
    "bytes": "bytes",
    "flops": "FLOPs",
    "seconds": "seconds",
}
