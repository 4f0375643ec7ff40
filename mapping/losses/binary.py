"""Losses of independent yes-or-no questions."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import optax

from mapping.core import Context, describe
from mapping.errors import ShapeMismatchError
from mapping.losses.loss import Loss, check_number
from mapping.registry import Example, register, spec


def _answers() -> jax.Array:
    return jnp.array([[0, 1, 1], [1, 0, 1]])


@register(
    "loss",
    "binary_cross_entropy",
    examples=lambda: (
        Example(BinaryCrossEntropy(), (spec(2, 3), _answers()), batched=False),
        Example(
            BinaryCrossEntropy(0.1, (1.0, 2.0, 0.5), "none"), (spec(2, 3), _answers())
        ),
        Example(
            BinaryCrossEntropy(), (spec(4), jnp.full(4, 0.3), spec(4)), batched=False
        ),
    ),
)
@dataclasses.dataclass(frozen=True)
class BinaryCrossEntropy(Loss):
    r"""Cross-entropy of independent yes-or-no answers, from logits, in nats.

    $$ \ell_i = -v\, t_i \log \sigma(z_i) - (1 - t_i) \log (1 - \sigma(z_i)) $$

    Inputs: logits $z$ and target of one shape; a loss of each element. The target is
    0 or 1, of any dtype, or a probability; beyond [0, 1] the loss is nan.

    Attributes:
        label_smoothing: share of the target moved to one half, in [0, 1).
        positive_weight: $v$, what a yes counts for against a no, >= 0: one number,
            or a tuple of one for each entry of the last axis.
        reduction: see [`Loss`][].

    >>> loss = BinaryCrossEntropy()({}, jnp.array([0.0, 20.0]), jnp.array([0, 1]))
    >>> round(float(loss), 4)
    0.3466
    """

    label_smoothing: float = 0.0
    positive_weight: float | tuple[float, ...] = 1.0
    reduction: str = "mean"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number(self.label_smoothing, "BinaryCrossEntropy.label_smoothing", 0, 1)
        several = isinstance(self.positive_weight, tuple)
        for weight in self.positive_weight if several else (self.positive_weight,):
            check_number(weight, "BinaryCrossEntropy.positive_weight", 0)

    def check(self, ctx: Context, logits: jax.Array, target: jax.Array) -> None:
        """Wants one shape, and a weight for each entry of the last axis."""
        super().check(ctx, logits, target)
        weights = self.positive_weight
        if isinstance(weights, tuple) and logits.shape[-1:] != (len(weights),):
            raise ShapeMismatchError(
                f"{ctx.where} (BinaryCrossEntropy): expected logits with "
                f"{len(weights)} entries along the last axis, as many as "
                f"positive_weight, got {describe(logits)}. Give one weight each."
            )

    def each(self, logits: jax.Array, target: jax.Array) -> jax.Array:
        """Its own formula: optax's has no weight of the positives."""
        share = target.astype(logits.dtype)
        known = (share >= 0) & (share <= 1)
        share = share * (1 - self.label_smoothing) + self.label_smoothing / 2
        weight = jnp.asarray(self.positive_weight, logits.dtype)
        yes = weight * share * jax.nn.log_sigmoid(logits)
        no = (1 - share) * jax.nn.log_sigmoid(-logits)
        return jnp.where(known, -yes - no, jnp.nan)


@register(
    "loss",
    "binary_focal",
    examples=lambda: (
        Example(BinaryFocal(), (spec(2, 3), _answers()), batched=False),
        Example(BinaryFocal(1.5, 0.25, "none"), (spec(2, 3), _answers())),
    ),
)
@dataclasses.dataclass(frozen=True)
class BinaryFocal(Loss):
    r"""Binary cross-entropy that fades for what is already right.

    $$ \ell_i = -\alpha_i (1 - p_i)^\gamma \log p_i, \qquad
       p_i = t_i \sigma(z_i) + (1 - t_i) (1 - \sigma(z_i)) $$

    with $\alpha_i = \alpha$ for a yes and $1 - \alpha$ for a no. Inputs: logits $z$
    and target of one shape; a loss of each element. The target is 0 or 1, of any
    dtype, or a probability; beyond [0, 1] the loss is nan.

    Lin et al., "Focal Loss for Dense Object Detection", 2017,
    https://arxiv.org/abs/1708.02002.

    Attributes:
        gamma: how fast it fades, >= 0; at 0 it is the binary cross-entropy.
        alpha: what a yes counts for, in (0, 1), or None for no such weights.
        reduction: see [`Loss`][].

    >>> loss = BinaryFocal(alpha=0.25)({}, jnp.array([0.0]), jnp.array([1]))
    >>> round(float(loss), 4)
    0.0433
    """

    gamma: float = 2.0
    alpha: float | None = None
    reduction: str = "mean"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number(self.gamma, "BinaryFocal.gamma", 0)
        if self.alpha is not None:
            check_number(self.alpha, "BinaryFocal.alpha", 0, 1, open_=True)

    def each(self, logits: jax.Array, target: jax.Array) -> jax.Array:
        """`optax.sigmoid_focal_loss`."""
        share = target.astype(logits.dtype)
        known = (share >= 0) & (share <= 1)
        inside = jnp.where(known, share, 0)
        losses = optax.sigmoid_focal_loss(
            logits, inside, alpha=self.alpha, gamma=self.gamma
        )
        return jnp.where(known, losses, jnp.nan)


@register(
    "loss",
    "hinge",
    examples=lambda: (
        Example(Hinge(), (spec(2, 3), 2 * _answers() - 1), batched=False),
        Example(Hinge("none"), (spec(2, 3), 2 * _answers() - 1)),
    ),
)
@dataclasses.dataclass(frozen=True)
class Hinge(Loss):
    r"""How far a score is from the right side of the margin.

    $$ \ell_i = \max(0, 1 - y_i t_i), \qquad t_i \in \{-1, 1\} $$

    Inputs: scores and target of one shape; a loss of each element. A target that is
    neither -1 nor 1 makes the loss nan. Cortes & Vapnik, "Support-Vector Networks",
    1995, https://doi.org/10.1007/BF00994018.

    Attributes:
        reduction: see [`Loss`][].

    >>> float(Hinge()({}, jnp.array([0.5, 3.0]), jnp.array([1, 1])))
    0.25
    """

    reduction: str = "mean"

    def each(self, prediction: jax.Array, target: jax.Array) -> jax.Array:
        """`optax.hinge_loss`."""
        side = target.astype(prediction.dtype)
        return jnp.where(
            jnp.abs(side) == 1, optax.hinge_loss(prediction, side), jnp.nan
        )
