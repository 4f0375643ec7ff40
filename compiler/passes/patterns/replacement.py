"""What stands in the place of a pattern: a function, traced once for each shape."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from compiler import jaxprs
from compiler.errors import RuleError
from compiler.graph import read
from compiler.passes.patterns.pattern import Pattern, name_of
from compiler.passes.patterns.place import Place, match_of
from mapping.core import describe


class Replacement:
    """A function that is called with what stands for the pattern's arguments.

    Attributes:
        function: the function.
        pattern: what it stands for.
        told: whether it takes `match`, and so may differ from place to place.
    """

    def __init__(self, function: Callable[..., Any], pattern: Pattern) -> None:
        self.function = function
        self.pattern = pattern
        self.told = _takes_match(function)
        self._traced: dict[Any, tuple[jaxprs.Jaxpr, Any]] = {}

    def emit(self, place: Place, flat: Sequence[Any], named: bool) -> list[Any]:
        """Emits what the function computes at a place, in the place's scope.

        Args:
            place: where.
            flat: what stands for the pattern's arguments.
            named: whether axes have names there, so that it is traced there only.

        Raises:
            RuleError: if it fails, or does not give what the pattern gives there.
        """
        scope = jaxprs.current_scope() + place.scope
        constants = any(value.constant for value in place.arguments)
        if self.told or named or constants:
            with jaxprs.provenance(place.anchor.equation, scope):
                results, tree = self._call(place, flat)
            self._check(place, results, tree)
            return results
        specs = [value.spec for value in place.arguments]
        key = tuple((s.shape, s.dtype, s.weak_type) for s in specs)
        if key not in self._traced:
            self._traced[key] = self._trace(place, specs)
        jaxpr, tree = self._traced[key]
        self._check(place, [jaxprs.spec(var) for var in jaxpr.jaxpr.outvars], tree)
        return _evaluate(jaxpr, flat, place.anchor.equation, scope)

    def _trace(self, place: Place, specs: Sequence[Any]) -> tuple[jaxprs.Jaxpr, Any]:
        trees: list[Any] = []

        def flat(*operands: Any) -> list[Any]:
            results, tree = self._call(place, operands)
            trees.append(tree)
            return results

        return jaxprs.make(flat, specs), trees[-1]

    def _call(self, place: Place, flat: Sequence[Any]) -> tuple[list[Any], Any]:
        arguments = jax.tree.unflatten(self.pattern.tree, flat)
        extra = {"match": match_of(place, self.pattern)} if self.told else {}
        try:
            return jax.tree.flatten(self.function(*arguments, **extra))
        except Exception as error:
            raise RuleError(
                f"{place}: {name_of(self.function)} cannot be traced on "
                f"{describe([value.spec for value in place.arguments])}: "
                f"{type(error).__name__}: {error}"
            ) from error

    def _check(self, place: Place, results: Sequence[Any], tree: Any) -> None:
        """Raises unless results fit the outputs they stand for."""
        wanted = [value.spec for value in place.outputs]
        got = [
            jax.ShapeDtypeStruct(np.shape(r), jax.dtypes.result_type(r))
            for r in results
        ]
        if tree == place.out_tree and _signature(got) == _signature(wanted):
            return
        raise RuleError(
            f"{place}: {self.pattern.name} gives "
            f"{describe(jax.tree.unflatten(place.out_tree, wanted))} there, "
            f"{name_of(self.function)} gives "
            f"{describe(jax.tree.unflatten(tree, got))}. Reshape or cast what the "
            "replacement returns, or leave the place out by `when`."
        )


def _evaluate(
    jaxpr: jaxprs.Jaxpr, flat: Sequence[Any], site: jaxprs.Equation, scope: Any
) -> list[Any]:
    """Emits a jaxpr's equations as work done at another equation."""
    env = dict(zip(jaxpr.jaxpr.constvars, jaxpr.consts, strict=True))
    env.update(zip(jaxpr.jaxpr.invars, flat, strict=True))
    for equation in jaxprs.equations(jaxpr):
        operands = [read(env, var) for var in equation.invars]
        with jaxprs.provenance(site, scope + equation.source_info.name_stack):
            results = jaxprs.bind(equation, operands)
        env.update(zip(equation.outvars, results, strict=True))
    return [read(env, var) for var in jaxpr.jaxpr.outvars]


def _signature(specs: Sequence[Any]) -> list[Any]:
    return [(spec.shape, spec.dtype) for spec in specs]


def _takes_match(function: Callable[..., Any]) -> bool:
    try:
        parameter = inspect.signature(function).parameters.get("match")
    except (TypeError, ValueError):  # a builtin
        return False
    return parameter is not None and parameter.kind is parameter.KEYWORD_ONLY
