"""Convolutions that keep channels apart, and what mixes them again."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax

from mapping.core import Context, Mapping, State, Variables, initialising
from mapping.fields import check_count
from mapping.layers.convolution import Conv, Padding, require_space
from mapping.layers.guard import check_extents, learned, require_features
from mapping.model import Model, Run
from mapping.registry import Example, register, spec


@register(
    "layer",
    "depthwise_conv",
    examples=lambda: (
        Example(DepthwiseConv((3,)), (spec(1, 4, 2),)),
        Example(DepthwiseConv((3, 2), 2, strides=2), (spec(1, 4, 5, 3),)),
    ),
)
@dataclasses.dataclass(frozen=True)
class DepthwiseConv(Mapping):
    r"""A convolution of each channel by itself, with `multiplier` kernels for each.

    $$ y_{p,\, c m + j} = b_{c m + j} +
       \sum_q W_{q,\, 0,\, c m + j} \, x_{s p + q,\, c} $$

    It is a [`Conv`][] of as many groups as there are channels, for inputs whose
    number of channels need not be said.

    Params: `kernel` (\*kernel_size, 1, channels * multiplier), `bias`
    (channels * multiplier,).

    Attributes:
        kernel_size: extent along each spatial axis.
        multiplier: output channels for each input channel.
        strides: step along each spatial axis.
        padding: as of [`Conv`][].
        dilation: spacing of the kernel's taps.
        use_bias: whether `b` is there; leave it out before a batch norm.
        kernel_init: initialiser of `kernel`; LeCun normal by default.
        bias_init: initialiser of `bias`; zeros by default.

    >>> conv = DepthwiseConv((3, 3), multiplier=2)
    >>> x = jax.ShapeDtypeStruct((1, 6, 6, 4), "float32")
    >>> conv.init(jax.random.key(0), x).params["kernel"].shape
    (3, 3, 1, 8)
    """

    kernel_size: tuple[int, ...] = (3, 3)
    multiplier: int = 1
    strides: int | tuple[int, ...] = 1
    padding: Padding = "SAME"
    dilation: int | tuple[int, ...] = 1
    use_bias: bool = True
    kernel_init: Callable[..., Any] | None = None
    bias_init: Callable[..., Any] | None = None

    def __post_init__(self) -> None:
        check_count(self.multiplier, "DepthwiseConv.multiplier")
        check_extents(self.kernel_size, "DepthwiseConv.kernel_size")

    def init(self, key: jax.Array, *specs: Any) -> Variables:
        """Initialises a kernel of as many groups as the input has channels."""
        require_space(initialising(), self.kind, specs, self.kernel_size)
        return self._conv(specs[0].shape[-1]).init(key, *specs)

    def apply(
        self, variables: Variables, *inputs: Any, ctx: Context
    ) -> tuple[Any, State]:
        """Convolves; the input needs a channel axis and every spatial one."""
        require_space(ctx, self.kind, inputs, self.kernel_size)
        (kernel,) = learned(variables, ctx, self.kind, "kernel")
        channels = kernel.shape[-1] // self.multiplier
        require_features(ctx, self.kind, inputs[0], channels)
        return self._conv(channels).apply(variables, *inputs, ctx=ctx)

    def _conv(self, channels: int) -> Conv:
        return _Groups(
            channels * self.multiplier,
            self.kernel_size,
            self.strides,
            self.padding,
            self.dilation,
            channels,
            self.use_bias,
            self.kernel_init,
            self.bias_init,
        )


@dataclasses.dataclass(frozen=True)
class _Groups(Conv):
    """The convolution that does the work, under the name the user knows."""

    @property
    def kind(self) -> str:
        """As in the user's code."""
        return "DepthwiseConv"


@register(
    "layer",
    "separable_conv",
    examples=lambda: Example(SeparableConv(4, (3, 2)), (spec(1, 4, 5, 3),)),
)
@dataclasses.dataclass(frozen=True)
class SeparableConv(Model):
    r"""A convolution in space, then one over channels: fewer weights than both at once.

    $$ y = \mathrm{pointwise}(\mathrm{depthwise}(x)) $$

    Params: `depthwise/kernel` (\*kernel_size, 1, channels * multiplier),
    `pointwise/kernel` (1, .., channels * multiplier, features), `pointwise/bias`
    (features,).

    Chollet, "Xception", 2016, https://arxiv.org/abs/1610.02357; for a norm and an
    activation between the two, as in MobileNet, compose [`DepthwiseConv`][] and
    [`Conv`][].

    Attributes:
        features: number of output channels.
        kernel_size: extent along each spatial axis.
        multiplier: channels between the two for each input channel.
        strides: step along each spatial axis.
        padding: as of [`Conv`][].
        dilation: spacing of the kernel's taps.
        use_bias: whether the pointwise convolution has a bias.
        kernel_init: initialiser of both kernels; LeCun normal by default.
        bias_init: initialiser of the bias; zeros by default.

    >>> conv = SeparableConv(8)
    >>> x = jax.numpy.ones((1, 6, 6, 4))
    >>> conv(conv.init(jax.random.key(0), x).params, x).shape
    (1, 6, 6, 8)
    """

    features: int
    kernel_size: tuple[int, ...] = (3, 3)
    multiplier: int = 1
    strides: int | tuple[int, ...] = 1
    padding: Padding = "SAME"
    dilation: int | tuple[int, ...] = 1
    use_bias: bool = True
    kernel_init: Callable[..., Any] | None = None
    bias_init: Callable[..., Any] | None = None

    def __post_init__(self) -> None:
        check_count(self.features, "SeparableConv.features")
        check_count(self.multiplier, "SeparableConv.multiplier")
        check_extents(self.kernel_size, "SeparableConv.kernel_size")

    def parts(self) -> dict[str, Mapping]:
        """A depthwise and a pointwise convolution."""
        return {
            "depthwise": DepthwiseConv(
                self.kernel_size,
                self.multiplier,
                self.strides,
                self.padding,
                self.dilation,
                use_bias=False,
                kernel_init=self.kernel_init,
            ),
            "pointwise": Conv(
                self.features,
                (1,) * len(self.kernel_size),
                use_bias=self.use_bias,
                kernel_init=self.kernel_init,
                bias_init=self.bias_init,
            ),
        }

    def forward(self, run: Run, *inputs: jax.Array) -> jax.Array:
        """One after the other."""
        require_space(run.ctx, self.kind, inputs, self.kernel_size)
        return run.pointwise(run.depthwise(*inputs))
