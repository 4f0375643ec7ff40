"""One optimisation step, as a mapping whose state is everything that evolves."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from mapping.core import (
    Context,
    Mapping,
    State,
    Variables,
    describe,
    fold_name,
    leaf_paths,
)
from mapping.errors import NotTrainableError, ShapeMismatchError
from mapping.foreign import lenient_promotion
from mapping.optimizers import as_transform, partition


@dataclasses.dataclass(frozen=True)
class TrainStep(Mapping):
    r"""Takes a batch, moves the params down the gradient of the loss.

    $$ \theta' = \theta + u(\nabla_\theta\, \ell(f_\theta(x), t)) $$

    with $u$ the optimizer's update. It has no params; its state holds the model's
    `params` and `state`, the `optimizer`'s moments, the `step` and the root `key`.
    The randomness of a step is `fold_in(key, step)`, so a step can be replayed
    from its state alone.

    Attributes:
        model: what is trained.
        loss: a mapping from (prediction, target) to a scalar.
        optimizer: any optax transform; or what [`as_transform`][] takes for one, such
            as `mapping.optimizers.adam(1e-3)`, or a dict of optimizers by path.

    >>> from mapping.layers import Dense
    >>> from mapping.losses import MeanSquaredError
    >>> step = TrainStep(Dense(1), MeanSquaredError(), optax.sgd(0.1))
    >>> batch = (jnp.ones((4, 2)), jnp.ones((4, 1)))
    >>> v = step.init(jax.random.key(0), batch)
    >>> logs, state = step.apply(v, batch, ctx=Context(train=True))
    >>> sorted(logs), int(state["step"])
    (['loss'], 1)
    """

    model: Mapping
    loss: Mapping
    optimizer: Any

    def __post_init__(self) -> None:
        if isinstance(self.optimizer, dict):
            object.__setattr__(self, "optimizer", partition(self.optimizer))
        as_transform(self.optimizer, "TrainStep.optimizer")

    def init(self, key: jax.Array, *specs: Any) -> Variables:
        """Makes a fresh model and optimizer for batches `(*inputs, target)`."""
        (batch,) = specs
        variables = self.model.init(fold_name(key, "init"), *batch[:-1])
        return self.start(key, variables)

    def start(self, key: jax.Array, variables: Variables) -> Variables:
        """Makes the step's variables for a model that already has its own."""
        _check_trainable(variables.params)
        params, state = _strong(variables.params), _strong(variables.state)
        optimizer = self._transform(Context(fold_name(key, "init"), train=True))
        return Variables(
            {},
            {
                "params": params,
                "state": state,
                "optimizer": optimizer.init(params),
                "step": jnp.zeros((), jnp.int32),
                "key": key,
            },
        )

    def apply(
        self, variables: Variables, *inputs: Any, ctx: Context
    ) -> tuple[dict[str, jax.Array], State]:
        """Takes a batch `(*inputs, target)`; returns the logs and the new state."""
        (batch,) = inputs
        now = variables.state
        inner = Context(jax.random.fold_in(now["key"], now["step"]), train=True)

        def objective(params: Any) -> tuple[jax.Array, State]:
            current = Variables(params, now["state"])
            prediction, state = self.model.apply(current, *batch[:-1], ctx=inner)
            pair = (prediction, batch[-1])
            loss = jnp.asarray(self.loss.apply(Variables(), *pair, ctx=inner)[0])
            if loss.shape:
                raise ShapeMismatchError(
                    f"loss ({self.loss.kind}): expected a scalar, got "
                    f"{describe(loss)}. Reduce it, for instance with its mean."
                )
            return loss, state

        gradient = jax.value_and_grad(objective, has_aux=True)
        (loss, state), grads = gradient(now["params"])
        with lenient_promotion():
            updates, moments = self._transform(inner).update(
                grads,
                now["optimizer"],
                now["params"],
                value=loss,
                grad=grads,
                value_fn=lambda params: objective(params)[0],
            )
        return {"loss": loss}, {
            "params": optax.apply_updates(now["params"], updates),
            "state": state,
            "optimizer": moments,
            "step": now["step"] + 1,
            "key": now["key"],
        }

    def _transform(self, ctx: Context) -> optax.GradientTransformationExtraArgs:
        return as_transform(self.optimizer, ctx=ctx.child("optimizer"))


def _check_trainable(params: Any) -> None:
    for path, leaf in leaf_paths(params).items():
        if not jnp.issubdtype(jax.dtypes.result_type(leaf), jnp.inexact):
            raise NotTrainableError(
                f"{path}: expected floating params to train, got {describe(leaf)}. "
                "Train before quantizing, or keep integers in the state."
            )


def _strong(tree: Any) -> Any:
    """Fixes weak dtypes: they would come back strong, and the step be traced again."""

    def fix(leaf: Any) -> Any:
        dtype = jax.dtypes.result_type(leaf)
        if jax.dtypes.issubdtype(dtype, jax.dtypes.extended):
            return leaf
        return jax.lax.convert_element_type(leaf, dtype)

    return jax.tree.map(fix, tree)
