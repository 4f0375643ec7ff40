"""A pruning as data: which positions of which axes go, whatever the weights are."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from collections.abc import Iterable
from collections.abc import Mapping as Dict
from typing import Any

import numpy as np

from compiler.errors import PlanError
from compiler.passes.prune.plan import entries
from compiler.passes.prune.plan.entries import Entry, Shape
from compiler.passes.prune.plan.indices import write_indices
from compiler.passes.prune.plan.slices import sized, spread, take
from mapping.core import register


@register("value", "prune_plan")
@dataclasses.dataclass(frozen=True, repr=False)
class Plan:
    """What is removed from the leaves of a program: values, and no arrays.

    It names positions and not weights, so it is carried out on any weights of these
    shapes, on gradients and moments, at any batch size ([`cut`][]). Made by
    [`Plan.of`][], by an analysis, or read by [`Plan.from_json`][].

    Attributes:
        removed: (path, axis, sorted positions), in order; none is empty.
        shapes: (path, original shape) of every leaf named in `removed`, and of those
            that stay as far as they are known: whoever cuts a whole training state
            tells by them what is whose.

    Raises:
        PlanError: if positions are out of range, repeated or not sorted, or if a shape
            is missing.

    >>> plan = Plan.of({"dense/kernel": {1: [0, 2]}}, {"dense/kernel": (3, 4)})
    >>> print(plan)
    dense/kernel  (3, 4) -> (3, 2)  axis 1: 2 of 4
    50.0% of 12 elements stay
    >>> plan.cut(np.arange(12).reshape(3, 4), "dense/kernel").tolist()
    [[1, 3], [5, 7], [9, 11]]
    """

    removed: tuple[Entry, ...] = ()
    shapes: tuple[tuple[str, Shape], ...] = ()

    def __post_init__(self) -> None:
        shapes = tuple((path, tuple(map(int, shape))) for path, shape in self.shapes)
        object.__setattr__(self, "shapes", shapes)
        known = dict(shapes)
        found = tuple(entries.checked(*entry, known) for entry in self.removed)
        object.__setattr__(self, "removed", found)
        entries.check_order("shapes", [path for path, _ in shapes])
        entries.check_order("removed", [(path, axis) for path, axis, _ in found])

    @classmethod
    def of(
        cls, removed: Dict[str, Dict[int, Any]], shapes: Dict[str, Iterable[int]]
    ) -> Plan:
        """Makes a plan from positions in any order.

        Args:
            removed: by path and axis, the positions that go, or a boolean mask of them.
            shapes: of all these leaves before, by path; those of others are kept.

        Raises:
            PlanError: if a position or axis is out of range, or a shape is missing.

        >>> Plan.of({"w": {-1: [3, 1, 3]}}, {"w": (2, 4)}).removed
        (('w', 1, (1, 3)),)
        """
        known = {path: tuple(map(int, shape)) for path, shape in shapes.items()}
        found: dict[tuple[str, int], set[int]] = {}
        for path, axes in removed.items():
            for given, indices in axes.items():
                axis = entries.checked_axis(path, given, known)
                where, size = f"{path}, axis {axis}", known[path][axis]
                held = entries.as_positions(where, indices, size)
                found.setdefault((path, axis), set()).update(held)
        return cls(_ordered(found), tuple(sorted(known.items())))

    @functools.cached_property
    def _shapes(self) -> dict[str, Shape]:
        return dict(self.shapes)

    @functools.cached_property
    def _kept(self) -> dict[str, dict[int, np.ndarray]]:
        """By path and axis, the positions that stay."""
        found: dict[str, dict[int, np.ndarray]] = {}
        for path, axis, indices in self.removed:
            stay = np.ones(self._shapes[path][axis], bool)
            stay[np.asarray(indices)] = False
            found.setdefault(path, {})[axis] = np.flatnonzero(stay)
        return found

    def axes(self, path: str) -> dict[int, np.ndarray]:
        """The positions that stay on each axis of a leaf that is cut; others are whole.

        >>> Plan.of({"w": {0: [1]}}, {"w": (3, 2)}).axes("w")
        {0: array([0, 2])}
        """
        return dict(self._kept.get(path, {}))

    def shape(self, path: str) -> Shape:
        """The shape of a leaf when it is cut.

        Raises:
            PlanError: if the plan does not know the leaf.
        """
        shape, kept = self._shapes.get(path), self._kept.get(path, {})
        if shape is None:
            raise PlanError(
                f"{path}: expected a leaf of the plan, which knows "
                f"{entries.some(self._shapes)}. Make the plan with its shape: "
                "Plan.of(removed, {path: shape})."
            )
        return sized(shape, kept)

    def cut(self, value: Any, path: str) -> Any:
        """A leaf without what is removed from it; any other leaf as it is.

        Args:
            value: an array of jax (traced or not) or numpy, or a `ShapeDtypeStruct`.
            path: of the leaf.

        Raises:
            PlanError: if the array does not have the leaf's original shape.
        """
        kept = self._kept.get(path)
        if kept is None:
            return value
        self._check_shape(value, path)
        return take(value, kept)

    def zeroed(self, value: Any, path: str) -> Any:
        """A leaf in its original shape, with zeros where it would be cut.

        Raises:
            PlanError: if the array does not have the leaf's original shape.

        >>> Plan.of({"w": {0: [1]}}, {"w": (3,)}).zeroed(np.ones(3), "w").tolist()
        [1.0, 0.0, 1.0]
        """
        kept = self._kept.get(path)
        if kept is None:
            return value
        self._check_shape(value, path)
        sizes = dict(enumerate(self._shapes[path]))
        return spread(take(value, kept), kept, sizes)

    def then(self, other: Plan) -> Plan:
        """This plan and then another, which counts in what this one leaves, as one.

        Raises:
            PlanError: if the other is not about the shapes that this one leaves.

        >>> first = Plan.of({"w": {0: [1]}}, {"w": (5,)})
        >>> first.then(Plan.of({"w": {0: [0, 1]}}, {"w": (4,)})).removed
        (('w', 0, (0, 1, 2)),)
        """
        shapes = dict(self._shapes)
        for path, shape in other.shapes:
            left = self.shape(path) if path in shapes else shape
            if left != shape:
                raise PlanError(
                    f"{path}: expected a later plan for the shape {left} that the "
                    f"earlier one leaves, got one for {shape}. Analyse what is pruned "
                    "already, or apply both to the original and merge what they remove."
                )
            shapes.setdefault(path, shape)
        found = {(path, axis): set(held) for path, axis, held in self.removed}
        for path, axis, indices in other.removed:
            kept = self._kept.get(path, {}).get(axis, np.arange(shapes[path][axis]))
            more = kept[np.asarray(indices)].tolist()
            found.setdefault((path, axis), set()).update(more)
        return Plan(_ordered(found), tuple(sorted(shapes.items())))

    def below(self, path: str) -> Plan:
        """The part of the plan about what is inside of a path, named from there.

        >>> plan = Plan.of({"params/a/w": {0: [1]}}, {"params/a/w": (3,)})
        >>> plan.below("params/a").removed
        (('w', 0, (1,)),)
        """
        names = {
            p: p[len(path) + 1 :] for p in self._shapes if p.startswith(f"{path}/")
        }
        if not names:
            raise PlanError(
                f"{path}: expected a path that leaves of the plan are inside of, which "
                f"are {entries.some(self._shapes)}. Name what holds some of them."
            )
        removed = tuple(
            (names[p], a, held) for p, a, held in self.removed if p in names
        )
        shapes = tuple((names[p], shape) for p, shape in self.shapes if p in names)
        return Plan(removed, shapes)

    @property
    def kept_share(self) -> float:
        """The share of the elements of all leaves it knows that stays, 0 to 1."""
        before = sum(math.prod(shape) for _, shape in self.shapes)
        after = sum(math.prod(self.shape(path)) for path, _ in self.shapes)
        return after / before if before else 1.0

    def to_fields(self) -> dict[str, Any]:
        """The fields as `mapping.to_config` writes them: positions as runs."""
        runs = tuple((p, axis, write_indices(held)) for p, axis, held in self.removed)
        return {"removed": runs}

    def to_json(self) -> str:
        """Writes the plan as JSON, runs of positions as `first-last`.

        >>> print(Plan.of({"w": {0: [1, 2, 3]}}, {"w": (8,)}).to_json())
        {"format": "mapping.prune", "version": 1, "leaves": {"w": {"shape": [8], ...
        """
        leaves: dict[str, Any] = {p: {"shape": list(s)} for p, s in self.shapes}
        for path, axis, held in self.removed:
            cut = leaves[path].setdefault("removed", {})
            cut[str(axis)] = write_indices(held)
        head = {"format": entries.FORMAT, "version": entries.VERSION}
        return json.dumps({**head, "leaves": leaves})

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """Reads what [`Plan.to_json`][] wrote.

        Raises:
            PlanError: if it is not a plan, of a newer version, or wrong in itself; it
                names the leaf.

        >>> plan = Plan.of({"w": {0: [1, 2, 3]}}, {"w": (8,)})
        >>> Plan.from_json(plan.to_json()) == plan
        True
        """
        leaves = sorted(entries.read_leaves(text).items())
        removed = [
            (path, int(axis), held)
            for path, leaf in leaves
            for axis, held in leaf.get("removed", {}).items()
        ]
        removed.sort(key=lambda entry: entry[:2])
        return cls(
            tuple(removed), tuple((path, leaf["shape"]) for path, leaf in leaves)
        )

    def _check_shape(self, value: Any, path: str) -> None:
        wanted, got = self._shapes[path], tuple(np.shape(value))
        if got != wanted:
            already = " It is cut already." if got == self.shape(path) else ""
            raise PlanError(
                f"{path}: expected the shape {wanted} that the plan was made for, got "
                f"{got}.{already} Cut the original, or plan for what you have."
            )

    def __len__(self) -> int:
        """How many axes are cut."""
        return len(self.removed)

    def __bool__(self) -> bool:
        """Whether anything is removed."""
        return bool(self.removed)

    def __repr__(self) -> str:
        """In short; `str` gives the table."""
        axes, leaves = len(self.removed), len(self._kept)
        return f"Plan({axes} axes of {leaves} leaves, {self.kept_share:.1%} stay)"

    def __str__(self) -> str:
        """A line for each leaf that is cut: its shapes, and what stays on each axis."""
        shapes, lines = self._shapes, []
        for path, kept in self._kept.items():
            axes = (f"axis {a}: {len(k)} of {shapes[path][a]}" for a, k in kept.items())
            change = f"{shapes[path]} -> {self.shape(path)}"
            lines.append(f"{path}  {change}  {', '.join(axes)}")
        total = sum(math.prod(shape) for shape in shapes.values())
        return "\n".join([*lines, f"{self.kept_share:.1%} of {total} elements stay"])


def _ordered(found: Dict[tuple[str, int], set[int]]) -> tuple[Entry, ...]:
    held = ((path, axis, tuple(sorted(held))) for (path, axis), held in found.items())
    return tuple(sorted(entry for entry in held if entry[2]))
