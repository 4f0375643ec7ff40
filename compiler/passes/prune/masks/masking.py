"""What passes that put zeros into weights have in common."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Container, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

import jax
import numpy as np

from compiler.errors import NonFiniteWeightsError, VariablesMismatchError
from compiler.graph import Graph, is_abstract
from compiler.passes.base import Pass, Rewrite
from compiler.passes.prune.masks import beside
from compiler.passes.prune.masks.bits import Mask
from compiler.passes.prune.masks.patterns import (
    Aim,
    Pattern,
    checked_pattern,
    checked_rules,
    checked_sparsity,
)
from compiler.passes.prune.masks.plan import Plan, is_mask, mask_path, plan
from compiler.rewrite import Event, Events

if TYPE_CHECKING:
    from compiler.program import Program

Values = dict[str, Any]
"""Arrays of numpy by path."""

_DISTRIBUTIONS = ("uniform", "global", "erk")


@dataclasses.dataclass(frozen=True, eq=False)
class Chosen:
    """What was decided for one program.

    Attributes:
        masks: by the path of a weight, what is kept of it.
        removed: by path, how many numbers become zero that were not.
        notes: by path, what to tell of it.
        values: by path, weights that change besides.
        found: what products are given, where that was measured.
    """

    masks: Mapping[str, Mask]
    removed: Mapping[str, int]
    notes: Mapping[str, str] = dataclasses.field(default_factory=dict)
    values: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    found: Any = None


@dataclasses.dataclass(frozen=True)
class Masking(Pass):
    """Puts zeros into weights; the program keeps its shapes.

    A subclass chooses which numbers (`choose`).

    Attributes:
        sparsity: the share of zeros of the weights no rule is about.
        distribution: how it is spread over them: `"uniform"` (each gets it),
            `"global"` (all their numbers compete), `"erk"` (by their shapes).
        pattern: where zeros may stand: None, `"n:m"`, or block sizes.
        rules: globs, and what they ask for; the first that matches counts.
        train: whether masks become leaves of the program.
        decided: what was chosen.
    """

    sparsity: float | None = None
    distribution: str = "uniform"
    pattern: Pattern = None
    rules: tuple[tuple[str, Aim], ...] = ()
    train: bool = False
    decided: Chosen | None = dataclasses.field(
        default=None, init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        pattern = checked_pattern(self.pattern)
        share = checked_sparsity(self.sparsity, pattern, self.name)
        for name, value in (
            ("pattern", pattern),
            ("sparsity", share),
            ("rules", checked_rules(self.rules)),
        ):
            object.__setattr__(self, name, value)
        if self.distribution not in self.distributions:
            raise ValueError(
                f"{self.name}: expected a distribution of {self.distributions}, got "
                f"{self.distribution!r}."
            )
        if self.pattern is not None and self.distribution == "global":
            raise ValueError(
                f"{self.name}: pattern {self.pattern!r} is chosen in each weight for "
                "itself. Leave distribution='global' out."
            )
        if isinstance(self.pattern, str) and self.distribution == "erk":
            raise ValueError(
                f"{self.name}: pattern {self.pattern!r} leaves nothing to distribute. "
                "Leave distribution='erk' out."
            )

    @property
    def name(self) -> str:
        """What it is called, in errors."""
        raise NotImplementedError

    @property
    def distributions(self) -> tuple[str, ...]:
        """The distributions it knows."""
        return _DISTRIBUTIONS

    def choose(self, program: Program, chosen: Plan, values: Values) -> Chosen:
        """Chooses the masks of the weights that get zeros."""
        raise NotImplementedError

    def planned(self, graph: Graph) -> Plan:
        """What becomes of each leaf."""
        share = 0.0 if self.sparsity is None else self.sparsity
        return plan(graph, share, self.distribution, self.pattern, self.rules)

    def decide(self, program: Program) -> Pass:
        """Chooses what is kept, from the weights."""
        chosen = self.planned(program.graph)
        values = _values(self.name, program, chosen)
        decided = self.choose(program, chosen, values) if values else Chosen({}, {})
        return self.with_choice(decided)

    def with_choice(self, decided: Chosen) -> Self:
        """The pass with what was decided."""
        made = dataclasses.replace(self)
        object.__setattr__(made, "decided", decided)
        return made

    def rewrite(self, graph: Graph) -> Rewrite:
        """Zeroes what is not kept, and puts masks beside weights that are trained."""
        chosen, decided = self.planned(graph), self.decided or Chosen({}, {})
        renamed = {path: path for path in graph.paths}
        new: list[str] = []
        if self.train:
            renamed = beside.names(graph)
            new = _trained(graph, [renamed[w.path] for _, w in chosen.chosen])
        fired = _fired(
            graph, chosen, decided, {p for p in renamed if renamed[p] in new}
        )
        skipped = [Event(d.leaf.path, d.why) for d in chosen.decisions if d.why]
        skipped += [Event(glob, "matched nothing") for glob in chosen.unused]
        events = Events(fired, skipped)
        if not fired:
            return Rewrite(graph, None, events)
        prepare = functools.partial(_prepared, graph, decided, renamed, tuple(new))
        made = beside.masked(graph, new) if new else graph
        return Rewrite(made, prepare, events)


def _trained(graph: Graph, paths: Sequence[str]) -> list[str]:
    """Which of these weights get a mask beside them: those of params without one."""
    own = [path for path in paths if path.startswith("params/")]
    return [path for path in own if mask_path(path) not in graph.paths]


def _fired(
    graph: Graph, chosen: Plan, decided: Chosen, trained: Container[str]
) -> list[Event]:
    """What becomes of the weights that change."""
    found = []
    for _, weight in chosen.chosen:
        path, mask = weight.path, decided.masks.get(weight.path)
        if mask is None or not (decided.removed[path] or path in trained):
            continue
        zeros = mask.size - int(mask.array().sum())
        told = [f"{zeros} of {mask.size} zero ({zeros / mask.size:.1%})"]
        if path in decided.notes:
            told.append(decided.notes[path])
        if path in trained:
            told.append("the mask is a leaf, and holds them in training")
        if weight.derived and mask_path(path) not in graph.paths:
            told.append("arithmetic before its product may fill them")
        found.append(Event(path, "; ".join(told)))
    return found


def chosen_by_masks(masks: Mapping[str, Any], before: Values, **others: Any) -> Chosen:
    """What was decided, where masks are known as arrays."""
    removed = {
        path: int(np.count_nonzero(before[path][~mask])) for path, mask in masks.items()
    }
    packed = {path: Mask.of(path, mask) for path, mask in masks.items()}
    return Chosen(packed, removed, **others)


def _values(name: str, program: Program, chosen: Plan) -> Values:
    """The weights that get zeros, as they are used."""
    given = dict(zip(program.graph.paths, program.values, strict=True))
    found: Values = {}
    for _, weight in chosen.chosen:
        value = given[weight.path]
        if is_abstract(value):
            raise VariablesMismatchError(
                f"{name}: expected a program with arrays to choose from, got one that "
                "was traced on shapes alone. Give it some with "
                "program.with_variables(...)."
            )
        array = np.asarray(jax.device_get(value))
        bad = array.size - int(np.isfinite(array.astype(np.float32)).sum())
        if bad:
            raise NonFiniteWeightsError(
                f"{weight.path}: expected finite weights, got {bad} infinite or nan of "
                f"{array.size}. Mend them, or leave the leaf out with "
                f"ignore={weight.path!r}."
            )
        mask = given.get(mask_path(weight.path))
        if mask is not None and is_mask(program.graph, mask_path(weight.path)):
            array = np.where(np.asarray(mask), array, np.zeros((), array.dtype))
        found[weight.path] = array
    return found


def _prepared(
    graph: Graph,
    decided: Chosen,
    renamed: Mapping[str, str],
    new: Sequence[str],
    leaves: Sequence[Any],
) -> list[Any]:
    """The leaves with zeros, those that are masks narrowed, then the new masks."""
    given = dict(zip(graph.paths, leaves, strict=True))
    fresh = {}
    for path, mask in decided.masks.items():
        bits, before = mask.traced(), mask_path(path)
        value = decided.values.get(path, given[path])
        given[path] = beside.zeroed(jax.numpy.asarray(value), bits)
        fresh[renamed[path]] = bits
        if path.startswith("params/") and before in given:
            given[before] = given[before] & bits
    return [*given.values(), *(fresh[path] for path in new)]
