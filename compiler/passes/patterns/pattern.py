"""A pattern: a function, traced for whatever stands where it might match."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from compiler import jaxprs
from compiler.errors import PatternError
from compiler.passes.patterns.match import Closest, Matcher
from compiler.passes.patterns.view import View, view_of_jaxpr

_OTHERS = ("float32", "bfloat16")
"""Dtypes a pattern is tried in besides that of its samples, since some functions
convert there what is narrow."""


class Pattern:
    """The equations of a function of arrays, for operands of any shape and dtype.

    Attributes:
        function: what is looked for.
        samples: shapes and dtypes it takes, a tree for each argument.
        names: of its arguments.
        skeletons: its equations for the samples, and for other dtypes where they
            are others.
    """

    def __init__(self, function: Callable[..., Any], samples: Sequence[Any]) -> None:
        self.function = function
        self.samples = tuple(samples)
        self.names = _argument_names(function, len(self.samples))
        self._traced: dict[Any, tuple[View, Any] | PatternError] = {}
        self.skeletons = self._skeletons()

    @property
    def name(self) -> str:
        """The function's name."""
        return name_of(self.function)

    @property
    def tree(self) -> Any:
        """How flat operands make up the arguments."""
        return jax.tree.structure(self.samples)

    def at(self, specs: Sequence[jax.ShapeDtypeStruct]) -> tuple[View, Any]:
        """The equations for operands of these shapes and dtypes, and the output tree.

        Raises:
            PatternError: if the function does not take them.
        """
        key = tuple((s.shape, s.dtype, s.weak_type) for s in specs)
        if key not in self._traced:
            try:
                self._traced[key] = self._trace(specs)
            except Exception as error:
                self._traced[key] = PatternError(f"{type(error).__name__}: {error}")
        traced = self._traced[key]
        if isinstance(traced, PatternError):
            raise traced
        return traced

    def _trace(self, specs: Sequence[jax.ShapeDtypeStruct]) -> tuple[View, Any]:
        trees: list[Any] = []

        def flat(*operands: Any) -> list[Any]:
            result = self.function(*jax.tree.unflatten(self.tree, operands))
            leaves, tree = jax.tree.flatten(result)
            trees.append(tree)
            return leaves

        return view_of_jaxpr(jaxprs.make(flat, specs)), trees[-1]

    def _skeletons(self) -> list[View]:
        specs = jax.tree.leaves(self.samples)
        try:
            first, _ = self.at(specs)
        except PatternError as error:
            raise PatternError(
                f"{self.name}: cannot be traced on its samples {specs}: {error}. "
                "Give one sample for each of its arguments."
            ) from error
        self._check(first)
        found = {_shape(first): first}
        for dtype in _OTHERS:
            try:
                other, _ = self.at([_cast(spec, dtype) for spec in specs])
            except PatternError:  # not for this dtype, then
                continue
            found.setdefault(_shape(other), other)
        return list(found.values())

    def _check(self, view: View) -> None:
        """Raises unless a place in a graph can be told to be the pattern or not."""
        problem = _problem(view, self._names_of_leaves())
        if problem is None:
            try:
                next(Matcher(view, False, Closest()).solutions(view.nodes[-1], {}))
            except PatternError as error:
                problem = str(error)
        if problem is not None:
            raise PatternError(f"{self.name}: {problem}")

    def _names_of_leaves(self) -> list[str]:
        named = zip(self.names, self.samples, strict=True)
        return [name for name, tree in named for _ in jax.tree.leaves(tree)]


def name_of(function: Callable[..., Any]) -> str:
    """The name of a function, in reports and errors."""
    if isinstance(function, functools.partial):
        return name_of(function.func)
    return getattr(function, "__name__", type(function).__name__)


def _problem(view: View, names: Sequence[str]) -> str | None:
    if not view.nodes:
        return "it computes nothing. A pattern holds at least one operation."
    unused = [n for n, v in zip(names, view.inputs, strict=True) if not v.consumers]
    if unused:
        return (
            f"its argument {unused[0]!r} is not used, so nothing could stand for it. "
            "Leave it out."
        )
    made = [value for value in view.outputs if value.producer is not None]
    if len(set(made)) < len(view.outputs):
        return (
            "expected outputs that it computes and that differ from each other, one "
            "is an argument, a constant, or the same as another. Leave it out."
        )
    if any(node.equation.effects for node in view.nodes):
        return (
            "it has effects (it prints, calls back or writes), which cannot be "
            "replaced. Leave them out; they stay where they are in the program."
        )
    return None


def _shape(view: View) -> tuple[Any, ...]:
    """What two skeletons share if their primitives and wiring are the same."""
    number = {value: i for i, value in enumerate(view.inputs)}
    told = []
    for node in view.nodes:
        operands = tuple(-1 if v.constant else number[v] for v in node.inputs)
        told.append((node.name, operands))
        for value in node.outputs:
            number[value] = len(number)
    return (*told, *(number[value] for value in view.outputs))


def _cast(spec: jax.ShapeDtypeStruct, dtype: str) -> jax.ShapeDtypeStruct:
    if not jnp.issubdtype(spec.dtype, jnp.floating):
        return spec
    return jax.ShapeDtypeStruct(spec.shape, jnp.dtype(dtype))


def _argument_names(function: Callable[..., Any], count: int) -> list[str]:
    names: list[str] = []
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # a builtin
        parameters = ()
    for parameter in parameters:
        if parameter.kind in (
            parameter.POSITIONAL_ONLY,
            parameter.POSITIONAL_OR_KEYWORD,
        ):
            names.append(parameter.name)
    names = names[:count]
    return names + [f"argument_{i}" for i in range(len(names), count)]
