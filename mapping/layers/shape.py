"""Layers that only re-arrange."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp

from mapping.core import Context, Mapping, State, Variables, describe
from mapping.errors import ShapeMismatchError
from mapping.foreign import require_arrays


@dataclasses.dataclass(frozen=True)
class Flatten(Mapping):
    """Joins all axes from `start` on into one.

    Attributes:
        start: first axis that is joined; 1 keeps the batch.

    >>> Flatten()({}, jnp.ones((2, 3, 4))).shape
    (2, 12)
    """

    start: int = 1

    def apply(
        self, variables: Variables, *inputs: Any, ctx: Context
    ) -> tuple[Any, State]:
        """Reshapes; the order of the elements stays."""
        require_arrays(ctx, self.kind, inputs, count=1)
        (x,) = inputs
        if x.ndim < self.start:
            raise ShapeMismatchError(
                f"{ctx.where} (Flatten): expects at least {self.start} axes, got "
                f"{describe(x)}. Give Flatten a smaller start."
            )
        size = 1
        for extent in x.shape[self.start :]:
            size *= extent
        return jnp.reshape(x, (*x.shape[: self.start], size)), variables.state
