"""Text from a decoder: what comes next, again and again."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from mapping.core import Context, Mapping, Params, State, Variables, describe
from mapping.errors import GenerationError
from mapping.layers import empty_cache
from mapping.models.sampling import check_sampling, sample_logits

Step = Callable[[State, jax.Array], tuple[jax.Array, State]]
"""From a state and the tokens that follow (batch, new) to their logits and the next."""

Choose = Callable[[jax.Array, Any], jax.Array]
"""From logits (batch, vocabulary) and the number of a step to tokens (batch,)."""


def generate(
    model: Mapping,
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
    tokens, padding, alone = _arranged(prompt)
    _check_request(model, tokens, length)
    sampling = (key, temperature, top_k, top_p)
    check_sampling(*sampling)
    cached = dataclasses.replace(model, cache_length=tokens.shape[1] + length - 1)
    new = _generate(cached, length, params, tokens, padding, sampling, stop)
    return new[0] if alone else new


@functools.partial(jax.jit, static_argnums=(0, 1))
def _generate(
    model: Mapping,
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
    """Reads a prompt (batch, time) and writes on: one loop, a token a turn.

    Args:
        step: of the decoder; it keeps its cache in the state.
        state: at the start.
        prompt: what is read first, all at once.
        length: how many tokens are written.
        choose: takes the next tokens from logits.
        stop: the token after which it is repeated, or None.
    """
    logits, state = step(state, prompt)
    first = choose(logits[:, -1], 0)

    def one(before: tuple[State, jax.Array], turn: jax.Array) -> Any:
        state, last = before
        logits, state = step(state, last[:, None])
        new = choose(logits[:, -1], turn)
        if stop is not None:
            new = jnp.where(last == stop, last, new)
        return (state, new), new

    turns = jnp.arange(1, length, dtype=jnp.int32)
    _, rest = jax.lax.scan(one, (state, first), turns)
    return jnp.concatenate([first[None], rest]).T


def _arranged(prompt: Any) -> tuple[jax.Array, jax.Array | None, bool]:
    """Prompts as (batch, time), padded at the left; by how much; whether it is one."""
    if not hasattr(prompt, "ndim"):
        prompts = list(prompt)
        if not any(np.ndim(each) for each in prompts):
            prompt = np.asarray(prompts)
        else:
            return *_padded([np.asarray(each) for each in prompts]), False
    alone = prompt.ndim == 1
    tokens = prompt[None] if alone else prompt
    _check_tokens(tokens, tokens.ndim == 2 and tokens.size > 0)
    return jnp.asarray(tokens).astype(jnp.int32), None, alone


def _padded(prompts: list[np.ndarray]) -> tuple[jax.Array, jax.Array | None]:
    for each in prompts:
        _check_tokens(each, each.ndim == 1 and each.size > 0)
    longest = max(len(each) for each in prompts)
    padding = np.array([longest - len(each) for each in prompts], np.int32)
    rows = [np.pad(e, (n, 0)) for e, n in zip(prompts, padding, strict=True)]
    tokens = jnp.asarray(np.stack(rows)).astype(jnp.int32)
    return tokens, jnp.asarray(padding) if padding.any() else None


def _check_tokens(tokens: Any, fits: bool) -> None:
    if not fits or not jnp.issubdtype(tokens.dtype, jnp.integer):
        raise GenerationError(
            "prompt: expected whole numbers, at least one in each prompt, as (length,),"
            f" (batch, length) or a list of lists, got {describe(tokens)}. Encode the "
            "text first; begin an empty one with a token that means so."
        )


def _check_request(model: Any, tokens: jax.Array, length: int) -> None:
    """Refuses a model that cannot write, what is too long, and unknown tokens."""
    wanted = ("vocabulary", "max_length", "cache_length")
    if not all(hasattr(model, name) for name in wanted):
        raise GenerationError(
            f"{type(model).__name__}: expected a model that has fields "
            f"{', '.join(wanted)}, as GPT has. Give them to yours."
        )
    check_length(model, tokens.shape[1], length)
    if isinstance(tokens, jax.core.Tracer):
        return
    known = np.asarray(tokens)
    if known.min() < 0 or known.max() >= model.vocabulary:
        raise GenerationError(
            f"prompt: expected tokens in [0, {model.vocabulary}), got "
            f"{known.min()} to {known.max()}. Encode it for this model."
        )


def check_length(model: Any, read: int, length: Any) -> None:
    """Refuses a text that the model's context cannot hold."""
    if isinstance(length, bool) or not isinstance(length, int) or length < 1:
        raise GenerationError(f"length: expected a whole number >= 1, got {length!r}.")
    if read + length > model.max_length + 1:  # the last token is not read again
        raise GenerationError(
            f"{model.kind}: expected at most {model.max_length + 1} tokens with the "
            f"prompt's, got a prompt of {read} and a text of {length}. Give the end of "
            "the prompt only, or write less."
        )
