"""Losses of numbers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from mapping.losses.loss import Loss, check_number
from mapping.registry import Example, register, spec


def _examples(kind: Callable[..., Loss]) -> tuple[Example, ...]:
    pair = (spec(4, 3), spec(4, 3))
    return (
        Example(kind(), pair, batched=False),
        Example(kind(reduction="none"), (*pair, spec(4, 3))),
    )


@register(
    "loss",
    "mean_squared_error",
    examples=lambda: _examples(MeanSquaredError),
)
@dataclasses.dataclass(frozen=True)
class MeanSquaredError(Loss):
    r"""Mean of the squared differences, in squared units of the target.

    $$ \ell_i = (y_i - t_i)^2 $$

    Inputs: prediction and target of one shape; a loss of each element.

    Attributes:
        reduction: see [`Loss`][].

    >>> float(MeanSquaredError()({}, jnp.array([1.0, 3.0]), jnp.array([1.0, 1.0])))
    2.0
    """

    reduction: str = "mean"

    def each(self, prediction: jax.Array, target: jax.Array) -> jax.Array:
        """`optax.squared_error`."""
        return optax.squared_error(prediction, target)


@register(
    "loss",
    "mean_absolute_error",
    examples=lambda: _examples(MeanAbsoluteError),
)
@dataclasses.dataclass(frozen=True)
class MeanAbsoluteError(Loss):
    r"""Mean of the absolute differences, in units of the target.

    $$ \ell_i = |y_i - t_i| $$

    Inputs: prediction and target of one shape; a loss of each element. Where they
    are equal the gradient is zero.

    Attributes:
        reduction: see [`Loss`][].

    >>> float(MeanAbsoluteError()({}, jnp.array([1.0, 3.0]), jnp.array([1.0, 1.0])))
    1.0
    """

    reduction: str = "mean"

    def each(self, prediction: jax.Array, target: jax.Array) -> jax.Array:
        """The distance of each element."""
        return jnp.abs(prediction - target)


@register("loss", "huber", examples=lambda: _examples(Huber))
@dataclasses.dataclass(frozen=True)
class Huber(Loss):
    r"""Squared near zero, linear beyond: outliers pull with a bounded force.

    $$ \ell_i = \begin{cases} \tfrac12 e_i^2 & |e_i| \le \delta \\
       \delta (|e_i| - \tfrac12 \delta) & \text{else} \end{cases},
       \qquad e_i = y_i - t_i $$

    Inputs: prediction and target of one shape; a loss of each element.

    Huber, "Robust Estimation of a Location Parameter", 1964,
    https://doi.org/10.1214/aoms/1177703732.

    Attributes:
        delta: where it becomes linear, above 0, in units of the target.
        reduction: see [`Loss`][].

    >>> float(Huber()({}, jnp.array([3.0]), jnp.array([0.0])))
    2.5
    """

    delta: float = 1.0
    reduction: str = "mean"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number(self.delta, "Huber.delta", 0, open_=True)

    def each(self, prediction: jax.Array, target: jax.Array) -> jax.Array:
        """`optax.huber_loss`."""
        return optax.huber_loss(prediction, target, delta=self.delta)
