"""How a scheme rounds matrices in their normal form, `[rows, columns]`."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from compiler.passes.quantize.storage import scales
from compiler.passes.quantize.storage.scheme import Scheme

Array = jax.Array


class Range(NamedTuple):
    """What the numbers of a group share; of the numbers' dtype, axes kept.

    Attributes:
        scale: the scale, one that is stored exactly.
        zero: the zero point, or None.
    """

    scale: Array
    zero: Array | None


@dataclasses.dataclass(frozen=True)
class Grid:
    """The numbers that a scheme has, for matrices of one dtype.

    Attributes:
        scheme: what to round to.
        dtype: of the matrices.

    >>> grid = Grid(Scheme("int4", group=2), np.dtype("float32"))
    >>> grid.nearest(jnp.asarray([[7.0], [0.4], [3.5], [2.0]]))[0].ravel().tolist()
    [7.0, 0.0, 3.5, 2.0]
    """

    scheme: Scheme
    dtype: Any

    @property
    def wide(self) -> Any:
        """The dtype it computes in."""
        return np.promote_types(np.float32, np.dtype(self.dtype))

    @property
    def stored(self) -> Any:
        """The dtype that scales are stored in, unless they are powers of two."""
        return np.dtype(self.scheme.scale_dtype or self.dtype)

    def group(self, rows: int) -> int:
        """How many of so many rows share a scale."""
        group = self.scheme.group
        return min(group, max(rows, 1)) if isinstance(group, int) else max(rows, 1)

    def counts(self, rows: int) -> np.ndarray:
        """How many rows each group of so many has; at least one."""
        group = self.group(rows)
        left = rows - np.arange(-(-rows // group)) * group
        return np.clip(left, 1, group)

    def range(self, values: Array, rows: np.ndarray) -> Range:
        """The range chosen for each of some groups, `[groups, rows, columns]`.

        Args:
            values: of the groups; zero where there are fewer rows.
            rows: how many rows each group has, `[groups]`.
        """
        together = self.scheme.group == "tensor"
        counts = np.reshape(rows, (-1, 1, 1)) * (values.shape[2] if together else 1)
        axes = (1, 2) if together else (1,)
        return Range(*scales.choose(self.scheme, values, axes, counts, self.stored))

    def round(self, values: Array, shared: Range) -> Array:
        """The nearest numbers of a range."""
        codes = scales.codes(self.scheme, values, *shared)
        dtype = shared.scale.dtype
        return scales.units(self.scheme, codes, shared.zero, dtype) * shared.scale

    def nearest(self, matrix: Array) -> tuple[Array, Range]:
        """Rounds `[rows, columns]` to the nearest; ranges are `[groups, columns]`."""
        rows, columns = matrix.shape
        group = self.group(rows)
        whole = jnp.pad(matrix.astype(self.wide), ((0, -rows % group), (0, 0)))
        grouped = jnp.reshape(whole, (-1, group, columns))
        shared = self.range(grouped, self.counts(rows))
        values = jnp.reshape(self.round(grouped, shared), whole.shape)[:rows]
        return values, jax.tree.map(lambda x: jnp.squeeze(x, 1), shared)
