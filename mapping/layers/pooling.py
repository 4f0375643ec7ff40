"""Layers that summarise a window, or all of space."""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
import jax

from mapping.core import Context, Mapping, State, Variables, describe
from mapping.errors import FieldError, ShapeMismatchError
from mapping.foreign import lenient_promotion, named_errors, require_arrays
from mapping.layers.guard import check_extents, require_axes, together, wide
from mapping.registry import Example, register, spec


@dataclasses.dataclass(frozen=True)
class _Pool(Mapping):
    """A window slid over the axes between the batch and the channels."""

    window: tuple[int, ...] = (2, 2)
    strides: int | tuple[int, ...] | None = None
    padding: str | tuple[tuple[int, int], ...] = "VALID"

    def __post_init__(self) -> None:
        check_extents(self.window, f"{self.kind}.window")

    def apply(
        self, variables: Variables, *inputs: Any, ctx: Context
    ) -> tuple[Any, State]:
        """Slides the window; needs every spatial axis and a channel axis."""
        require_arrays(ctx, self.kind, inputs, count=1)
        if inputs[0].ndim <= len(self.window):
            raise ShapeMismatchError(
                f"{ctx.where} ({self.kind}): expects {len(self.window)} spatial axes "
                f"and channels, got {describe(inputs)}. Reshape the input, or give a "
                "window with fewer entries."
            )
        strides = self.strides or self.window
        if isinstance(strides, int):
            strides = (strides,) * len(self.window)
        with named_errors(ctx, self.kind, inputs), lenient_promotion():
            return self._summarise(*inputs, strides), variables.state

    def _summarise(self, x: jax.Array, strides: tuple[int, ...]) -> jax.Array:
        raise NotImplementedError


@register(
    "layer",
    "max_pool",
    examples=lambda: (
        Example(MaxPool((2,)), (spec(1, 4, 2),)),
        Example(MaxPool((2, 2), 1, "SAME"), (spec(1, 3, 4, 2),)),
    ),
)
@dataclasses.dataclass(frozen=True)
class MaxPool(_Pool):
    r"""The largest value in each window, per channel.

    $$ y_{p, c} = \max_{q \in window} x_{s p + q, c} $$

    Padding never wins. Integers stay integers.

    Attributes:
        window: extent along each spatial axis.
        strides: step along each spatial axis; the window itself by default.
        padding: `"VALID"`, `"SAME"`, or (low, high) pairs.

    >>> MaxPool((2,))({}, jax.numpy.arange(4.0)[None, :, None]).ravel().tolist()
    [1.0, 3.0]
    """

    def _summarise(self, x: jax.Array, strides: tuple[int, ...]) -> jax.Array:
        return nn.max_pool(x, self.window, strides, self.padding)


@register(
    "layer",
    "avg_pool",
    examples=lambda: (
        Example(AvgPool((2,)), (spec(1, 4, 2),)),
        Example(AvgPool((2, 2), 1, "SAME", False), (spec(1, 3, 4, 2),)),
    ),
)
@dataclasses.dataclass(frozen=True)
class AvgPool(_Pool):
    r"""The mean of each window, per channel.

    $$ y_{p, c} = \frac{1}{|window|} \sum_{q \in window} x_{s p + q, c} $$

    Attributes:
        window: extent along each spatial axis.
        strides: step along each spatial axis; the window itself by default.
        padding: `"VALID"`, `"SAME"`, or (low, high) pairs.
        count_padding: whether padding counts as zeros (torch's default), or the mean
            is over what lies inside only (Keras's and TensorFlow's).

    >>> AvgPool((2,))({}, jax.numpy.arange(4.0)[None, :, None]).ravel().tolist()
    [0.5, 2.5]
    """

    count_padding: bool = True

    def _summarise(self, x: jax.Array, strides: tuple[int, ...]) -> jax.Array:
        (x,) = together(x)
        mean = nn.avg_pool(
            wide(x),
            self.window,
            strides,
            self.padding,
            count_include_pad=self.count_padding,
        )
        return mean.astype(x.dtype)


@dataclasses.dataclass(frozen=True)
class _GlobalPool(Mapping):
    """All of space at once."""

    spatial: int | None = None
    keep_axes: bool = False

    def __post_init__(self) -> None:
        check_spatial(self.spatial, f"{self.kind}.spatial")

    def apply(
        self, variables: Variables, *inputs: Any, ctx: Context
    ) -> tuple[Any, State]:
        """Summarises the axes between the batch and the channels."""
        require_arrays(ctx, self.kind, inputs, count=1)
        (x,) = inputs
        axes = spatial_axes(ctx, self.kind, x, self.spatial)
        with named_errors(ctx, self.kind, inputs):
            return self._summarise(x, axes), variables.state

    def _summarise(self, x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
        raise NotImplementedError


@register(
    "layer",
    "global_avg_pool",
    examples=lambda: (
        Example(GlobalAvgPool(), (spec(2, 3, 4, 2),), batched=False),
        Example(GlobalAvgPool(spatial=1, keep_axes=True), (spec(3, 2),)),
    ),
)
@dataclasses.dataclass(frozen=True)
class GlobalAvgPool(_GlobalPool):
    r"""The mean over space, per channel.

    $$ y_c = \frac1n \sum_p x_{p, c} $$

    Lin et al., "Network in network", 2013, https://arxiv.org/abs/1312.4400.

    Attributes:
        spatial: how many axes before the channels are space; all but the first by
            default. Say it where more than one batch axis, or none, may come.
        keep_axes: whether they stay, with an extent of one.

    >>> GlobalAvgPool()({}, jax.numpy.ones((5, 4, 4, 3))).shape
    (5, 3)
    """

    def _summarise(self, x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
        (x,) = together(x)
        return wide(x).mean(axes, keepdims=self.keep_axes).astype(x.dtype)


@register(
    "layer",
    "global_max_pool",
    examples=lambda: (
        Example(GlobalMaxPool(), (spec(2, 3, 4, 2),), batched=False),
        Example(GlobalMaxPool(spatial=1, keep_axes=True), (spec(3, 2),)),
    ),
)
@dataclasses.dataclass(frozen=True)
class GlobalMaxPool(_GlobalPool):
    r"""The largest value in space, per channel.

    $$ y_c = \max_p x_{p, c} $$

    Attributes:
        spatial: how many axes before the channels are space; all but the first by
            default. Say it where more than one batch axis, or none, may come.
        keep_axes: whether they stay, with an extent of one.

    >>> GlobalMaxPool()({}, jax.numpy.ones((5, 4, 4, 3))).shape
    (5, 3)
    """

    def _summarise(self, x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
        return x.max(axes, keepdims=self.keep_axes)


def check_spatial(value: Any, where: str) -> None:
    """Refuses what is no number of axes, and not None."""
    whole = isinstance(value, int) and not isinstance(value, bool) and value >= 1
    if value is not None and not whole:
        raise FieldError(
            f"{where}: expected how many axes are space, >= 1, got {value!r}. None is "
            "all but the first and the last."
        )


def spatial_axes(
    ctx: Context, kind: str, x: jax.Array, spatial: int | None
) -> tuple[int, ...]:
    """The axes between the batch and the channels; at least one."""
    least = 3 if spatial is None else spatial + 1
    what = "batch, space, channels" if spatial is None else "space, channels"
    require_axes(ctx, kind, x, least, what)
    count = x.ndim - 2 if spatial is None else spatial
    return tuple(range(-1 - count, -1))
