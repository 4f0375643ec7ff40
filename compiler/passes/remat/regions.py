"""Partitions equations into regions that can each be computed as one.

Equations of one key belong together. They can be computed together unless a value
leaves them and comes back: through other equations, or through the equations of
another region, of which the same holds. Where it does, a new region begins.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from typing import Any

from compiler import jaxprs


class Regions:
    """The regions of a jaxpr's equations, and an order to compute them in.

    Attributes:
        members: for each region the positions of its equations, in order.
        owner: for the position of an equation its region.
    """

    def __init__(self, jaxpr: jaxprs.Jaxpr, keys: Sequence[Hashable | None]) -> None:
        """Partitions; equations with the key None stay by themselves."""
        self.members: list[list[int]] = []
        self.owner: dict[int, int] = {}
        self._equations = jaxprs.equations(jaxpr)
        self._made: dict[Any, int] = {}
        self._after: list[int] = []  # for each region, bits of those it comes after
        self._depends: dict[Any, int] = {}  # the same for variables
        self._effects = 0
        current: dict[Hashable, int] = {}
        for place, key in enumerate(keys):
            if key is None:
                self._pass_by(place)
            else:
                current[key] = self._join(place, current.get(key))

    def _pass_by(self, place: int) -> None:
        """An equation of its own depends on what its operands depend on."""
        equation = self._equations[place]
        before = self._before(place, None)
        if equation.effects:  # effects keep their order
            before = self._effects = before | self._effects
        self._depends.update(dict.fromkeys(equation.outvars, before))

    def _join(self, place: int, region: int | None) -> int:
        """Puts an equation into a region, or a new one if it may not be there."""
        before = self._closure(self._before(place, region))
        if region is None or before >> region & 1:
            region = len(self.members)
            self.members.append([])
            self._after.append(0)
            before = self._closure(self._before(place, region))
        self.members[region].append(place)
        self.owner[place] = region
        if before & ~self._after[region]:
            for other, after in enumerate(self._after):
                if other == region or after >> region & 1:
                    self._after[other] = after | before
        outvars = self._equations[place].outvars
        self._depends.update(dict.fromkeys(outvars, 1 << region))
        self._made.update(dict.fromkeys(outvars, region))
        return region

    def _before(self, place: int, region: int | None) -> int:
        """The regions an equation's operands from outside its own depend on."""
        before = 0
        for var in jaxprs.variables(self._equations[place].invars):
            if region is None or self._made.get(var) != region:
                before |= self._depends.get(var, 0)
        return before

    def _closure(self, regions: int) -> int:
        """With all that the regions come after."""
        found = regions
        while regions:
            lowest = regions & -regions
            found |= self._after[lowest.bit_length() - 1]
            regions ^= lowest
        return found

    def order(self) -> Iterator[list[int]]:
        """The equations, those of a region together, each after what it reads."""
        parts = [
            self.members[self.owner[i]] if i in self.owner else [i]
            for i in range(len(self._equations))
        ]
        made = {v: i for i, e in enumerate(self._equations) for v in e.outvars}
        effects = [i for i, e in enumerate(self._equations) if e.effects]
        earlier = dict(zip(effects[1:], effects, strict=False))
        done: set[int] = set()
        waiting = [part[0] for part in sorted(parts, key=lambda part: -part[-1])]
        while waiting:
            part = parts[waiting[-1]]
            if part[0] in done:
                waiting.pop()
                continue
            reads = {
                v for i in part for v in jaxprs.variables(self._equations[i].invars)
            }
            needs = {made[v] for v in reads if v in made}
            needs |= {earlier[i] for i in part if i in earlier}
            missing = {parts[i][0] for i in needs} - done - {part[0]}
            if missing:
                waiting.extend(sorted(missing, reverse=True))
            else:
                done.add(part[0])
                yield part
