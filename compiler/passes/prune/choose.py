"""What a structured pruning removes from one program: scores, a ranking, a budget."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from compiler.events import Event
from compiler.passes.prune.budget import Budget, fit
from compiler.passes.prune.importance.importance import Scores
from compiler.passes.prune.plan import Plan
from compiler.passes.prune.ranking import Ranking
from compiler.passes.prune.scope import Removed
from compiler.passes.prune.structure import structure

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
    if not found.groups:
        why = "nothing can be removed: prune.why_not(program, path, axis) tells why"
        skipped = (*skipped, Event("(root)", why))
    if budget is not None:
        made = fit(program, found, scores, ranking, budget)
        return Choice(made.plan, made.removed, made.ratio, scores, skipped)
    removed = ranking.rank(found, scores)
    return Choice(found.plan(removed), removed, ranking.ratio, scores, skipped)
