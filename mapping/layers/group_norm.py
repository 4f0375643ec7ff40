"""Layers that centre and scale each example over space."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn

from mapping.core import Context, State, Variables
from mapping.errors import ShapeMismatchError
from mapping.fields import check_count
from mapping.foreign import require_arrays
from mapping.layers.guard import require_axes
from mapping.layers.normalization import Norm
from mapping.layers.pooling import check_spatial, spatial_axes
from mapping.registry import Example, register, spec


@register(
    "layer",
    "group_norm",
    examples=lambda: (
        Example(GroupNorm(2), (spec(2, 3, 4),), batched=False),
        Example(GroupNorm(2, spatial=2, use_bias=False), (spec(3, 2, 4),)),
    ),
)
@dataclasses.dataclass(frozen=True)
class GroupNorm(Norm):
    r"""Standardises groups of channels of each example over space, then scales, shifts.

    $$ y = \gamma \frac{x - \mu_g}{\sqrt{\sigma_g^2 + \epsilon}} + \beta $$

    mu and sigma^2 are those of the example's group g of channels that lie side by
    side, in training and in inference alike.

    Params: `scale`, `bias` (channels,).

    Wu & He, "Group normalization", 2018, https://arxiv.org/abs/1803.08494.

    Attributes:
        groups: into how many the channels are divided; their number is a multiple.
        spatial: how many axes before the channels are space; all but the first by
            default. Say it where more than one batch axis, or none, may come.
        epsilon: added to the variance, in squared units of x.
        use_bias: whether beta is there.
        use_scale: whether gamma is there.
        bias_init: initialiser of `bias`; zeros by default.
        scale_init: initialiser of `scale`; ones by default.

    >>> import jax
    >>> norm = GroupNorm(2)
    >>> x = jax.numpy.ones((1, 5, 5, 6))
    >>> norm.init(jax.random.key(0), x).params["scale"].shape
    (6,)
    """

    groups: int = 32
    spatial: int | None = None
    epsilon: float = 1e-5
    use_bias: bool = True
    use_scale: bool = True
    bias_init: Callable[..., Any] | None = None
    scale_init: Callable[..., Any] | None = None

    def __post_init__(self) -> None:
        check_count(self.groups, "GroupNorm.groups")
        check_spatial(self.spatial, "GroupNorm.spatial")

    def module(self) -> nn.Module:
        """`flax.linen.GroupNorm`."""
        return _group_norm(self, num_groups=self.groups)

    def _check_features(
        self, variables: Variables, inputs: tuple[Any, ...], ctx: Context
    ) -> None:
        super()._check_features(variables, inputs, ctx)
        least = 2 if self.spatial is None else self.spatial + 1
        require_axes(ctx, self.kind, inputs[0], least, "batch or space, and channels")
        channels = inputs[0].shape[-1]
        if channels % self.groups:
            raise ShapeMismatchError(
                f"{ctx.where} (GroupNorm): expects channels that {self.groups} groups "
                f"divide, got {channels}. Choose another number of groups."
            )


@register(
    "layer",
    "instance_norm",
    examples=lambda: (
        Example(InstanceNorm(), (spec(2, 3, 4),), batched=False),
        Example(InstanceNorm(spatial=2, use_bias=False), (spec(3, 2, 4),)),
    ),
)
@dataclasses.dataclass(frozen=True)
class InstanceNorm(Norm):
    r"""Standardises each channel of each example over space, then scales and shifts it.

    $$ y = \gamma \frac{x - \mu_c}{\sqrt{\sigma_c^2 + \epsilon}} + \beta $$

    mu and sigma^2 are those of the example's channel c, in training and in inference
    alike.

    Params: `scale`, `bias` (channels,). (torch has none of them by default.)

    Ulyanov, Vedaldi & Lempitsky, "Instance normalization", 2016,
    https://arxiv.org/abs/1607.08022.

    Attributes:
        spatial: how many axes before the channels are space; all but the first by
            default. Say it where more than one batch axis, or none, may come.
        epsilon: added to the variance, in squared units of x.
        use_bias: whether beta is there.
        use_scale: whether gamma is there.
        bias_init: initialiser of `bias`; zeros by default.
        scale_init: initialiser of `scale`; ones by default.

    >>> import jax
    >>> norm = InstanceNorm()
    >>> x = jax.numpy.ones((1, 5, 5, 6))
    >>> norm.init(jax.random.key(0), x).params["scale"].shape
    (6,)
    """

    spatial: int | None = None
    epsilon: float = 1e-5
    use_bias: bool = True
    use_scale: bool = True
    bias_init: Callable[..., Any] | None = None
    scale_init: Callable[..., Any] | None = None

    def __post_init__(self) -> None:
        check_spatial(self.spatial, "InstanceNorm.spatial")

    def module(self) -> nn.Module:
        """`flax.linen.GroupNorm` of one channel each: InstanceNorm's axes are fixed."""
        return _group_norm(self, num_groups=None, group_size=1)

    def apply(
        self, variables: Variables, *inputs: Any, ctx: Context
    ) -> tuple[Any, State]:
        """Standardises; without space each channel would be its own mean."""
        require_arrays(ctx, self.kind, inputs, count=1)
        spatial_axes(ctx, self.kind, inputs[0], self.spatial)
        return super().apply(variables, *inputs, ctx=ctx)


def _group_norm(norm: GroupNorm | InstanceNorm, **groups: Any) -> nn.Module:
    spatial = norm.spatial
    return nn.GroupNorm(
        **groups,
        epsilon=norm.epsilon,
        use_bias=norm.use_bias,
        use_scale=norm.use_scale,
        bias_init=norm.bias_init or nn.initializers.zeros,
        scale_init=norm.scale_init or nn.initializers.ones,
        reduction_axes=None if spatial is None else tuple(range(-1 - spatial, 0)),
        use_fast_variance=False,
    )
