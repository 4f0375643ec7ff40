"""Layers that summarise a window."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import flax.linen as nn
import jax

from mapping.core import Context, Mapping, State, Variables, describe
from mapping.errors import FieldError, ShapeMismatchError
from mapping.foreign import lenient_promotion, named_errors, require_arrays


@dataclasses.dataclass(frozen=True)
class _Pool(Mapping):
    """A window slid over the axes between the batch and the channels."""

    window: tuple[int, ...] = (2, 2)
    strides: int | tuple[int, ...] | None = None
    padding: str | tuple[tuple[int, int], ...] = "VALID"
    summarise: ClassVar[Callable[..., jax.Array]]

    def __post_init__(self) -> None:
        if not isinstance(self.window, tuple):
            raise FieldError(
                f"{self.kind}.window: expected an extent for each spatial axis, got "
                f"{self.window!r}. Use (2, 2) for images."
            )

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
        pool = type(self).summarise
        with named_errors(ctx, self.kind, inputs), lenient_promotion():
            return pool(*inputs, self.window, strides, self.padding), variables.state


@dataclasses.dataclass(frozen=True)
class MaxPool(_Pool):
    """The largest value in each window, per channel.

    Attributes:
        window: extent along each spatial axis.
        strides: step along each spatial axis; the window itself by default.
        padding: `"VALID"`, `"SAME"`, or (low, high) pairs.

    >>> MaxPool((2,))({}, jax.numpy.arange(4.0)[None, :, None]).ravel().tolist()
    [1.0, 3.0]
    """

    summarise: ClassVar[Callable[..., jax.Array]] = staticmethod(nn.max_pool)


@dataclasses.dataclass(frozen=True)
class AvgPool(_Pool):
    """The mean of each window, per channel; padding counts as zeros.

    Attributes:
        window: extent along each spatial axis.
        strides: step along each spatial axis; the window itself by default.
        padding: `"VALID"`, `"SAME"`, or (low, high) pairs.

    >>> AvgPool((2,))({}, jax.numpy.arange(4.0)[None, :, None]).ravel().tolist()
    [0.5, 2.5]
    """

    summarise: ClassVar[Callable[..., jax.Array]] = staticmethod(nn.avg_pool)
