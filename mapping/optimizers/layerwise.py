"""Smaller steps for layers nearer to the input."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from mapping.errors import FieldError
from mapping.optimizers.optimizer import Optimizer, as_transform, tried
from mapping.optimizers.rules import check_globs, label
from mapping.registry import register


@register(
    "optimizer",
    "layerwise_decay",
    examples=lambda: tried(
        LayerwiseDecay(Optimizer.of(optax.sgd, 0.1), 0.5, ("*/bias", "*"))
    ),
)
@dataclasses.dataclass(frozen=True)
class LayerwiseDecay(Optimizer):
    """Scales the updates of each layer by its depth. Made by [`layerwise_decay`][].

    Attributes:
        optimizer: what [`as_transform`][] takes.
        decay: the factor from one layer to the one before it, above 0.
        order: globs of the layers, from the input to the output.
    """

    optimizer: Any
    decay: float
    order: tuple[str, ...]

    def __post_init__(self) -> None:
        as_transform(self.optimizer, "layerwise_decay.optimizer")
        check_globs(list(self.order), "layerwise_decay.order")
        real = isinstance(self.decay, int | float) and not isinstance(self.decay, bool)
        if not real or not 0 < self.decay < float("inf"):
            raise FieldError(
                f"layerwise_decay.decay: expected a number above 0, got {self.decay!r}."
            )

    def transform(self) -> optax.GradientTransformation:
        """The optimizer, then the scales."""
        return optax.chain(as_transform(self.optimizer), self._scaled())

    def _scaled(self) -> optax.GradientTransformation:
        depth = {glob: number for number, glob in enumerate(reversed(self.order))}

        def labels(tree: Any) -> Any:
            return label(tree, self.order, "layerwise_decay")

        def init(params: Any) -> optax.EmptyState:
            labels(params)
            return optax.EmptyState()

        def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
            def scale(update: jax.Array, glob: str) -> jax.Array:
                return update * jnp.asarray(self.decay ** depth[glob], update.dtype)

            return jax.tree.map(scale, updates, labels(updates)), state

        return optax.GradientTransformation(init, update)


def layerwise_decay(
    optimizer: Any, decay: float, order: Sequence[str]
) -> LayerwiseDecay:
    r"""Makes steps smaller the nearer a layer is to the input.

    $$ \eta_k = \eta \, decay^{\,n - 1 - k}, \qquad k = 0, \dots, n - 1 $$

    Weight decay that the optimizer adds is scaled with the step, as if the group had
    its own learning rate. Howard & Ruder, "Universal Language Model Fine-tuning",
    2018, https://arxiv.org/abs/1801.06146.

    Args:
        optimizer: an optax transform, or an [`Optimizer`][].
        decay: the factor from one layer to the one before it, above 0.
        order: globs of the layers, from the input to the output; a param belongs to
            the first that names it. The last has the optimizer's own rate.

    Raises:
        UnknownPathError: when it meets params that no glob names, or a glob that
            names none.

    >>> from mapping.optimizers import sgd
    >>> params = {"embed": jnp.ones(1), "block": jnp.ones(1), "head": jnp.ones(1)}
    >>> tuned = layerwise_decay(sgd(1.0), 0.5, ["embed", "block", "head"]).transform()
    >>> updates, _ = tuned.update(params, tuned.init(params), params)
    >>> [float(updates[name][0]) for name in params]
    [-0.25, -0.5, -1.0]
    """
    return LayerwiseDecay(optimizer, decay, tuple(order))
