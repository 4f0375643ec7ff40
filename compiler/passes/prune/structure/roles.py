"""What is done along an axis: what users call heads, experts, steps."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np

from compiler.passes.prune.structure.atoms import Array
from compiler.passes.prune.structure.labels import Labels, Vector


@dataclasses.dataclass(eq=False)
class Roles:
    """Axes that something special is done along, gathered on the way.

    Attributes:
        labels: of the analysis.
        products: of two activations, in order: batched, contracted and free axes.
        experts: axes that number weights of one kind, or are chosen from.
        layers: steps of loops over weights.
    """

    labels: Labels
    products: list[tuple[list[Vector], list[Vector], list[Vector]]] = dataclasses.field(
        default_factory=list
    )
    experts: list[Vector] = dataclasses.field(default_factory=list)
    layers: list[Vector] = dataclasses.field(default_factory=list)

    def kind(self, atom: int) -> str:
        """What an atom is called, by what is done along its axes."""
        for kind, atoms in self._atoms.items():
            if np.isin(atom, atoms):
                return kind
        return "channels"

    @functools.cached_property
    def _atoms(self) -> dict[str, Array]:
        heads, sizes = self._attention()
        return {
            "layers": self._of(self.layers),
            "heads": heads,
            "experts": self._of(self.experts),
            "head_dim": sizes,
        }

    def _attention(self) -> tuple[Array, Array]:
        """The atoms of heads, and of what is within them.

        A head numbers products of two activations. Queries that share a key have an
        axis of their own beside it, in the scores and in what is weighed by them.
        """
        heads, sizes = [self._of([])], [self._of([])]
        beside = self._of([])
        for batch, summed, free in self.products:
            own, within, others = map(self._of, (batch, summed, free))
            if not len(own):
                continue
            heads.append(own)
            if len(within):
                sizes.append(within)
                beside = np.union1d(beside, others)
            else:
                heads.append(np.intersect1d(others, beside))
                sizes.append(np.setdiff1d(others, beside))
        return np.concatenate(heads), np.concatenate(sizes)

    def _of(self, vectors: list[Vector]) -> Array:
        """The atoms that some axes still have."""
        found = [np.zeros(0, np.int64)]
        for vector in vectors:
            if vector is not None:
                labels = self.labels.atoms.resolve(vector)
                found.append(labels[labels > 0])
        return np.unique(np.concatenate(found))
