"""What all transformers share: their options, their stack of blocks, their places."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from mapping.built import Built
from mapping.combinators import Repeat
from mapping.context import require_variables
from mapping.core import Context, Mapping, State, Variables, describe
from mapping.errors import FieldError, OutOfRangeError, ShapeMismatchError
from mapping.fields import check_count
from mapping.layers import Attention, PositionEmbedding, Rotary, SinusoidalPosition
from mapping.layers.cache import CACHE
from mapping.model import Model
from mapping.models.feed_forward import FeedForward
from mapping.models.transformer_block import LAYER_NORM, Stack, TransformerBlock
from mapping.registry import Example, register

SMALL = Built.of(jax.nn.initializers.normal, 0.02)
"""Where learned vectors of tokens and places start (GPT's, BERT's and ViT's)."""

POSITIONS = ("learned", "sinusoidal", "rotary")
"""How a transformer may know the places of what it is given."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Transformer(Model):
    """The options that every transformer here has, given by keyword.

    Attributes:
        features: of each place, d.
        heads: of each attention; a divisor of `features`.
        layers: how many blocks.
        kv_heads: number of key and value heads, a divisor of `heads`; as many by
            default, fewer for grouped-query attention.
        hidden: features inside the feed-forward part; 4 d by default.
        activation: of the feed-forward part, a name that `Activation` knows.
        gated: whether it is gated (`activation="silu"` makes SwiGLU).
        norm: a mapping that normalises, such as `RMSNorm()`.
        pre_norm: whether norms stand before each part, or after its sum.
        use_bias: whether attention and feed-forward parts have biases.
        rate: fraction dropped in training: of attention weights, of hidden units, and
            of what is added in each block, in [0, 1).
        positions: `"learned"`, `"sinusoidal"` or `"rotary"`.
        kernel_init: initialiser of the blocks' kernels; LeCun normal by default.
        scan: whether the blocks are one loop over stacked variables (`Repeat`): a
            short program for a deep model.
        remat: whether, or by which policy, that loop computes activations again for
            gradients; see `Repeat`.

    Raises:
        FieldError: if options do not fit together.

    >>> from mapping.models import GPT
    >>> GPT(9, 6, features=8, heads=3, layers=1)
    Traceback (most recent call last):
    ...
    mapping.errors.FieldError: GPT.heads: expected a divisor of features = 8, got 3.
    """

    features: int
    heads: int
    layers: int
    kv_heads: int | None = None
    hidden: int | None = None
    activation: str = "gelu"
    gated: bool = False
    norm: Mapping = LAYER_NORM
    pre_norm: bool = True
    use_bias: bool = True
    rate: float = 0.0
    positions: str = "learned"
    kernel_init: Callable[..., Any] | None = None
    scan: bool = False
    remat: bool | str = False

    def __post_init__(self) -> None:
        for name in ("features", "heads", "layers"):
            check_count(getattr(self, name), f"{self.kind}.{name}")
        if self.features % self.heads:
            raise FieldError(
                f"{self.kind}.heads: expected a divisor of features = {self.features}, "
                f"got {self.heads}."
            )
        if self.positions not in POSITIONS:
            raise FieldError(
                f"{self.kind}.positions: expected one of {', '.join(POSITIONS)}, got "
                f"{self.positions!r}."
            )
        if self.remat and not self.scan:
            raise FieldError(
                f"{self.kind}.remat: expected scan=True beside it, got False. What is "
                "computed again are the turns of a loop."
            )
        self.stack()  # refuses what its layers refuse

    def stack(
        self, *, causal: bool = False, cross: bool = False, cache: int | None = None
    ) -> Mapping:
        """The blocks, one after the other."""
        options: dict[str, Any] = {
            "heads": self.heads,
            "kv_heads": self.kv_heads,
            "use_bias": self.use_bias,
            "rate": self.rate,
            "kernel_init": self.kernel_init,
        }
        turned = Rotary() if self.positions == "rotary" else None
        own = Attention(causal=causal, cache_length=cache, rotary=turned, **options)
        block = TransformerBlock(
            own,
            FeedForward(
                self.features,
                hidden=self.hidden,
                activation=self.activation,
                gated=self.gated,
                use_bias=self.use_bias,
                rate=self.rate,
                kernel_init=self.kernel_init,
            ),
            cross=Attention(**options) if cross else None,
            norm=self.norm,
            pre_norm=self.pre_norm,
            rate=self.rate,
        )
        if self.scan:
            return Repeat(block, self.layers, remat=self.remat)
        return Stack(block, self.layers)

    def adding(self, max_length: int) -> dict[str, Mapping]:
        """The part that adds places to vectors; none if attention turns by them."""
        if self.positions == "learned":
            return {"positions": PositionEmbedding(max_length, SMALL)}
        return {"positions": SinusoidalPosition()} if self.positions != "rotary" else {}


def _places() -> tuple[Example, ...]:
    tokens = jnp.array([[1, 0, 2]])
    again = Example(Places(4, cached=True), (tokens,), batched=False, caches=True)
    return Example(Places(3), (tokens,), batched=False), again


@register("model", "places", examples=_places)
@dataclasses.dataclass(frozen=True)
class Places(Mapping):
    """Numbers the tokens of a sequence; in decoding it goes on from those before.

    Inputs: tokens (..., length). Outputs: int32 (length,).

    State, if cached: `cache/index`, how many tokens there were so far. It moves in
    inference, and `empty_cache` resets it with the caches of attention.

    Attributes:
        max_length: how many there may be.
        cached: whether calls in inference go on from one another.

    Raises:
        OutOfRangeError: if there are more tokens in a call.

    >>> tokens = jnp.zeros((2, 3), jnp.int32)
    >>> Places(4)({}, tokens).tolist()
    [0, 1, 2]
    """

    max_length: int
    cached: bool = False

    def __post_init__(self) -> None:
        check_count(self.max_length, "Places.max_length")

    def init(self, key: jax.Array, *specs: Any) -> Variables:
        """Starts at the first place."""
        zero = {CACHE: {"index": jnp.zeros((), jnp.int32)}}
        return Variables({}, zero if self.cached else {})

    def apply(
        self, variables: Variables, tokens: Any, *, ctx: Context
    ) -> tuple[jax.Array, State]:
        """Counts."""
        require_variables(variables, ctx)
        if tokens.ndim < 1 or tokens.shape[-1] > self.max_length:
            expected = ShapeMismatchError if tokens.ndim < 1 else OutOfRangeError
            raise expected(
                f"{ctx.where} (Places): expected [*batch, length] with a length of at "
                f"most {self.max_length}, got {describe(tokens)}. Shorten the "
                "sequence, or enlarge max_length."
            )
        places = jnp.arange(tokens.shape[-1], dtype=jnp.int32)
        if not self.cached or ctx.train:
            return places, variables.state
        start = variables.state[CACHE]["index"]
        moved = {CACHE: {"index": start + jnp.int32(len(places))}}
        return start + places, moved
