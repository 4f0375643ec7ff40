"""The pass that carries a plan out: structure disappears from graph and leaves."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from compiler.errors import PlanError
from compiler.events import Event, Events
from compiler.graph import Graph
from compiler.passes.base import Pass, Rewrite
from compiler.passes.prune.plan import Plan
from compiler.passes.prune.structure import shrink, structure
from mapping.core import register


@register("pass", "prune")
@dataclasses.dataclass(frozen=True)
class Remove(Pass):
    """Removes what a plan names. Made by [`apply`][], or decided by another pass.

    Attributes:
        plan: what goes.
        skipped: what was left as it is when it was decided, and why.
    """

    plan: Plan = dataclasses.field(default_factory=Plan)
    skipped: tuple[Event, ...] = dataclasses.field(
        default=(), repr=False, compare=False
    )

    def rewrite(self, graph: Graph) -> Rewrite:
        """The graph on smaller leaves; itself if they are as small already.

        Raises:
            PlanError: if the plan is not about this graph, or removes a part of what
                goes together in it.
        """
        plan, events = self.plan, Events(skipped=list(self.skipped))
        mine = [leaf for leaf in graph.leaves if plan.axes(leaf.path)]
        if plan and not mine:
            names = ", ".join(path for path, _, _ in plan.removed[:3])
            raise PlanError(
                f"expected a program with leaves of the plan ({names}, ...), got one "
                f"with {graph.paths[:3]}. Plan for this program."
            )
        if all(leaf.spec.shape == plan.shape(leaf.path) for leaf in mine):
            if mine:
                events.skipped.append(Event(mine[0].path, "is pruned by this already"))
            return Rewrite(graph, None, events)
        found = structure(graph)
        small = shrink(found, plan)
        for leaf in mine:
            before, after = tuple(leaf.spec.shape), plan.shape(leaf.path)
            events.fired.append(Event(leaf.path, f"{before} -> {after}"))
        paths = graph.paths

        def prepare(leaves: Sequence[Any]) -> list[Any]:
            return [plan.cut(x, path) for x, path in zip(leaves, paths, strict=True)]

        return Rewrite(small, prepare, events, resized=found.resized)

    def __str__(self) -> str:
        """What stays, in short."""
        return f"Remove({self.plan!r})"


def apply(plan: Plan) -> Remove:
    """Carries out a plan: on other weights, other batches, another function of them.

    A plan names indices of leaves and nothing else, so it holds for any program that
    has these leaves. What it removes has to go together there too; whoever uses one
    set of weights in several functions traces them together to plan.

    Args:
        plan: what goes; made by an analysis, or read with `Plan.from_json`.

    >>> import jax.numpy as jnp, compiler as mc
    >>> def mlp(params, x):
    ...     return jnp.tanh(x @ params["first"]) @ params["second"]
    >>> params = {"first": jnp.ones((3, 8)), "second": jnp.ones((8, 2))}
    >>> program = mc.trace(mlp, params, jnp.ones((1, 3)))
    >>> gone = {"first": {1: [0, 1]}, "second": {0: [0, 1]}}
    >>> plan = mc.prune.Plan.of(gone, {"first": (3, 8), "second": (8, 2)})
    >>> (program >> mc.prune.apply(plan))(jnp.ones((5, 3))).shape
    (5, 2)
    """
    if not isinstance(plan, Plan):
        raise TypeError(
            f"prune.apply: expected a Plan, got {type(plan).__name__}. Read one with "
            "prune.Plan.from_json(text)."
        )
    return Remove(plan)
