"""Importance by how much a unit is like the others."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from compiler.passes.prune.importance.importance import Importance, arrays, sizes
from compiler.passes.prune.importance.roles import WEIGHT
from compiler.passes.prune.importance.units import Parts, slots
from mapping.core import register

if TYPE_CHECKING:
    from compiler.passes.prune.structure import Slot, Structure
    from compiler.program import Program


@register("value", "prune_geometric_median")
@dataclasses.dataclass(frozen=True)
class GeometricMedian(Importance):
    r"""How far a unit's weights are from those of the other units.

    $$ s_{k,u} = \sum_{v \in G} \lVert w_{k,u} - w_{k,v} \rVert_2 $$

    The unit nearest to the geometric median of all can be replaced by the others best,
    however large it is. Weights with one axis only (gains, biases) do not count, and
    neither does an axis of which units have shares of different lengths.

    He et al., "Filter Pruning via Geometric Median for Deep Convolutional Neural
    Networks Acceleration", CVPR 2019, https://arxiv.org/abs/1811.00250.
    """

    def parts(self, program: Program, structure: Structure) -> Parts:
        """Sums of distances."""
        values = arrays(program, "prune.geometric_median")
        wanted = slots(structure, (WEIGHT,))
        size = sizes(structure)
        found: Parts = {}
        for name, own in wanted.items():
            rows = [_rows(values[slot.leaf], slot, size[name]) for slot in own]
            found[name] = [_distances(row) for row in rows if row is not None]
        return found


def geometric_median(
    *, reduction: str = "mean", normalization: str = "mean"
) -> GeometricMedian:
    """The distance of a unit's weights to those of the others.

    See [`GeometricMedian`][].

    Args:
        reduction: over the slices of a unit.
        normalization: within a group.

    >>> geometric_median().reduction
    'mean'
    """
    return GeometricMedian(reduction, normalization)


def _rows(value: Any, slot: Slot, size: int) -> np.ndarray | None:
    """The weights of each unit, `[units, weights of one]`; None if they are none."""
    order = np.argsort(slot.unit, kind="stable")
    counts = np.bincount(slot.unit, minlength=size)
    if len(set(counts.tolist())) != 1 or value.ndim < 2:
        return None
    array = np.moveaxis(np.asarray(value).astype(np.float64), slot.axis, 0)
    return array[slot.index[order]].reshape(size, -1)


def _distances(rows: np.ndarray) -> np.ndarray:
    r"""The sum of distances to all rows, from $|a|^2 + |b|^2 - 2ab$ in float64."""
    rows = rows - rows.mean(axis=0)  # the same distances, with less cancellation
    squares = (rows * rows).sum(axis=1)
    apart = squares[:, None] + squares[None] - 2 * rows @ rows.T
    np.fill_diagonal(apart, 0.0)
    return np.sqrt(np.maximum(apart, 0.0)).sum(axis=1)
