"""What of a teacher a value of the student is compared with, and how."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from compiler.distill.measures import (
    alignment,
    attention_maps,
    attention_rows,
    relative,
    similarity,
    squared,
)
from compiler.errors import DistillError
from mapping.core import describe

BY_NUMBER = ("mse", "relative")
"""Losses of values that have to have one shape."""

LOSSES = (*BY_NUMBER, "gram", "cka", "map", "rows")
"""What two values may be compared by."""


@dataclasses.dataclass(frozen=True)
class Match:
    """Compares a value of the student with one of the teacher.

    Attributes:
        path: of the teacher's value, as [`tap`][] takes it; by default the student's.
        loss: `mse` or `relative` for squared errors (where the student is narrower,
            with the features that were kept, or through a learned projection);
            `gram`, `cka` or `map` for what does not depend on the width; `rows` for
            attention probabilities (averaged over heads where their numbers differ).
        weight: >= 0, what it is multiplied by in the sum.
        axis: of the features; for `rows` of the heads. By default the last, and the
            third from the end.
        batch: the axis of examples, for `gram`, `cka` and `map`.
        steps: which steps of the teacher's, where the value is stacked over those of
            a loop and the student has fewer.

    Raises:
        DistillError: if a loss is unknown or a weight is negative.

    >>> Match("encoder", loss="cka", weight=0.5).weight
    0.5
    """

    path: str | None = None
    loss: str = "mse"
    weight: float = 1.0
    axis: int | None = None
    batch: int = 0
    steps: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.loss not in LOSSES:
            raise DistillError(
                f"Match.loss: expected one of {', '.join(LOSSES)}, got {self.loss!r}."
            )
        number = isinstance(self.weight, int | float | np.number)
        if not number or not 0 <= self.weight < np.inf:
            raise DistillError(
                f"Match.weight: expected a number >= 0, got {self.weight!r}."
            )

    @property
    def along(self) -> int:
        """The axis of features, or of heads."""
        if self.axis is not None:
            return self.axis
        return -3 if self.loss == "rows" else -1

    def chosen(self, teacher: Any) -> Any:
        """The teacher's value, of the steps that are compared."""
        if self.steps is None:
            return teacher
        return jnp.take(teacher, np.asarray(self.steps, np.int32), axis=0)

    def widths(self, student: Any, teacher: Any, name: str) -> tuple[int, int]:
        """How many features, or heads, each has.

        Raises:
            DistillError: if the values differ in more than that; for `gram` and `cka`
                in the number of examples.
        """
        shapes = [list(student.shape), list(teacher.shape)]
        axis = self.batch if self.loss in ("gram", "cka") else self.along
        if not all(-len(shape) <= axis < len(shape) for shape in shapes):
            raise DistillError(self._unlike(student, teacher, name))
        if self.loss in ("gram", "cka"):
            fits = shapes[0][axis] == shapes[1][axis]
            own = (0, 0)
        else:
            own = (shapes[0].pop(axis), shapes[1].pop(axis))
            fits = shapes[0] == shapes[1]
        if not fits:
            raise DistillError(self._unlike(student, teacher, name))
        return own

    def __call__(self, student: Any, teacher: Any, name: str) -> jax.Array:
        """The loss of two values, unweighted; `mse` and `relative` of one shape."""
        widths = self.widths(student, teacher, name)
        if self.loss == "rows":
            if widths[0] != widths[1]:
                student = student.mean(self.along, keepdims=True)
                teacher = teacher.mean(self.along, keepdims=True)
            return attention_rows(student, teacher)
        if self.loss == "mse":
            return squared(student, teacher)
        if self.loss == "relative":
            return relative(student, teacher)
        axis = self.along % student.ndim
        axis += axis < self.batch % student.ndim  # what stood before it moves back
        student, teacher = (jnp.moveaxis(a, self.batch, 0) for a in (student, teacher))
        if self.loss == "map":
            return attention_maps(student, teacher, axis)
        return (similarity if self.loss == "gram" else alignment)(student, teacher)

    def _unlike(self, student: Any, teacher: Any, name: str) -> str:
        what = f"values that differ in features alone (axis {self.along})"
        if self.loss in ("gram", "cka"):
            what = f"values of the same examples (axis {self.batch})"
        elif self.loss == "rows":
            what = f"rows that differ in the number of heads alone (axis {self.along})"
        return (
            f"{name}: expected {what}, got {describe(student)} of the student and "
            f"{describe(teacher)} of the teacher at {self.path or name}. Choose other "
            "paths, another axis=, or loss='cka'."
        )
