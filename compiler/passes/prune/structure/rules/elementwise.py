"""Operations on one element at a time: their operands' axes are one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from compiler import jaxprs
from compiler.passes.prune.structure.emit import Emit
from compiler.passes.prune.structure.frame import Place, Sum
from compiler.passes.prune.structure.labels import Axes, Vector
from compiler.passes.prune.structure.registry import RULES

_ELEMENTWISE = """
abs acos acosh add add_any and asin asinh atan atan2 atanh bessel_i0e bessel_i1e cbrt
ceil clamp clz complex conj copy copy_p cos cosh digamma eq eq_to erf erf_inv erfc exp
exp2 expm1 floor ge gt igamma igamma_grad_a igammac imag integer_pow is_finite le le_to
lgamma log log1p logistic lt lt_to max min mul_add nan_to_num name ne nextafter not
or polygamma population_count pow real reduce_precision regularized_incomplete_beta rem
round rsqrt select_n shift_left shift_right_arithmetic shift_right_logical sign sin sinh
sqrt square sub tan tanh threefry2x32 xor zeta
"""

_ALIKE = """
convert_element_type optimization_barrier pcast pvary stop_gradient device_put
layout_constraint
"""


@RULES.on(*_ELEMENTWISE.split())
def elementwise(place: Place) -> list[Axes]:
    """Axes of one extent are one; those of extent one are spread, and stay."""
    shapes = [var.aval.shape for var in place.equation.outvars]
    axes: Axes = joined(place, shapes[0])
    return [axes] * len(shapes)


def joined(place: Place, shape: Sequence[Any]) -> Axes:
    """The labels of what is made of all operands, element by element."""
    axes: list[Vector] = []
    for axis, extent in enumerate(shape):
        vectors = [
            labels[axis]
            for operand, labels in enumerate(place.operands)
            if len(labels) == len(shape) and place.shape(operand)[axis] == extent
        ]
        if extent == 1 or not vectors:
            axes.append(None)
            continue
        first = next((v for v in vectors if v is not None), None)
        for vector in vectors:
            place.labels.unify(vector, first)
        axes.append(first if all(v is not None for v in vectors) else None)
    return tuple(axes)


@RULES.on(*_ALIKE.split())
def alike(place: Place) -> list[Axes]:
    """Each result has its operand's axes."""
    for operand, result in zip(
        place.equation.invars, place.equation.outvars, strict=True
    ):
        if summed := place.frame.sum(operand):
            place.frame.sums[result] = summed
    return list(place.operands)


def constrained(emit: Emit, place: Place, values: list[Any]) -> list[Any]:
    """A sharding that was meant for other extents is left out."""
    if emit.is_changed(place.results[0]):
        return values
    return jaxprs.bind(place.equation, values)


RULES.on("sharding_constraint", shrink=constrained)(alike)


def corrected(emit: Emit, place: Place, values: list[Any]) -> list[Any]:
    """A sum over fewer numbers is divided by how many there are."""
    if place.note is not None:
        summed, less, operand = place.note
        parts = [(v, n) for v, n in summed.axes if v is not None]
        before = math.prod(n for _, n in parts)
        after = math.prod(emit.count(v, n) for v, n in parts)
        if before != after:
            values = list(values)
            values[operand] = _counted(place, values[operand], less, before, after)
    return jaxprs.bind(place.equation, values)


def _counted(place: Place, old: Any, less: int, before: int, after: int) -> Any:
    """The number that a sum is divided by, or multiplied with, when it is shorter.

    Where it comes from an extent that is a symbol it is scaled; else written anew.
    """
    summed, _, operand = place.note
    if not isinstance(summed.count, int):
        one = jnp.asarray(less, old.dtype)
        return (old + one) * jnp.asarray(after / before, old.dtype) - one
    by = summed.count // before * after - less
    size = by if place.equation.primitive.name == "div" else 1 / max(by, 1)
    dtype = place.equation.invars[operand].aval.dtype
    return jnp.full(np.shape(old), size, dtype)


@RULES.on("neg")
def negated(place: Place) -> Sequence[Axes]:
    """Elementwise; what is negated is still a sum."""
    if summed := place.frame.sum(place.equation.invars[0]):
        place.frame.sums[place.equation.outvars[0]] = summed
    return elementwise(place)


@RULES.on("mul", "div", shrink=corrected, mask=corrected)
def scaled(place: Place) -> Sequence[Axes]:
    """Elementwise; if it makes a mean of a sum, that is noted."""
    place.note = _mean(place)
    return elementwise(place)


def _mean(place: Place) -> tuple[Sum, int, int] | None:
    """The sum that becomes a mean, how many numbers less count, and which operand
    tells them."""
    divides = place.equation.primitive.name == "div"
    for one, other in ((0, 1),) if divides else ((0, 1), (1, 0)):
        found = place.frame.sum(place.equation.invars[one])
        for summed in found:
            less = _less(place, summed, other, divides)
            if less is not None:
                return summed, less, other
        if found and _depends_on_extents(place, other):  # on which, nobody can tell
            place.freeze(*(vector for vector, _ in found[-1].axes))
        elif found and place.known(other) is not None:
            place.frame.sums[place.equation.outvars[0]] = found
    return None


def _less(place: Place, summed: Sum, operand: int, divides: bool) -> int | None:
    """How much less than the count of a sum an operand is, None if it is another."""
    factor = place.known(operand)
    if _depends_on_extents(place, operand):
        extent = place.frame.extents[place.equation.invars[operand]]
        found = [n for n in (0, 1) if extent is not None and extent == summed.count - n]
        return found[0] if found and divides else None
    if factor is None or not factor.size or not isinstance(summed.count, int):
        return None
    by = float(factor.flat[0])
    by = by if divides else (1 / by if by else 0.0)
    if not (factor == factor.flat[0]).all():
        return None
    for less in (0, 1):
        if summed.count > less and abs(by / (summed.count - less) - 1) < _NEAR:
            return less
    return None


def _depends_on_extents(place: Place, operand: int) -> bool:
    var = place.equation.invars[operand]
    return not jaxprs.is_literal(var) and var in place.frame.extents


_NEAR = 4e-3
"""How far a number may be from a count to be it: bfloat16 has under three digits."""
