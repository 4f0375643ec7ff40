"""A transformer that reads a whole sequence at once."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping as Dict
from typing import Any

import jax
import jax.numpy as jnp

from mapping.core import Mapping, describe
from mapping.errors import FieldError, ShapeMismatchError
from mapping.fields import check_count
from mapping.layers import Dense, Dropout, Embed
from mapping.layers.guard import wide
from mapping.model import Run
from mapping.models.transformer import SMALL, Transformer
from mapping.registry import Example, register, spec

POOLING = ("mean", "first", "none")
"""What a classifier may look at: the mean over real places, the first, or each."""


def _examples() -> tuple[Example, ...]:
    tokens = jnp.array([[1, 0, 2], [2, 1, 1]])
    real = jnp.array([[True, True, False], [True, True, True]])
    small: dict[str, Any] = {"features": 4, "heads": 2, "hidden": 6, "layers": 1}
    bert = TransformerEncoder(3, 2, max_length=4, pre_norm=False, **small)
    frames = TransformerEncoder(
        classes=3, positions="sinusoidal", pooling="none", **small
    )
    return Example(bert, (tokens, real)), Example(frames, (spec(2, 3, 5),))


@register("model", "transformer_encoder", examples=_examples)
@dataclasses.dataclass(frozen=True)
class TransformerEncoder(Transformer):
    r"""Blocks of attention in both directions, over tokens or vectors; a classifier.

    $$ h = \mathrm{blocks}(E_x + P), \qquad y = \mathrm{pool}(h) W + b $$

    Inputs, by position: `x`, tokens (\*batch, length), or vectors (\*batch, length, d)
    if there is no `vocabulary`; `mask`, booleans (\*batch, length), True where x is no
    padding, or None. What stands at padding changes nothing.

    Outputs: logits (\*batch, classes); (\*batch, length, classes) with
    `pooling="none"`; without `classes` the blocks' own (\*batch, length, features).

    Params: `embed`, `positions`, `blocks`, `norm`, `head`. The norm stands behind the
    blocks if these are pre-norm, and behind the embedding (as BERT's) if post-norm.

    Devlin et al., "BERT", 2018, https://arxiv.org/abs/1810.04805; Vaswani et al.,
    2017, https://arxiv.org/abs/1706.03762.

    Attributes:
        vocabulary: how many tokens there are; None for sequences of vectors.
        classes: how many logits; None returns what the blocks do.
        max_length: how long a sequence may be, where positions are learned.
        pooling: `"mean"` over the real places, `"first"` (a class token's), or
            `"none"`: logits at each.

    Its other options are those of [`Transformer`][].

    Raises:
        ShapeMismatchError: if the mask does not fit.

    >>> model = TransformerEncoder(9, 2, features=8, heads=2, layers=1, max_length=6)
    >>> tokens = jnp.array([[1, 4, 5, 0, 0]])
    >>> params = model.init(jax.random.key(0), tokens).params
    >>> y = model(params, tokens, tokens != 0)
    >>> padded = jnp.array([[1, 4, 5, 7, 8]])
    >>> bool((model(params, padded, tokens != 0) == y).all())
    True
    """

    vocabulary: int | None = None
    classes: int | None = None
    max_length: int = 512
    pooling: str = "mean"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("vocabulary", "classes"):
            if getattr(self, name) is not None:
                check_count(getattr(self, name), f"TransformerEncoder.{name}")
        check_count(self.max_length, "TransformerEncoder.max_length")
        if self.pooling not in POOLING:
            raise FieldError(
                f"TransformerEncoder.pooling: expected one of {', '.join(POOLING)}, "
                f"got {self.pooling!r}."
            )

    def parts(self) -> Dict[str, Mapping]:
        """What is looked up, what is added, the blocks, and the head."""
        parts: dict[str, Mapping] = {
            "embed": self._embed(),
            **self.adding(self.max_length),
            "drop": Dropout(self.rate),
            "blocks": self.stack(),
            "norm": self.norm,
        }
        return parts if self.classes is None else parts | {"head": Dense(self.classes)}

    def forward(self, run: Run, x: Any, mask: Any = None) -> Any:
        """Takes tokens or vectors, and where they are real."""
        x = run.embed(x)
        if mask is not None:
            _check_mask(mask, x, run)
        if self.positions != "rotary":
            x = run.positions(x)
        if not self.pre_norm:
            x = run.norm(x)
        seen = None if mask is None else mask[..., None, None, :]
        x = run.blocks(run.drop(x), seen)
        if self.pre_norm:
            x = run.norm(x)
        return x if self.classes is None else run.head(self._pooled(x, mask))

    def _embed(self) -> Mapping:
        if self.vocabulary is None:
            return Dense(self.features)
        return Embed(self.vocabulary, self.features, SMALL)

    def _pooled(self, x: jax.Array, mask: Any) -> jax.Array:
        if self.pooling == "none":
            return x
        if self.pooling == "first":
            return x[..., 0, :]
        if mask is None:
            return x.mean(-2)
        exact, real = wide(x), mask[..., None]
        total = jnp.sum(jnp.where(real, exact, jnp.zeros((), exact.dtype)), -2)
        count = jnp.maximum(real.sum(-2), 1).astype(exact.dtype)
        return (total / count).astype(x.dtype)


def _check_mask(mask: Any, x: jax.Array, run: Run) -> None:
    """Refuses a mask that is not one boolean for each place."""
    if getattr(mask, "shape", None) != x.shape[:-1] or mask.dtype != bool:
        raise ShapeMismatchError(
            f"{run.ctx.where} (TransformerEncoder): expected a mask "
            f"bool{list(x.shape[:-1])}, one for each place, got {describe(mask)}. Make "
            "it with tokens != padding."
        )
