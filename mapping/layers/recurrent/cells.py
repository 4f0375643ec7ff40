"""One step of a recurrent layer, flax.linen's.

A cell is a mapping from (carry, x) to (new carry, y), with a method `carry(x)` that
makes the carry before the first step for a step's input like `x`. Whatever is so,
[`Recurrent`][mapping.layers.recurrent.unroll.Recurrent] runs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from mapping.core import Context, Variables, describe
from mapping.errors import ShapeMismatchError
from mapping.fields import check_count
from mapping.layers.linen import LinenLayer
from mapping.nesting import Spec, as_spec
from mapping.registry import Example, register, spec


@dataclasses.dataclass(frozen=True)
class _Cell(LinenLayer):
    """A cell of flax.linen whose carry is of vectors of `features`.

    Attributes:
        features: size of the carry and of the output.
        kernel_init: initialiser of what meets the input; LeCun normal by default.
            What meets the carry starts orthogonal, the biases at zero.
    """

    features: int
    kernel_init: Callable[..., Any] | None = None
    linen: ClassVar[type[nn.Module]]
    """The linen cell."""
    first: ClassVar[str]
    """A kernel that meets the input."""

    def __post_init__(self) -> None:
        check_count(self.features, f"{self.kind}.features")

    def module(self) -> nn.Module:
        """The linen cell."""
        kernel_init = self.kernel_init or nn.linear.default_kernel_init
        return type(self).linen(features=self.features, kernel_init=kernel_init)

    def carry(self, x: Spec) -> Any:
        r"""The carry before the first step: zeros (\*batch, features), as x's dtype.

        Args:
            x: the input of one step, (\*batch, d), or its spec.
        """
        return jnp.zeros((*x.shape[:-1], self.features), x.dtype)

    def features_in(self, variables: Variables) -> int | None:
        """The rows of a kernel that meets the input."""
        kernel = variables.params.get(self.first, {}).get("kernel")
        return None if kernel is None else kernel.shape[0]

    def _check_features(
        self, variables: Variables, inputs: tuple[Any, ...], ctx: Context
    ) -> None:
        """Refuses what is no (carry, x), and either that does not fit."""
        where = f"{ctx.where} ({self.kind})"
        if len(inputs) != 2 or getattr(inputs[1], "ndim", 0) < 1:
            raise ShapeMismatchError(
                f"{where}: expected (carry, x), got {describe(inputs)}. Run it over a "
                "sequence with Recurrent(cell)."
            )
        carry, x = inputs
        wanted = jax.eval_shape(self.carry, as_spec(x))
        if jax.tree.map(jnp.shape, carry) != jax.tree.map(jnp.shape, wanted):
            raise ShapeMismatchError(
                f"{where}: expected a carry {describe(wanted)} beside {describe(x)}, "
                f"got {describe(carry)}. Make it with cell.carry(x)."
            )
        super()._check_features(variables, (x,), ctx)


@register(
    "layer",
    "lstm_cell",
    examples=lambda: Example(LSTMCell(4), ((spec(2, 4), spec(2, 4)), spec(2, 3))),
)
@dataclasses.dataclass(frozen=True)
class LSTMCell(_Cell):
    r"""Long short-term memory: a memory c that gates write, erase and read.

    $$ i, f, o = \sigma(W_{ik} x + W_{hk} h + b_{hk}), \qquad
       g = \tanh(W_{ig} x + W_{hg} h + b_{hg}) $$
    $$ c' = f \odot c + i \odot g, \qquad y = h' = o \odot \tanh(c') $$

    Inputs: the carry (c, h), both (\*batch, features), and x (\*batch, d). Outputs:
    ((c', h'), y). torch's order is (h, c), and its two biases are one here: their sum.

    Params: `ii/kernel`, `if/kernel`, `ig/kernel`, `io/kernel` (d, features) and
    `hi/kernel`, `hf/kernel`, `hg/kernel`, `ho/kernel` (features, features), `hi/bias`,
    ... (features,). Linen's `OptimizedLSTMCell` joins each four into one product.

    Hochreiter & Schmidhuber, "Long Short-Term Memory", Neural Computation 9 (1997);
    with the forget gate of Gers et al. (2000).

    Attributes:
        features: size of c, h and y.
        kernel_init: initialiser of what meets x; LeCun normal by default. What
            meets h starts orthogonal, the biases at zero.

    >>> cell = LSTMCell(4)
    >>> x = jnp.ones((2, 3))
    >>> variables = cell.init(jax.random.key(0), cell.carry(x), x)
    >>> (c, h), y = cell(variables.params, cell.carry(x), x)
    >>> c.shape, y.shape
    ((2, 4), (2, 4))
    """

    linen: ClassVar[type[nn.Module]] = nn.OptimizedLSTMCell
    first: ClassVar[str] = "ii"

    def carry(self, x: Spec) -> Any:
        r"""The carry before the first step: c and h, zeros (\*batch, features)."""
        return super().carry(x), super().carry(x)


@register(
    "layer",
    "gru_cell",
    examples=lambda: Example(GRUCell(4), (spec(2, 4), spec(2, 3))),
)
@dataclasses.dataclass(frozen=True)
class GRUCell(_Cell):
    r"""Gated recurrent unit: one gate forgets, one mixes new with old.

    $$ r, z = \sigma(W_{ik} x + b_{ik} + W_{hk} h), \qquad
       n = \tanh(W_{in} x + b_{in} + r \odot (W_{hn} h + b_{hn})) $$
    $$ y = h' = (1 - z) \odot n + z \odot h $$

    Inputs: the carry h (\*batch, features) and x (\*batch, d). Outputs: (h', y). It is
    torch's variant, with r outside the product; of torch's biases of r and z the sum.

    Params: `ir`, `iz`, `in`: `kernel` (d, features), `bias` (features,); `hr`, `hz`:
    `kernel` (features, features); `hn`: `kernel` and `bias`.

    Cho et al., "Learning Phrase Representations", 2014,
    https://arxiv.org/abs/1406.1078.

    Attributes:
        features: size of h and y.
        kernel_init: initialiser of what meets x; LeCun normal by default. What
            meets h starts orthogonal, the biases at zero.

    >>> cell = GRUCell(4)
    >>> x = jnp.ones((2, 3))
    >>> variables = cell.init(jax.random.key(0), cell.carry(x), x)
    >>> h, y = cell(variables.params, cell.carry(x), x)
    >>> y.shape
    (2, 4)
    """

    linen: ClassVar[type[nn.Module]] = nn.GRUCell
    first: ClassVar[str] = "ir"


@register(
    "layer",
    "simple_cell",
    examples=lambda: Example(SimpleCell(4), (spec(2, 4), spec(2, 3))),
)
@dataclasses.dataclass(frozen=True)
class SimpleCell(_Cell):
    r"""The simple recurrent unit.

    $$ y = h' = \tanh(W_i x + b_i + W_h h) $$

    Inputs: the carry h (\*batch, features) and x (\*batch, d). Outputs: (h', y).

    Params: `i/kernel` (d, features), `i/bias` (features,), `h/kernel` (features,
    features).

    Elman, "Finding Structure in Time", Cognitive Science 14 (1990).

    Attributes:
        features: size of h and y.
        kernel_init: initialiser of what meets x; LeCun normal by default. What
            meets h starts orthogonal, the bias at zero.

    >>> cell = SimpleCell(4)
    >>> x = jnp.ones((2, 3))
    >>> variables = cell.init(jax.random.key(0), cell.carry(x), x)
    >>> h, y = cell(variables.params, cell.carry(x), x)
    >>> y.shape
    (2, 4)
    """

    linen: ClassVar[type[nn.Module]] = nn.SimpleCell
    first: ClassVar[str] = "i"
