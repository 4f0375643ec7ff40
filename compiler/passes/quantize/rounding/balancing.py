"""What passes that divide inputs and multiply weights have in common."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np

from compiler.graph import Graph, Leaf
from compiler.passes.base import Pass, Rewrite
from compiler.passes.quantize.calibrate import Calibration
from compiler.passes.quantize.rounding.accompanied import Report
from compiler.passes.quantize.rounding.groups import (
    Group,
    Member,
    balanced,
    groups,
    member,
)
from compiler.passes.quantize.rounding.measured import seen, statistics_of
from compiler.rewrite import Event, Events
from compiler.sites import WeightSite

if TYPE_CHECKING:
    from compiler.program import Program


@dataclasses.dataclass(frozen=True, eq=False)
class Factors:
    """What was decided for one program.

    Attributes:
        found: what its products are given.
        factors: by the path of the first weight of a group, `[stack, features]`.
        notes: by the same path, what to tell of it.
        left: by the path of a weight, why it stays as it is.
    """

    found: Calibration
    factors: dict[str, Any]
    notes: dict[str, str]
    left: dict[str, str]


@dataclasses.dataclass(frozen=True)
class Balancing(Pass):
    """Divides inputs of products by factors, and multiplies weights by them.

    A subclass says which leaves (`chosen`) and which factors (`measured`).

    Attributes:
        batches: inputs of the program to measure on, or a [`Calibration`][].
        decided: what was measured, and the factors.
    """

    batches: Any = dataclasses.field(
        default=None, repr=False, compare=False, kw_only=True
    )
    decided: Factors | None = dataclasses.field(
        default=None, init=False, repr=False, compare=False
    )

    @property
    def name(self) -> str:
        """What it is called, in errors."""
        raise NotImplementedError

    @property
    def hessians(self) -> bool:
        """Whether it needs Hessians."""
        return False

    def chosen(self, graph: Graph) -> list[tuple[Leaf, Sequence[WeightSite], str]]:
        """Leaves with their uses, and why one stays, if it does."""
        raise NotImplementedError

    def measured(
        self, graph: Graph, group: Group, values: Mapping[str, Any], found: Any
    ) -> tuple[Any, str]:
        """The factors of a group, `[stack, features]`, and what to tell of them."""
        raise NotImplementedError

    def decide(self, program: Program) -> Pass:
        """Measures what products are given, and chooses factors."""
        graph = program.graph
        together = self._groups(graph, Events(), {})
        if not together:
            return dataclasses.replace(self, batches=None)
        found = seen(self.name, program, self.batches, self.hessians, self.decided)
        values = dict(zip(graph.paths, program.values, strict=True))
        made = Factors(found, {}, {}, {})
        for group in together:
            each = {m.path: statistics_of(m.path, found.sites) for m in group.members}
            why = next((s for s in each.values() if isinstance(s, str)), None)
            if why is not None:
                made.left.update(dict.fromkeys(each, why))
                continue
            factors, note = self.measured(graph, group, values, each)
            made.factors[group.path] = np.asarray(factors)
            made.notes[group.path] = note
        new = dataclasses.replace(self, batches=None)
        object.__setattr__(new, "decided", made)
        return new

    def rewrite(self, graph: Graph) -> Rewrite:
        """Divides the inputs; a leaf of inverse factors stands beside each weight."""
        events = Events()
        left = self.decided.left if self.decided else {}
        together = self._groups(graph, events, left)
        if not together:
            return Rewrite(graph, None, events)
        owners = {m.path: group for group in together for m in group.members}
        names, jaxpr = balanced(graph, owners, Report())
        for group in together:
            events.fired.append(self._told(group))
        new = graph.with_leaves(names, jaxpr)
        return Rewrite(new, functools.partial(self._prepared, graph, owners), events)

    def _groups(
        self, graph: Graph, events: Events, left: Mapping[str, str]
    ) -> tuple[Group, ...]:
        members = []
        for leaf, sites, why in self.chosen(graph):
            if leaf.path in graph.carried:
                why = "returned by the function, moved: it has to stay what it is"
            found = left.get(leaf.path) or why or member(leaf, sites)
            if isinstance(found, Member):
                members.append(found)
            else:
                events.skipped.append(Event(leaf.path, found))
        return groups(graph, members, events)

    def _prepared(
        self, graph: Graph, owners: Mapping[str, Group], leaves: Sequence[Any]
    ) -> list[Any]:
        """Weights times factors; beside the first of each group their inverse."""
        given = dict(zip(graph.paths, leaves, strict=True))
        inverse = {
            group.path: self._inverse(group) for group in dict.fromkeys(owners.values())
        }
        found: list[Any] = []
        for path, value in given.items():
            group = owners.get(path)
            if group is None:
                found.append(value)
                continue
            own = next(m for m in group.members if m.path == path)
            wide = np.promote_types(np.float32, value.dtype)
            # What is stored may be rounded; the weight makes up for what it is.
            factors = own.on_leaf(1 / inverse[group.path].astype(wide))
            scaled = value.astype(wide) * jnp.broadcast_to(factors, value.shape)
            found.append(scaled.astype(value.dtype))
            if path == group.path:
                found.append(inverse[path])
        return found

    def _inverse(self, group: Group) -> Any:
        spec = group.spec
        if self.decided is None:
            return jnp.ones(spec.shape, spec.dtype)
        factors = jnp.asarray(self.decided.factors[group.path])
        return jnp.reshape(1 / factors, spec.shape).astype(spec.dtype)

    def _told(self, group: Group) -> Event:
        count = math.prod(group.members[0].extents)
        text = f"inputs divided by {count} factors"
        if len(group.members) > 1:
            others = ", ".join(m.path for m in group.members[1:])
            text += f", shared with {others}"
        note = self.decided.notes.get(group.path) if self.decided else None
        return Event(group.path, f"{text}; {note}" if note else text)
