"""A sequence, read from both ends."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from mapping.combinators.join import JOINS, joined
from mapping.core import (
    Context,
    Mapping,
    State,
    Variables,
    fold_name,
    init,
    require_variables,
)
from mapping.errors import FieldError
from mapping.layers.recurrent.cells import SimpleCell
from mapping.layers.recurrent.unroll import Recurrent
from mapping.model import Run
from mapping.nesting import Spec, gather
from mapping.registry import Example, register, spec


@register(
    "layer",
    "bidirectional",
    examples=lambda: (
        Example(
            Bidirectional(Recurrent(SimpleCell(3))), (spec(2, 4, 3), jnp.array([3, 4]))
        ),
    ),
)
@dataclasses.dataclass(frozen=True)
class Bidirectional(Mapping):
    r"""Runs one recurrent layer forwards, another backwards, and joins what they say.

    $$ y_t = \mathrm{join}(\overrightarrow{y}_t, \overleftarrow{y}_t) $$

    Inputs, by position: `x` (\*batch, time, d), `lengths` (\*batch,) or None, and a
    pair of carries (forward, backward) or None, as `Recurrent` takes them. Each
    sequence is read backwards from its own end.

    Outputs, by the `output` of the two layers: `"sequence"` and `"last"` are joined,
    the last of the backward layer being its output at the first step; `"carry"` is
    the pair of carries, `"both"` the joined sequence and that pair.

    Params: `forward/...` and `backward/...`, each layer's own.

    Schuster & Paliwal, "Bidirectional Recurrent Neural Networks", IEEE Transactions
    on Signal Processing 45 (1997).

    Attributes:
        forward: the layer that reads forwards.
        backward: the one that reads backwards (`reverse=True`); by default like
            `forward`, with params of its own.
        join: `"concat"` along the features, `"sum"`, `"mean"`, `"product"`, or
            `"stack"` along a new first axis.

    Raises:
        FieldError: if a layer reads the wrong way, or the two return different things.

    >>> from mapping.layers import LSTMCell
    >>> layer = Bidirectional(Recurrent(LSTMCell(8)))
    >>> x = jnp.ones((2, 5, 3))
    >>> variables = layer.init(jax.random.key(0), x)
    >>> layer(variables.params, x).shape
    (2, 5, 16)
    """

    forward: Recurrent
    backward: Recurrent | None = None
    join: str = "concat"

    def __post_init__(self) -> None:
        for name, wanted in (("forward", False), ("backward", True)):
            layer = getattr(self, name)
            if layer is None and name == "backward":
                continue
            if not isinstance(layer, Recurrent) or layer.reverse != wanted:
                raise FieldError(
                    f"Bidirectional.{name}: expected a Recurrent with "
                    f"reverse={wanted}, got {layer!r}."
                )
        if self.backward and self.backward.output != self.forward.output:
            raise FieldError(
                f"Bidirectional.backward: expected output={self.forward.output!r}, as "
                f"the forward layer has, got {self.backward.output!r}."
            )
        if self.join not in JOINS:
            raise FieldError(
                f"Bidirectional.join: expected one of {', '.join(JOINS)}, got "
                f"{self.join!r}."
            )

    def init(
        self, key: jax.Array, x: Spec, lengths: Spec = None, carry: Spec = None
    ) -> Variables:
        """Initialises both layers."""
        given = zip(self._layers().items(), carry or (None, None), strict=True)
        return gather(
            {
                name: init(name, layer, fold_name(key, name), x, lengths, own)
                for (name, layer), own in given
            }
        )

    def apply(
        self,
        variables: Variables,
        x: Any,
        lengths: Any = None,
        carry: Any = None,
        *,
        ctx: Context,
    ) -> tuple[Any, State]:
        """Reads both ways."""
        require_variables(variables, ctx)
        run = Run(dict(self._layers()), variables, ctx)
        starts = zip(self._layers(), carry or (None, None), strict=True)
        said = [run(name, x, lengths, start) for name, start in starts]
        output, names = self.forward.output, tuple(self._layers())
        if output == "carry":
            return tuple(said), run.state
        if output != "both":
            return joined(self.join, said, names, ctx), run.state
        sequences, carries = zip(*said, strict=True)
        return (joined(self.join, sequences, names, ctx), carries), run.state

    def _layers(self) -> dict[str, Mapping]:
        mirrored = dataclasses.replace(self.forward, reverse=True)
        return {"forward": self.forward, "backward": self.backward or mirrored}
