"""Layers that only re-arrange."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax.numpy as jnp

from mapping.core import Context, Mapping, State, Variables, describe
from mapping.errors import FieldError, ShapeMismatchError
from mapping.foreign import require_arrays
from mapping.registry import Example, register, spec


@register(
    "layer", "flatten", examples=lambda: Example(Flatten(), (spec(2, 3, 4),), False)
)
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
        size = math.prod(x.shape[self.start :])
        return jnp.reshape(x, (*x.shape[: self.start], size)), variables.state


@register(
    "layer",
    "reshape",
    examples=lambda: Example(Reshape((2, -1)), (spec(3, 2, 4),), False),
)
@dataclasses.dataclass(frozen=True)
class Reshape(Mapping):
    """Gives what comes after the batch axis another shape.

    Attributes:
        shape: the new one, without the batch axis; one extent may be -1, which takes
            what is left.

    Raises:
        ShapeMismatchError: if the input has another number of elements.

    >>> Reshape((2, -1))({}, jnp.ones((5, 6))).shape
    (5, 2, 3)
    """

    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        whole = isinstance(self.shape, tuple) and all(
            isinstance(extent, int) and extent >= -1 for extent in self.shape
        )
        if not whole or self.shape.count(-1) > 1:
            raise FieldError(
                "Reshape.shape: expected a tuple of extents, one of which may be -1, "
                f"got {self.shape!r}. Leave the batch axis out."
            )

    def apply(
        self, variables: Variables, *inputs: Any, ctx: Context
    ) -> tuple[Any, State]:
        """Reshapes; the order of the elements stays."""
        require_arrays(ctx, self.kind, inputs, count=1)
        (x,) = inputs
        rest = math.prod(x.shape[1:])
        known = math.prod(extent for extent in self.shape if extent >= 0)
        fits = known and rest % known == 0 if -1 in self.shape else rest == known
        if not x.ndim or not fits:
            raise ShapeMismatchError(
                f"{ctx.where} (Reshape): expects {self.shape} after the batch axis, "
                f"got {describe(x)}, {rest} elements for each example. Choose extents "
                "that multiply to that."
            )
        shape = [rest // known if extent < 0 else extent for extent in self.shape]
        return jnp.reshape(x, (len(x), *shape)), variables.state


@register(
    "layer",
    "permute",
    examples=lambda: Example(Permute((2, 1)), (spec(2, 3, 4),), False),
)
@dataclasses.dataclass(frozen=True)
class Permute(Mapping):
    r"""Puts the axes after the batch in another order.

    $$ y_{b,\, i_1 \dots i_n} = x_{b,\, j_1 \dots j_n}, \qquad j_{axes_k} = i_k $$

    Attributes:
        axes: which axis of the input each axis of the output is, from 1: the batch
            axis, 0, stays.

    >>> Permute((2, 1))({}, jnp.ones((5, 2, 3))).shape
    (5, 3, 2)
    """

    axes: tuple[int, ...]

    def __post_init__(self) -> None:
        if not isinstance(self.axes, tuple) or sorted(self.axes) != list(
            range(1, len(self.axes) + 1)
        ):
            raise FieldError(
                "Permute.axes: expected each axis after the batch once, numbered from "
                f"1, got {self.axes!r}. Use (2, 1) to exchange two."
            )

    def apply(
        self, variables: Variables, *inputs: Any, ctx: Context
    ) -> tuple[Any, State]:
        """Transposes."""
        require_arrays(ctx, self.kind, inputs, count=1)
        (x,) = inputs
        if x.ndim != len(self.axes) + 1:
            raise ShapeMismatchError(
                f"{ctx.where} (Permute): expects a batch axis and {len(self.axes)} "
                f"more, got {describe(x)}. Name every axis after the batch."
            )
        return jnp.transpose(x, (0, *self.axes)), variables.state
