"""From a function to a program: `trace`."""

from __future__ import annotations

import dataclasses
import functools
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from compiler import jaxprs
from compiler.errors import TraceError
from compiler.graph import Graph, Leaf, Packing, is_abstract
from compiler.program import Program
from mapping.core import Context, Mapping, Variables, describe, path_string

_ARRAY = object()
"""Stands for an array, among the values of a tree that are fixed."""


@dataclasses.dataclass(frozen=True, eq=False)
class Source:
    """What a program was traced from, kept so that it can be traced again.

    Attributes:
        function: `f(variables, *inputs)`, pure.
        tree: how arrays and fixed values make up the variables.
        fixed: the leaves of that tree that are no arrays, and markers for arrays.
        leaves: the arrays, by path and shape.
        captured: arrays the function closes over, which are leaves too.
    """

    function: Callable[..., Any]
    tree: Any
    fixed: tuple[Any, ...]
    leaves: tuple[Leaf, ...]
    captured: tuple[jax.Array, ...] = ()

    @property
    def packing(self) -> Packing:
        """How a program takes its variables: as they were given, if all are arrays."""
        data = self.tree.node_data()
        bundled = data is not None and data[0] is Variables
        plain = not self.captured and all(value is _ARRAY for value in self.fixed)
        return Packing(self.tree if plain else None, bundled)

    def graph(self, in_tree: Any, inputs: Sequence[jax.ShapeDtypeStruct]) -> Graph:
        """Traces the function on inputs of these shapes.

        Raises:
            TraceError: if the function does not accept them.
        """
        return self.lift(*self.trace(in_tree, inputs), in_tree)

    def lift(self, jaxpr: jaxprs.Jaxpr, out_tree: Any, in_tree: Any) -> Graph:
        """Makes a graph of what was traced; captured arrays become leaves."""
        jaxpr = jaxprs.constants_to_inputs(jaxpr, self.captured, len(self.leaves))
        leaves = (*self.leaves, *self.captured_leaves)
        return Graph(jaxpr, leaves, self.packing, in_tree, out_tree)

    def trace(self, in_tree: Any, inputs: Sequence[jax.ShapeDtypeStruct]) -> Any:
        """Traces to a jaxpr of (leaves, inputs), and the tree of its outputs."""
        trees: list[Any] = []

        def flat(*arguments: Any) -> list[Any]:
            arrays = iter(arguments[: len(self.leaves)])
            values = [next(arrays) if v is _ARRAY else v for v in self.fixed]
            given = jax.tree.unflatten(in_tree, arguments[len(self.leaves) :])
            result = self.function(jax.tree.unflatten(self.tree, values), *given)
            leaves, tree = jax.tree.flatten(result)
            trees.append(tree)
            return leaves

        specs = [leaf.spec for leaf in self.leaves]
        try:
            return jaxprs.make(flat, [*specs, *inputs]), trees[-1]
        except Exception as error:
            raise TraceError(
                f"{_name(self.function)}: cannot be traced on "
                f"{describe(list(inputs))}: {type(error).__name__}: {error}"
            ) from error

    @property
    def captured_leaves(self) -> tuple[Leaf, ...]:
        """The captured arrays as leaves."""
        prefix = "state/captured" if self.packing.bundled else "captured"
        names = [f"{prefix}/{i}" for i in range(len(self.captured))]
        return tuple(map(Leaf, names, map(spec_of, self.captured)))


def trace(function: Any, variables: Any, *inputs: Any) -> Program:
    """Traces a function of variables and inputs to a program.

    Args:
        function: a `Mapping` (traced in inference mode), or any pure
            `f(variables, *inputs)` on pytrees: a flax module's `apply`, a function
            of an equinox model, plain JAX.
        variables: what the function is parametrised by. Leaves that are not arrays
            (activation functions, flags) are kept fixed. Arrays may be
            `jax.ShapeDtypeStruct`s; such a program can be rewritten but not run.
        *inputs: sample inputs, arrays or `jax.ShapeDtypeStruct`s: a typical batch.

    Raises:
        TraceError: if the function cannot be traced on them.

    >>> program = trace(lambda w, x: jnp.tanh(x @ w), jnp.eye(3), jnp.ones((2, 3)))
    >>> program(jnp.zeros((5, 3))).shape
    (5, 3)
    """
    if isinstance(function, Mapping):
        function = functools.partial(_infer, function)
    if not callable(function):
        raise TraceError(
            f"expected a mapping or a function f(variables, *inputs), got "
            f"{type(function).__name__}. Pass model.apply, or a function."
        )
    found, tree = jax.tree_util.tree_flatten_with_path(variables)
    fixed = tuple(_ARRAY if _is_array(value) else value for _, value in found)
    arrays = [(path, value) for path, value in found if _is_array(value)]
    leaves = tuple(Leaf(path_string(p) or "variables", spec_of(v)) for p, v in arrays)
    _check_distinct([leaf.path for leaf in leaves])
    flat, in_tree = jax.tree.flatten(inputs)
    specs = [_input_spec(x) for x in flat]
    source = Source(function, tree, fixed, leaves)
    jaxpr, out_tree = source.trace(in_tree, specs)
    captured = jaxprs.captured_arrays(jaxpr)
    if captured:  # what the function makes anew at each trace is none of its weights
        again = set(map(id, jaxprs.captured_arrays(source.trace(in_tree, specs)[0])))
        captured = tuple(array for array in captured if id(array) in again)
    source = dataclasses.replace(source, captured=captured)
    values = [_as_jax(value) for _, value in arrays]
    graph = source.lift(jaxpr, out_tree, in_tree)
    return Program(graph, (*values, *captured), source)


def spec_of(value: Any) -> jax.ShapeDtypeStruct:
    """The shape and dtype JAX gives a value."""
    if is_abstract(value):
        return value
    dtype = jax.dtypes.result_type(value)
    return jax.ShapeDtypeStruct(np.shape(value), dtype)


def _input_spec(value: Any) -> jax.ShapeDtypeStruct:
    try:
        return spec_of(value)
    except TypeError as error:
        raise TraceError(
            f"inputs: expected arrays or numbers, got {type(value).__name__} "
            f"{value!r}. Fix it with functools.partial, or put it among the variables."
        ) from error


def _infer(mapping: Mapping, variables: Variables, *inputs: Any) -> Any:
    return mapping.apply(variables, *inputs, ctx=Context())[0]


def _check_distinct(paths: list[str]) -> None:
    twice = sorted(path for path, count in Counter(paths).items() if count > 1)
    if twice:
        raise TraceError(
            f"{twice[0]}: expected a path of its own for each leaf, two leaves have "
            "this one (a key holds a /). Rename the key."
        )


def _is_array(value: Any) -> bool:
    return hasattr(value, "shape") and hasattr(value, "dtype")


def _as_jax(value: Any) -> Any:
    return value if is_abstract(value) else jnp.asarray(value)


def _name(function: Any) -> str:
    if isinstance(function, functools.partial):
        return ", ".join(getattr(a, "kind", str(a)) for a in function.args)
    return getattr(function, "__qualname__", type(function).__name__)
