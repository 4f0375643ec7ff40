"""Losses of how far one distribution is from another."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import optax

from mapping.core import Context
from mapping.losses.loss import Loss
from mapping.registry import Example, register, spec


@register(
    "loss",
    "kl_divergence",
    examples=lambda: (
        Example(KLDivergence(), (spec(4, 3), jnp.full((4, 3), 1 / 3)), batched=False),
        Example(
            KLDivergence(target_logits=True, reduction="none"), (spec(4, 3), spec(4, 3))
        ),
    ),
)
@dataclasses.dataclass(frozen=True)
class KLDivergence(Loss):
    r"""Information lost when the prediction stands for the target, in nats.

    $$ \ell_i = \sum_c t_{ic} (\log t_{ic} - \log \mathrm{softmax}(z_i)_c) $$

    Inputs: logits $z$ and target, both (..., classes); a loss of each example.
    Log-probabilities are logits too: softmax leaves them as they are. Kullback &
    Leibler, "On Information and Sufficiency", 1951,
    https://doi.org/10.1214/aoms/1177729694.

    Attributes:
        target_logits: whether the target is given as logits (a teacher's) and not as
            probabilities.
        reduction: see [`Loss`][].

    >>> logits, target = jnp.array([[0.0, 0.0]]), jnp.array([[1.0, 0.0]])
    >>> round(float(KLDivergence()({}, logits, target)), 4)
    0.6931
    """

    target_logits: bool = False
    reduction: str = "mean"

    def check(self, ctx: Context, logits: jax.Array, target: jax.Array) -> None:
        """Wants a floating distribution over the same classes."""
        fits = target.shape == logits.shape and logits.ndim > 0
        fits = fits and jnp.issubdtype(target.dtype, jnp.floating)
        self.require(fits, "a floating distribution", (logits, target), ctx)

    def each(self, logits: jax.Array, target: jax.Array) -> jax.Array:
        """`optax.kl_divergence`, with 0 log 0 = 0 on both sides."""
        least = jnp.finfo(logits.dtype).min / 2
        predicted = jnp.maximum(jax.nn.log_softmax(logits), least)
        if not self.target_logits:
            return optax.kl_divergence(predicted, target)
        wanted = jnp.maximum(jax.nn.log_softmax(target), least)
        return optax.losses.kl_divergence_with_log_targets(predicted, wanted)
