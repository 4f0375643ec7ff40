"""Zeros where masks say so that were found elsewhere."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from compiler.errors import UnknownPathError, VariablesMismatchError
from compiler.graph import Graph
from compiler.passes.globs import shortened
from compiler.passes.prune.masks.bits import Mask
from compiler.passes.prune.masks.masking import (
    Chosen,
    Masking,
    Values,
    chosen_by_masks,
)
from compiler.passes.prune.masks.plan import Decision, Plan
from compiler.passes.prune.masks.weights import as_weight
from compiler.sites import sites_by_leaf
from mapping.core import leaf_paths, register

if TYPE_CHECKING:
    from compiler.program import Program


@register("pass", "prune_masks")
@dataclasses.dataclass(frozen=True)
class ByMasks(Masking):
    """Zeroes what masks leave out; they are part of the recipe, as bits.

    So what was chosen once, or found in training, is applied to other weights.

    Attributes:
        masks: what is kept, for each weight that is pruned.

    Raises:
        UnknownPathError: if a mask belongs to no weight.
        VariablesMismatchError: if it has another shape.
    """

    sparsity: float | None = 0.0
    masks: tuple[Mask, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "masks", tuple(self.masks))

    @property
    def name(self) -> str:
        """What it is called."""
        return "prune.by_masks"

    def planned(self, graph: Graph) -> Plan:
        """The leaves that have a mask."""
        uses = sites_by_leaf(graph)
        wanted = {mask.path: mask for mask in self.masks}
        decisions = []
        for place, leaf in enumerate(graph.leaves):
            mask = next((wanted[p] for p in shortened(leaf.path) if p in wanted), None)
            if mask is None:
                continue
            wanted.pop(mask.path)
            sites = uses.get(place, [])
            weight = as_weight(graph, leaf, sites, lookups=True)
            if isinstance(weight, str):
                raise UnknownPathError(
                    f"{mask.path}: expected the mask of a weight, but {leaf.path} "
                    f"{weight}. Leave it out."
                )
            if mask.shape != leaf.spec.shape:
                raise VariablesMismatchError(
                    f"{mask.path}: expected a mask {list(leaf.spec.shape)}, got "
                    f"{list(mask.shape)}. Pass masks of this program's weights."
                )
            decisions.append(Decision(leaf, {}, weight, 0.0))
        if wanted:
            raise UnknownPathError(
                f"{next(iter(wanted))}: a mask of no leaf of the program. Its leaves: "
                f"{', '.join(graph.paths[:8])}{', ...' if graph.paths[8:] else ''}."
            )
        return Plan(tuple(decisions))

    def choose(self, program: Program, chosen: Plan, values: Values) -> Chosen:
        """Nothing to choose."""
        own = {mask.path: mask.array() for mask in self.masks}
        found = {
            weight.path: next(own[p] for p in shortened(weight.path) if p in own)
            for _, weight in chosen.chosen
        }
        return chosen_by_masks(found, values)


def by_masks(masks: Any, *, train: bool = False) -> ByMasks:
    """Zeroes what masks leave out; see [`ByMasks`][].

    Args:
        masks: booleans by path, or a tree of them with the paths of the variables (or
            of the params): those of [`masks`][], of `mapping.sparse.read_masks`.
        train: whether masks become leaves, so that training keeps the zeros.

    >>> import jax.numpy as jnp, numpy as np, compiler as mc
    >>> program = mc.trace(lambda v, x: x @ v["w"], {"w": jnp.eye(2)}, jnp.ones((1, 2)))
    >>> kept = {"w": np.array([[True, True], [False, False]])}
    >>> by_masks(kept)(program).variables["w"].tolist()
    [[1.0, 0.0], [0.0, 0.0]]
    """
    found: Mapping[str, Any] = leaf_paths(masks)
    bits = tuple(Mask.of(path, mask) for path, mask in found.items())
    return ByMasks(masks=bits, train=train)
