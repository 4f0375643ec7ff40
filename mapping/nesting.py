"""One mapping inside another: its variables, its key, its scope, its shapes."""

from __future__ import annotations

import contextlib
import fnmatch
import functools
from collections.abc import Generator
from collections.abc import Mapping as Dict
from typing import TYPE_CHECKING, Any, TypeAlias

import jax

from mapping.captured import CAPTURED, split_captured
from mapping.context import INIT_PATH, Context, State, Variables, initialising
from mapping.errors import (
    MappingError,
    MissingVariablesError,
    ProtocolError,
    ShapeMismatchError,
)

if TYPE_CHECKING:
    from mapping.core import Mapping

Spec: TypeAlias = Any
"""A pytree of `jax.ShapeDtypeStruct`s (arrays are read as such)."""


def init(name: str, mapping: Mapping, key: jax.Array, *specs: Spec) -> Variables:
    """Initialises the child `mapping` under `name`, so that errors name its path.

    Args:
        name: what the parent calls this child.
        mapping: the child.
        key: the child's own key; `fold_name(key, name)` of the parent's.
        *specs: the child's inputs.

    >>> from mapping.layers import Dense
    >>> spec = jax.ShapeDtypeStruct((1, 4), "float32")
    >>> init("head", Dense(2), jax.random.key(0), spec).params["kernel"].shape
    (4, 2)
    """
    with under(name):
        return check_variables(mapping, mapping.init(key, *specs))


@contextlib.contextmanager
def under(name: str) -> Generator[None, None, None]:
    """Says, for messages, that what is initialised inside is called `name`."""
    token = INIT_PATH.set((*INIT_PATH.get(), name))
    try:
        yield
    finally:
        INIT_PATH.reset(token)


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
    inner, own = ctx.child(name), variables.child(name)
    if ctx.capture:  # a child that was called before has its output there
        own = Variables(own.params, split_captured(own.state)[0])
    try:
        with jax.named_scope(name):
            result = mapping.apply(own, *inputs, ctx=inner)
    except Exception as error:
        if isinstance(error, KeyError) and not (own.params or own.state):
            raise MissingVariablesError(
                f"{inner.where} ({mapping.kind}): expects variables made by its init, "
                f"got none ({error} is missing). Pass the Variables that init returned."
            ) from error
        if not isinstance(error, MappingError):
            error.add_note(f"in {inner.where} ({mapping.kind})")
        raise
    outputs, state = check_result(mapping, result, inner)
    if any(fnmatch.fnmatchcase(inner.where, glob) for glob in ctx.capture):
        state = {**state, CAPTURED: outputs}
    return outputs, state


def output_spec(mapping: Mapping, variables: Variables, *specs: Spec) -> Spec:
    """Finds what the mapping returns for inputs like `specs`, computing nothing.

    >>> from mapping.layers import Dense
    >>> spec = jax.ShapeDtypeStruct((5, 4), "float32")
    >>> v = Dense(2).init(jax.random.key(0), spec)
    >>> output_spec(Dense(2), v, spec).shape
    (5, 2)
    """
    return _remembered(_output_spec, mapping, as_spec(variables), as_spec(specs))


def outline(mapping: Mapping, *specs: Spec) -> tuple[Variables, Spec]:
    """Finds the shapes of a mapping's variables and outputs, computing nothing.

    >>> from mapping.layers import Dense
    >>> variables, y = outline(Dense(2), jax.ShapeDtypeStruct((5, 4), "float32"))
    >>> variables.params["kernel"].shape, y.shape
    ((4, 2), (5, 2))
    """
    specs = as_spec(specs)
    variables = _remembered(_variables_spec, mapping, specs)
    return variables, output_spec(mapping, variables, *specs)


def as_spec(tree: Any) -> Spec:
    """Replaces every array by its shape and dtype.

    Raises:
        ShapeMismatchError: if a leaf has none.

    >>> as_spec({"x": jax.numpy.ones(3)})
    {'x': ShapeDtypeStruct(shape=(3,), dtype=float32)}
    """

    def one(leaf: Any) -> jax.ShapeDtypeStruct:
        if not hasattr(leaf, "shape"):
            raise ShapeMismatchError(
                f"{initialising().where}: init expects arrays or ShapeDtypeStructs, "
                f"got {type(leaf).__name__}. Convert with jnp.asarray."
            )
        dtype = jax.dtypes.canonicalize_dtype(leaf.dtype, allow_extended_dtype=True)
        return jax.ShapeDtypeStruct(leaf.shape, dtype)

    return jax.tree.map(one, tree)


def gather(children: Dict[str, Variables]) -> Variables:
    """Joins the variables of children under their names; empty ones leave no trace.

    >>> gather({"a": Variables({"w": 1}, {}), "b": Variables()})
    Variables(params={'a': {'w': 1}}, state={})
    """
    return Variables(
        {name: own.params for name, own in children.items() if own.params},
        {name: own.state for name, own in children.items() if own.state},
    )


def check_result(mapping: Mapping, result: Any, ctx: Context) -> tuple[Any, State]:
    """Refuses an `apply` that did not return two things."""
    if not isinstance(result, tuple) or len(result) != 2:
        got = type(result).__name__
    elif not isinstance(result[1], Dict):
        got = f"{type(result[1]).__name__} for the state"
    else:
        return result
    raise ProtocolError(
        f"{ctx.where} ({mapping.kind}): apply should return (outputs, new state), got "
        f"{got}. End it with `return y, variables.state`."
    )


def check_variables(mapping: Mapping, variables: Any) -> Variables:
    """Refuses an `init` that did not return variables."""
    if not isinstance(variables, Variables):
        raise ProtocolError(
            f"{initialising().where} ({mapping.kind}): init should return "
            f"Variables(params, state), got {type(variables).__name__}. Wrap it in "
            "Variables."
        )
    return variables


def _remembered(function: Any, *arguments: Any) -> Any:
    """Equal mappings have equal shapes: a deep model asks for each once.

    Python holds 1 and 1.0 equal, where JAX makes another dtype of each: hence `repr`.
    """
    leaves, tree = jax.tree.flatten(arguments)
    widest = jax.dtypes.canonicalize_dtype("float64")
    return _memory(function, tuple(leaves), tree, widest, repr(leaves[0]))


@functools.lru_cache(maxsize=2048)
def _memory(function: Any, leaves: tuple[Any, ...], tree: Any, *more: Any) -> Any:
    return function(*jax.tree.unflatten(tree, leaves))


def _output_spec(mapping: Mapping, variables: Variables, specs: Any) -> Spec:
    def forward(variables: Variables, *inputs: Any) -> Any:
        ctx = Context(key=jax.random.key(0), path=INIT_PATH.get())
        return check_result(mapping, mapping.apply(variables, *inputs, ctx=ctx), ctx)[0]

    return as_spec(jax.eval_shape(forward, variables, *specs))


def _variables_spec(mapping: Mapping, specs: Any) -> Variables:
    made = jax.eval_shape(lambda: mapping.init(jax.random.key(0), *specs))
    return as_spec(check_variables(mapping, made))
