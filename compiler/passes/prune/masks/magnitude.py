"""Zeros where weights are small."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from compiler.passes.prune.masks.choose import kept, kept_together, ranked
from compiler.passes.prune.masks.masking import (
    Chosen,
    Masking,
    Values,
    chosen_by_masks,
)
from compiler.passes.prune.masks.patterns import Pattern, RuleSpec, as_rules
from compiler.passes.prune.masks.plan import Decision, Plan
from mapping.core import register

if TYPE_CHECKING:
    from compiler.program import Program


class Scored(Masking):
    """Keeps the numbers of largest scores."""

    def scores(self, decision: Decision, value: np.ndarray) -> np.ndarray:
        """How much each number of a weight is worth keeping, not below zero."""
        raise NotImplementedError

    def choose(self, program: Program, chosen: Plan, values: Values) -> Chosen:
        """Chooses in each weight, or among all that compete."""
        masks, together = {}, {}
        for decision, weight in chosen.chosen:
            value = values[weight.path]
            scores = ranked(self.scores(decision, value), value)
            if decision.sparsity is None:
                together[weight.path] = scores
            else:
                masks[weight.path] = kept(
                    weight, scores, decision.sparsity, decision.pattern
                )
        masks |= kept_together(together, self.sparsity or 0.0)
        return chosen_by_masks(masks, values)


@register("pass", "prune_magnitude")
@dataclasses.dataclass(frozen=True)
class Magnitude(Scored):
    r"""Zeroes the weights of smallest magnitude.

    $$ \hat W_i = W_i\,[\,|W_i| \ge \tau\,], \qquad
       \#\{i : \hat W_i = 0\} = \#W - \lfloor (1 - s)\,\#W + 1/2 \rfloor $$

    A weight is a floating leaf of two or more axes that reaches a product or a
    convolution, however it was transposed, reshaped, stacked for a loop or passed into
    a call; a table that is only looked up counts if a rule names it. Every matrix of a
    stack (the layers of a scan, experts) gets its share of zeros for itself. One leaf
    used several times has one mask. What is zero already goes first and counts, so
    that a second application changes nothing, and a larger sparsity goes on from a
    smaller.

    Groups of n:m run along the axes that the weight's product sums over; of a
    convolution's kernel along the input channels of its group, at each place of its
    extent. Blocks are (features, columns): along what is summed over, and along what
    is produced.

    The zeros are values and nothing else: training afterwards fills them, unless the
    optimizer keeps them (`mapping.sparse`) or `train=True` makes each mask a leaf in
    the state, `state/<weight>/mask`, by which the weight is selected in the graph:
    gradients are zero where it is. Then the program takes `mapping.Variables` (or the
    collections it had). [`fold`][] takes such masks into the weights again.

    Attributes:
        sparsity: s.
        distribution: `"uniform"`, `"global"` (one threshold for all weights no rule is
            about) or `"erk"` (densities by shapes).

    Raises:
        ValueError: if a field is out of range, or two do not go together.
        UnknownPathError: if a glob that leaves weights out names none.
        NonFiniteWeightsError: if a weight holds inf or nan.
        VariablesMismatchError: if the program has no arrays.

    Han et al., 2015, https://arxiv.org/abs/1506.02626; erk after Evci et al., 2020,
    https://arxiv.org/abs/1911.11134; n:m after Mishra et al., 2021,
    https://arxiv.org/abs/2104.08378.
    """

    @property
    def name(self) -> str:
        """What it is called."""
        return "prune.magnitude"

    def scores(self, decision: Decision, value: np.ndarray) -> np.ndarray:
        """The magnitudes."""
        return magnitudes(value)


def magnitude(
    sparsity: float | None = None,
    *,
    distribution: str = "uniform",
    pattern: Pattern = None,
    rules: RuleSpec = (),
    ignore: str | Sequence[str] = (),
    train: bool = False,
) -> Magnitude:
    """Zeroes the weights of smallest magnitude; see [`Magnitude`][].

    Args:
        sparsity: the share of zeros, from 0 to 1; a pattern `"n:m"` tells it itself.
        distribution: `"uniform"`, `"global"` or `"erk"`.
        pattern: None, `"2:4"` (or any n:m), or the sizes (features, columns) of blocks.
        rules: from globs of weights (or of operations that use them) to a sparsity,
            an `"n:m"`, or None to leave them; the first that matches counts.
        ignore: globs of weights that are left as they are.
        train: whether masks become leaves, so that training keeps the zeros.

    >>> import jax.numpy as jnp, compiler as mc
    >>> w = jnp.asarray([[3.0, -1.0], [0.5, 2.0]])
    >>> program = mc.trace(lambda w, x: x @ w, w, jnp.ones((1, 2)))
    >>> small = magnitude(0.5)(program)
    >>> small.variables.tolist()
    [[3.0, 0.0], [0.0, 2.0]]
    >>> print(small.history[-1].events.fired[0].what)
    2 of 4 zero (50.0%)
    """
    return Magnitude(sparsity, distribution, pattern, as_rules(rules, ignore), train)


def magnitudes(value: np.ndarray) -> np.ndarray:
    """The magnitudes of a weight, in float32 at least.

    >>> magnitudes(np.array([-2.0, 1.0], np.float16)).tolist()
    [2.0, 1.0]
    """
    wide = np.float64 if value.dtype == np.float64 else np.float32
    return np.abs(value.astype(wide))
