"""The loss of two-tower recommenders."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from mapping.core import Context
from mapping.losses import Loss
from mapping.losses.loss import check_number
from mapping.registry import Example, register, spec


@register(
    "loss",
    "in_batch_softmax",
    examples=lambda: tuple(
        Example(loss, (spec(4, 3), spec(4, 3), jnp.array([5, 0, 5, 2])), batched=False)
        for loss in (InBatchSoftmax(0.5), InBatchSoftmax(1.0, reduction="none"))
    ),
)
@dataclasses.dataclass(frozen=True)
class InBatchSoftmax(Loss):
    r"""Wants each user nearer to their own item than to the others of the batch.

    $$ \ell_k = -\log \frac{e^{s_{kk}}}{\sum_{i \in I} e^{s_{ki}}}, \qquad
       s_{ki} = \frac{u_k \cdot v_i}{temperature} $$

    with I the different items of the batch: one that several rows chose counts once.
    (So the items of small catalogues are drawn alike, however popular; of large ones
    the popular are drawn more often, and pushed away more often.)

    Inputs: vectors u and v (n, d), as [`TwoTower`][] returns them, and the integer
    numbers of the items (n,) as the target. A loss of each row, in nats.

    Attributes:
        temperature: above 0; for unit vectors around 0.05 to 0.2.
        reduction: see [`Loss`][].

    >>> u = jnp.eye(2)
    >>> round(float(InBatchSoftmax(1.0)({}, (u, u), jnp.array([3, 7]))), 4)
    0.3133
    """

    temperature: float = 0.1
    reduction: str = "mean"
    takes: ClassVar[int] = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number(self.temperature, "InBatchSoftmax.temperature", 0, open_=True)

    def check(
        self, ctx: Context, users: jax.Array, items: jax.Array, numbers: jax.Array
    ) -> None:
        """Wants as many vectors of one size, and an integer for each."""
        fits = users.ndim == 2 and users.shape == items.shape
        self.require(fits, "an item (n, d) for each user", (users, items), ctx)
        fits = numbers.shape == users.shape[:1]
        fits = fits and jnp.issubdtype(numbers.dtype, jnp.integer)
        self.require(fits, "an integer for each row", (users, numbers), ctx)

    def each(self, users: jax.Array, items: jax.Array, numbers: jax.Array) -> jax.Array:
        """A softmax over the items, those that come again left out."""
        items = items.astype(users.dtype)
        scores = jnp.matmul(users, items.T, precision="highest") / self.temperature
        same = numbers[:, None] == numbers
        again = jnp.tril(same, -1).any(1)
        others = jnp.where(again, jnp.finfo(scores.dtype).min / 2, scores)
        return jax.nn.logsumexp(others, axis=1) - jnp.diagonal(scores)
