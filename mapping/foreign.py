"""Calling libraries that are not ours."""

from __future__ import annotations

import contextlib
from collections.abc import Generator

import jax


@contextlib.contextmanager
def lenient_promotion() -> Generator[None, None, None]:
    """Allows implicit promotion inside: flax and optax rely on it.

    Whoever forbids promotion (`jax_numpy_dtype_promotion="strict"`,
    `jax_numpy_rank_promotion="raise"`) means their own code.

    >>> with lenient_promotion():
    ...     int(jax.numpy.int8(1) + jax.numpy.int32(1))
    2
    """
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield
