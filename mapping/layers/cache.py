"""What a decoder remembers: the keys and values of the tokens so far.

A cache is state that moves in inference too. It lives in the state under the name
`cache`, wherever in a model that is, and is all zeros at the start of a sequence.
"""

from __future__ import annotations

from collections.abc import Mapping as Dict
from typing import Any

import jax
import jax.core
import jax.numpy as jnp

from mapping.context import Context, State
from mapping.core import Mapping, describe
from mapping.errors import MissingVariablesError, ShapeMismatchError
from mapping.nesting import Spec, outline

CACHE = "cache"
"""The name of a branch of the state that is zeroed at the start of a sequence."""


def empty_cache(mapping: Mapping, *specs: Spec, state: State | None = None) -> State:
    """The state of `mapping` at the start of a sequence: its caches empty.

    Params do not depend on a cache, so trained ones go with it as they are:

        decoder = dataclasses.replace(attention, cache_length=64)
        state = empty_cache(decoder, prompt)
        y, state = decoder.apply(Variables(params, state), prompt, ctx=Context())
        y, state = decoder.apply(Variables(params, state), token, ctx=Context())

    Every branch of the state that is called `cache`, at any depth, is a cache: a
    layer of your own takes part by keeping there what starts at zero.

    Args:
        mapping: a layer or a model whose attention has a `cache_length`.
        *specs: inputs of the batch size and dtype that will be decoded.
        state: what else the mapping carries (batch statistics), to be copied.

    Raises:
        MissingVariablesError: if the mapping has no cache, or has other state, which
            `state` lacks.

    >>> from mapping.layers import Attention
    >>> decoder = Attention(2, causal=True, cache_length=16)
    >>> state = empty_cache(decoder, jax.ShapeDtypeStruct((3, 1, 8), "float32"))
    >>> state["cache"]["key"].shape, int(state["cache"]["index"])
    ((3, 2, 16, 4), 0)
    """
    whole = outline(mapping, *specs)[0].state
    if not _holds_cache(whole):
        raise MissingVariablesError(
            f"{mapping.kind}: expected a mapping with a cache, got one without. Give "
            "its attention a cache_length."
        )
    return _emptied(whole, state or {}, ())


def new_cache(shape: tuple[int, ...], dtype: Any) -> dict[str, jax.Array]:
    """An empty cache for keys and values of `shape` (\\*batch, heads, length, d)."""
    return {
        "index": jnp.zeros((), jnp.int32),
        "key": jnp.zeros(shape, dtype),
        "value": jnp.zeros(shape, dtype),
    }


def cache_index(cache: State, ctx: Context) -> jax.Array:
    """How many tokens are in a cache.

    Raises:
        MissingVariablesError: if there is no cache.
    """
    if not {"index", "key", "value"} <= set(cache):
        raise MissingVariablesError(
            f"{ctx.where} (Attention): expected a cache in the state, got "
            f"{sorted(cache) or 'none'}. Make it with empty_cache(mapping, spec)."
        )
    return cache["index"]


def write_cache(
    cache: State, key: jax.Array, value: jax.Array, ctx: Context
) -> dict[str, jax.Array]:
    """Enters the keys and values (\\*batch, heads, new, d) of the next tokens.

    Raises:
        ShapeMismatchError: if they are of another batch, or too many. Where the index
            is traced it cannot be read; see [`overflow`][].
    """
    start = cache["index"]
    _check(cache, key, ctx)

    def put(old: jax.Array, new: jax.Array) -> jax.Array:
        new = new.astype(old.dtype)
        return jax.lax.dynamic_update_slice_in_dim(old, new, start, axis=old.ndim - 2)

    return {
        "index": start + jnp.int32(key.shape[-2]),
        "key": put(cache["key"], key),
        "value": put(cache["value"], value),
    }


def overflow(cache: State) -> jax.Array:
    """Whether more was written to a cache than fits: what it holds is then wrong."""
    return cache["index"] > cache["key"].shape[-2]


def _check(cache: State, key: jax.Array, ctx: Context) -> None:
    (*own, length, d), (*given, new, width) = cache["key"].shape, key.shape
    if (own, d) != (given, width):
        raise ShapeMismatchError(
            f"{ctx.where} (Attention): expected keys that fit the cache "
            f"{describe(cache['key'])}, got {describe(key)}. Make a cache for this "
            "batch with empty_cache(mapping, spec)."
        )
    index = cache["index"]
    known = 0 if isinstance(index, jax.core.Tracer) else int(index)
    if known + new > length:
        raise ShapeMismatchError(
            f"{ctx.where} (Attention): expected at most {length} tokens in the cache, "
            f"got {new} more than the {known} there. Give a longer cache_length."
        )


def _holds_cache(state: Any) -> bool:
    return isinstance(state, Dict) and any(
        name == CACHE or _holds_cache(child) for name, child in state.items()
    )


def _emptied(whole: State, kept: Any, path: tuple[str, ...]) -> State:
    made = {}
    for name, child in whole.items():
        here = (*path, name)
        if name == CACHE:
            made[name] = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), child)
        elif isinstance(child, Dict):
            made[name] = _emptied(child, kept.get(name, {}), here)
        elif name in kept:
            made[name] = jnp.copy(kept[name])  # the state may be donated
        else:
            raise MissingVariablesError(
                f"{'/'.join(here)}: expected the state that is no cache too, got none. "
                "Pass state=variables.state of the trained mapping."
            )
    return made
