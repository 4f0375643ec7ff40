"""Non-linear functions, by name, and those with a learned shape."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mapping.core import Context, Mapping, State, Variables, initialising
from mapping.errors import UnknownNameError
from mapping.foreign import named_errors, require_arrays
from mapping.layers.guard import learned, require_features, together, wide
from mapping.layers.linen import LinenLayer
from mapping.paths import nearest
from mapping.registry import Example, entries, register, spec

FUNCTIONS: dict[str, Callable[..., Any]] = {
    "celu": jax.nn.celu,
    "elu": jax.nn.elu,
    "gelu": jax.nn.gelu,
    "gelu_exact": functools.partial(jax.nn.gelu, approximate=False),
    "glu": jax.nn.glu,
    "hard_sigmoid": jax.nn.hard_sigmoid,
    "hard_silu": jax.nn.hard_silu,
    "hard_swish": jax.nn.hard_swish,
    "hard_tanh": jax.nn.hard_tanh,
    "identity": jax.nn.identity,
    "leaky_relu": jax.nn.leaky_relu,
    "log_sigmoid": jax.nn.log_sigmoid,
    "log_softmax": jax.nn.log_softmax,
    "mish": jax.nn.mish,
    "relu": jax.nn.relu,
    "relu6": jax.nn.relu6,
    "selu": jax.nn.selu,
    "sigmoid": jax.nn.sigmoid,
    "silu": jax.nn.silu,
    "soft_sign": jax.nn.soft_sign,
    "softmax": jax.nn.softmax,
    "softplus": jax.nn.softplus,
    "swish": jax.nn.swish,
    "tanh": jnp.tanh,
}
"""What [`Activation`][] knows by name, besides registered functions."""


@register(
    "layer",
    "activation",
    examples=lambda: (
        Example(Activation("softmax"), (spec(2, 4),)),
        Example(Activation("gelu"), (spec(2, 4),)),
    ),
)
@dataclasses.dataclass(frozen=True)
class Activation(Mapping):
    r"""Applies a function by its name, for models that are described by text.

    $$ y = f(x) $$

    In code write the function itself: `Dense(8) >> jax.nn.relu`. The names are those
    of `jax.nn`; `gelu` is the tanh approximation, as there, `gelu_exact` the one
    with erf (torch's default). The softmaxes are over the last axis, and in float32
    at least.

    Attributes:
        name: one of [`FUNCTIONS`][], or of a function under
            `register("function", name)`.

    Raises:
        UnknownNameError: if nothing has that name; it lists the nearest.

    >>> Activation("relu")({}, jnp.array([-1.0, 2.0])).tolist()
    [0.0, 2.0]
    >>> Activation("rellu")
    Traceback (most recent call last):
    ...
    mapping.errors.UnknownNameError: Activation.name: expected the name of an
    activation, got 'rellu'. Nearest: relu, ...
    """

    name: str

    def __post_init__(self) -> None:
        self._function()

    def apply(
        self, variables: Variables, *inputs: Any, ctx: Context
    ) -> tuple[Any, State]:
        """Applies the function, to floats."""
        require_arrays(ctx, self.kind, inputs, count=1)
        with named_errors(ctx, self.kind, inputs):
            (x,) = together(*inputs)
            given = wide(x) if "softmax" in self.name else x
            return self._function()(given).astype(x.dtype), variables.state

    def _function(self) -> Callable[..., Any]:
        if self.name in FUNCTIONS:
            return FUNCTIONS[self.name]
        known = FUNCTIONS | {each.name: each.target for each in entries("function")}
        if self.name not in known:
            raise UnknownNameError(
                "Activation.name: expected the name of an activation, got "
                f"{self.name!r}. Nearest: {nearest(str(self.name), known)}."
            )
        return known[self.name]


@register("layer", "prelu", examples=lambda: Example(PReLU(), (spec(2, 4),)))
@dataclasses.dataclass(frozen=True)
class PReLU(LinenLayer):
    r"""A rectifier whose slope below zero is learned.

    $$ y = \max(x, 0) + a \min(x, 0) $$

    Params: `negative_slope` (), one for all features.

    He et al., "Delving deep into rectifiers", 2015, https://arxiv.org/abs/1502.01852.

    Attributes:
        start: where the slope starts.

    >>> prelu = PReLU()
    >>> v = prelu.init(jax.random.key(0), jax.ShapeDtypeStruct((1, 2), "float32"))
    >>> prelu(v.params, jnp.array([-4.0, 2.0])).tolist()
    [-1.0, 2.0]
    """

    start: float = 0.25

    def module(self) -> nn.Module:
        """`flax.linen.PReLU`."""
        return nn.PReLU(negative_slope_init=self.start)

    def apply(
        self, variables: Variables, *inputs: Any, ctx: Context
    ) -> tuple[Any, State]:
        """Applies it, to floats: linen would round the slope to an integer input's."""
        require_arrays(ctx, self.kind, inputs, count=1)
        with named_errors(ctx, self.kind, inputs):
            return super().apply(variables, *together(*inputs), ctx=ctx)


@register(
    "layer",
    "swish",
    examples=lambda: (
        Example(Swish(), (spec(2, 4),)),
        Example(Swish(0.5, per_feature=True), (spec(2, 4),)),
    ),
)
@dataclasses.dataclass(frozen=True)
class Swish(Mapping):
    r"""The input times its sigmoid, whose steepness is learned.

    $$ y = x \, \sigma(\beta x) $$

    From linear (beta = 0) to the rectifier (beta large); with beta fixed at one it is
    `jax.nn.silu`.

    Params: `beta`, () or (features,).

    Ramachandran, Zoph & Le, "Searching for activation functions", 2017,
    https://arxiv.org/abs/1710.05941.

    Attributes:
        start: where beta starts.
        per_feature: whether each feature has its own.

    >>> swish = Swish(start=0.0)
    >>> params = swish.init(jax.random.key(0), jnp.ones(2)).params
    >>> swish(params, jnp.array([1.0, -2.0])).tolist()
    [0.5, -1.0]
    """

    start: float = 1.0
    per_feature: bool = False

    def init(self, key: jax.Array, *specs: Any) -> Variables:
        """Starts beta."""
        require_arrays(initialising(), self.kind, specs, count=1)
        shape = specs[0].shape[-1:] if self.per_feature else ()
        return Variables({"beta": jnp.full(shape, self.start, jnp.float32)})

    def apply(
        self, variables: Variables, *inputs: Any, ctx: Context
    ) -> tuple[Any, State]:
        """Applies it, to floats."""
        require_arrays(ctx, self.kind, inputs, count=1)
        (beta,) = learned(variables, ctx, self.kind, "beta")
        if self.per_feature:
            require_features(ctx, self.kind, inputs[0], len(beta))
        with named_errors(ctx, self.kind, inputs):
            x, beta = together(inputs[0], beta)
            steep = jnp.broadcast_to(beta, x.shape) * x
            return x * jax.nn.sigmoid(steep), variables.state
