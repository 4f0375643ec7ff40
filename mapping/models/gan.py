"""Generative adversarial networks."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax

from mapping.core import Context, Mapping, Variables
from mapping.fields import check_count
from mapping.flow import Flow
from mapping.layers import BatchNorm, Dense, Flatten, Reshape
from mapping.model import Model, Run
from mapping.models.chain import serial
from mapping.models.guard import check_widths, lift_fields
from mapping.models.mlp import MLP
from mapping.registry import Example, register, spec


@register(
    "model",
    "gan",
    examples=lambda: Example(Gan(2, Dense(3), Dense(1)), (spec(2, 3), spec(2, 2))),
)
@dataclasses.dataclass(frozen=True)
class Gan(Model):
    r"""Two networks: one invents examples, the other tells them from real ones.

    $$ s_{real} = D(x), \qquad s_{fake} = D(G(z)) $$

    Takes real examples and noise (batch, latent), returns both scores, which are
    logits of being real. `Flow(gan, "generate")` takes noise to examples,
    `Flow(gan, "judge")` examples to scores, `Flow(gan, "fool")` noise to scores, each
    with the variables of the whole. `mapping.models.gan_step.GanStep` trains one
    against the other.

    Params: `generator/..`, `discriminator/..`.

    Goodfellow et al., "Generative Adversarial Networks", 2014,
    https://arxiv.org/abs/1406.2661.

    Attributes:
        latent: size of the noise z, which is standard normal.
        generator: a mapping G from noise to examples.
        discriminator: a mapping D from examples to logits.

    >>> gan = Gan.dense((8, 8), latent=4)
    >>> x, z = jax.numpy.ones((5, 8, 8)), jax.numpy.ones((5, 4))
    >>> v = gan.init(jax.random.key(0), x, z)
    >>> gan.sample(v, jax.random.key(1), 3).shape
    (3, 8, 8)
    """

    latent: int
    generator: Mapping | Callable[..., Any]
    discriminator: Mapping | Callable[..., Any]

    @classmethod
    def dense(
        cls, shape: tuple[int, ...], latent: int, features: tuple[int, ...] = (128, 128)
    ) -> Gan:
        """Both networks MLPs; examples have values in [0, 1]."""
        check_widths(shape, "Gan.shape")
        generator = serial(
            mlp=MLP(math.prod(shape), features, norm=BatchNorm()),
            act=jax.nn.sigmoid,
            reshape=Reshape(shape),
        )
        judge = MLP(1, features, activation=jax.nn.leaky_relu)
        return cls(latent, generator, serial(flatten=Flatten(), mlp=judge))

    def __post_init__(self) -> None:
        check_count(self.latent, "Gan.latent")
        lift_fields(self, "generator", "discriminator")

    def parts(self) -> dict[str, Any]:
        """The two networks."""
        return {"generator": self.generator, "discriminator": self.discriminator}

    def forward(
        self, run: Run, real: jax.Array, noise: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """The scores of real examples and of invented ones."""
        return self.judge(run, real), self.fool(run, noise)

    def generate(self, run: Run, noise: jax.Array) -> jax.Array:
        """Examples from noise."""
        return run.generator(noise)

    def judge(self, run: Run, example: jax.Array) -> jax.Array:
        """Logits of being real."""
        return run.discriminator(example)

    def fool(self, run: Run, noise: jax.Array) -> jax.Array:
        """The scores of examples from noise."""
        return self.judge(run, self.generate(run, noise))

    def sample(self, variables: Variables, key: jax.Array, count: int) -> jax.Array:
        """Generates `count` examples; a pure function."""
        noise = jax.random.normal(key, (count, self.latent))
        return Flow(self, "generate").apply(variables, noise, ctx=Context())[0]
