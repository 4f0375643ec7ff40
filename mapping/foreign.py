"""Calling libraries that are not ours: their promotion, and their errors."""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from typing import Any

import flax.errors
import jax

from mapping.core import Context, describe
from mapping.errors import MappingError, ShapeMismatchError

_RAW = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    IndexError,
    RuntimeError,
    TypeError,
    ValueError,
    flax.errors.FlaxError,
)


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


@contextlib.contextmanager
def named_errors(ctx: Context, kind: str, inputs: Any) -> Generator[None, None, None]:
    """Turns what a stock layer's mathematics raises into an error that names it.

    For layers only whose inside is not the user's own code.
    """
    try:
        yield
    except MappingError:
        raise
    except _RAW as error:
        raise ShapeMismatchError(
            f"{ctx.where} ({kind}): cannot take {describe(inputs)}: "
            f"{first_line(error)}. Give it inputs and params that fit its fields."
        ) from error


def require_arrays(
    ctx: Context, kind: str, inputs: tuple[Any, ...], count: int
) -> None:
    """Refuses another number of inputs, and inputs that are no arrays."""
    if len(inputs) != count or not all(hasattr(x, "ndim") for x in inputs):
        got = ", ".join(type(x).__name__ for x in inputs) or "nothing"
        raise ShapeMismatchError(
            f"{ctx.where} ({kind}): expects {count} array(s), got {got}. Convert with "
            "jnp.asarray, or use a mapping of as many inputs."
        )


def first_line(error: Exception) -> str:
    """The first line of an error, without flax's links."""
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    return text.split(" (https://")[0].rstrip(".")
