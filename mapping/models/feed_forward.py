"""Two dense layers at each place."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from collections.abc import Mapping as Dict
from typing import Any

from mapping.core import Mapping
from mapping.fields import check_count
from mapping.layers import Activation, Dense, Dropout
from mapping.model import Model, Run
from mapping.registry import Example, register, spec


@register(
    "model",
    "feed_forward",
    examples=lambda: (
        Example(FeedForward(4, hidden=6), (spec(2, 3, 4),)),
        Example(FeedForward(4, activation="silu", gated=True, rate=0.2), (spec(2, 4),)),
    ),
)
@dataclasses.dataclass(frozen=True)
class FeedForward(Model):
    r"""Two dense layers, at each place alike.

    $$ y = a(x W_u + b_u) W_d + b_d, \qquad \text{gated:}\quad
       y = \bigl(a(x W_g + b_g) \odot (x W_u + b_u)\bigr) W_d + b_d $$

    With `activation="silu"` the gated form is SwiGLU.

    Params: `up` and, if gated, `gate` (d, hidden), `down` (hidden, features), each
    with `kernel` and `bias`.

    Vaswani et al., 2017, https://arxiv.org/abs/1706.03762; gated: Shazeer, "GLU
    variants improve transformer", 2020, https://arxiv.org/abs/2002.05202.

    Attributes:
        features: of the output.
        hidden: features between the two; four times `features` by default.
        activation: a, a name that `Activation` knows.
        gated: whether a second product gates the first.
        use_bias: whether the biases are there.
        rate: fraction of the hidden units dropped in training, in [0, 1).
        kernel_init: initialiser of the kernels; LeCun normal by default.

    >>> import jax
    >>> part = FeedForward(8, activation="silu", gated=True)
    >>> params = part.init(jax.random.key(0), jax.numpy.ones((2, 8))).params
    >>> sorted(params), params["gate"]["kernel"].shape
    (['down', 'gate', 'up'], (8, 32))
    """

    features: int
    hidden: int | None = None
    activation: str = "gelu"
    gated: bool = False
    use_bias: bool = True
    rate: float = 0.0
    kernel_init: Callable[..., Any] | None = None

    def __post_init__(self) -> None:
        check_count(self.features, "FeedForward.features")
        if self.hidden is not None:
            check_count(self.hidden, "FeedForward.hidden")
        self.parts()  # refuses an activation and a rate that are none

    def parts(self) -> Dict[str, Mapping]:
        """Two or three dense layers, and what is between them."""

        def dense(features: int) -> Dense:
            return Dense(features, self.use_bias, kernel_init=self.kernel_init)

        hidden = self.hidden or 4 * self.features
        return {
            "up": dense(hidden),
            "gate": dense(hidden),
            "act": Activation(self.activation),
            "drop": Dropout(self.rate),
            "down": dense(self.features),
        }

    def forward(self, run: Run, x: Any) -> Any:
        """Takes (..., d)."""
        if self.gated:
            return run.down(run.drop(run.act(run.gate(x)) * run.up(x)))
        return run.down(run.drop(run.act(run.up(x))))
