"""The loss of sequences that are not aligned."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mapping.core import Context, describe
from mapping.errors import FieldError, ShapeMismatchError
from mapping.losses.loss import Loss
from mapping.registry import Example, register, spec

_NEVER = -1e30
"""Logarithm of no probability; below any sum of logits that float32 can hold."""


def _example() -> Example:
    labels, counts = jnp.array([[1, 2], [2, 2]]), jnp.array([1, 2])
    inputs = (spec(2, 4, 3), jnp.array([3, 4]), labels, counts, spec(2))
    return Example(CTC(), inputs, batched=False)


@register("loss", "ctc", examples=_example)
@dataclasses.dataclass(frozen=True)
class CTC(Loss):
    r"""Negative log-likelihood of labels, over all ways to align them with the frames.

    $$ \ell_i = -\log \sum_{\pi \in A(l_i)} \prod_t \mathrm{softmax}(z_{it})_{\pi_t} $$

    where $A(l)$ are the sequences of classes that become $l$ when repetitions are
    merged and blanks are dropped. Inputs: either

    - logits (n, frames, classes) and labels (n, most), negative where they are
      padding; all frames count; or
    - logits, the number of frames of each example (n,), labels, and the number of
      labels of each (n,);

    then optional weights (n,). A loss of each sequence, in nats. Labels that no
    alignment can produce (too few frames) cost infinity and have no gradient. A
    length or label out of range, or a label that is the blank, makes the loss nan.

    Graves et al., "Connectionist Temporal Classification", 2006,
    https://doi.org/10.1145/1143844.1143891.

    Attributes:
        blank: the class that stands for nothing, in [0, classes).
        reduction: see [`Loss`][]; the mean is over sequences, whatever their lengths.

    >>> logits = jnp.zeros((1, 2, 2))
    >>> round(float(CTC()({}, logits, jnp.array([[1]]))), 4)
    0.2877
    """

    blank: int = 0
    reduction: str = "mean"
    takes: ClassVar[int] = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        whole = isinstance(self.blank, int | np.integer) and self.blank >= 0
        if not whole or isinstance(self.blank, bool):
            raise FieldError(
                f"CTC.blank: expected a class number >= 0, got {self.blank!r}."
            )

    def arrange(
        self, arrays: tuple[jax.Array, ...], ctx: Context
    ) -> tuple[tuple[jax.Array, ...], jax.Array | None]:
        """Finds the lengths where they are not given."""
        if len(arrays) in (2, 3):
            logits, labels = arrays[:2]
            self._check_axes(logits, labels, ctx)
            frames = jnp.full(len(logits), logits.shape[1], jnp.int32)
            counts = jnp.sum(labels >= 0, axis=1, dtype=jnp.int32)
            arrays = (logits, frames, labels, counts, *arrays[2:])
        if len(arrays) not in (4, 5):
            raise ShapeMismatchError(
                f"{ctx.where} (CTC): expected (logits, labels) or (logits, frames, "
                f"labels, label counts), and weights, got {len(arrays)}: "
                f"{describe(arrays)}. Pass one of these."
            )
        return super().arrange(arrays, ctx)

    def check(
        self,
        ctx: Context,
        logits: jax.Array,
        frames: jax.Array,
        labels: jax.Array,
        counts: jax.Array,
    ) -> None:
        """Wants a batch of each, and integers but for the logits."""
        self._check_axes(logits, labels, ctx)
        for what, lengths in (("numbers of frames", frames), ("label counts", counts)):
            fits = lengths.shape == logits.shape[:1]
            fits = fits and jnp.issubdtype(lengths.dtype, jnp.integer)
            self.require(fits, f"integer {what} (n,)", (logits, lengths), ctx)

    def each(
        self,
        logits: jax.Array,
        frames: jax.Array,
        labels: jax.Array,
        counts: jax.Array,
    ) -> jax.Array:
        """`optax.ctc_loss`, asked only for what it can answer."""
        late = jnp.arange(logits.shape[1]) >= frames[:, None]
        unused = jnp.arange(labels.shape[1]) >= counts[:, None]
        losses = optax.ctc_loss(
            logits,
            late.astype(logits.dtype),
            jnp.where(unused, self.blank, labels),
            unused.astype(logits.dtype),
            blank_id=self.blank,
            log_epsilon=_NEVER,
        )
        again = (labels[:, 1:] == labels[:, :-1]) & ~unused[:, 1:]
        possible = counts + again.sum(1) <= frames
        losses = jnp.where(possible, losses, jnp.inf)
        inside = (labels >= 0) & (labels < logits.shape[-1]) & (labels != self.blank)
        known = jnp.all(inside | unused, axis=1)
        known &= (frames >= 0) & (frames <= logits.shape[1])
        known &= (counts >= 0) & (counts <= labels.shape[1])
        return jnp.where(known, losses, jnp.nan)

    def _check_axes(self, logits: jax.Array, labels: jax.Array, ctx: Context) -> None:
        fits = logits.ndim == 3 and self.blank < logits.shape[-1]
        if not fits:
            raise ShapeMismatchError(
                f"{ctx.where} (CTC): expected logits (n, frames, classes) with more "
                f"than {self.blank} classes, the blank's number, got "
                f"{describe(logits)}. Reshape them, or choose another blank."
            )
        fits = labels.ndim == 2 and len(labels) == len(logits)
        fits = fits and jnp.issubdtype(labels.dtype, jnp.integer)
        self.require(fits, "integer labels (n, most)", (logits, labels), ctx)
