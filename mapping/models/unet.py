"""U-Nets."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from mapping.combinators import Lift
from mapping.core import Mapping, describe
from mapping.errors import ShapeMismatchError
from mapping.fields import check_count
from mapping.layers import BatchNorm, Conv, ConvTranspose, MaxPool
from mapping.layers.guard import check_extents
from mapping.model import Model, Run
from mapping.models.chain import serial
from mapping.models.guard import check_choice, check_widths, lift_fields, where
from mapping.registry import Example, register, spec


@register(
    "model",
    "unet",
    examples=lambda: (
        Example(UNet(2, (2, 2)), (spec(2, 4, 4, 2),)),
        Example(
            UNet(2, (2, 2), up="resize", norm=BatchNorm(), kernel_size=(3,)),
            (spec(2, 4, 2),),
            batched=False,
        ),
    ),
)
@dataclasses.dataclass(frozen=True)
class UNet(Model):
    r"""Down to coarse features and up again, with the fine ones carried across.

    $$ d_k = f_k(\mathrm{pool}(d_{k-1})), \qquad
       u_k = g_k([\mathrm{enlarge}(u_{k+1}),\, d_k]) $$

    Takes images (batch, \*space, channels), whose extents 2 ** (levels - 1) divides,
    and returns (batch, \*space, outputs): logits of every pixel, or another image.
    As many spatial axes as `kernel_size` has entries.

    Params: `down1/{conv1, norm1, conv2, norm2}/..`, .., `bottom/..`, `enlarge1/..`,
    `up1/..`, .., `head/{kernel, bias}`; 1 is the finest level.

    Ronneberger, Fischer & Brox, "U-Net: Convolutional Networks for Biomedical Image
    Segmentation", 2015, https://arxiv.org/abs/1505.04597; padded, so that the output
    is as large as the input.

    Attributes:
        outputs: channels of the output: classes of a pixel, or colours.
        channels: features of each level, from the finest to the coarsest.
        up: how space is enlarged: `"transpose"`, a transposed convolution, or
            `"resize"`, repetition and a convolution, which leaves no checkerboard.
        kernel_size: of the convolutions.
        norm: after each convolution.
        activation: after each norm.

    Raises:
        FieldError: if a width or `up` is none.
        ShapeMismatchError: if an extent cannot be halved as often as there are levels.

    >>> from mapping.core import outline
    >>> x = jax.ShapeDtypeStruct((2, 256, 256, 3), "float32")
    >>> variables, y = outline(UNet(1, channels=(16, 32, 64, 128)), x)
    >>> sorted(variables.params["up1"]), y.shape
    (['conv1', 'conv2'], (2, 256, 256, 1))
    """

    outputs: int
    channels: tuple[int, ...] = (32, 64, 128)
    up: str = "transpose"
    kernel_size: tuple[int, ...] = (3, 3)
    norm: Mapping | None = None
    activation: Mapping | Callable[..., Any] = jax.nn.relu

    def __post_init__(self) -> None:
        check_count(self.outputs, "UNet.outputs")
        check_widths(self.channels, "UNet.channels")
        check_choice(self.up, "UNet.up", ("transpose", "resize"))
        check_extents(self.kernel_size, "UNet.kernel_size")
        lift_fields(self, "norm", "activation")

    def parts(self) -> dict[str, Any]:
        """What each level does on the way down and on the way up."""
        *fine, coarsest = self.channels
        window = (2,) * len(self.kernel_size)
        parts: dict[str, Any] = {"bottom": self._convs(coarsest)}
        for level, width in enumerate(fine, 1):
            parts |= {
                f"down{level}": self._convs(width),
                f"pool{level}": MaxPool(window),
                f"enlarge{level}": self._enlarge(width),
                f"up{level}": self._convs(width),
            }
        head = Conv(self.outputs, (1,) * len(self.kernel_size))
        return {**parts, "head": head}

    def forward(self, run: Run, x: jax.Array) -> jax.Array:
        """Down, keeping what each level saw; up, with it beside."""
        self._check(run, x)
        levels, seen = range(1, len(self.channels)), {}
        for level in levels:
            seen[level] = run(f"down{level}", x)
            x = run(f"pool{level}", seen[level])
        x = run.bottom(x)
        for level in reversed(levels):
            beside = (run(f"enlarge{level}", x), seen[level])
            x = run(f"up{level}", jnp.concatenate(beside, axis=-1))
        return run.head(x)

    def _convs(self, width: int) -> Mapping:
        conv = Conv(width, self.kernel_size, use_bias=self.norm is None)
        once = {"conv": conv, "norm": self.norm, "act": self.activation}
        twice = {f"{name}{i}": part for i in (1, 2) for name, part in once.items()}
        return serial(**twice)

    def _enlarge(self, width: int) -> Mapping:
        axes = len(self.kernel_size)
        if self.up == "transpose":
            return ConvTranspose(width, (2,) * axes, strides=2)
        repeat = Lift.of(doubled, axes=axes)
        return serial(repeat=repeat, conv=Conv(width, self.kernel_size))

    def _check(self, run: Run, x: jax.Array) -> None:
        axes, factor = len(self.kernel_size), 2 ** (len(self.channels) - 1)
        space = x.shape[-1 - axes : -1]
        if len(space) < axes or any(extent % factor for extent in space):
            raise ShapeMismatchError(
                f"{where(run)} (UNet): expects {axes} axes of space that {factor} "
                f"divides, and channels, got {describe(x)}. Pad the images, or use "
                "fewer levels."
            )


def doubled(x: jax.Array, axes: int) -> jax.Array:
    """Repeats every pixel along the `axes` axes before the channels.

    >>> doubled(jnp.array([[[1.0], [2.0]]]), axes=1).ravel().tolist()
    [1.0, 1.0, 2.0, 2.0]
    """
    for axis in range(-1 - axes, -1):
        x = jnp.repeat(x, 2, axis=axis)
    return x
