"""How a product sees its weight, however the weight came to it.

A weight reaches a product transposed, split into heads, merged again. `Arrangement`
follows that exactly, down to parts of axes.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp

from compiler.sites import regroup


class Atom(NamedTuple):
    """A part of an axis: `extent` steps of `stride` along the leaf's `axis`."""

    axis: int
    stride: int
    extent: int


Atoms = tuple[Atom, ...]


@dataclasses.dataclass(frozen=True)
class Arrangement:
    """An array with its axes re-arranged.

    Attributes:
        shape: of the array.
        axes: for each axis of the view, what it is made of, the slowest first; none
            where its extent is one.

    >>> view = Arrangement.of((6, 4)).transposed((1, 0)).reshaped((4, 2, 3))
    >>> view.extents, view.axes[1]
    ((4, 2, 3), (Atom(axis=0, stride=3, extent=2),))
    """

    shape: tuple[int, ...]
    axes: tuple[Atoms, ...]

    @classmethod
    def of(cls, shape: Sequence[int]) -> Arrangement:
        """The array itself."""
        axes = tuple((Atom(i, 1, n),) if n != 1 else () for i, n in enumerate(shape))
        return cls(tuple(shape), axes)

    @property
    def extents(self) -> tuple[int, ...]:
        """The shape of the view."""
        return tuple(span(atoms) for atoms in self.axes)

    def transposed(self, permutation: Sequence[int]) -> Arrangement:
        """With its axes in another order."""
        return self._with([self.axes[i] for i in permutation])

    def squeezed(self, gone: Sequence[int]) -> Arrangement:
        """Without some axes of extent one."""
        return self._with([a for i, a in enumerate(self.axes) if i not in gone])

    def spread(self, rank: int, places: Sequence[int]) -> Arrangement:
        """With new axes of extent one."""
        axes: list[Atoms] = [()] * rank
        for atoms, place in zip(self.axes, places, strict=True):
            axes[place] = atoms
        return self._with(axes)

    def reshaped(self, new: Sequence[int]) -> Arrangement | None:
        """In another shape; None where that cuts an axis unevenly."""
        groups = regroup(self.extents, new)
        axes: list[Atoms] = [()] * len(new)
        for olds, news in groups or ():
            atoms = [atom for old in olds for atom in self.axes[old]]
            parts = _dealt(atoms, [new[i] for i in news])
            if parts is None:
                return None
            for place, part in zip(news, parts, strict=True):
                axes[place] = part
        return None if groups is None else self._with(axes)

    def without(self, axis: int) -> Arrangement:
        """The view of a slice of the array: its `axis`, and the first of the view."""
        axes = [
            tuple(a._replace(axis=a.axis - (a.axis > axis)) for a in atoms)
            for atoms in self.axes[1:]
        ]
        shape = self.shape[:axis] + self.shape[axis + 1 :]
        return Arrangement(shape, tuple(axes))

    def narrowed(self, place: int, extent: int) -> Arrangement | None:
        """With one axis of the view, which is a whole one of the array, cut."""
        axis = self.whole(place)
        if axis is None:
            return None
        shape = (*self.shape[:axis], extent, *self.shape[axis + 1 :])
        axes = list(self.axes)
        axes[place] = (Atom(axis, 1, extent),) if extent != 1 else ()
        return Arrangement(shape, tuple(axes))

    def whole(self, place: int) -> int | None:
        """The array's axis that an axis of the view is, if it is one whole axis."""
        atoms = merged(self.axes[place])
        if len(atoms) != 1 or atoms[0].extent != self.shape[atoms[0].axis]:
            return None
        return atoms[0].axis

    def apply(self, array: Any) -> Any:
        """Re-arranges an array of this shape."""
        wanted = [atom for atoms in self.axes for atom in atoms]
        stored = in_order(wanted)
        array = jnp.reshape(array, [atom.extent for atom in stored])
        array = jnp.transpose(array, [stored.index(atom) for atom in wanted])
        return jnp.reshape(array, self.extents)

    def _with(self, axes: Sequence[Atoms]) -> Arrangement:
        return dataclasses.replace(self, axes=tuple(axes))


def in_order(atoms: Sequence[Atom]) -> list[Atom]:
    """Atoms as the leaf has them: by axis, the slowest first."""
    return sorted(atoms, key=lambda atom: (atom.axis, -atom.stride))


def merged(atoms: Sequence[Atom]) -> Atoms:
    """The same atoms with those that go on where another ends made one.

    >>> merged([Atom(0, 3, 2), Atom(0, 1, 3)])
    (Atom(axis=0, stride=1, extent=6),)
    """
    found: list[Atom] = []
    for atom in atoms:
        last = found[-1] if found else None
        if last and last.axis == atom.axis and last.stride == atom.stride * atom.extent:
            found[-1] = Atom(atom.axis, atom.stride, last.extent * atom.extent)
        else:
            found.append(atom)
    return tuple(found)


def _dealt(atoms: Sequence[Atom], extents: Sequence[int]) -> list[Atoms] | None:
    """Deals atoms out to axes of these extents, splitting those that are larger."""
    left, dealt = list(atoms)[::-1], []
    for extent in extents:
        part: list[Atom] = []
        while extent > 1:
            axis, stride, size = left.pop()
            if size > extent:
                if size % extent:
                    return None
                inner = size // extent
                left.append(Atom(axis, stride, inner))
                axis, stride, size = axis, stride * inner, extent
            elif extent % size:
                return None
            part.append(Atom(axis, stride, size))
            extent //= size
        dealt.append(tuple(part))
    return dealt


def span(atoms: Sequence[Atom]) -> int:
    """How many indices atoms have together."""
    return math.prod(atom.extent for atom in atoms)
