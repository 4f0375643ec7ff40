"""Zeros anywhere: what every choice has to be better than."""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Sequence

import numpy as np

from compiler.passes.prune.masks.magnitude import Scored
from compiler.passes.prune.masks.patterns import Pattern, RuleSpec, as_rules
from compiler.passes.prune.masks.plan import Decision
from mapping.core import register


@register("pass", "prune_at_random")
@dataclasses.dataclass(frozen=True)
class AtRandom(Scored):
    """Zeroes weights by lot, as many as [`Magnitude`][] would; a control.

    The lot of a weight depends on the seed, its path and its shape, on nothing else.

    Attributes:
        seed: of the lot.
    """

    seed: int = 0

    @property
    def name(self) -> str:
        """What it is called."""
        return "prune.at_random"

    def scores(self, decision: Decision, value: np.ndarray) -> np.ndarray:
        """Uniform numbers."""
        own = zlib.crc32(decision.leaf.path.encode())
        lot = np.random.default_rng([self.seed, own])
        return lot.random(value.shape)


def at_random(
    sparsity: float | None = None,
    seed: int = 0,
    *,
    distribution: str = "uniform",
    pattern: Pattern = None,
    rules: RuleSpec = (),
    ignore: str | Sequence[str] = (),
    train: bool = False,
) -> AtRandom:
    """Zeroes weights by lot; see [`AtRandom`][]. Arguments as of [`magnitude`][].

    >>> import jax.numpy as jnp, compiler as mc
    >>> program = mc.trace(lambda w, x: x @ w, jnp.ones((4, 4)), jnp.ones((1, 4)))
    >>> int((at_random(0.25)(program).variables == 0).sum())
    4
    """
    pattern_rules = as_rules(rules, ignore)
    return AtRandom(sparsity, distribution, pattern, pattern_rules, train, seed)
