"""What a text begins with: read in any form, and refused if none can follow."""

from __future__ import annotations

from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from mapping.core import describe
from mapping.errors import GenerationError

_FIELDS = ("vocabulary", "max_length", "cache_length")


def arranged(prompt: Any) -> tuple[jax.Array, jax.Array | None, bool]:
    """Prompts as int32 (batch, time), padded at the left; by how much; if it is one.

    Args:
        prompt: tokens (time,), or (batch, time), or a list of lists of any lengths.

    Raises:
        GenerationError: if they are no whole numbers, or a prompt is empty.

    >>> tokens, padding, alone = arranged([[3, 1, 4], [1, 5]])
    >>> tokens.tolist(), padding.tolist(), alone
    ([[3, 1, 4], [0, 1, 5]], [0, 1], False)
    """
    if not hasattr(prompt, "ndim"):
        rows = list(prompt)
        if any(np.ndim(row) for row in rows):
            return *_padded([np.asarray(row) for row in rows]), False
        prompt = np.asarray(rows)
    alone = prompt.ndim == 1
    tokens = prompt[None] if alone else prompt
    _check_tokens(tokens, axes=2)
    return jnp.asarray(tokens).astype(jnp.int32), None, alone


def _padded(rows: list[np.ndarray]) -> tuple[jax.Array, jax.Array | None]:
    for row in rows:
        _check_tokens(row, axes=1)
    longest = max(len(row) for row in rows)
    padding = np.array([longest - len(row) for row in rows], np.int32)
    filled = [np.pad(row, (n, 0)) for row, n in zip(rows, padding, strict=True)]
    tokens = jnp.asarray(np.stack(filled)).astype(jnp.int32)
    return tokens, jnp.asarray(padding) if padding.any() else None


def _check_tokens(tokens: Any, axes: int) -> None:
    fits = tokens.ndim == axes and tokens.size > 0
    if not fits or not jnp.issubdtype(tokens.dtype, jnp.integer):
        raise GenerationError(
            "prompt: expected whole numbers, at least one in each prompt, as (length,),"
            f" (batch, length) or a list of lists, got {describe(tokens)}. Encode the "
            "text first; begin an empty one with a token that means so."
        )


def check_writer(model: Any) -> None:
    """Refuses a model without the fields that writing takes."""
    if not all(hasattr(model, name) for name in _FIELDS):
        raise GenerationError(
            f"{type(model).__name__}: expected a model that has the fields "
            f"{', '.join(_FIELDS)}, as GPT has. Give them to yours."
        )


def check_known(tokens: Any, vocabulary: int, name: str) -> None:
    """Refuses tokens outside of [0, vocabulary), where their values can be read."""
    if isinstance(tokens, jax.core.Tracer):
        return
    known = np.asarray(tokens)
    if known.min() < 0 or known.max() >= vocabulary:
        raise GenerationError(
            f"{name}: expected tokens in [0, {vocabulary}), got {known.min()} to "
            f"{known.max()}. Encode it for this model."
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
