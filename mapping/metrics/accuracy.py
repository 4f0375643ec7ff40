"""How often the most likely class is the right one."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from mapping.core import Context, Mapping, State, Variables, describe
from mapping.errors import ShapeMismatchError
from mapping.registry import Example, register, spec


@register(
    "metric",
    "accuracy",
    examples=lambda: Example(
        Accuracy(),
        (spec(3, 4), jnp.array([0, 2, 1])),
        batched=False,
        keeps_dtype=False,
        differentiable=False,
        caches=True,
    ),
)
@dataclasses.dataclass(frozen=True)
class Accuracy(Mapping):
    r"""Share of examples whose largest logit is at the target class, in [0, 1].

    State: `correct`, `count`, both int32. Applying it adds a batch and returns
    the value over everything seen; `merge` joins two accumulators, so that
    `merge(seen(a), seen(b)) == seen(a + b)` whatever the order.

    >>> metric = Accuracy()
    >>> v = metric.init(jax.random.key(0))
    >>> logits, classes = jnp.eye(2), jnp.array([0, 0])
    >>> value, state = metric.apply(v, logits, classes, ctx=Context())
    >>> float(value)
    0.5
    """

    def init(self, key: jax.Array, *specs: Any) -> Variables:
        """Starts from nothing seen."""
        zero = jnp.zeros((), jnp.int32)
        return Variables({}, {"correct": zero, "count": zero})

    def apply(
        self, variables: Variables, *inputs: Any, ctx: Context
    ) -> tuple[jax.Array, State]:
        """Takes (logits, classes)."""
        logits, classes = map(jnp.asarray, inputs)
        if classes.shape != logits.shape[:-1]:
            raise ShapeMismatchError(
                f"{ctx.where} (Accuracy): expected class numbers that fit the logits "
                f"{describe(logits)}, got {describe(classes)}. Drop the last axis; "
                "of one-hot targets take argmax(-1)."
            )
        guess = jnp.argmax(logits, axis=-1).astype(jnp.int32)
        hits = jnp.sum(guess == classes.astype(jnp.int32), dtype=jnp.int32)
        seen = {"correct": hits, "count": jnp.full((), classes.size, jnp.int32)}
        state = self.merge(variables.state, seen) if variables.state else seen
        return self.value(state), state

    def merge(self, first: State, second: State) -> State:
        """Joins two accumulators; associative and commutative."""
        return {name: first[name] + second[name] for name in ("correct", "count")}

    def value(self, state: State) -> jax.Array:
        """The accuracy of what an accumulator has seen (nan for nothing)."""
        return state["correct"] / state["count"]
