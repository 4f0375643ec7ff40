"""Autoencoders, and the encoders and decoders that others are made of too."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax

from mapping.core import Mapping
from mapping.errors import FieldError
from mapping.layers import Conv, ConvTranspose, Dense, Flatten, Reshape
from mapping.model import Model, Run
from mapping.models.chain import serial
from mapping.models.guard import check_widths, lift_fields
from mapping.models.mlp import MLP
from mapping.registry import Example, register, spec

Activation = Mapping | Callable[..., Any]


@register(
    "model",
    "autoencoder",
    examples=lambda: (
        Example(Autoencoder(Dense(2), Dense(3)), (spec(2, 3),)),
        Example(
            Autoencoder.conv((4, 4, 1), 2, channels=(2,)),
            (spec(2, 4, 4, 1),),
            batched=False,
        ),
    ),
)
@dataclasses.dataclass(frozen=True)
class Autoencoder(Model):
    r"""Squeezes its input through a code, and rebuilds it.

    $$ \hat x = g(f(x)), \qquad f: \mathbb{R}^d \to \mathbb{R}^k $$

    `Flow(model, "encode")` and `Flow(model, "decode")` are its halves, with its own
    variables. `Autoencoder.dense` and `.conv` make both for a shape of input.

    Params: `encoder/..`, `decoder/..`.

    Hinton & Salakhutdinov, "Reducing the Dimensionality of Data with Neural
    Networks", 2006, https://doi.org/10.1126/science.1127647.

    Attributes:
        encoder: any mapping f to codes (batch, k).
        decoder: any mapping g back.

    >>> coder = Autoencoder.dense((8, 8), latent=3)
    >>> x = jax.numpy.ones((5, 8, 8))
    >>> v = coder.init(jax.random.key(0), x)
    >>> coder(v.params, x).shape, sorted(v.params)
    ((5, 8, 8), ['decoder', 'encoder'])
    """

    encoder: Mapping | Callable[..., Any]
    decoder: Mapping | Callable[..., Any]

    @classmethod
    def dense(
        cls,
        shape: tuple[int, ...],
        latent: int,
        features: tuple[int, ...] = (128,),
        activation: Activation = jax.nn.relu,
    ) -> Autoencoder:
        """Both halves MLPs, the decoder's widths in the opposite order."""
        return cls(*dense_coders(shape, latent, features, activation))

    @classmethod
    def conv(
        cls,
        shape: tuple[int, ...],
        latent: int,
        channels: tuple[int, ...] = (32, 64),
        activation: Activation = jax.nn.relu,
    ) -> Autoencoder:
        """Convolutions that halve space, and transposed ones that double it."""
        return cls(*conv_coders(shape, latent, channels, activation))

    def __post_init__(self) -> None:
        lift_fields(self, "encoder", "decoder")

    def parts(self) -> dict[str, Any]:
        """The two halves."""
        return {"encoder": self.encoder, "decoder": self.decoder}

    def forward(self, run: Run, x: jax.Array) -> jax.Array:
        """There and back."""
        return self.decode(run, self.encode(run, x))

    def encode(self, run: Run, x: jax.Array) -> jax.Array:
        """The code of an input."""
        return run.encoder(x)

    def decode(self, run: Run, code: jax.Array) -> jax.Array:
        """What a code stands for."""
        return run.decoder(code)


def dense_coders(
    shape: tuple[int, ...],
    latent: int,
    features: tuple[int, ...] = (128,),
    activation: Activation = jax.nn.relu,
    *,
    codes: int = 1,
) -> tuple[Mapping, Mapping]:
    """An encoder to `codes` * latent numbers, and a decoder of latent ones; MLPs.

    >>> encoder, decoder = dense_coders((8, 8), latent=3)
    >>> encoder.names, decoder.names
    (('flatten', 'mlp'), ('mlp', 'reshape'))
    """
    check_widths(shape, "dense_coders.shape")
    down = MLP(codes * latent, features, activation)
    up = MLP(math.prod(shape), features[::-1], activation)
    encoder = serial(flatten=Flatten(), mlp=down)
    return encoder, serial(mlp=up, reshape=Reshape(shape))


def conv_coders(
    shape: tuple[int, ...],
    latent: int,
    channels: tuple[int, ...] = (32, 64),
    activation: Activation = jax.nn.relu,
    *,
    codes: int = 1,
) -> tuple[Mapping, Mapping]:
    """As [`dense_coders`][], of convolutions, for shapes (\\*space, channels).

    Raises:
        FieldError: if an extent cannot be halved as often as there are levels.

    >>> encoder, decoder = conv_coders((8, 8, 1), latent=3, channels=(4,))
    >>> encoder.names, decoder.names
    (('conv1', 'act1', 'flatten', 'code'), ('code', 'reshape', 'act1', 'conv1'))
    """
    check_widths(shape, "conv_coders.shape", least=2)
    check_widths(channels, "conv_coders.channels")
    *space, colours = shape
    factor, kernel = 2 ** len(channels), (3,) * len(space)
    if any(extent % factor for extent in space):
        raise FieldError(
            f"conv_coders.shape: expected extents that {factor} divides, to be halved "
            f"{len(channels)} times, got {shape}. Pad the images, or use fewer levels."
        )
    down: dict[str, Any] = {}
    up: dict[str, Any] = {}
    for level, width in enumerate(channels, 1):
        down |= {f"conv{level}": Conv(width, kernel, strides=2)}
        down |= {f"act{level}": activation}
    for level, width in enumerate((colours, *channels[:-1]), 1):
        whole = {f"act{level}": activation}
        whole |= {f"conv{level}": ConvTranspose(width, kernel, strides=2)}
        up = whole | up
    coarse = (*(extent // factor for extent in space), channels[-1])
    encoder = serial(**down, flatten=Flatten(), code=Dense(codes * latent))
    start = {"code": Dense(math.prod(coarse)), "reshape": Reshape(coarse)}
    return encoder, serial(**start, **up)
