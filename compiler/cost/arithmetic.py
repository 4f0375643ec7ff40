"""The arithmetic of one equation, whatever its primitive."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp

from compiler import jaxprs
from compiler.cost.convolution import products
from compiler.cost.factorization import FACTORIZATIONS, factorization
from compiler.cost.primitives import ARITHMETIC, MOVING, REDUCTIONS, TRANSCENDENTAL


class Arithmetic(NamedTuple):
    """Operations on numbers.

    Attributes:
        flops: additions, multiplications, comparisons, selections: what hardware
            does in about one step. A fused multiply-add is two.
        transcendentals: evaluations of exp, log, tanh, sqrt, power and their like.
    """

    flops: int = 0
    transcendentals: int = 0


def arithmetic(equation: jaxprs.Equation) -> Arithmetic | None:
    """Counts the arithmetic of one equation, without that of its bodies.

    None for a primitive nobody here knows, which may do anything.
    """
    name = equation.primitive.name
    if name in _COUNTS:
        return _COUNTS[name](equation)
    if name in MOVING or jaxprs.bodies(equation):
        return Arithmetic()
    size = sum(map(_size, equation.outvars))
    if name in TRANSCENDENTAL:
        return Arithmetic(0, size)
    return Arithmetic(size * _real_operations(equation)) if name in ARITHMETIC else None


def equation_flops(equation: jaxprs.Equation) -> int:
    """Counts the operations of one equation, without what is inside it."""
    counted = arithmetic(equation)
    return counted.flops if counted else 0


def _size(var: Any) -> int:
    return math.prod(getattr(var.aval, "shape", ()))


def _is_complex(var: Any) -> bool:
    return jaxprs.is_array(var) and jnp.issubdtype(var.aval.dtype, jnp.complexfloating)


def _real_operations(equation: jaxprs.Equation) -> int:
    """How many real operations one of the equation's elements takes."""
    if not equation.invars or not _is_complex(equation.invars[0]):
        return 1
    return {"mul": 6, "square": 6, "div": 11}.get(equation.primitive.name, 2)


def _multiply_adds(equation: jaxprs.Equation, count: int) -> Arithmetic:
    """A real multiply-add is two operations, a complex one eight."""
    return Arithmetic(count * (8 if _is_complex(equation.outvars[0]) else 2))


def _dot(equation: jaxprs.Equation) -> Arithmetic:
    shape = equation.invars[0].aval.shape
    (contracted, _), _ = equation.params["dimension_numbers"]
    length = math.prod(shape[axis] for axis in contracted)
    return _multiply_adds(equation, _size(equation.outvars[0]) * length)


def _ragged_dot(equation: jaxprs.Equation) -> Arithmetic:
    """Every row meets the matrix of its own group only."""
    numbers = equation.params["ragged_dot_dimension_numbers"]
    (contracted, _), _ = numbers.dot_dimension_numbers
    left, _, sizes = equation.invars[:3]
    count = _size(equation.outvars[0])
    count *= math.prod(left.aval.shape[axis] for axis in contracted)
    if set(numbers.lhs_ragged_dimensions) & set(contracted):
        count //= max(1, sizes.aval.shape[-1])  # each group contracts its own part
    return _multiply_adds(equation, count)


def _convolution(equation: jaxprs.Equation) -> Arithmetic:
    return _multiply_adds(equation, products(equation))


def _reduction(equation: jaxprs.Equation) -> Arithmetic:
    operands = equation.invars[: len(equation.outvars)]
    taken = sum(map(_size, operands)) - sum(map(_size, equation.outvars))
    return Arithmetic(max(0, taken) * _real_operations(equation))


def _running(equation: jaxprs.Equation) -> Arithmetic:
    length = equation.invars[0].aval.shape[equation.params["axis"]]
    size = _size(equation.outvars[0])
    steps = size - size // length if size else 0
    if equation.primitive.name == "cumlogsumexp":
        return Arithmetic(3 * steps, 2 * steps)  # m + log(exp(a - m) + exp(b - m))
    return Arithmetic(steps * _real_operations(equation))


def _window(equation: jaxprs.Equation) -> Arithmetic:
    window = math.prod(equation.params["window_dimensions"])
    return Arithmetic(sum(map(_size, equation.outvars)) * (window - 1))


def _select_and_scatter(equation: jaxprs.Equation) -> Arithmetic:
    """For each element of the source: choose in its window, then add it there."""
    window = math.prod(equation.params["window_dimensions"])
    return Arithmetic(_size(equation.invars[0]) * window)


def _scatter(equation: jaxprs.Equation) -> Arithmetic:
    return Arithmetic(_size(equation.invars[2]))


def _sort(equation: jaxprs.Equation) -> Arithmetic:
    """A comparison sort makes n log2 n comparisons of its keys."""
    keys, axis = equation.invars[0], equation.params["dimension"]
    steps = _log2(keys.aval.shape[axis]) * equation.params["num_keys"]
    return Arithmetic(_size(keys) * steps)


def _top_k(equation: jaxprs.Equation) -> Arithmetic:
    """Each element goes through a heap of k."""
    return Arithmetic(_size(equation.invars[0]) * _log2(equation.params["k"] + 1))


def _fft(equation: jaxprs.Equation) -> Arithmetic:
    """Cooley & Tukey, 1965: 5 n log2 n, and half of it where one side is real."""
    lengths = equation.params["fft_lengths"]
    complex_side = max(_is_complex(v) for v in equation.invars)
    real = not (complex_side and _is_complex(equation.outvars[0]))
    side = equation.outvars[0] if complex_side else equation.invars[0]
    size = _size(side)  # of the side that has all n elements
    flops = 5 * size * math.log2(max(1, math.prod(lengths)))
    return Arithmetic(round(flops / 2 if real else flops))


def _threefry(equation: jaxprs.Equation) -> Arithmetic:
    """20 rounds of 5 steps and 5 key injections of 3, two keys: 117 for two words."""
    bits = equation.params.get("bit_width", 32)
    words = -(-_size(equation.outvars[0]) * bits // 32)
    return Arithmetic(117 * -(-words // 2))


def _keys(equation: jaxprs.Equation) -> Arithmetic:
    return Arithmetic(117 * _size(equation.outvars[0]))


def _integer_pow(equation: jaxprs.Equation) -> Arithmetic:
    """Repeated squaring, and a division for a negative exponent."""
    power = abs(equation.params["y"])
    steps = max(0, power.bit_length() - 1 + power.bit_count() - 1)
    steps += equation.params["y"] < 0
    return Arithmetic(_size(equation.outvars[0]) * steps)


def _exp2(equation: jaxprs.Equation) -> Arithmetic:
    """exp of x log 2."""
    size = _size(equation.outvars[0])
    return Arithmetic(size, size)


def _logistic(equation: jaxprs.Equation) -> Arithmetic:
    """1 / (1 + exp(-x))."""
    size = _size(equation.outvars[0])
    return Arithmetic(3 * size, size)


def _factorization(equation: jaxprs.Equation) -> Arithmetic:
    matrix = equation.invars[0]
    *many, rows, columns = matrix.aval.shape
    flops = factorization(equation.primitive.name, rows, columns, equation.params)
    return Arithmetic(math.prod(many) * flops * (4 if _is_complex(matrix) else 1))


def _triangular_solve(equation: jaxprs.Equation) -> Arithmetic:
    """n^2 for each right-hand side."""
    side = equation.invars[0].aval.shape[-1]
    return _multiply_adds(equation, _size(equation.outvars[0]) * side // 2)


def _linear_solve(equation: jaxprs.Equation) -> Arithmetic:
    """What its `solve` does; the other bodies are there to be differentiated."""
    total = Arithmetic()
    for inner, times in jaxprs.nested(equation.params["jaxprs"].solve):
        count = arithmetic(inner) or Arithmetic()
        total = Arithmetic(*(a + times * b for a, b in zip(total, count, strict=True)))
    return total


def _kernel(equation: jaxprs.Equation) -> Arithmetic | None:
    """A Pallas kernel costs what its author says."""
    told = equation.params.get("cost_estimate")
    return told and Arithmetic(int(told.flops), int(told.transcendentals))


def _log2(count: int) -> int:
    return max(0, count - 1).bit_length()


_COUNTS: dict[str, Callable[[jaxprs.Equation], Arithmetic | None]] = {
    "dot_general": _dot,
    "ragged_dot_general": _ragged_dot,
    "conv_general_dilated": _convolution,
    "sort": _sort,
    "top_k": _top_k,
    "approx_top_k": _top_k,
    "fft": _fft,
    "random_bits": _threefry,
    "rng_bit_generator": _threefry,
    "threefry2x32": _threefry,
    "random_fold_in": _keys,
    "random_split": _keys,
    "integer_pow": _integer_pow,
    "exp2": _exp2,
    "logistic": _logistic,
    "triangular_solve": _triangular_solve,
    "custom_linear_solve": _linear_solve,
    "pallas_call": _kernel,
    "select_and_scatter": _select_and_scatter,
    "select_and_scatter_add": _select_and_scatter,
    "select_and_gather_add": _window,
    "reduce_window": _window,
    "reduce_window_sum": _window,
    "reduce_window_max": _window,
    "reduce_window_min": _window,
    "cumsum": _running,
    "cumprod": _running,
    "cummax": _running,
    "cummin": _running,
    "cumlogsumexp": _running,
    "scatter-add": _scatter,
    "scatter-sub": _scatter,
    "scatter-mul": _scatter,
    "scatter-min": _scatter,
    "scatter-max": _scatter,
    **dict.fromkeys(REDUCTIONS, _reduction),
    **dict.fromkeys(FACTORIZATIONS, _factorization),
}
