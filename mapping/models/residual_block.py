"""The residual block of convolutions."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax

from mapping.core import Mapping
from mapping.layers import BatchNorm, Conv
from mapping.model import Model, Run
from mapping.models.chain import serial
from mapping.registry import register

BATCH_NORM = BatchNorm()
"""What follows each convolution."""


@register("function", "he_fan_out")
def he_fan_out(key: jax.Array, shape: tuple[int, ...], dtype: Any = "float32") -> Any:
    """He et al.'s initialiser of convolutions: rectifiers keep the gradient's variance.

    Normal of variance 2 / (features out x extent of the kernel), drawn in a row: XLA
    takes much longer to compile a draw of many axes.

    https://arxiv.org/abs/1502.01852.

    >>> he_fan_out(jax.random.key(0), (3, 3, 4, 8)).shape
    (3, 3, 4, 8)
    """
    row = jax.random.normal(key, (math.prod(shape),), dtype)
    fan_out = math.prod(shape[:-2]) * shape[-1]
    return (row * math.sqrt(2 / fan_out)).reshape(shape)


def conv(features: int, size: int = 1, strides: int = 1, groups: int = 1) -> Conv:
    """A convolution before a norm, padded as the published networks are."""
    return Conv(
        features,
        (size, size),
        strides,
        padding=size // 2,
        groups=groups,
        use_bias=False,
        kernel_init=he_fan_out,
    )


@dataclasses.dataclass(frozen=True)
class ResidualBlock(Model):
    r"""Two or three convolutions and a way round them.

    $$ y = \sigma(s(x) + f(x)) $$

    The shortcut s is the identity where shapes allow it, else a 1x1 convolution and
    a norm. In a bottleneck the stride is that of the 3x3 convolution ("v1.5").

    Params: `conv1/kernel`, `norm1/{scale, bias}`, .., `shortcut/{conv, norm}/..`.

    Attributes:
        features: of the inner convolutions; a bottleneck returns four times as many.
        strides: step along both axes of space.
        bottleneck: 1x1, 3x3, 1x1 instead of 3x3, 3x3.
        norm: after each convolution.
        activation: after each norm but the last, and after the sum.
        zero_last: whether the last norm's scale starts at zero.

    >>> block = ResidualBlock(8, strides=2)
    >>> x = jax.numpy.ones((1, 6, 6, 4))
    >>> v = block.init(jax.random.key(0), x)
    >>> block(v.params, x, state=v.state).shape
    (1, 3, 3, 8)
    """

    features: int
    strides: int = 1
    bottleneck: bool = False
    norm: Mapping = BATCH_NORM
    activation: Mapping | Callable[..., Any] = jax.nn.relu
    zero_last: bool = False

    def parts(self) -> dict[str, Any]:
        """Convolutions, norms and activations by number; the shortcut."""
        convs = self._convs()
        width = convs[-1].features
        shortcut = serial(conv=conv(width, 1, self.strides), norm=self.norm)
        parts: dict[str, Any] = {"shortcut": shortcut}
        for number, each in enumerate(convs, 1):
            parts |= {
                f"conv{number}": each,
                f"norm{number}": self.norm,
                f"act{number}": self.activation,
            }
        if self.zero_last:
            zeros = {"scale_init": jax.nn.initializers.zeros}
            parts[f"norm{len(convs)}"] = dataclasses.replace(self.norm, **zeros)
        return parts

    def forward(self, run: Run, x: jax.Array) -> jax.Array:
        """Adds both ways, then rectifies."""
        y, count = x, len(self._convs())
        for number in range(1, count + 1):
            y = run(f"norm{number}", run(f"conv{number}", y))
            if number < count:
                y = run(f"act{number}", y)
        around = x if x.shape == y.shape else run.shortcut(x)
        return run(f"act{count}", around + y)

    def _convs(self) -> tuple[Conv, ...]:
        width, step = self.features, self.strides
        if self.bottleneck:
            return conv(width), conv(width, 3, step), conv(4 * width)
        return conv(width, 3, step), conv(width, 3)
