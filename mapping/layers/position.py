"""Where in a sequence each vector stands."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mapping.core import (
    Context,
    Mapping,
    State,
    Variables,
    describe,
    initialising,
    require_key,
)
from mapping.errors import FieldError, OutOfRangeError, ShapeMismatchError
from mapping.fields import check_count
from mapping.foreign import named_errors, require_arrays
from mapping.layers.embedding import rows_of
from mapping.layers.guard import (
    learned,
    require_axes,
    require_features,
    together,
    wide,
)
from mapping.registry import Example, register, spec


@register(
    "layer",
    "position_embedding",
    examples=lambda: (
        Example(PositionEmbedding(5), (spec(2, 3, 4),)),
        Example(PositionEmbedding(5), (spec(2, 3, 4), jnp.array([4, 0, 1])),
                batched=False),
    ),
)  # fmt: skip
@dataclasses.dataclass(frozen=True)
class PositionEmbedding(Mapping):
    r"""Adds a learned vector for each position.

    $$ y_t = x_t + P_t, \qquad P \in \mathbb{R}^{max\_length \times d} $$

    A second input, if there is one, says the positions (a decoder's, that goes on
    from a cache); what fits no position is refused, or nan under `jit`, as by
    [`Embed`][].

    Params: `embedding` (max_length, d).

    Gehring et al., "Convolutional sequence to sequence learning", 2017,
    https://arxiv.org/abs/1705.03122.

    Attributes:
        max_length: how many positions there are.
        embedding_init: initialiser of `embedding`; normal of standard deviation 0.02
            by default (GPT's).

    Raises:
        OutOfRangeError: if the sequence is longer, or a position beyond.

    >>> layer = PositionEmbedding(8)
    >>> x = jnp.zeros((2, 3, 4))
    >>> params = layer.init(jax.random.key(0), x).params
    >>> y = layer(params, x)
    >>> bool((y[1] == params["embedding"][:3]).all())
    True
    >>> z = layer(params, x, jnp.array([5, 6, 7]))
    >>> bool((z[0] == params["embedding"][5:]).all())
    True
    """

    max_length: int
    embedding_init: Callable[..., Any] | None = None

    def __post_init__(self) -> None:
        check_count(self.max_length, "PositionEmbedding.max_length")

    def init(self, key: jax.Array, *specs: Any) -> Variables:
        """Makes a vector for each position."""
        _require_sequence(initialising(), self.kind, specs)
        require_key(key)
        start = self.embedding_init or jax.nn.initializers.normal(0.02)
        shape = (self.max_length, specs[0].shape[-1])
        return Variables({"embedding": start(key, shape, jnp.float32)})

    def apply(
        self, variables: Variables, *inputs: Any, ctx: Context
    ) -> tuple[Any, State]:
        """Takes x (..., length, features), and positions (..., length) if wanted."""
        _require_sequence(ctx, self.kind, inputs)
        (table,) = learned(variables, ctx, self.kind, "embedding")
        require_features(ctx, self.kind, inputs[0], table.shape[-1])
        with named_errors(ctx, self.kind, inputs):
            x, table = together(inputs[0], table)
            if len(inputs) == 2:
                own = rows_of(ctx, self.kind, table, inputs[1])
            else:
                own = table[: self._length(x, ctx)]
            return x + jnp.broadcast_to(own, x.shape), variables.state

    def _length(self, x: jax.Array, ctx: Context) -> int:
        if x.shape[-2] > self.max_length:
            raise OutOfRangeError(
                f"{ctx.where} (PositionEmbedding): expects at most {self.max_length} "
                f"positions, got {describe(x)}. Shorten the sequence, or enlarge "
                "max_length."
            )
        return x.shape[-2]


@register(
    "layer",
    "sinusoidal_position",
    examples=lambda: (
        Example(SinusoidalPosition(), (spec(2, 3, 4),)),
        Example(SinusoidalPosition(100.0), (spec(2, 3, 5), jnp.array([4, 0, 1])),
                batched=False),
    ),
)  # fmt: skip
@dataclasses.dataclass(frozen=True)
class SinusoidalPosition(Mapping):
    r"""Adds waves of the position, from fast to slow: known for any length.

    $$ y_{t, 2i} = x_{t, 2i} + \sin(t / base^{2i/d}), \qquad
       y_{t, 2i+1} = x_{t, 2i+1} + \cos(t / base^{2i/d}) $$

    A second input, if there is one, says the positions. They are computed in
    float32 at least, where position t is known up to t / 10^7 radians.

    Vaswani et al., "Attention is all you need", 2017, section 3.5,
    https://arxiv.org/abs/1706.03762.

    Attributes:
        base: the slowest wave is 2 pi base positions long.

    >>> SinusoidalPosition()({}, jnp.zeros((2, 2))).tolist()
    [[0.0, 1.0], [0.8414..., 0.5403...]]
    """

    base: float = 10000.0

    def __post_init__(self) -> None:
        if not self.base > 0:
            raise FieldError(
                f"SinusoidalPosition.base: expected a number > 0, got {self.base!r}."
            )

    def apply(
        self, variables: Variables, *inputs: Any, ctx: Context
    ) -> tuple[Any, State]:
        """Takes x (..., length, features), and positions (..., length) if wanted."""
        _require_sequence(ctx, self.kind, inputs)
        with named_errors(ctx, self.kind, inputs):
            (x,) = together(inputs[0])
            waves = self._waves(x, *inputs[1:]).astype(x.dtype)
            return x + jnp.broadcast_to(waves, x.shape), variables.state

    def _waves(self, x: jax.Array, positions: Any = None) -> jax.Array:
        exact = wide(x).dtype
        if positions is None:
            positions = jnp.arange(x.shape[-2])
        channel = np.arange(x.shape[-1])
        rates = self.base ** -((channel - channel % 2) / x.shape[-1])
        angles = jnp.einsum(
            "...t,d->...td", jnp.asarray(positions, exact), jnp.asarray(rates, exact)
        )
        return jnp.where(channel % 2 == 0, jnp.sin(angles), jnp.cos(angles))


def _require_sequence(ctx: Context, kind: str, inputs: tuple[Any, ...]) -> None:
    """Refuses what is not (..., length, features), with positions or without."""
    require_arrays(ctx, kind, inputs, count=2 if len(inputs) == 2 else 1)
    require_axes(ctx, kind, inputs[0], 2, "length, features")
    if len(inputs) == 1:
        return
    whole, given = inputs[0].shape[:-1], inputs[1].shape
    real = any(jnp.issubdtype(inputs[1].dtype, k) for k in (jnp.integer, jnp.floating))
    if not real or not given or given != whole[-len(given) :]:
        raise ShapeMismatchError(
            f"{ctx.where} ({kind}): expects positions (..., length) that fit "
            f"{describe(inputs[0])}, got {describe(inputs[1])}. Give one for each "
            "vector, or one sequence for all."
        )
