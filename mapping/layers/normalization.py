"""Layers that centre and scale."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import flax.linen as nn

from mapping.core import Context, State, Variables
from mapping.errors import FieldError
from mapping.layers.linen import LinenLayer
from mapping.registry import Example, register, spec


@dataclasses.dataclass(frozen=True)
class Norm(LinenLayer):
    """What all norms that flax.linen has share."""

    def features_in(self, variables: Variables) -> int | None:
        """The length of the scale, the bias or the mean."""
        for tree, name in (
            (variables.params, "scale"),
            (variables.params, "bias"),
            (variables.state, "mean"),
        ):
            if name in tree:
                return tree[name].shape[-1]
        return None


@register(
    "layer",
    "batch_norm",
    examples=lambda: (
        Example(BatchNorm(), (spec(4, 3),), batched=False),
        Example(BatchNorm(0.5, use_bias=False), (spec(3, 2, 2, 3),), batched=False),
    ),
)
@dataclasses.dataclass(frozen=True)
class BatchNorm(Norm):
    r"""Standardises each feature over the batch, then scales and shifts it.

    $$ y = \gamma \frac{x - \mu}{\sqrt{\sigma^2 + \epsilon}} + \beta $$

    In training mu and sigma^2 are those of the batch (all axes but the last) and
    the running ones move: `m <- momentum m + (1 - momentum) batch`. In inference
    they are the running ones, and `compiler.fold` merges the whole layer into the
    product before it. The variance is that of the centred values: the mean of
    squares, which is a little faster, loses it where the mean is large. What is
    gathered is the batch's own variance, as in the paper (torch gathers n / (n - 1)
    times that).

    Params: `scale`, `bias` (features,). State: `mean`, `var` (features,).

    Ioffe & Szegedy, "Batch Normalization", 2015, https://arxiv.org/abs/1502.03167.

    Attributes:
        momentum: share of the running statistic kept each step, in [0, 1).
        epsilon: added to the variance, in squared units of x.
        use_bias: whether beta is there.
        use_scale: whether gamma is there.
        bias_init: initialiser of `bias`; zeros by default.
        scale_init: initialiser of `scale`; ones by default. Zeros start a residual
            branch as nothing.
        axis_name: of the `vmap`, `pmap` or `shard_map` axis over which the batch's
            statistics are averaged too. Under `jit` with shardings none is needed.

    >>> import jax
    >>> norm = BatchNorm()
    >>> v = norm.init(jax.random.key(0), jax.ShapeDtypeStruct((4, 2), "float32"))
    >>> sorted(v.params), sorted(v.state)
    (['bias', 'scale'], ['mean', 'var'])
    """

    momentum: float = 0.9
    epsilon: float = 1e-5
    use_bias: bool = True
    use_scale: bool = True
    bias_init: Callable[..., Any] | None = None
    scale_init: Callable[..., Any] | None = None
    axis_name: str | None = None
    collection: ClassVar[str | None] = "batch_stats"

    def __post_init__(self) -> None:
        if not 0 <= self.momentum < 1:
            raise FieldError(
                "BatchNorm.momentum: expected the share of the old statistic kept, in "
                f"[0, 1), got {self.momentum}. (torch's momentum is one minus it.)"
            )

    def module(self) -> nn.Module:
        """`flax.linen.BatchNorm`."""
        return nn.BatchNorm(
            momentum=self.momentum,
            epsilon=self.epsilon,
            use_bias=self.use_bias,
            use_scale=self.use_scale,
            bias_init=self.bias_init or nn.initializers.zeros,
            scale_init=self.scale_init or nn.initializers.ones,
            axis_name=self.axis_name,
            use_fast_variance=False,
        )

    def apply(
        self, variables: Variables, *inputs: Any, ctx: Context
    ) -> tuple[Any, State]:
        """Standardises by the batch in training, by the state in inference."""
        try:
            return super().apply(variables, *inputs, ctx=ctx)
        except NameError as error:
            raise FieldError(
                f"{ctx.where} (BatchNorm): expected axis_name to be that of a vmap, "
                f"pmap or shard_map around it, got {self.axis_name!r} ({error}). "
                "Leave it out under jit."
            ) from error


@register(
    "layer",
    "layer_norm",
    examples=lambda: (
        Example(LayerNorm(), (spec(2, 4),)),
        Example(LayerNorm((-2, -1), use_bias=False), (spec(2, 3, 4),)),
    ),
)
@dataclasses.dataclass(frozen=True)
class LayerNorm(Norm):
    r"""Standardises the features of each example, then scales and shifts them.

    $$ y = \gamma \frac{x - \mu}{\sqrt{\sigma^2 + \epsilon}} + \beta $$

    mu and sigma^2 are over `axes`, in training and in inference alike.

    Params: `scale`, `bias`, with the extents of `axes`.

    Ba, Kiros & Hinton, "Layer normalization", 2016,
    https://arxiv.org/abs/1607.06450.

    Attributes:
        axes: which are standardised together, one or several.
        epsilon: added to the variance, in squared units of x.
        use_bias: whether beta is there.
        use_scale: whether gamma is there.
        bias_init: initialiser of `bias`; zeros by default.
        scale_init: initialiser of `scale`; ones by default.

    >>> import jax
    >>> norm = LayerNorm()
    >>> v = norm.init(jax.random.key(0), jax.ShapeDtypeStruct((1, 2), "float32"))
    >>> norm(v.params, jax.numpy.array([[1.0, 3.0]])).tolist()
    [[-0.99999..., 0.99999...]]
    """

    axes: int | tuple[int, ...] = -1
    epsilon: float = 1e-5
    use_bias: bool = True
    use_scale: bool = True
    bias_init: Callable[..., Any] | None = None
    scale_init: Callable[..., Any] | None = None

    def module(self) -> nn.Module:
        """`flax.linen.LayerNorm`."""
        return nn.LayerNorm(
            self.epsilon,
            use_bias=self.use_bias,
            use_scale=self.use_scale,
            bias_init=self.bias_init or nn.initializers.zeros,
            scale_init=self.scale_init or nn.initializers.ones,
            reduction_axes=self.axes,
            feature_axes=self.axes,
            use_fast_variance=False,
        )


@register(
    "layer",
    "rms_norm",
    examples=lambda: (
        Example(RMSNorm(), (spec(2, 4),)),
        Example(RMSNorm(use_scale=False), (spec(2, 4),)),
    ),
)
@dataclasses.dataclass(frozen=True)
class RMSNorm(Norm):
    r"""Divides the features of each example by their root mean square, then scales.

    $$ y = \gamma \frac{x}{\sqrt{\frac1d \sum_i x_i^2 + \epsilon}} $$

    Params: `scale` (features,).

    Zhang & Sennrich, "Root mean square layer normalization", 2019,
    https://arxiv.org/abs/1910.07467.

    Attributes:
        epsilon: added to the mean square, in squared units of x.
        use_scale: whether gamma is there.
        scale_init: initialiser of `scale`; ones by default.

    >>> import jax
    >>> norm = RMSNorm()
    >>> v = norm.init(jax.random.key(0), jax.ShapeDtypeStruct((1, 2), "float32"))
    >>> norm(v.params, jax.numpy.array([[1.0, 7.0]])).tolist()
    [[0.199..., 1.399...]]
    """

    epsilon: float = 1e-5
    use_scale: bool = True
    scale_init: Callable[..., Any] | None = None

    def module(self) -> nn.Module:
        """`flax.linen.RMSNorm`."""
        return nn.RMSNorm(
            self.epsilon,
            use_scale=self.use_scale,
            scale_init=self.scale_init or nn.initializers.ones,
        )
