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

Given = Sequence[Numbers | None]
"""What each operand of an equation numbers, if it does."""


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


def fix(labels: Labels, numbers: Numbers | None) -> bool:
    """Lets what some integers number stay as it is, if they are no mere positions."""
    each = numbers if isinstance(numbers, tuple) else (numbers,)
    hard = [one for one in each if one is not None and not one.root.free]
    for one in hard:
        one.freeze(labels)
    return bool(hard)


def first_of(given: Given) -> Numbering | None:
    """The first that is more than positions."""
    whole = (n for n in given if isinstance(n, Numbering))
    return next((n for n in whole if not n.root.free), None)


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
