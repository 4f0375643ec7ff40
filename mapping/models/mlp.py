"""Multilayer perceptrons."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax

from mapping.core import Mapping
from mapping.fields import check_count
from mapping.layers import BatchNorm, Dense, Dropout
from mapping.model import Model
from mapping.models.chain import serial
from mapping.models.guard import check_widths, lift_fields
from mapping.registry import Example, register, spec


@register(
    "model",
    "mlp",
    examples=lambda: (
        Example(MLP(3, (4, 5)), (spec(2, 3),)),
        Example(
            MLP(2, (4,), activation=jax.nn.silu, norm=BatchNorm(), rate=0.5),
            (spec(4, 3),),
            batched=False,
        ),
    ),
)
@dataclasses.dataclass(frozen=True)
class MLP(Model):
    r"""A multilayer perceptron: affine maps with a non-linearity between them.

    $$ h_0 = x, \quad h_k = \sigma(\mathrm{norm}(h_{k-1} W_k + b_k)), \quad
       y = h_n W + b $$

    It works on the last axis; put [`Flatten`][] before it for images.

    Params: `hidden1/dense/{kernel, bias}`, `hidden1/norm/..`, `hidden2/..`,
    `head/{kernel, bias}`. Without hidden layers it is a linear model.

    Rumelhart, Hinton & Williams, "Learning representations by back-propagating
    errors", 1986, https://doi.org/10.1038/323533a0.

    Attributes:
        outputs: size of the last axis of the output: classes, or regressed numbers.
        features: widths of the hidden layers.
        activation: after each hidden layer.
        norm: before each activation, such as `BatchNorm()` or `LayerNorm()`.
        rate: of the dropout after each activation, in [0, 1).

    Raises:
        FieldError: if a width is no whole number >= 1.

    >>> net = MLP(10, features=(64, 32))
    >>> v = net.init(jax.random.key(0), jax.ShapeDtypeStruct((1, 8), "float32"))
    >>> net(v.params, jax.numpy.ones((5, 8))).shape, sorted(v.params)
    ((5, 10), ['head', 'hidden1', 'hidden2'])
    """

    outputs: int
    features: tuple[int, ...] = (64, 64)
    activation: Mapping | Callable[..., Any] = jax.nn.relu
    norm: Mapping | None = None
    rate: float = 0.0

    def __post_init__(self) -> None:
        check_count(self.outputs, "MLP.outputs")
        check_widths(self.features, "MLP.features", least=0)
        lift_fields(self, "activation", "norm")
        Dropout(self.rate)  # refuses a rate that is none

    def parts(self) -> dict[str, Any]:
        """The hidden layers and the head."""
        hidden = {
            f"hidden{number}": serial(
                dense=Dense(width),
                norm=self.norm,
                act=self.activation,
                drop=Dropout(self.rate) if self.rate else None,
            )
            for number, width in enumerate(self.features, 1)
        }
        return {**hidden, "head": Dense(self.outputs)}
