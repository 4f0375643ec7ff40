"""A plan carried out on everything that belongs to a training run."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from compiler.errors import PlanError
from compiler.events import Event, Events
from compiler.passes.prune.plan.entries import Shape, some
from compiler.passes.prune.plan.factored import refactored
from compiler.passes.prune.plan.match import Match, is_spec, match
from compiler.passes.prune.plan.owners import factor_dims
from compiler.passes.prune.plan.plan import Plan
from compiler.passes.prune.plan.shardings import fit, fitted, sharding_of
from compiler.passes.prune.plan.slices import is_host, spread, take
from mapping.core import leaf_paths


def cut(
    tree: Any,
    plan: Plan,
    *,
    like: Any = None,
    mesh: Any = None,
    strict: bool = False,
    events: Events | None = None,
) -> Any:
    """Removes what a plan removes from any tree that belongs to the same parameters.

    Params, batch statistics, gradients, averages, the moments of an optimizer and whole
    training states, with their shardings: training goes on where it was. A leaf belongs
    to the parameter whose path its own ends in, and is cut on those of the axes it
    shares with it; it may lack some (a mean over them) or have more in front. Scalars
    and leaves that belong to nothing stay.

    Adafactor's two factors are scaled such that the second moment they stand for stays
    the same for every element that stays.

    Args:
        tree: of arrays (of jax, traced or not, or numpy), `ShapeDtypeStruct`s,
            `NamedSharding`s or `PartitionSpec`s.
        plan: what goes; `plan.below(path)` if the tree is only a part of what the plan
            is about, or calls it otherwise.
        like: a tree with the shapes that must come out, such as
            `jax.eval_shape(optimizer.init, small)`: checked, and needed where adafactor
            may stop factoring an axis that is short now.
        mesh: of `PartitionSpec`s, which have none themselves.
        strict: refuse to drop a sharding that does not divide an axis any more.
        events: told what was cut, what stayed that belongs to nothing, and which axes
            lost their sharding.

    Raises:
        PlanError: naming leaves that have a parameter's path and no shape that follows
            from its, that can belong to several, or that do not come out `like`; or if
            nothing in the tree belongs to the plan.

    >>> import optax
    >>> params = {"a": jnp.ones((3, 4)), "b": jnp.ones(3)}
    >>> plan = Plan.of({"a": {1: [0, 2]}}, {"a": (3, 4), "b": (3,)})
    >>> small, state = cut((params, optax.adam(1e-3).init(params)), plan)
    >>> small["a"].shape, state[0].mu["a"].shape, state[0].nu["b"].shape
    ((3, 2), (3, 2), (3,))
    """
    events = Events() if events is None else events
    matches, structure = match(tree, plan)
    wanted = None if like is None else jax.tree.leaves(like)
    if wanted is not None and len(wanted) != len(matches):
        _check_like(tree, like)
    values = [_cut(one, plan, mesh, strict, events) for one in matches]
    for place, value in refactored(matches, plan, wanted).items():
        values[place] = value
    result = jax.tree.unflatten(structure, values)
    if like is not None:
        _check_like(result, like)
    return result


def scatter(tree: Any, plan: Plan, like: Any = None) -> Any:
    """Puts what [`cut`][] left back into the original shapes.

    Args:
        tree: what was cut.
        plan: by what.
        like: a tree in the original shapes whose values fill what was removed; zeros
            by default.

    Raises:
        PlanError: as [`cut`][], or if `like` has other leaves.

    >>> plan = Plan.of({"w": {0: [1]}}, {"w": (3,)})
    >>> scatter({"w": jnp.array([5.0, 6.0])}, plan)["w"].tolist()
    [5.0, 0.0, 6.0]
    """
    shapes, whole = {p: plan.shape(p) for p, _ in plan.shapes}, dict(plan.shapes)
    matches, structure = match(tree, plan, shapes)
    values = [_scattered(one, plan, whole) for one in matches]
    result = jax.tree.unflatten(structure, values)
    if like is None:
        return result
    _check_like(result, like)
    pairs = zip(matches, values, jax.tree.leaves(like), strict=True)
    return jax.tree.unflatten(structure, [_filled(*each) for each in pairs])


def _cut(one: Match, plan: Plan, mesh: Any, strict: bool, events: Events) -> Any:
    value = one.value
    if one.owner is None and np.ndim(value) and plan:
        events.skipped.append(Event(one.path, "belongs to no leaf of the plan"))
    if not one.kept or one.owner is None:
        return value
    sizes = {axis: len(stay) for axis, stay in one.kept.items()}
    if isinstance(value, PartitionSpec):
        mesh = jax.sharding.get_abstract_mesh() if mesh is None else mesh
        made, lost = (value, ()) if mesh.empty else fitted(value, mesh, sizes)
    elif is_spec(value):
        made, lost = fit(value, sizes)
    else:
        made, lost = take(value, one.kept), fit(_sharding(value), sizes)[1]
        change = f"{tuple(value.shape)} -> {tuple(made.shape)}, as {one.owner.path}"
        events.fired.append(Event(one.path, change))
    for axis in lost:
        why = f"axis {axis} has {sizes[axis]} positions left, which the mesh does not "
        if strict:
            raise PlanError(
                f"{one.path}: {why}divide. Keep a multiple of the mesh's axis, or pass "
                "strict=False to keep this axis in one piece."
            )
        events.skipped.append(Event(one.path, f"{why}divide: it is in one piece now"))
    return made


def _sharding(value: Any) -> Any:
    abstract = isinstance(value, jax.ShapeDtypeStruct)
    return value.sharding if abstract else sharding_of(value)


def _scattered(one: Match, plan: Plan, whole: dict[str, Shape]) -> Any:
    if one.owner is None or not one.kept or is_spec(one.value):
        return one.value
    shape = whole[one.owner.path]
    sizes = {own: shape[axis] for own, axis in one.axes.items()}
    if one.owner.factor and len(shape) == np.ndim(one.value) + 1:
        now = plan.shape(one.owner.path)
        if factor_dims(now) != factor_dims(shape):
            raise PlanError(
                f"{one.path}: expected means over the same axes before and after, got "
                f"shapes {shape} and {now}, whose longest axes are others. Begin these "
                "moments anew: scatter the parameters only."
            )
    return spread(one.value, one.kept, sizes)


def _filled(one: Match, value: Any, fill: Any) -> Any:
    """A leaf with its removed positions from another."""
    if not one.kept or is_spec(value) or isinstance(fill, jax.ShapeDtypeStruct):
        return value
    stays = np.zeros(value.shape, bool)
    stays[
        np.ix_(*(one.kept.get(a, np.arange(n)) for a, n in enumerate(value.shape)))
    ] = True
    return (np if is_host(value) else jnp).where(stays, value, fill)


def _check_like(tree: Any, like: Any) -> None:
    """Checks that a tree has the leaves and shapes of another."""
    got, wanted = leaf_paths(tree), leaf_paths(like)
    if got.keys() != wanted.keys():
        raise PlanError(
            f"like: expected the same leaves as the tree, misses "
            f"{some(got.keys() - wanted.keys())}, has beyond them "
            f"{some(wanted.keys() - got.keys())}. Give a tree of the same structure."
        )
    wrong = [
        f"{path}: expected {np.shape(wanted[path])}, got {np.shape(value)}"
        for path, value in got.items()
        if not is_spec(value) and np.shape(value) != np.shape(wanted[path])
    ]
    if wrong:
        raise PlanError(
            "; ".join(wrong[:5]) + ". These leaves do not follow from the paths of the "
            "parameters. Begin them anew: optimizer.init(small)."
        )
