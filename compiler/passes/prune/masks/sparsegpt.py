"""Zeros chosen by what weights are multiplied with; the weights that stay make up."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np

from compiler.passes.prune.masks.choose import kept, ranked
from compiler.passes.prune.masks.magnitude import magnitudes
from compiler.passes.prune.masks.masking import Chosen, Values, chosen_by_masks
from compiler.passes.prune.masks.measured import hessian
from compiler.passes.prune.masks.patterns import (
    Pattern,
    RuleSpec,
    as_rules,
    n_and_m,
)
from compiler.passes.prune.masks.plan import Plan
from compiler.passes.prune.masks.surgeon import Choice
from compiler.passes.prune.masks.surgeon import sparsegpt as surgeon
from compiler.passes.prune.masks.wanda import Measuring
from compiler.passes.prune.masks.weights import Weight
from compiler.passes.quantize.calibrate import Calibration
from compiler.passes.quantize.calibrate import kept as kept_batches
from compiler.passes.quantize.rounding.hessian import moved
from mapping.core import register

if TYPE_CHECKING:
    from compiler.program import Program


@register("pass", "prune_sparsegpt")
@dataclasses.dataclass(frozen=True)
class SparseGpt(Measuring):
    r"""Zeroes weights, and moves those that stay so that outputs move little.

    $$ \min_{\hat W}\ \mathrm{E}\,\lVert x^\top (W - \hat W) \rVert^2, \qquad
       H = \mathrm{E}\, x x^\top $$

    greedily, row by row. A block of rows chooses what goes by
    $W_{ic}^2 / [H^{-1}]_{ii}$ (given the rows before), the same share in every block;
    each row's loss is made up for by the rows that follow. Which leaves are weights,
    n:m, stacks, `train` and what is zero already: as with [`Magnitude`][]. The groups
    of a convolution are matrices of their own. A weight whose inputs could not be
    measured is pruned by magnitude, and the report says so. One that several products
    share is pruned for all of them.

    The program runs once on each batch as it is at this point of the recipe: weights
    do not see what is zeroed before them.

    Attributes:
        sparsity: the share of zeros of every block of rows.
        batches: what to measure on: inputs of the program, or a [`Calibration`][]
            with Hessians.
        block: how many rows choose together.
        damping: the share of the mean of H's diagonal that is added to it.

    Raises:
        CalibrationError: if there are no batches, or no Hessians.
        ValueError: if a field is out of range, or two do not go together.
        UnknownPathError: if a glob that leaves weights out names none.
        NonFiniteWeightsError: if a weight holds inf or nan.

    Frantar & Alistarh, 2023, https://arxiv.org/abs/2301.00774.
    """

    block: int = 128
    damping: float = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.pattern, tuple):
            raise ValueError(
                f"prune.sparsegpt: expected a pattern of None or 'n:m', got "
                f"{self.pattern!r}. Blocks are for prune.magnitude and prune.wanda."
            )
        if type(self.block) is not int or self.block < 1:
            raise ValueError(
                f"prune.sparsegpt: expected a block of at least 1, got {self.block!r}."
            )
        if not (math.isfinite(self.damping) and self.damping > 0):
            raise ValueError(
                f"prune.sparsegpt: expected a positive damping, got {self.damping!r}."
            )

    @property
    def name(self) -> str:
        """What it is called."""
        return "prune.sparsegpt"

    def choose(self, program: Program, chosen: Plan, values: Values) -> Chosen:
        """Prunes every weight by its Hessian."""
        found = self.measured(program, True)
        masks, notes, new = {}, {}, {}
        for decision, weight in chosen.chosen:
            path, value = weight.path, values[weight.path]
            share = 0.0 if decision.sparsity is None else decision.sparsity
            means = hessian(decision, weight, found)
            if isinstance(means, str):
                scores = ranked(magnitudes(value), value)
                masks[path] = kept(weight, scores, share, decision.pattern)
                notes[path] = f"by magnitude: {means}"
                continue
            choice = Choice(
                1 - share, n_and_m(decision.pattern), self.block, self.damping
            )
            made, masks[path], error = _pruned(weight, value, means, choice)
            if np.count_nonzero(value[~masks[path]]):
                new[path] = made
                notes[path] = f"squared error of outputs {error:.2g} of their size"
        return chosen_by_masks(masks, values, notes=notes, values=new, found=found)


def sparsegpt(
    sparsity: float | None = None,
    batches: Iterable[Any] | Calibration | None = None,
    *,
    distribution: str = "uniform",
    pattern: Pattern = None,
    block: int = 128,
    damping: float = 0.01,
    rules: RuleSpec = (),
    ignore: str | Sequence[str] = (),
    train: bool = False,
) -> SparseGpt:
    """Zeroes weights and makes up for them; see [`SparseGpt`][].

    Args:
        sparsity: the share of zeros, from 0 to 1; a pattern `"n:m"` tells it itself.
        batches: inputs of the program to measure on, as they come to this point of
            the recipe; or a [`Calibration`][] with Hessians.
        distribution: `"uniform"` or `"erk"`.
        pattern: None or `"2:4"` (or any n:m).
        block: how many rows choose together.
        damping: the share of the mean of the Hessian's diagonal that is added to it.
        rules: from globs to a sparsity, an `"n:m"`, or None to leave a weight.
        ignore: globs of weights that are left as they are.
        train: whether masks become leaves, so that training keeps the zeros.

    >>> import compiler as mc
    >>> x = jnp.ones((5, 2))
    >>> program = mc.trace(lambda w, x: x @ w, jnp.asarray([[1.0], [2.0]]), x)
    >>> print(sparsegpt(0.5, [x])(program).variables.ravel().round(1))
    [0. 3.]
    """
    return SparseGpt(
        sparsity,
        distribution,
        pattern,
        as_rules(rules, ignore),
        train,
        kept_batches(batches),
        block,
        damping,
    )


def _pruned(
    weight: Weight, value: np.ndarray, means: np.ndarray, choice: Choice
) -> tuple[np.ndarray, np.ndarray, float]:
    """The new weight, what is kept of it, and how far outputs move, as a share."""
    turn = weight.turn
    hessians = jnp.asarray(means[:, :, turn][:, :, :, turn])
    hessians = hessians.reshape(-1, *hessians.shape[2:])
    before = jnp.asarray(_apart(weight, value))
    after, mask = surgeon(before, hessians, choice)
    wide = jnp.promote_types(before.dtype, jnp.float32)
    rows = (before.shape[0], -1, before.shape[3])
    old, new = (a.astype(wide).reshape(rows) for a in (before, after))
    lost, size = (moved(a, hessians.astype(wide)).sum() for a in (old - new, old))
    error = float(lost) / max(float(size), 1e-38)
    made, kept_ = (_together(weight, np.asarray(a)) for a in (after, mask))
    return made, kept_, error


def _apart(weight: Weight, array: np.ndarray) -> np.ndarray:
    """The normal form with the groups of a convolution in the stack."""
    stack, outer, features, columns = weight.extents
    each = columns // weight.groups
    normal = weight.normal(array).reshape(stack, outer, features, weight.groups, each)
    return np.moveaxis(normal, 3, 1).reshape(-1, outer, features, each)


def _together(weight: Weight, apart: np.ndarray) -> np.ndarray:
    """The array of the leaf's shape again."""
    stack, outer, features, columns = weight.extents
    groups = weight.groups
    normal = apart.reshape(stack, groups, outer, features, columns // groups)
    return weight.array(np.moveaxis(normal, 1, 3).reshape(weight.extents))
