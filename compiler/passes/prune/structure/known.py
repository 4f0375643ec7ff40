"""Small numbers that are known without any input: sizes, and tables of indices."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from collections.abc import Mapping as Dict
from typing import Any

import numpy as np

from compiler import jaxprs
from compiler.passes.prune.structure.atoms import Array

_LIMIT = 1 << 16
"""Tables with more elements are not followed."""


def known_literal(operand: Any) -> Array | None:
    """The value of a literal."""
    return np.asarray(operand.val, operand.aval.dtype)


def known_constant(value: Any) -> Array | None:
    """A constant, if it is a small array of numbers."""
    dtype = getattr(value, "dtype", None)
    if dtype is None or np.size(value) > _LIMIT or not isinstance(dtype, np.dtype):
        return None
    return np.asarray(value)


def known_result(
    equation: jaxprs.Equation, values: Sequence[Array | None]
) -> Array | None:
    """What an equation gives on known operands, if it is small and plainly told."""
    evaluate = _KNOWN.get(equation.primitive.name)
    if evaluate is None or any(value is None for value in values):
        return None
    aval = equation.outvars[0].aval
    sizes = [n for n in aval.shape if isinstance(n, int)]
    if len(sizes) < len(aval.shape) or np.prod(sizes, dtype=np.int64) > _LIMIT:
        return None
    with np.errstate(all="ignore"):
        result = evaluate(equation.params, *values)
    return None if result is None else np.asarray(result).astype(aval.dtype)


def is_extent(
    equation: jaxprs.Equation, extents: Dict[Any, Any], values: Sequence[Array | None]
) -> bool:
    """Whether an equation computes with nothing but extents that are symbols."""
    if equation.primitive.name == "dim_as_value":
        return True
    pairs = list(zip(equation.invars, values, strict=True))
    found = [v for v, _ in pairs if not jaxprs.is_literal(v) and v in extents]
    known = [v for v, value in pairs if value is not None]
    return bool(found) and len(found) + len(known) >= len(pairs)


def extent_result(
    equation: jaxprs.Equation, extents: Dict[Any, Any], values: Sequence[Array | None]
) -> Any:
    """The extent an equation gives, None if nobody can tell."""
    name = equation.primitive.name
    if name == "dim_as_value":
        return equation.params["dim"]
    pairs = zip(equation.invars, values, strict=True)
    given = [_extent(operand, value, extents) for operand, value in pairs]
    if name in _SAME and given[0] is not None:
        return given[0]
    compute = _ON_EXTENTS.get(name)
    if compute is None or len(given) != 2 or None in given:
        return None
    return compute(*given)


def _extent(operand: Any, value: Array | None, extents: Dict[Any, Any]) -> Any:
    if value is not None:
        number = float(value.flat[0]) if value.size else 0.5
        return int(number) if number.is_integer() and value.ndim == 0 else None
    return None if jaxprs.is_literal(operand) else extents.get(operand)


_SAME = frozenset(
    ("broadcast_in_dim", "convert_element_type", "copy", "reshape", "stop_gradient")
)
_ON_EXTENTS = {"add": operator.add, "sub": operator.sub, "mul": operator.mul}


def _plain(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda params, *values: function(*values)


def _divided(params: Any, a: Array, b: Array) -> Array | None:
    if np.issubdtype(a.dtype, np.integer):
        return np.trunc(a / np.where(b == 0, 1, b)) if (b != 0).all() else None
    return a / b


def _remainder(params: Any, a: Array, b: Array) -> Array | None:
    return np.fmod(a, b) if (b != 0).all() else None


def _select(params: Any, which: Array, *cases: Array) -> Array:
    chosen = np.broadcast_to(which, cases[0].shape).astype(np.int64)
    return np.choose(chosen, cases) if len(cases) < 32 else np.stack(cases)[chosen]


def _spread(params: Any, value: Array) -> Array:
    shape = [1] * len(params["shape"])
    for axis, extent in zip(params["broadcast_dimensions"], value.shape, strict=True):
        shape[axis] = extent
    return np.broadcast_to(value.reshape(shape), params["shape"])


def _numbered(params: Any) -> Array:
    shape = [1] * len(params["shape"])
    shape[params["dimension"]] = params["shape"][params["dimension"]]
    counted = np.arange(shape[params["dimension"]]).reshape(shape)
    return np.broadcast_to(counted, params["shape"])


def _sliced(params: Any, value: Array) -> Array:
    starts, limits = params["start_indices"], params["limit_indices"]
    strides = params["strides"] or (1,) * value.ndim
    parts = zip(starts, limits, strides, strict=True)
    return value[tuple(slice(*part) for part in parts)]


def _joined(params: Any, *values: Array) -> Array:
    return np.concatenate(values, params["dimension"])


def _turned(params: Any, value: Array) -> Array:
    return np.flip(value, params["dimensions"])


_KNOWN: dict[str, Callable[..., Any]] = {
    "add": _plain(np.add),
    "sub": _plain(np.subtract),
    "mul": _plain(np.multiply),
    "max": _plain(np.maximum),
    "min": _plain(np.minimum),
    "neg": _plain(np.negative),
    "floor": _plain(np.floor),
    "ceil": _plain(np.ceil),
    "sqrt": _plain(np.sqrt),
    "rsqrt": _plain(lambda x: 1 / np.sqrt(x)),
    "integer_pow": lambda params, x: x ** float(params["y"]),
    "and": _plain(np.bitwise_and),
    "or": _plain(np.bitwise_or),
    "not": _plain(np.invert),
    "eq": _plain(np.equal),
    "ne": _plain(np.not_equal),
    "lt": _plain(np.less),
    "le": _plain(np.less_equal),
    "gt": _plain(np.greater),
    "ge": _plain(np.greater_equal),
    "sign": _plain(np.sign),
    "div": _divided,
    "rem": _remainder,
    "clamp": _plain(lambda low, x, high: np.minimum(np.maximum(x, low), high)),
    "select_n": _select,
    "convert_element_type": _plain(lambda x: x),
    "stop_gradient": _plain(lambda x: x),
    "copy": _plain(lambda x: x),
    "broadcast_in_dim": _spread,
    "iota": _numbered,
    "reshape": lambda params, x: x.reshape(params["new_sizes"]),
    "squeeze": lambda params, x: np.squeeze(x, tuple(params["dimensions"])),
    "transpose": lambda params, x: x.transpose(params["permutation"]),
    "slice": _sliced,
    "concatenate": _joined,
    "rev": _turned,
    "reduce_sum": lambda params, x: x.sum(tuple(params["axes"])),
    "reduce_prod": lambda params, x: x.prod(tuple(params["axes"])),
    "reduce_max": lambda params, x: x.max(tuple(params["axes"])) if x.size else None,
}
