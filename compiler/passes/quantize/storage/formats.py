"""How one number is stored in few bits: integers, small floats, codebooks."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array

_NF4 = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)
_E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


@dataclasses.dataclass(frozen=True)
class Format:
    """The numbers that a few bits can stand for, before they are scaled.

    `int8`, `int4`, `int2`: two's complement. `ternary`: -1, 0, 1. `float8_e4m3`,
    `float8_e5m2`: Micikevicius et al., 2022, https://arxiv.org/abs/2209.05433.
    `nf4`: sixteen quantiles of the normal distribution, Dettmers et al., 2023,
    https://arxiv.org/abs/2305.14314. `fp4`: sign, two bits of exponent and one of
    mantissa, as in OCP Microscaling Formats (MX) 1.0, 2023.

    Attributes:
        name: what it is called.
        bits: of one number.
        kind: `"integer"`, `"float"` (a dtype of its own) or `"codebook"`.
        peak: the largest number there is; a scale is the largest weight over it.
        stored: the dtype of unpacked codes.
        mantissa: for floats: bits after the point.
        emin: for floats: the exponent of the smallest normal number.

    >>> FORMATS["int4"].bits, FORMATS["int4"].levels()
    (4, (-7, 7))
    """

    name: str
    bits: int
    kind: str
    peak: float
    stored: str = "int8"
    mantissa: int = 0
    emin: int = 0

    @property
    def packed(self) -> bool:
        """Whether several codes share a byte."""
        return self.bits < 8

    def levels(self, symmetric: bool = True) -> tuple[int, int]:
        """The least and the largest code of an integer format.

        Raises:
            ValueError: if its codes are no integers.
        """
        if self.kind != "integer":
            raise ValueError(f"{self.name}: expected an integer format.")
        peak = int(self.peak)
        return (-peak, peak) if symmetric else (-peak - 1, peak)

    def nearest(self, units: Array) -> Array:
        """The codes nearest to numbers that are already divided by their scale.

        Ties go to the even code; what lies beyond the largest number becomes it.

        Args:
            units: float32 or float64, of any shape.

        >>> FORMATS["float8_e4m3"].nearest(jnp.array([0.3, -1e9])).tolist()
        [0.3125, -448.0]
        """
        inside = jnp.clip(units, -self.peak, self.peak)
        if self.kind == "integer":
            return jnp.round(inside).astype(jnp.int8)
        if self.name == "nf4":
            return _above(inside, _middles(_NF4))
        snapped = _snap(inside, self.mantissa, self.emin)
        if self.kind == "float":
            return snapped.astype(self.stored)
        size = _above(jnp.abs(snapped), _middles(_E2M1))
        return jnp.where(snapped < 0, size + np.uint8(8), size)

    def value(self, codes: Array) -> Array:
        """What codes stand for: float32 for a codebook, the codes themselves else.

        >>> FORMATS["fp4"].value(jnp.array([1, 9], jnp.uint8)).tolist()
        [0.5, -0.5]
        """
        if self.kind != "codebook":
            return codes
        return _chosen(codes, _NF4 if self.name == "nf4" else _signed(_E2M1))


FORMATS = {
    format.name: format
    for format in (
        Format("int8", 8, "integer", 127),
        Format("int4", 4, "integer", 7),
        Format("int2", 2, "integer", 1),
        Format("ternary", 2, "integer", 1),
        Format("float8_e4m3", 8, "float", 448, "float8_e4m3fn", 3, -6),
        Format("float8_e5m2", 8, "float", 57344, "float8_e5m2", 2, -14),
        Format("nf4", 4, "codebook", 1, "uint8"),
        Format("fp4", 4, "codebook", 6, "uint8", 1, 0),
    )
}


def unknown(name: str, known: Iterable[str]) -> ValueError:
    """The error for a format that nobody knows, with the names that come near it."""
    names = list(known)
    near = difflib.get_close_matches(str(name), names, 3, 0.5)
    hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
    return ValueError(
        f"{name!r}: expected a format of {', '.join(map(repr, names))}.{hint}"
    )


def power(x: Array) -> Array:
    """The largest power of two not above each positive normal number."""
    wide = jnp.finfo(x.dtype)
    integer = np.dtype(f"int{wide.bits}")
    mask = integer.type(((1 << wide.nexp) - 1) << wide.nmant)
    return jax.lax.bitcast_convert_type(
        jax.lax.bitcast_convert_type(x, integer) & mask, x.dtype
    )


def _snap(x: Array, mantissa: int, emin: int) -> Array:
    """Rounds to numbers of so many mantissa bits, half to even.

    Casting alone would round twice where a processor goes through float16.
    """
    step = jnp.maximum(power(jnp.abs(x)), 2.0**emin) * 2.0**-mantissa
    return jnp.round(x / step) * step


def _middles(levels: tuple[float, ...]) -> tuple[float, ...]:
    table = np.array(levels, np.float32)
    return tuple(((table[1:] + table[:-1]) * np.float32(0.5)).tolist())


def _above(x: Array, borders: tuple[float, ...]) -> Array:
    """How many borders each number is above."""
    count = jnp.zeros(x.shape, jnp.uint8)
    for border in borders:
        count += (x > border).astype(jnp.uint8)
    return count


def _signed(levels: tuple[float, ...]) -> tuple[float, ...]:
    return levels + tuple(-level for level in levels)


def _chosen(codes: Array, table: tuple[float, ...]) -> Array:
    """Looks codes up by their bits: selections vectorise where a gather does not."""
    values: list[Array] = [jnp.full((), v, jnp.float32) for v in table]
    bit = 1
    while len(values) > 1:
        high = (codes & np.uint8(bit)) != 0
        pairs = zip(values[::2], values[1::2], strict=True)
        values = [jnp.where(high, *_filled(b, a, codes.shape)) for a, b in pairs]
        bit *= 2
    return values[0]


def _filled(a: Array, b: Array, shape: tuple[int, ...]) -> tuple[Array, Array]:
    return jnp.broadcast_to(a, shape), jnp.broadcast_to(b, shape)
