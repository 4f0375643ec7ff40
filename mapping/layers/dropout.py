"""Layers that drop units at random in training."""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn

from mapping.core import Context, State, Variables
from mapping.errors import FieldError
from mapping.foreign import require_arrays
from mapping.layers.linen import LinenLayer
from mapping.registry import Example, register, spec


@register(
    "layer",
    "dropout",
    examples=lambda: (
        Example(Dropout(0.4), (spec(3, 4),)),
        Example(Dropout(0.4, broadcast_axes=(-3, -2)), (spec(2, 2, 3),)),
    ),
)
@dataclasses.dataclass(frozen=True)
class Dropout(LinenLayer):
    r"""Zeroes each unit with probability `rate` in training, and rescales the rest.

    $$ y = \frac{m \, x}{1 - rate}, \qquad m \sim \mathrm{Bernoulli}(1 - rate) $$

    In inference it is the identity and leaves no trace in the graph. The mask
    depends on the root key and this layer's path only.

    Srivastava et al., "Dropout", JMLR 15 (2014).

    Attributes:
        rate: fraction dropped, in [0, 1).
        broadcast_axes: axes along which one draw holds for all: (-3, -2) drops whole
            channels of images (Tompson et al., 2014, https://arxiv.org/abs/1411.4280).

    >>> import jax
    >>> from mapping.core import Context, Variables
    >>> ctx = Context(key=jax.random.key(0), train=True)
    >>> y, _ = Dropout(0.5).apply(Variables(), jax.numpy.ones(1000), ctx=ctx)
    >>> bool(abs((y == 0).mean() - 0.5) < 0.1)
    True
    """

    rate: float = 0.5
    broadcast_axes: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not 0 <= self.rate < 1:
            raise FieldError(
                f"Dropout.rate: expected a fraction dropped in [0, 1), got {self.rate}."
            )

    def module(self) -> nn.Module:
        """`flax.linen.Dropout`."""
        return nn.Dropout(self.rate, broadcast_dims=self.broadcast_axes)

    def apply(
        self, variables: Variables, *inputs: Any, ctx: Context
    ) -> tuple[Any, State]:
        """Drops in training (which needs a key), passes through in inference."""
        require_arrays(ctx, self.kind, inputs, count=1)
        if not ctx.train or self.rate == 0:
            return inputs[0], variables.state
        ctx.rng()  # linen names neither the path nor the fix when the key is missing
        return super().apply(variables, *inputs, ctx=ctx)
