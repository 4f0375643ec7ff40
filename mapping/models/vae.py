"""Variational autoencoders."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from mapping.core import Context, Mapping, Variables, describe
from mapping.errors import ShapeMismatchError
from mapping.fields import check_count
from mapping.flow import Flow
from mapping.layers import Dense
from mapping.model import Model, Run
from mapping.models.autoencoder import Activation, conv_coders, dense_coders
from mapping.models.guard import lift_fields, where
from mapping.registry import Example, register, spec


@register(
    "model",
    "vae",
    examples=lambda: Example(VAE(2, Dense(4), Dense(3)), (spec(2, 3),)),
)
@dataclasses.dataclass(frozen=True)
class VAE(Model):
    r"""An autoencoder of distributions: its codes can be drawn, so it can invent.

    $$ z = \mu(x) + \sigma(x)\, \epsilon, \quad \epsilon \sim N(0, 1), \qquad
       \hat x = g(z) $$

    Returns (reconstruction, mean, log variance), which [`ELBO`][] takes. In
    inference z is the mean, and needs no key; draw it, as in training, where the
    bound itself is wanted. `Flow(vae, "encode")` gives (mean, log variance) and
    `Flow(vae, "decode")` a reconstruction, each with the variables of the whole.

    Params: `encoder/..`, `decoder/..`.

    Kingma & Welling, "Auto-Encoding Variational Bayes", 2013,
    https://arxiv.org/abs/1312.6114.

    Attributes:
        latent: size of the code z.
        encoder: a mapping to 2 * latent numbers: the mean and the log variance.
        decoder: a mapping from codes; of logits where pixels are in [0, 1].

    Raises:
        ShapeMismatchError: if the encoder does not return 2 * latent numbers.

    >>> vae = VAE.dense((8, 8), latent=3)
    >>> x = jnp.ones((5, 8, 8))
    >>> v = vae.init(jax.random.key(0), x)
    >>> [y.shape for y in vae(v.params, x)]
    [(5, 8, 8), (5, 3), (5, 3)]
    >>> vae.sample(v, jax.random.key(1), 10).shape
    (10, 8, 8)
    """

    latent: int
    encoder: Mapping | Callable[..., Any]
    decoder: Mapping | Callable[..., Any]

    @classmethod
    def dense(
        cls,
        shape: tuple[int, ...],
        latent: int,
        features: tuple[int, ...] = (128,),
        activation: Activation = jax.nn.relu,
    ) -> VAE:
        """Both halves MLPs, the decoder's widths in the opposite order."""
        return cls(latent, *dense_coders(shape, latent, features, activation, codes=2))

    @classmethod
    def conv(
        cls,
        shape: tuple[int, ...],
        latent: int,
        channels: tuple[int, ...] = (32, 64),
        activation: Activation = jax.nn.relu,
    ) -> VAE:
        """Convolutions that halve space, and transposed ones that double it."""
        return cls(latent, *conv_coders(shape, latent, channels, activation, codes=2))

    def __post_init__(self) -> None:
        check_count(self.latent, "VAE.latent")
        lift_fields(self, "encoder", "decoder")

    def parts(self) -> dict[str, Any]:
        """The two halves."""
        return {"encoder": self.encoder, "decoder": self.decoder}

    def forward(self, run: Run, x: jax.Array) -> tuple[jax.Array, ...]:
        """Encodes, draws in training, decodes."""
        mean, log_variance = self.encode(run, x)
        code = mean
        if run.train:
            noise = jax.random.normal(run.rng("code"), mean.shape, mean.dtype)
            code = mean + jnp.exp(log_variance / 2) * noise
        return self.decode(run, code), mean, log_variance

    def encode(self, run: Run, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The distribution of an input's code: its mean and log variance."""
        both = run.encoder(x)
        if both.shape[-1] != 2 * self.latent:
            raise ShapeMismatchError(
                f"{where(run)} (VAE): expected {2 * self.latent} numbers from the "
                f"encoder, {self.latent} means and log variances, got "
                f"{describe(both)}. Let it end in Dense({2 * self.latent})."
            )
        mean, log_variance = jnp.split(both, 2, axis=-1)
        return mean, log_variance

    def decode(self, run: Run, code: jax.Array) -> jax.Array:
        """What a code stands for."""
        return run.decoder(code)

    def sample(self, variables: Variables, key: jax.Array, count: int) -> jax.Array:
        """Decodes `count` codes drawn from the prior; a pure function."""
        code = jax.random.normal(key, (count, self.latent))
        return Flow(self, "decode").apply(variables, code, ctx=Context())[0]
