"""A transformer that reads from left to right, to say what comes next."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping as Dict
from typing import Any, Self

import jax
import jax.numpy as jnp

from mapping.core import Mapping, Variables, describe
from mapping.errors import FieldError, ShapeMismatchError
from mapping.fields import check_count
from mapping.layers import Attend, Dense, Dropout, Embed, RMSNorm
from mapping.model import Run
from mapping.models.transformer import SMALL, Places, Transformer
from mapping.paths import nearest
from mapping.registry import Example, register
from mapping.tree import select

GPT2 = {
    "small": {"features": 768, "heads": 12, "layers": 12},
    "medium": {"features": 1024, "heads": 16, "layers": 24},
    "large": {"features": 1280, "heads": 20, "layers": 36},
    "xl": {"features": 1600, "heads": 25, "layers": 48},
}
"""The published sizes."""


def _examples() -> tuple[Example, ...]:
    tokens = jnp.array([[1, 0, 2], [2, 1, 1]])
    small: dict[str, Any] = {"features": 4, "heads": 2, "layers": 1, "hidden": 6}
    llama = GPT(
        3, 4, tied=False, kv_heads=1, positions="rotary", norm=RMSNorm(),
        activation="silu", gated=True, use_bias=False, scan=True, **small,
    )  # fmt: skip
    again = GPT(3, 4, cache_length=4, **small)
    return (
        Example(llama, (tokens, jnp.array([0, 1]))),
        Example(again, (tokens, jnp.array([0, 2])), batched=False, caches=True),
    )


@register("model", "gpt", examples=_examples)
@dataclasses.dataclass(frozen=True)
class GPT(Transformer):
    r"""A decoder: at each place, logits of the token that follows.

    $$ h = \mathrm{norm}(\mathrm{blocks}(E_x + P)), \qquad y = h E^\top $$

    with causal attention. Inputs, by position:

    - `tokens`, integers (\*batch, length);
    - `padding`, integers (\*batch,), how many places at the left of each sequence are
      none of it, or None;
    - with `cross`, `memory` (\*batch, places, its features), an encoder's output, and
      `memory_mask`, booleans (\*batch, places), True where it is real, or None.

    Outputs: logits (\*batch, length, vocabulary), of use behind the padding only.

    By default it is GPT-2. `positions="rotary"`, `norm=RMSNorm()`,
    `activation="silu"`, `gated=True`, `use_bias=False`, `tied=False` and `kv_heads`
    make it a Llama.

    Params: `tokens/embedding` (vocabulary, features), `positions/embedding`
    (max_length, features), `blocks`, `norm`; untied `head/kernel`. At the start, what
    adds to the sum of blocks is scaled by 1 / sqrt(2 layers).

    With a `cache_length` it decodes, one token or many at a time: state and use are
    those of `Attention`, and `mapping.models.generate` does it.

    Radford et al., "Language models are unsupervised multitask learners", 2019;
    Touvron et al., "Llama 2", 2023, https://arxiv.org/abs/2307.09288.

    Attributes:
        vocabulary: how many tokens there are.
        max_length: how long a sequence may be, its context.
        tied: whether tokens are scored by their embeddings.
        cross: whether each block attends to a memory too, as `Seq2Seq`'s decoder does.
        cache_length: places in the cache of a decoder, at most `max_length`.

    Its other options are those of [`Transformer`][]; `norm` stands behind the blocks.

    Raises:
        OutOfRangeError: if a sequence is too long, or a token unknown.
        ShapeMismatchError: if the padding does not fit.

    >>> model = GPT(65, 16, features=8, heads=2, layers=1)
    >>> tokens = jnp.array([[3, 1, 4, 1, 5]])
    >>> params = model.init(jax.random.key(0), tokens).params
    >>> model(params, tokens).shape
    (1, 5, 65)
    """

    vocabulary: int
    max_length: int
    tied: bool = True
    cross: bool = False
    cache_length: int | None = None

    @classmethod
    def gpt2(cls, size: str = "small", **changes: Any) -> Self:
        """GPT-2: `"small"` (124,439,808 params), `"medium"`, `"large"` or `"xl"`.

        Args:
            size: one of the four.
            **changes: fields that are to be otherwise.

        >>> GPT.gpt2("xl", scan=True).layers
        48
        """
        if size not in GPT2:
            raise FieldError(
                f"GPT.gpt2: expected one of {', '.join(GPT2)}, got {size!r}. Nearest: "
                f"{nearest(str(size), GPT2)}."
            )
        own: dict[str, Any] = {"vocabulary": 50257, "max_length": 1024, "rate": 0.1}
        own |= {"kernel_init": SMALL, **GPT2[size]}
        return cls(**{**own, **changes})

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("vocabulary", "max_length"):
            check_count(getattr(self, name), f"GPT.{name}")
        if (self.cache_length or 0) > self.max_length:
            raise FieldError(
                f"GPT.cache_length: expected at most max_length = {self.max_length}, "
                f"got {self.cache_length}."
            )

    def parts(self) -> Dict[str, Mapping]:
        """Tokens, places, blocks, a norm, and the head."""
        scores = Dense(self.vocabulary, use_bias=False, kernel_init=self.kernel_init)
        return {
            "tokens": Embed(self.vocabulary, self.features, SMALL),
            "places": Places(self.max_length, cached=self.cache_length is not None),
            **self.adding(self.max_length),
            "drop": Dropout(self.rate),
            "blocks": self.stack(
                causal=True, cross=self.cross, cache=self.cache_length
            ),
            "norm": self.norm,
            "head": Attend() if self.tied else scores,
        }

    def init(self, key: jax.Array, *specs: Any) -> Variables:
        """Initialises the parts; what adds to the sum of blocks starts small."""
        variables = super().init(key, *specs)
        scale = 1 / math.sqrt(2 * self.layers)
        last = select(variables.params).at("blocks/*out/kernel", "blocks/*down/kernel")
        return dataclasses.replace(variables, params=last.apply(lambda x: x * scale))

    def forward(
        self,
        run: Run,
        tokens: Any,
        padding: Any = None,
        memory: Any = None,
        memory_mask: Any = None,
    ) -> jax.Array:
        """Takes tokens, how many at the left are none, and a memory."""
        x, places, mask = run.tokens(tokens), run.places(tokens), None
        if padding is not None:
            places, mask = self._behind(padding, tokens, places, run)
        if self.positions != "rotary":  # which depends on differences of places alone
            fresh = padding is None and self.cache_length is None
            x = run.positions(x) if fresh else run.positions(x, places)
        seen = None if memory_mask is None else memory_mask[..., None, None, :]
        x = run.norm(run.blocks(run.drop(x), mask, memory, seen))
        if self.tied:
            return run.head(x, run.params["tokens"]["embedding"])
        return run.head(x)

    def _behind(
        self, padding: Any, tokens: Any, places: jax.Array, run: Run
    ) -> tuple[jax.Array, jax.Array]:
        """Places counted from behind the padding, and a mask that hides it."""
        whole = hasattr(padding, "dtype") and jnp.issubdtype(padding.dtype, jnp.integer)
        if not whole or padding.shape != tokens.shape[:-1]:
            raise ShapeMismatchError(
                f"{run.ctx.where} (GPT): expected padding int{list(tokens.shape[:-1])},"
                f" one number for each sequence, got {describe(padding)}. Count the "
                "places at the left that are none of it."
            )
        cached = None if run.train else self.cache_length
        batch, count = tokens.shape[:-1], cached or tokens.shape[-1]
        keys = jax.lax.broadcasted_iota(jnp.int32, (*batch, count), len(batch))
        skipped = padding.astype(jnp.int32)[..., None]
        # Padding itself has no place; any will do.
        places = jnp.maximum(jnp.broadcast_to(places, tokens.shape) - skipped, 0)
        return places, (keys >= skipped)[..., None, None, :]
