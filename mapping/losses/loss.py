"""What every loss shares: inputs that fit, weights, and one way of reducing."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from mapping.core import Context, Mapping, State, Variables, describe
from mapping.errors import FieldError, ShapeMismatchError
from mapping.foreign import lenient_promotion

REDUCTIONS = ("mean", "sum", "none")
"""What may become of the losses of the examples."""


@dataclasses.dataclass(frozen=True)
class Loss(Mapping):
    r"""A loss of each example, weighted and reduced.

    $$ \ell = \sum_i w_i \ell_i \Big/ \sum_i w_i m_i $$

    with $m_i = 1$ unless a loss says otherwise. Inputs are `(prediction, target)`, or
    `(prediction, target, weights)`. The weights are numbers >= 0, or booleans: a
    mask. Their shape is that of the losses, or what it begins with: a weight of an
    example counts for all that the example holds. Nothing else is broadcast. Where a
    weight is zero the loss is not looked at, and where all are, the mean is 0.

    Inputs may come grouped in tuples, as a model returns or a data set holds them:
    `loss({}, prediction, (target, weights))` is the same. Half precision is computed
    in float32; the result has the prediction's dtype.

    Subclass it as a frozen dataclass and define `each`. Its field `reduction` is
    `"mean"`, `"sum"` or `"none"` (the weighted losses as they are); without such a
    field it is the mean.

    Raises:
        FieldError: if the reduction is none of the three.
        ShapeMismatchError: if inputs or weights do not fit.

    >>> import dataclasses
    >>> @dataclasses.dataclass(frozen=True)
    ... class Quartic(Loss):
    ...     def each(self, prediction, target):
    ...         return (prediction - target) ** 4
    >>> y, t = jnp.array([1.0, 2.0, 9.0]), jnp.zeros(3)
    >>> float(Quartic()({}, y, t, jnp.array([True, True, False])))
    8.5
    """

    takes: ClassVar[int] = 2
    """How many inputs there are before the weights."""

    def __post_init__(self) -> None:
        reduction = self._reduction()
        if not isinstance(reduction, str) or reduction not in REDUCTIONS:
            raise FieldError(
                f"{self.kind}.reduction: expected 'mean', 'sum' or 'none', got "
                f"{reduction!r}."
            )

    def apply(
        self, variables: Variables, *inputs: Any, ctx: Context
    ) -> tuple[jax.Array, State]:
        """Takes (prediction, target), or (prediction, target, weights)."""
        arrays, weights = self.arrange(_ungrouped(inputs, self.kind, ctx), ctx)
        self.check(ctx, *arrays)
        dtype = arrays[0].dtype
        with lenient_promotion():
            arrays = _widened(arrays)
            losses, mass = self.each(*arrays), self.mass(*arrays)
            if weights is not None:
                weights = _spread(weights, losses, self.kind, ctx)
            result = _reduced(self._reduction(), losses, mass, weights)
        floating = jnp.issubdtype(dtype, jnp.floating)
        return result.astype(dtype if floating else jnp.float32), variables.state

    def arrange(
        self, arrays: tuple[jax.Array, ...], ctx: Context
    ) -> tuple[tuple[jax.Array, ...], jax.Array | None]:
        """Tells the inputs from the weights."""
        if len(arrays) not in (self.takes, self.takes + 1):
            raise ShapeMismatchError(
                f"{ctx.where} ({self.kind}): expected {self.takes} inputs, or "
                f"{self.takes + 1} with weights, got {len(arrays)}: "
                f"{describe(arrays)}. See its apply for what they are."
            )
        return arrays[: self.takes], (*arrays, None)[self.takes]

    # Open signatures, so that a subclass may name its own inputs.
    def check(self, ctx: Context, *inputs: Any, **nothing: Any) -> None:
        """Refuses inputs that do not fit; by default those of different shapes."""
        for other in inputs[1:]:
            fits = other.shape == inputs[0].shape
            self.require(fits, "a target", (inputs[0], other), ctx)

    def each(self, *inputs: Any, **nothing: Any) -> jax.Array:
        """Returns the losses of the examples, unweighted."""
        raise TypeError(
            f"{self.kind}: expected a method `each(self, prediction, target)` that "
            "returns the loss of each example, found none. Define it."
        )

    def mass(self, *inputs: Any, **nothing: Any) -> jax.Array | None:
        """Returns what each example counts for in the mean; None for one each."""
        return None

    def require(
        self, fits: Any, what: str, pair: tuple[Any, Any], ctx: Context
    ) -> None:
        """Refuses a target that does not fit."""
        if not fits:
            prediction, target = pair
            raise ShapeMismatchError(
                f"{ctx.where} (loss): expected {what} that fits the prediction "
                f"{describe(prediction)}, got {describe(target)}. Reshape one of them "
                f"for {self.kind}; a loss never broadcasts."
            )

    def _reduction(self) -> str:
        # Not a field here: a subclass's own fields come first.
        return getattr(self, "reduction", "mean")


def check_number(
    value: Any, where: str, least: float, below: float = np.inf, *, open_: bool = False
) -> None:
    """Refuses what is no number in [least, below), or in (least, below) if open."""
    real = isinstance(value, int | float | np.number) and not isinstance(value, bool)
    if not real or not least <= value < below or (open_ and value == least):
        raise FieldError(
            f"{where}: expected a number in {'(' if open_ else '['}{least:g}, "
            f"{below:g}), got {value!r}."
        )


def _ungrouped(inputs: Any, kind: str, ctx: Context) -> tuple[jax.Array, ...]:
    """The arrays of nested tuples, in order."""
    if type(inputs) is tuple:
        parts = (_ungrouped(part, kind, ctx) for part in inputs)
        return tuple(array for part in parts for array in part)
    try:
        array = jnp.asarray(inputs)
    except (TypeError, ValueError) as error:
        raise ShapeMismatchError(
            f"{ctx.where} ({kind}): expected arrays, or tuples of them, got "
            f"{type(inputs).__name__}. Pick the arrays of it in a mapping of your own."
        ) from error
    if jnp.issubdtype(array.dtype, jnp.complexfloating):
        raise ShapeMismatchError(
            f"{ctx.where} ({kind}): expected real numbers, got {describe(array)}. Take "
            "the parts, or the absolute value."
        )
    return (array,)


def _widened(arrays: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
    """Floats in one dtype of at least 32 bits; the prediction is one of them."""
    floats = [x.dtype for x in arrays if jnp.issubdtype(x.dtype, jnp.floating)]
    wide = jnp.result_type(jnp.float32, *floats)

    def widen(x: jax.Array) -> jax.Array:
        return x.astype(wide) if jnp.issubdtype(x.dtype, jnp.floating) else x

    return (arrays[0].astype(wide), *map(widen, arrays[1:]))


def _spread(
    weights: jax.Array, losses: jax.Array, kind: str, ctx: Context
) -> jax.Array:
    """The weights in the shape of the losses."""
    if weights.shape != losses.shape[: weights.ndim]:
        raise ShapeMismatchError(
            f"{ctx.where} ({kind}): expected weights of the losses' shape "
            f"{list(losses.shape)} or of what it begins with, got {describe(weights)}. "
            "Reshape them; a loss never broadcasts."
        )
    tail = (1,) * (losses.ndim - weights.ndim)
    expanded = weights.astype(losses.dtype).reshape(weights.shape + tail)
    return jnp.broadcast_to(expanded, losses.shape)


def _reduced(
    reduction: str,
    losses: jax.Array,
    mass: jax.Array | None,
    weights: jax.Array | None,
) -> jax.Array:
    if weights is not None:
        # A masked example may hold anything, and 0 * nan is nan.
        losses = jnp.where(weights == 0, 0, losses) * weights
    if reduction == "none":
        return losses
    if reduction == "sum":
        return losses.sum()
    if weights is None and mass is None:
        return losses.mean()
    counts = [x for x in (weights, mass) if x is not None]
    total = jnp.prod(jnp.stack(counts), axis=0).sum()
    return losses.sum() / jnp.where(total == 0, 1, total)
