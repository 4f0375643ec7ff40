"""What a mapping is given besides its inputs: its arrays, its randomness, its mode."""

from __future__ import annotations

import contextvars
import dataclasses
import hashlib
from collections.abc import Mapping as Dict
from typing import Any, TypeAlias

import jax
import numpy as np

from mapping.errors import MissingKeyError, MissingVariablesError
from mapping.paths import describe

Params: TypeAlias = Dict[str, Any]
"""A nested dict whose leaves are arrays, keyed by names the author chose."""

State: TypeAlias = Dict[str, Any]
"""A nested dict with the same keys as the params, carried and not differentiated."""


def fold_name(key: jax.Array, name: str) -> jax.Array:
    """Derives the key that belongs to `name`, the same in every process.

    Args:
        key: a PRNG key.
        name: a path such as `encoder/dropout`.

    >>> a = fold_name(jax.random.key(0), "dropout")
    >>> b = fold_name(jax.random.key(0), "dropout")
    >>> bool(a == b)
    True
    """
    require_key(key)
    digest = hashlib.sha256(name.encode()).digest()
    return jax.random.fold_in(key, np.uint32(int.from_bytes(digest[:4], "big")))


def require_key(key: Any) -> None:
    """Refuses what is no PRNG key, such as a seed."""
    if not hasattr(key, "dtype"):
        raise MissingKeyError(
            f"{initialising().where}: expected a random key, got "
            f"{type(key).__name__} {key!r}. Pass jax.random.key({key!r})."
        )
    typed = jax.dtypes.issubdtype(key.dtype, jax.dtypes.prng_key)
    if (key.shape and typed) or (
        key.ndim != 1 and not typed and key.dtype == np.uint32
    ):
        raise MissingKeyError(
            f"{initialising().where}: expected one random key, got {describe(key)}. "
            "Take one of them, or map over them with jax.vmap."
        )
    if not typed and key.dtype != np.uint32:
        raise MissingKeyError(
            f"{initialising().where}: expected a random key first, got "
            f"{describe(key)}. Call init(jax.random.key(0), *specs)."
        )


def require_variables(variables: Any, ctx: Context) -> None:
    """Refuses bare params where both params and state are wanted."""
    if not isinstance(variables, Variables):
        raise MissingVariablesError(
            f"{ctx.where}: apply expects Variables(params, state), got "
            f"{type(variables).__name__}. Wrap it, or call mapping(params, ...)."
        )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Variables:
    """The arrays of a mapping: what is trained, and what is carried along.

    Both are nested dicts keyed by the same author-chosen names.

    Attributes:
        params: what gradients are taken with respect to.
        state: what evolves without a gradient (batch statistics, caches).

    >>> v = Variables({"dense": {"bias": 0.0}}, {})
    >>> v.child("dense").params
    {'bias': 0.0}
    """

    params: Params = dataclasses.field(default_factory=dict)
    state: State = dataclasses.field(default_factory=dict)

    def child(self, name: str) -> Variables:
        """Returns the variables of the child called `name` (empty if it has none)."""
        return Variables(self.params.get(name, {}), self.state.get(name, {}))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Context:
    """What a mapping is told besides its inputs.

    Attributes:
        key: source of randomness, or None where there is none.
        train: whether statistics are gathered and units dropped. Static: an
            inference graph contains no trace of training.
        path: names from the root to here. Static.
        capture: globs of the paths whose outputs are wanted beside the result
            (see `Capture`). Static.

    >>> ctx = Context(key=jax.random.key(0), train=True).child("encoder").child("drop")
    >>> ctx.where
    'encoder/drop'
    >>> bool(ctx.rng() == ctx.rng())
    True
    """

    key: jax.Array | None = None
    train: bool = dataclasses.field(default=False, metadata={"static": True})
    path: tuple[str, ...] = dataclasses.field(default=(), metadata={"static": True})
    capture: tuple[str, ...] = dataclasses.field(default=(), metadata={"static": True})

    def child(self, name: str) -> Context:
        """Returns the context of the child called `name`."""
        return dataclasses.replace(self, path=(*self.path, name))

    @property
    def where(self) -> str:
        """The path as one string, `(root)` at the root."""
        return "/".join(self.path) or "(root)"

    def rng(self, name: str = "") -> jax.Array:
        """Draws the key that belongs to this path, and to `name` within it.

        A key depends on the root key and the path alone, so inserting a layer
        changes no other layer's randomness.

        Raises:
            MissingKeyError: if the context carries no key.
        """
        if self.key is None:
            raise MissingKeyError(
                f"{self.where}: needs a random key, got none. "
                "Pass ctx=Context(key=jax.random.key(0), train=True)."
            )
        return fold_name(self.key, "/".join((*self.path, name)))


INIT_PATH: contextvars.ContextVar[tuple[str, ...]] = contextvars.ContextVar(
    "INIT_PATH", default=()
)
"""Where in a composition `init` is at work, for messages."""


def initialising() -> Context:
    """The context of the mapping that is being initialised."""
    return Context(path=INIT_PATH.get())


def numbered(ctx: Context, index: Any) -> Context:
    """The context of one call among several under one path: a key of its own.

    >>> ctx = Context(key=jax.random.key(0))
    >>> bool(numbered(ctx, 1).rng() == ctx.rng())
    False
    """
    if ctx.key is None:
        return ctx
    require_key(ctx.key)
    return dataclasses.replace(ctx, key=jax.random.fold_in(ctx.key, index))
