"""The protocol: what a mapping is.

A layer, a model, a loss, a metric, a training step are one kind of thing,

    (params, state, inputs, key, train?) -> (outputs, new state)

and a [`Mapping`][] is a *description* of such a function: a frozen dataclass of
hyper-parameters that holds no arrays. Its arrays live outside, in
[`Variables`][]; its randomness and mode come in with a [`Context`][]. Because a
description is a value, two equal ones are interchangeable: rebuilding a model
does not retrace it.
"""

from __future__ import annotations

import contextvars
import dataclasses
import functools
import hashlib
from collections.abc import Mapping as Dict
from typing import TYPE_CHECKING, Any, TypeAlias

import jax
import numpy as np

from mapping.errors import MissingKeyError, MissingVariablesError, ProtocolError
from mapping.fields import check_fields
from mapping.paths import Tree as Tree
from mapping.paths import describe as describe
from mapping.paths import leaf_paths as leaf_paths
from mapping.paths import path_string as path_string

if TYPE_CHECKING:
    from collections.abc import Callable

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

    >>> ctx = Context(key=jax.random.key(0), train=True).child("encoder").child("drop")
    >>> ctx.where
    'encoder/drop'
    >>> bool(ctx.rng() == ctx.rng())
    True
    """

    key: jax.Array | None = None
    train: bool = dataclasses.field(default=False, metadata={"static": True})
    path: tuple[str, ...] = dataclasses.field(default=(), metadata={"static": True})

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


# Equality is what a subclass's own decorator makes it: by fields, or by identity.
@dataclasses.dataclass(frozen=True, eq=False)
class Mapping:
    """A pure function, described by the values of its fields.

    Subclass it as a frozen dataclass and define `apply`, and `init` where it has
    params or state:

        apply(variables, *inputs, ctx) -> (outputs, new state)
        init(key, *specs)              -> Variables(params, state)

    `apply` returns two things always; a stateless mapping passes
    `variables.state` through.

    Raises:
        FieldError: if a field holds an array or a lambda, which have no value to
            compare by: an equal mapping, rebuilt, would be traced again.

    >>> import jax.numpy as jnp
    >>> @dataclasses.dataclass(frozen=True)
    ... class Scale(Mapping):
    ...     start: float = 1.0
    ...
    ...     def init(self, key, x):
    ...         return Variables({"scale": jnp.full(x.shape[-1:], self.start)})
    ...
    ...     def apply(self, variables, x, *, ctx):
    ...         return x * variables.params["scale"], variables.state
    >>> scale = Scale(start=2.0)
    >>> params = scale.init(jax.random.key(0), jnp.ones(3)).params
    >>> scale(params, jnp.ones(3)).tolist()
    [2.0, 2.0, 2.0]
    """

    def __init_subclass__(cls, by_identity: bool = False, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        own = cls.__dict__.get("__post_init__")
        if own is not None and not by_identity:

            @functools.wraps(own)
            def checked(self: Mapping) -> None:
                try:
                    own(self)
                finally:
                    check_fields(self)

            type.__setattr__(cls, "__post_init__", checked)

    def __post_init__(self) -> None:
        check_fields(self)

    # The open signatures let a subclass name its own inputs, `apply(self,
    # variables, x, *, ctx)`, and still be a subtype to a type checker.
    def init(self, key: jax.Array, *specs: Any, **nothing: Any) -> Variables:
        """Makes the variables for inputs like `specs`.

        Args:
            key: a PRNG key.
            *specs: the inputs, as example arrays or `jax.ShapeDtypeStruct`s.
            **nothing: a subclass takes no more.
        """
        return Variables()

    def apply(
        self, variables: Variables, *inputs: Any, **context: Any
    ) -> tuple[Any, State]:
        """Computes `(outputs, new state)`; pure in all its arguments.

        Args:
            variables: the mapping's own.
            *inputs: pytrees of arrays.
            **context: `ctx`, the [`Context`][].
        """
        raise TypeError(
            f"{type(self).__name__}: expected a method "
            "`apply(self, variables, *inputs, ctx)`, found none. Define it; it "
            "returns (outputs, new state)."
        )

    def __call__(self, params: Params, *inputs: Any, state: State | None = None) -> Any:
        """Computes the outputs in inference mode: exactly `f(params, *inputs)`."""
        if isinstance(params, Variables):
            raise MissingVariablesError(
                f"({self.kind}): mapping(params, *inputs, state=...) expects params, "
                "got Variables. Pass variables.params and state=variables.state."
            )
        variables = Variables(params, {} if state is None else state)
        return self.apply(variables, *inputs, ctx=Context())[0]

    def __rshift__(self, other: Mapping | Callable[..., Any]) -> Mapping:
        """`f >> g`: first `f`, then `g` (a mapping or a plain function)."""
        return _chain(self, other)

    def __rrshift__(self, other: Callable[..., Any]) -> Mapping:
        """`g >> f` where `g` is a plain function."""
        return _chain(other, self)

    @property
    def kind(self) -> str:
        """The name of this kind of mapping, for messages and summaries."""
        return type(self).__name__


def call(
    name: str, mapping: Mapping, variables: Variables, *inputs: Any, ctx: Context
) -> tuple[Any, State]:
    """Applies the child `mapping` under `name`: its variables, its key, its scope.

    Args:
        name: what the parent calls this child; it becomes one step of every path.
        mapping: the child.
        variables: those of the *parent*.
        *inputs: the child's inputs.
        ctx: that of the *parent*.

    Returns:
        The child's outputs and its new state.

    >>> from mapping.layers import Dropout
    >>> y, state = call("drop", Dropout(0.5), Variables(), jax.numpy.ones(2),
    ...                 ctx=Context())
    >>> y.tolist()
    [1.0, 1.0]
    """
    inner = ctx.child(name)
    with jax.named_scope(name):
        result = mapping.apply(variables.child(name), *inputs, ctx=inner)
    return check_result(mapping, result, inner)


def check_result(mapping: Mapping, result: Any, ctx: Context) -> tuple[Any, State]:
    """Refuses an `apply` that did not return two things."""
    if not isinstance(result, tuple) or len(result) != 2:
        raise ProtocolError(
            f"{ctx.where} ({mapping.kind}): apply should return (outputs, new state), "
            f"got {type(result).__name__}. End it with `return y, variables.state`."
        )
    return result


def _chain(first: Any, second: Any) -> Mapping:
    from mapping.combinators import chain

    return chain(first, second)
