"""When two equations compute the same: common-subexpression elimination."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import numpy as np

from compiler import jaxprs

_COMMUTES = frozenset(
    {"add", "add_any", "mul", "max", "min", "and", "or", "xor", "eq", "ne"}
)

_KEPT_APART = frozenset({"optimization_barrier", "rng_uniform", "create_token"})
"""A barrier keeps a recomputation from being merged with the first computation;
`rng_uniform` draws anew each time it runs."""


class Keys:
    """Tells equations that compute the same by equal keys.

    Two equations have one key if primitive, parameters, context and operands are
    equal, up to the order of the operands of a commutative one. Bodies are compared
    by what is in them. Functions (derivative rules) are equal only to themselves.
    """

    def __init__(self) -> None:
        self._numbers: dict[Any, int] = {}
        self._bodies: dict[Any, tuple[Any, int]] = {}

    def of(self, equation: jaxprs.Equation) -> Hashable | None:
        """The key of an equation in its scope, None if it must stand for itself."""
        if equation.effects or equation.primitive.name in _KEPT_APART:
            return None
        if not all(map(jaxprs.is_value, (*equation.invars, *equation.outvars))):
            return None
        return self._key(equation, [_operand(v) for v in equation.invars])

    def _key(
        self, equation: jaxprs.Equation, operands: list[Any]
    ) -> tuple[Any, ...] | None:
        name = equation.primitive.name
        if name in _COMMUTES and len(operands) == 2:
            operands = sorted(operands, key=hash)
        params = tuple(
            (param, self._frozen(value)) for param, value in equation.params.items()
        )
        key = (equation.primitive, equation.ctx, params, *operands)
        try:
            hash(key)
        except TypeError:
            return None
        return key

    def _frozen(self, value: Any) -> Any:
        """A parameter as a value that is equal only to what computes the same."""
        if type(value) in (float, complex):
            return (type(value), repr(value))  # 0.0 equals -0.0, nan not itself
        if jaxprs.is_jaxpr(value):
            return self._body(jaxprs.closed(value))
        if type(value) is tuple:
            return tuple(map(self._frozen, value))
        return (type(value), value)

    def _body(self, body: jaxprs.Jaxpr) -> int:
        """A number that is equal for bodies that compute the same."""
        key = jaxprs.identity(body)
        if key not in self._bodies:
            content = self._content(body)
            number = self._numbers.setdefault(content, len(self._numbers))
            self._bodies[key] = (body, number)
        return self._bodies[key][1]

    def _content(self, body: jaxprs.Jaxpr) -> Hashable:
        inner = body.jaxpr
        place: dict[Any, Any] = {}
        for var in (*inner.constvars, *inner.invars):
            place[var] = len(place)
        lines: list[Hashable] = [tuple(map(id, body.consts))]
        lines.append(tuple(var.aval for var in place))
        for equation in inner.eqns:
            operands = [_operand(v, place) for v in equation.invars]
            key = self._key(equation, operands)
            if key is None or equation.effects:
                return ("itself", jaxprs.identity(body))
            for var in equation.outvars:
                place[var] = len(place)
            lines.append((key, tuple(var.aval for var in equation.outvars)))
        return (*lines, tuple(_operand(v, place) for v in inner.outvars))


def _operand(operand: Any, place: dict[Any, Any] | None = None) -> Hashable:
    if jaxprs.is_literal(operand):
        return (operand.aval, np.asarray(operand.val, operand.aval.dtype).tobytes())
    return operand if place is None else ("var", place[operand])
