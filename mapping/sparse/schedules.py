"""How sparse a network is at which step of its training."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mapping.errors import FieldError
from mapping.fields import check_count
from mapping.registry import register
from mapping.sparse.masks import check_share


@dataclasses.dataclass(frozen=True)
class Schedule:
    """A pure function from the step to the sparsity, the share of zeros.

    Subclass it and define `__call__`; and `updates`, where the masks are not to be
    chosen anew at each step. A named function is a schedule too, and any of optax
    (`Built.of(optax.linear_schedule, 0.0, 0.9, 1000)`).

    >>> class Half(Schedule):
    ...     def __call__(self, step):
    ...         return jnp.float32(0.5)
    >>> float(Half()(3)), bool(Half().updates(3))
    (0.5, True)
    """

    def __call__(self, step: Any) -> jax.Array:
        """The sparsity after an update at that step, in [0, 1], float32."""
        raise NotImplementedError

    def updates(self, step: Any) -> jax.Array:
        """Whether the masks are chosen anew at that step."""
        return jnp.asarray(step) >= 0


@register("value", "sparse_one_shot")
@dataclasses.dataclass(frozen=True)
class OneShot(Schedule):
    """Dense before a step, at that sparsity from then on. Made by [`one_shot`][].

    Attributes:
        sparsity: the share of zeros, in [0, 1].
        step: at which it is pruned, counted from 0.
    """

    sparsity: float
    step: int = 0

    def __post_init__(self) -> None:
        check_share(self.sparsity, "one_shot.sparsity")
        _check_step(self.step, "one_shot.step")

    def __call__(self, step: Any) -> jax.Array:
        """0, then the sparsity."""
        return jnp.float32(self.sparsity) * (jnp.asarray(step) >= self.step).astype(
            jnp.float32
        )

    def updates(self, step: Any) -> jax.Array:
        """Once."""
        return jnp.asarray(step) == self.step


def one_shot(sparsity: float, step: int = 0) -> OneShot:
    """Prunes at one step.

    Args:
        sparsity: the share of zeros, in [0, 1].
        step: when, counted from 0.

    >>> [float(one_shot(0.5, 2)(step)) for step in range(4)]
    [0.0, 0.0, 0.5, 0.5]
    """
    return OneShot(sparsity, step)


@register("value", "sparse_polynomial")
@dataclasses.dataclass(frozen=True)
class Polynomial(Schedule):
    """Ever sparser, quickly first. Made by [`polynomial`][].

    Attributes:
        sparsity: at the end, in [0, 1].
        begin: the first step at which the masks are chosen.
        end: the last.
        every: steps from one choice to the next.
        initial: the sparsity at `begin`.
        power: 1 is linear, 3 cubic.
    """

    sparsity: float
    begin: int
    end: int
    every: int = 1
    initial: float = 0.0
    power: float = 3.0

    def __post_init__(self) -> None:
        check_share(self.sparsity, "polynomial.sparsity")
        check_share(self.initial, "polynomial.initial")
        _check_step(self.begin, "polynomial.begin")
        _check_span(self.begin, self.end, "polynomial")
        check_count(self.every, "polynomial.every")
        _check_power(self.power, "polynomial.power")

    def __call__(self, step: Any) -> jax.Array:
        """What the masks hold at that step: it changes where they do."""
        now = jnp.asarray(step, jnp.int32) - self.begin
        span = self.end - self.begin
        held = jnp.where(now >= span, span, now - now % self.every)
        curve = _curve(held, span, self.initial, self.sparsity, self.power)
        return jnp.where(now < 0, jnp.float32(0), curve)

    def updates(self, step: Any) -> jax.Array:
        """Every so many steps, and at the end."""
        now = jnp.asarray(step, jnp.int32) - self.begin
        span = self.end - self.begin
        inside = (now >= 0) & (now < span)
        return (inside & (now % self.every == 0)) | (now == span)


def polynomial(
    sparsity: float,
    begin: int,
    end: int,
    *,
    every: int = 1,
    initial: float = 0.0,
    power: float = 3.0,
) -> Polynomial:
    r"""Prunes little by little, most of it early, when most is redundant.

    $$ s(t) = s_f + (s_i - s_f) \left(1 - \frac{t - t_0}{t_1 - t_0}\right)^3 $$

    for $t$ from `begin` $t_0$ to `end` $t_1$ in strides of `every`; 0 before. Zhu &
    Gupta, "To prune, or not to prune", 2017, https://arxiv.org/abs/1710.01878.

    Args:
        sparsity: at the end, in [0, 1].
        begin: the first step at which the masks are chosen, from 0.
        end: the last, after `begin`.
        every: steps from one choice to the next; between them training recovers.
        initial: the sparsity at `begin`.
        power: 1 is linear, 3 cubic.

    >>> ramp = polynomial(0.8, 0, 4, every=2)
    >>> [round(float(ramp(step)), 3) for step in range(6)]
    [0.0, 0.0, 0.7, 0.7, 0.8, 0.8]
    """
    return Polynomial(sparsity, begin, end, every, initial, power)


@register("value", "sparse_cyclic")
@dataclasses.dataclass(frozen=True)
class Cyclic(Schedule):
    """Sparse and dense in turns. Made by [`cyclic`][].

    Attributes:
        sparsity: at the end of each cycle, in [0, 1].
        length: steps of a cycle.
        cycles: how many.
        begin: the first step of the first.
        every: steps from one choice of the masks to the next.
        initial: the sparsity at the start of each.
        power: 1 is linear, 3 cubic.
    """

    sparsity: float
    length: int
    cycles: int
    begin: int = 0
    every: int = 1
    initial: float = 0.0
    power: float = 3.0

    def __post_init__(self) -> None:
        check_share(self.sparsity, "cyclic.sparsity")
        check_share(self.initial, "cyclic.initial")
        check_count(self.cycles, "cyclic.cycles")
        check_count(self.every, "cyclic.every")
        _check_step(self.begin, "cyclic.begin")
        _check_power(self.power, "cyclic.power")
        _check_span(1, self.length, "cyclic.length")

    def __call__(self, step: Any) -> jax.Array:
        """What the masks hold at that step: it changes where they do."""
        now = jnp.asarray(step, jnp.int32) - self.begin
        last = self.length - 1
        inside = jnp.where(now >= self.cycles * self.length, last, now % self.length)
        held = jnp.where(inside == last, last, inside - inside % self.every)
        curve = _curve(held, last, self.initial, self.sparsity, self.power)
        return jnp.where(now < 0, jnp.float32(0), curve)

    def updates(self, step: Any) -> jax.Array:
        """Every so many steps of a cycle, and at its last."""
        now = jnp.asarray(step, jnp.int32) - self.begin
        inside = now % self.length
        due = (inside % self.every == 0) | (inside == self.length - 1)
        return due & (now >= 0) & (now < self.cycles * self.length)


def cyclic(
    sparsity: float,
    length: int,
    cycles: int,
    *,
    begin: int = 0,
    every: int = 1,
    initial: float = 0.0,
    power: float = 3.0,
) -> Cyclic:
    r"""Prunes in cycles, each from dense to sparse: what was pruned may come back.

    Each cycle is a [`polynomial`][] over its `length` steps, the last of which has
    the whole sparsity; after the last cycle it stays. Srinivas et al., "Cyclical
    Pruning for Sparse Neural Networks", 2022, https://arxiv.org/abs/2202.01290. Weights
    come back from zero here, those of the largest gradients first.

    Args:
        sparsity: at the end of each cycle, in [0, 1].
        length: steps of a cycle, two at least.
        cycles: how many.
        begin: the first step of the first; it is dense before.
        every: steps from one choice of the masks to the next.
        initial: the sparsity at the start of each cycle.
        power: 1 is linear, 3 cubic.

    >>> waves = cyclic(0.75, 3, 2, power=1)
    >>> [float(waves(step)) for step in range(7)]
    [0.0, 0.375, 0.75, 0.0, 0.375, 0.75, 0.75]
    """
    return Cyclic(sparsity, length, cycles, begin, every, initial, power)


def _curve(
    now: jax.Array, span: int, initial: float, final: float, power: float
) -> jax.Array:
    """From the one to the other in `span` steps, both exactly."""
    left = jnp.float32(1) - now.astype(jnp.float32) / jnp.float32(span)
    left = jnp.maximum(left, jnp.float32(0)) ** jnp.float32(power)
    return jnp.float32(final) + jnp.float32(initial - final) * left


def _check_step(step: Any, where: str) -> None:
    whole = isinstance(step, int | np.integer) and not isinstance(step, bool)
    if not whole or step < 0:
        raise FieldError(f"{where}: expected a step >= 0, got {step!r}.")


def _check_span(begin: int, end: Any, where: str) -> None:
    whole = isinstance(end, int | np.integer) and not isinstance(end, bool)
    if not whole or end <= begin:
        raise FieldError(
            f"{where}: expected a last step after the step {begin}, got {end!r}."
        )


def _check_power(power: Any, where: str) -> None:
    real = isinstance(power, int | float) and not isinstance(power, bool)
    if not real or not 0 < power < float("inf"):
        raise FieldError(f"{where}: expected a number above 0, got {power!r}.")
