"""A classifier that reads a sequence step by step."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping as Dict
from typing import Any

import jax
import jax.numpy as jnp

from mapping.core import Mapping
from mapping.errors import FieldError
from mapping.fields import check_count
from mapping.layers import (
    Bidirectional,
    Dense,
    Dropout,
    Embed,
    GRUCell,
    LSTMCell,
    Recurrent,
    SimpleCell,
)
from mapping.model import Model, Run
from mapping.paths import nearest
from mapping.registry import Example, register, spec

CELLS = {"lstm": LSTMCell, "gru": GRUCell, "simple": SimpleCell}
"""The cells known by name."""


def _examples() -> tuple[Example, ...]:
    tokens, lengths = jnp.array([[1, 0, 2], [2, 2, 0]]), jnp.array([3, 2])
    both = RecurrentClassifier(3, 3, cell="gru", vocabulary=3, bidirectional=True)
    return (
        Example(RecurrentClassifier(2, 3, rate=0.5), (spec(2, 3, 4),)),
        Example(both, (tokens, lengths)),
    )


@register("model", "recurrent_classifier", examples=_examples)
@dataclasses.dataclass(frozen=True)
class RecurrentClassifier(Model):
    r"""Layers of a recurrent cell; the last output says which class.

    $$ h^{(0)} = x, \qquad h^{(l)} = \mathrm{cell}^{(l)}(h^{(l-1)}), \qquad
       y = h^{(depth)}_{end} W + b $$

    Inputs, by position: `x`, vectors (\*batch, length, d), or with a `vocabulary`
    tokens (\*batch, length); `lengths`, integers (\*batch,), how many of each sequence
    are real, or None. What stands beyond a sequence's length changes nothing.

    Outputs: logits (\*batch, classes). Bidirectional layers join both directions: the
    forward one's output at the end and the backward one's at the start.

    Params: `embed/embedding` with a vocabulary, `layer_0`, `layer_1`, ... with `cell`
    (or `forward/cell` and `backward/cell`), `head`.

    Hochreiter & Schmidhuber, "Long Short-Term Memory", 1997; Cho et al., 2014,
    https://arxiv.org/abs/1406.1078; Graves & Schmidhuber, "Framewise phoneme
    classification with bidirectional LSTM", 2005.

    Attributes:
        classes: how many logits.
        features: of a cell that is named, and of the embedding.
        cell: `"lstm"`, `"gru"`, `"simple"`, or a cell as `Recurrent` takes it, which
            has features of its own.
        depth: how many layers, each with a cell of its own.
        bidirectional: whether each layer reads from both ends.
        vocabulary: how many tokens there are; None for sequences of vectors.
        rate: fraction dropped before each layer but the first, and before the head,
            in training, in [0, 1).

    Raises:
        FieldError: if the cell is none.

    >>> model = RecurrentClassifier(2, 8, cell="gru", vocabulary=10)
    >>> tokens, lengths = jnp.array([[3, 1, 4, 0], [1, 5, 9, 2]]), jnp.array([3, 4])
    >>> params = model.init(jax.random.key(0), tokens, lengths).params
    >>> sorted(params), model(params, tokens, lengths).shape
    (['embed', 'head', 'layer_0'], (2, 2))
    """

    classes: int
    features: int = 64
    cell: str | Mapping = "lstm"
    depth: int = 1
    bidirectional: bool = False
    vocabulary: int | None = None
    rate: float = 0.0

    def __post_init__(self) -> None:
        for name in ("classes", "features", "depth"):
            check_count(getattr(self, name), f"RecurrentClassifier.{name}")
        if isinstance(self.cell, str) and self.cell not in CELLS:
            raise FieldError(
                f"RecurrentClassifier.cell: expected a cell, or one of "
                f"{', '.join(CELLS)}, got {self.cell!r}. Nearest: "
                f"{nearest(self.cell, CELLS)}."
            )
        self.parts()  # refuses what its layers refuse

    def parts(self) -> Dict[str, Mapping]:
        """The embedding, the layers, the head, and dropout between them."""
        parts: dict[str, Mapping] = {"head": Dense(self.classes)}
        if self.vocabulary is not None:
            parts["embed"] = Embed(self.vocabulary, self.features)
        for i in range(self.depth):
            parts[f"layer_{i}"] = self._layer(
                "sequence" if i + 1 < self.depth else "last"
            )
            parts[f"drop_{i}"] = Dropout(self.rate)
        return parts

    def forward(self, run: Run, x: Any, lengths: Any = None) -> jax.Array:
        """Takes sequences, and how long they are."""
        if self.vocabulary is not None:
            x = run.embed(x)
        for i in range(self.depth):
            x = run(f"drop_{i}", run(f"layer_{i}", x, lengths))
        return run.head(x)

    def _layer(self, output: str) -> Mapping:
        cell = self.cell
        layer = Recurrent(
            CELLS[cell](self.features) if isinstance(cell, str) else cell, output
        )
        return Bidirectional(layer) if self.bidirectional else layer
