"""How much memory a program holds at most, from when each value is last used."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from compiler.cost.flow import Region, Step, Value, clusters
from compiler.cost.primitives import IN_PLACE
from compiler.errors import InputMismatchError
from compiler.graph import Graph


def donated(graph: Graph, donate: Sequence[str | int]) -> list[bool]:
    """For each input of the graph's jaxpr, whether its memory may be used again.

    Args:
        graph: takes leaves and then flat inputs.
        donate: `"variables"`, `"inputs"`, or places of inputs.

    Raises:
        InputMismatchError: if it names anything else.
    """
    places = _places(graph)
    for name in [donate] if isinstance(donate, str) else donate:
        if name not in ("variables", "inputs") and name not in places:
            raise InputMismatchError(
                f'donate: expected "variables", "inputs" or the place of an input, '
                f'got {name!r}. Write donate=("variables",) for a training step.'
            )
    given = set(donate)
    return ["variables" in given] * len(graph.leaves) + [
        "inputs" in given or place in given for place in places
    ]


def peak(
    region: Region, donate: Sequence[bool], *, fused: bool
) -> tuple[int, Counter[str]]:
    """The most bytes held at one moment, and by which paths they were made.

    Args:
        region: of the whole program.
        donate: for each of its inputs, whether it is freed after its last use.
        fused: whether what is fused away takes no memory, and results may be written
            over operands that are used up.
    """
    held = [v for v, gone in zip(region.inputs, donate, strict=True) if not gone]
    free = [v for v, gone in zip(region.inputs, donate, strict=True) if gone]
    base: Counter[str] = Counter()
    for value in (*held, *region.constants):
        base[value.path] += value.bytes
    highest, live = _Life(region, fused).peak(free)
    return base.total() + highest, base + live


class _Life:
    """When the values of a region are made, and when they are last used."""

    def __init__(self, region: Region, fused: bool) -> None:
        self.region, self.fused = region, fused
        alone = [frozenset([i]) for i in range(len(region.steps))]
        self.at = clusters(region) if fused else alone
        self.last: dict[Value, int] = {}
        self.operands: dict[int, set[Value]] = {}
        for place, step in enumerate(region.steps):
            for value in step.reads:
                self.last[value] = max(self.last.get(value, 0), *self.at[place])
            for kernel in self.at[place]:
                self.operands.setdefault(kernel, set()).update(step.reads)
        self.last |= dict.fromkeys(region.outputs, len(region.steps))

    def peak(self, free: Sequence[Value]) -> tuple[int, Counter[str]]:
        """The most bytes held besides what the caller keeps."""
        born = dict.fromkeys(free, -1)
        live = highest = sum(value.bytes for value in free)
        when, inner = -1, Counter[str]()
        ends: dict[int, list[Value]] = {}
        for value in free:
            ends.setdefault(self.last.get(value, -1), []).append(value)
        for place, step in enumerate(self.region.steps):
            if place not in self.at[place]:
                continue
            made = sum(value.bytes for value in step.writes)
            born |= dict.fromkeys(step.writes, place)
            for value in step.writes:
                ends.setdefault(self.last.get(value, place), []).append(value)
            inside, of = self._inside(step)
            reused = self._reused(place, step, born, made)
            if live + made + inside - reused > highest:
                highest, when, inner = live + made + inside - reused, place, of
            live += made - sum(value.bytes for value in ends.get(place, ()))
        held = (v for v, at in born.items() if at <= when <= self.last.get(v, at))
        found = Counter(inner)
        for value in held:
            found[value.path] += value.bytes
        return highest, found

    def _inside(self, step: Step) -> tuple[int, Counter[str]]:
        """What the bodies of a step hold at most besides its operands and results."""
        found = [_Life(region, self.fused).peak(()) for region in step.regions]
        constants = sum(v.bytes for region in step.regions for v in region.constants)
        size, live = max(found, key=lambda one: one[0], default=(0, Counter()))
        return size + constants, live

    def _reused(self, place: int, step: Step, born: dict[Value, int], made: int) -> int:
        """Bytes of the results that can be written over what is read last here."""
        if not self.fused or step.name not in IN_PLACE:
            return 0
        over = [
            value.bytes
            for value in self.operands[place]
            if value in born and value not in step.writes and self.last[value] == place
        ]
        results = Counter(value.bytes for value in step.writes)
        return min(
            made, sum((size * n) for size, n in (Counter(over) & results).items())
        )


def _places(graph: Graph) -> list[int]:
    """For each flat input, the place of the argument it is a part of."""
    arguments = graph.in_tree.children()
    return [i for i, tree in enumerate(arguments) for _ in range(tree.num_leaves)]
