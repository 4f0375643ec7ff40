"""Text from a decoder: what comes next, again and again."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from mapping.core import Context, Params, State, Variables
from mapping.layers import empty_cache
from mapping.models.prompts import arranged, check_known, check_length, check_writer
from mapping.models.sampling import check_sampling, sample_logits

Step = Callable[[State, jax.Array], tuple[jax.Array, State]]
"""From a state and the tokens that follow (batch, new) to their logits and the next."""

Choose = Callable[[jax.Array, Any], jax.Array]
"""From logits (batch, vocabulary) and the number of a step to tokens (batch,)."""


def generate(
    model: Any,
    params: Params,
    prompt: Any,
    length: int,
    *,
    key: jax.Array | None = None,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    stop: int | None = None,
) -> jax.Array:
    """Writes on: the tokens that follow a prompt.

    The prompt is read once; each token after it costs one step, with the keys and
    values of those before in a cache. One program is compiled for each shape of the
    prompts and each length, whatever the numbers of the sampling.

    Args:
        model: a `GPT`, or a mapping from (tokens, padding) to logits that has its
            fields `vocabulary`, `max_length` and `cache_length`.
        params: its params.
        prompt: tokens (length,), or (batch, length), or a list of lists of tokens of
            any lengths.
        length: how many tokens to write.
        key: of all draws; None takes the most likely token each time.
        temperature: see [`truncate_logits`][], as the next two.
        top_k: how many tokens may be drawn.
        top_p: their probability.
        stop: a token after which a text is at its end; it is repeated from there.

    Returns:
        int32 (length,), or (batch, length).

    Raises:
        GenerationError: if prompt and text are longer than the model's context, or a
            prompt is empty or holds unknown tokens, or a number is out of its range.
        MissingKeyError: if there is something to draw and no key.

    >>> from mapping.models import GPT
    >>> model = GPT(65, 16, features=8, heads=2, layers=1)
    >>> params = model.init(jax.random.key(0), jnp.array([[3, 1]])).params
    >>> generate(model, params, [3, 1, 4], 5).shape
    (5,)
    >>> generate(model, params, [[3, 1], [4]], 5, key=jax.random.key(1)).shape
    (2, 5)
    """
    sampling = (key, temperature, top_k, top_p)
    check_sampling(*sampling)
    check_writer(model)
    tokens, padding, alone = arranged(prompt)
    check_known(tokens, model.vocabulary, "prompt")
    check_length(model, tokens.shape[1], length)
    cached = dataclasses.replace(model, cache_length=tokens.shape[1] + length - 1)
    new = _generate(cached, length, params, tokens, padding, sampling, stop)
    return new[0] if alone else new


@functools.partial(jax.jit, static_argnums=(0, 1))
def _generate(
    model: Any,
    length: int,
    params: Params,
    tokens: jax.Array,
    padding: jax.Array | None,
    sampling: tuple[Any, ...],
    stop: Any,
) -> jax.Array:
    def step(state: State, new: jax.Array) -> tuple[jax.Array, State]:
        return model.apply(Variables(params, state), new, padding, ctx=Context())

    start = empty_cache(model, tokens, padding)
    return continued(step, start, tokens, length, chooser(*sampling), stop)


def chooser(key: jax.Array | None, *numbers: Any) -> Choose:
    """Chooses as `sample_logits` does, with a key of its own at each step."""

    def choose(logits: jax.Array, turn: Any) -> jax.Array:
        own = None if key is None else jax.random.fold_in(key, turn)
        return sample_logits(logits, own, *numbers)

    return choose


def continued(
    step: Step, state: State, prompt: jax.Array, length: int, choose: Choose, stop: Any
) -> jax.Array:
    """Reads a prompt (batch, time), then writes on: one loop, a token a turn.

    Args:
        step: of the decoder; it keeps its cache in the state.
        state: at the start.
        prompt: what is read first, at least a token.
        length: how many tokens are written.
        choose: takes the next tokens from logits.
        stop: the token after which it is repeated, or None.
    """
    if prompt.shape[1] > 1:
        _, state = step(state, prompt[:, :-1])  # logits that no one asks for cost none

    def one(before: tuple[State, jax.Array], turn: jax.Array) -> Any:
        state, last = before
        logits, state = step(state, last[:, None])
        new = choose(logits[:, -1], turn)
        if stop is not None:  # which a prompt may end with
            new = jnp.where((last == stop) & (turn > 0), last, new)
        return (state, new), new

    turns = jnp.arange(length, dtype=jnp.int32)
    _, written = jax.lax.scan(one, (state, prompt[:, -1]), turns)
    return written.T
