"""Layers that are a matrix product."""

from __future__ import annotations

import dataclasses

import flax.linen as nn
from jax.nn.initializers import Initializer

from mapping.core import Variables
from mapping.fields import check_count
from mapping.layers.linen import LinenLayer
from mapping.registry import Example, register, spec


@register("layer", "dense", examples=lambda: Example(Dense(4), (spec(2, 3),)))
@dataclasses.dataclass(frozen=True)
class Dense(LinenLayer):
    r"""An affine map of the last axis.

    $$ y = x W + b, \qquad W \in \mathbb{R}^{d \times features} $$

    Params: `kernel` (d, features), `bias` (features,).

    Attributes:
        features: size of the last axis of the output.
        use_bias: whether `b` is there.
        kernel_init: initialiser of `kernel`; LeCun normal by default.

    >>> import jax
    >>> dense = Dense(4)
    >>> v = dense.init(jax.random.key(0), jax.ShapeDtypeStruct((1, 3), "float32"))
    >>> dense(v.params, jax.numpy.ones((2, 3))).shape
    (2, 4)
    """

    features: int
    use_bias: bool = True
    kernel_init: Initializer | None = None

    def __post_init__(self) -> None:
        check_count(self.features, "Dense.features")

    def module(self) -> nn.Module:
        """`flax.linen.Dense`."""
        return nn.Dense(
            self.features,
            self.use_bias,
            kernel_init=self.kernel_init or nn.linear.default_kernel_init,
        )

    def features_in(self, variables: Variables) -> int | None:
        """The rows of the kernel."""
        kernel = variables.params.get("kernel")
        return None if kernel is None else kernel.shape[0]
