"""What a structured pruning removes from one program: scores, a ranking, a budget."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from compiler.errors import PlanError
from compiler.events import Event
from compiler.passes.prune.choice.budget import Budget, fit
from compiler.passes.prune.choice.ranking import Ranking
from compiler.passes.prune.choice.scope import Removed
from compiler.passes.prune.importance.importance import Scores
from compiler.passes.prune.plan import Plan
from compiler.passes.prune.structure import Structure, structure

if TYPE_CHECKING:
    from compiler.passes.prune.importance import Importance
    from compiler.program import Program


@dataclasses.dataclass(frozen=True, eq=False)
class Choice:
    """What was chosen.

    Attributes:
        plan: what goes.
        removed: the same as units of groups.
        ratio: the ratio of the ranking, or the one that a budget led to.
        scores: of the units.
        skipped: groups that are left as they are, and rules that do nothing, and why.
    """

    plan: Plan
    removed: Removed
    ratio: float
    scores: Scores
    skipped: tuple[Event, ...]


def choose(
    program: Program,
    importance: Importance,
    ranking: Ranking,
    budget: Budget | None = None,
) -> Choice:
    """Scores the units of a program and says which go.

    Args:
        program: with arrays.
        importance: what scores them.
        ranking: how many go, and which are compared with which.
        budget: what is to be left instead of the ratio of the ranking.

    Raises:
        BudgetError: if a budget cannot be reached.
        PlanError: if there is nothing that may be removed.
        UnknownPathError: if a rule names no group.

    >>> import jax.numpy as jnp, compiler as mc
    >>> from compiler.passes.prune import importance
    >>> def mlp(params, x):
    ...     return jnp.tanh(x @ params["first"]) @ params["second"]
    >>> params = {"first": jnp.array([[1.0, 3.0, 2.0]]), "second": jnp.ones((3, 2))}
    >>> program = mc.trace(mlp, params, jnp.ones((1, 1)))
    >>> found = choose(program, importance.l2(), Ranking(0.4))
    >>> [units.tolist() for units in found.removed.values()]
    [[0]]
    """
    found = structure(program.graph)
    scores = importance.scores(program, found)
    skipped = tuple(Event(name, why) for name, why in ranking.skipped(found, scores))
    _check_any(found, scores, ranking)
    if budget is not None:
        made = fit(program, found, scores, ranking, budget)
        return Choice(made.plan, made.removed, made.ratio, scores, skipped)
    removed = ranking.rank(found, scores)
    return Choice(found.plan(removed), removed, ranking.ratio, scores, skipped)


def _check_any(found: Structure, scores: Scores, ranking: Ranking) -> None:
    """Something may go; a program of which nothing can is most likely another one."""
    left = [g for g in found.groups if not ranking.left_out(g, found)]
    if any(group.name in scores for group in left):
        return
    why = "every axis stays" if not found.groups else f"of {len(found.groups)} groups "
    if found.groups:
        why += "none is of these kinds" if not left else "none has a score"
    raise PlanError(
        f"prune.structured: expected something that may be removed, found none: {why}. "
        "Prune the forward function, before it is differentiated or saved; "
        "prune.groups(program) prints what can go, prune.why_not tells why not."
    )
