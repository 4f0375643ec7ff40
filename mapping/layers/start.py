"""Where kernels start."""

from __future__ import annotations

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp


def lecun_normal(
    key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32
) -> jax.Array:
    """linen's default for kernels, drawn as a matrix: the same numbers.

    XLA takes six times as long to compile a draw of four axes as one of two.

    >>> lecun_normal(jax.random.key(0), (3, 3, 8, 16)).shape
    (3, 3, 8, 16)
    """
    flat = (math.prod(shape[:-1]), shape[-1])
    return nn.linear.default_kernel_init(key, flat, dtype).reshape(shape)
