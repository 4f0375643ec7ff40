"""How many units of which groups go, and which of them."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from compiler.passes.prune.importance.importance import Scores

Removed = dict[str, np.ndarray]
"""By the name of a group: the numbers of the units that go, ascending."""

EXACT = 1e-9
"""A share of a count that floating-point numbers miss."""


@dataclasses.dataclass(frozen=True)
class Limits:
    """How many units of a group may be kept.

    Attributes:
        name: of the group.
        size: how many there are.
        before: how many there were at first.
        multiple: what the number kept is a multiple of.
        least: how many are kept at least.
    """

    name: str
    size: int
    before: int
    multiple: int
    least: int

    def kept(self, wanted: int) -> int:
        """The number kept that comes next, if so many should be."""
        wanted = max(wanted, self.least, 1)
        return min(self.size, -(-wanted // self.multiple) * self.multiple)

    def goes(self, wanted: int) -> int:
        """The number that goes, if so many should."""
        return self.size - self.kept(self.size - wanted)

    @property
    def most(self) -> int:
        """How many can go at most."""
        return self.size - self.kept(0)

    @property
    def why(self) -> str:
        """What keeps them."""
        if self.multiple > 1 and self.least < self.size:
            return f"kept are multiples of {self.multiple}"
        return f"at least {max(self.least, 1)} are kept"


@dataclasses.dataclass(frozen=True)
class Scope:
    """Groups whose units are compared with each other.

    Attributes:
        groups: with how many of each may go.
        ratio: the share of their units that goes.
        fixed: whether a rule gives it.
    """

    groups: tuple[Limits, ...]
    ratio: float
    fixed: bool

    @property
    def total(self) -> int:
        """How many units they had at first."""
        return sum(group.before for group in self.groups)

    def removed(self, scores: Scores) -> Removed:
        """The units that go: by ascending score, the last of equal ones first."""
        gone = self.total - sum(group.size for group in self.groups)
        count = math.floor(self.ratio * self.total + EXACT) - gone
        worst = {g.name: _ascending(scores[g.name]) for g in self.groups}
        # What a group has to keep does not count: others give more instead.
        free = [scores[g.name][worst[g.name][: g.most]] for g in self.groups]
        owner = np.repeat(np.arange(len(free)), list(map(len, free)))
        first = owner[_ascending(np.concatenate(free))][: max(count, 0)]
        taken = np.bincount(first, minlength=len(self.groups))
        return {
            group.name: np.sort(worst[group.name][: group.goes(int(number))])
            for group, number in zip(self.groups, taken, strict=True)
        }


def _ascending(scores: np.ndarray) -> np.ndarray:
    """Places by rising score, the last of equal ones first."""
    return len(scores) - 1 - np.argsort(scores[::-1], kind="stable")
