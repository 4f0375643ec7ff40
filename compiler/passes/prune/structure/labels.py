"""Labels: for each index of an axis, the atoms it goes with.

An index disappears if any atom of its label is removed. A vector of labels has a row
for each index of one axis; None is an axis that stays whole. Three operations carry
the analysis: `unify` (two axes are one), `merge` (axes become one, row by row) and
`split` (one axis becomes several). Each only adds equalities between labels, so one
pass through a program is sound, loops included.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np

from compiler.passes.prune.structure.atoms import STAYS, Array, Atoms

Vector: TypeAlias = "Array | None"
Axes: TypeAlias = "tuple[Vector, ...]"

_ROUNDS = 16
"""How often two vectors are compared before what still differs is frozen."""


class Labels:
    """Vectors of labels over one set of atoms."""

    def __init__(self) -> None:
        self.atoms = Atoms()
        self._random = np.random.default_rng(0)
        self._weights = np.zeros(0, np.uint64)

    def fresh(self, extent: Any, *, family: bool = False) -> Vector:
        """An axis whose indices are free; whole if its extent is one or a symbol."""
        if not isinstance(extent, int | np.integer) or extent <= 1:
            return None
        return self.atoms.fresh(int(extent), family=family)[:, None]

    def freeze(self, vector: Vector) -> None:
        """Lets every index stay."""
        if vector is not None:
            own = vector if self._whole(vector) else self.atoms.resolve(vector)
            self.atoms.freeze(own.ravel())

    def is_live(self, vector: Vector) -> bool:
        """Whether any index may still be removed."""
        return vector is not None and self.atoms.resolve(vector).shape[1] > 0

    def unify(self, one: Vector, other: Vector) -> Vector:
        """Makes the labels of two axes equal, index by index."""
        if one is other:
            return one
        if one is None or other is None:
            self.freeze(other if one is None else one)
            return None
        if one.shape == other.shape and np.array_equal(one, other):
            return one
        if self._whole(one) and self._whole(other):
            self.atoms.union(one[:, 0], other[:, 0])
            return one
        for _ in range(_ROUNDS):
            left, right = self._difference(one, other)
            if not left.any() and not right.any():
                return one
            if not self._match(left, right):
                self._settle(left, right)
        left, right = self._difference(one, other)
        self.atoms.freeze(np.concatenate([left.ravel(), right.ravel()]))
        return one

    def merge(self, vectors: Sequence[Vector], extents: Sequence[int]) -> Vector:
        """The axis that several become, the first of them slowest."""
        total = int(np.prod(extents))
        columns, before = [], 1
        for vector, extent in zip(vectors, extents, strict=True):
            if vector is not None:
                after = total // (before * extent)
                spread = np.repeat(vector, after, axis=0)
                columns.append(np.tile(spread, (before, 1)))
            before *= extent
        return np.concatenate(columns, 1) if columns else None

    def split(self, vector: Vector, extents: Sequence[int]) -> list[Vector]:
        """The axes that one becomes, the first of them slowest."""
        if len(extents) == 1:
            return [vector]
        first, rest = self._split(vector, extents[0], int(np.prod(extents[1:])))
        return [first, *self.split(rest, extents[1:])]

    def _whole(self, vector: Array) -> bool:
        """Whether each index goes with one atom that stands for itself."""
        return vector.shape[1] == 1 and not self.atoms.is_split(vector)

    def _difference(self, one: Array, other: Array) -> tuple[Array, Array]:
        """The atoms of each label that the other lacks."""
        left, right = self._distinct(one), self._distinct(other)
        same = left[:, :, None] == right[:, None, :]
        return (
            np.where(same.any(2), STAYS, left),
            np.where(same.any(1), STAYS, right),
        )

    def _distinct(self, vector: Array) -> Array:
        """Resolved labels with each atom once in a row."""
        found = self.atoms.resolve(vector)
        for column in range(1, found.shape[1]):
            twice = (found[:, :column] == found[:, column : column + 1]).any(1)
            found[:, column] = np.where(twice, STAYS, found[:, column])
        return found

    def _match(self, left: Array, right: Array) -> bool:
        """Makes the factors of two products one that stand at the same indices."""
        rows = ((left > STAYS).sum(1) > 1) & ((right > STAYS).sum(1) > 1)
        if not rows.any():
            return False
        (one, at_one), (other, at_other) = self._supports(left), self._supports(right)
        _, first, second = np.intersect1d(at_one, at_other, return_indices=True)
        return self.atoms.union(one[first], other[second])

    def _supports(self, labels: Array) -> tuple[Array, Array]:
        """The atoms, and a number that tells at which indices each stands."""
        rows, columns = np.nonzero(labels)
        atoms, where = np.unique(labels[rows, columns], return_inverse=True)
        if len(self._weights) < len(labels):
            limit = np.iinfo(np.uint64).max
            size = 2 * len(labels)
            self._weights = self._random.integers(0, limit, size, np.uint64)
        sums = np.zeros(len(atoms), np.uint64)
        np.add.at(sums, where, self._weights[rows])
        order = np.argsort(sums, kind="stable")
        ranks = np.arange(len(sums)) - np.searchsorted(sums[order], sums[order])
        sums[order] += ranks.astype(np.uint64)
        return atoms, sums

    def _settle(self, left: Array, right: Array) -> None:
        """Makes what differs equal, by as little as is needed."""
        ones, others = (left > STAYS).sum(1), (right > STAYS).sum(1)
        gone = (ones == 0) != (others == 0)
        single = (ones == 1) & (others == 1)
        if gone.any() or single.any():
            self.atoms.freeze(np.concatenate([left[gone], right[gone]], 1).ravel())
            pairs = (x[single].max(1, initial=STAYS) for x in (left, right))
            self.atoms.union(*pairs)
            return
        forward, backward = ones == 1, others == 1
        if forward.any():
            self._refine(left[forward].max(1), right[forward])
        elif backward.any():
            self._refine(right[backward].max(1), left[backward])
        else:
            self.atoms.freeze(np.concatenate([left.ravel(), right.ravel()]))

    def _refine(self, atoms: Array, parts: Array) -> None:
        """Lets atoms stand for the products they meet."""
        circular = np.isin(atoms, parts)
        if circular.all():
            self.atoms.freeze(np.concatenate([atoms, parts.ravel()]))
            return
        atoms, parts = atoms[~circular], parts[~circular]
        own, first, again = np.unique(atoms, return_index=True, return_inverse=True)
        # What is met twice is one product: factors in the same column are one.
        self.atoms.union(parts.ravel(), parts[first][again].ravel())
        order = np.argsort(parts[first] == STAYS, axis=1, kind="stable")
        packed = np.take_along_axis(parts[first], order, 1)
        for width in np.unique((packed > STAYS).sum(1)):
            rows = (packed > STAYS).sum(1) == width
            if width > 1:
                self.atoms.refine(own[rows], packed[rows, :width])
            else:
                self.atoms.union(own[rows], packed[rows, 0])

    def _split(self, vector: Vector, rows: int, columns: int) -> tuple[Vector, Vector]:
        if vector is None or rows == 1:
            return None, vector
        if columns == 1:
            return vector, None
        slow, fast = [], []
        for label in self.atoms.resolve(vector).T:
            square = label.reshape(rows, columns)
            if (square == square[:, :1]).all():
                slow.append(square[:, 0])
            elif (square == square[:1]).all():
                fast.append(square[0])
            else:
                one, other = self._factor(square)
                slow.extend(one)
                fast.extend(other)
        return (
            np.stack(slow, 1) if slow else None,
            np.stack(fast, 1) if fast else None,
        )

    def _factor(self, square: Array) -> tuple[list[Array], list[Array]]:
        """The factors of a column of labels that is no product yet."""
        row, column = _classes(square), _classes(square.T)
        pair = row[:, None] * (column.max() + 1) + column[None, :]
        both = np.stack([square.ravel(), pair.ravel()], 1)
        counts = [len(np.unique(both[:, i])) for i in (0, 1)]
        if counts[0] == counts[1] == len(np.unique(both, axis=0)) and square.all():
            slow = self.atoms.fresh(int(row.max()) + 1, family=True)
            fast = self.atoms.fresh(int(column.max()) + 1, family=True)
            atoms, where = np.unique(square, return_index=True)
            parts = np.stack(
                [
                    slow[row[where // square.shape[1]]],
                    fast[column[where % square.shape[1]]],
                ],
                1,
            )
            self.atoms.refine(atoms, parts)
            return [slow[row]], [fast[column]]
        if square.shape[1] >= square.shape[0]:  # the larger factor stays prunable
            self.atoms.union(np.tile(square[0], len(square)), square.ravel())
            return [], [square[0]]
        self.atoms.union(np.repeat(square[:, 0], square.shape[1]), square.ravel())
        return [square[:, 0]], []


def _classes(square: Array) -> Array:
    """For each row of a matrix, the number of its kind."""
    if len(np.unique(square)) == square.size:
        return np.arange(len(square))
    return np.unique(square, axis=0, return_inverse=True)[1].ravel()
