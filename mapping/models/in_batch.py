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
        Example(loss, (spec(4, 3), spec(4, 3), jnp.array([5, 1, 5, 2])), batched=False)
        for loss in (InBatchSoftmax(0.5), InBatchSoftmax(1.0, reduction="none"))
    ),
)
@dataclasses.dataclass(frozen=True)
class InBatchSoftmax(Loss):
    r"""Wants each user nearer to their own item than to the others of the batch.

    $$ \ell_k = -\log \frac{e^{s_{kk}} / f_k}{\sum_j e^{s_{kj}} / f_j}, \qquad
       s_{kj} = \frac{u_k \cdot v_j}{temperature} $$

    The batch stands for the catalogue. Popular items are in it more often, so each
    counts by the inverse of its frequency f: the sum is then, up to a constant, that
    of a softmax over all items. Ones as frequencies leave that out; what is learnt is
    then by how much more an item is chosen than its popularity says.

    Inputs: vectors u and v (n, d), as [`TwoTower`][] returns them, and as the target
    how often the item of each row was chosen in all the data (n,), above 0, in any
    unit; else the loss is nan. A loss of each row, in nats.

    Yi et al., "Sampling-Bias-Corrected Neural Modeling for Large Corpus Item
    Recommendations", 2019, https://doi.org/10.1145/3298689.3346996.

    Attributes:
        temperature: above 0; for unit vectors around 0.05 to 0.2.
        reduction: see [`Loss`][].

    >>> u = jnp.eye(2)
    >>> round(float(InBatchSoftmax(1.0)({}, (u, u), jnp.array([3, 3]))), 4)
    0.3133
    """

    temperature: float = 0.1
    reduction: str = "mean"
    takes: ClassVar[int] = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number(self.temperature, "InBatchSoftmax.temperature", 0, open_=True)

    def check(
        self, ctx: Context, users: jax.Array, items: jax.Array, often: jax.Array
    ) -> None:
        """Wants as many vectors of one size, and a frequency for each."""
        fits = users.ndim == 2 and users.shape == items.shape
        self.require(fits, "an item (n, d) for each user", (users, items), ctx)
        fits = often.shape == users.shape[:1]
        self.require(fits, "a frequency for each row", (users, often), ctx)

    def each(self, users: jax.Array, items: jax.Array, often: jax.Array) -> jax.Array:
        """A softmax over the batch, popular items weighing less."""
        items = items.astype(users.dtype)
        scores = jnp.matmul(users, items.T, precision="highest") / self.temperature
        often = often.astype(users.dtype)
        weight = jnp.where(often > 0, jnp.log(often), jnp.nan)
        scores = scores - weight[None]
        return jax.nn.logsumexp(scores, axis=1) - jnp.diagonal(scores)
