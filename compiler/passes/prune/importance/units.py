r"""From numbers of single weights to numbers of units.

$$ s_{u} = \sum_{i \in u} \sum_{\text{other axes}} v_{\ldots i \ldots} $$

A unit's share of an axis may be several indices (a head's slice of a kernel); it is
their sum.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from compiler.passes.prune.importance.roles import WEIGHT, roles
from compiler.sites import WeightSite, sites_by_leaf

if TYPE_CHECKING:
    from compiler.passes.prune.structure import Slot, Structure

Sums = dict[tuple[int, int], Any]
"""By the position of a leaf and an axis: one number for each index of the axis."""

Parts = dict[str, list[np.ndarray]]
"""By group, for each slot that counts: a number for each unit, masked where it has
nothing of it."""


def slots(structure: Structure, counted: Sequence[str]) -> dict[str, list[Slot]]:
    """The slots of each group whose leaves have one of the roles.

    First come weights that make the units, as they run; then what scales and shifts
    them; then weights that read them.
    """
    graph = structure.graph
    known, uses = roles(graph), sites_by_leaf(graph)
    turns = {leaf: turn for turn, leaf in enumerate(uses)}

    def turn(slot: Slot) -> tuple[int, int]:
        made = 0 if known[slot.leaf] == WEIGHT else 1
        read = is_read(slot, uses.get(slot.leaf, []))
        return 2 if read else made, turns.get(slot.leaf, 0)

    return {
        group.name: sorted(
            (s for s in group.slots if known[s.leaf] in counted), key=turn
        )
        for group in structure.groups
    }


def is_read(slot: Slot, sites: Sequence[WeightSite]) -> bool:
    """Whether a leaf only takes units in: all its products sum over their axis.

    Args:
        slot: of the units.
        sites: where its leaf is used as a weight.
    """
    return bool(sites) and all(
        site.kind != "lookup" and slot.axis in site.contracted for site in sites
    )


def sums(values: Mapping[int, Any], wanted: Sequence[Slot], dtype: Any) -> Sums:
    """Sums arrays over all axes but the one of each slot.

    Args:
        values: by the position of a leaf, an array shaped like it, of numpy or jax.
        wanted: slots of those leaves.
        dtype: to sum in.
    """
    found: Sums = {}
    for slot in wanted:
        key, array = (slot.leaf, slot.axis), values[slot.leaf]
        if key not in found:
            others = tuple(axis for axis in range(array.ndim) if axis != slot.axis)
            found[key] = array.sum(axis=others, dtype=dtype)
    return found


def per_unit(found: Sums, slot: Slot, size: int) -> np.ma.MaskedArray:
    """What the units of a slot have together; masked where it has none of a unit.

    >>> import types
    >>> heads = types.SimpleNamespace(
    ...     leaf=0, axis=1, unit=np.array([0, 0, 1, 1]), index=np.arange(4))
    >>> per_unit({(0, 1): np.array([1.0, 2.0, 3.0, 4.0])}, heads, 3)
    masked_array(data=[3.0, 7.0, --],
                 mask=[False, False,  True],
           fill_value=1e+20)
    """
    numbers = np.asarray(found[slot.leaf, slot.axis], np.float64)[slot.index]
    absent = np.bincount(slot.unit, minlength=size) == 0
    return np.ma.masked_array(np.bincount(slot.unit, numbers, size), absent)


def parts(found: Sums, wanted: Mapping[str, Sequence[Slot]], sizes: Any) -> Parts:
    """What each slot of each group gives its units."""
    return {
        name: [per_unit(found, slot, sizes[name]) for slot in own]
        for name, own in wanted.items()
    }


def measured(
    values: Sequence[Any],
    wanted: Mapping[str, Sequence[Slot]],
    field: Callable[[Any], Any],
) -> Sums:
    """The sums of a function of each weight, computed where the weights are.

    Nothing is compiled for weights in the memory of this machine.

    Args:
        values: of the leaves of the graph.
        wanted: by group, its slots that count.
        field: from an array of numpy or jax to one of the same shape.
    """
    every = [slot for own in wanted.values() for slot in own]
    used = {slot.leaf: values[slot.leaf] for slot in every}
    if all(map(is_here, used.values())):
        fields = {leaf: field(np.asarray(value)) for leaf, value in used.items()}
        return sums(fields, every, np.float64)

    def run(used: dict[int, Any]) -> list[Any]:
        fields = {leaf: field(value) for leaf, value in used.items()}
        return list(sums(fields, every, jnp.float32).values())

    keys = dict.fromkeys((slot.leaf, slot.axis) for slot in every)
    return dict(zip(keys, jax.device_get(jax.jit(run)(used)), strict=True))


def is_here(value: Any) -> bool:
    """Whether an array is in the memory of this machine."""
    if not isinstance(value, jax.Array):
        return True
    devices = value.devices()
    return value.is_fully_addressable and all(d.platform == "cpu" for d in devices)
