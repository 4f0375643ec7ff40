"""Layers that centre and scale."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import flax.linen as nn

from mapping.core import Variables
from mapping.layers.linen import LinenLayer


@dataclasses.dataclass(frozen=True)
class BatchNorm(LinenLayer):
    r"""Standardises each feature over the batch, then scales and shifts it.

    $$ y = \gamma \frac{x - \mu}{\sqrt{\sigma^2 + \epsilon}} + \beta $$

    In training mu and sigma^2 are those of the batch (all axes but the last) and
    the running ones move: `m <- momentum m + (1 - momentum) batch`. In inference
    they are the running ones, and `compiler.fold` merges the whole layer into the
    product before it.

    Params: `scale`, `bias` (features,). State: `mean`, `var` (features,).

    Ioffe & Szegedy, "Batch Normalization", 2015, https://arxiv.org/abs/1502.03167.

    Attributes:
        momentum: share of the running statistic kept each step, in [0, 1).
        epsilon: added to the variance, in squared units of x.

    >>> import jax
    >>> norm = BatchNorm()
    >>> v = norm.init(jax.random.key(0), jax.ShapeDtypeStruct((4, 2), "float32"))
    >>> sorted(v.params), sorted(v.state)
    (['bias', 'scale'], ['mean', 'var'])
    """

    momentum: float = 0.9
    epsilon: float = 1e-5
    collection: ClassVar[str | None] = "batch_stats"

    def module(self) -> nn.Module:
        """`flax.linen.BatchNorm`."""
        return nn.BatchNorm(momentum=self.momentum, epsilon=self.epsilon)

    def features_in(self, variables: Variables) -> int | None:
        """The length of the scale."""
        scale = variables.params.get("scale")
        return None if scale is None else scale.shape[-1]
