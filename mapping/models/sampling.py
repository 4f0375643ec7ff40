"""Drawing a token from the logits of all."""

from __future__ import annotations

from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from mapping.core import describe
from mapping.errors import GenerationError, MissingKeyError
from mapping.layers.guard import wide


def sample_logits(
    logits: jax.Array,
    key: jax.Array | None = None,
    temperature: Any = 1.0,
    top_k: Any = None,
    top_p: Any = None,
) -> jax.Array:
    r"""Draws a token; without a key, takes the most likely one.

    Args:
        logits: (\*batch, vocabulary).
        key: of the draw, for the whole batch; None is greedy.
        temperature: see [`truncate_logits`][], as the next two.
        top_k: how many tokens may be drawn.
        top_p: their probability.

    Returns:
        int32 (\*batch,). Of equal logits the greedy choice is the first.

    Raises:
        GenerationError: if a number is out of its range.
        MissingKeyError: if there is something to draw and no key.

    >>> logits = jnp.array([1.0, 3.0, 2.0])
    >>> int(sample_logits(logits)), int(sample_logits(logits, jax.random.key(0), 0.0))
    (1, 1)
    """
    check_sampling(key, temperature, top_k, top_p)
    if key is None:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    shaped = truncate_logits(logits, temperature, top_k, top_p)
    return jax.random.categorical(key, shaped).astype(jnp.int32)


def truncate_logits(
    logits: jax.Array,
    temperature: Any = 1.0,
    top_k: Any = None,
    top_p: Any = None,
) -> jax.Array:
    r"""Shapes a distribution over tokens: its softmax is what is drawn from.

    $$ z'_i = (z_i - \max z) / T \;\text{ if }\; r_i < k \;\text{ and }
       \sum_{j:\, r_j < r_i} q_j < p, \quad -\infty \text{ otherwise} $$

    where r is the rank of a token, 0 for the most likely, and q the distribution over
    the k first at temperature T. Of equal logits the first ranks first, so that
    exactly k tokens are left, then the fewest whose probabilities sum to p.

    Fan et al., 2018, https://arxiv.org/abs/1805.04833 (k); Holtzman et al., 2019,
    https://arxiv.org/abs/1904.09751 (p).

    Args:
        logits: (\*batch, vocabulary).
        temperature: T >= 0; below 1 it sharpens, 0 leaves the most likely alone.
        top_k: k >= 1, how many tokens may be left; None for all.
        top_p: p in (0, 1], how much of the probability; None for all.

    Returns:
        Shaped logits (\*batch, vocabulary), in float32 at least.

    Raises:
        GenerationError: if a number is out of its range.

    >>> truncate_logits(jnp.array([1.0, 3.0, 2.0]), top_k=2).tolist()
    [-inf, 0.0, -1.0]
    """
    _check_numbers(temperature, top_k, top_p)
    if getattr(logits, "ndim", 0) < 1:
        raise GenerationError(
            f"logits: expected float[*batch, vocabulary], got {describe(logits)}."
        )
    exact = wide(logits)
    temperature = jnp.asarray(temperature, exact.dtype)
    shaped = exact - exact.max(-1, keepdims=True)
    shaped = shaped / jnp.where(temperature > 0, temperature, 1)
    best = jax.nn.one_hot(jnp.argmax(exact, -1), exact.shape[-1], dtype=bool)
    shaped = jnp.where(best | (temperature > 0), shaped, -jnp.inf)
    if top_k is None and top_p is None:
        return shaped
    order = jnp.argsort(-exact, axis=-1, stable=True)
    ranks = jnp.argsort(order, axis=-1)
    if top_k is not None:
        shaped = jnp.where(ranks < top_k, shaped, -jnp.inf)
    if top_p is None:
        return shaped
    likely = jnp.take_along_axis(jax.nn.softmax(shaped), order, axis=-1)
    before = jnp.cumsum(likely, axis=-1) - likely
    before = jnp.take_along_axis(before, ranks, axis=-1)
    share = jnp.asarray(top_p, exact.dtype)
    return jnp.where((before < share) | (share >= 1), shaped, -jnp.inf)


def check_sampling(key: Any, temperature: Any, top_k: Any, top_p: Any) -> None:
    """Refuses numbers out of their ranges, and any to draw by without a key."""
    _check_numbers(temperature, top_k, top_p)
    neutral = _traced(temperature) or temperature in (0, 1)
    if key is None and not (neutral and top_k is None and top_p is None):
        raise MissingKeyError(
            "sampling: expected a random key beside temperature, top_k or top_p, got "
            "none. Pass key=jax.random.key(0); with none of the four, the most likely "
            "token is taken."
        )


def _check_numbers(temperature: Any, top_k: Any, top_p: Any) -> None:
    whole = isinstance(top_k, int | np.integer) and not isinstance(top_k, bool)
    for name, value, holds, range_ in (
        ("temperature", temperature, lambda: 0 <= temperature < np.inf, ">= 0"),
        ("top_k", top_k, lambda: whole and top_k >= 1, "that is whole and >= 1"),
        ("top_p", top_p, lambda: 0 < top_p <= 1, "in (0, 1]"),
    ):
        if (value is None and name != "temperature") or _traced(value):
            continue
        if not (np.ndim(value) == 0 and holds()):
            raise GenerationError(f"{name}: expected a number {range_}, got {value!r}.")


def _traced(value: Any) -> bool:
    """Whether a number is known only as the program runs."""
    return isinstance(value, jax.core.Tracer)
