"""Convolutions."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax

from mapping.core import Context, State, Variables, describe, initialising
from mapping.errors import ShapeMismatchError
from mapping.fields import check_count
from mapping.foreign import require_arrays
from mapping.layers.guard import check_extents
from mapping.layers.linen import LinenLayer
from mapping.layers.start import lecun_normal
from mapping.registry import Example, register, spec

Padding = int | str | tuple[int, ...] | tuple[tuple[int, int], ...]
"""`"SAME"`, `"VALID"`, `"CIRCULAR"`, one number for every side, a number for each
axis, or a (low, high) pair for each."""


@register(
    "layer",
    "conv",
    examples=lambda: (
        Example(Conv(3, (2,), padding="CAUSAL"), (spec(1, 4, 2),)),
        Example(Conv(4, (2, 3), strides=2, groups=2), (spec(1, 4, 5, 2),)),
    ),
)
@dataclasses.dataclass(frozen=True)
class Conv(LinenLayer):
    r"""A convolution over the axes between the batch and the last (channels last).

    $$ y_{p, o} = b_o + \sum_{q, i} W_{q, i, o} \, x_{s p + q, i} $$

    Params: `kernel` (\*kernel_size, channels in / groups, features), `bias`
    (features,). As many spatial axes as `kernel_size` has entries: one for
    sequences, two for images, three for volumes.

    Attributes:
        features: number of output channels.
        kernel_size: extent along each spatial axis.
        strides: step along each spatial axis.
        padding: `"SAME"`, `"VALID"`, `"CAUSAL"`, `"CIRCULAR"`, (low, high) pairs, or
            one number for both sides of every axis.
        dilation: spacing of the kernel's taps.
        groups: number of channel groups that do not mix; `channels in` of them
            make the convolution depthwise.
        use_bias: whether `b` is there; leave it out before a batch norm.
        kernel_init: initialiser of `kernel`; LeCun normal by default.
        bias_init: initialiser of `bias`; zeros by default.

    >>> import jax
    >>> conv = Conv(8, (3, 3))
    >>> spec = jax.ShapeDtypeStruct((1, 6, 6, 1), "float32")
    >>> conv.init(jax.random.key(0), spec).params["kernel"].shape
    (3, 3, 1, 8)
    """

    features: int
    kernel_size: tuple[int, ...] = (3, 3)
    strides: int | tuple[int, ...] = 1
    padding: Padding = "SAME"
    dilation: int | tuple[int, ...] = 1
    groups: int = 1
    use_bias: bool = True
    kernel_init: Callable[..., Any] | None = None
    bias_init: Callable[..., Any] | None = None

    def __post_init__(self) -> None:
        check_count(self.features, f"{self.kind}.features")
        check_count(self.groups, f"{self.kind}.groups")
        check_extents(self.kernel_size, f"{self.kind}.kernel_size")

    def module(self) -> nn.Module:
        """`flax.linen.Conv`."""
        return nn.Conv(
            self.features,
            self.kernel_size,
            strides=self.strides,
            padding=self.padding,
            kernel_dilation=self.dilation,
            feature_group_count=self.groups,
            use_bias=self.use_bias,
            kernel_init=self.kernel_init or lecun_normal,
            bias_init=self.bias_init or nn.initializers.zeros,
        )

    def features_in(self, variables: Variables) -> int | None:
        """The kernel's input channels, over all groups."""
        kernel = variables.params.get("kernel")
        return None if kernel is None else kernel.shape[-2] * self.groups

    def init(self, key: jax.Array, *specs: Any) -> Variables:
        """Makes a kernel for as many channels as the input has."""
        require_space(initialising(), self.kind, specs, self.kernel_size)
        return super().init(key, *specs)

    def apply(
        self, variables: Variables, *inputs: Any, ctx: Context
    ) -> tuple[Any, State]:
        """Convolves; the input needs a channel axis and every spatial one."""
        require_space(ctx, self.kind, inputs, self.kernel_size)
        return super().apply(variables, *inputs, ctx=ctx)


@register(
    "layer",
    "conv_transpose",
    examples=lambda: (
        Example(ConvTranspose(3, (3,), strides=2), (spec(1, 4, 2),)),
        Example(ConvTranspose(2, (2, 3), padding="VALID"), (spec(1, 3, 2, 2),)),
    ),
)
@dataclasses.dataclass(frozen=True)
class ConvTranspose(LinenLayer):
    r"""A convolution between whose inputs `strides - 1` zeros are put: it enlarges.

    $$ y_{s p + k - 1 - q,\, o} = b_o + \sum_{p, q, i} W_{q, i, o} \, x_{p, i} $$

    for kernel size k, stride s and no padding. `"SAME"` makes the output s times as
    large as the input, `"VALID"` (s (n - 1) + k, if k >= s).

    The kernel lies as flax.linen has it: flipped in space against the gradient of
    a convolution, which is what torch.nn.ConvTranspose computes. From torch take
    `weight.transpose(2, 3, 0, 1)[::-1, ::-1]`, and for its padding p and
    output_padding r the pairs (d (k - 1) - p, d (k - 1) - p + r), d the dilation.

    Params: `kernel` (\*kernel_size, channels in, features), `bias` (features,).

    Dumoulin & Visin, "A guide to convolution arithmetic for deep learning", 2016,
    https://arxiv.org/abs/1603.07285.

    Attributes:
        features: number of output channels.
        kernel_size: extent along each spatial axis.
        strides: how much larger the output is along each spatial axis.
        padding: `"SAME"`, `"VALID"`, `"CIRCULAR"`, or what is put around the input
            once it is spread out: (low, high) pairs, or one number for all.
        dilation: spacing of the kernel's taps.
        use_bias: whether `b` is there; leave it out before a batch norm.
        kernel_init: initialiser of `kernel`; LeCun normal by default.
        bias_init: initialiser of `bias`; zeros by default.

    >>> import jax
    >>> up = ConvTranspose(8, (3, 3), strides=2)
    >>> v = up.init(jax.random.key(0), jax.ShapeDtypeStruct((1, 6, 6, 1), "float32"))
    >>> up(v.params, jax.numpy.ones((1, 6, 6, 1))).shape
    (1, 12, 12, 8)
    """

    features: int
    kernel_size: tuple[int, ...] = (3, 3)
    strides: int | tuple[int, ...] = 1
    padding: Padding = "SAME"
    dilation: int | tuple[int, ...] = 1
    use_bias: bool = True
    kernel_init: Callable[..., Any] | None = None
    bias_init: Callable[..., Any] | None = None

    def __post_init__(self) -> None:
        check_count(self.features, "ConvTranspose.features")
        check_extents(self.kernel_size, "ConvTranspose.kernel_size")

    def module(self) -> nn.Module:
        """`flax.linen.ConvTranspose`."""
        return nn.ConvTranspose(
            self.features,
            self.kernel_size,
            strides=_each(self.strides, self.kernel_size),
            padding=self.padding,
            kernel_dilation=_each(self.dilation, self.kernel_size),
            use_bias=self.use_bias,
            kernel_init=self.kernel_init or lecun_normal,
            bias_init=self.bias_init or nn.initializers.zeros,
        )

    def features_in(self, variables: Variables) -> int | None:
        """The kernel's input channels."""
        kernel = variables.params.get("kernel")
        return None if kernel is None else kernel.shape[-2]

    def init(self, key: jax.Array, *specs: Any) -> Variables:
        """Makes a kernel for as many channels as the input has."""
        require_space(initialising(), self.kind, specs, self.kernel_size)
        return super().init(key, *specs)

    def apply(
        self, variables: Variables, *inputs: Any, ctx: Context
    ) -> tuple[Any, State]:
        """Enlarges; the input needs a channel axis and every spatial one."""
        require_space(ctx, self.kind, inputs, self.kernel_size)
        return super().apply(variables, *inputs, ctx=ctx)


def require_space(
    ctx: Context, kind: str, inputs: tuple[Any, ...], kernel_size: tuple[int, ...]
) -> None:
    """Refuses an input without a channel axis and every spatial one."""
    require_arrays(ctx, kind, inputs, count=1)
    axes = len(kernel_size) + 1
    if inputs[0].ndim < axes:
        raise ShapeMismatchError(
            f"{ctx.where} ({kind}): expects {axes - 1} spatial axes and channels "
            f"(float[*batch, {'.., ' * (axes - 1)}channels]), got "
            f"{describe(inputs)}. Reshape it, for instance x[..., None] for one "
            "channel."
        )


def _each(value: int | tuple[int, ...], kernel_size: tuple[int, ...]) -> Any:
    return (value,) * len(kernel_size) if isinstance(value, int) else value
