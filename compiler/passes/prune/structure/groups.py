"""Groups: units of one kind, each of which disappears from several leaves at once."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from compiler.graph import Graph
from compiler.passes.prune.structure.analysis import Analysis
from compiler.passes.prune.structure.atoms import Array, distinct
from compiler.passes.prune.structure.labels import Axes


@dataclasses.dataclass(frozen=True, eq=False)
class Slot:
    """Where the units of a group stand on one axis of one leaf.

    Attributes:
        leaf: the leaf's position.
        axis: which of its axes.
        unit: for each entry a unit of the group.
        index: for each entry the index of the axis that goes with the unit.
    """

    leaf: int
    axis: int
    unit: Array
    index: Array


@dataclasses.dataclass(frozen=True, eq=False)
class Group:
    """Units that could be exchanged for each other, none of which depends on another.

    Attributes:
        name: the path and axis of its first slot: `params/Conv_0/kernel:3`.
        kind: `channels`, `heads`, `head_dim`, `experts` or `layers`.
        size: how many units there are.
        slots: where they stand.
        atoms: of each unit, in the analysis.
    """

    name: str
    kind: str
    size: int
    slots: tuple[Slot, ...] = dataclasses.field(repr=False)
    atoms: Array = dataclasses.field(repr=False)


def find_groups(
    graph: Graph, analysis: Analysis, leaves: Sequence[Axes], used: Sequence[bool]
) -> tuple[Group, ...]:
    """The groups of a program, in the order of the leaves they begin at.

    Args:
        graph: the program.
        analysis: of it.
        leaves: the labels of its leaves' axes.
        used: for each leaf, whether anything reads it.
    """
    places = [
        (leaf, axis, vector)
        for leaf, axes in enumerate(leaves)
        for axis, vector in enumerate(axes)
        if used[leaf] and vector is not None
    ]
    atoms, slots, indices = _entries(analysis, [vector for *_, vector in places])
    if not len(atoms):
        return ()
    units, unit = np.unique(atoms, return_inverse=True)
    signatures = _signatures(analysis, units, unit, slots, len(places))
    order = np.lexsort((indices, slots, unit))
    first = order[
        np.unique(unit[order], return_index=True)[1]
    ]  # each unit's first entry
    _, kinds = np.unique(signatures, return_inverse=True)
    found = []
    # Sorted once: to search all entries for each group would take a square of time.
    for own, mine in zip(_sorted_by(kinds), _sorted_by(kinds[unit]), strict=True):
        if len(own) > 1:
            own = own[np.lexsort((indices[first[own]], slots[first[own]]))]
            # Where its first two units begin: what is within comes before its outside.
            place = [_place_of(first[unit], slots, indices) for unit in own[:2]]
            found.append((place, own, mine))
    found.sort(key=lambda item: item[0])
    made: dict[str, Group] = {}
    number = np.zeros(len(units), np.int64)
    for _, own, mine in found:
        number[own] = np.arange(len(own))
        entries = number[unit[mine]], slots[mine], indices[mine]
        group = _group(graph, analysis, places, units[own], entries, made)
        made[group.name] = group
    return tuple(made.values())


def _sorted_by(numbers: Array) -> list[Array]:
    """For each number from 0 up, the places it stands at, ascending."""
    order = np.argsort(numbers, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(numbers[order])) + 1)


def _entries(
    analysis: Analysis, vectors: Sequence[Array]
) -> tuple[Array, Array, Array]:
    """Every atom of every index of every axis, as (atom, axis, index)."""
    found = []
    for number, vector in enumerate(vectors):
        labels = analysis.labels.atoms.resolve(vector)
        rows, columns = np.nonzero(labels)
        atoms = labels[rows, columns]
        found.append((atoms, np.full_like(atoms, number), rows))
    if not found:
        return np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.int64)
    atoms, slots, indices = (np.concatenate(part) for part in zip(*found, strict=True))
    return atoms, slots, indices


def _signatures(
    analysis: Analysis, units: Array, unit: Array, slots: Array, count: int
) -> Array:
    """A number for each unit, the same for those on the same axes and of one family."""
    random = np.random.default_rng(0)
    limit = np.iinfo(np.uint64).max
    own, where = np.divmod(distinct(unit * count + slots), count)
    sums = np.zeros(len(units), np.uint64)
    weights = random.integers(0, limit, count, np.uint64)
    np.add.at(sums, own, weights[where])
    classes, families = analysis.labels.atoms.families()
    place = np.minimum(np.searchsorted(units, classes), len(units) - 1)
    mine = units[place] == classes
    classes, families = place[mine], families[mine]
    weights = random.integers(0, limit, int(families.max(initial=0)) + 1, np.uint64)
    np.add.at(sums, classes, weights[families])
    return sums


def _place_of(entry: int, slots: Array, indices: Array) -> list[int]:
    return [int(slots[entry]), int(indices[entry])]


def _group(
    graph: Graph,
    analysis: Analysis,
    places: Sequence[tuple[int, int, Array]],
    atoms: Array,
    entries: tuple[Array, Array, Array],
    taken: dict[str, Group],
) -> Group:
    unit, slots, indices = entries
    made = []
    for here in _sorted_by(slots):
        leaf, axis, _ = places[slots[here[0]]]
        made.append(Slot(leaf, axis, unit[here], indices[here]))
    # A group is called after the first kernel it stands in, not after a bias.
    first = next((slot for slot in made if _is_matrix(graph, slot)), made[0])
    name = plain = f"{graph.leaves[first.leaf].path}:{first.axis}"
    again = 0
    while name in taken:
        again += 1
        name = f"{plain}#{again}"
    kind = analysis.roles.kind(atoms[0])
    return Group(name, kind, len(atoms), tuple(made), atoms)


def _is_matrix(graph: Graph, slot: Slot) -> bool:
    """Whether a leaf has two axes or more, not counting those of extent one."""
    return sum(extent > 1 for extent in graph.leaves[slot.leaf].spec.shape) > 1
