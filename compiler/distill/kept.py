"""Which of the teacher's features a pruned student still has."""

from __future__ import annotations

from typing import Any

import numpy as np

from compiler.distill.places import below
from compiler.paths import owner_and_kind
from compiler.program import Program


def kept(student: Program, path: str, widths: tuple[int, int]) -> np.ndarray | None:
    """The features of a path that its history of pruning kept, or None if unknown.

    Told by the leaves at the path that were cut from one width to the other: by those
    of one axis (a bias, a norm's scale) where there are any, else by all that agree.

    Args:
        student: a program, perhaps pruned.
        path: of an operation of it.
        widths: of the student's value there, and of the teacher's.
    """
    found = _kept_axes(student)
    inside = [
        (len(leaf.spec.shape), own)
        for leaf in student.graph.leaves
        if below(path.partition(":")[0], owner_and_kind(leaf)[0])
        for own in found.get(leaf.path, {}).values()
        if (len(own[1]), own[0]) == widths
    ]
    flat = [own for rank, own in inside if rank == 1] or [own for _, own in inside]
    if not flat or any(not np.array_equal(own[1], flat[0][1]) for own in flat):
        return None
    return flat[0][1]


def _kept_axes(student: Program) -> dict[str, dict[int, tuple[int, np.ndarray]]]:
    """By leaf and axis, the extent before all pruning, and what is left of it."""
    found: dict[str, dict[int, tuple[int, np.ndarray]]] = {}
    for applied in student.history:
        plan: Any = getattr(applied.step, "plan", None)
        if not hasattr(plan, "removed") or not hasattr(plan, "axes"):
            continue
        shapes = dict(plan.shapes)
        for path in {entry[0] for entry in plan.removed}:
            own = found.setdefault(path, {})
            for axis, stay in plan.axes(path).items():
                before, left = own.get(axis, (shapes[path][axis], None))
                own[axis] = before, stay if left is None else left[stay]
    return found
