"""Extents that stand in numbers: what a sum is divided by to become a mean.

When an axis becomes shorter, so does the count that a sum over it is divided by. A sum
is followed from where it is made, through roots, powers and factors, to the number it
meets. It grows with the count n as n^power; a number that undoes just that (1/n for a
sum, 1/sqrt(n) for a norm), or brings it back, is the count, and is written anew.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from compiler import jaxprs
from compiler.passes.prune.structure.emit import Emit
from compiler.passes.prune.structure.frame import Place, Sum
from compiler.passes.prune.structure.labels import Axes, Vector
from compiler.passes.prune.structure.registry import RULES
from compiler.passes.prune.structure.rules.elementwise import elementwise


class Count(NamedTuple):
    """A number that was found to be a count.

    Attributes:
        sums: whose axes are counted, together.
        less: how many less: 1 for an unbiased variance.
        power: the factor that the number is: the count to this power.
        operand: where it stands.
    """

    sums: tuple[Sum, ...]
    less: int
    power: float
    operand: int


def carry(place: Place, power: float = 1.0) -> None:
    """The first operand's sums are those of the result, to a power."""
    if found := place.frame.sum(place.equation.invars[0]):
        new = tuple(one.to_power(power) for one in found)
        place.frame.sums[place.equation.outvars[0]] = new


@RULES.on("neg", "abs")
def unchanged(place: Place) -> Sequence[Axes]:
    """Elementwise; a sum stays one."""
    carry(place)
    return elementwise(place)


@RULES.on("select_n")
def selected(place: Place) -> Sequence[Axes]:
    """Elementwise; what is chosen from sums over the same axes is one."""
    cases = [place.frame.sum(operand) for operand in place.equation.invars[1:]]
    found = [case for case in cases if case]
    if found and all(case == found[0] for case in found):
        place.frame.sums[place.equation.outvars[0]] = found[0]
    return elementwise(place)


_POWERS = {"sqrt": 0.5, "rsqrt": -0.5, "square": 2.0}


@RULES.on(*_POWERS)
def root(place: Place) -> Sequence[Axes]:
    """Elementwise; the root of a sum grows with the root of the count."""
    carry(place, _POWERS[place.equation.primitive.name])
    return elementwise(place)


@RULES.on("pow")
def real_power(place: Place) -> Sequence[Axes]:
    """Elementwise; a known power of a sum grows with that of the count."""
    exponent = place.known(1)
    if exponent is not None and exponent.size and exponent.ndim == 0:
        carry(place, float(exponent))
    return elementwise(place)


@RULES.on("integer_pow")
def power(place: Place) -> Sequence[Axes]:
    """Elementwise; a power of a sum grows with that of the count."""
    carry(place, float(place.params["y"]))
    return elementwise(place)


@RULES.on("add", "sub", "max", "min")
def shifted(place: Place) -> Sequence[Axes]:
    """Elementwise; a sum with a number is one, and so are two over the same axes."""
    one, other = map(place.frame.sum, place.equation.invars)
    known = [place.known(operand) is not None for operand in (0, 1)]
    if one and (known[1] or one == other):
        place.frame.sums[place.equation.outvars[0]] = one
    elif other and known[0]:
        place.frame.sums[place.equation.outvars[0]] = other
    return elementwise(place)


def corrected(emit: Emit, place: Place, values: list[Any]) -> list[Any]:
    """A sum over fewer numbers is divided by how many there are."""
    found = place.note
    if found is not None:
        parts = [p for one in found.sums for p in one.axes if p[0] is not None]
        before = math.prod(extent for _, extent in parts)
        after = math.prod(emit.count(vector, extent) for vector, extent in parts)
        if before != after:
            values = list(values)
            values[found.operand] = _counted(
                place, values[found.operand], before, after
            )
    return jaxprs.bind(place.equation, values)


def _counted(place: Place, old: Any, before: int, after: int) -> Any:
    """The number for a shorter sum: scaled where it comes from a symbol, else anew."""
    found, dtype = place.note, place.equation.invars[place.note.operand].aval.dtype
    count = math.prod(one.count for one in found.sums)
    if not isinstance(count, int):
        one = jnp.asarray(found.less, dtype)
        return (old + one) * jnp.asarray(after / before, dtype) - one
    now = max(count // before * after - found.less, 1)
    divides = place.equation.primitive.name == "div"
    exponent = -found.power if divides else found.power
    factor = (now / (count - found.less)) ** exponent
    number = np.asarray(place.known(found.operand), np.float64).flat[0] * factor
    return jnp.full(np.shape(old), number, dtype)


@RULES.on("mul", "div", shrink=corrected, mask=corrected)
def scaled(place: Place) -> Sequence[Axes]:
    """Elementwise; if it makes a mean of a sum, that is noted."""
    divides = place.equation.primitive.name == "div"
    known = [place.known(operand) is not None for operand in (0, 1)]
    one, other = map(place.frame.sum, place.equation.invars)
    if divides:
        other = tuple(sum_.to_power(-1.0) for sum_ in other)
    if (one and not other) or known[1]:
        _scale(place, one, 1)
    elif (other and not one) or known[0]:
        _scale(place, other, 0)
    elif one:
        place.frame.sums[place.equation.outvars[0]] = (*one, *other)
    return elementwise(place)


def _scale(place: Place, sums: tuple[Sum, ...], operand: int) -> None:
    """Looks for a count among the factors of sums; what they are then."""
    if not sums:
        return
    place.note = _count(place, sums, operand)
    if place.note is not None:
        by = place.note.power
        met = {id(one) for one in place.note.sums}
        sums = tuple(one.times(by) if id(one) in met else one for one in sums)
    elif _depends_on_extents(place, operand):  # on which, nobody can tell
        place.freeze(*_vectors(sums))
    place.frame.sums[place.equation.outvars[0]] = sums


def _count(place: Place, sums: tuple[Sum, ...], operand: int) -> Count | None:
    """The count that an operand is, None if it is another number."""
    most = len(sums) if len(sums) < _MANY else 1
    candidates = [
        group
        for size in range(1, most + 1)
        for group in itertools.combinations(sums, size)
    ]
    divides = place.equation.primitive.name == "div"
    found: list[tuple[float, int, bool, int, Count]] = []
    for group in candidates:
        if len({(one.power, one.home) for one in group}) > 1:
            continue
        for by, less in itertools.product(_exponents(group[0]), (0, 1)):
            off = _off(place, group, operand, less, -by if divides else by)
            if off is not None:
                still = not any(map(place.labels.is_live, _vectors(group)))
                count = Count(group, less, by, operand)
                found.append((off, less, still, len(found), count))
    return min(found)[-1] if found else None


def _exponents(one: Sum) -> set[float]:
    """The powers of the count that may stand beside a sum: what makes a mean of it.

    One that a mean is multiplied with makes a sum of it again; a square of a sum may
    be divided by the count once.
    """
    if not one.power:
        return {one.home}
    return {-one.power, -1.0} if one.power > 1 else {-one.power}


_MANY = 7
"""With so many sums in one value, each is looked for by itself."""


def _vectors(sums: Sequence[Sum]) -> list[Vector]:
    return [vector for one in sums for vector, _ in one.axes]


def _off(
    place: Place, group: tuple[Sum, ...], operand: int, less: int, exponent: float
) -> float | None:
    """How far an operand is from a count to a power, None if it is another number."""
    count = math.prod(one.count for one in group)
    if _depends_on_extents(place, operand):
        extent = place.frame.extents[place.equation.invars[operand]]
        same = extent is not None and extent == count - less
        return 0.0 if same and exponent == 1 else None
    factor = place.known(operand)
    if factor is None or not factor.size or not isinstance(count, int):
        return None
    first = float(factor.flat[0])
    if count <= less or count < 2 or not (factor == factor.flat[0]).all():
        return None
    off = abs(first / float(count - less) ** exponent - 1)
    return off if off < _tolerance(factor.dtype) else None


def _tolerance(dtype: Any) -> float:
    """How far a rounded number may be from what it stands for."""
    if jnp.issubdtype(dtype, jnp.floating):
        return 2 * float(jnp.finfo(dtype).eps)
    return 1e-9


def _depends_on_extents(place: Place, operand: int) -> bool:
    var = place.equation.invars[operand]
    return not jaxprs.is_literal(var) and var in place.frame.extents


def made(place: Place, parts: Sequence[tuple[Any, Any]], operand: int = 0) -> None:
    """Notes that the result is a sum over axes, and of what its operand was one."""
    own = tuple(Sum(extent, (part,)) for part in parts for extent in part[1:])
    before = place.frame.sum(place.equation.invars[operand])
    place.frame.sums[place.equation.outvars[0]] = (*own, *before)
