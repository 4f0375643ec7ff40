"""Arrays as products see them: their row axes as one, in groups that share a scale."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from compiler.passes.quantize.storage.packing import first

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class Layout:
    """How an array's axes become [*before, R, *after], and R becomes groups.

    The row axes are merged into R, which stands where the first of them stood.

    Attributes:
        shape: of the array.
        rows: the axes that are merged.
        stack: axes along which nothing is shared.
        size: how many rows share a scale; None if all do.
        whole: whether columns share a scale too.

    >>> layout = Layout((2, 5, 3, 4), (1, 3), (0,), size=6)
    >>> layout.merged, layout.groups, layout.per_group
    ((2, 20, 3), 4, (2, 4, 3))
    """

    shape: tuple[int, ...]
    rows: tuple[int, ...]
    stack: tuple[int, ...] = ()
    size: int | None = None
    whole: bool = False

    @property
    def axis(self) -> int:
        """Where R is."""
        return sum(a not in self.rows for a in range(self.rows[0]))

    @property
    def merged(self) -> tuple[int, ...]:
        """The shape with the row axes as one."""
        count = math.prod(self.shape[axis] for axis in self.rows)
        return self._with(count, [self.shape[axis] for axis in self._others])

    @property
    def count(self) -> int:
        """How many rows there are: R."""
        return self.merged[self.axis]

    @property
    def group(self) -> int:
        """How many rows share a scale (the last group may be shorter)."""
        most = max(self.count, 1)
        return most if self.size is None else min(self.size, most)

    @property
    def groups(self) -> int:
        """How many groups there are: G, at least one."""
        return max(1, -(-self.count // self.group))

    @property
    def per_group(self) -> tuple[int, ...]:
        """The shape of what groups share: [*before or 1, G, *after or 1]."""
        others = [
            1 if self.whole and axis not in self.stack else self.shape[axis]
            for axis in self._others
        ]
        return self._with(self.groups, others)

    @property
    def per_axis(self) -> tuple[int, ...]:
        """The shape of what all rows share, in the array's axes."""
        shared = set(self.rows)
        if self.whole:
            shared |= set(range(len(self.shape))) - set(self.stack)
        return tuple(1 if a in shared else n for a, n in enumerate(self.shape))

    @property
    def in_group(self) -> tuple[int, ...]:
        """`per_group` beside grouped values: [*before or 1, G, 1, *after or 1]."""
        return self._with_two(self.per_group, 1)

    @property
    def sharing(self) -> tuple[int, ...]:
        """The axes of grouped values along which a scale is shared."""
        return tuple(axis for axis, n in enumerate(self.in_group) if n == 1)

    @property
    def counts(self) -> np.ndarray:
        """How many values share each scale, without padding: one for each group."""
        left = self.count - np.arange(self.groups) * self.group
        rows = np.clip(left, 0, self.group)
        columns = [self.shape[a] for a in self._others if a not in self.stack]
        shared = math.prod(columns) if self.whole else 1
        shape = [1] * (len(self.merged) + 1)
        shape[self.axis] = self.groups
        return np.maximum(rows * shared, 1).reshape(shape)

    def place(self, axis: int) -> int:
        """Where an axis that is no row is in the merged layout."""
        where = self._others.index(axis)
        return where + (where >= self.axis)

    def merge(self, array: Array) -> Array:
        """The array in the merged layout."""
        return jnp.transpose(array, self._order).reshape(self.merged)

    def split(self, merged: Array) -> Array:
        """Undoes `merge`."""
        shape = [self.shape[axis] for axis in self._order]
        inverse = sorted(range(len(shape)), key=self._order.__getitem__)
        return jnp.transpose(merged.reshape(shape), inverse)

    def grouped(self, merged: Array) -> Array:
        """[*before, R, *after] as [*before, G, rows of a group, *after]."""
        widths = [(0, 0)] * merged.ndim
        widths[self.axis] = (0, self.groups * self.group - self.count)
        return jnp.pad(merged, widths).reshape(self._with_two(self.merged, self.group))

    def ungrouped(self, grouped: Array) -> Array:
        """Undoes `grouped`; drops the padding."""
        shape = list(self.merged)
        shape[self.axis] = self.groups * self.group
        return first(grouped.reshape(shape), self.count, self.axis)

    def spread(self, shared: Array) -> Array:
        """Repeats what a group shares for each of its rows: G becomes R, 1 stays."""
        if self.groups == 1:
            return shared
        return first(jnp.repeat(shared, self.group, self.axis), self.count, self.axis)

    @property
    def _others(self) -> list[int]:
        return [axis for axis in range(len(self.shape)) if axis not in self.rows]

    @property
    def _order(self) -> tuple[int, ...]:
        """The array's axes, the rows behind each other."""
        before, after = self._others[: self.axis], self._others[self.axis :]
        return (*before, *self.rows, *after)

    def _with(self, rows: int, others: Sequence[int]) -> tuple[int, ...]:
        return (*others[: self.axis], rows, *others[self.axis :])

    def _with_two(self, shape: Sequence[int], size: int) -> tuple[int, ...]:
        before, after = shape[: self.axis], shape[self.axis + 1 :]
        return (*before, self.groups, size, *after)
