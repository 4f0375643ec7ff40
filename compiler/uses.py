"""Who uses a value: how often, and whether before the inputs are seen."""

from __future__ import annotations

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any, TypeAlias

from compiler import jaxprs

Users: TypeAlias = Sequence[jaxprs.Equation | None]
"""The equations that use something; None where it leaves the jaxpr."""


@dataclasses.dataclass(frozen=True)
class Uses:
    """The uses of every variable of a jaxpr, its outputs included.

    Attributes:
        users: for each use the equation, None where the value leaves the jaxpr.
        late: how many of them have to wait for what is not known.
        derives: whether an equation computes with known inputs alone.
    """

    users: dict[Any, list[jaxprs.Equation | None]]
    late: Counter[Any]
    derives: bool


def uses(jaxpr: jaxprs.Jaxpr, known: Sequence[bool]) -> Uses:
    """Finds the uses of every variable.

    Args:
        jaxpr: a closed jaxpr.
        known: for each of its inputs, whether it is known before the others.
    """
    users: dict[Any, list[jaxprs.Equation | None]] = defaultdict(list)
    late: Counter[Any] = Counter()
    given = {v for v, k in zip(jaxpr.jaxpr.invars, known, strict=True) if k}
    early, derives = {*jaxpr.jaxpr.constvars, *given}, False
    for equation in jaxprs.equations(jaxpr):
        operands = jaxprs.reads(equation.invars)
        for var in operands:
            users[var].append(equation)
        if early.issuperset(operands) and not equation.effects:
            early.update(equation.outvars)
            derives = derives or not given.isdisjoint(operands)
        else:
            late.update(operands)
    for var in jaxprs.reads(jaxpr.jaxpr.outvars):
        users[var].append(None)
        late[var] += 1
    return Uses(users, late, derives)


def is_smaller(one: Any, others: Sequence[Any]) -> bool:
    """Whether an array has fewer elements than each of the others, if that is known."""
    size = _size(one)
    sizes = [_size(other) for other in others]
    return size is not None and all(n is not None and size < n for n in sizes)


def _size(value: Any) -> int | None:
    size = 1
    for extent in getattr(value, "shape", ()):
        if not isinstance(extent, int):
            return None
        size *= extent
    return size
