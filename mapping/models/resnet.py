"""Residual networks."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax

from mapping.core import Mapping
from mapping.errors import FieldError
from mapping.fields import check_count
from mapping.layers import Dense, GlobalAvgPool, MaxPool
from mapping.model import Model
from mapping.models.chain import serial
from mapping.models.guard import check_choice, check_widths, lift_fields
from mapping.models.residual_block import BATCH_NORM, ResidualBlock, conv
from mapping.registry import Example, register, spec

_STEMS = ("imagenet", "cifar")
_BLOCKS = ("basic", "bottleneck")


@register(
    "model",
    "resnet",
    examples=lambda: (
        Example(
            ResNet(2, (1, 1), (2, 2), stem="cifar"), (spec(2, 4, 4, 2),), batched=False
        ),
        Example(
            ResNet(2, (1,), (2,), "bottleneck", zero_last=True),
            (spec(2, 8, 8, 1),),
            batched=False,
        ),
    ),
)
@dataclasses.dataclass(frozen=True)
class ResNet(Model):
    r"""A residual network: stages of blocks, each stage at half the resolution.

    $$ x_{l+1} = \sigma(s(x_l) + f_l(x_l)) $$

    Takes images (batch, height, width, channels), returns logits (batch, outputs).
    Padding and strides are those of torchvision's networks, and so are the numbers
    of params.

    Params: `stem/{conv, norm}/..`, `stage1/block1/{conv1, norm1, conv2, norm2}/..`,
    `stage2/block1/shortcut/{conv, norm}/..`, .., `head/{kernel, bias}`. State:
    `mean` and `var` of every norm.

    He et al., "Deep Residual Learning for Image Recognition", 2015,
    https://arxiv.org/abs/1512.03385.

    Attributes:
        outputs: number of classes.
        depths: number of blocks in each stage.
        widths: features of each stage; its bottlenecks return four times as many.
        block: `"basic"` or `"bottleneck"`.
        stem: `"imagenet"`, which divides the resolution by four, or `"cifar"`, which
            keeps it.
        norm: after each convolution.
        activation: everywhere.
        zero_last: whether every block starts as its shortcut (Goyal et al., 2017,
            https://arxiv.org/abs/1706.02677); needs a norm with `scale_init`.

    Raises:
        FieldError: if depths and widths differ in number, or a choice is none.

    >>> from mapping.core import outline
    >>> net = ResNet.resnet18()
    >>> x = jax.ShapeDtypeStruct((1, 224, 224, 3), "float32")
    >>> variables, y = outline(net, x)
    >>> sum(leaf.size for leaf in jax.tree.leaves(variables.params)), y.shape
    (11689512, (1, 1000))
    """

    outputs: int
    depths: tuple[int, ...] = (2, 2, 2, 2)
    widths: tuple[int, ...] = (64, 128, 256, 512)
    block: str = "basic"
    stem: str = "imagenet"
    norm: Mapping = BATCH_NORM
    activation: Mapping | Callable[..., Any] = jax.nn.relu
    zero_last: bool = False

    @classmethod
    def resnet18(cls, outputs: int = 1000, **fields: Any) -> ResNet:
        """Eighteen layers; 11.7 million params at 1000 classes."""
        return cls(outputs, **fields)

    @classmethod
    def resnet34(cls, outputs: int = 1000, **fields: Any) -> ResNet:
        """Thirty-four layers; 21.8 million params at 1000 classes."""
        return cls(outputs, (3, 4, 6, 3), **fields)

    @classmethod
    def resnet50(cls, outputs: int = 1000, **fields: Any) -> ResNet:
        """Fifty layers, of bottlenecks; 25.6 million params at 1000 classes."""
        return cls(outputs, (3, 4, 6, 3), block="bottleneck", **fields)

    def __post_init__(self) -> None:
        check_count(self.outputs, "ResNet.outputs")
        check_widths(self.depths, "ResNet.depths")
        check_widths(self.widths, "ResNet.widths")
        if len(self.depths) != len(self.widths):
            raise FieldError(
                f"ResNet: expected a width for each of {len(self.depths)} depths, got "
                f"{self.widths}. Give both as many entries."
            )
        check_choice(self.block, "ResNet.block", _BLOCKS)
        check_choice(self.stem, "ResNet.stem", _STEMS)
        lift_fields(self, "norm", "activation")
        if self.zero_last and not hasattr(self.norm, "scale_init"):
            raise FieldError(
                f"ResNet.zero_last: expected a norm with scale_init, got {self.norm}. "
                "Use one of mapping.layers, or zero_last=False."
            )

    def parts(self) -> dict[str, Any]:
        """The stem, the stages, and the head on the mean over space."""
        stages = {f"stage{i + 1}": self._stage(i) for i in range(len(self.depths))}
        ends = {"pool": GlobalAvgPool(), "head": Dense(self.outputs)}
        return {"stem": self._stem(), **stages, **ends}

    def _stem(self) -> Mapping:
        whole = self.stem == "cifar"
        return serial(
            conv=conv(self.widths[0], 3) if whole else conv(self.widths[0], 7, 2),
            norm=self.norm,
            act=self.activation,
            pool=None if whole else MaxPool((3, 3), 2, ((1, 1), (1, 1))),
        )

    def _stage(self, index: int) -> Mapping:
        fields = (self.block == "bottleneck", self.norm, self.activation)
        blocks = {
            f"block{number + 1}": ResidualBlock(
                self.widths[index],
                2 if index and not number else 1,
                *fields,
                self.zero_last,
            )
            for number in range(self.depths[index])
        }
        return serial(**blocks)
