"""Numbers to vectors, and vectors to scores of numbers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.core
import jax.numpy as jnp

from mapping.core import Context, Mapping, State, Variables, describe
from mapping.errors import OutOfRangeError, ShapeMismatchError
from mapping.fields import check_count
from mapping.foreign import named_errors, require_arrays
from mapping.layers.guard import learned, require_features, together
from mapping.layers.linen import LinenLayer
from mapping.registry import Example, register, spec


@register(
    "layer",
    "embed",
    examples=lambda: Example(Embed(3, 4), (jnp.array([[1, 0, 2]]),)),
)
@dataclasses.dataclass(frozen=True)
class Embed(LinenLayer):
    r"""Looks a vector up for each number.

    $$ y_{\dots} = E_{x_{\dots}}, \qquad E \in \mathbb{R}^{n \times features} $$

    A number that has no vector is never answered with another's: known numbers are
    refused, and where they are known only as the program runs (under `jit`, `vmap`)
    their vectors are nan. That includes negative ones.

    Params: `embedding` (num_embeddings, features).

    Attributes:
        num_embeddings: how many vectors; inputs are in [0, num_embeddings).
        features: size of each.
        embedding_init: initialiser of `embedding`; normal of variance 1 / features
            by default.

    Raises:
        OutOfRangeError: if a number has no vector, outside of `jit`.
        ShapeMismatchError: if the input is not of integers.

    >>> embed = Embed(10, 4)
    >>> v = embed.init(jax.random.key(0), jnp.array([[1, 2, 3]]))
    >>> embed(v.params, jnp.array([[1, 2, 3]])).shape
    (1, 3, 4)
    """

    num_embeddings: int
    features: int
    embedding_init: Callable[..., Any] | None = None

    def __post_init__(self) -> None:
        check_count(self.num_embeddings, "Embed.num_embeddings")
        check_count(self.features, "Embed.features")

    def module(self) -> nn.Module:
        """`flax.linen.Embed`."""
        return nn.Embed(
            self.num_embeddings,
            self.features,
            embedding_init=self.embedding_init or nn.linear.default_embed_init,
        )

    def apply(
        self, variables: Variables, *inputs: Any, ctx: Context
    ) -> tuple[Any, State]:
        """Takes integers of any shape; adds an axis of features."""
        require_arrays(ctx, self.kind, inputs, count=1)
        (table,) = learned(variables, ctx, self.kind, "embedding")
        if table.shape != (self.num_embeddings, self.features):
            raise ShapeMismatchError(
                f"{ctx.where} (Embed): expects params of {self.num_embeddings} vectors "
                f"of {self.features} features, got {describe(table)}. Re-run init."
            )
        return rows_of(ctx, self.kind, table, *inputs), variables.state


@register(
    "layer",
    "attend",
    examples=lambda: Example(Attend(), (spec(2, 3), spec(5, 3)), batched=False),
)
@dataclasses.dataclass(frozen=True)
class Attend(Mapping):
    r"""Scores every row of an embedding: an output layer with the input's weights.

    $$ y = x E^\top, \qquad E \in \mathbb{R}^{n \times d} $$

    It has no params of its own; the embedding is its second input, so that gradients
    of both uses meet in the one array. (Where a `Dense` is the output layer already,
    `Shared` ties its kernel to the transposed embedding.)

    Press & Wolf, "Using the output embedding to improve language models", 2016,
    https://arxiv.org/abs/1608.05859.

    >>> import dataclasses
    >>> from mapping.model import Model
    >>> @dataclasses.dataclass(frozen=True)
    ... class Tied(Model):
    ...     def parts(self):
    ...         return {"tokens": Embed(10, 4), "scores": Attend()}
    ...
    ...     def forward(self, run, numbers):
    ...         rows = run.tokens(numbers)
    ...         return run.scores(rows, run.params["tokens"]["embedding"])
    >>> numbers = jnp.array([[1, 2, 3]])
    >>> v = Tied().init(jax.random.key(0), numbers)
    >>> sorted(v.params), Tied()(v.params, numbers).shape
    (['tokens'], (1, 3, 10))
    """

    def apply(
        self, variables: Variables, *inputs: Any, ctx: Context
    ) -> tuple[Any, State]:
        """Takes (x, embedding): (..., features) and (n, features)."""
        require_arrays(ctx, self.kind, inputs, count=2)
        x, embedding = inputs
        if embedding.ndim != 2:
            raise ShapeMismatchError(
                f"{ctx.where} (Attend): expects an embedding (numbers, features) as "
                f"its second input, got {describe(embedding)}. Pass the `embedding` of "
                "an Embed."
            )
        require_features(ctx, self.kind, x, embedding.shape[1])
        with named_errors(ctx, self.kind, inputs):
            return jnp.einsum("...d,nd->...n", *together(*inputs)), variables.state


def rows_of(ctx: Context, kind: str, table: Any, numbers: Any) -> jax.Array:
    """The row of the table for each number, nan for one that has none.

    Raises:
        OutOfRangeError: if a number has none and its value is known.
        ShapeMismatchError: if they are not integers.
    """
    count = len(table)
    if not jnp.issubdtype(numbers.dtype, jnp.integer):
        raise ShapeMismatchError(
            f"{ctx.where} ({kind}): expects integers, got {describe(numbers)}. Convert "
            "with x.astype(int)."
        )
    if numbers.dtype.itemsize < 4:  # an int8 cannot be compared with 300
        numbers = numbers.astype("int32")
    numbers = jnp.asarray(numbers)
    outside = (numbers < 0) | (numbers >= count)
    if not isinstance(outside, jax.core.Tracer) and outside.any():
        raise OutOfRangeError(
            f"{ctx.where} ({kind}): expects numbers in [0, {count}), got "
            f"{numbers[outside].tolist()[:5]} among {describe(numbers)}. Enlarge it, "
            "or map unknown ones to a number of their own."
        )
    # linen's lookup takes negative numbers from the end, and one row for them all
    # where there is only one.
    rows = (
        jnp.asarray(table)
        .at[jnp.where(outside, 0, numbers)]
        .get(mode="promise_in_bounds", wrap_negative_indices=False)
    )
    return jnp.where(outside[..., None], jnp.nan, rows)
