"""A format, and how the numbers of a matrix share their scales."""

from __future__ import annotations

import dataclasses

from compiler.passes.quantize.storage.formats import FORMATS, Format, unknown
from mapping.core import register

_BLOCKS = {"mxfp8": ("float8_e4m3", 8), "mxfp4": ("fp4", 2), "mxint8": ("int8", 6)}
_SCALES = ("bfloat16", "float16", "float32", "float64")
_CLIPS = ("max", "mse")
_BLOCK = 32


@register("value", "scheme")
@dataclasses.dataclass(frozen=True)
class Scheme:
    r"""How the numbers of a weight are stored.

    $$ W \approx s\,(Q - z), \qquad Q = \mathrm{round}(W / s) + z $$

    Attributes:
        dtype: a format: `"int8"`, `"int4"`, `"int2"`, `"ternary"`,
            `"float8_e4m3"`, `"float8_e5m2"`, `"nf4"`, `"fp4"`; or a block format:
            `"mxfp8"`, `"mxfp4"`, `"mxint8"`, which says the group (32) and the
            scales (powers of two, one byte each) too.
        group: `"tensor"`: one scale for a whole matrix; `"channel"`: one for each
            column; a number: one for each so many rows of a column.
        symmetric: whether the range lies evenly around zero; else an int8 zero
            point goes with each scale (integers only).
        clip: `"max"`: the range is what occurs; `"mse"`: the range of least squared
            error is searched.
        scale_dtype: of the scales; None for the weight's own.

    Raises:
        ValueError: for an unknown format, a group below one, or what a format
            cannot do.

    Symmetric integers go from $-(2^{b-1} - 1)$ to $2^{b-1} - 1$, asymmetric ones one
    further down. A scale is the largest weight over the largest number of the format,
    rounded up to its dtype. Three levels are scaled otherwise, for they would waste
    all but the largest: `ternary`, and symmetric `int2`, which is the same (the
    asymmetric one has four levels), have

    $$ s = \mathrm{mean}\{|W_i| : |W_i| > 0.7\,\mathrm{mean}_j |W_j|\} $$

    and take the nearest level. Sources: Li & Liu, 2016,
    https://arxiv.org/abs/1605.04711 (ternary); OCP Microscaling Formats (MX) 1.0,
    2023 (block formats); see [`Format`][] for the others.

    >>> Scheme("int4", group=32).bits, str(Scheme("int4", group=32))
    (4, 'int4 group 32')
    """

    dtype: str = "int8"
    group: int | str = "channel"
    symmetric: bool = True
    clip: str = "max"
    scale_dtype: str | None = None

    def __post_init__(self) -> None:
        if self.dtype not in FORMATS and self.dtype not in _BLOCKS:
            raise unknown(self.dtype, [*FORMATS, *_BLOCKS])
        if self.block:
            self._check_block()
        number = isinstance(self.group, int) and not isinstance(self.group, bool)
        if self.group not in ("tensor", "channel") if not number else self.group < 1:
            raise ValueError(
                f"group: expected 'tensor', 'channel' or a number of rows from 1, got "
                f"{self.group!r}. Pass group=32, say."
            )
        if not self.symmetric and not self._shiftable:
            raise ValueError(
                f"{self.dtype}: expected symmetric=True, for it has no zero point. "
                "Leave it out, or use 'int8', 'int4' or 'int2'."
            )
        if self.clip not in _CLIPS:
            raise ValueError(f"clip: expected one of {_CLIPS}, got {self.clip!r}.")
        if self.scale_dtype not in (None, *_SCALES):
            raise ValueError(
                f"scale_dtype: expected one of {_SCALES} or None for the weight's own, "
                f"got {self.scale_dtype!r}."
            )

    def _check_block(self) -> None:
        if self.group not in ("channel", _BLOCK):
            raise ValueError(
                f"{self.dtype}: expected group={_BLOCK}, which is part of the format, "
                f"got {self.group!r}. Leave it out, or use {self.format.name!r}."
            )
        if self.scale_dtype is not None:
            raise ValueError(
                f"{self.dtype}: expected no scale_dtype, for its scales are powers of "
                f"two in a byte, got {self.scale_dtype!r}. Leave it out."
            )
        object.__setattr__(self, "group", _BLOCK)

    @property
    def block(self) -> bool:
        """Whether scales are powers of two, stored as one exponent byte."""
        return self.dtype in _BLOCKS

    @property
    def format(self) -> Format:
        """How one number is stored."""
        return FORMATS[_BLOCKS[self.dtype][0] if self.block else self.dtype]

    @property
    def bits(self) -> int:
        """Of one number, without its share of a scale."""
        return self.format.bits

    @property
    def integer(self) -> bool:
        """Whether codes are integers."""
        return self.format.kind == "integer"

    @property
    def levels(self) -> tuple[int, int]:
        """The least and the largest code; integers only."""
        return self.format.levels(self.symmetric)

    @property
    def ternary(self) -> bool:
        """Whether there is nothing but minus one, zero and one."""
        return self.integer and self.levels == (-1, 1)

    @property
    def exponent(self) -> int:
        """For block formats: the exponent of the largest power of two a code has."""
        return _BLOCKS[self.dtype][1]

    @property
    def offset(self) -> int:
        """For block formats: what the stored exponent is above that of the scale.

        Numbers of `mxint8` are 64ths of the shared power of two.
        """
        return 6 if self.dtype == "mxint8" else 0

    @property
    def merges(self) -> bool:
        """Whether the row axes of an array are stored as one."""
        return self.format.packed or isinstance(self.group, int)

    @property
    def _shiftable(self) -> bool:
        return self.dtype in ("int8", "int4", "int2")

    def __str__(self) -> str:
        grouped = isinstance(self.group, int) and not self.block
        words = [self.dtype, f"group {self.group}" if grouped else ""]
        words += ["per tensor" if self.group == "tensor" else ""]
        words += ["" if self.symmetric else "asymmetric"]
        words += ["" if self.clip == "max" else self.clip]
        words += [f"scales {self.scale_dtype}" if self.scale_dtype else ""]
        return " ".join(word for word in words if word)


def as_scheme(spec: str | Scheme) -> Scheme:
    """A scheme from a format's name, with the group and range that are usual for it.

    Formats of four bits and fewer share a scale among 32 rows, others among all rows
    of a column. Integers of four bits and fewer take the range of least squared error:
    the largest of 32 weights is not worth half of the levels.

    >>> as_scheme("int4").group, as_scheme("int8").group
    (32, 'channel')
    """
    if isinstance(spec, Scheme):
        return spec
    form = FORMATS.get(spec)
    few = form is not None and form.packed
    searched = few and form.kind == "integer"
    return Scheme(spec, _BLOCK if few else "channel", clip="mse" if searched else "max")
