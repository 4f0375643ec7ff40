"""Losses of distributions over classes."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mapping.core import Context, describe
from mapping.errors import FieldError, ShapeMismatchError
from mapping.losses.loss import Loss, check_number
from mapping.registry import Example, register, spec


def _classes() -> jax.Array:
    return jnp.array([0, 2, 1, 1])


def _cross_entropies() -> tuple[Example, ...]:
    logits, share = spec(4, 3), jnp.full((4, 3), 1 / 3)
    weighted = CrossEntropy(0.1, class_weights=(1.0, 2.0, 0.5))
    return (
        Example(CrossEntropy(), (logits, _classes()), batched=False),
        Example(CrossEntropy(), (logits, share), batched=False),
        Example(weighted, (logits, _classes(), spec(4)), batched=False),
        Example(CrossEntropy(ignore=1, reduction="none"), (logits, _classes())),
    )


@register("loss", "cross_entropy", examples=_cross_entropies)
@dataclasses.dataclass(frozen=True)
class CrossEntropy(Loss):
    r"""Mean cross-entropy between logits and classes, in nats.

    $$ \ell_i = -\sum_c v_c t_{ic} \log \mathrm{softmax}(z_i)_c, \qquad
       m_i = \sum_c v_c t_{ic} $$

    Inputs: logits $z$ (..., classes), and a target: a class number (any integer
    dtype, one axis fewer than the logits) or a distribution over classes (the
    logits' own shape); a loss of each example. A class number that there is no logit
    for makes the loss nan. A logit may be -inf where the target is zero.

    Attributes:
        label_smoothing: share of the target spread evenly over all classes, in
            [0, 1). Szegedy et al., 2015, https://arxiv.org/abs/1512.00567.
        class_weights: $v$, one number >= 0 a class; all 1 if empty. The mean is over
            the weights of the targets, so one-hot targets and class numbers agree.
        ignore: a class number that marks examples to be left out, if any.
        reduction: see [`Loss`][].

    >>> logits = jnp.array([[0.0, 0.0]])
    >>> round(float(CrossEntropy()({}, logits, jnp.array([1]))), 4)
    0.6931
    """

    label_smoothing: float = 0.0
    class_weights: tuple[float, ...] = ()
    ignore: int | None = None
    reduction: str = "mean"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number(self.label_smoothing, "CrossEntropy.label_smoothing", 0, 1)
        _check_class_weights(self.class_weights, "CrossEntropy")
        if self.ignore is not None and not isinstance(self.ignore, int | np.integer):
            raise FieldError(
                "CrossEntropy.ignore: expected a class number or None, got "
                f"{self.ignore!r}."
            )

    def check(self, ctx: Context, logits: jax.Array, target: jax.Array) -> None:
        """Wants class numbers, or a distribution over classes."""
        what = "integer class numbers, or a distribution over classes,"
        shape = logits.shape
        if _numbered(target):
            what, shape = "class numbers", logits.shape[:-1]
        fits = logits.ndim > 0 and target.shape == shape
        self.require(fits, what, (logits, target), ctx)
        _check_count(self.class_weights, logits, self.kind, ctx)

    def each(self, logits: jax.Array, target: jax.Array) -> jax.Array:
        """`optax.safe_softmax_cross_entropy`."""
        share = self._share(logits, target)
        if self.label_smoothing:
            share = optax.smooth_labels(share, self.label_smoothing)
        losses = optax.safe_softmax_cross_entropy(logits, share * self._weights(logits))
        if not _numbered(target):
            return losses
        losses = jnp.where(_known(target, logits), losses, jnp.nan)
        return jnp.where(self._ignored(target), 0, losses)

    def mass(self, logits: jax.Array, target: jax.Array) -> jax.Array | None:
        """The weight of each target; none of an example that is left out."""
        if not self.class_weights and self.ignore is None:
            return None
        return (self._share(logits, target) * self._weights(logits)).sum(-1)

    def _share(self, logits: jax.Array, target: jax.Array) -> jax.Array:
        """What share of an example each class has."""
        if not _numbered(target):
            return target.astype(logits.dtype)
        share = jax.nn.one_hot(target, logits.shape[-1], dtype=logits.dtype)
        return jnp.where(self._ignored(target)[..., None], 0, share)

    def _ignored(self, target: jax.Array) -> jax.Array:
        limits = jnp.iinfo(target.dtype)
        if self.ignore is None or not limits.min <= self.ignore <= limits.max:
            return jnp.zeros(target.shape, bool)
        return target == self.ignore

    def _weights(self, logits: jax.Array) -> jax.Array:
        return jnp.asarray(self.class_weights or 1.0, logits.dtype)


@register(
    "loss",
    "focal",
    examples=lambda: (
        Example(Focal(), (spec(4, 3), _classes()), batched=False),
        Example(Focal(0.5, (1.0, 2.0, 3.0), "none"), (spec(4, 3), _classes())),
    ),
)
@dataclasses.dataclass(frozen=True)
class Focal(Loss):
    r"""Cross-entropy that fades for what is already right.

    $$ \ell_i = -v_{t_i} (1 - p_i)^\gamma \log p_i, \qquad
       p_i = \mathrm{softmax}(z_i)_{t_i} $$

    Inputs: logits (..., classes >= 2) and class numbers, one axis fewer; a loss of
    each example. A class number that there is no logit for makes the loss nan. For
    independent labels see [`BinaryFocal`][].

    Lin et al., "Focal Loss for Dense Object Detection", 2017,
    https://arxiv.org/abs/1708.02002.

    Attributes:
        gamma: how fast it fades, >= 0; at 0 it is the cross-entropy.
        class_weights: $v$ (the paper's alpha), one number >= 0 a class; all 1 if
            empty. The mean is over the examples, not over their weights.
        reduction: see [`Loss`][].

    >>> logits = jnp.array([[0.0, 0.0]])
    >>> round(float(Focal(gamma=2.0)({}, logits, jnp.array([1]))), 4)
    0.1733
    """

    gamma: float = 2.0
    class_weights: tuple[float, ...] = ()
    reduction: str = "mean"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number(self.gamma, "Focal.gamma", 0)
        _check_class_weights(self.class_weights, "Focal")

    def check(self, ctx: Context, logits: jax.Array, target: jax.Array) -> None:
        """Wants integer class numbers, and two classes at least."""
        fits = _numbered(target) and logits.shape[-1:] > (1,)
        fits = fits and target.shape == logits.shape[:-1]
        what = "integer class numbers, of two classes at least,"
        self.require(fits, what, (logits, target), ctx)
        _check_count(self.class_weights, logits, self.kind, ctx)

    def each(self, logits: jax.Array, target: jax.Array) -> jax.Array:
        """In logarithms: 1 - p of a certain prediction rounds to zero."""
        own = jax.nn.one_hot(target, logits.shape[-1], dtype=bool)
        whole = jax.nn.logsumexp(logits, axis=-1)
        log_others = jax.nn.logsumexp(logits, axis=-1, where=~own) - whole
        losses = optax.safe_softmax_cross_entropy(logits, own.astype(logits.dtype))
        if self.gamma:
            losses = jnp.exp(self.gamma * log_others) * losses
        if self.class_weights:
            weights = jnp.asarray(self.class_weights, logits.dtype)
            losses = losses * jnp.where(own, weights, 0).sum(-1)
        return jnp.where(_known(target, logits), losses, jnp.nan)


def _numbered(target: jax.Array) -> bool:
    """Whether targets are class numbers and not distributions."""
    return jnp.issubdtype(target.dtype, jnp.integer)


def _known(target: jax.Array, logits: jax.Array) -> jax.Array:
    return (target >= 0) & (target < logits.shape[-1])


def _check_class_weights(weights: tuple[float, ...], kind: str) -> None:
    if not isinstance(weights, tuple):
        raise FieldError(
            f"{kind}.class_weights: expected a tuple of numbers, one a class, got "
            f"{type(weights).__name__}."
        )
    for number, weight in enumerate(weights):
        check_number(weight, f"{kind}.class_weights[{number}]", 0)


def _check_count(
    weights: tuple[float, ...], logits: jax.Array, kind: str, ctx: Context
) -> None:
    if weights and len(weights) != logits.shape[-1]:
        raise ShapeMismatchError(
            f"{ctx.where} ({kind}): expected logits of {len(weights)} classes, as many "
            f"as class_weights, got {describe(logits)}. Give one weight a class."
        )
