"""Whose a leaf is: a moment, an average or a gradient belongs to a parameter.

Whatever is kept for the parameters is kept in trees like theirs, so the path of what
belongs to one ends in that one's path. Its shape is the parameter's, or lacks axes
that were averaged away, or has more of them in front.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from collections.abc import Mapping as Dict
from typing import TypeAlias

import numpy as np

from compiler.passes.prune.plan.entries import Shape

Names: TypeAlias = tuple[str, ...]

Axes: TypeAlias = tuple[int | None, ...]
"""For each axis of a leaf, which one of its owner's it is."""

_COLLECTIONS = ("params", "state", "batch_stats", "cache")
"""What a path may begin with that an optimizer, given the params alone, never sees."""

_ALONE = "variables"
"""The path of a parameter that is the whole tree."""


@dataclasses.dataclass(frozen=True)
class Owner:
    """What a leaf belongs to.

    Attributes:
        path: of the parameter.
        role: the names of what holds the leaf: `("opt_state", "0", "mu")`.
        along: the axis the leaf is about, where each axis has one; else None.
    """

    path: str
    role: Names = ()
    along: int | None = None

    @property
    def factor(self) -> str:
        """`v_row` or `v_col`, if it is one of adafactor's two; else nothing."""
        last = self.role[-1] if self.role else ""
        return last if last in ("v_row", "v_col") else ""


class Owners:
    """Finds the parameters that leaves belong to, by path and then by shape."""

    def __init__(self, shapes: Dict[str, Shape]) -> None:
        """Takes the shapes of all parameters that are known, by path."""
        self._shapes = shapes
        self._named: dict[Names, list[str]] = {}
        self._bare: dict[Names, list[str]] = {}
        for path in shapes:
            for names in _unwrapped(tuple(path.split("/"))):
                self._enter(names, path)
        if list(shapes) == [_ALONE]:
            self._named[()] = [_ALONE]

    def _enter(self, names: Names, path: str) -> None:
        self._named.setdefault(names, []).append(path)
        if len(names) > 1 and names[0] in _COLLECTIONS:
            self._enter(names[1:], path)
        elif len(names) > 1 and names[0].isdecimal():  # (params, statistics)
            self._bare.setdefault(names[1:], []).append(path)

    def find(self, names: Names, shape: Shape | None) -> list[Owner]:
        """What a leaf can belong to, with a shape that it can have then.

        If only its path is right, all that have that path.

        Args:
            names: its path.
            shape: its shape; None of a sharding, which has none.
        """
        found = self._longest(names)
        if not found and len(shape or ()) == 1 and names and names[-1].isdecimal():
            along = int(names[-1])  # SM3 has a leaf for each axis
            found = [
                dataclasses.replace(owner, along=along)
                for owner in self._longest(names[:-1])
            ]
        fitting = [owner for owner in found if self.alignments(owner, shape)]
        if not fitting and [owner.path for owner in found] == [_ALONE]:
            return []  # every path ends in nothing
        return fitting or found

    def alignments(self, owner: Owner, shape: Shape | None) -> list[Axes]:
        """The ways in which the axes of a leaf can be those of its owner.

        Args:
            owner: what it belongs to.
            shape: of the leaf; None of a sharding.
        """
        whole = self._shapes[owner.path]
        if owner.along is not None:
            one = owner.along < len(whole) and shape == (whole[owner.along],)
            return [(owner.along,)] if one else []
        if owner.factor and len(whole) > 1:
            axes = factor_axes(owner.factor, whole)
            if shape in (None, tuple(whole[axis] for axis in axes)):
                return [axes]
        return list(_alignments(whole if shape is None else shape, whole))

    def _longest(self, names: Names) -> list[Owner]:
        """All whose path is the longest end of a leaf's."""
        for start in range(len(names) + 1):
            role = names[:start]
            for tail in _unwrapped(names[start:]):
                paths = self._named.get(tail, [])
                if not paths and not (role and role[-1].isdecimal()):
                    paths = self._bare.get(tail, [])
                if paths:
                    return [Owner(path, role) for path in paths]
        return []


def factor_dims(shape: Shape) -> tuple[int, int]:
    """The second largest and the largest axis, which adafactor averages over.

    As `optax.scale_by_factored_rms` chooses them, ties included.

    >>> factor_dims((3, 512, 256))
    (2, 1)
    """
    order = np.argsort(shape)
    return int(order[-2]), int(order[-1])


def factor_axes(factor: str, shape: Shape) -> tuple[int, ...]:
    """The axes of a parameter that one of adafactor's moments has.

    >>> factor_axes("v_row", (128, 256)), factor_axes("v_col", (128, 256))
    ((0,), (1,))
    """
    second, largest = factor_dims(shape)
    gone = largest if factor == "v_row" else second
    return tuple(axis for axis in range(len(shape)) if axis != gone)


def _alignments(shape: Shape, whole: Shape) -> Iterator[Axes]:
    more = len(shape) - len(whole)
    if more >= 0 and shape[more:] == whole:  # the same, or many of them
        yield (None,) * more + tuple(range(len(whole)))
    elif more <= 0:  # averaged over some axes, which may be left with one position
        for axes in itertools.combinations(range(len(whole)), len(shape)):
            pairs = list(zip(axes, shape, strict=True))
            if all(n in (1, whole[axis]) for axis, n in pairs):
                yield tuple(axis if n == whole[axis] else None for axis, n in pairs)


def _unwrapped(names: Names) -> list[Names]:
    """Names, and without the `value` in which nnx keeps every array."""
    inside = len(names) > 1 and names[-1] == "value"
    return [names, names[:-1]] if inside else [names]
