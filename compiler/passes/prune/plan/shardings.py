"""Shardings of what is cut: kept where they divide it, dropped where they do not."""

from __future__ import annotations

import math
from collections.abc import Container
from collections.abc import Mapping as Dict
from typing import Any

import jax
import jax.core
from jax.sharding import NamedSharding, PartitionSpec


def fitted(
    spec: PartitionSpec, mesh: Any, sizes: Dict[int, int]
) -> tuple[PartitionSpec, tuple[int, ...]]:
    """A spec for an array some axes of which are shorter now, and the axes it lost.

    Args:
        spec: what it was.
        mesh: over which; sizes by name.
        sizes: by axis, what is left of those that are cut.
    """
    lost = tuple(
        axis
        for axis, names in enumerate(spec)
        if axis in sizes and sizes[axis] % _parts(names, mesh)
    )
    return (_without(spec, lost) if lost else spec), lost


def fit(sharding: Any, sizes: Dict[int, int]) -> tuple[Any, tuple[int, ...]]:
    """Like [`fitted`][], for a `NamedSharding`; others are left to XLA."""
    if not isinstance(sharding, NamedSharding):
        return sharding, ()
    spec, lost = fitted(sharding.spec, sharding.mesh, sizes)
    return (sharding.update(spec=spec) if lost else sharding), lost


def whole(sharding: NamedSharding, axes: Container[int]) -> NamedSharding:
    """A sharding that keeps some axes in one piece."""
    return sharding.update(spec=_without(sharding.spec, axes))


def sharding_of(value: Any) -> NamedSharding | None:
    """How an array lies on a mesh, if it does.

    Of one that is traced it is known where the mesh's axes are explicit.
    """
    if isinstance(value, jax.core.Tracer):
        found = jax.typeof(value).sharding
        return found if any(found.spec) else None
    found = getattr(value, "sharding", None)
    return found if isinstance(found, NamedSharding) else None


def placed(value: Any, sharding: NamedSharding) -> Any:
    """An array under another sharding."""
    if isinstance(value, jax.core.Tracer):
        return jax.sharding.reshard(value, sharding)
    return jax.device_put(value, sharding)


def _without(spec: PartitionSpec, axes: Container[int]) -> PartitionSpec:
    parts = (None if axis in axes else names for axis, names in enumerate(spec))
    return spec.update(partitions=tuple(parts))


def _parts(names: Any, mesh: Any) -> int:
    """Into how many parts an axis is split."""
    if names is None or names is PartitionSpec.UNCONSTRAINED:
        return 1
    listed = names if isinstance(names, tuple) else (names,)
    return math.prod(mesh.shape[name] for name in listed)
