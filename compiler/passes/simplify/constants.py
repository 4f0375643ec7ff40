"""Numbers that are known while the program is rewritten.

Only what is rounded in one way everywhere is computed here: sums, products,
quotients, roots, comparisons, integers, conversions. Transcendental functions are
left to the machine that runs the program. Nothing is written out: a constant array
stays a number that is broadcast.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

from compiler import jaxprs
from compiler.passes.simplify.sweep import Change, Scope, Table

CONSTANTS = Table()


def _divided(a: np.ndarray, b: np.ndarray) -> np.ndarray | None:
    return a / b if jnp.issubdtype(a.dtype, jnp.floating) else None


def _chosen(which: np.ndarray, *cases: np.ndarray) -> np.ndarray | None:
    number = int(which[0])
    return cases[number] if 0 <= number < len(cases) else None


def _added(a: np.ndarray, b: np.ndarray) -> np.ndarray | None:
    return None if unlike_zeros(a[0], b[0]) else a + b


def _subtracted(a: np.ndarray, b: np.ndarray) -> np.ndarray | None:
    return None if np.signbit(a[0]) and unlike_zeros(a[0], -b[0]) else a - b


def unlike_zeros(a: Any, b: Any) -> bool:
    """Whether two floats are +0 and -0: XLA makes either of their sum."""
    if not jnp.issubdtype(a.dtype, jnp.floating):
        return False
    return bool(a == b == 0 and np.signbit(a) != np.signbit(b))


def _extreme(function: Any) -> Any:
    def apply(a: np.ndarray, b: np.ndarray) -> np.ndarray | None:
        return None if a[0] == b[0] == 0 else function(a, b)  # which of -0 and +0

    return apply


def _clamped(low: np.ndarray, value: np.ndarray, high: np.ndarray) -> Any:
    if not jnp.issubdtype(value.dtype, jnp.integer):
        return None
    return np.minimum(np.maximum(value, low), high)


_EXACT: dict[str, Callable[..., Any]] = {
    "add": _added,
    "sub": _subtracted,
    "mul": np.multiply,
    "div": _divided,
    "neg": np.negative,
    "abs": np.abs,
    "sqrt": np.sqrt,
    "floor": np.floor,
    "ceil": np.ceil,
    "sign": np.sign,
    "square": np.square,
    "max": _extreme(np.maximum),
    "min": _extreme(np.minimum),
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
    "not": np.invert,
    "eq": np.equal,
    "ne": np.not_equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
    "is_finite": np.isfinite,
    "select_n": _chosen,
    "clamp": _clamped,
}
"""Primitives that every machine computes to the last bit as numpy does."""


@CONSTANTS.on(*_EXACT)
def evaluated(scope: Scope, equation: jaxprs.Equation) -> Change | None:
    """An operation on numbers is the number it gives."""
    given = [scope.number(operand) for operand in equation.invars]
    if any(number is None or not _plain(number) for number in given):
        return None
    with np.errstate(all="ignore"):
        values = [np.atleast_1d(number) for number in given if number is not None]
        result = _EXACT[equation.primitive.name](*values)
    if result is None or result.dtype != equation.outvars[0].aval.dtype:
        return None
    return _as_number(scope, equation, result[0])


@CONSTANTS.on("convert_element_type")
def converted(scope: Scope, equation: jaxprs.Equation) -> Change | None:
    """A number converted is another number."""
    number = scope.number(equation.invars[0])
    dtype = equation.outvars[0].aval.dtype
    if number is None or not _plain(number) or not _plain(np.zeros((), dtype)):
        return None
    whole = jnp.issubdtype(dtype, jnp.integer)
    if whole and jnp.issubdtype(number.dtype, jnp.floating):
        limits = jnp.iinfo(dtype)
        if not limits.min <= float(number) < limits.max:
            return None
    with np.errstate(all="ignore"):
        return _as_number(scope, equation, number.astype(dtype))


@CONSTANTS.on("reshape", "squeeze", "transpose", "rev", "slice", "dynamic_slice")
@CONSTANTS.on("copy")
def view_of_number(scope: Scope, equation: jaxprs.Equation) -> Change | None:
    """A view of an array that is one number everywhere is that number, broadcast."""
    number = scope.number(equation.invars[0])
    if number is None or jaxprs.is_literal(equation.invars[0]):
        return None
    return _as_number(scope, equation, number)


@CONSTANTS.on("convert_element_type")
def conversions_joined(scope: Scope, equation: jaxprs.Equation) -> Change | None:
    """A conversion after one that lost nothing is made from the first type."""
    inner = scope.maker(equation.invars[0], "convert_element_type")
    if inner is None or inner.params.get("sharding") is not None:
        return None
    first, middle = inner.invars[0].aval.dtype, inner.outvars[0].aval.dtype
    last = equation.outvars[0].aval.dtype
    if not _holds_all(middle, first):
        return None
    changes_kind = _kind(first) == _kind(last) != _kind(middle)
    if changes_kind and last != first:  # integers wrap, floats saturate
        return None
    return Change(
        "conversions joined", equation=equation.replace(invars=[inner.invars[0]])
    )


def _as_number(scope: Scope, equation: jaxprs.Equation, number: Any) -> Change | None:
    """The number in place of a scalar, or broadcast in place of an array."""
    (result,) = equation.outvars
    if not _plain(np.asarray(number)):
        return None
    what = f"{equation.primitive.name} of numbers"
    if result.aval.shape == ():
        value = jaxprs.literal(number, result)
        return None if value is None else Change(what, [value])
    like = [scope.maker(v, "broadcast_in_dim") for v in equation.invars]
    spread = next((maker for maker in like if maker is not None), None)
    value = spread and jaxprs.literal(number, jaxprs.scalar(result))
    if not spread or value is None or spread.params.get("sharding") is not None:
        return None
    params = {**spread.params, "shape": result.aval.shape, "broadcast_dimensions": ()}
    new = equation.replace(
        primitive=spread.primitive,
        invars=[value],
        params=params,
        effects=spread.effects,
    )
    return Change(what, equation=new)


def _plain(number: np.ndarray) -> bool:
    """Whether every machine holds the number alike: tiny floats may be flushed."""
    if number.dtype == np.bool_ or jnp.issubdtype(number.dtype, jnp.integer):
        return True
    if number.dtype not in _FLOATS:
        return False
    size = abs(float(number))
    return size == 0 or not size < float(jnp.finfo(number.dtype).tiny)


_FLOATS = tuple(map(np.dtype, (np.float16, jnp.bfloat16, np.float32, np.float64)))


def _kind(dtype: Any) -> str:
    return "float" if jnp.issubdtype(dtype, jnp.floating) else "integer"


def _holds_all(wide: Any, narrow: Any) -> bool:
    """Whether every value of one dtype is a value of another."""
    if narrow == np.bool_:
        return wide in _FLOATS or jnp.issubdtype(wide, jnp.integer)
    whole = jnp.issubdtype(narrow, jnp.integer)
    if not whole and narrow not in _FLOATS:
        return False
    if jnp.issubdtype(wide, jnp.integer):
        one, other = jnp.iinfo(wide), jnp.iinfo(narrow) if whole else None
        return other is not None and one.min <= other.min and other.max <= one.max
    if wide not in _FLOATS:
        return False
    digits = jnp.finfo(wide).nmant + 1
    if whole:
        range_fits = float(jnp.iinfo(narrow).max) < float(jnp.finfo(wide).max)
        return jnp.iinfo(narrow).bits <= digits and range_fits
    fine, coarse = jnp.finfo(wide), jnp.finfo(narrow)
    return bool(
        coarse.nmant <= fine.nmant
        and coarse.maxexp <= fine.maxexp
        and coarse.minexp >= fine.minexp
    )
