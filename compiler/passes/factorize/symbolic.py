"""Evaluating a graph on values that are not arrays but know how they are used.

A weight that is a product of two factors need never be multiplied out where it meets a
product; an adapter that is zero need not be there at all. Such values go along with the
arrays through views, calls, loops and branches. Where an equation is met that does not
know them, they become arrays there, and nothing else changes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax

from compiler import jaxprs
from compiler.graph import run


class Symbolic:
    """A value that stands for an array."""

    def dense(self) -> Any:
        """The array."""
        raise NotImplementedError

    def through(
        self, equation: jaxprs.Equation, operands: Sequence[Any], place: int
    ) -> list[Any] | None:
        """What an equation gives for it; None if that takes the array.

        Args:
            equation: with one output or several.
            operands: arrays and symbolic values.
            place: which of them this value is.
        """
        raise NotImplementedError

    def stacked(self) -> tuple[Any, Callable[[Any], Symbolic]] | None:
        """The arrays a scan goes along, and what makes the value of their slices.

        None if a slice of it is nothing but an array.
        """
        raise NotImplementedError

    def parts(self) -> tuple[Any, Callable[[Any], Symbolic]]:
        """All its arrays, and what makes the same value of arrays like them."""
        raise NotImplementedError

    def in_loop(self) -> Symbolic:
        """The value as the constant of a loop, where it would be made an array again
        and again."""
        return self

    def multiplied(self, equation: jaxprs.Equation | None) -> None:
        """Told of each equation that takes the array; None for an output."""


@dataclasses.dataclass(frozen=True, eq=False)
class Marked(Symbolic):
    """An array that something is known of, wherever it goes.

    Attributes:
        array: the array.
    """

    array: Any

    def dense(self) -> Any:
        """The array."""
        return self.array

    def stacked(self) -> tuple[Any, Callable[[Any], Symbolic]]:
        """What is known of it is known of its slices."""
        return self.array, type(self)

    def parts(self) -> tuple[Any, Callable[[Any], Symbolic]]:
        """The array."""
        return self.array, type(self)


def evaluate(jaxpr: jaxprs.Jaxpr, values: Sequence[Any]) -> list[Any]:
    """Computes a jaxpr's outputs as arrays, from arrays and symbolic values."""
    return [_as_array(value) for value in run(jaxpr, values, _step)]


def _step(equation: jaxprs.Equation, operands: Sequence[Any]) -> list[Any]:
    if not any(isinstance(o, Symbolic) for o in operands):
        return jaxprs.bind(equation, operands)
    control = _CONTROL.get(equation.primitive.name)
    if jaxprs.is_plain_jit(equation):
        control = _call
    if control is not None:
        return control(equation, operands)
    for place, operand in enumerate(operands):
        if isinstance(operand, Symbolic):
            results = operand.through(equation, operands, place)
            if results is not None:
                return results
    return jaxprs.bind(equation, [_as_array(o, equation) for o in operands])


def dense(value: Any) -> Any:
    """The array a value is or stands for."""
    return value.dense() if isinstance(value, Symbolic) else value


def _as_array(value: Any, equation: jaxprs.Equation | None = None) -> Any:
    if isinstance(value, Symbolic):
        value.multiplied(equation)
    return dense(value)


def _in_loop(value: Any) -> Any:
    return value.in_loop() if isinstance(value, Symbolic) else value


def _call(equation: jaxprs.Equation, operands: Sequence[Any]) -> list[Any]:
    (body,) = jaxprs.bodies(equation)
    return run(body.jaxpr, operands, _step)


def _scan(equation: jaxprs.Equation, operands: Sequence[Any]) -> list[Any]:
    """A scan whose constants and slices may be symbolic; what it carries is not."""
    (body,) = jaxprs.bodies(equation)
    consts, carry = jaxprs.scan_counts(equation)
    fixed = [_in_loop(value) for value in operands[:consts]]
    start = operands[consts : consts + carry]
    first = [_as_array(value, equation) for value in start]
    arrays, makers = [], []
    for value in operands[consts + carry :]:
        array, make = _stacked(value, equation)
        arrays.append(array)
        makers.append(make)

    def step(carried: Sequence[Any], slices: Sequence[Any]) -> Any:
        xs = [make(x) for make, x in zip(makers, slices, strict=True)]
        outputs = evaluate(body.jaxpr, [*fixed, *carried, *xs])
        return outputs[:carry], outputs[carry:]

    options = {k: equation.params[k] for k in ("length", "reverse", "unroll")}
    last, collected = jax.lax.scan(step, first, arrays, **options)
    return [*last, *collected]


def _stacked(value: Any, equation: jaxprs.Equation) -> tuple[Any, Callable[[Any], Any]]:
    found = value.stacked() if isinstance(value, Symbolic) else None
    return _plain(_as_array(value, equation)) if found is None else found


def _while(equation: jaxprs.Equation, operands: Sequence[Any]) -> list[Any]:
    functions = []
    start = len(operands) - len(equation.outvars)
    for body in jaxprs.bodies(equation):
        count = len(body.operands) - len(equation.outvars)
        fixed = [_in_loop(operands[i]) for i in body.operands[:count]]
        functions.append(_with_constants(body.jaxpr, fixed))
    condition, step = functions
    carried = [_as_array(value, equation) for value in operands[start:]]
    mapped = jaxprs.bodies(equation)[0].jaxpr.jaxpr.outvars[0].aval.shape

    def turn(values: Any) -> Any:
        new = step(values)
        if not mapped:
            return new
        (goes_on,) = condition(values)
        return [where_going(goes_on, *pair) for pair in zip(new, values, strict=True)]

    return list(jax.lax.while_loop(lambda c: condition(c)[0].any(), turn, carried))


def where_going(goes_on: Any, new: Any, old: Any) -> Any:
    """The new value where a mapped loop goes on, the old one where it is done."""
    if not goes_on.ndim:
        return new
    axes = tuple(range(goes_on.ndim))
    return jax.lax.select(jax.lax.broadcast_in_dim(goes_on, new.shape, axes), new, old)


def _with_constants(jaxpr: jaxprs.Jaxpr, fixed: Sequence[Any]) -> Callable[..., Any]:
    return lambda carried: evaluate(jaxpr, [*fixed, *carried])


def _rebuilt(equation: jaxprs.Equation, operands: Sequence[Any]) -> list[Any]:
    """A choice or a rematerialised region, given the arrays of symbolic operands."""
    bodies = jaxprs.bodies(equation)
    index = operands[: len(operands) - len(bodies[0].operands)]
    inside = operands[len(index) :]
    pairs = [o.parts() if isinstance(o, Symbolic) else _plain(o) for o in inside]
    arrays, tree = jax.tree.flatten([array for array, _ in pairs])

    def remade(body: jaxprs.Body) -> jaxprs.Body:
        def region(*flat: Any) -> list[Any]:
            parts = jax.tree.unflatten(tree, flat)
            values = [make(x) for (_, make), x in zip(pairs, parts, strict=True)]
            return evaluate(body.jaxpr, values)

        specs = [jax.typeof(array) for array in arrays]
        return body._replace(jaxpr=jaxprs.make(region, specs))

    params = jaxprs.replace_bodies(equation, [remade(body) for body in bodies])
    return jaxprs.bind(equation, [*map(dense, index), *arrays], **params)


def _plain(value: Any) -> tuple[Any, Callable[[Any], Any]]:
    return value, lambda x: x


_CONTROL: dict[str, Callable[[jaxprs.Equation, Sequence[Any]], list[Any]]] = {
    "scan": _scan,
    "while": _while,
    "cond": _rebuilt,
    "remat2": _rebuilt,
}
