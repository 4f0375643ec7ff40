"""Algebraic identities that hold bit for bit in floating point.

Left alone because they do not: `x * 0` (nan, inf, -0), `x - x`, `x / x`, `exp(log x)`,
`sqrt(x)^2`, reassociation. So are `max(x, -inf)` and `min(x, inf)`: where both operands
are equal each has half of the derivative. The one exception is a sum with zero,
`x + 0 -> x`, of which XLA makes the same when it compiles: -0 stays where adding +0
would turn it to +0. So do cotangents that are zero everywhere (`add_any`), which stand
for "nothing flows".
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np

from compiler import jaxprs
from compiler.passes.simplify.constants import unlike_zeros
from compiler.passes.simplify.sweep import Change, Scope, Table

ALGEBRA = Table()


@ALGEBRA.on("mul")
def times_one(scope: Scope, equation: jaxprs.Equation) -> Change | None:
    """`x * 1 -> x`, for complex numbers not (their product mixes the parts)."""
    return _neutral(scope, equation, "multiplication by one", _is_one, both=True)


@ALGEBRA.on("div")
def over_one(scope: Scope, equation: jaxprs.Equation) -> Change | None:
    """`x / 1 -> x`."""
    return _neutral(scope, equation, "division by one", _is_one)


@ALGEBRA.on("add", "add_any")
def plus_zero(scope: Scope, equation: jaxprs.Equation) -> Change | None:
    """`x + 0 -> x`, unless that decides the sign of a zero."""
    first, second = map(scope.number, equation.invars)
    if first is not None and second is not None and unlike_zeros(first, second):
        return None
    return _neutral(scope, equation, "addition of zero", _is_zero, both=True)


@ALGEBRA.on("sub")
def minus_zero(scope: Scope, equation: jaxprs.Equation) -> Change | None:
    """`x - 0 -> x`."""
    return _neutral(scope, equation, "subtraction of zero", _takes_nothing)


@ALGEBRA.on("max")
def above_lowest(scope: Scope, equation: jaxprs.Equation) -> Change | None:
    """`max(x, lowest) -> x` of integers; of floats the derivative at -inf differs."""
    return _neutral(scope, equation, "maximum with the lowest", _is_lowest, both=True)


@ALGEBRA.on("min")
def below_highest(scope: Scope, equation: jaxprs.Equation) -> Change | None:
    """`min(x, highest) -> x` of integers; of floats the derivative at inf differs."""
    return _neutral(scope, equation, "minimum with the highest", _is_highest, both=True)


@ALGEBRA.on("and")
def and_all(scope: Scope, equation: jaxprs.Equation) -> Change | None:
    """`x & true -> x`, for integers with all bits set."""
    return _neutral(scope, equation, "and with true", _is_all_ones, both=True)


@ALGEBRA.on("or", "xor")
def or_none(scope: Scope, equation: jaxprs.Equation) -> Change | None:
    """`x | false -> x`, `x ^ false -> x`."""
    return _neutral(scope, equation, "or with false", _is_zero, both=True)


@ALGEBRA.on("shift_left", "shift_right_logical", "shift_right_arithmetic")
def shift_by_nothing(scope: Scope, equation: jaxprs.Equation) -> Change | None:
    """`x << 0 -> x`."""
    return _neutral(scope, equation, "shift by nothing", _is_zero)


@ALGEBRA.on("max", "min", "and", "or")
def same_twice(scope: Scope, equation: jaxprs.Equation) -> Change | None:
    """`max(x, x) -> x`."""
    first, second = equation.invars
    if first is not second:
        return None
    return Change(f"{equation.primitive.name} of equal operands", [first])


@ALGEBRA.on("pow")
def to_the_first(scope: Scope, equation: jaxprs.Equation) -> Change | None:
    """`x ** 1 -> x`."""
    return _neutral(scope, equation, "first power", _is_one)


@ALGEBRA.on("integer_pow")
def to_the_integer_first(scope: Scope, equation: jaxprs.Equation) -> Change | None:
    """`x ** 1 -> x`, with the exponent a parameter."""
    if equation.params["y"] != 1:
        return None
    return Change("first power", [equation.invars[0]])


@ALGEBRA.on("neg", "not", "conj", "rev")
def undone(scope: Scope, equation: jaxprs.Equation) -> Change | None:
    """`-(-x) -> x`, and every operation that undoes itself."""
    inner = _the_same_before(scope, equation)
    if inner is None:
        return None
    return Change(f"double {equation.primitive.name}", [inner.invars[0]])


@ALGEBRA.on("abs", "sign", "floor", "ceil", "stop_gradient", "real")
def done_already(scope: Scope, equation: jaxprs.Equation) -> Change | None:
    """`abs(abs x) -> abs x`, and every operation that does nothing the second time."""
    name = equation.primitive.name
    if _the_same_before(scope, equation) is None:
        return None
    return Change(f"{name} of {name}", [equation.invars[0]])


def _the_same_before(scope: Scope, equation: jaxprs.Equation) -> Any | None:
    """What made the operand, if it is the same operation."""
    inner = scope.maker(equation.invars[0], equation.primitive.name)
    return None if inner is None or inner.params != equation.params else inner


@ALGEBRA.on("real", "imag")
def part_of_complex(scope: Scope, equation: jaxprs.Equation) -> Change | None:
    """`real(complex(a, b)) -> a`, `imag(complex(a, b)) -> b`."""
    made = scope.maker(equation.invars[0], "complex")
    if made is None:
        return None
    name = equation.primitive.name
    return Change(f"{name} part of its parts", [made.invars[name == "imag"]])


@ALGEBRA.on("add", "sub")
def add_negated(scope: Scope, equation: jaxprs.Equation) -> Change | None:
    """`x + (-y) -> x - y`, `(-y) + x -> x - y`, `x - (-y) -> x + y`."""
    first, second = equation.invars
    adds = equation.primitive.name == "add"
    negated = scope.maker(second, "neg")
    if negated is None and adds:
        first, second = second, first
        negated = scope.maker(second, "neg")
    if negated is None:
        return None
    new = equation.replace(
        primitive=jaxprs.primitive("sub" if adds else "add"),
        invars=[first, negated.invars[0]],
    )
    return Change("addition of a negation", equation=new)


@ALGEBRA.on("neg")
def negate_factor(scope: Scope, equation: jaxprs.Equation) -> Change | None:
    """`-(x * c) -> x * (-c)` and `-(x / c) -> x / (-c)` for a number `c`."""
    product = scope.maker(equation.invars[0], "mul", "div")
    if product is None:
        return None
    found = _number_and_place(scope, product)
    if found is None or not jnp.issubdtype(found[0].dtype, jnp.floating):
        return None
    return _with_number(product, equation, -found[0], found[1], "negated factor")


@ALGEBRA.on("mul", "add")
def join_numbers(scope: Scope, equation: jaxprs.Equation) -> Change | None:
    """`(x c) d -> x (c d)` where that is exact, `(x + c) + d -> x + (c + d)` likewise.

    Exact for integers, and for powers of two that both enlarge.
    """
    name, outer = equation.primitive.name, _number_and_place(scope, equation)
    inner = outer and scope.maker(equation.invars[1 - outer[1]], name)
    found = inner and _number_and_place(scope, inner)
    if not outer or not inner or not found or inner.params != equation.params:
        return None
    if outer[0].dtype != found[0].dtype:
        return None
    exact = name == "mul" and _enlarges(outer[0]) and _enlarges(found[0])
    if not exact and not jnp.issubdtype(outer[0].dtype, jnp.integer):
        return None
    with np.errstate(all="ignore"):
        pair = np.atleast_1d(found[0]), np.atleast_1d(outer[0])
        joined = (pair[0] * pair[1] if name == "mul" else pair[0] + pair[1])[0]
    if exact and not np.isfinite(joined):
        return None
    return _with_number(inner, equation, joined, found[1], "numbers joined")


@ALGEBRA.on("ne")
def truth_of_number(scope: Scope, equation: jaxprs.Equation) -> Change | None:
    """`convert(b) != 0 -> b` for a boolean `b`: a mask that became numbers."""
    value, zero = equation.invars
    made = scope.maker(value, "convert_element_type")
    number = scope.number(zero)
    if made is None or number is None or number != 0:
        return None
    if made.invars[0].aval.dtype != np.bool_:
        return None
    return Change("mask made numbers and back", [made.invars[0]])


@ALGEBRA.on("select_n")
def decided_choice(scope: Scope, equation: jaxprs.Equation) -> Change | None:
    """A choice that is always the same, or among equals."""
    which, *cases = equation.invars
    if all(case is cases[0] for case in cases):
        return Change("choice among equals", [cases[0]])
    number = scope.number(which)
    if number is None or not 0 <= int(number) < len(cases):
        return None
    return Change("choice that is decided", [cases[int(number)]])


def _neutral(
    scope: Scope, equation: jaxprs.Equation, what: str, test: Any, both: bool = False
) -> Change | None:
    """Replaces a binary operation by one operand if the other is neutral."""
    if jnp.issubdtype(equation.outvars[0].aval.dtype, jnp.complexfloating):
        return None
    for place in (1, 0) if both else (1,):
        number = scope.number(equation.invars[place])
        if number is not None and test(number):
            kept = equation.invars[1 - place]
            if kept.aval == equation.outvars[0].aval:
                return Change(what, [kept])
    return None


def _number_and_place(
    scope: Scope, equation: jaxprs.Equation
) -> tuple[np.ndarray, int] | None:
    """The literal operand of a binary operation, if there is just one."""
    literal = [jaxprs.is_literal(operand) for operand in equation.invars]
    if literal.count(True) != 1:
        return None
    number = scope.number(equation.invars[literal.index(True)])
    return None if number is None else (number, literal.index(True))


def _with_number(
    source: jaxprs.Equation, target: jaxprs.Equation, number: Any, place: int, what: str
) -> Change | None:
    """The source with another number, in place of the target."""
    value = jaxprs.literal(number, source.invars[place])
    if value is None:
        return None
    operands = list(source.invars)
    operands[place] = value
    new = target.replace(
        primitive=source.primitive, params=source.params, invars=operands
    )
    return Change(what, equation=new)


def _is_one(number: np.ndarray) -> bool:
    return bool(number == 1)


def _is_zero(number: np.ndarray) -> bool:
    return bool(number == 0)


def _takes_nothing(number: np.ndarray) -> bool:
    return bool(number == 0 and not _negative_zero(number))


def _negative_zero(number: np.ndarray) -> bool:
    return bool(jnp.issubdtype(number.dtype, jnp.floating) and np.signbit(number))


def _is_lowest(number: np.ndarray) -> bool:
    limits = _limits(number)
    return limits is not None and bool(number == limits[0])


def _is_highest(number: np.ndarray) -> bool:
    limits = _limits(number)
    return limits is not None and bool(number == limits[1])


def _limits(number: np.ndarray) -> tuple[Any, Any] | None:
    """The lowest and the highest value of an integer or boolean type."""
    if number.dtype == np.bool_:
        return False, True
    if jnp.issubdtype(number.dtype, jnp.integer):
        info = jnp.iinfo(number.dtype)
        return info.min, info.max
    return None


def _is_all_ones(number: np.ndarray) -> bool:
    if number.dtype == np.bool_:
        return bool(number)
    return bool(~number == 0)


def _enlarges(number: np.ndarray) -> bool:
    """Whether a float is plus or minus a power of two, at least one in size."""
    if not jnp.issubdtype(number.dtype, jnp.floating):
        return False
    size = abs(float(number))
    return size >= 1 and np.isfinite(size) and np.frexp(size)[0] == 0.5
