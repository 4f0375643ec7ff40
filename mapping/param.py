"""What a lifted function's parameter is: a shape and where it starts."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from mapping.context import initialising
from mapping.errors import FieldError, ShapeMismatchError
from mapping.fields import check_fields
from mapping.paths import describe
from mapping.registry import register


@register("value", "param")
@dataclasses.dataclass(frozen=True)
class Param:
    """The specification of a parameter.

    Attributes:
        shape: an entry below zero is the extent of that axis of the first input:
            `(-1, 8)` maps the input's features to eight.
        start: an initialiser, called with (key, shape, dtype), or a number.
        dtype: of the parameter.

    >>> Param((-1, 2), 0.5).make(jax.random.key(0), jnp.ones((7, 3))).shape
    (3, 2)
    """

    shape: tuple[int, ...] = ()
    start: Callable[..., jax.Array] | float = 0.0
    dtype: str = "float32"

    def __post_init__(self) -> None:
        check_fields(self)
        whole = isinstance(self.shape, tuple) and all(
            isinstance(extent, int) for extent in self.shape
        )
        if not whole:
            raise FieldError(
                f"Param.shape: expected a tuple of whole numbers, got {self.shape!r}. "
                "Use (8,) for a vector, -1 for the input's last axis."
            )

    def make(self, key: jax.Array, *specs: Any) -> jax.Array:
        """Makes the parameter for inputs like `specs`."""
        shape = self.extents(*specs)
        if callable(self.start):
            return jnp.asarray(self.start(key, shape, jnp.dtype(self.dtype)))
        return jnp.full(shape, self.start, self.dtype)

    def extents(self, *specs: Any) -> tuple[int, ...]:
        """The shape for inputs like `specs`."""
        if all(extent >= 0 for extent in self.shape):
            return self.shape
        known = jax.tree.leaves(specs)[:1]
        shape = known[0].shape if known else ()
        if len(shape) < -min(self.shape):
            raise ShapeMismatchError(
                f"{initialising().where}: expected an input with at least "
                f"{-min(self.shape)} axes for Param({self.shape}), got "
                f"{describe(specs)}. Name the extent itself."
            )
        return tuple(shape[e] if e < 0 else e for e in self.shape)
