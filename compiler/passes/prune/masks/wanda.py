"""Zeros where weights are small and what they multiply is small."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from compiler.passes.prune.masks.choose import kept, kept_per_output, ranked
from compiler.passes.prune.masks.magnitude import magnitudes
from compiler.passes.prune.masks.masking import (
    Chosen,
    Masking,
    Values,
    chosen_by_masks,
)
from compiler.passes.prune.masks.measured import squares
from compiler.passes.prune.masks.patterns import Pattern, RuleSpec, as_rules
from compiler.passes.prune.masks.plan import Plan
from compiler.passes.prune.masks.weights import Weight
from compiler.passes.quantize.calibrate import Calibration
from compiler.passes.quantize.calibrate import kept as kept_batches
from compiler.passes.quantize.rounding.measured import seen
from mapping.core import register

if TYPE_CHECKING:
    from compiler.program import Program


@dataclasses.dataclass(frozen=True)
class Measuring(Masking):
    """Chooses by what products are given.

    Attributes:
        batches: inputs of the program to measure on, or a [`Calibration`][].
    """

    batches: Any = dataclasses.field(default=None, repr=False, compare=False)

    @property
    def distributions(self) -> tuple[str, ...]:
        """Scores of different weights do not compare."""
        return ("uniform", "erk")

    def with_choice(self, decided: Chosen) -> Self:
        """The pass with what was decided; it lets go of the batches."""
        return super(Measuring, dataclasses.replace(self, batches=None)).with_choice(
            decided
        )

    def measured(self, program: Program, hessians: bool) -> Calibration:
        """What products are given: measured now, or before."""
        before = self.decided if self.decided and self.decided.found else None
        name = self.name.removeprefix("prune.")
        return seen(name, program, self.batches, hessians, before, "prune")


@register("pass", "prune_wanda")
@dataclasses.dataclass(frozen=True)
class Wanda(Measuring):
    r"""Zeroes the weights that move their outputs least, taken one by one.

    $$ S_{jc} = |W_{jc}|\,\lVert x_j \rVert_2 $$

    Numbers compete that make the same output: each column keeps as many. No weight
    that stays changes. Which leaves are weights, n:m, blocks, stacks, `train` and what
    is zero already: as with [`Magnitude`][]. Of a grouped convolution each group has
    the norms of its own inputs. A weight whose inputs could not be measured (experts
    whose rows depend on values, what never ran) is pruned by magnitude, and the report
    says so.

    Attributes:
        sparsity: the share of zeros of every column.
        batches: what to measure on: inputs of the program, or a [`Calibration`][].

    Raises:
        CalibrationError: if there are no batches.
        ValueError: if a field is out of range, or two do not go together.
        UnknownPathError: if a glob that leaves weights out names none.
        NonFiniteWeightsError: if a weight holds inf or nan.

    Sun et al., 2023, https://arxiv.org/abs/2306.11695.
    """

    @property
    def name(self) -> str:
        """What it is called."""
        return "prune.wanda"

    def choose(self, program: Program, chosen: Plan, values: Values) -> Chosen:
        """Chooses for every column."""
        found = self.measured(program, False)
        masks, notes = {}, {}
        for decision, weight in chosen.chosen:
            value = values[weight.path]
            means = squares(decision, weight, found)
            share = 0.0 if decision.sparsity is None else decision.sparsity
            if isinstance(means, str):
                notes[weight.path] = f"by magnitude: {means}"
                scores = ranked(magnitudes(value), value)
            else:
                scores = ranked(magnitudes(value) * norms(weight, means), value)
            if isinstance(means, str) or decision.pattern is not None:
                masks[weight.path] = kept(weight, scores, share, decision.pattern)
            else:
                masks[weight.path] = kept_per_output(weight, scores, share)
        return chosen_by_masks(masks, values, notes=notes, found=found)


def wanda(
    sparsity: float | None = None,
    batches: Iterable[Any] | Calibration | None = None,
    *,
    distribution: str = "uniform",
    pattern: Pattern = None,
    rules: RuleSpec = (),
    ignore: str | Sequence[str] = (),
    train: bool = False,
) -> Wanda:
    """Zeroes weights by their size and that of their inputs; see [`Wanda`][].

    Args:
        sparsity: the share of zeros, from 0 to 1; a pattern `"n:m"` tells it itself.
        batches: inputs of the program to measure on, as they come to this point of
            the recipe; or a [`Calibration`][].
        distribution: `"uniform"` or `"erk"`.
        pattern: None, `"2:4"` (or any n:m), or the sizes (features, columns) of blocks.
        rules: from globs to a sparsity, an `"n:m"`, or None to leave a weight.
        ignore: globs of weights that are left as they are.
        train: whether masks become leaves, so that training keeps the zeros.

    >>> import jax.numpy as jnp, compiler as mc
    >>> w, x = jnp.asarray([[3.0], [1.0]]), jnp.asarray([[0.1, 2.0]])
    >>> program = mc.trace(lambda w, x: x @ w, w, x)
    >>> wanda(0.5, [x])(program).variables.ravel().tolist()
    [0.0, 1.0]
    """
    return Wanda(
        sparsity,
        distribution,
        pattern,
        as_rules(rules, ignore),
        train,
        kept_batches(batches),
    )


def norms(weight: Weight, means: np.ndarray) -> np.ndarray:
    """Roots of the mean squares of its inputs, spread over a weight.

    A matrix that was given nothing but zeros has norms of one: magnitude decides.

    Args:
        weight: how the leaf is a weight.
        means: `[stack, groups, rows]`.
    """
    means = np.where(means.any(-1, keepdims=True), means, np.float32(1))
    stack, outer, features, columns = weight.extents
    rows = np.sqrt(means[:, :, weight.turn])
    each = np.repeat(rows, columns // weight.groups, axis=1)
    normal = np.swapaxes(each, 1, 2).reshape(stack, outer, features, columns)
    return weight.array(normal)
