"""The largest of many numbers, exactly so many, without sorting them."""

from __future__ import annotations

from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from mapping.errors import FieldError

Array: TypeAlias = Any
"""An array of numpy or of JAX."""

_FEW = 512


def largest(scores: Array, kept: Array) -> Array:
    """Marks the `kept` largest of all the scores; of equal ones the earlier.

    In JAX the threshold is found bit by bit, from how many scores reach it: no sort,
    and where the scores lie on many devices, one number to exchange a bit.

    Args:
        scores: real numbers of any shape; NaN counts as the smallest.
        kept: how many, from 0 to their number; may be traced.

    Raises:
        FieldError: if the scores are not real.

    >>> largest(jnp.array([2.0, 5.0, 5.0, 1.0, 5.0]), 2).tolist()
    [False, True, True, False, False]
    """
    if isinstance(scores, np.ndarray | np.generic) and not isinstance(kept, jax.Array):
        return _sorted(ordered(scores), int(kept))
    return _marked(jnp.asarray(scores), jnp.asarray(kept, jnp.int32))


@jax.jit
def _marked(scores: jax.Array, kept: jax.Array) -> jax.Array:
    way = _counted if scores.size <= _FEW else _searched
    return way(ordered(scores).reshape(-1), kept).reshape(scores.shape)


def _counted(scores: jax.Array, kept: jax.Array) -> jax.Array:
    """Each with each: for few it is done, and compiled, sooner."""
    one, other = scores[:, None], scores[None, :]
    place = np.arange(scores.size)
    before = (other > one) | ((other == one) & (place[None, :] < place[:, None]))
    return before.sum(1, dtype=jnp.int32) < kept


def _searched(scores: jax.Array, kept: jax.Array) -> jax.Array:
    bits = _bits(scores)
    threshold = _reached(bits, kept)
    above, at = bits > threshold, bits == threshold
    room = kept - above.sum(dtype=jnp.int32)
    # Of those at the threshold the first: the largest of their numbers from the end.
    number = jnp.arange(bits.size, 0, -1, dtype=jnp.uint32)
    number = jnp.where(at, number, jnp.uint32(0))
    first = at & (number >= _reached(number, room)) & (room > 0)
    return above | first


def ordered(scores: Array) -> Array:
    """Scores as numbers with an order: NaN the smallest, one zero, booleans 0 and 1.

    Raises:
        FieldError: if they are not real.
    """
    if scores.dtype == bool:
        return scores.astype(np.uint8)
    if jnp.issubdtype(scores.dtype, np.integer):
        return scores
    if not jnp.issubdtype(scores.dtype, np.floating):
        raise FieldError(
            f"scores: expected real numbers, got {scores.dtype}. Take their magnitude."
        )
    numbers = np if isinstance(scores, np.ndarray | np.generic) else jnp
    lowest = numbers.asarray(-np.inf, dtype=scores.dtype)
    scores = numbers.where(numbers.isnan(scores), lowest, scores)
    return numbers.where(scores == 0, numbers.zeros_like(scores), scores)


def _sorted(scores: np.ndarray, kept: int) -> np.ndarray:
    flat = scores.reshape(-1)
    if kept == 0:
        return np.zeros(scores.shape, bool)
    threshold = np.partition(flat, flat.size - kept)[flat.size - kept]
    above, at = flat > threshold, flat == threshold
    first = np.cumsum(at) <= kept - above.sum()
    return (above | (at & first)).reshape(scores.shape)


def _bits(scores: jax.Array) -> jax.Array:
    """Unsigned integers in the same order as the scores."""
    wide = scores.dtype.itemsize == 8
    word = np.uint64 if wide else np.uint32
    top = np.asarray(1 << (8 * np.dtype(word).itemsize - 1), word)
    if jnp.issubdtype(scores.dtype, np.unsignedinteger):
        return scores.astype(word)
    if jnp.issubdtype(scores.dtype, np.integer):
        signed = scores.astype(np.int64 if wide else np.int32)
        return jax.lax.bitcast_convert_type(signed, word) ^ top
    real = scores.astype(np.float64 if wide else np.float32)
    bits = jax.lax.bitcast_convert_type(real, word)
    return jnp.where(bits >= top, ~bits, bits | top)


def _reached(bits: jax.Array, kept: jax.Array) -> jax.Array:
    """The largest number that at least `kept` of them reach."""
    width = 8 * bits.dtype.itemsize
    top = jnp.asarray(1 << (width - 1), bits.dtype)

    def decide(place: jax.Array, found: jax.Array) -> jax.Array:
        higher = found | (top >> place.astype(bits.dtype))
        enough = (bits >= higher).sum(dtype=jnp.int32) >= kept
        return jnp.where(enough, higher, found)

    return jax.lax.fori_loop(0, width, decide, jnp.zeros((), bits.dtype))
