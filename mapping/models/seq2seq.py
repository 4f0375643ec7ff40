"""One sequence to another: an encoder, and a decoder that looks at what it says."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping as Dict
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mapping.core import Context, Mapping, Params, State, Variables, describe
from mapping.errors import GenerationError
from mapping.layers import RMSNorm, empty_cache
from mapping.model import Run
from mapping.models.encoder import TransformerEncoder
from mapping.models.generate import chooser, continued
from mapping.models.gpt import GPT
from mapping.models.prompts import arranged, check_known, check_length
from mapping.models.sampling import check_sampling
from mapping.models.transformer import Transformer
from mapping.registry import Example, register


def _examples() -> Example:
    tokens, real = jnp.array([[1, 0, 2, 2]]), jnp.array([[True, True, True, False]])
    small = Seq2Seq(
        3, 3, 4, features=4, heads=2, layers=1, hidden=6, norm=RMSNorm(),
        activation="tanh",
    )  # fmt: skip
    return Example(small, (tokens, jnp.array([[1, 2, 0]]), real))


@register("model", "seq2seq", examples=_examples)
@dataclasses.dataclass(frozen=True)
class Seq2Seq(Transformer):
    r"""The transformer: what a sequence says, said in another.

    $$ p(y \mid x) = \prod_t \mathrm{softmax}\bigl(
       \mathrm{decoder}(y_{<t}, \mathrm{encoder}(x))\bigr)_{y_t} $$

    Inputs, by position: `source`, tokens (\*batch, length); `target`, the tokens so
    far (\*batch, its length), which begin with one that says so; `mask`, booleans
    of the source's shape, True where it is no padding, or None. Outputs: logits
    (\*batch, its length, target_vocabulary) of the token that follows each.

    To train, give `target[:, :-1]` and compare with `target[:, 1:]`; to use, see
    [`translate`][].

    Params: `encoder/...` and `decoder/...`, those of `model.encoder` and
    `model.decoder`, which can be used alone.

    Vaswani et al., "Attention Is All You Need", 2017,
    https://arxiv.org/abs/1706.03762.

    Attributes:
        source_vocabulary: how many tokens the source knows.
        target_vocabulary: how many the target knows.
        max_length: how long either may be.

    Its other options are those of [`Transformer`][], the same on both sides.

    >>> model = Seq2Seq(9, 7, 6, features=8, heads=2, layers=1)
    >>> source, target = jnp.array([[3, 1, 4]]), jnp.array([[0, 5]])
    >>> params = model.init(jax.random.key(0), source, target).params
    >>> model(params, source, target).shape
    (1, 2, 7)
    """

    source_vocabulary: int
    target_vocabulary: int
    max_length: int

    def __post_init__(self) -> None:
        super().__post_init__()
        self.parts()  # refuses what they refuse

    @property
    def encoder(self) -> TransformerEncoder:
        """What reads the source."""
        count, length = self.source_vocabulary, self.max_length
        return TransformerEncoder(count, max_length=length, **self._options())

    @property
    def decoder(self) -> GPT:
        """What writes the target."""
        count, length = self.target_vocabulary, self.max_length
        return GPT(count, length, cross=True, **self._options())

    def parts(self) -> Dict[str, Mapping]:
        """The two."""
        return {"encoder": self.encoder, "decoder": self.decoder}

    def forward(self, run: Run, source: Any, target: Any, mask: Any = None) -> Any:
        """Takes both sequences, and where the source is real."""
        return run.decoder(target, None, run.encoder(source, mask), mask)

    def _options(self) -> dict[str, Any]:
        names = (field.name for field in dataclasses.fields(Transformer))
        return {name: getattr(self, name) for name in names}


def translate(
    model: Seq2Seq,
    params: Params,
    source: jax.Array,
    length: int,
    *,
    start: int,
    stop: int | None = None,
    mask: jax.Array | None = None,
    key: jax.Array | None = None,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
) -> jax.Array:
    """Writes what a trained model makes of a source, token by token.

    The source is read once; the decoder's attention to itself keeps a cache. One
    program is compiled for each shape of the source and each length.

    Args:
        model: the model.
        params: its params.
        source: tokens (batch, length).
        length: how many tokens to write.
        start: the token that targets begin with; it is not among the result's.
        stop: the token that they end with; it is repeated from there.
        mask: where the source is no padding; all by default.
        key: of all draws; None takes the most likely token each time.
        temperature: see `truncate_logits`, as the next two.
        top_k: how many tokens may be drawn.
        top_p: their probability.

    Returns:
        int32 (batch, length).

    Raises:
        GenerationError: if the text is longer than the model's, the source holds
            unknown tokens or the mask does not fit it, or a number is out of its range.
        MissingKeyError: if there is something to draw and no key.

    >>> model = Seq2Seq(9, 7, 6, features=8, heads=2, layers=1)
    >>> source = jnp.array([[3, 1, 4], [1, 5, 9]]) % 9
    >>> params = model.init(jax.random.key(0), source, source[:, :1]).params
    >>> translate(model, params, source, 4, start=0).shape
    (2, 4)
    """
    sampling = (key, temperature, top_k, top_p)
    check_sampling(*sampling)
    check_length(model, 1, length)
    source, _, alone = arranged(source)
    if alone or (mask is not None and np.shape(mask) != source.shape):
        raise GenerationError(
            f"source: expected tokens (batch, length), and a mask of that shape, got "
            f"{describe((source[0] if alone else source, mask))}. Add the axis."
        )
    check_known(source, model.source_vocabulary, "source")
    check_known(start, model.target_vocabulary, "start")
    return _translate(model, length, params, source, mask, sampling, start, stop)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _translate(
    model: Seq2Seq,
    length: int,
    params: Params,
    source: jax.Array,
    mask: jax.Array | None,
    sampling: tuple[Any, ...],
    start: Any,
    stop: Any,
) -> jax.Array:
    memory = model.encoder(params["encoder"], source, mask)
    decoder = dataclasses.replace(model.decoder, cache_length=length)

    def step(state: State, new: jax.Array) -> tuple[jax.Array, State]:
        own = Variables(params["decoder"], state)
        return decoder.apply(own, new, None, memory, mask, ctx=Context())

    prompt = jnp.full((source.shape[0], 1), start, jnp.int32)
    state = empty_cache(decoder, prompt, None, memory, mask)
    return continued(step, state, prompt, length, chooser(*sampling), stop)
