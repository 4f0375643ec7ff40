"""Pruning little by little, with training in between."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from compiler.cost import cost, has_symbols
from compiler.errors import PlanError
from compiler.passes.prune.choice.budget import Budget
from compiler.passes.prune.choice.ranking import Ranking
from compiler.passes.prune.history import History, Round
from compiler.passes.prune.structure import structure

if TYPE_CHECKING:
    from compiler.passes.prune.structured import Structured
    from compiler.program import Program

FineTune = Callable[[Any, int], Any]
"""Takes a program and the number of the round, from 1; returns the program trained."""

SCHEDULES: dict[str, Callable[[float, float], float]] = {
    "linear": lambda ratio, done: ratio * done,
    "geometric": lambda ratio, done: 1 - (1 - ratio) ** done,
    "cubic": lambda ratio, done: ratio * (1 - (1 - done) ** 3),
}
"""From the ratio at the end and the share of rounds done to the ratio by then."""


def iterate(
    program: Program,
    step: Structured,
    fine_tune: FineTune | None = None,
    *,
    rounds: int = 5,
    schedule: str | Sequence[float] = "linear",
    metric: Callable[[Any], float] | None = None,
    history: History | None = None,
    checkpoint: Callable[[Program, History], Any] | None = None,
) -> tuple[Program, History]:
    r"""Prunes in rounds; units are scored anew in each, on the weights trained so far.

    By round t of T, of the units the program began with (or of what a budget is about)
    the share that is gone is

    $$ r \frac{t}{T}, \qquad 1 - (1 - r)^{t/T}, \qquad
       r \Big(1 - \big(1 - \tfrac{t}{T}\big)^3\Big) $$

    for the schedules `"linear"`, `"geometric"` (each round takes the same share of what
    is left) and `"cubic"` (most of it early: Zhu & Gupta, 2017,
    https://arxiv.org/abs/1710.01878). The ratios of rules rise alike.

    It can be stopped and taken up again: let `checkpoint` save the program and the
    history after every round, and call this with both and the same other arguments.

    Args:
        program: to prune; where `history` is given, as it was after its last round.
        step: `prune.structured(...)`: how much goes in the end, and what goes first.
        fine_tune: trains the program after each round; called with the program and the
            number of the round, from 1; returns a program.
        rounds: how many.
        schedule: a name, or the share of $r$ that is to be reached by each round.
        metric: what stands in the history for each round, after training.
        history: of the rounds that are done already.
        checkpoint: called with the program and the history after every round.

    Returns:
        The program after the last round, and what happened. `history.plan` counts in
        the original program, on which it can be carried out in one go.

    Raises:
        ValueError: if there is no such schedule, rounds are fewer than one, or the
            budget is one of seconds (take a share: `prune.budget(latency=...)`).
        PlanError: if the program is not what the history left.

    >>> import jax, jax.numpy as jnp, compiler as mc
    >>> def mlp(params, x):
    ...     return jnp.tanh(x @ params["first"]) @ params["second"]
    >>> w = jax.random.normal(jax.random.key(0), (3, 8))
    >>> program = mc.trace(mlp, {"first": w, "second": w.T}, jnp.ones((1, 3)))
    >>> small, history = iterate(program, mc.prune.structured(0.5), rounds=2)
    >>> [(r.ratio, r.params) for r in history.rounds]
    [(0.0, 48), (0.25, 36), (0.5, 24)]
    >>> mc.prune.apply(history.plan)(program).size == small.size
    True
    """
    rises = _rises(schedule, rounds)
    history = history or _begun(program, metric)
    _check_left(program, history)
    for number in range(len(history.rounds), len(rises) + 1):
        now = _at(step, history, rises[number - 1])
        program = program >> now
        plan = program.recipe[-1].plan
        if fine_tune is not None:
            program = _tuned(fine_tune(program, number))
        ratio = rises[number - 1](_end(step, history))
        history = history.then(_round(program, number, ratio, metric), plan)
        if checkpoint is not None:
            checkpoint(program, history)
    return program, history


def _rises(
    schedule: str | Sequence[float], rounds: int
) -> list[Callable[[float], float]]:
    """For each round, from the ratio at the end to the ratio by then."""
    if not isinstance(schedule, str):
        shares = [float(share) for share in schedule]
        if (
            not shares
            or shares != sorted(shares)
            or not 0 <= shares[0] <= shares[-1] <= 1
        ):
            raise ValueError(
                "prune.iterate: expected a schedule of rising shares in [0, 1], got "
                f"{schedule!r}."
            )
        return [functools.partial(_by, SCHEDULES["linear"], one) for one in shares]
    if schedule not in SCHEDULES or rounds < 1:
        raise ValueError(
            f"prune.iterate: expected a schedule of {', '.join(SCHEDULES)} and one "
            f"round or more, got {schedule!r} and {rounds}."
        )
    done = [turn / rounds for turn in range(1, rounds + 1)]
    return [functools.partial(_by, SCHEDULES[schedule], share) for share in done]


def _by(rise: Callable[[float, float], float], done: float, ratio: float) -> float:
    return rise(ratio, done)


def _end(step: Structured, history: History) -> float:
    """The share that is gone in the end."""
    budget, begun = step.budget, history.rounds[0]
    if budget is None:
        return step.ranking.ratio
    if budget.share:
        return 1 - budget.limit
    if budget.measure == "seconds":
        raise ValueError(
            "prune.iterate: expected a budget that is counted, or a share of the time, "
            "got one in seconds. Use prune.budget(latency=share)."
        )
    return 1 - budget.limit / getattr(begun, budget.measure)


def _at(
    step: Structured, history: History, rise: Callable[[float], float]
) -> Structured:
    """The pass for one round."""
    ranking: Ranking = dataclasses.replace(
        step.ranking,
        ratio=rise(step.ranking.ratio),
        rules=[(glob, rise(ratio)) for glob, ratio in step.ranking.rules],
        initial=history.groups,
    )
    budget = step.budget
    if budget is not None:
        left, before = 1 - rise(_end(step, history)), history.rounds[-1].ratio
        if budget.measure == "seconds":
            budget = Budget("seconds", left / (1 - before), share=True)
        else:
            whole = getattr(history.rounds[0], budget.measure)
            budget = Budget(budget.measure, left * whole)
    return dataclasses.replace(step, ranking=ranking, budget=budget)


def _begun(program: Program, metric: Callable[[Any], float] | None) -> History:
    found = structure(program.graph)
    sizes = tuple((group.name, group.size) for group in found.groups)
    return History((_round(program, 0, 0.0, metric),), sizes)


def _round(
    program: Program, number: int, ratio: float, metric: Callable[[Any], float] | None
) -> Round:
    flops = None if has_symbols(*program.graph.inputs) else cost(program).flops
    measured = None if metric is None else float(metric(program))
    return Round(number, ratio, program.size, program.bytes, flops, measured)


def _tuned(program: Any) -> Program:
    if not hasattr(program, "graph"):
        raise TypeError(
            "fine_tune: expected it to return a program, got "
            f"{type(program).__name__}. Return program.with_variables(trained)."
        )
    return program


def _check_left(program: Program, history: History) -> None:
    plan = history.plan
    for leaf in program.graph.leaves:
        known = leaf.path in dict(plan.shapes)
        if known and plan.shape(leaf.path) != tuple(leaf.spec.shape):
            raise PlanError(
                f"{leaf.path}: expected the shape {plan.shape(leaf.path)} that "
                f"{len(history.rounds) - 1} rounds left, got {tuple(leaf.spec.shape)}. "
                "Go on with the program that belongs to the history."
            )
