"""The passes that say what goes: by importance, by a ratio or a budget."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from compiler.graph import Graph
from compiler.passes.base import Pass, Rewrite
from compiler.passes.prune.choice.budget import Budget
from compiler.passes.prune.choice.choose import choose
from compiler.passes.prune.choice.ranking import DEFAULT_KINDS, Ranking
from compiler.passes.prune.importance import Importance, l2
from compiler.passes.prune.remove import Remove
from mapping.core import register

if TYPE_CHECKING:
    from compiler.program import Program


@register("pass", "prune_structured")
@dataclasses.dataclass(frozen=True)
class Structured(Pass):
    """Removes the units that matter least. Made by [`structured`][].

    What it decides for one program is a [`Remove`][] with the plan, which is data.

    Attributes:
        importance: how much each unit matters.
        ranking: how many go, and which are compared.
        budget: what may be left, instead of a ratio.
    """

    importance: Importance = dataclasses.field(default_factory=l2)
    ranking: Ranking = dataclasses.field(default_factory=Ranking)
    budget: Budget | None = None

    def decide(self, program: Program) -> Remove:
        """Chooses what goes."""
        choice = choose(program, self.importance, self.ranking, self.budget)
        return Remove(choice.plan, choice.skipped)

    def rewrite(self, graph: Graph) -> Rewrite:
        """Never called: what is decided is another pass."""
        raise TypeError(
            "prune.structured: expected to be applied to a program, got a graph. What "
            "goes depends on weights; carry a plan out with prune.apply(plan)."
        )


def structured(
    ratio: float | None = None,
    *,
    importance: Importance | None = None,
    ranking: str = "local",
    rules: Mapping[str, float] | Sequence[tuple[str, float]] = (),
    ignore: str | Sequence[str] = (),
    kinds: Sequence[str] = DEFAULT_KINDS,
    round_to: int | Mapping[str, int] = 1,
    minimum: int = 1,
    max_ratio: float = 1.0,
    budget: Budget | None = None,
) -> Structured:
    """Removes channels, heads and other structure, from any function.

    The result is a smaller program: its leaves are smaller, and so is everything they
    meet. What goes together is found by following every axis through the program
    (`prune.groups` prints it, `prune.why_not` tells what stays and why). A norm is
    taken over what is left; a number in the function that was an extent only by chance
    (the 1/sqrt(size) of attention) stays what it is, so that what is left computes what
    it did. Fine-tune it afterwards.

    Args:
        ratio: the share of units that goes, in [0, 1]; half of them by default.
        importance: which matter; `prune.l2()` by default.
        ranking: `"local"` takes the share of each group, `"global"` of all together,
            `"isomorphic"` of those that are built alike.
        rules: globs of paths and their ratios; the first that names a group counts.
        ignore: globs of what stays.
        kinds: what is touched: `"channels"`, `"heads"`, `"head_dim"`, `"experts"`.
        round_to: what is kept is a multiple of it; or a number for each kind.
        minimum: how many units every group keeps at least.
        max_ratio: the most that goes of one group.
        budget: what may be left, `prune.budget(flops=0.25)`, instead of `ratio`.

    Raises:
        TypeError: if the ratio is no number, or a budget is given beside it.
        PlanError: if there is nothing that may be removed (when it is applied).
        BudgetError: if a budget cannot be reached (when it is applied).
        UnknownPathError: if a glob names no group (when it is applied).

    Fang et al., "DepGraph: Towards Any Structural Pruning", CVPR 2023,
    https://arxiv.org/abs/2301.12900, on modules; here on labels of equations.

    >>> import jax.numpy as jnp, compiler as mc
    >>> def mlp(params, x):
    ...     return jnp.tanh(x @ params["first"]) @ params["second"]
    >>> params = {"first": jnp.ones((3, 8)), "second": jnp.ones((8, 2))}
    >>> program = mc.trace(mlp, params, jnp.ones((1, 3)))
    >>> small = program >> mc.prune.structured(0.5)
    >>> small.variables["first"].shape, small(jnp.ones((7, 3))).shape
    ((3, 4), (7, 2))
    """
    _check_ratio(ratio, budget)
    _check_kind("importance", importance, Importance, "prune.l2()")
    _check_kind("budget", budget, Budget, "prune.budget(flops=0.25)")
    ranked = Ranking(
        0.5 if ratio is None else ratio,
        ranking,
        _pairs(rules),
        (ignore,) if isinstance(ignore, str) else tuple(ignore),
        (kinds,) if isinstance(kinds, str) else tuple(kinds),
        round_to if isinstance(round_to, int) else _pairs(round_to),
        minimum,
        max_ratio,
    )
    return Structured(importance or l2(), ranked, budget)


def _check_ratio(ratio: object, budget: Budget | None) -> None:
    if ratio is not None and not isinstance(ratio, float | int):
        raise TypeError(
            f"prune.structured: expected a ratio in [0, 1], got a "
            f"{type(ratio).__name__}. Call it: program >> prune.structured(0.5)."
        )
    if ratio is not None and budget is not None:
        raise TypeError(
            f"prune.structured: expected a ratio or a budget, got {ratio!r} and "
            f"{budget!r}. Give one: the budget finds the ratio."
        )


def _check_kind(name: str, value: object, kind: type, example: str) -> None:
    if value is not None and not isinstance(value, kind):
        raise TypeError(
            f"prune.structured: expected {name} to be of {kind.__name__}, got "
            f"{value!r}. Make one: {name}={example}."
        )


def _pairs(given: Mapping[str, float] | Sequence[tuple[str, float]]) -> tuple:
    return tuple(given.items() if isinstance(given, Mapping) else given)


def channels(ratio: float | None = None, **options: object) -> Structured:
    """Removes channels and nothing else: hidden units, filters, features.

    Args:
        ratio: the share that goes, in [0, 1].
        **options: as for [`structured`][].

    >>> channels(0.25).ranking.kinds
    ('channels',)
    """
    return structured(ratio, kinds=("channels",), **options)  # ty: ignore[invalid-argument-type]


def heads(ratio: float | None = None, **options: object) -> Structured:
    """Removes heads of attention and nothing else; with grouped queries their groups.

    Args:
        ratio: the share that goes, in [0, 1].
        **options: as for [`structured`][].

    >>> heads(0.25).ranking.kinds
    ('heads',)
    """
    return structured(ratio, kinds=("heads",), **options)  # ty: ignore[invalid-argument-type]


def experts(ratio: float | None = None, **options: object) -> Structured:
    """Removes experts of a mixture and nothing else.

    Args:
        ratio: the share that goes, in [0, 1].
        **options: as for [`structured`][].

    >>> experts(0.25).ranking.kinds
    ('experts',)
    """
    return structured(ratio, kinds=("experts",), **options)  # ty: ignore[invalid-argument-type]
