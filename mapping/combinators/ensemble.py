"""Several models that answer as one."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from mapping.combinators.join import joined
from mapping.combinators.steps import Steps
from mapping.context import numbered
from mapping.core import (
    Context,
    Mapping,
    State,
    Variables,
    call,
    describe,
    fold_name,
    init,
    require_variables,
)
from mapping.errors import FieldError, ShapeMismatchError
from mapping.fields import check_count
from mapping.nesting import gather
from mapping.registry import Example, register, spec

_JOINS = ("mean", "vote", None)


def _examples() -> tuple[Example, ...]:
    from mapping.layers import Dense

    return (
        Example(Ensemble(Dense(4), size=3), (spec(2, 3),)),
        Example(Ensemble(Dense(4), Dense(4), weights=(1.0, 3.0)), (spec(2, 3),)),
        Example(
            Ensemble(Dense(4), size=3, join="vote"), (spec(2, 3),), differentiable=False
        ),
    )


@register("combinator", "ensemble", examples=_examples)
@dataclasses.dataclass(frozen=True, init=False, repr=False)
class Ensemble(Steps):
    r"""Asks several models and joins their answers.

    $$ y = \sum_i w_i f_i(x) \Big/ \sum_i w_i $$

    Either one model with `size` copies, each initialised on its own (their
    variables are stacked and they run as one batched program), or several models
    that are given. Trained together, each copy keeps its own gradient path, because
    the mean of their outputs is what the loss sees; train them with `join=None` and
    a loss of each to keep them independent.

    Attributes:
        size: number of copies of the one model; None for models that are given.
        join: `"mean"`; `"vote"`, which returns the share of votes for each class
            (over the last axis), or for integer answers the one most given, the
            smallest of equals; None for all answers along a new first axis.
        weights: of the models, in any unit; equal by default.

    Raises:
        FieldError: if the size, the join or the weights make no ensemble.

    Lakshminarayanan et al., "Simple and Scalable Predictive Uncertainty Estimation
    using Deep Ensembles", 2016, https://arxiv.org/abs/1612.01474.

    >>> both = Ensemble(jnp.sin, jnp.cos, weights=(1.0, 3.0))
    >>> both({}, jnp.zeros(2)).tolist()
    [0.75, 0.75]
    """

    size: int | None = None
    join: str | None = "mean"
    weights: tuple[float, ...] | None = None

    def __init__(
        self,
        *steps: Mapping | Callable[..., Any],
        size: int | None = None,
        join: str | None = "mean",
        weights: tuple[float, ...] | None = None,
        **named: Any,
    ) -> None:
        for field, value in (("size", size), ("join", join), ("weights", weights)):
            object.__setattr__(self, field, value)
        super().__init__(*steps, **named)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.size is not None:
            check_count(self.size, "Ensemble.size")
        if not self.steps or (self.size is not None and len(self.steps) != 1):
            raise FieldError(
                "Ensemble: expected one model and a size, or several models without, "
                f"got {len(self.steps)} models and size {self.size}. Write "
                "Ensemble(model, size=5) or Ensemble(a, b, c)."
            )
        if self.join not in _JOINS:
            raise FieldError(
                f"Ensemble.join: expected 'mean', 'vote' or None, got {self.join!r}. "
                "For another, take join=None and put a mapping behind."
            )
        self._check_weights()

    def init(self, key: jax.Array, *specs: Any) -> Variables:
        """Initialises every model, or every copy, with a key of its own."""
        if self.size is None:
            return gather(
                {
                    name: init(name, step, fold_name(key, name), *specs)
                    for name, step in self.children
                }
            )
        ((name, step),) = self.children

        def one(index: jax.Array) -> Variables:
            own = jax.random.fold_in(fold_name(key, name), index)
            return init(name, step, own, *specs)

        return gather({name: jax.vmap(one)(jnp.arange(self.size))})

    def apply(
        self, variables: Variables, *inputs: Any, ctx: Context
    ) -> tuple[Any, State]:
        """Asks every model and joins the answers."""
        require_variables(variables, ctx)
        ask = self._ask_models if self.size is None else self._ask_copies
        answers, state = ask(variables, inputs, ctx)
        if self.join is None:
            return answers, state
        weights = self.weights or (1.0,) * (self.size or len(self.steps))
        shares = [weight / sum(weights) for weight in weights]
        join = _mean if self.join == "mean" else _vote
        return jax.tree.map(lambda y: join(y, shares), answers), state

    def _ask_models(
        self, variables: Variables, inputs: tuple[Any, ...], ctx: Context
    ) -> tuple[Any, State]:
        answers, new_state = [], dict(variables.state)
        for name, step in self.children:
            answer, state = call(name, step, variables, *inputs, ctx=ctx)
            answers.append(answer)
            if state:
                new_state[name] = state
        return joined("stack", answers, self.names, ctx), new_state

    def _ask_copies(
        self, variables: Variables, inputs: tuple[Any, ...], ctx: Context
    ) -> tuple[Any, State]:
        ((name, step),) = self.children

        def one(index: jax.Array, own: Variables) -> tuple[Any, State]:
            return call(name, step, own, *inputs, ctx=numbered(ctx, index))

        answers, state = jax.vmap(one)(jnp.arange(self.size or 1), variables)
        return answers, {**variables.state, name: state} if state else variables.state

    def _check_weights(self) -> None:
        if self.weights is None:
            return
        wanted = self.size or len(self.steps)
        fits = isinstance(self.weights, tuple) and len(self.weights) == wanted
        if (
            not fits
            or not all(0 <= w < math.inf for w in self.weights)
            or not sum(self.weights)
        ):
            raise FieldError(
                f"Ensemble.weights: expected {wanted} numbers >= 0 that are not all "
                f"zero, as a tuple, got {self.weights!r}."
            )


def _mean(answers: jax.Array, shares: list[float]) -> jax.Array:
    if not jnp.issubdtype(answers.dtype, jnp.inexact):
        raise ShapeMismatchError(
            f"Ensemble: expected floating answers for a mean, got {describe(answers)}. "
            "Join class numbers with join='vote', or none with join=None."
        )
    weights = jnp.asarray(shares, answers.dtype)
    return jnp.tensordot(weights, answers, axes=1)


def _vote(answers: jax.Array, shares: list[float]) -> jax.Array:
    """The share of votes for each class; of class numbers, the one most given."""
    if answers.dtype == bool:
        return _vote(answers.astype(jnp.int32), shares).astype(bool)
    if jnp.issubdtype(answers.dtype, jnp.integer):
        weights = jnp.asarray(shares, jnp.float32)
        agree = (answers[:, None] == answers[None]).astype(weights.dtype)
        votes = jnp.tensordot(weights, agree, axes=1)
        most = votes >= votes.max(0, keepdims=True) * (1 - 1e-6)
        largest = jnp.iinfo(answers.dtype).max
        return jnp.where(most, answers, largest).min(0)
    if answers.ndim < 2:
        raise ShapeMismatchError(
            "Ensemble: expected an axis of classes to vote on, got a single number of "
            "each model. Return scores by class, or integer class numbers."
        )
    classes = answers.shape[-1]
    ballots = jax.nn.one_hot(answers.argmax(-1), classes, dtype=answers.dtype)
    return _mean(ballots, shares)
