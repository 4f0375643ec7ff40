"""What transformers are made of: a block, and a stack of blocks."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping as Dict
from typing import Any

import jax

from mapping.combinators.join import joined
from mapping.core import Mapping, describe
from mapping.errors import FieldError, ShapeMismatchError
from mapping.fields import check_count
from mapping.layers import Attention, Dense, Dropout, LayerNorm
from mapping.model import Model, Run
from mapping.models.feed_forward import FeedForward
from mapping.registry import Example, register, spec

LAYER_NORM = LayerNorm()


def _blocks() -> tuple[Example, ...]:
    part = FeedForward(4, hidden=6)
    both = TransformerBlock(Attention(2), part, cross=Attention(2), pre_norm=False)
    return (
        Example(TransformerBlock(Attention(2, causal=True), part), (spec(2, 3, 4),)),
        Example(both, (spec(3, 4), spec(1, 1, 3, dtype="bool"), spec(2, 5))),
    )


@register("model", "transformer_block", examples=_blocks)
@dataclasses.dataclass(frozen=True)
class TransformerBlock(Model):
    r"""Attention, then a feed-forward part, each with a way round it.

    $$ x \leftarrow x + f(\mathrm{norm}(x)) \quad\text{(pre-norm)}, \qquad
       x \leftarrow \mathrm{norm}(x + f(x)) \quad\text{(post-norm)} $$

    for f the self-attention, the cross-attention if there is one, and the
    feed-forward part, in this order.

    Inputs, by position: `x` (\*batch, places, features); `mask`, as `Attention` takes
    it, or None; with cross-attention `context` (\*batch, keys, its features) and
    `context_mask` or None.

    Params: `attention`, `cross`, `mlp`, each with its own `..._norm` beside it.

    Vaswani et al., 2017, https://arxiv.org/abs/1706.03762; pre-norm: Xiong et al.,
    2020, https://arxiv.org/abs/2002.04745.

    Attributes:
        attention: the self-attention, with all its options.
        mlp: the feed-forward part, a mapping that keeps the features.
        cross: the cross-attention, if any.
        norm: a mapping that normalises; every use has params of its own.
        pre_norm: whether f sees normalised inputs and the sum is left alone.
        rate: fraction of what each f adds that is dropped in training, in [0, 1).

    Raises:
        ShapeMismatchError: if there is cross-attention and no context, or the reverse.

    >>> block = TransformerBlock(Attention(2, causal=True), FeedForward(8))
    >>> x = jax.numpy.ones((2, 5, 8))
    >>> params = block.init(jax.random.key(0), x).params
    >>> sorted(params), block(params, x).shape
    (['attention', 'attention_norm', 'mlp', 'mlp_norm'], (2, 5, 8))
    """

    attention: Attention
    mlp: Mapping
    cross: Attention | None = None
    norm: Mapping = LAYER_NORM
    pre_norm: bool = True
    rate: float = 0.0

    def __post_init__(self) -> None:
        Dropout(self.rate)  # refuses what is no fraction

    def parts(self) -> Dict[str, Mapping]:
        """Each f with a norm and a dropout of its own."""
        inner = {"attention": self.attention, "mlp": self.mlp}
        if self.cross is not None:
            inner["cross"] = self.cross
        norms = {f"{name}_norm": self.norm for name in inner}
        return inner | norms | {f"{name}_drop": Dropout(self.rate) for name in inner}

    def forward(
        self,
        run: Run,
        x: Any,
        mask: Any = None,
        context: Any = None,
        context_mask: Any = None,
    ) -> Any:
        """Goes through the parts."""
        if (self.cross is None) != (context is None):
            wanted = "no context, having no" if self.cross is None else "a context for"
            raise ShapeMismatchError(
                f"{run.ctx.where} (TransformerBlock): expected {wanted} "
                f"cross-attention, got {describe(context)}. Call it with (x, mask, "
                "context) if it has a cross, with (x, mask) if not."
            )
        x = self._around(run, "attention", x, None, mask)
        if self.cross is not None:
            x = self._around(run, "cross", x, context, context_mask)
        return self._around(run, "mlp", x)

    def _around(self, run: Run, name: str, x: Any, *others: Any) -> Any:
        """Adds what one part says to what goes round it."""
        norm, drop = f"{name}_norm", f"{name}_drop"
        said = run(name, run(norm, x) if self.pre_norm else x, *others)
        x = joined("sum", (x, run(drop, said)), ("x", name), run.ctx)
        return x if self.pre_norm else run(norm, x)


@register(
    "model",
    "stack",
    examples=lambda: Example(Stack(Dense(4) >> jax.nn.tanh, 2), (spec(2, 4),)),
)
@dataclasses.dataclass(frozen=True)
class Stack(Model):
    r"""Copies of a mapping, one after the other, each with a name: `0`, `1`, ...

    $$ y = f_{\theta_n}(\dots f_{\theta_1}(x, z) \dots, z) $$

    Further inputs z (a mask) go to every copy. What `Repeat` does as one loop over
    stacked variables, written out: every copy has paths of its own.

    Params: `0`, `1`, ..., each the block's own.

    Attributes:
        block: the mapping.
        times: how many copies, at least one.

    >>> deep = Stack(Dense(4) >> jax.nn.tanh, 2)
    >>> params = deep.init(jax.random.key(0), jax.numpy.ones((1, 4))).params
    >>> sorted(params)
    ['0', '1']
    """

    block: Mapping
    times: int

    def __post_init__(self) -> None:
        check_count(self.times, "Stack.times")
        if not isinstance(self.block, Mapping):
            raise FieldError(
                f"Stack.block: expected a mapping, got {self.block!r}. Compose it of "
                "layers with >>."
            )

    def parts(self) -> Dict[str, Mapping]:
        """The copies."""
        return {str(i): self.block for i in range(self.times)}

    def forward(self, run: Run, x: Any, *others: Any) -> Any:
        """Goes through the copies."""
        for name in self.parts():
            x = run(name, x, *others)
        return x
