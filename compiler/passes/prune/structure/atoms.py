"""Atoms: what can be removed, which of them are one and the same, and why."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np

Array: TypeAlias = "np.ndarray[Any, Any]"

STAYS = 0
"""The atom that is never removed; what is one with it is frozen."""


class Atoms:
    """A union-find over integers that grows, on whole arrays at a time.

    An atom may also stand for two others, both of which must stay for it to stay: so an
    axis becomes a product of two. Atom 0 stays for ever.

    Attributes:
        cause: where in the program what is done now has its reason; kept with it.
        count: how many atoms there are.
    """

    def __init__(self) -> None:
        self.cause = -1
        self.count = 1
        self._parent = np.zeros(1024, np.int64)
        self._parts = np.zeros((1024, 2), np.int64)
        self._family = np.zeros(1024, np.int64)
        self._families = 0
        self.ties: list[tuple[Array, Array, int]] = []

    def fresh(self, count: int, *, family: bool = False) -> Array:
        """New atoms.

        Args:
            count: how many.
            family: whether they are of a kind of their own, that no group mixes with
                others; those that only follow what they meet are not.
        """
        start, self.count = self.count, self.count + count
        while self.count > len(self._parent):
            self._grow()
        made = np.arange(start, self.count)
        self._parent[made] = made
        self._families += family
        self._family[made] = self._families if family else 0
        return made

    def find(self, atoms: Array) -> Array:
        """The one that stands for each atom's class."""
        found = self._parent[atoms]
        while not np.array_equal(higher := self._parent[found], found):
            found = higher
        self._parent[atoms] = found
        return found

    def resolve(self, labels: Array) -> Array:
        """Labels in terms of atoms that stand for nothing else: `[indices, atoms]`.

        Zeros fill up rows with fewer atoms; there may be no column at all.
        """
        found = self.find(labels if labels.ndim == 2 else labels[:, None])
        while (split := self._parts[found, 0] > 0).any():
            columns = split.any(0)
            parts = self._parts[found]
            first = np.where(split, parts[..., 0], found)
            second = np.where(split, parts[..., 1], STAYS)[:, columns]
            found = self.find(np.concatenate([first, second], 1))
        return found[:, found.any(0)]

    def is_split(self, labels: Array) -> bool:
        """Whether any of some atoms stands for others."""
        return bool((self._parts[self.find(labels), 0] > 0).any())

    def parts(self, atom: int) -> list[int]:
        """The atoms that one stands for, none if it stands for itself."""
        found = self._parts[self.find(np.asarray([atom]))[0]]
        return found.tolist() if found[0] else []

    def union(self, one: Array, other: Array) -> bool:
        """Makes atoms one, pair by pair; whether that changed anything."""
        left, right = self.find(one), self.find(other)
        new = left != right
        if not new.any():
            return False
        self.ties.append((one[new], other[new], self.cause))
        left, right = left[new], right[new]
        while len(left):
            low, high = np.minimum(left, right), np.maximum(left, right)
            self._parent[high] = low
            left, right = self.find(low), self.find(high)
            differ = left != right
            left, right = left[differ], right[differ]
        return True

    def freeze(self, atoms: Array) -> None:
        """Makes atoms stay for ever."""
        flat = atoms[atoms > STAYS]
        self.union(flat, np.full_like(flat, STAYS))

    def refine(self, atoms: Array, parts: Array) -> None:
        """Makes each of some different atoms stand for several others, `[n, parts]`."""
        for column in range(parts.shape[1] - 1, 1, -1):
            together = self.fresh(len(parts))
            self._parts[together] = parts[:, column - 1 : column + 1]
            parts = np.concatenate([parts[:, : column - 1], together[:, None]], 1)
        self._parts[self.find(atoms)] = parts

    def families(self) -> tuple[Array, Array]:
        """Which families each class has members of, as pairs (class, family)."""
        everyone = np.arange(self.count)
        known = everyone[self._family[: self.count] > 0]
        pairs = self.find(known) * (self._families + 1) + self._family[known]
        return np.divmod(distinct(pairs), self._families + 1)

    def _grow(self) -> None:
        more = len(self._parent)
        self._parent = np.concatenate([self._parent, np.zeros(more, np.int64)])
        self._family = np.concatenate([self._family, np.zeros(more, np.int64)])
        self._parts = np.concatenate([self._parts, np.zeros((more, 2), np.int64)])


def distinct(numbers: Array) -> Array:
    """The different ones of some numbers, ascending; they often are in order already.

    `np.unique` puts them into a hash table first, which takes longer.
    """
    found = np.sort(numbers, kind="stable")
    return found[np.diff(found, prepend=found[:1] - 1) > 0]
