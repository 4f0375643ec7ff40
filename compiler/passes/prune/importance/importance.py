"""What an importance is: from a program and its structure to a score for each unit."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from compiler.errors import NonFiniteWeightsError, VariablesMismatchError
from compiler.graph import is_abstract
from compiler.passes.prune.importance.normalize import check, normalized
from compiler.passes.prune.importance.reduce import REDUCTIONS, reduced
from compiler.passes.prune.importance.roles import SCALE, SHIFT, WEIGHT
from compiler.passes.prune.importance.units import Parts, slots

if TYPE_CHECKING:
    from compiler.passes.prune.structure import Slot, Structure
    from compiler.program import Program

Scores = dict[str, np.ndarray]
"""By the name of a group: how much each of its units matters; float64 [size]."""


@dataclasses.dataclass(frozen=True)
class Importance:
    r"""How much each unit of a program matters; the least are removed first.

    A unit is several slices of several leaves that go together (a channel: what makes
    it, its norm, what takes it in). Each slice is scored by itself; `reduction` makes
    one score of those, `normalization` makes the groups comparable:

    $$ s_u = N_G\Big(\operatorname*{red}_{k \in G} s_{k,u}\Big) $$

    Slices of weights and scales count; of shifts (biases) only with `bias`; statistics
    never. A group without any is not in the result, so that nothing of it is removed.

    A subclass is a frozen dataclass that defines `parts`.

    Attributes:
        reduction: over the slices of a unit: `"mean"`, `"sum"`, `"max"`, `"prod"`,
            `"first"` (what makes the unit) or `"gate"` (what reads it last).
        normalization: within a group: `"none"`, `"mean"`, `"sum"`, `"max"`,
            `"gaussian"`, `"lamp"`, `"sentinel"` or `"sentinel_0.25"`.
        bias: whether slices of what is added count.

    Raises:
        ValueError: if there is no such reduction or normalization.

    The choices are those of Torch-Pruning 1.6 (Fang et al., "DepGraph: Towards Any
    Structural Pruning", CVPR 2023, https://arxiv.org/abs/2301.12900).
    """

    reduction: str = "mean"
    normalization: str = "mean"
    bias: bool = False

    def __post_init__(self) -> None:
        if self.reduction not in REDUCTIONS:
            raise ValueError(
                f"reduction: expected one of {', '.join(REDUCTIONS)}, got "
                f"{self.reduction!r}."
            )
        check(self.normalization)

    def parts(self, program: Program, structure: Structure) -> Parts:
        """By group, the score of each slot that counts, for each unit."""
        raise TypeError(
            f"{type(self).__name__}: expected a method `parts(self, program, "
            "structure)`, found none. Define it, or `scores`."
        )

    def scores(self, program: Program, structure: Structure) -> Scores:
        """The score of every unit that has one, by group.

        Args:
            program: whose weights are meant.
            structure: of its graph.

        Raises:
            NonFiniteWeightsError: if a score is infinite or not a number.
            VariablesMismatchError: if the program has no arrays.
        """
        found = {}
        for name, own in self.parts(program, structure).items():
            if not own:
                continue
            score = normalized(reduced(own, self.reduction), self.normalization)
            bad = np.flatnonzero(~np.isfinite(score))
            if len(bad):
                raise NonFiniteWeightsError(
                    f"{name}: expected finite scores, got {score[bad[0]]} for unit "
                    f"{bad[0]}. Look for inf or nan in its weights, or leave the group "
                    "out with ignore."
                )
            found[name] = score
        return found

    def counted(self, structure: Structure) -> dict[str, list[Slot]]:
        """By group, the slots that count, those that make the units first."""
        return slots(
            structure, (WEIGHT, SCALE, SHIFT) if self.bias else (WEIGHT, SCALE)
        )


def arrays(program: Program, name: str) -> tuple[Any, ...]:
    """The program's arrays.

    Raises:
        VariablesMismatchError: if it was traced on shapes alone.
    """
    if any(map(is_abstract, program.values)):
        raise VariablesMismatchError(
            f"{name}: expected a program with arrays to score, got one that was traced "
            "on shapes alone. Give it some with program.with_variables(...)."
        )
    return program.values


def sizes(structure: Structure) -> dict[str, int]:
    """How many units each group has."""
    return {group.name: group.size for group in structure.groups}
