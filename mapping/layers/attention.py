"""Attention: what each place takes from the others."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from mapping.context import initialising
from mapping.core import (
    Context,
    Mapping,
    State,
    Variables,
    fold_name,
    init,
    output_spec,
    require_key,
    require_variables,
)
from mapping.errors import FieldError
from mapping.fields import check_count
from mapping.layers.cache import CACHE, cache_index, new_cache, overflow, write_cache
from mapping.layers.dropout import Dropout
from mapping.layers.linear import Dense
from mapping.layers.rotary import Rotary
from mapping.layers.scores import Weights, check_inputs, check_mask, mix, visible
from mapping.model import Run
from mapping.nesting import Spec, as_spec, gather
from mapping.registry import Example, register, spec


@register(
    "layer",
    "attention",
    examples=lambda: (
        Example(
            Attention(4, kv_heads=2, causal=True, window=2, rotary=Rotary()),
            (spec(2, 3, 8),),
        ),
        Example(
            Attention(2, head_features=3, features=5, use_bias=False, rate=0.3),
            (spec(2, 3, 4), spec(2, 5, 6), spec(2, 1, 3, 5, dtype="bool")),
        ),
        Example(
            Attention(2, kv_heads=1, causal=True, rotary=Rotary(), cache_length=4),
            (spec(2, 3, 4),),
            batched=False,  # a cache is made for one batch
            caches=True,
        ),
    ),
)
@dataclasses.dataclass(frozen=True)
class Attention(Mapping):
    r"""Multi-head attention: each place takes a weighted mean of the others' values.

    $$ y = \mathrm{concat}_h(A_h V_{g(h)}) W_o + b_o, \qquad
       A_h = \mathrm{softmax}_j\left(\frac{Q_h K_{g(h)}^\top}{\sqrt{d}}\right) $$

    with $Q = x W_q + b_q$, $K = c W_k + b_k$, $V = c W_v + b_v$, each cut into heads
    of d features, and g(h) the group of heads that share a key head. The softmax is
    taken in float32 at least. Where a mask hides every key from a query, its weights
    are all zero and its output is $b_o$: never nan, never a look at what is hidden.

    Inputs, by position:

    - `x` (\*batch, queries, features);
    - `context` (\*batch, keys, features of its own) for cross-attention, None for
      self-attention, where c is x;
    - `mask`, booleans (\*batch, heads, queries, keys), each extent may be 1: True
      where a query may look at a key. Padding is `tokens[:, None, None, :] != pad`.

    Outputs: (\*batch, queries, `features`).

    Params: `query/kernel` (features of x, heads d), `key/kernel` and `value/kernel`
    (features of c, kv_heads d), `out/kernel` (heads d, features), and as many `bias`.
    Head h owns the columns h d to (h + 1) d, so the kernels of linen's
    `MultiHeadDotProductAttention` and of torch fit by a reshape or a transpose.
    `weights` (\*batch, heads, queries, keys) can be captured.

    With a `cache_length`, the layer decodes: inference takes the tokens that follow
    those it was given before, one or many at a time, and the outputs are those of one
    causal pass over all. State: `cache/key` and `cache/value` (\*batch, kv_heads,
    cache_length, d), and `cache/index`, the number of tokens so far. The params are
    those of the layer without a cache; [`empty_cache`][] makes the state. The keys
    that a mask speaks of are then the slots of the cache. More tokens than fit are an
    error where the index can be read, and make every output nan where it is traced.
    In training the cache rests: a pass is over a whole sequence.

    Vaswani et al., "Attention Is All You Need", 2017,
    https://arxiv.org/abs/1706.03762; grouped: Ainslie et al., "GQA", 2023,
    https://arxiv.org/abs/2305.13245.

    Attributes:
        heads: number of query heads.
        head_features: d, the features of a head; those of x / heads by default.
        kv_heads: number of key and value heads, a divisor of `heads`; as many by
            default, fewer for grouped-query, 1 for multi-query attention.
        features: of the output; those of x by default.
        causal: whether a query sees no later key than its own place.
        window: how far a query sees: places less than `window` away; None is all.
        rotary: how queries and keys are turned by their places, if they are.
        rate: fraction of the weights dropped in training, in [0, 1).
        use_bias: whether the biases are there.
        cache_length: places in the cache of a decoder; needs `causal`.
        kernel_init: initialiser of the four kernels; LeCun normal by default.

    Raises:
        FieldError: if the fields do not fit together.
        ShapeMismatchError: if inputs, mask or cache do not fit.

    >>> attention = Attention(heads=4, kv_heads=2, causal=True)
    >>> x = jnp.ones((2, 5, 16))
    >>> variables = attention.init(jax.random.key(0), x)
    >>> variables.params["key"]["kernel"].shape
    (16, 8)
    >>> attention(variables.params, x).shape
    (2, 5, 16)
    """

    heads: int
    head_features: int | None = None
    kv_heads: int | None = None
    features: int | None = None
    causal: bool = False
    window: int | None = None
    rotary: Rotary | None = None
    rate: float = 0.0
    use_bias: bool = True
    cache_length: int | None = None
    kernel_init: Callable[..., Any] | None = None

    def __post_init__(self) -> None:
        check_count(self.heads, "Attention.heads")
        for name in ("head_features", "kv_heads", "features", "window", "cache_length"):
            if getattr(self, name) is not None:
                check_count(getattr(self, name), f"Attention.{name}")
        if self.heads % (self.kv_heads or self.heads):
            raise FieldError(
                f"Attention.kv_heads: expected a divisor of heads = {self.heads}, got "
                f"{self.kv_heads}. Each key head serves as many query heads."
            )
        if self.cache_length and not self.causal:
            raise FieldError(
                "Attention.cache_length: expected causal=True, got False. What was "
                "computed before may not depend on what follows."
            )
        Dropout(self.rate)  # refuses what is no fraction

    def init(
        self, key: jax.Array, x: Spec, context: Spec = None, mask: Spec = None
    ) -> Variables:
        """Initialises the four projections, and an empty cache if there is one."""
        require_key(key)
        x, context = as_spec((x, context))
        check_inputs(self, x, context, initialising())
        parts, source = self._parts(x), x if context is None else context
        joined = (*x.shape[:-1], self.heads * self._width(x))
        given = {"query": x, "key": source, "value": source}
        given["out"] = jax.ShapeDtypeStruct(joined, x.dtype)
        own = {n: init(n, parts[n], fold_name(key, n), s) for n, s in given.items()}
        variables = gather(own)
        if self.cache_length is None:
            return variables
        kv_heads = self.kv_heads or self.heads
        shape = (*x.shape[:-2], kv_heads, self.cache_length, self._width(x))
        keys = output_spec(parts["key"], own["key"], source)
        cache = {CACHE: new_cache(shape, keys.dtype)}
        return dataclasses.replace(variables, state=cache)

    def apply(
        self,
        variables: Variables,
        x: Any,
        context: Any = None,
        mask: Any = None,
        *,
        ctx: Context,
    ) -> tuple[jax.Array, State]:
        """Attends; with a cache, in inference, to the tokens before as well."""
        require_variables(variables, ctx)
        check_inputs(self, x, context, ctx)
        run = Run(self._parts(x), variables, ctx)
        cache = variables.state.get(CACHE, {})
        decoding = self.cache_length is not None and not ctx.train
        start = cache_index(cache, ctx) if decoding else 0
        source, width = x if context is None else context, self._width(x)
        query = self._turned(_cut(run("query", x), width), start)
        key = self._turned(_cut(run("key", source), width), start)
        value = _cut(run("value", source), width)
        query, key, value = (jnp.swapaxes(a, -3, -2) for a in (query, key, value))
        if decoding:
            run.state[CACHE] = cache = write_cache(cache, key, value, ctx)
            key, value = cache["key"], cache["value"]
        key, value = key.astype(query.dtype), value.astype(query.dtype)
        seen = visible(query, key, start, self.causal, self.window)
        if mask is not None:
            check_mask(mask, (*query.shape[:-1], key.shape[-2]), ctx)
        weights = run("weights", query, key, seen, mask)
        y = run("out", mix(weights, value))
        if decoding:
            y = jnp.where(overflow(cache), jnp.asarray(jnp.nan, y.dtype), y)
        return y, run.state

    def _parts(self, x: Spec) -> dict[str, Mapping]:
        width, kv_heads = self._width(x), self.kv_heads or self.heads

        def dense(features: int) -> Dense:
            return Dense(features, self.use_bias, kernel_init=self.kernel_init)

        return {
            "query": dense(self.heads * width),
            "key": dense(kv_heads * width),
            "value": dense(kv_heads * width),
            "weights": Weights(self.rate),
            "out": dense(self.features or x.shape[-1]),
        }

    def _width(self, x: Spec) -> int:
        return self.head_features or x.shape[-1] // self.heads

    def _turned(self, x: jax.Array, start: Any) -> jax.Array:
        if self.rotary is None:
            return x
        positions = start + jnp.arange(x.shape[-3], dtype=jnp.int32)
        return self.rotary.apply(Variables(), x, positions, ctx=Context())[0]


def _cut(x: jax.Array, width: int) -> jax.Array:
    """Cuts the last axis into heads."""
    return x.reshape(*x.shape[:-1], -1, width)
