"""Convolutional networks in the manner of LeNet."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from mapping.core import Mapping
from mapping.fields import check_count
from mapping.layers import AvgPool, BatchNorm, Conv, Flatten, MaxPool
from mapping.layers.convolution import Padding
from mapping.layers.guard import check_extents
from mapping.model import Model
from mapping.models.chain import serial
from mapping.models.guard import check_choice, check_widths, lift_fields
from mapping.models.mlp import MLP
from mapping.registry import Example, register, spec

_POOLS = {"max": MaxPool, "avg": AvgPool}


@register(
    "model",
    "cnn",
    examples=lambda: (
        Example(CNN(3, (2, 4), (5,)), (spec(2, 4, 4, 1),), batched=False),
        Example(
            CNN(2, (3,), (), kernel_size=(3,), pool="avg", norm=BatchNorm()),
            (spec(2, 4, 2),),
            batched=False,
        ),
    ),
)
@dataclasses.dataclass(frozen=True)
class CNN(Model):
    r"""Convolutions that are pooled, then an MLP: images to scores of classes.

    $$ h_k = \mathrm{pool}(\sigma(\mathrm{norm}(W_k * h_{k-1} + b_k))), \quad
       y = \mathrm{MLP}(\mathrm{flatten}(h_n)) $$

    Each block halves space, so images are at least 2 ** blocks wide. They have
    (batch, \*space, channels); as many spatial axes as `kernel_size` has entries.

    Params: `block1/conv/{kernel, bias}`, `block1/norm/..`, `block2/..`,
    `classifier/hidden1/dense/..`, `classifier/head/..`.

    LeCun et al., "Gradient-based learning applied to document recognition", 1998,
    https://doi.org/10.1109/5.726791.

    Attributes:
        outputs: number of classes.
        channels: of each block's convolution.
        hidden: widths of the MLP's hidden layers.
        kernel_size: of every convolution.
        padding: of every convolution.
        pool: `"max"` or `"avg"`.
        activation: of every layer but the last.
        norm: before each activation.
        rate: of the dropout in the MLP, in [0, 1).

    Raises:
        FieldError: if a width or the pool is none.

    >>> from mapping.core import outline
    >>> x = jax.ShapeDtypeStruct((1, 32, 32, 1), "float32")
    >>> variables, y = outline(CNN.lenet5(), x)
    >>> sum(leaf.size for leaf in jax.tree.leaves(variables.params)), y.shape
    (61706, (1, 10))
    """

    outputs: int
    channels: tuple[int, ...] = (32, 64)
    hidden: tuple[int, ...] = (128,)
    kernel_size: tuple[int, ...] = (3, 3)
    padding: Padding = "SAME"
    pool: str = "max"
    activation: Mapping | Callable[..., Any] = jax.nn.relu
    norm: Mapping | None = None
    rate: float = 0.0

    @classmethod
    def lenet5(cls, outputs: int = 10) -> CNN:
        """LeNet-5 for images of 32x32, its maps fully connected to each other."""
        return cls(
            outputs,
            channels=(6, 16),
            hidden=(120, 84),
            kernel_size=(5, 5),
            padding="VALID",
            pool="avg",
            activation=jnp.tanh,
        )

    def __post_init__(self) -> None:
        check_count(self.outputs, "CNN.outputs")
        check_widths(self.channels, "CNN.channels")
        check_widths(self.hidden, "CNN.hidden", least=0)
        check_extents(self.kernel_size, "CNN.kernel_size")
        check_choice(self.pool, "CNN.pool", tuple(_POOLS))
        lift_fields(self, "activation", "norm")

    def parts(self) -> dict[str, Any]:
        """The blocks, what joins space to features, and the classifier."""
        window = (2,) * len(self.kernel_size)
        blocks = {
            f"block{number}": serial(
                conv=Conv(width, self.kernel_size, padding=self.padding),
                norm=self.norm,
                act=self.activation,
                pool=_POOLS[self.pool](window),
            )
            for number, width in enumerate(self.channels, 1)
        }
        classifier = MLP(
            self.outputs, self.hidden, self.activation, self.norm, self.rate
        )
        return {**blocks, "flatten": Flatten(), "classifier": classifier}
