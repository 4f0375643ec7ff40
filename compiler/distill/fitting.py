"""A distillation in two parts, for loops that know a model and a loss.

`mapping.train.fit(loss.model, data, loss=loss.objective, ...)` trains the student on
data `(*inputs, labels)`; on validation data it is measured alone.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from compiler.distill.distillation import Distillation
from mapping.core import Context, Mapping, State, Variables


@dataclasses.dataclass(frozen=True)
class Model(Mapping):
    """A student in training beside its teacher; see [`Distillation.model`][].

    Attributes:
        loss: what compares them.
    """

    loss: Distillation

    def init(self, key: jax.Array, *specs: Any) -> Variables:
        """The loss's own variables."""
        return self.loss.init(key, *specs)

    def apply(
        self, variables: Variables, *inputs: Any, ctx: Context
    ) -> tuple[Any, State]:
        """The student's logits; in training with the rest of the loss beside them."""
        if not ctx.train:
            own = variables.child("student")
            return self.loss.student(own, inputs, ctx).outputs, variables.state
        outputs, terms, state = self.loss.compared(
            variables, inputs, ctx, self.loss.alpha
        )
        cost = sum(terms.values(), start=jnp.zeros((), jnp.float32))
        return (outputs, cost), state


@dataclasses.dataclass(frozen=True)
class Objective(Mapping):
    """The loss of a [`Model`][]'s prediction; see [`Distillation.objective`][].

    Attributes:
        loss: what compares student and teacher.
    """

    loss: Distillation

    def apply(
        self, variables: Variables, *inputs: Any, ctx: Context
    ) -> tuple[jax.Array, State]:
        """Takes (prediction, labels)."""
        prediction, labels = inputs
        if not isinstance(prediction, tuple):
            return self.loss.task_loss(prediction, labels, ctx), variables.state
        outputs, cost = prediction
        task = self.loss.task_loss(outputs, labels, ctx)
        return (1 - self.loss.alpha) * task + cost, variables.state
