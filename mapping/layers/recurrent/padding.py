"""Sequences of several lengths in one array."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from mapping.core import describe
from mapping.errors import ShapeMismatchError


def real_steps(lengths: jax.Array, x: jax.Array) -> jax.Array:
    """Which steps of x are no padding, (\\*batch, time, 1)."""
    places = jax.lax.broadcasted_iota(jnp.int32, (*x.shape[:-1], 1), x.ndim - 2)
    return places < lengths[..., None, None]


def choose(real: jax.Array, new: Any, old: Any, where: str) -> Any:
    """What is new where a step is real, what was before where it is padding."""

    def one(a: jax.Array, b: jax.Array) -> jax.Array:
        if a.shape[: real.ndim] != real.shape:
            raise ShapeMismatchError(
                f"{where}: with lengths, expected carry and output to begin with the "
                f"batch {list(real.shape)}, got {describe(a)}. Leave lengths out, or "
                "keep one for each sequence."
            )
        mask = real.reshape(real.shape + (1,) * (a.ndim - real.ndim))
        return jnp.where(mask, a, b)

    return jax.tree.map(one, new, old)


def at_end(lengths: jax.Array, y: jax.Array) -> jax.Array:
    """The output of each sequence's last real step, from (time, *batch, features)."""
    last = jnp.clip(lengths, 1, y.shape[0]) - 1
    index = last.reshape((1, *last.shape) + (1,) * (y.ndim - 1 - last.ndim))
    return jnp.take_along_axis(y, index, axis=0, mode="clip")[0]
