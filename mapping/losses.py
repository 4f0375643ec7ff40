"""Losses: mappings from (prediction, target) to a scalar."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from mapping.core import Context, Mapping, State, Variables, describe
from mapping.errors import FieldError, ShapeMismatchError
from mapping.foreign import lenient_promotion


@dataclasses.dataclass(frozen=True)
class CrossEntropy(Mapping):
    r"""Mean cross-entropy between logits and classes, in nats.

    $$ \ell = -\frac1n \sum_i \sum_c t_{ic} \log \mathrm{softmax}(z_i)_c $$

    The target is a class number (any integer dtype, one axis fewer than the
    logits) or a distribution over classes (the logits' own shape).

    A class number that there is no logit for makes the loss nan.

    Attributes:
        label_smoothing: share of the target spread evenly over all classes, in
            [0, 1). Szegedy et al., 2015, https://arxiv.org/abs/1512.00567.

    >>> logits = jnp.array([[0.0, 0.0]])
    >>> round(float(CrossEntropy()({}, logits, jnp.array([1]))), 4)
    0.6931
    """

    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing < 1:
            raise FieldError(
                "CrossEntropy.label_smoothing: expected a share in [0, 1), got "
                f"{self.label_smoothing}."
            )

    def apply(
        self, variables: Variables, *inputs: Any, ctx: Context
    ) -> tuple[jax.Array, State]:
        """Takes (logits, target)."""
        logits, target = pair = tuple(map(jnp.asarray, inputs))
        known = jnp.ones((), bool)
        if jnp.issubdtype(target.dtype, jnp.integer):
            _require(target.shape == logits.shape[:-1], "class numbers", pair, ctx)
            known = jnp.all((target >= 0) & (target < logits.shape[-1]))
            target = jax.nn.one_hot(target, logits.shape[-1], dtype=logits.dtype)
        what = "integer class numbers, or a distribution over classes,"
        _require(target.shape == logits.shape, what, pair, ctx)
        if self.label_smoothing:
            target = optax.smooth_labels(target, self.label_smoothing)
        with lenient_promotion():
            loss = optax.softmax_cross_entropy(logits, target).mean()
        return jnp.where(known, loss, jnp.nan), variables.state


@dataclasses.dataclass(frozen=True)
class MeanSquaredError(Mapping):
    r"""Mean of the squared differences.

    $$ \ell = \frac1n \sum_i (y_i - t_i)^2 $$

    >>> float(MeanSquaredError()({}, jnp.array([1.0, 3.0]), jnp.array([1.0, 1.0])))
    2.0
    """

    def apply(
        self, variables: Variables, *inputs: Any, ctx: Context
    ) -> tuple[jax.Array, State]:
        """Takes (prediction, target) of one shape."""
        prediction, target = pair = tuple(map(jnp.asarray, inputs))
        _require(prediction.shape == target.shape, "a target", pair, ctx)
        return jnp.mean(jnp.square(prediction - target)), variables.state


def _require(fits: bool, what: str, inputs: tuple[Any, ...], ctx: Context) -> None:
    if not fits:
        prediction, target = inputs
        raise ShapeMismatchError(
            f"{ctx.where} (loss): expected {what} that fits the prediction "
            f"{describe(prediction)}, got {describe(target)}. Reshape one of them; a "
            "loss never broadcasts."
        )
