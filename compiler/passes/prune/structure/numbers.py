"""Integers that are numbers of the indices of an axis, and what may be done to them.

The expert a router chose, a token's row in a table: when indices of the axis go, what
numbers them is counted anew, and that is right as long as the numbers are only passed
on, compared with one another, or used to look something up along that axis. Whatever
else is done to them fixes the axis. A constant that they meet names an index, which
then stays.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from compiler import jaxprs
from compiler.passes.prune.structure.atoms import Array
from compiler.passes.prune.structure.labels import Labels, Vector

if TYPE_CHECKING:
    from compiler.passes.prune.structure.emit import Emit
    from compiler.passes.prune.structure.frame import Place


@dataclasses.dataclass(eq=False)
class Numbering:
    """What some integers number.

    Attributes:
        vector: the labels of the axis, if it is told yet.
        told: whether it is.
        free: whether they are positions as well (an iota), which stay what they are
            until they meet others.
    """

    vector: Vector = None
    told: bool = False
    free: bool = False
    _same: Numbering | None = None
    _later: list[Callable[[], None]] = dataclasses.field(default_factory=list)

    @classmethod
    def of(cls, vector: Vector, *, free: bool = False) -> Numbering:
        """The numbers of the indices of an axis."""
        return cls(vector, True, free)

    @property
    def root(self) -> Numbering:
        """The one that stands for all that were found to be the same."""
        return self if self._same is None else self._same.root

    def meet(self, labels: Labels, other: Numbering) -> None:
        """Makes two numberings one."""
        one, two = self.root, other.root
        if one is two:
            return
        if one.told and two.told:
            _unify(labels, one.vector, two.vector)
        elif two.told:
            one._tell(two.vector)
        else:
            one._later += two._later
        two._same = one
        if one.told and not two.told:
            two._run()

    def along(self, labels: Labels, vector: Vector) -> None:
        """Says that they number the indices of an axis."""
        own = self.root
        if own.told:
            _unify(labels, own.vector, vector)
        else:
            own._tell(vector)

    def freeze(self, labels: Labels) -> None:
        """Lets every index stay that they number."""
        own = self.root
        if own.told:
            labels.freeze(own.vector)
        else:
            own._tell(None)

    def when_told(self, check: Callable[[], None]) -> None:
        """Does something once it is known which axis they number."""
        if self.root.told:
            check()
        else:
            self.root._later.append(check)

    def _tell(self, vector: Vector) -> None:
        self.vector, self.told = vector, True
        self._run()

    def _run(self) -> None:
        waiting, self._later = self._later, []
        for check in waiting:
            check()


Numbers = Numbering | tuple[Numbering | None, ...]
"""Of all integers of an array, or of those at each index of its last axis."""


def _unify(labels: Labels, one: Vector, other: Vector) -> None:
    if one is not None and other is not None and len(one) != len(other):
        labels.freeze(one)
        labels.freeze(other)
    else:
        labels.unify(one, other)


def renumbered(emit: Emit, place: Place, values: list[Any]) -> list[Any]:
    """The operands of an equation, with what meets numbers counted as they are."""
    values = list(values)
    for operand, numbering, what in place.counted:
        kept = emit.keep(numbering.root.vector)
        if kept is None:
            continue
        old, known = values[operand], place.known(operand)
        dtype = jaxprs.spec(place.equation.invars[operand]).dtype
        left = int(kept.sum())
        if what != "named":
            new = np.full(np.shape(old), left if what == "count" else left - 1)
        elif (axis := _counting(emit, place, operand, numbering)) is not None:
            new = lax.broadcasted_iota(dtype, np.shape(old), axis)
        elif known is not None:
            new = _counted(kept, emit.take(known, place.operands[operand]), np)
        else:
            new = _counted(kept, jnp.asarray(old), jnp)
        values[operand] = _typed(new, dtype)
    return values


def _counting(
    emit: Emit, place: Place, operand: int, numbering: Numbering
) -> int | None:
    """The axis of an operand along which it counts from zero, if it does."""
    own = place.number(operand)
    if not isinstance(own, Numbering) or not own.root.free:
        return None
    resolve = place.labels.atoms.resolve
    wanted = resolve(numbering.root.vector)
    for axis, vector in enumerate(place.operands[operand]):
        if vector is not None and np.array_equal(resolve(vector), wanted):
            return axis
    return None


def _typed(value: Any, dtype: Any) -> Any:
    """A scalar as a number, so that it stays a literal."""
    scalar = isinstance(value, np.ndarray) and not value.ndim
    return np.dtype(dtype).type(value) if scalar else value.astype(dtype)


def _counted(kept: Array, old: Any, numpy: Any) -> Any:
    """Numbers of indices, as they are among those kept; others stay."""
    table = np.maximum(np.cumsum(kept) - 1, 0)
    inside = (old >= 0) & (old < len(kept))
    found = numpy.asarray(table)[numpy.clip(old, 0, len(kept) - 1)]
    return numpy.where(inside, found, old)


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
    handle = _HANDLERS.get(name, _fix)
    results = handle(place, given)
    for var, numbers in zip(place.equation.outvars, results, strict=True):
        if numbers is not None and var not in frame.numbers:
            frame.numbers[var] = numbers


Given = Sequence["Numbers | None"]


def fix(labels: Labels, numbers: Numbers | None) -> None:
    """Lets what some integers number stay as it is, if they are no mere positions."""
    for one in numbers if isinstance(numbers, tuple) else (numbers,):
        if one is not None and not one.root.free:
            one.freeze(labels)


def _fix(place: Place, given: Given) -> list[Numbers | None]:
    place.computes = True
    for numbers in given:
        fix(place.labels, numbers)
    return [None] * len(place.equation.outvars)


def _passed(place: Place, given: Given) -> list[Numbers | None]:
    """The first operand, arranged anew; the others say how."""
    for numbers in given[1:]:
        fix(place.labels, numbers)
    first, results = given[0], place.equation.outvars
    whole = isinstance(first, Numbering) or place.equation.primitive.name in _SAME_LAST
    fit = all(jnp.issubdtype(jaxprs.spec(v).dtype, jnp.integer) for v in results)
    if not whole or not fit:
        fix(place.labels, first)
        return [None] * len(results)
    return [first] * len(results)


def _each(place: Place, given: Given) -> list[Numbers | None]:
    """Each result is one operand."""
    return list(given)


def _sorted(place: Place, given: Given) -> list[Numbers | None]:
    """In order of numbers, which stays the same when they are counted anew."""
    whole = [n if isinstance(n, Numbering) else None for n in given]
    for numbers in given:
        if isinstance(numbers, tuple):
            fix(place.labels, numbers)
    return [None if n is None or n.root.free else n for n in whole]


def _compared(place: Place, given: Given) -> list[Numbers | None]:
    name = place.equation.primitive.name
    if first_of(given) is not None:
        sides = (("lt", 1), ("ge", 1), ("gt", 0), ("le", 0))
        zero = [place.known(i) for i in (0, 1)]
        plain = any(
            name == own and zero[i] is not None and not zero[i].any()
            for own, i in sides
        )
        if not plain:
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


def first_of(given: Given) -> Numbering | None:
    """The first that is more than positions."""
    whole = (n for n in given if isinstance(n, Numbering))
    return next((n for n in whole if not n.root.free), None)


def _together(place: Place, given: Given, operands: Sequence[int]) -> Numbering | None:
    """Makes several operands numbers of one axis."""
    one = first_of([given[i] for i in operands])
    if one is None:
        return None
    for operand in operands:
        if given[operand] is not one:
            together(place, one, operand, given[operand], place.known(operand))
    return one


def together(
    place: Place,
    one: Numbering,
    operand: int,
    other: Numbers | None,
    value: Array | None,
) -> None:
    """Makes something else numbers of the same axis.

    Args:
        place: where they meet.
        one: what is numbered.
        operand: which operand of the equation the other is, for what is counted anew.
        other: what it numbers, if it does.
        value: its value, if that is known.
    """
    if isinstance(other, Numbering) and not other.root.free:
        one.meet(place.labels, other)
    elif isinstance(other, Numbering):
        one.along(place.labels, other.root.vector)
        place.counted.append((operand, one, "named"))
    elif other is None and value is not None:
        _named(place, operand, one, value)
    else:
        fix(place.labels, other)
        one.freeze(place.labels)


def _named(place: Place, operand: int, one: Numbering, value: Array) -> None:
    """A constant that meets numbers: an index that stays, or all of them in order."""
    cause = place.labels.atoms.cause

    def check() -> None:
        vector = one.root.vector
        if vector is None:
            return
        place.counted.append((operand, one, "named"))
        axis = _positions(value, len(vector))
        if axis is not None:
            _unify(place.labels, vector, place.operands[operand][axis])
            return
        inside = np.unique(value[(value >= 0) & (value < len(vector))])
        before, place.labels.atoms.cause = place.labels.atoms.cause, cause
        place.labels.freeze(vector[inside.astype(np.int64)])
        place.labels.atoms.cause = before

    one.when_told(check)


def _positions(value: Array, extent: int) -> int | None:
    """The axis along which a table counts from zero to an extent, if there is one."""
    for axis, own in enumerate(value.shape):
        shape = [1] * value.ndim
        shape[axis] = own
        if own == extent > 1 and (value == np.arange(own).reshape(shape)).all():
            return axis
    return None


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
