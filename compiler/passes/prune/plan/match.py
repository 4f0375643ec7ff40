"""The leaves of a training state, each with what becomes of its axes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping as Dict
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from compiler.errors import PlanError
from compiler.passes.prune.plan.entries import Shape, some
from compiler.passes.prune.plan.owners import Axes, Owner, Owners
from compiler.passes.prune.plan.plan import Plan
from mapping.core import path_string


@dataclasses.dataclass(frozen=True)
class Match:
    """A leaf of a state.

    Attributes:
        path: its own.
        value: it itself.
        owner: the leaf of the plan that it belongs to; None if it belongs to none.
        axes: for each of its axes that is cut, which one of the owner's it is.
        kept: for each of its axes that is cut, the positions that stay.
    """

    path: str
    value: Any
    owner: Owner | None = None
    axes: dict[int, int] = dataclasses.field(default_factory=dict)
    kept: dict[int, np.ndarray] = dataclasses.field(default_factory=dict)


def match(
    tree: Any, plan: Plan, shapes: Dict[str, Shape] | None = None
) -> tuple[list[Match], Any]:
    """Finds for every leaf of a tree what it belongs to.

    Args:
        tree: anything that holds arrays, their shapes or their shardings.
        plan: whose leaves they may belong to.
        shapes: of these leaves now; the plan's own by default.

    Returns:
        The leaves in order, and the structure of the tree.

    Raises:
        PlanError: naming the leaves that have the path of one that is cut and no shape
            it can have, or that can belong to several, or if none belongs to any.
    """
    leaves, structure = jax.tree_util.tree_flatten_with_path(tree)
    search = _Search(plan, dict(plan.shapes) if shapes is None else shapes)
    found, wrong = [], []
    for key, value in leaves:
        try:
            found.append(search.match(path_string(key), value))
        except PlanError as error:
            wrong.append(str(error))
    if wrong:
        more = f"\nand {len(wrong) - 5} more leaves." if len(wrong) > 5 else ""
        raise PlanError("\n".join(wrong[:5]) + more)
    if plan and not any(one.owner for one in found):
        paths = [one.path for one in found if len(_shape(one.value) or ()) > 0]
        if paths:
            raise PlanError(
                f"{some(paths)}: expected leaves of the plan or what belongs to them, "
                f"by path, got none. The plan's are {some(dict(plan.shapes))}. "
                "Give the part of the plan about this tree: plan.below(path)."
            )
    return found, structure


def is_spec(value: Any) -> bool:
    """Whether a leaf is a sharding, and no array."""
    return isinstance(value, NamedSharding | PartitionSpec)


class _Search:
    def __init__(self, plan: Plan, shapes: Dict[str, Shape]) -> None:
        self._plan, self._shapes = plan, shapes
        self._owners = Owners(shapes)

    def match(self, path: str, value: Any) -> Match:
        if not is_spec(value) and not hasattr(value, "shape"):
            return Match(path, value)
        names, shape = tuple(filter(None, path.split("/"))), _shape(value)
        owners, cuts = self._owners.find(names, shape), {}
        for owner in owners:
            for axes in self._owners.alignments(owner, shape):
                one = self._cut(path, value, owner, axes)
                cuts.setdefault(
                    tuple((i, k.tobytes()) for i, k in one.kept.items()), one
                )
        if len(cuts) == 1:
            return next(iter(cuts.values()))
        if not any(self._plan.axes(owner.path) for owner in owners):
            return Match(path, value)
        raise PlanError(self._refusal(path, shape, owners, bool(cuts)))

    def _cut(self, path: str, value: Any, owner: Owner, axes: Axes) -> Match:
        stay = self._plan.axes(owner.path)
        cut = {i: axis for i, axis in enumerate(axes) if axis is not None}
        cut = {i: axis for i, axis in cut.items() if axis in stay}
        return Match(path, value, owner, cut, {i: stay[a] for i, a in cut.items()})

    def _refusal(
        self, path: str, shape: Any, owners: list[Owner], several: bool
    ) -> str:
        paths = " or of ".join(dict.fromkeys(owner.path for owner in owners))
        own = self._shapes[owners[0].path]
        if several and len(owners) > 1:
            return (
                f"{path}: expected to belong to one leaf of the plan, can be of "
                f"{paths}. Cut what holds it, by the plan about that: plan.below(path)."
            )
        if several:
            return (
                f"{path}: expected a shape that tells which axes of {paths}, {own}, it "
                f"has, got {shape}. Cut it by hand: plan.axes({paths!r})."
            )
        cut = self._plan.shape(owners[0].path)
        done = " It is cut already." if shape == cut != own else ""
        return (
            f"{path}: expected the shape {own} of {paths}, or one without some of its "
            f"axes, got {shape}.{done} Give the state of the parameters that the plan "
            "was made for."
        )


def _shape(value: Any) -> Shape | None:
    return None if is_spec(value) else tuple(value.shape)
