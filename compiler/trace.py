"""From a function to a program: `trace`."""

from __future__ import annotations

import dataclasses
import functools
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from collections.abc import Mapping as Dict
from fnmatch import fnmatchcase
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from compiler import jaxprs
from compiler.errors import TraceError
from compiler.graph import Graph, Leaf, Packing, is_abstract
from compiler.program import Program
from compiler.together import Together
from compiler.updates import returned
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
        carried: globs of leaves that the function returns under other names.
    """

    function: Callable[..., Any]
    tree: Any
    fixed: tuple[Any, ...]
    leaves: tuple[Leaf, ...]
    captured: tuple[jax.Array, ...] = ()
    carried: tuple[str, ...] = ()

    @property
    def packing(self) -> Packing:
        """How a program takes its variables: as they were given, if all are arrays."""
        data = self.tree.node_data()
        bundled = data is not None and data[0] is Variables
        plain = not self.captured and all(value is _ARRAY for value in self.fixed)
        named = jax.tree_util.tree_leaves_with_path(
            jax.tree.unflatten(self.tree, self.fixed)
        )
        fixed = {path_string(p): value for p, value in named if value is not _ARRAY}
        return Packing(self.tree if plain else None, bundled, fixed)

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
        own = {leaf.path: leaf.spec for leaf in self.leaves}
        found = returned(own, _outputs(jaxpr, out_tree))
        named = {p for p in own if any(fnmatchcase(p, glob) for glob in self.carried)}
        carried = found | named
        return Graph(jaxpr, leaves, self.packing, in_tree, out_tree, carried)

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
                f"{describe(list(inputs))}{_line_of(error)}: "
                f"{type(error).__name__}: {_reason(error)}"
            ) from error

    @property
    def captured_leaves(self) -> tuple[Leaf, ...]:
        """The captured arrays as leaves."""
        prefix = "state/captured" if self.packing.bundled else "captured"
        names = [f"{prefix}/{i}" for i in range(len(self.captured))]
        return tuple(map(Leaf, names, map(spec_of, self.captured)))


def trace(
    function: Any,
    variables: Any,
    *inputs: Any,
    static_argnums: int | Sequence[int] = (),
    carried: str | Sequence[str] = (),
    **fixed: Any,
) -> Program:
    """Traces a function of variables and inputs to a program.

    Several functions of the same variables are traced together as one program, so
    that a pass which changes the variables suits them all; `program.member(name)`
    is one of them, rewritten.

    Args:
        function: a `Mapping` (traced in inference mode, unless `ctx=` says
            otherwise), or any pure `f(variables, *inputs)` on pytrees: a flax
            module's `apply`, a function of an equinox model, plain JAX, a whole
            training step. Or a dict of such functions by name.
        variables: what the function is parametrised by. Leaves that are not arrays
            (activation functions, flags) are kept fixed. Arrays may be
            `jax.ShapeDtypeStruct`s; such a program can be rewritten but not run.
        *inputs: sample inputs, arrays or `jax.ShapeDtypeStruct`s: a typical batch,
            or with symbolic extents (`jax.export.symbolic_shape`). For a dict of
            functions one dict with the tuple of inputs of each.
        static_argnums: places among the inputs (from 0) of values that are no
            arrays; the program has them built in and takes the others only.
        carried: globs of leaves that a training step returns, moved, under another name
            or shape, so that no pass replaces them; those it returns under their own
            are found.
        **fixed: keyword arguments of the function, built in likewise. For a mapping
            `ctx=Context(train=True)` traces training: (outputs, new state).

    Raises:
        TraceError: if the function cannot be traced on them.

    >>> program = trace(lambda w, x: jnp.tanh(x @ w), jnp.eye(3), jnp.ones((2, 3)))
    >>> program(jnp.zeros((5, 3))).shape
    (5, 3)
    >>> def power(w, x, n, *, negate=False):
    ...     return -((x * w) ** n) if negate else (x * w) ** n
    >>> cube = trace(power, 2.0, jnp.ones(1), 3, static_argnums=1, negate=True)
    >>> cube(jnp.ones(2)).tolist()
    [-8.0, -8.0]
    """
    if isinstance(function, dict):
        if fixed or static_argnums != ():
            raise TraceError(
                "expected functions of arrays alone, as several are traced together, "
                f"got {', '.join(fixed) or 'static_argnums'}. Use functools.partial "
                "for what is no array."
            )
        both = Together({name: _callable(f) for name, f in function.items()})
        return trace(both, variables, both.inputs(inputs), carried=carried)
    stateful = isinstance(function, Mapping) and "ctx" in fixed
    function = _callable(function.apply if stateful else function, fixed)
    function, inputs = _with_static(function, inputs, static_argnums)
    found, tree = jax.tree_util.tree_flatten_with_path(variables)
    kept = tuple(_ARRAY if _is_array(value) else value for _, value in found)
    arrays = [(path, value) for path, value in found if _is_array(value)]
    leaves = tuple(Leaf(path_string(p) or "variables", spec_of(v)) for p, v in arrays)
    _check_distinct([leaf.path for leaf in leaves])
    flat, in_tree = jax.tree.flatten(inputs)
    specs = [_input_spec(x) for x in flat]
    globs = (carried,) if isinstance(carried, str) else tuple(carried)
    source = Source(function, tree, kept, leaves, (), globs)
    jaxpr, out_tree = source.trace(in_tree, specs)
    captured = jaxprs.captured_arrays(jaxpr)
    if captured:  # what the function makes anew at each trace is none of its weights
        again = set(map(id, jaxprs.captured_arrays(source.trace(in_tree, specs)[0])))
        captured = tuple(array for array in captured if id(array) in again)
    source = dataclasses.replace(source, captured=captured)
    values = [_as_jax(value) for _, value in arrays]
    graph = source.lift(jaxpr, out_tree, in_tree)
    return Program(graph, (*values, *captured), source, (), stateful)


def _outputs(jaxpr: jaxprs.Jaxpr, out_tree: Any) -> dict[str, Any]:
    """The types of what a jaxpr returns, by path."""
    types = [variable.aval for variable in jaxpr.jaxpr.outvars]
    named = jax.tree_util.tree_leaves_with_path(jax.tree.unflatten(out_tree, types))
    return {path_string(path): kind for path, kind in named}


def spec_of(value: Any) -> jax.ShapeDtypeStruct:
    """The shape and dtype JAX gives a value."""
    if is_abstract(value):
        return value
    dtype = jax.dtypes.result_type(value)
    weak = getattr(jax.typeof(value), "weak_type", False)
    return jax.ShapeDtypeStruct(np.shape(value), dtype, weak_type=weak)


def _input_spec(value: Any) -> jax.ShapeDtypeStruct:
    try:
        return spec_of(value)
    except TypeError as error:
        raise TraceError(
            f"inputs: expected arrays or numbers, got {type(value).__name__} "
            f"{value!r}. Fix it with functools.partial, or put it among the variables."
        ) from error


def _callable(function: Any, fixed: Dict[str, Any] = MappingProxyType({})) -> Any:
    """A function of variables and inputs alone."""
    if isinstance(function, Mapping):
        return functools.partial(_infer, function, **fixed)
    if not callable(function):
        raise TraceError(
            f"expected a mapping or a function f(variables, *inputs), got "
            f"{type(function).__name__}. Pass model.apply, or a function."
        )
    return functools.partial(function, **fixed) if fixed else function


def _with_static(
    function: Callable[..., Any], inputs: Sequence[Any], static: int | Sequence[int]
) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """The function of the other inputs, and these."""
    places = (static,) if isinstance(static, int) else tuple(static)
    if not places:
        return function, tuple(inputs)
    wrong = [place for place in places if not 0 <= place < len(inputs)]
    if wrong:
        raise TraceError(
            f"static_argnums: expected places among the {len(inputs)} inputs, from 0, "
            f"got {wrong[0]}. The variables do not count."
        )
    own = {place: inputs[place] for place in places}

    def run(variables: Any, *rest: Any) -> Any:
        left = iter(rest)
        taken = [own[i] if i in own else next(left) for i in range(len(inputs))]
        return function(variables, *taken)

    run.__qualname__ = _name(function)
    return run, tuple(x for i, x in enumerate(inputs) if i not in own)


def _line_of(error: BaseException) -> str:
    """The last line of the user's own that an error passed through."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if not any(part in f.filename for part in _LIBRARIES)]
    return f" at {own[-1].filename}:{own[-1].lineno} ({own[-1].name})" if own else ""


_LIBRARIES = ("site-packages", "dist-packages", str(Path(__file__).parent))


def _reason(error: Exception) -> str:
    """What an error says; where its cause is known, briefly and with the remedy."""
    known = (
        jax.errors.ConcretizationTypeError,
        jax.errors.TracerArrayConversionError,
        jax.errors.TracerIntegerConversionError,
    )
    if not isinstance(error, known):
        return str(error)
    return (
        f"{str(error).splitlines()[0]} Use jax.lax.cond, jnp.where or "
        "jax.lax.while_loop for what depends on values, or pass what is no array "
        "with static_argnums."
    )


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
    if isinstance(function, Together):
        return ", ".join(function.functions)
    return getattr(function, "__qualname__", type(function).__name__)
