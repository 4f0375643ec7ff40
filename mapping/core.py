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

import dataclasses
import functools
from collections.abc import Mapping as Dict
from typing import TYPE_CHECKING, Any, Self

from mapping.captured import captured_by_path as captured_by_path
from mapping.captured import split_captured as split_captured
from mapping.context import INIT_PATH as INIT_PATH
from mapping.context import Context as Context
from mapping.context import Params as Params
from mapping.context import State as State
from mapping.context import Variables as Variables
from mapping.context import fold_name as fold_name
from mapping.context import initialising as initialising
from mapping.context import require_key as require_key
from mapping.context import require_variables as require_variables
from mapping.errors import FieldError, MissingVariablesError
from mapping.fields import check_fields
from mapping.nesting import call as call
from mapping.nesting import check_result
from mapping.nesting import init as init
from mapping.nesting import outline as outline
from mapping.nesting import output_spec as output_spec
from mapping.paths import Tree as Tree
from mapping.paths import describe as describe
from mapping.paths import leaf_paths as leaf_paths
from mapping.paths import path_string as path_string
from mapping.registry import register as register

# Choosing what is kept by score is the same in an optimizer's state and in a pass.
from mapping.sparse import masks as masks
from mapping.sparse import shares as shares

if TYPE_CHECKING:
    from collections.abc import Callable

    import jax


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

    >>> import jax, jax.numpy as jnp
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

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Refuses a subclass whose fields nobody compares."""
        own = vars(cls)
        if "__dataclass_fields__" not in own and (
            "__init__" in own or own.get("__annotations__")
        ):
            raise FieldError(
                f"{cls.__name__}: expected a frozen dataclass, got a plain class, "
                "whose instances would all be equal. Put "
                "@dataclasses.dataclass(frozen=True) above it."
            )
        return super().__new__(cls)

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
        if not isinstance(params, Dict):
            raise MissingVariablesError(
                f"({self.kind}): mapping(params, *inputs) expects a dict of params "
                f"first, got {describe(params)}. Pass variables.params before the "
                "inputs; {} where there are none."
            )
        variables, ctx = Variables(params, {} if state is None else state), Context()
        return check_result(self, self.apply(variables, *inputs, ctx=ctx), ctx)[0]

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


def _chain(first: Any, second: Any) -> Mapping:
    from mapping.combinators.serial import chain

    return chain(first, second)
