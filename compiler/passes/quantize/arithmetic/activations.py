"""Activations in few bits: scales from the values themselves, or given beforehand."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from compiler.passes.quantize.arithmetic.straight import on_grid
from mapping.core import register

_LEVELS = {"int8": 127.0}
_LARGEST = {
    "float8_e4m3": ("float8_e4m3fn", 448.0),
    "float8_e5m2": ("float8_e5m2", 57344.0),
}
_PER = ("token", "tensor")


@register("value", "quantized_activations")
@dataclasses.dataclass(frozen=True)
class Activations:
    r"""How what meets a weight in a product is rounded.

    $$ s = \max_i |x_i| / 127, \qquad q = \mathrm{round}(x / s), \qquad
       x \approx s\,(q - z) $$

    with $z = 0$ where symmetric.

    Attributes:
        dtype: `"int8"`, `"float8_e4m3"` or `"float8_e5m2"`.
        per: `"token"`, one scale for each row that is multiplied (for a convolution:
            for each example); or `"tensor"`.
        symmetric: whether zero is in the middle of the range.

    Raises:
        ValueError: if a field is none of these.
    """

    dtype: str = "int8"
    per: str = "token"
    symmetric: bool = True

    def __post_init__(self) -> None:
        known = sorted((*_LEVELS, *_LARGEST))
        if self.dtype not in known:
            raise ValueError(
                f"activations: expected a dtype of {known}, got {self.dtype!r}."
            )
        if self.per not in _PER:
            raise ValueError(f"activations: expected per {_PER}, got {self.per!r}.")
        if not self.symmetric and self.dtype not in _LEVELS:
            raise ValueError(
                f"activations: {self.dtype} has no zero point. Leave symmetric=True."
            )

    @property
    def is_integer(self) -> bool:
        """Whether products with them are exact."""
        return self.dtype in _LEVELS


class Rounded(NamedTuple):
    """Activations in few bits.

    Attributes:
        codes: int8 or float8, shaped as they were.
        scale: float32, one for each token, or of extent one; broadcasts to the codes.
        zero: float32 like `scale`, integers; None if symmetric.
    """

    codes: Any
    scale: Any
    zero: Any = None

    def floats(self) -> Any:
        """What they stand for, in float32."""
        codes = self.codes.astype(jnp.float32)
        return (codes if self.zero is None else codes - self.zero) * self.scale


def measured(x: Any, spec: Activations, axes: tuple[int, ...]) -> tuple[Any, Any]:
    """The scale and zero point of activations, from their own range.

    Args:
        x: the activations.
        spec: how they are rounded.
        axes: those that share a scale.
    """
    wide = x.astype(jnp.float32)
    if spec.symmetric:
        high = jnp.max(jnp.abs(wide), axis=axes, keepdims=True, initial=0.0)
        return from_range(-high, high, spec)
    high = jnp.max(wide, axis=axes, keepdims=True, initial=0.0)
    low = jnp.min(wide, axis=axes, keepdims=True, initial=0.0)
    return from_range(low, high, spec)


def from_range(low: Any, high: Any, spec: Activations) -> tuple[Any, Any]:
    """The scale and zero point for a range; one and zero for an empty one.

    Never smaller than the smallest normal number, which processors take for zero.
    """
    tiny = float(jnp.finfo(jnp.float32).tiny)
    if spec.symmetric:
        largest = jnp.maximum(jnp.abs(low), jnp.abs(high))
        limit = _LEVELS.get(spec.dtype) or _LARGEST[spec.dtype][1]
        scale = jnp.maximum(largest * jnp.float32(1 / limit), tiny)
        return jnp.where(largest > 0, scale, 1.0), None
    low, high = jnp.minimum(low, 0.0), jnp.maximum(high, 0.0)
    scale = jnp.maximum((high - low) * jnp.float32(1 / 255), tiny)
    scale = jnp.where(high > low, scale, 1.0)
    return scale, jnp.clip(jnp.round(-128.0 - low / scale), -128.0, 127.0)


def rounded(x: Any, scale: Any, zero: Any, spec: Activations) -> Rounded:
    """Rounds activations to the grid of a scale."""
    steps = _steps(x, scale)
    if not spec.is_integer:
        dtype, largest = _LARGEST[spec.dtype]
        return Rounded(jnp.clip(steps, -largest, largest).astype(dtype), scale)
    if zero is None:
        codes = jnp.clip(jnp.round(steps), -127.0, 127.0)
    else:
        codes = jnp.clip(jnp.round(steps) + zero, -128.0, 127.0)
    return Rounded(codes.astype(jnp.int8), scale, zero)


def within(x: Any, scale: Any, zero: Any, spec: Activations) -> Any:
    """The activations, cut off where the grid ends; the derivative passes inside."""
    if not spec.is_integer:
        largest = _LARGEST[spec.dtype][1] * scale
        return jnp.clip(x, -largest, largest)
    if zero is None:
        return jnp.clip(x, -127.0 * scale, 127.0 * scale)
    return jnp.clip(x, (-128.0 - zero) * scale, (127.0 - zero) * scale)


def learned(x: Any, scale: Any, zero: Any, spec: Activations) -> Any:
    r"""What the rounded activations stand for, differentiable in x and in the scale.

    $$ \hat x = s\,\mathrm{round}(\mathrm{clip}(x / s)), \qquad
       \partial \hat x / \partial s = \mathrm{round}(x / s) - x / s $$

    inside the range, and its end outside: learned step size quantization.

    Esser et al., 2019, https://arxiv.org/abs/1902.08153.
    """
    wide, high = x.astype(jnp.float32), _LEVELS.get(spec.dtype)
    units = rounded(x, scale, zero, spec).codes.astype(jnp.float32)
    high = jnp.float32(high or _LARGEST[spec.dtype][1])
    low = -high
    if zero is not None:
        units, low, high = units - zero, -128.0 - zero, high - zero
    return on_grid(wide, scale, units, low, high)


def _steps(x: Any, scale: Any) -> Any:
    """The quotient by a scale; the reciprocal is taken once for all that share it.

    Compilers do so with a quotient, but not always: written out it is the same to the
    last bit wherever it is computed.
    """
    return x.astype(jnp.float32) * (jnp.float32(1) / scale)


@jax.custom_jvp
def round_to(steps: Any, result: Any) -> Any:
    """The result, with the derivative of what was rounded to it.

    Bengio, Léonard & Courville, 2013, https://arxiv.org/abs/1308.3432.
    """
    return result.astype(steps.dtype)


@round_to.defjvp
def _straight_through(primals: Any, tangents: Any) -> tuple[Any, Any]:
    return round_to(*primals), tangents[0]
