"""Convolutions."""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
from jax.nn.initializers import Initializer

from mapping.core import Context, State, Variables, describe
from mapping.errors import FieldError, ShapeMismatchError
from mapping.fields import check_count
from mapping.foreign import require_arrays
from mapping.layers.linen import LinenLayer


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
        padding: `"SAME"`, `"VALID"`, `"CAUSAL"`, `"CIRCULAR"`, or (low, high) pairs.
        dilation: spacing of the kernel's taps.
        groups: number of channel groups that do not mix; `channels in` of them
            make the convolution depthwise.
        use_bias: whether `b` is there; leave it out before a batch norm.
        kernel_init: initialiser of `kernel`; LeCun normal by default.

    >>> import jax
    >>> conv = Conv(8, (3, 3))
    >>> spec = jax.ShapeDtypeStruct((1, 6, 6, 1), "float32")
    >>> conv.init(jax.random.key(0), spec).params["kernel"].shape
    (3, 3, 1, 8)
    """

    features: int
    kernel_size: tuple[int, ...] = (3, 3)
    strides: int | tuple[int, ...] = 1
    padding: str | tuple[tuple[int, int], ...] = "SAME"
    dilation: int | tuple[int, ...] = 1
    groups: int = 1
    use_bias: bool = True
    kernel_init: Initializer | None = None

    def __post_init__(self) -> None:
        check_count(self.features, "Conv.features")
        if not isinstance(self.kernel_size, tuple):
            raise FieldError(
                "Conv.kernel_size: expected an extent for each spatial axis, got "
                f"{self.kernel_size!r}. Use (3, 3) for images."
            )

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
            kernel_init=self.kernel_init or nn.linear.default_kernel_init,
        )

    def features_in(self, variables: Variables) -> int | None:
        """The kernel's input channels, over all groups."""
        kernel = variables.params.get("kernel")
        return None if kernel is None else kernel.shape[-2] * self.groups

    def apply(
        self, variables: Variables, *inputs: Any, ctx: Context
    ) -> tuple[Any, State]:
        """Convolves; the input needs a channel axis and every spatial one."""
        require_arrays(ctx, self.kind, inputs, count=1)
        axes = len(self.kernel_size) + 1
        if inputs[0].ndim < axes:
            raise ShapeMismatchError(
                f"{ctx.where} (Conv): expects {axes - 1} spatial axes and channels "
                f"(float[*batch, {'.., ' * (axes - 1)}channels]), got "
                f"{describe(inputs)}. Reshape it, for instance x[..., None] for one "
                "channel."
            )
        return super().apply(variables, *inputs, ctx=ctx)
