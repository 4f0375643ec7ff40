"""Known arrays laid out along the axes of another array.

Such an array has the rank of what it is meant for and extent 1 along every axis it is
constant along, or it is a scalar and fits anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

Shape = Sequence[Any]


def plain(value: Any) -> Any:
    """The value itself; a constant that JAX has not seen yet as a numpy array.

    What is computed of numpy arrays is a constant again, and no equation.
    """
    return value if isinstance(value, jax.Array) else np.asarray(value)


def reshaped(value: Any, shape: Shape) -> Any:
    """The value in another shape."""
    if np.shape(value) == tuple(shape):
        return value
    if isinstance(value, np.ndarray | np.generic):
        return np.reshape(value, shape)
    return jax.lax.reshape(value, tuple(shape))


def widened(value: Any, shape: Shape) -> Any:
    """The value broadcast to a shape of the same rank, or from a scalar."""
    if np.shape(value) == tuple(shape):
        return value
    if isinstance(value, np.ndarray | np.generic):
        return np.broadcast_to(value, shape)
    axes = tuple(range(len(shape))) if np.ndim(value) else ()
    return jax.lax.broadcast_in_dim(value, tuple(shape), axes)


def lay(value: Any, sources: Sequence[int | None]) -> Any | None:
    """Puts the value's axis `sources[i]` at place i, extent 1 where it is None.

    None if the value varies along an axis that has no place.
    """
    shape = np.shape(value)
    if not shape:
        return value
    if any(n != 1 and i not in sources for i, n in enumerate(shape)):
        return None
    order = [i for i in sources if i is not None]
    order += [i for i in range(len(shape)) if i not in order]
    if order != sorted(order):
        value = value.transpose(order)
    return reshaped(value, [1 if i is None else shape[i] for i in sources])


def refolded(value: Any, old: Shape, new: Shape) -> Any | None:
    """The value after a reshape of what it is laid out along.

    Axes that are merged or split together are constant together, or all spelled out.
    """
    shape = np.shape(value)
    if not shape:
        return value
    groups = _groups(old, new)
    if groups is None or len(shape) != len(old):
        return None
    wide, target = list(shape), [1] * len(new)
    for before, after in groups:
        if any(shape[i] != 1 for i in before):
            for i in before:
                wide[i] = old[i]
            for j in after:
                target[j] = new[j]
    return reshaped(widened(value, wide), target)


def _groups(old: Shape, new: Shape) -> list[tuple[range, range]] | None:
    """Pairs the fewest axes of two shapes that hold the same elements."""
    if any(n == 0 for n in (*old, *new)):
        return None
    ends, starts = _prefixes(old), _prefixes(new)
    groups, before, after = [], 0, 0
    for size, end in ends.items():
        if size in starts:
            groups.append((range(before, end), range(after, starts[size])))
            before, after = end, starts[size]
    return groups


def _prefixes(shape: Shape) -> dict[Any, int]:
    """How many axes, at most, hold a number of elements together."""
    found, size = {1: 0}, 1
    for i, extent in enumerate(shape):
        size = size * extent
        found[size] = i + 1
    return found


def together(*shapes: Shape) -> tuple[Any, ...]:
    """The shape of arrays combined, where extents differ only if one of them is 1."""
    rank = max(map(len, shapes))
    full = [tuple(shape) or (1,) * rank for shape in shapes]
    axes = zip(*full, strict=True)
    return tuple(next((n for n in axis if n != 1), 1) for axis in axes)


def grows(first: Any, second: Any) -> bool:
    """Whether two arrays combined are larger than either; None is no array."""
    if first is None or second is None:
        return False
    shapes = np.shape(first), np.shape(second)
    both = together(*shapes)
    return all(both != (shape or (1,) * len(both)) for shape in shapes)


def times(first: Any, second: Any) -> Any:
    """The product of two arrays; None is 1."""
    if first is None or second is None:
        return second if first is None else first
    return first * second


def plus(first: Any, second: Any) -> Any:
    """The sum of two arrays; None is 0."""
    if first is None or second is None:
        return second if first is None else first
    return first + second


def scaled(value: Any, factor: Any) -> Any:
    """The product of an array, None for 0, and a factor, None for 1."""
    return None if value is None else times(value, factor)
