"""What each primitive does to integers that number the indices of an axis."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp

from compiler import jaxprs
from compiler.passes.prune.structure.frame import Place
from compiler.passes.prune.structure.numbers import (
    Given,
    Numbering,
    Numbers,
    first_of,
    fix,
    together,
)


def follow(place: Place) -> None:
    """Notes what an equation does to numbers; the rule for its labels was asked."""
    frame = place.frame
    given = [frame.number(operand) for operand in place.equation.invars]
    name = place.equation.primitive.name
    if name == "iota":
        axis = place.results[0][place.params["dimension"]]
        frame.numbers[place.equation.outvars[0]] = Numbering.of(axis, free=True)
    if not any(given) or name in _ELSEWHERE:
        return
    parts = any(isinstance(numbers, tuple) for numbers in given)
    handle = _fix if parts and name not in _SAME_LAST else _HANDLERS.get(name, _fix)
    results = handle(place, given)
    for var, numbers in zip(place.equation.outvars, results, strict=True):
        if numbers is not None and var not in frame.numbers:
            frame.numbers[var] = numbers


def _fix(place: Place, given: Given) -> list[Numbers | None]:
    fixed = [fix(place.labels, numbers) for numbers in given]
    place.computes = any(fixed)
    return [None] * len(place.equation.outvars)


def _passed(place: Place, given: Given) -> list[Numbers | None]:
    """The first operand, arranged anew; the others say how."""
    for numbers in given[1:]:
        fix(place.labels, numbers)
    first, results = given[0], place.equation.outvars
    whole = isinstance(first, Numbering) or place.equation.primitive.name in _SAME_LAST
    fit = all(jnp.issubdtype(jaxprs.spec(v).dtype, jnp.integer) for v in results)
    if not whole or not fit:
        return _fix(place, given[:1])
    return [first] * len(results)


def _each(place: Place, given: Given) -> list[Numbers | None]:
    """Each result is one operand."""
    return list(given)


def _sorted(place: Place, given: Given) -> list[Numbers | None]:
    """In order of numbers, which stays the same when they are counted anew."""
    return [first_of([numbers]) for numbers in given]


def _compared(place: Place, given: Given) -> list[Numbers | None]:
    """A number is never below zero; else what it is compared with names an index."""
    name = place.equation.primitive.name
    zero = [value is not None and not value.any() for value in map(place.known, (0, 1))]
    always = (name in ("lt", "ge") and zero[1]) or (name in ("gt", "le") and zero[0])
    if first_of(given) is not None and not always:
        _together(place, given, (0, 1))
    return [None]


def _chosen(place: Place, given: Given) -> list[Numbers | None]:
    """One of several cases."""
    fix(place.labels, given[0])
    return [_together(place, given, range(1, len(given)))]


def _joined(place: Place, given: Given) -> list[Numbers | None]:
    """All operands in one array."""
    last = len(place.shape(0)) - 1
    if place.equation.primitive.name == "concatenate":
        single = all(place.shape(i)[-1:] == (1,) for i in range(len(given)))
        if single and place.params["dimension"] == last:
            parts = (n if isinstance(n, Numbering) else None for n in given)
            return [tuple(parts)]
    if first_of(given) is None:
        return [None]
    return [_together(place, given, range(len(given)))]


def _updated(place: Place, given: Given) -> list[Numbers | None]:
    """The first two operands in one array; the others say where."""
    for numbers in given[2:]:
        fix(place.labels, numbers)
    return [_together(place, given, (0, 1)) if first_of(given[:2]) else None]


def _bounded(place: Place, given: Given) -> list[Numbers | None]:
    """Not below zero, not above the last."""
    name = place.equation.primitive.name
    data = 1 if name == "clamp" else next(i for i, n in enumerate(given) if n)
    one = given[data]
    if not isinstance(one, Numbering) or one.root.free:
        return _fix(place, given)
    for operand in range(len(given)):
        bound = place.known(operand)
        if operand == data:
            continue
        if bound is None or bound.size != 1:
            return _fix(place, given)
        _bound(place, operand, one, int(bound.flat[0]))
    return [one]


def _bound(place: Place, operand: int, one: Numbering, bound: int) -> None:
    def check() -> None:
        vector = one.root.vector
        if vector is not None and bound > 0:
            if bound < len(vector) - 1:
                place.labels.freeze(vector)
            place.counted.append((operand, one, "last"))

    one.when_told(check)


def _shifted(place: Place, given: Given) -> list[Numbers | None]:
    """Numbers from the end, which count from the start when the extent is added."""
    data = 0 if given[0] is not None else 1
    one, by = given[data], place.known(1 - data)
    plain = isinstance(one, Numbering) and not one.root.free
    if not plain or given[1 - data] is not None or by is None or by.size == 0:
        return _fix(place, given)
    number, alike = int(by.flat[0]), bool((by == by.flat[0]).all())

    def check() -> None:
        vector = one.root.vector
        if vector is not None and not (alike and number == len(vector)):
            place.labels.freeze(vector)
        elif number:
            place.counted.append((1 - data, one, "count"))

    one.when_told(check)
    return [one]


def _together(place: Place, given: Given, operands: Sequence[int]) -> Numbering | None:
    """Makes several operands numbers of one axis."""
    one = first_of([given[i] for i in operands])
    if one is None:
        return None
    for operand in operands:
        if given[operand] is not one:
            together(place, one, operand, given[operand], place.known(operand))
    return one


_SAME_LAST = frozenset(("convert_element_type", "copy", "stop_gradient"))
_ELSEWHERE = frozenset(
    (
        "closed_call",
        "cond",
        "dynamic_slice",
        "gather",
        "iota",
        "jit",
        "remat2",
        "scan",
        "scatter",
        "scatter-add",
        "scatter-max",
        "scatter-min",
        "scatter-mul",
        "scatter-sub",
        "while",
    )
)
"""Their own rules tell what becomes of numbers."""

_PASSED = """
broadcast_in_dim convert_element_type copy copy_p expand_dims name pcast
pvary reduce_max reduce_min reshape rev sharding_constraint slice split squeeze
stop_gradient transpose unstack
"""

_HANDLERS: dict[str, Callable[[Any, Given], list[Numbers | None]]] = {
    **dict.fromkeys(_PASSED.split(), _passed),
    **dict.fromkeys(("eq", "ne", "lt", "le", "gt", "ge"), _compared),
    **dict.fromkeys(("concatenate", "stack", "pad"), _joined),
    **dict.fromkeys(("max", "min", "clamp"), _bounded),
    "add": _shifted,
    "dynamic_update_slice": _updated,
    "optimization_barrier": _each,
    "select_n": _chosen,
    "sort": _sorted,
}
