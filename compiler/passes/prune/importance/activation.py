"""Importance from activations: what a unit gives to those that read it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from compiler.errors import CalibrationError
from compiler.graph import Graph
from compiler.passes.prune.importance.importance import Importance, arrays
from compiler.passes.prune.importance.units import Parts, per_unit
from compiler.passes.quantize.calibrate import iterated, kept, observe, placed
from compiler.sites import WeightSite, keyed
from mapping.core import register

if TYPE_CHECKING:
    from compiler.passes.prune.structure import Slot, Structure
    from compiler.program import Program

STATISTICS = {"mean": "magnitude", "active": "active"}
"""What may be measured, and what calibration calls it."""

_Totals = dict[str, dict[str, np.ndarray]]


@register("value", "prune_activation")
@dataclasses.dataclass(frozen=True)
class Activation(Importance):
    r"""What flows through a unit, where the products that read it take it in.

    $$ s_{k,u} = \mathrm{E}\,|x_u| \qquad \text{or} \qquad
       s_{k,u} = \Pr(x_u \ne 0) = 1 - \mathrm{APoZ}_u $$

    for the statistics `"mean"` and `"active"`, over examples and positions (those that
    a convolution pads with are zeros). Slots are the weights' axes that a product sums
    over; a group that nothing reads through a product is not scored. Measured as
    [`calibrate`][compiler.passes.quantize.calibrate.calibrate.calibrate] does, through
    loops and branches.

    Attributes:
        statistic: `"mean"` or `"active"`.
        batches: inputs of the program.

    Raises:
        CalibrationError: if there are no batches.
        ValueError: if there is no such statistic.

    Hu et al., "Network Trimming", 2016, https://arxiv.org/abs/1607.03250.
    """

    normalization: str = "mean"
    statistic: str = "mean"
    batches: Any = dataclasses.field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.statistic not in STATISTICS:
            raise ValueError(
                f"prune.activation: expected a statistic of {', '.join(STATISTICS)}, "
                f"got {self.statistic!r}."
            )

    def parts(self, program: Program, structure: Structure) -> Parts:
        """What the products that read each group were given."""
        total = self._measured(program)
        sites: dict[int, list[tuple[str, WeightSite]]] = {}
        for key, site in keyed(structure.graph).items():
            if "tokens" in total.get(key, {}):
                sites.setdefault(site.leaf, []).append((key, site))

        def along(slot: Slot) -> list[np.ndarray]:
            return [
                _along(structure.graph, site, total[key], slot.axis)
                for key, site in sites.get(slot.leaf, ())
                if slot.axis in site.contracted
            ]

        return {
            group.name: [
                _mean(np.mean(means, axis=0), slot, group.size)
                for slot in group.slots
                if (means := along(slot))
            ]
            for group in structure.groups
        }

    def _measured(self, program: Program) -> _Totals:
        """Of each product, the sums over all batches."""
        arrays(program, "prune.activation")
        if self.batches is None:
            raise CalibrationError(
                "prune.activation: expected batches to measure on, got none. Pass "
                "prune.activation([inputs, ...])."
            )
        names = ("tokens", STATISTICS[self.statistic])
        runs: dict[int, Any] = {}
        total: _Totals = {}
        for batch in iterated(program.graph, self.batches):
            graph, flat = placed(program, batch)
            if id(graph) not in runs:
                runs[id(graph)] = _compiled(graph, names)
            _add(total, jax.device_get(runs[id(graph)](program.values, flat)))
        if not runs:
            raise CalibrationError(
                "prune.activation: expected at least one batch, got none. Pass a list "
                "of inputs; an iterator that was gone through before has none left."
            )
        return {key: _renamed(own) for key, own in total.items()}


def activation(
    batches: Iterable[Any],
    *,
    statistic: str = "mean",
    reduction: str = "mean",
    normalization: str = "mean",
) -> Activation:
    """What flows through a unit; see [`Activation`][].

    Args:
        batches: inputs of the program.
        statistic: `"mean"` magnitude, or the share that is `"active"`: not zero.
        reduction: over the products that read a unit.
        normalization: within a group.

    >>> activation([np.ones((2, 3))], statistic="active").statistic
    'active'
    """
    return Activation(reduction, normalization, False, statistic, kept(batches))


def _compiled(graph: Graph, names: tuple[str, ...]) -> Any:
    observed = observe(graph, names)
    return jax.jit(lambda values, flat: observed(values, flat)[1])


def _add(total: _Totals, found: Mapping[str, Mapping[str, Any]]) -> None:
    for key, own in found.items():
        mine = total.setdefault(key, {})
        for name, value in own.items():
            mine[name] = mine.get(name, 0.0) + np.asarray(value, np.float64)


def _renamed(own: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The statistic under one name, whichever it is."""
    return {name if name == "tokens" else "sum": value for name, value in own.items()}


def _mean(means: np.ndarray, slot: Slot, size: int) -> np.ma.MaskedArray:
    """The mean over the indices of each unit."""
    counts = np.bincount(slot.unit, minlength=size)
    found = per_unit({(slot.leaf, slot.axis): means}, slot, size)
    return found / np.maximum(counts, 1)


def _along(
    graph: Graph, site: WeightSite, own: Mapping[str, np.ndarray], axis: int
) -> np.ndarray:
    """The mean of the statistic for each index of one axis a product sums over.

    Sums are `[*stack, rows]` and rows the axes summed over, merged in the leaf's order.
    """
    shape = graph.leaves[site.leaf].spec.shape
    rows = sorted(site.contracted)
    tokens = own["tokens"].reshape(
        own["tokens"].shape + (1,) * (own["sum"].ndim - own["tokens"].ndim)
    )
    means = own["sum"] / np.maximum(tokens, 1)
    split = means.reshape(-1, *(shape[a] for a in rows))
    place = 1 + rows.index(axis)
    return split.mean(axis=tuple(a for a in range(split.ndim) if a != place))
