"""Moving images about."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from mapping.core import Context, Mapping, State, Variables, describe
from mapping.errors import FieldError, ShapeMismatchError
from mapping.registry import Example, register, spec


@register(
    "augmentation",
    "random_shift",
    examples=lambda: Example(RandomShift(1), (spec(2, 4, 5, 1),), batched=False),
)
@dataclasses.dataclass(frozen=True)
class RandomShift(Mapping):
    r"""Moves each image of a batch by up to `reach` pixels in training.

    $$ y_{ij} = x_{i+a,\,j+b}, \qquad a, b \sim U\{-reach, \dots, reach\} $$

    What moves in from outside is zero. In inference it is the identity and leaves
    no trace in the graph.

    Attributes:
        reach: largest move along each axis, in pixels.

    >>> ctx = Context(key=jax.random.key(1), train=True)
    >>> x = jnp.arange(16.0).reshape(1, 4, 4, 1)
    >>> y, _ = RandomShift(1).apply(Variables(), x, ctx=ctx)
    >>> y.shape, RandomShift(1)({}, x) is x
    ((1, 4, 4, 1), True)
    """

    reach: int = 1

    def __post_init__(self) -> None:
        if type(self.reach) is not int or self.reach < 0:
            raise FieldError(
                f"RandomShift.reach: expected whole pixels >= 0, got {self.reach!r}."
            )

    def apply(
        self, variables: Variables, *inputs: Any, ctx: Context
    ) -> tuple[Any, State]:
        """Takes images (batch, height, width, channels)."""
        (x,) = inputs
        if x.ndim != 4:
            raise ShapeMismatchError(
                f"{ctx.where} (RandomShift): expects images (batch, height, width, "
                f"channels), got {describe(x)}. Reshape it, for instance x[..., None]."
            )
        if not ctx.train or not self.reach:
            return x, variables.state
        edge = (self.reach, self.reach)
        padded = jnp.pad(x, ((0, 0), edge, edge, (0, 0)))
        starts = jax.random.randint(ctx.rng(), (len(x), 2), 0, 2 * self.reach + 1)

        def crop(image: jax.Array, start: jax.Array) -> jax.Array:
            return jax.lax.dynamic_slice(image, (*start, 0), x.shape[1:])

        return jax.vmap(crop)(padded, starts), variables.state
