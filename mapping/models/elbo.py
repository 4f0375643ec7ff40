"""The loss of variational autoencoders."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from mapping.core import Context
from mapping.losses import Loss
from mapping.losses.loss import check_number
from mapping.models.guard import check_choice
from mapping.registry import Example, register, spec


@register(
    "loss",
    "elbo",
    examples=lambda: tuple(
        Example(loss, (spec(4, 3), spec(4, 2), spec(4, 2), target), batched=not mean)
        for mean, loss, target in (
            (True, ELBO(), jnp.full((4, 3), 0.3)),
            (False, ELBO("gaussian", 0.5, 0.1, reduction="none"), spec(4, 3)),
        )
    ),
)
@dataclasses.dataclass(frozen=True)
class ELBO(Loss):
    r"""The negative evidence lower bound of a [`VAE`][], in nats for each example.

    $$ \ell = -\log p(x \mid z) + \beta\, D_{KL}(N(\mu, \sigma^2) \,\|\, N(0, 1)),
       \qquad D_{KL} = \tfrac12 \sum_i (\mu_i^2 + \sigma_i^2 - 1 - \log \sigma_i^2) $$

    Inputs: reconstruction (batch, ..), mean and log variance (batch, latent), as the
    model returns them, and the target, of the reconstruction's shape. A loss of each
    example.

    Attributes:
        likelihood: `"bernoulli"`: the reconstruction is logits, the target in [0, 1];
            `"gaussian"`: it is the mean.
        beta: weight of the divergence, >= 0 (Higgins et al., 2017,
            https://openreview.net/forum?id=Sy2fzU9gl).
        scale: standard deviation of the Gaussian, in units of the target.
        reduction: see [`Loss`][].

    >>> zero = jnp.zeros((1, 2))
    >>> loss = ELBO()({}, (zero, zero, zero), jnp.array([[0.0, 1.0]]))
    >>> round(float(loss), 4)  # 2 log 2
    1.3863
    """

    likelihood: str = "bernoulli"
    beta: float = 1.0
    scale: float = 1.0
    reduction: str = "mean"
    takes: ClassVar[int] = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice(self.likelihood, "ELBO.likelihood", ("bernoulli", "gaussian"))
        check_number(self.beta, "ELBO.beta", 0)
        check_number(self.scale, "ELBO.scale", 0, open_=True)

    def check(self, ctx: Context, *inputs: Any) -> None:
        """Wants a target like the reconstruction, and a code for each example."""
        guess, mean, log_variance, target = inputs
        self.require(guess.shape == target.shape, "a target", (guess, target), ctx)
        fits = mean.shape == log_variance.shape and mean.ndim >= 1
        self.require(fits, "a log variance like the mean", (mean, log_variance), ctx)
        fits = mean.shape[:-1] == guess.shape[: mean.ndim - 1]
        self.require(fits, "one code for each example", (guess, mean), ctx)

    def each(self, *inputs: jax.Array) -> jax.Array:
        """The cost of the example given its code, and of the code."""
        guess, mean, log_variance, target = inputs
        target = target.astype(guess.dtype)
        if self.likelihood == "bernoulli":
            inside = (target >= 0) & (target <= 1)
            cost = jax.nn.softplus(guess) - target * guess
            cost = jnp.where(inside, cost, jnp.nan)
        else:
            constant = math.log(self.scale) + math.log(2 * math.pi) / 2
            cost = jnp.square((guess - target) / self.scale) / 2 + constant
        axes = tuple(range(mean.ndim - 1, guess.ndim))
        known = jnp.square(mean) + jnp.exp(log_variance) - 1 - log_variance
        return cost.sum(axes) + self.beta * known.sum(-1) / 2
