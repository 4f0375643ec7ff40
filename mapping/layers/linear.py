"""Layers that are a matrix product."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax

from mapping.core import Context, Variables, describe
from mapping.errors import FieldError, ShapeMismatchError
from mapping.fields import check_count
from mapping.foreign import require_arrays
from mapping.layers.linen import LinenLayer
from mapping.registry import Example, register, spec


@register("layer", "dense", examples=lambda: Example(Dense(4), (spec(2, 3),)))
@dataclasses.dataclass(frozen=True)
class Dense(LinenLayer):
    r"""An affine map of the last axis.

    $$ y = x W + b, \qquad W \in \mathbb{R}^{d \times features} $$

    Params: `kernel` (d, features), `bias` (features,).

    Attributes:
        features: size of the last axis of the output.
        use_bias: whether `b` is there.
        kernel_init: initialiser of `kernel`; LeCun normal by default.
        bias_init: initialiser of `bias`; zeros by default.

    >>> import jax
    >>> dense = Dense(4)
    >>> v = dense.init(jax.random.key(0), jax.ShapeDtypeStruct((1, 3), "float32"))
    >>> dense(v.params, jax.numpy.ones((2, 3))).shape
    (2, 4)
    """

    features: int
    use_bias: bool = True
    kernel_init: Callable[..., Any] | None = None
    bias_init: Callable[..., Any] | None = None

    def __post_init__(self) -> None:
        check_count(self.features, "Dense.features")

    def module(self) -> nn.Module:
        """`flax.linen.Dense`."""
        return nn.Dense(
            self.features,
            self.use_bias,
            kernel_init=self.kernel_init or nn.linear.default_kernel_init,
            bias_init=self.bias_init or nn.initializers.zeros,
        )

    def features_in(self, variables: Variables) -> int | None:
        """The rows of the kernel."""
        kernel = variables.params.get("kernel")
        return None if kernel is None else kernel.shape[0]


@register(
    "layer",
    "dense_general",
    examples=lambda: (
        Example(DenseGeneral((2, 4)), (spec(2, 3),)),
        Example(DenseGeneral(5, axis=(-2, -1), use_bias=False), (spec(3, 2, 4),)),
    ),
)
@dataclasses.dataclass(frozen=True)
class DenseGeneral(LinenLayer):
    r"""An affine map from several axes to several axes.

    $$ y_{\dots\, o_1 \dots o_m} = b_{o_1 \dots o_m} +
       \sum_{i_1 \dots i_n} x_{\dots\, i_1 \dots i_n}\,
       W_{i_1 \dots i_n\, o_1 \dots o_m} $$

    The axes that are summed disappear from where they are; those of the output
    come last. To heads: `DenseGeneral((heads, size))`; back from them:
    `DenseGeneral(features, axis=(-2, -1))`.

    Params: `kernel` (\*extents of `axis` in ascending order, \*features), `bias`
    (\*features,).

    Attributes:
        features: extents of the axes of the output, or one.
        axis: axes of the input that are summed, or one; counted from the end, so
            that any number of batch axes may stand before them.
        use_bias: whether `b` is there.
        kernel_init: initialiser of `kernel`, given it as a matrix (product of the
            axes in, product of the features); LeCun normal by default.
        bias_init: initialiser of `bias`; zeros by default.

    >>> import jax
    >>> heads = DenseGeneral((2, 4))
    >>> v = heads.init(jax.random.key(0), jax.ShapeDtypeStruct((1, 8), "float32"))
    >>> heads(v.params, jax.numpy.ones((5, 8))).shape
    (5, 2, 4)
    """

    features: int | tuple[int, ...]
    axis: int | tuple[int, ...] = -1
    use_bias: bool = True
    kernel_init: Callable[..., Any] | None = None
    bias_init: Callable[..., Any] | None = None

    def __post_init__(self) -> None:
        for extent in _tuple(self.features):
            check_count(extent, "DenseGeneral.features")
        axes = _tuple(self.axis)
        if not all(isinstance(a, int) for a in axes) or len(set(axes)) < len(axes):
            raise FieldError(
                f"DenseGeneral.axis: expected each axis once, got {self.axis!r}. Use "
                "(-2, -1) for the last two."
            )

    def module(self) -> nn.Module:
        """`flax.linen.DenseGeneral`."""
        return nn.DenseGeneral(
            self.features,
            self.axis,
            use_bias=self.use_bias,
            kernel_init=self.kernel_init or nn.linear.default_kernel_init,
            bias_init=self.bias_init or nn.initializers.zeros,
        )

    def _check_features(
        self, variables: Variables, inputs: tuple[Any, ...], ctx: Context
    ) -> None:
        require_arrays(ctx, self.kind, inputs, count=1)
        kernel, (x,) = variables.params.get("kernel"), inputs
        if kernel is None:  # which linen tells
            return
        axes = _tuple(self.axis)
        wanted = tuple(kernel.shape[: len(axes)])
        there = all(-x.ndim <= axis < x.ndim for axis in axes)
        if not there or wanted != tuple(x.shape[a] for a in _ascending(axes, x.ndim)):
            raise ShapeMismatchError(
                f"{ctx.where} (DenseGeneral): params expect {wanted} along the axes "
                f"{axes}, got {describe(inputs)}. Re-run init with this input."
            )


@register(
    "layer",
    "einsum",
    examples=lambda: (
        Example(Einsum("...d,dhk->...hk", (3, 2, 4)), (spec(2, 3),)),
        Example(Einsum("btd,td->bt", (4, 3), use_bias=False), (spec(2, 4, 3),),
                batched=False),
    ),
)  # fmt: skip
@dataclasses.dataclass(frozen=True)
class Einsum(LinenLayer):
    r"""A product of the input with a kernel, in Einstein's notation.

    $$ y = \mathrm{einsum}(equation,\ x,\ W) + b $$

    Params: `kernel` (\*shape), `bias` (the axes of the kernel that the output has).

    Attributes:
        equation: subscripts of the input, of the kernel and of the output, such as
            `"...d,dhk->...hk"`.
        shape: of the kernel, an extent for each of its subscripts.
        use_bias: whether `b` is there.
        kernel_init: initialiser of `kernel`; LeCun normal by default, where what is
            summed counts as the fan in.
        bias_init: initialiser of `bias`; zeros by default.

    Raises:
        FieldError: if the equation is not of two operands and an output, or the
            shape does not fit it.

    >>> import jax
    >>> heads = Einsum("...d,dhk->...hk", (8, 2, 4))
    >>> v = heads.init(jax.random.key(0), jax.ShapeDtypeStruct((1, 8), "float32"))
    >>> heads(v.params, jax.numpy.ones((5, 8))).shape, v.params["bias"].shape
    ((5, 2, 4), (2, 4))
    """

    equation: str
    shape: tuple[int, ...]
    use_bias: bool = True
    kernel_init: Callable[..., Any] | None = None
    bias_init: Callable[..., Any] | None = None

    def __post_init__(self) -> None:
        given, arrow, _ = self.equation.partition("->")
        if not arrow or given.count(",") != 1:
            raise FieldError(
                "Einsum.equation: expected subscripts of the input, of the kernel and "
                f"of the output, got {self.equation!r}. Use the form "
                '"...d,dk->...k".'
            )
        kernel = self._operands()[1]
        if not isinstance(self.shape, tuple) or len(kernel) != len(self.shape):
            raise FieldError(
                f"Einsum.shape: expected an extent for each of the kernel's subscripts "
                f"{kernel!r}, got {self.shape!r}."
            )
        for i, extent in enumerate(self.shape):
            check_count(extent, f"Einsum.shape[{i}]")

    def module(self) -> nn.Module:
        """`flax.linen.Einsum`."""
        return nn.Einsum(
            self.shape,
            self.equation,
            self.use_bias,
            kernel_init=self.kernel_init or self._lecun(),
            bias_init=self.bias_init or nn.initializers.zeros,
        )

    def _operands(self) -> tuple[str, str, str]:
        given, _, output = self.equation.replace(" ", "").partition("->")
        first, _, kernel = given.partition(",")
        return first, kernel, output

    def _lecun(self) -> Callable[..., jax.Array]:
        """linen's default takes the axis before the last for what is summed."""
        first, kernel, output = self._operands()

        def axes(*, summed: bool, shared: bool = False) -> list[int]:
            return [
                i
                for i, letter in enumerate(kernel)
                if (letter not in output) == summed
                and (summed or (letter in first) == shared)
            ]

        return nn.initializers.variance_scaling(
            1.0,
            "fan_in",
            "truncated_normal",
            in_axis=axes(summed=True),
            out_axis=axes(summed=False),
            batch_axis=axes(summed=False, shared=True),
        )


def _tuple(value: int | tuple[int, ...]) -> tuple[int, ...]:
    return value if isinstance(value, tuple) else (value,)


def _ascending(axes: tuple[int, ...], ndim: int) -> list[int]:
    return sorted(a % ndim for a in axes)
