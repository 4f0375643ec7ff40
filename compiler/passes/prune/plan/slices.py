"""Arrays without some positions of some axes, and back with zeros there."""

from __future__ import annotations

from collections.abc import Mapping as Dict
from typing import Any

import jax
import numpy as np

from compiler.passes.prune.plan.shardings import fit, placed, sharding_of, whole


def take(value: Any, kept: Dict[int, np.ndarray]) -> Any:
    """The positions that stay on some axes of an array, or of its shape.

    Arrays of numpy stay numpy's; those of jax may be traced, and those on a mesh keep
    their sharding, except on axes that it does not divide any more.

    >>> take(np.arange(6).reshape(2, 3), {1: np.array([0, 2])}).tolist()
    [[0, 2], [3, 5]]
    """
    sizes = {axis: len(stay) for axis, stay in kept.items()}
    if isinstance(value, jax.ShapeDtypeStruct):
        sharding, _ = fit(value.sharding, sizes)
        return value.update(shape=sized(value.shape, kept), sharding=sharding)
    if is_host(value):
        for axis, stay in kept.items():
            value = np.take(value, stay, axis)
        return value
    sharding = sharding_of(value)
    if sharding is None:
        return _selected(value, kept)
    chosen = _selected(placed(value, whole(sharding, kept)), kept)
    return placed(chosen, fit(sharding, sizes)[0])


def _selected(value: Any, kept: Dict[int, np.ndarray]) -> Any:
    for axis, stay in kept.items():
        if len(stay) and stay[-1] - stay[0] == len(stay) - 1:
            first, last = int(stay[0]), int(stay[-1])
            value = jax.lax.slice_in_dim(value, first, last + 1, axis=axis)
        else:
            value = value[_along(axis, stay)]
    return value


def spread(value: Any, kept: Dict[int, np.ndarray], sizes: Dict[int, int]) -> Any:
    """What [`take`][] took, at its positions again, with zeros elsewhere.

    Args:
        value: an array, or its shape.
        kept: by axis, the positions its elements go to.
        sizes: by axis, how many positions there are then.

    >>> spread(np.array([7, 8]), {0: np.array([1, 3])}, {0: 4}).tolist()
    [0, 7, 0, 8]
    """
    shape = tuple(sizes.get(axis, n) for axis, n in enumerate(value.shape))
    if isinstance(value, jax.ShapeDtypeStruct):
        sharding, _ = fit(value.sharding, sizes)
        return value.update(shape=shape, sharding=sharding)
    if is_host(value):
        wide = np.zeros(shape, value.dtype)
        places = (kept.get(axis, np.arange(n)) for axis, n in enumerate(shape))
        wide[np.ix_(*places)] = value
        return wide
    sharding = sharding_of(value)
    if sharding is None:
        return _filled(value, kept, sizes)
    wide = _filled(placed(value, whole(sharding, kept)), kept, sizes)
    return placed(wide, fit(sharding, sizes)[0])


def _filled(value: Any, kept: Dict[int, np.ndarray], sizes: Dict[int, int]) -> Any:
    for axis, stay in kept.items():
        sources = np.full(sizes[axis], len(stay))  # beyond the end: filled
        sources[stay] = np.arange(len(stay))
        value = value.at[_along(axis, sources)].get(mode="fill", fill_value=0)
    return value


def is_host(value: Any) -> bool:
    """Whether an array is one of numpy."""
    return isinstance(value, np.ndarray | np.generic)


def _along(axis: int, positions: np.ndarray) -> tuple[Any, ...]:
    return (slice(None),) * axis + (positions,)


def sized(shape: tuple[int, ...], kept: Dict[int, np.ndarray]) -> tuple[int, ...]:
    """A shape when some axes are cut."""
    return tuple(len(kept[a]) if a in kept else n for a, n in enumerate(shape))
