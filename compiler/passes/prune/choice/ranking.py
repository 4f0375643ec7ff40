"""Which units go: those that matter least, by group, across groups, or among equals."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from compiler.errors import UnknownPartError
from compiler.passes.prune.choice.naming import check_named, is_named, signature
from compiler.passes.prune.choice.scope import EXACT, Limits, Removed, Scope
from mapping.core import register

if TYPE_CHECKING:
    from compiler.passes.prune.importance.importance import Scores
    from compiler.passes.prune.structure import Group, Structure

ORDERS = ("local", "global", "isomorphic")
KINDS = ("channels", "heads", "head_dim", "experts", "layers")
DEFAULT_KINDS = ("channels", "heads")


@register("value", "prune_ranking")
@dataclasses.dataclass(frozen=True)
class Ranking:
    """How many units go, and which are compared with which.

    `"local"` removes the share of each group by itself. `"global"` compares the scores
    of all groups and removes the share of all units, wherever they are. `"isomorphic"`
    does so among groups that are built alike (Fang et al., "Isomorphic Pruning for
    Vision Models", ECCV 2024, https://arxiv.org/abs/2407.04616). Groups that one rule
    names are compared among themselves, with the ratio of that rule.

    At most the ratio is removed: counts are rounded down, and what is kept up to the
    next multiple of `round_to` (a tile or lane of the machine, which costs the same
    when it is not full; the size of a mesh axis). Of equal scores the first are kept.

    Attributes:
        ratio: the share of units that go, in [0, 1].
        order: `"local"`, `"global"` or `"isomorphic"`.
        rules: globs and their ratios; the first that names a group counts. A glob names
            a group by the path of a leaf or layer that makes it, or exactly, as it is
            printed: `"params/conv/kernel:3"`.
        ignore: globs of groups that stay.
        kinds: of groups that are touched: `"channels"`, `"heads"`, `"head_dim"`,
            `"experts"`, `"layers"`.
        round_to: kept channels are a multiple of it; or a number for each kind.
        minimum: how many units every group keeps.
        max_ratio: the most that goes of one group.
        initial: the sizes that groups had, where the ratios are shares of those and
            part of them is gone already.

    Raises:
        ValueError: if a number is out of range.
        UnknownPartError: if there is no such order or kind.

    >>> Ranking(0.5, rules={"head": 0.0}).rules
    (('head', 0.0),)
    """

    ratio: float = 0.5
    order: str = "local"
    rules: tuple[tuple[str, float], ...] = ()
    ignore: tuple[str, ...] = ()
    kinds: tuple[str, ...] = DEFAULT_KINDS
    round_to: int | tuple[tuple[str, int], ...] = 1
    minimum: int = 1
    max_ratio: float = 1.0
    initial: tuple[tuple[str, int], ...] = dataclasses.field(default=(), repr=False)

    def __post_init__(self) -> None:
        for name in ("rules", "round_to", "initial"):
            value = getattr(self, name)
            if not isinstance(value, int):
                object.__setattr__(self, name, _pairs(value))
        for name in ("ignore", "kinds"):
            value = getattr(self, name)
            given = (value,) if isinstance(value, str) else tuple(value)
            object.__setattr__(self, name, given)
        _check(self)

    def at(self, ratio: float) -> Ranking:
        """The same with another ratio; rules keep theirs."""
        return dataclasses.replace(self, ratio=ratio)

    def rank(self, structure: Structure, scores: Scores) -> Removed:
        """The units that go.

        Args:
            structure: whose groups they are.
            scores: by group; one without is left as it is.

        Raises:
            UnknownPathError: if a glob of a rule or of `ignore` names no group.
        """
        removed: Removed = {}
        for scope in self.scopes(structure, scores):
            removed |= scope.removed(scores)
        return {name: units for name, units in removed.items() if len(units)}

    def scopes(self, structure: Structure, scores: Scores) -> list[Scope]:
        """Groups that are compared with each other, with how many of each may go."""
        self._check_names(structure)
        together: dict[object, list[Limits]] = {}
        ratios: dict[object, tuple[float, bool]] = {}
        for number, group in enumerate(structure.groups):
            if self._why_not(group, structure, scores):
                continue
            ratio, place = self._ratio(group, structure)
            key = place, self._key(group, structure, number)
            together.setdefault(key, []).append(self._limits(group))
            ratios[key] = ratio, place is not None
        return [Scope(tuple(own), *ratios[key]) for key, own in together.items()]

    def skipped(self, structure: Structure, scores: Scores) -> list[tuple[str, str]]:
        """The groups that are left as they are, and why; and rules that do nothing."""
        found = []
        for group in structure.groups:
            why = self._why_not(group, structure, scores)
            if why:
                found.append((group.name, why))
        used = {self._ratio(group, structure)[1] for group in structure.groups}
        unused = (g for i, (g, _) in enumerate(self.rules) if i not in used)
        return found + [(glob, "rule unused: others come before it") for glob in unused]

    def left_out(self, group: Group, structure: Structure) -> str:
        """Why a group is not touched, whatever its scores; empty if it is."""
        if group.kind not in self.kinds:
            return f"{group.kind} are not in kinds={self.kinds}"
        if any(is_named(group, glob, structure.graph) for glob in self.ignore):
            return "ignored"
        return ""

    def _why_not(self, group: Group, structure: Structure, scores: Scores) -> str:
        why = self.left_out(group, structure)
        if why:
            return why
        if group.name not in scores:
            return "not scored by this importance"
        if not self._limits(group).most:
            return f"its {group.size} units cannot be fewer: {self._limits(group).why}"
        return ""

    def _ratio(self, group: Group, structure: Structure) -> tuple[float, int | None]:
        """The ratio of a group, and the place of the rule that gives it."""
        for place, (glob, ratio) in enumerate(self.rules):
            if is_named(group, glob, structure.graph):
                return ratio, place
        return self.ratio, None

    def _key(self, group: Group, structure: Structure, number: int) -> object:
        """Equal for groups that are compared."""
        if self.order == "local":
            return number
        return signature(group, structure.graph) if self.order == "isomorphic" else None

    def _limits(self, group: Group) -> Limits:
        before = dict(self.initial).get(group.name, group.size)
        multiple = self.multiple(group.kind)
        least = max(self.minimum, math.ceil(before * (1 - self.max_ratio) - EXACT))
        return Limits(group.name, group.size, before, multiple, least)

    def multiple(self, kind: str) -> int:
        """What the number kept of a kind is a multiple of."""
        if isinstance(self.round_to, int):
            return self.round_to if kind in ("channels", "head_dim") else 1
        return dict(self.round_to).get(kind, 1)

    def _check_names(self, structure: Structure) -> None:
        globs = (*(glob for glob, _ in self.rules), *self.ignore)
        check_named(globs, structure)


def _pairs(value: Mapping[str, float] | Sequence[tuple[str, float]]) -> tuple:
    items = value.items() if isinstance(value, Mapping) else value
    return tuple((str(name), number) for name, number in items)


def _check(ranking: Ranking) -> None:
    if ranking.order not in ORDERS:
        raise UnknownPartError(
            f"ranking: expected one of {', '.join(ORDERS)}, got {ranking.order!r}."
        )
    unknown = [kind for kind in ranking.kinds if kind not in KINDS]
    if unknown:
        raise UnknownPartError(
            f"kinds: expected some of {', '.join(KINDS)}, got {unknown[0]!r}."
        )
    ratios = {"ratio": ranking.ratio, "max_ratio": ranking.max_ratio}
    ratios |= {f"rules[{glob!r}]": ratio for glob, ratio in ranking.rules}
    for name, ratio in ratios.items():
        if not 0 <= ratio <= 1:
            raise ValueError(f"{name}: expected a share in [0, 1], got {ratio!r}.")
    counts = {"minimum": ranking.minimum}
    if isinstance(ranking.round_to, int):
        counts["round_to"] = ranking.round_to
    else:
        counts |= {f"round_to[{kind!r}]": n for kind, n in ranking.round_to}
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"{name}: expected at least 1, got {count!r}.")
