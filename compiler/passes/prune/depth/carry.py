"""What belongs to parameters, without what belonged to those that are gone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from compiler.errors import PlanError
from compiler.graph import nest
from compiler.passes.prune.depth.layers import PruneLayers
from compiler.passes.prune.depth.steps import steps
from compiler.passes.prune.plan import Plan
from compiler.passes.prune.remove import Remove
from mapping.core import leaf_paths

if TYPE_CHECKING:
    from compiler.program import Program


def carry(tree: Any, before: Program, after: Program, params: Any = None) -> Any:
    """A training state for a program that lost layers: training goes on where it was.

    What plans took from it afterwards goes too.

    Wherever the tree has a part that is like the parameters (the moments of an
    optimizer, averages, gradients, the parameters themselves), that part loses what
    the program lost, and becomes a nested dict as `after.variables` is. All else stays.

    Args:
        tree: such as `{"params": ..., "opt_state": optimizer.init(params), "step": 3}`.
        before: the program whose parameters it is about.
        after: the same without layers.
        params: what the optimizer was given, if that is a part of the variables only.

    Raises:
        PlanError: if nothing in the tree is like the parameters, or they lost something
            else than layers and what plans name.

    >>> import jax.numpy as jnp, optax, compiler as mc
    >>> def net(layers, x):
    ...     for name in sorted(layers):
    ...         x = x + jnp.tanh(x @ layers[name]["w"])
    ...     return x
    >>> params = {"a": {"w": jnp.eye(2)}, "b": {"w": jnp.zeros((2, 2))}}
    >>> program = mc.trace(net, params, jnp.ones((1, 2)))
    >>> shorter = program >> mc.prune.depth.layers(count=1)
    >>> moments, _ = carry(optax.adam(0.1).init(params), program, shorter)
    >>> list(moments.mu)
    ['a']
    """
    whole = before.variables if params is None else params
    structure, found = jax.tree.structure(whole), []
    full = _names(before, whole)
    kept = {leaf.path: leaf.spec.shape for leaf in after.graph.leaves}
    later = after.recipe[len(before.recipe) :]
    plans = [_plan(before, after)]
    plans += [step.plan for step in later if isinstance(step, Remove)]

    def alike(part: Any) -> bool:
        return jax.tree.structure(part) == structure

    def cut(part: Any) -> Any:
        if not alike(part):
            return part
        found.append(part)
        values = zip(full.items(), jax.tree.leaves(part), strict=True)
        left = {
            own: _cut(value, path, kept[path], plans)
            for (own, path), value in values
            if path in kept
        }
        return nest(left)

    result = jax.tree.map(cut, tree, is_leaf=alike)
    if not found:
        raise PlanError(
            "prune.carry: expected a tree with parts that are like the variables of "
            "the program, found none. Pass params= if the optimizer was given a part."
        )
    return result


def _cut(value: Any, path: str, shape: Any, plans: Sequence[Plan]) -> Any:
    """A leaf without what plans take, in turn, to the shape it has in the end."""
    for plan in plans:
        if np.shape(value) != shape and plan.axes(path):
            value = plan.cut(value, path)
    if np.shape(value) != tuple(shape):
        raise PlanError(
            f"{path}: expected to become {tuple(shape)} by what layers and plans took, "
            f"got {np.shape(value)}. Cut the rest by hand, as rows of a vocabulary: "
            "value[vocabulary.kept]."
        )
    return value


def _names(before: Program, params: Any) -> dict[str, str]:
    """The path of each leaf of the program by its path among the parameters."""
    found = {}
    for own in leaf_paths(params):
        ends = [p for p in before.graph.paths if p == own or p.endswith(f"/{own}")]
        if not ends:
            raise PlanError(
                f"{own}: expected a leaf of the program, which has "
                f"{before.graph.paths[:5]}. Pass the params it was traced with."
            )
        found[own] = min(ends, key=len)
    return found


def _plan(before: Program, after: Program) -> Plan:
    """What is gone of stacked leaves."""
    passes = [step for step in after.recipe if isinstance(step, PruneLayers)]
    keys = {key for step in passes for key in step.removed or ()}
    gone: dict[str, dict[int, list[int]]] = {}
    for step in steps(before.graph):
        for leaf, axis, indices in step.slots if step.key in keys else ():
            own = gone.setdefault(before.graph.paths[leaf], {})
            own.setdefault(axis, []).extend(indices.tolist())
    shapes = {leaf.path: leaf.spec.shape for leaf in before.graph.leaves}
    return Plan.of(gone, shapes)
