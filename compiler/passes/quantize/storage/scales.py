"""Choosing scales and zero points from the values they are for.

Everything here gives the same bits in XLA, compiled or not, and in numpy: sums are
taken in a fixed order; a product that goes into a sum is rounded before, so that no
processor can fuse the two; and values are multiplied by the reciprocal of their scale,
which XLA would make of a division by something broadcast anyway.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from compiler.passes.quantize.storage.formats import power
from compiler.passes.quantize.storage.scheme import Scheme

Array = jax.Array

_STEPS = 40
_SHRINK = tuple(1 - 0.5 * k / (_STEPS - 1) for k in range(_STEPS))
_AROUND = (1.0, *(1.5 - k / (_STEPS - 1) for k in range(_STEPS)))
_OCTAVES = (1.0, 2.0, 0.5)


def choose(
    scheme: Scheme, values: Array, axes: Sequence[int], counts: Any, dtype: Any
) -> tuple[Array, Array | None]:
    """The scale and the zero point (None if there is none) of values.

    Args:
        scheme: the format, and how the range is cut.
        values: float32 or float64; zero, normal, and at most an eighth of the
            largest number.
        axes: those a scale is shared along; they are kept with extent one.
        counts: how many values share each scale: others are padding, and zero.
        dtype: what scales are stored in.

    Returns:
        In the dtype of the values: scales that `dtype` represents exactly, integers.
    """
    base = _base(scheme, values, axes, counts)
    low = None if scheme.symmetric else jnp.min(values, axes, keepdims=True, initial=0)

    def candidate(factor: Any) -> list[Array]:
        scale = fit(scheme, base, factor, dtype)
        return [scale] if low is None else [scale, zero(scheme, low * factor, scale)]

    best = candidate(np.asarray(1, values.dtype))
    if scheme.clip == "mse":
        best = _search(scheme, values, axes, candidate, best)
    return best[0], None if low is None else best[1]


def zero(scheme: Scheme, low: Array, scale: Array) -> Array:
    """The code that stands for zero, where the range begins at `low` (at most 0)."""
    least, most = scheme.levels
    return jnp.clip(jnp.round(least - low / scale), least, most)


def codes(scheme: Scheme, values: Array, scale: Array, shift: Array | None) -> Array:
    """The codes nearest to values, before they are packed."""
    ratio = values * _reciprocal(scale)
    if shift is None:
        return scheme.format.nearest(ratio)
    shifted = jnp.round(ratio) + shift
    return jnp.clip(shifted, *scheme.levels).astype(jnp.int8)


def units(scheme: Scheme, stored: Array, shift: Array | None, dtype: Any) -> Array:
    """What codes stand for before they are scaled, in a float dtype."""
    found = scheme.format.value(stored).astype(dtype)
    return found if shift is None else found - shift.astype(dtype)


def fit(scheme: Scheme, base: Array, factor: Any, dtype: Any) -> Array:
    """The scales that can be stored for `base * factor`: rounded up; one for zero.

    Rounded up, a scale cuts nothing off. None is below the smallest normal number:
    processors take what is smaller for zero.
    """
    if scheme.block:
        least, most = 2.0**-126, 2.0 ** (127 - scheme.offset)
    else:
        least, most = float(jnp.finfo(dtype).tiny), float(jnp.finfo(dtype).max)
    scale = jnp.clip(base * factor, *np.array([least, most], base.dtype))
    scale = power(scale) if scheme.block else _rounded_up(scale, dtype)
    return jnp.where(base > 0, scale, np.asarray(1, base.dtype))


def stored(scheme: Scheme, scale: Array, dtype: Any) -> Array:
    """Scales as they are stored; those of block formats as the byte of an exponent."""
    if scheme.block:
        bits = jax.lax.bitcast_convert_type(scale.astype(jnp.float32), jnp.int32)
        return ((bits >> np.int32(23)) + np.int32(scheme.offset)).astype(jnp.uint8)
    kind = jnp.finfo(dtype)
    # Else XLA may leave out a cast to fewer bits and back.
    exact = scale
    if kind.bits < jnp.finfo(scale.dtype).bits:
        exact = jax.lax.reduce_precision(scale, kind.nexp, kind.nmant)
    return exact.astype(dtype)


def read(scheme: Scheme, scale: Array) -> Array:
    """Stored scales as floats: in the dtype they have, float32 for block formats."""
    if not scheme.block:
        return scale
    exponent = scale.astype(jnp.int32)
    if scheme.offset:
        exponent = jnp.maximum(exponent - np.int32(scheme.offset), np.int32(0))
    bits = exponent << np.int32(23)
    return jax.lax.bitcast_convert_type(bits, jnp.float32)


def _base(scheme: Scheme, values: Array, axes: Sequence[int], counts: Any) -> Array:
    """The scales that fit the largest values best; zero where all values are."""
    kind = values.dtype.type
    sizes = jnp.abs(values)
    largest = jnp.max(sizes, axes, keepdims=True, initial=0)
    if scheme.block:
        found = power(largest) * kind(2.0**-scheme.exponent)
    elif not scheme.symmetric:
        high = jnp.max(values, axes, keepdims=True, initial=0)
        low = jnp.min(values, axes, keepdims=True, initial=0)
        least, most = scheme.levels
        found = (high - low) * kind(1 / (most - least))
    elif scheme.ternary:
        found = _ternary(sizes, largest, axes, counts)
    else:
        found = largest * kind(1 / scheme.format.peak)
    return jnp.where(largest > 0, jnp.maximum(found, jnp.finfo(kind).tiny), kind(0))


def _ternary(sizes: Array, largest: Array, axes: Sequence[int], counts: Any) -> Array:
    """The mean of what is above seven tenths of the mean (Li & Liu, eq. 6)."""
    unit = power(jnp.maximum(largest, jnp.finfo(sizes.dtype).tiny))
    sizes = sizes * _reciprocal(unit)  # else the sum could overflow
    part = np.asarray(0.7 / counts, sizes.dtype)
    above = sizes > _sum(sizes, axes) * part
    total = _sum(jnp.where(above, sizes, 0), axes)
    number = jnp.sum(above, axes, keepdims=True, dtype=jnp.int32)
    return total / jnp.maximum(number, np.int32(1)).astype(sizes.dtype) * unit


def _search(
    scheme: Scheme, values: Array, axes: Sequence[int], candidate: Any, first: Any
) -> list[Array]:
    """The candidate of least squared error, of factors on a fixed grid."""
    grid = _AROUND if scheme.ternary else _SHRINK
    grid = _OCTAVES if scheme.block else grid
    factors = jnp.asarray(np.array(grid, values.dtype))
    relative = values * _reciprocal(first[0])

    def error(found: Sequence[Array]) -> Array:
        shift = found[1] if len(found) > 1 else None
        chosen = codes(scheme, values, found[0], shift)
        guess = units(scheme, chosen, shift, values.dtype) * (found[0] / first[0])
        miss = relative - _alone(guess)
        return _sum(_alone(miss * miss), axes)

    def step(k: Any, carry: tuple[Array, list[Array]]) -> tuple[Array, list[Array]]:
        least, best = carry
        new = candidate(factors[k])
        found = error(new)
        pairs = zip(new, best, strict=True)
        better = [jnp.where(found < least, n, b) for n, b in pairs]
        return jnp.minimum(found, least), better

    nothing = jnp.full_like(first[0], np.inf)
    return jax.lax.fori_loop(0, len(grid), step, (nothing, list(first)))[1]


def _reciprocal(scale: Array) -> Array:
    return np.asarray(1, scale.dtype) / scale


def _alone(product: Array) -> Array:
    """A product rounded to one bit less, so that no sum can take it in unrounded."""
    kind = jnp.finfo(product.dtype)
    return jax.lax.reduce_precision(product, kind.nexp, kind.nmant - 1)


def _sum(values: Array, axes: Sequence[int]) -> Array:
    """The sum along axes, in halves: the same order everywhere."""
    for axis in axes:
        size = values.shape[axis]
        widths = [(0, 0)] * values.ndim
        widths[axis] = (0, (1 << max(size - 1, 0).bit_length()) - size)
        values = jnp.pad(values, widths)
        while (half := values.shape[axis] // 2) > 0:
            left = jax.lax.slice_in_dim(values, 0, half, axis=axis)
            values = left + jax.lax.slice_in_dim(values, half, None, axis=axis)
    return values


def _rounded_up(scale: Array, dtype: Any) -> Array:
    """The next number that a dtype has, in the wider dtype of the scale."""
    kind = jnp.finfo(dtype)
    if kind.bits >= jnp.finfo(scale.dtype).bits:
        return scale
    near = jax.lax.reduce_precision(scale, kind.nexp, kind.nmant)
    above = near + power(near) * scale.dtype.type(2.0**-kind.nmant)
    return jnp.where(near < scale, above, near)
