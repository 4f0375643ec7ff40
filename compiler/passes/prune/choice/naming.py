"""What groups are called by globs, and which are built alike."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from compiler.errors import UnknownPathError
from compiler.graph import Graph
from compiler.passes.globs import names_of
from compiler.passes.prune.importance.roles import roles
from compiler.passes.prune.importance.units import is_read
from compiler.paths import matches
from compiler.sites import WeightSite, sites_by_leaf

if TYPE_CHECKING:
    from compiler.passes.prune.structure import Group, Slot, Structure


def is_named(group: Group, glob: str, graph: Graph) -> bool:
    """Whether a glob names a group.

    It does by what makes the group's units: the path of a leaf whose axis they are (but
    not one that a product sums over, which reads units that another layer makes), or of
    the layer it is in. With a colon in it, it is about slots, whatever they do: path
    and axis, as groups are named.
    """
    names = _slots(group, graph) if ":" in glob else _makers(group, graph)
    return any(matches(glob, name) for name in names)


def check_named(globs: Sequence[str], structure: Structure) -> None:
    """Checks that each glob names a group.

    Raises:
        UnknownPathError: naming those that come nearest.
    """
    graph = structure.graph
    for glob in globs:
        if not any(is_named(group, glob, graph) for group in structure.groups):
            find = _slots if ":" in glob else _makers
            known = sorted({n for g in structure.groups for n in find(g, graph)})
            near = difflib.get_close_matches(glob, known, 5, 0.5) or known[:8]
            raise UnknownPathError(
                f"{glob}: expected a glob of groups that can be pruned, names none. "
                f"The nearest there are: {', '.join(near) or '(there is no group)'}."
            )


def signature(group: Group, graph: Graph) -> tuple[Any, ...]:
    """Equal for groups that are built alike, of whatever sizes.

    What counts is the kind, and of every slot what its leaf is used for, whether that
    makes the units or reads them, and whether a unit has several indices there.
    """
    known, uses = roles(graph), sites_by_leaf(graph)
    return group.kind, *sorted(_use(slot, known, uses) for slot in group.slots)


def _use(
    slot: Slot, known: Sequence[str], uses: dict[int, list[WeightSite]]
) -> tuple[Any, ...]:
    sites = uses.get(slot.leaf, [])
    kinds = tuple(sorted({site.kind for site in sites}))
    several = bool((np.bincount(slot.unit) > 1).any())
    return known[slot.leaf], kinds, is_read(slot, sites), several


def _slots(group: Group, graph: Graph) -> Iterator[str]:
    yield group.name
    for slot in group.slots:
        yield f"{graph.leaves[slot.leaf].path}:{slot.axis}"


def _makers(group: Group, graph: Graph) -> Iterator[str]:
    uses = sites_by_leaf(graph)
    making = [s for s in group.slots if not is_read(s, uses.get(s.leaf, []))]
    for slot in making or group.slots:
        yield from names_of(graph.leaves[slot.leaf], uses.get(slot.leaf, []))
