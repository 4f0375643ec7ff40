"""Layers in which two inputs multiply."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.nn.initializers import lecun_normal, zeros

from mapping.combinators.lift import as_mapping
from mapping.core import (
    Context,
    Mapping,
    State,
    Variables,
    describe,
    fold_name,
    initialising,
)
from mapping.errors import ShapeMismatchError
from mapping.fields import check_count
from mapping.foreign import named_errors, require_arrays
from mapping.layers.guard import learned, require_axes, require_features, together
from mapping.layers.linear import Dense
from mapping.model import Model, Run
from mapping.registry import Example, register, spec


@register(
    "layer",
    "bilinear",
    examples=lambda: (
        Example(Bilinear(4), (spec(2, 3), spec(2, 5))),
        Example(Bilinear(1, use_bias=False), (spec(3), spec(2))),
    ),
)
@dataclasses.dataclass(frozen=True)
class Bilinear(Mapping):
    r"""A form of two vectors for each feature of the output.

    $$ y_k = x_1^\top W_k \, x_2 + b_k $$

    Params: `kernel` (d_1, d_2, features), `bias` (features,).
    (torch.nn.Bilinear has its weight as (features, d_1, d_2).)

    Attributes:
        features: size of the last axis of the output.
        use_bias: whether `b` is there.
        kernel_init: initialiser of `kernel`; LeCun normal by default, the fan in
            being d_1 d_2.
        bias_init: initialiser of `bias`; zeros by default.

    >>> form = Bilinear(4)
    >>> a, b = jnp.ones((2, 3)), jnp.ones((2, 5))
    >>> form(form.init(jax.random.key(0), a, b).params, a, b).shape
    (2, 4)
    """

    features: int
    use_bias: bool = True
    kernel_init: Callable[..., Any] | None = None
    bias_init: Callable[..., Any] | None = None

    def __post_init__(self) -> None:
        check_count(self.features, "Bilinear.features")

    def init(self, key: jax.Array, *specs: Any) -> Variables:
        """Makes a matrix for each feature."""
        ctx = initialising()
        require_pair(ctx, self.kind, specs)
        shape = (specs[0].shape[-1], specs[1].shape[-1], self.features)
        kernel_init = self.kernel_init or lecun_normal()
        with named_errors(ctx, self.kind, specs):
            own = fold_name(key, "kernel")
            params = {"kernel": kernel_init(own, shape, jnp.float32)}
            if self.use_bias:
                start, own = self.bias_init or zeros, fold_name(key, "bias")
                params["bias"] = start(own, (self.features,), jnp.float32)
        return Variables(params)

    def apply(
        self, variables: Variables, *inputs: Any, ctx: Context
    ) -> tuple[Any, State]:
        """Takes two inputs of equal leading axes."""
        require_pair(ctx, self.kind, inputs)
        names = ("kernel", "bias") if self.use_bias else ("kernel",)
        own = learned(variables, ctx, self.kind, *names)
        for x, extent in zip(inputs, own[0].shape, strict=False):
            require_features(ctx, self.kind, x, extent)
        with named_errors(ctx, self.kind, inputs):
            first, second, kernel, *bias = together(*inputs, *own)
            y = jnp.einsum("...i,...j,ijk->...k", first, second, kernel)
            for b in bias:
                y = y + jnp.broadcast_to(b, y.shape)
        return y, variables.state


@register(
    "layer",
    "neural_tensor",
    examples=lambda: Example(NeuralTensor(4), (spec(2, 3), spec(2, 5))),
)
@dataclasses.dataclass(frozen=True)
class NeuralTensor(Model):
    r"""A bilinear form and a linear one of two vectors, through a non-linear function.

    $$ y = f(x_1^\top W x_2 + V [x_1; x_2] + b) $$

    Params: `bilinear/kernel` (d_1, d_2, features), `linear/kernel` (d_1 + d_2,
    features), `linear/bias` (features,). The published score u^T y is a
    `Dense(1, use_bias=False)` after it.

    Socher et al., "Reasoning with neural tensor networks for knowledge base
    completion", NIPS 2013.

    Attributes:
        features: size of the last axis of the output (the slices of W).
        activation: f, a named function or a mapping.
        kernel_init: initialiser of both kernels; LeCun normal by default.
        bias_init: initialiser of the bias; zeros by default.

    >>> layer = NeuralTensor(4)
    >>> a, b = jnp.ones((2, 3)), jnp.ones((2, 5))
    >>> layer(layer.init(jax.random.key(0), a, b).params, a, b).shape
    (2, 4)
    """

    features: int
    activation: Mapping | Callable[..., Any] = jnp.tanh
    kernel_init: Callable[..., Any] | None = None
    bias_init: Callable[..., Any] | None = None

    def __post_init__(self) -> None:
        check_count(self.features, "NeuralTensor.features")
        # Lifted, because jnp.tanh itself cannot be pickled.
        object.__setattr__(self, "activation", as_mapping(self.activation))

    def parts(self) -> dict[str, Mapping | Callable[..., Any]]:
        """The two forms and the function."""
        return {
            "bilinear": Bilinear(self.features, False, self.kernel_init),
            "linear": Dense(self.features, True, self.kernel_init, self.bias_init),
            "activation": self.activation,
        }

    def forward(self, run: Run, *inputs: jax.Array) -> jax.Array:
        """Takes two inputs of equal leading axes."""
        require_pair(run.ctx, self.kind, inputs)
        both = jnp.concatenate(together(*inputs), axis=-1)
        return run.activation(run.bilinear(*inputs) + run.linear(both))


def require_pair(ctx: Context, kind: str, inputs: tuple[Any, ...]) -> None:
    """Refuses what is not two inputs of equal leading axes."""
    require_arrays(ctx, kind, inputs, count=2)
    for x in inputs:
        require_axes(ctx, kind, x, 1, "features")
    first, second = inputs
    if first.shape[:-1] != second.shape[:-1]:
        raise ShapeMismatchError(
            f"{ctx.where} ({kind}): expects two inputs whose axes but the last are "
            f"equal, got {describe(inputs)}. Broadcast one of them."
        )
