"""Why an axis stays as it is: the equation that says so, and what leads to it."""

from __future__ import annotations

import collections
import dataclasses

import numpy as np

from compiler.passes.prune.structure.atoms import STAYS
from compiler.passes.prune.structure.frame import Place
from compiler.passes.prune.structure.structure import OUTPUT, Structure


@dataclasses.dataclass(frozen=True)
class Reason:
    """Why some indices of an axis stay.

    Attributes:
        indices: of the axis.
        what: what fixes them.
        path: of the operation that does, empty for an output or the whole.
        source: its line of the user's code.
        through: the operations that tie the axis to it, nearest first.
    """

    indices: tuple[int, ...]
    what: str
    path: str = ""
    source: str = ""
    through: tuple[str, ...] = ()

    def __str__(self) -> str:
        """One line."""
        count = len(self.indices)
        which = f"index {self.indices[0]}" if count == 1 else f"{count} indices"
        where = " ".join(
            filter(None, (self.path, f"({self.source})" * bool(self.source)))
        )
        by = f" at {where}" if where else ""
        chain = f", through {' <- '.join(self.through)}" if self.through else ""
        return f"{which}: {self.what}{by}{chain}"


class Reasons:
    """Looks up, for one analysis, what froze an atom."""

    def __init__(self, found: Structure) -> None:
        self._found = found
        self._ties: dict[int, list[tuple[int, int]]] = collections.defaultdict(list)
        for one, other, cause in found.analysis.labels.atoms.ties:
            for left, right in zip(one.tolist(), other.tolist(), strict=True):
                self._ties[left].append((right, cause))
                self._ties[right].append((left, cause))

    def of(self, leaf: int, axis: int) -> list[Reason]:
        """The reasons for an axis of a leaf; none if each index may go."""
        spec = self._found.graph.leaves[leaf].spec
        vector = self._found.leaves[leaf][axis]
        if vector is None:
            what = "there is one index" if spec.shape[axis] == 1 else "it holds keys"
            return [Reason(tuple(range(spec.shape[axis])), what)]
        atoms = self._found.analysis.labels.atoms
        labels = atoms.resolve(vector)
        stays = (
            np.flatnonzero(~labels.any(1))
            if labels.shape[1]
            else np.arange(len(vector))
        )
        by: dict[tuple[int, ...], list[int]] = collections.defaultdict(list)
        for index in stays.tolist():
            by[self._chain(int(vector[index, 0]))].append(index)
        return [self._reason(chain, indices) for chain, indices in by.items()]

    def _chain(self, atom: int) -> tuple[int, ...]:
        """The causes on the way from an atom to what stays, nearest first."""
        came: dict[int, tuple[int, int]] = {atom: (-1, -1)}
        queue = collections.deque([atom])
        while queue:
            one = queue.popleft()
            if one == STAYS:
                return self._causes(came)
            for other, cause in self._ties[one] + self._parts(one):
                if other not in came:
                    came[other] = one, cause
                    queue.append(other)
        return ()

    def _parts(self, atom: int) -> list[tuple[int, int]]:
        """What an atom stands for, if it is a product."""
        parts = self._found.analysis.labels.atoms.parts(atom)
        return [(part, -1) for part in parts]

    def _causes(self, came: dict[int, tuple[int, int]]) -> tuple[int, ...]:
        causes, atom = [], STAYS
        while came[atom][0] >= 0:
            atom, cause = came[atom]
            if cause != -1 and (not causes or causes[-1] != cause):
                causes.append(cause)
        return tuple(reversed(causes))

    def _reason(self, chain: tuple[int, ...], indices: list[int]) -> Reason:
        if not chain:
            return Reason(tuple(indices), "it stays")
        through = tuple(map(self._name, chain[:-1]))[:4]
        if chain[-1] <= OUTPUT:
            what = f"output {OUTPUT - chain[-1]} has this axis"
            return Reason(tuple(indices), what, through=through)
        place = self._found.analysis.places[chain[-1]]
        return Reason(
            tuple(indices),
            _what(self._found, place),
            place.scope,
            place.source,
            through,
        )

    def _name(self, cause: int) -> str:
        if cause <= OUTPUT:
            return f"output {OUTPUT - cause}"
        place = self._found.analysis.places[cause]
        return " ".join(filter(None, (place.equation.primitive.name, place.scope)))


def _what(found: Structure, place: Place) -> str:
    """What an equation does that fixes an axis."""
    name = place.equation.primitive.name
    if place in found.analysis.unknown:
        return f"{name} has no rule for pruning"
    if place.computes:
        return f"{name} computes with numbers of its indices"
    return _FIXES.get(name, f"{name} joins it with an axis that is an input's or fixed")


_FIXES = {
    "argmax": "argmax gives numbers of its indices",
    "argmin": "argmin gives numbers of its indices",
    "top_k": "top_k gives numbers of its indices",
    "sort": "sort orders its indices",
    "gather": "gather looks it up by indices that are not known",
    "scatter": "scatter writes to indices that are not known",
    "scatter-add": "scatter-add writes to indices that are not known",
    "dynamic_slice": "dynamic_slice takes a part that is not known",
    "dynamic_update_slice": "dynamic_update_slice writes a part that is not known",
    "cumsum": "cumsum goes along it",
    "fft": "fft goes along it",
    "cholesky": "cholesky works on matrices",
    "eigh": "eigh works on matrices",
    "lu": "lu works on matrices",
    "qr": "qr works on matrices",
    "svd": "svd works on matrices",
    "triangular_solve": "triangular_solve works on matrices",
    "unstack": "unstack takes it apart",
    "scan": "scan goes along it, or carries it with an axis that is fixed",
    "reshape": "reshape divides it in a way that no removal keeps",
    "slice": "slice picks one index of it",
}
