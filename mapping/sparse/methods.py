"""Which weights are kept: by magnitude, by movement, by what grows and what shrinks."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from mapping.core import fold_name
from mapping.errors import FieldError
from mapping.fields import check_count
from mapping.registry import register
from mapping.sparse.masks import check_share
from mapping.sparse.patterns import Single


@dataclasses.dataclass(frozen=True)
class Contestants:
    """What a method sees of one contest, unit by unit, in float32.

    Attributes:
        name: the leaf's path.
        pattern: whose `choose` marks the best of the units.
        active: which are kept now.
        weights: their magnitudes.
        gradients: the magnitudes of their gradients, dense ones.
        scores: what the method has accumulated, if it does.
        kept: how many are to be kept.
        step: the optimizer's.
    """

    name: str
    pattern: Single
    active: jax.Array
    weights: jax.Array
    gradients: jax.Array
    scores: jax.Array | None
    kept: jax.Array
    step: jax.Array


@dataclasses.dataclass(frozen=True)
class Method:
    """How units are chosen. Subclass it and define `choose` for one of your own."""

    scored: ClassVar[bool] = False  # whether it accumulates scores

    def start(self, weight: jax.Array) -> jax.Array | None:
        """The mask to begin with, or None where `first` chooses it."""
        return jnp.ones_like(weight, bool)

    def first(
        self, name: str, pattern: Single, units: jax.Array, kept: jax.Array
    ) -> jax.Array:
        """Those of a leaf of ones' units that are kept before the first step."""
        raise NotImplementedError

    def updates(self, step: jax.Array) -> jax.Array:
        """Whether it chooses anew at a step, whatever the schedule says."""
        return jnp.zeros((), bool)

    def accumulate(
        self, score: jax.Array, weight: jax.Array, gradient: jax.Array
    ) -> jax.Array:
        """The scores after a step, float32."""
        return score

    def choose(self, now: Contestants) -> jax.Array:
        """The units that are kept."""
        raise NotImplementedError


@register("value", "sparse_magnitude")
@dataclasses.dataclass(frozen=True)
class Magnitude(Method):
    """Keeps the largest. Made by [`magnitude`][]."""

    def choose(self, now: Contestants) -> jax.Array:
        """Those kept by magnitude; if there is room for more, by gradient."""
        # -1 / g falls below every magnitude and rises with the gradient.
        growth = jnp.where(now.gradients > 0, -1 / now.gradients, -jnp.inf)
        scores = jnp.where(now.active, now.weights, growth)
        return now.pattern.choose(scores, now.kept)


def magnitude() -> Magnitude:
    r"""Keeps the weights of largest magnitude.

    $$ |w_1| \ge \dots \ge |w_k| $$

    Where a schedule lets some come back, they are those of the largest gradients. Han
    et al., "Learning both Weights and Connections", 2015,
    https://arxiv.org/abs/1506.02626.

    >>> magnitude()
    Magnitude()
    """
    return Magnitude()


@register("value", "sparse_movement")
@dataclasses.dataclass(frozen=True)
class Movement(Method):
    """Keeps what moves away from zero. Made by [`movement`][].

    Attributes:
        rate: of the scores' descent.
        threshold: that the sigmoid of a score has to exceed; None is by count.
        penalty: on the sum of these.
    """

    rate: float = 1.0
    threshold: float | None = None
    penalty: float = 0.0
    scored: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _check_positive(self.rate, "movement.rate")
        if self.threshold is not None:
            check_share(self.threshold, "movement.threshold")
        if self.penalty != 0:
            _check_positive(self.penalty, "movement.penalty")
        if self.penalty and self.threshold is None:
            raise FieldError(
                "movement: expected a threshold beside the penalty, got none: how many "
                "are kept would not depend on it. Set threshold=0.1."
            )

    def accumulate(
        self, score: jax.Array, weight: jax.Array, gradient: jax.Array
    ) -> jax.Array:
        """One step down the straight-through gradient of the scores."""
        slope = weight.astype(jnp.float32) * gradient.astype(jnp.float32)
        if self.penalty:
            gate = jax.nn.sigmoid(score)
            slope = slope + jnp.float32(self.penalty) * gate * (1 - gate)
        return score - jnp.float32(self.rate) * slope

    def choose(self, now: Contestants) -> jax.Array:
        """The largest scores; or all beyond the threshold."""
        scores = jnp.zeros_like(now.weights) if now.scores is None else now.scores
        if self.threshold is None:
            return now.pattern.choose(scores, now.kept)
        if type(now.pattern) is not Single:
            raise FieldError(
                f"movement: expected single weights beside a threshold, got "
                f"{now.pattern}. Leave the threshold out."
            )
        return jax.nn.sigmoid(scores) > self.threshold


def movement(
    rate: float = 1.0, *, threshold: float | None = None, penalty: float = 0.0
) -> Movement:
    r"""Keeps the weights that training moves away from zero, small or large.

    $$ S \leftarrow S - \alpha \left( w \, \frac{\partial L}{\partial w}
       + \lambda \, \sigma'(S) \right) $$

    from $S = 0$. Hard: as many of the largest scores as the schedule says. Soft, with
    a threshold: all with $\sigma(S) > \tau$; then the sparsity is what comes out, and
    the schedule only says at which steps the masks are chosen. A pruned weight's score
    stays; it comes back, from zero, when others fall below it. For fine-tuning. Sanh et
    al., "Movement Pruning", 2020, https://arxiv.org/abs/2005.07683.

    Args:
        rate: of the scores' descent, $\alpha$; of no effect without a threshold.
        threshold: $\tau$, in [0, 1]; below 1/2, where the scores begin.
        penalty: $\lambda$, which presses all scores down.

    Raises:
        FieldError: if a number is out of range.

    >>> movement(threshold=0.1, penalty=1e-3)
    Movement(rate=1.0, threshold=0.1, penalty=0.001)
    """
    return Movement(rate, threshold, penalty)


@dataclasses.dataclass(frozen=True)
class Dynamic(Method):
    """Starts from random masks; drops the smallest and grows as many, in turns.

    Attributes:
        every: steps from one turn to the next.
        fraction: of the kept units that is replaced, at most.
        until: the step from which the masks stay, or None.
        seed: of the first masks, and of what grows by chance.
    """

    every: int
    fraction: float = 0.3
    until: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        where = type(self).__name__.lower()
        check_count(self.every, f"{where}.every")
        check_share(self.fraction, f"{where}.fraction")
        if self.until is not None:
            check_count(self.until, f"{where}.until")

    def start(self, weight: jax.Array) -> jax.Array | None:
        """None: by chance."""
        return None

    def first(
        self, name: str, pattern: Single, units: jax.Array, kept: jax.Array
    ) -> jax.Array:
        """As many as are kept, by chance."""
        return pattern.choose(_by_chance(self._key(name, "start"), units), kept)

    def updates(self, step: jax.Array) -> jax.Array:
        """At each turn."""
        due = (step > 0) & (step % self.every == 0)
        return due if self.until is None else due & (step < self.until)

    def replaced(self, step: jax.Array) -> jax.Array:
        """The fraction replaced at a step."""
        return jnp.float32(self.fraction)

    def growth(self, now: Contestants) -> jax.Array:
        """The larger the sooner a unit grows; at least 0."""
        raise NotImplementedError

    def choose(self, now: Contestants) -> jax.Array:
        """The largest of those kept, and what grows in place of the others."""
        share = jnp.where(self.updates(now.step), self.replaced(now.step), 0)
        dropped = jnp.floor(share * now.kept.astype(jnp.float32) + 0.5)
        staying = now.kept - dropped.astype(jnp.int32)
        staying = jnp.minimum(staying, now.pattern.held(now.active))
        weights = jnp.where(now.active, now.weights, -jnp.inf)
        stays = now.pattern.choose(weights, staying)
        growth = jnp.where(stays, -jnp.inf, jnp.nan_to_num(self.growth(now)))
        missing = now.kept - now.pattern.held(stays)
        return stays | now.pattern.choose(growth, missing)

    def _key(self, *names: str) -> jax.Array:
        key = jax.random.key(self.seed)
        for name in names:
            key = fold_name(key, name)
        return key


@register("value", "sparse_set")
@dataclasses.dataclass(frozen=True)
class Set(Dynamic):
    """Grows by chance. Made by [`set_`][]."""

    def growth(self, now: Contestants) -> jax.Array:
        """Uniform, of the seed, the leaf and the step."""
        key = jax.random.fold_in(self._key(now.name, "growth"), now.step)
        return _by_chance(key, now.weights)


def set_(
    every: int, *, fraction: float = 0.3, until: int | None = None, seed: int = 0
) -> Set:
    """Sparse evolutionary training: drops the smallest weights, grows random ones.

    The masks begin at random, as sparse as the schedule is at step 0. Mocanu et al.,
    "Scalable training of artificial neural networks with adaptive sparse
    connectivity", 2018, https://arxiv.org/abs/1707.04780, with [`erk`][].

    Args:
        every: steps from one turn to the next; there an epoch's.
        fraction: of the kept weights that is replaced at each.
        until: the step from which the masks stay.
        seed: of all that is random; the same one gives the same masks.

    Raises:
        FieldError: if a number is out of range.

    >>> set_(every=100)
    Set(every=100, fraction=0.3, until=None, seed=0)
    """
    return Set(every, fraction, until, seed)


@register("value", "sparse_rigl")
@dataclasses.dataclass(frozen=True)
class RigL(Dynamic):
    """Grows by gradient. Made by [`rigl`][]."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.until is None:
            raise FieldError("rigl.until: expected the last step, got None. Set it.")

    def replaced(self, step: jax.Array) -> jax.Array:
        """A cosine from the fraction to zero."""
        done = step.astype(jnp.float32) / jnp.float32(self.until or 1)
        return jnp.float32(self.fraction / 2) * (1 + jnp.cos(jnp.pi * done))

    def growth(self, now: Contestants) -> jax.Array:
        """The magnitudes of the dense gradient."""
        return now.gradients


def rigl(every: int, until: int, *, fraction: float = 0.3, seed: int = 0) -> RigL:
    r"""RigL: drops the smallest weights, grows those of the largest gradients.

    $$ f(t) = \frac{\alpha}{2} \left(1 + \cos \frac{t \pi}{T_{end}}\right) $$

    of the kept weights of each leaf are replaced every $\Delta T$ steps; what grows
    starts at zero. Besides, the optimizer makes its step there, too. Needs the dense
    gradients, that of weights at zero included. Evci et al., "Rigging the Lottery",
    2020, https://arxiv.org/abs/1911.11134, with [`erk`][].

    Args:
        every: steps from one turn to the next, $\Delta T$; 100 there.
        until: the step from which the masks stay, $T_{end}$; 3/4 of the run there.
        fraction: replaced at first, $\alpha$.
        seed: of the masks to begin with.

    Raises:
        FieldError: if a number is out of range.

    >>> rigl(every=100, until=750)
    RigL(every=100, fraction=0.3, until=750, seed=0)
    """
    return RigL(every, fraction, until, seed)


@register("value", "sparse_hold")
@dataclasses.dataclass(frozen=True)
class Hold(Method):
    """Keeps at zero what is zero. Made by [`hold`][mapping.sparse.hold]."""

    def start(self, weight: jax.Array) -> jax.Array | None:
        """What is not zero; all of a leaf of zeros, which is yet to be trained."""
        alive = jnp.asarray(weight) != 0
        return alive | ~alive.any()

    def choose(self, now: Contestants) -> jax.Array:
        """Those kept before."""
        return now.active


def _by_chance(key: jax.Array, units: jax.Array) -> jax.Array:
    """Uniform, and lower than that for what only fills a group."""
    return jnp.where(units >= 0, jax.random.uniform(key, units.shape), -1)


def _check_positive(number: Any, where: str) -> None:
    real = isinstance(number, int | float) and not isinstance(number, bool)
    if not real or not 0 < number < float("inf"):
        raise FieldError(f"{where}: expected a number above 0, got {number!r}.")
