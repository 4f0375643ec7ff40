"""One array under a scheme: what is stored, how it is made, and read back."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from compiler.passes.quantize.storage import packing, scales
from compiler.passes.quantize.storage.layout import Layout
from compiler.passes.quantize.storage.scheme import Scheme
from mapping.core import register

Array = jax.Array


@register("value", "encoding")
@dataclasses.dataclass(frozen=True)
class Encoding:
    r"""How one array is stored: its codes, its scales and, maybe, its zero points.

    $$ W_{ic} \approx s_{g(i)c}\,(Q_{ic} - z_{g(i)c}) $$

    Stored are `"scale"`, `"values"` and, if the scheme is asymmetric, `"zero"`. If the
    scheme packs or groups, the row axes become one axis R, which stands where the
    first of them stood; codes are packed along it (see
    `compiler.passes.quantize.storage.packing`). Else the array keeps its axes.

    Attributes:
        scheme: the format and how scales are shared.
        shape: of the array.
        dtype: of the array: a floating one.
        rows: the axes a product sums over: scales are shared along them.
        stack: axes that number matrices; nothing is shared along them. All others
            are columns.

    Raises:
        ValueError: if the axes are not the array's, or its dtype is not floating.

    >>> code = Encoding(Scheme("int4", group=2), (5, 3), "float32", rows=(0,))
    >>> {name: part.shape for name, part in code.specs.items()}
    {'scale': (3, 3), 'values': (3, 3)}
    >>> code.decode(code.encode(jnp.ones((5, 3)))).shape, code.bytes
    ((5, 3), 45)
    """

    scheme: Scheme
    shape: tuple[int, ...]
    dtype: str
    rows: tuple[int, ...]
    stack: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(self.shape))
        for name in ("rows", "stack"):
            object.__setattr__(self, name, tuple(sorted(getattr(self, name))))
        object.__setattr__(self, "dtype", str(np.dtype(self.dtype)))
        axes = self.rows + self.stack
        if not self.rows or len({*axes} & {*range(len(self.shape))}) < len(axes):
            raise ValueError(
                f"rows={self.rows}, stack={self.stack}: expected at least one row and "
                f"different axes of an array of {len(self.shape)} axes."
            )
        if not jnp.issubdtype(self.dtype, jnp.floating):
            raise ValueError(f"{self.dtype}: expected a floating dtype to encode.")

    @property
    def names(self) -> tuple[str, ...]:
        """What is stored."""
        return ("scale", "values") + (() if self.scheme.symmetric else ("zero",))

    @property
    def specs(self) -> dict[str, jax.ShapeDtypeStruct]:
        """The shape and dtype of each part."""
        values = list(self.merged if self.scheme.merges else self.shape)
        stored = self.scheme.format.stored
        if self.scheme.format.packed:
            values[self.axis] = packing.packed(values[self.axis], self.scheme.bits)
            stored = "uint8"
        found = {
            "scale": (self._shared, self._scale_dtype),
            "values": (tuple(values), jnp.dtype(stored)),
            "zero": (self._shared, jnp.dtype("int8")),
        }
        return {name: jax.ShapeDtypeStruct(*found[name]) for name in self.names}

    @property
    def bytes(self) -> int:
        """Of all parts together."""
        return sum(math.prod(s.shape) * s.dtype.itemsize for s in self.specs.values())

    @property
    def layout(self) -> Layout:
        """How the array's axes become rows, columns and groups."""
        group = self.scheme.group
        size = group if isinstance(group, int) else None
        return Layout(self.shape, self.rows, self.stack, size, group == "tensor")

    @property
    def axis(self) -> int:
        """Where the row axis is in the merged layout."""
        return self.layout.axis

    @property
    def merged(self) -> tuple[int, ...]:
        """The array's shape with its row axes as one: [*before, R, *after]."""
        return self.layout.merged

    @property
    def count(self) -> int:
        """How many rows there are: R."""
        return self.layout.count

    @property
    def group(self) -> int:
        """How many rows share a scale (the last group may be shorter)."""
        return self.layout.group

    @property
    def groups(self) -> int:
        """How many groups of rows there are: G, at least one."""
        return self.layout.groups

    def encode(
        self, array: Any, scale: Any = None, zero: Any = None
    ) -> dict[str, Array]:
        """Stores an array.

        Subnormal numbers become zero, and what is next to overflow (above 4e37 in
        float32 and bfloat16, 4e4 in float16) is cut there.

        Args:
            array: of the encoding's shape; finite.
            scale: used instead of a chosen one; as it is stored.
            zero: used instead of a chosen one; as it is stored.

        Raises:
            ValueError: if a shape is not the encoding's, or a zero point comes where
                there is none.
        """
        _check("array", jnp.shape(array), self.shape)
        for name, part in (("scale", scale), ("zero", zero)):
            if part is not None:
                self._check_given(name, part)
        return _encode(self, array, scale, zero)

    def _encode(self, array: Array, scale: Any, zero: Any) -> dict[str, Array]:
        layout, scheme = self.layout, self.scheme
        values = layout.grouped(layout.merge(self._tamed(array)))
        step, shift = self._given_scale(scale), self._given_zero(zero)
        if step is None:
            axes, counts = layout.sharing, layout.counts
            chosen = scales.choose(scheme, values, axes, counts, self._scale_dtype)
            step, shift = chosen[0], chosen[1] if shift is None else shift
        elif shift is None and not scheme.symmetric:
            low = jnp.min(values, layout.sharing, keepdims=True, initial=0)
            shift = scales.zero(scheme, low, step)
        codes = layout.ungrouped(scales.codes(scheme, values, step, shift))
        kept = scales.stored(scheme, step, self._scale_dtype)
        parts = {"scale": kept.reshape(self._shared), "values": self._pack(codes)}
        if shift is not None:
            parts["zero"] = shift.astype(jnp.int8).reshape(self._shared)
        return parts

    def decode(self, parts: Mapping[str, Array]) -> Array:
        """The array that parts stand for; zero stands for zero exactly."""
        units, shift = self.codes(parts).astype(self._wide), self.zeros(parts)
        if shift is not None:
            units = units - self.spread(shift.astype(self._wide))
        scale = self.spread(self.scales(parts).astype(self._wide))
        return self.split(units * scale).astype(self.dtype)

    def codes(self, parts: Mapping[str, Array]) -> Array:
        """Unpacked codes in the merged layout.

        Returns:
            int8 for integers, float32 for codebooks, float8 as it is.
        """
        values, form = parts["values"], self.scheme.format
        if form.packed:
            signed = form.kind == "integer"
            values = packing.unpack(values, form.bits, self.axis, self.count, signed)
        elif not self.scheme.merges:
            values = self.merge(values)
        return form.value(values)

    def scales(self, parts: Mapping[str, Array]) -> Array:
        """Scales in the merged layout: [*before or 1, G, *after or 1], floating."""
        return scales.read(self.scheme, parts["scale"]).reshape(self.layout.per_group)

    def zeros(self, parts: Mapping[str, Array]) -> Array | None:
        """Zero points (int8) in the layout of the scales; None if there are none."""
        if self.scheme.symmetric:
            return None
        return parts["zero"].reshape(self.layout.per_group)

    def merge(self, array: Array) -> Array:
        """An array of the encoding's shape in the merged layout."""
        return self.layout.merge(array)

    def split(self, merged: Array) -> Array:
        """An array of the merged layout in the encoding's shape."""
        return self.layout.split(merged)

    def spread(self, shared: Array) -> Array:
        """Repeats what a group shares for each of its rows: G becomes R, 1 stays."""
        return self.layout.spread(shared)

    def sliced(self, axis: int) -> Encoding:
        """The encoding of one index of a stack axis.

        Raises:
            ValueError: if the axis is none of the stack's.
        """
        self._check_stack(axis)

        def moved(axes: Sequence[int]) -> tuple[int, ...]:
            return tuple(a - (a > axis) for a in axes if a != axis)

        shape = tuple(n for a, n in enumerate(self.shape) if a != axis)
        rows, stack = moved(self.rows), moved(self.stack)
        return Encoding(self.scheme, shape, self.dtype, rows, stack)

    def place(self, axis: int) -> int:
        """Where a stack axis is in the stored parts.

        Raises:
            ValueError: if the axis is none of the stack's.
        """
        self._check_stack(axis)
        return self.layout.place(axis) if self.scheme.merges else axis

    def __str__(self) -> str:
        axes = ", ".join(
            f"{n} rows"
            if a in self.rows
            else f"{n} stacked"
            if a in self.stack
            else f"{n}"
            for a, n in enumerate(self.shape)
        )
        return f"{self.scheme} of {self.dtype} [{axes}]"

    @property
    def _wide(self) -> Any:
        """The dtype that is computed in."""
        names = ["float32", self.dtype, self.scheme.scale_dtype or self.dtype]
        return jax.dtypes.canonicalize_dtype(max(map(jnp.dtype, names), key=_size))

    @property
    def _scale_dtype(self) -> Any:
        name = "uint8" if self.scheme.block else self.scheme.scale_dtype or self.dtype
        return jnp.dtype(name)

    @property
    def _shared(self) -> tuple[int, ...]:
        """The shape of the scales as they are stored."""
        return self.layout.per_group if self.scheme.merges else self.layout.per_axis

    def _tamed(self, array: Array) -> Array:
        """Values that neither vanish nor, decoded, overflow, in the wide dtype.

        Subnormal numbers are zero for some processors, so they are for all.
        """
        most = min(
            float(jnp.finfo(self.dtype).max) * 0.7, float(jnp.finfo(self._wide).max) / 8
        )
        values = jnp.clip(array.astype(self._wide), -most, most)
        tiny = float(jnp.finfo(self._wide).tiny)
        return jnp.where(jnp.abs(values) < tiny, np.asarray(0, self._wide), values)

    def _pack(self, codes: Array) -> Array:
        if self.scheme.format.packed:
            return packing.pack(codes, self.scheme.bits, self.axis)
        return codes if self.scheme.merges else self.split(codes)

    def _given_scale(self, scale: Any) -> Array | None:
        """A scale that is given, rounded as it is stored, beside grouped values."""
        if scale is None:
            return None
        if not self.scheme.block:
            wide = scale.astype(self._wide)
            scale = scales.stored(self.scheme, wide, self._scale_dtype)
        read = scales.read(self.scheme, scale).astype(self._wide)
        return read.reshape(self.layout.in_group)

    def _given_zero(self, zero: Any) -> Array | None:
        if zero is None:
            return None
        return zero.astype(self._wide).reshape(self.layout.in_group)

    def _check_given(self, name: str, part: Any) -> None:
        if name not in self.names:
            raise ValueError(
                f"{name}: expected none, for {self.scheme} has none. Leave it out, or "
                "use symmetric=False."
            )
        _check(name, jnp.shape(part), self._shared)
        if self.scheme.block and jnp.result_type(part) != jnp.uint8:
            raise ValueError(
                f"{name}: expected exponents in uint8, got {jnp.result_type(part)}. "
                "Pass the stored part."
            )

    def _check_stack(self, axis: int) -> None:
        if axis not in self.stack:
            raise ValueError(f"axis {axis}: expected one of the stack's: {self.stack}.")


@partial(jax.jit, static_argnums=0)
def _encode(code: Encoding, *arrays: Any) -> dict[str, Array]:
    """Compiled once for all arrays that are stored alike."""
    return code._encode(*arrays)


def _size(dtype: np.dtype[Any]) -> int:
    return dtype.itemsize


def _check(name: str, got: Sequence[int], expected: Sequence[int]) -> None:
    if tuple(got) != tuple(expected):
        raise ValueError(f"{name}: expected shape {tuple(expected)}, got {tuple(got)}.")
