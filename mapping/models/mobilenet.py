"""MobileNets of the second version."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax

from mapping.core import Mapping
from mapping.errors import FieldError
from mapping.fields import check_count
from mapping.layers import Dense, DepthwiseConv, Dropout, GlobalAvgPool
from mapping.model import Model, Run
from mapping.models.chain import serial
from mapping.models.guard import check_widths, lift_fields
from mapping.models.residual_block import BATCH_NORM, conv, he_fan_out
from mapping.registry import Example, register, spec

PUBLISHED = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
"""Table 2 of the paper: expansion, features, number of blocks, stride of the first."""


@dataclasses.dataclass(frozen=True)
class InvertedResidual(Model):
    r"""Widens, convolves each channel by itself, narrows without a non-linearity.

    $$ y = x + W_{project}\, \sigma(W_{depthwise} * \sigma(W_{expand}\, x)) $$

    with a norm after each W; x is added where the shapes allow it.

    Params: `expand/{conv, norm}/..` (where the middle is wider than the input),
    `depthwise/{conv, norm}/..`, `project/{conv, norm}/..`.

    Attributes:
        features: of the output.
        middle: features between the first convolution and the last.
        strides: of the depthwise convolution.
        norm: after each convolution.
        activation: after the first two norms.

    >>> block = InvertedResidual(8, middle=24, strides=2)
    >>> x = jax.numpy.ones((1, 6, 6, 4))
    >>> v = block.init(jax.random.key(0), x)
    >>> block(v.params, x, state=v.state).shape
    (1, 3, 3, 8)
    """

    features: int
    middle: int
    strides: int = 1
    norm: Mapping = BATCH_NORM
    activation: Mapping | Callable[..., Any] = jax.nn.relu6

    def parts(self) -> dict[str, Any]:
        """The three convolutions, each with its norm."""
        depthwise = DepthwiseConv(
            strides=self.strides, padding=1, use_bias=False, kernel_init=he_fan_out
        )
        both = {"norm": self.norm, "act": self.activation}
        return {
            "expand": serial(conv=conv(self.middle), **both),
            "depthwise": serial(conv=depthwise, **both),
            "project": serial(conv=conv(self.features), norm=self.norm),
        }

    def forward(self, run: Run, x: jax.Array) -> jax.Array:
        """Wide, deep, narrow; and round, where it can."""
        y = x if x.shape[-1] == self.middle else run.expand(x)
        y = run.project(run.depthwise(y))
        return x + y if x.shape == y.shape else y


@register(
    "model",
    "mobilenet",
    examples=lambda: Example(
        MobileNet(2, settings=((1, 2, 1, 1), (2, 2, 1, 1)), stem=2, last=2),
        (spec(2, 4, 4, 2),),
        batched=False,
    ),
)
@dataclasses.dataclass(frozen=True)
class MobileNet(Model):
    r"""MobileNetV2: inverted residuals with linear bottlenecks; small and fast.

    $$ x_{l+1} = x_l + W_3\, \sigma_6(W_2 * \sigma_6(W_1 x_l)), \qquad
       \sigma_6(x) = \min(\max(x, 0), 6) $$

    Takes images (batch, height, width, channels), returns logits (batch, outputs).
    With the defaults the params are as many as torchvision's: 3,504,872 at 1000
    classes.

    Params: `stem/{conv, norm}/..`, `stage1/block1/{expand, depthwise, project}/..`,
    .., `last/{conv, norm}/..`, `head/{kernel, bias}`. State: `mean` and `var` of
    every norm.

    Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks", 2018,
    https://arxiv.org/abs/1801.04381.

    Attributes:
        outputs: number of classes.
        width: what all features are multiplied by, then rounded to multiples of
            eight; at 1 they are as they are.
        settings: for each stage (expansion, features, blocks, stride of the first).
        stem: features of the first convolution.
        stem_strides: its stride; 1 for small images.
        last: features of the last convolution; not made fewer by `width`.
        rate: of the dropout before the head, in [0, 1).
        norm: after each convolution.
        activation: after each norm but the projections'.

    Raises:
        FieldError: if a setting is not of four whole numbers, or a number is none.

    >>> from mapping.core import outline
    >>> x = jax.ShapeDtypeStruct((1, 224, 224, 3), "float32")
    >>> variables, y = outline(MobileNet(1000), x)
    >>> sum(leaf.size for leaf in jax.tree.leaves(variables.params)), y.shape
    (3504872, (1, 1000))
    """

    outputs: int
    width: float = 1.0
    settings: tuple[tuple[int, int, int, int], ...] = PUBLISHED
    stem: int = 32
    stem_strides: int = 2
    last: int = 1280
    rate: float = 0.2
    norm: Mapping = BATCH_NORM
    activation: Mapping | Callable[..., Any] = jax.nn.relu6

    def __post_init__(self) -> None:
        for field in ("outputs", "stem", "stem_strides", "last"):
            check_count(getattr(self, field), f"MobileNet.{field}")
        for i, setting in enumerate(self.settings):
            check_widths(setting, f"MobileNet.settings[{i}]", least=4)
        if not self.width > 0:
            raise FieldError(
                f"MobileNet.width: expected a factor > 0, got {self.width!r}."
            )
        Dropout(self.rate)  # refuses a rate that is none
        lift_fields(self, "norm", "activation")

    def parts(self) -> dict[str, Any]:
        """The stem, the stages, one more convolution, and the head."""
        both = {"norm": self.norm, "act": self.activation}
        stem, last = self._scaled(self.stem), round(self.last * max(1.0, self.width))
        stages, width = {}, stem
        for number, setting in enumerate(self.settings, 1):
            stages[f"stage{number}"] = self._stage(width, *setting)
            width = self._scaled(setting[1])
        return {
            "stem": serial(conv=conv(stem, 3, self.stem_strides), **both),
            **stages,
            "last": serial(conv=conv(last), **both),
            "pool": GlobalAvgPool(),
            "drop": Dropout(self.rate),
            "head": Dense(self.outputs),
        }

    def _stage(
        self, width: int, expansion: int, features: int, blocks: int, strides: int
    ) -> Mapping:
        made, features = {}, self._scaled(features)
        for number in range(blocks):
            made[f"block{number + 1}"] = InvertedResidual(
                features,
                expansion * width,
                1 if number else strides,
                self.norm,
                self.activation,
            )
            width = features
        return serial(**made)

    def _scaled(self, features: int) -> int:
        """The multiple of eight nearest to the scaled width, not 10% below it."""
        if self.width == 1:
            return features
        wanted = features * self.width
        rounded = max(8, int(wanted + 4) // 8 * 8)
        return rounded + 8 if rounded < 0.9 * wanted else rounded
