"""Operations on one element at a time: their operands' axes are one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from compiler import jaxprs
from compiler.passes.prune.structure.emit import Emit
from compiler.passes.prune.structure.frame import Place
from compiler.passes.prune.structure.labels import Axes, Vector
from compiler.passes.prune.structure.registry import RULES

_ELEMENTWISE = """
acos acosh add_any and asin asinh atan atan2 atanh bessel_i0e bessel_i1e cbrt ceil
clamp clz complex conj copy copy_p cos cosh digamma eq eq_to erf erf_inv erfc exp
exp2 expm1 floor ge gt igamma igamma_grad_a igammac imag is_finite le le_to lgamma
log log1p log2 logistic lt lt_to mul_add name nan_to_num ne nextafter not
one_minus_square or polygamma population_count real reduce_precision
regularized_incomplete_beta rem round shift_left shift_right_arithmetic
shift_right_logical sign sin sinh tan tanh threefry2x32 xor zeta
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
    if place.is_backward and _is_spread(place):
        place.freeze(*(vector for labels in place.operands for vector in labels))
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


def _is_spread(place: Place) -> bool:
    """Whether a single number that is not known meets an array."""
    ranks = [len(labels) for labels in place.operands]
    numbers = [i for i, rank in enumerate(ranks) if rank == 0]
    return max(ranks) > 0 and any(place.known(i) is None for i in numbers)


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
