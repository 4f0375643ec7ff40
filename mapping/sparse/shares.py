"""Shares by shape: more of small arrays than of large ones is kept."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mapping.sparse.largest import Array


def by_shape(shapes: Mapping[str, tuple[int, ...]], density: Array) -> dict[str, Array]:
    r"""The share kept of each array, by path.

    $$ d_l = \min\left(1,\; \epsilon\, \frac{\sum_i n^l_i}{\prod_i n^l_i}\right) $$

    with the $\epsilon$ at which all arrays together keep the density. Evci et al.,
    2020, https://arxiv.org/abs/1911.11134.

    Args:
        shapes: $n^l$ by path.
        density: the share kept of all, a number or a traced float32.

    >>> found = by_shape({"small": (2, 8), "large": (32, 32)}, 0.25)
    >>> {path: round(float(share), 3) for path, share in found.items()}
    {'small': 1.0, 'large': 0.238}
    """
    raw = {path: sum(shape) / _size(shape) for path, shape in shapes.items()}
    paths = sorted(raw, key=lambda path: -raw[path])
    rates = np.array([raw[path] for path in paths])
    parts = np.array([_size(shapes[path]) for path in paths], float)
    found = _filled(rates, parts / max(parts.sum(), 1.0), density)
    by_path = {path: found[place] for place, path in enumerate(paths)}
    return {path: by_path[path] for path in shapes}


def _size(shape: tuple[int, ...]) -> int:
    return max(math.prod(shape), 1)


def _filled(rates: np.ndarray, parts: np.ndarray, density: Array) -> Any:
    """Fills leaves in proportion to their rates, the full ones no further.

    `rates` fall. If the first j are full, the scale of the others follows; the right
    j is the first at which none of them overflows. At it the first j do.
    """
    traced = isinstance(density, jax.Array)
    numbers: Any = jnp if traced else np
    kind: Any = jnp.float32 if traced else np.float64
    rate = kind(rates)
    full = kind(np.concatenate([[0.0], np.cumsum(parts)[:-1]]))
    rest = kind(np.cumsum((rates * parts)[::-1])[::-1])
    scales = (density - full) / rest
    fits = scales * rate <= 1
    last = np.arange(len(rates)) == len(rates) - 1
    shares = numbers.clip(scales[numbers.argmax(fits | last)] * rate, 0, 1)
    return numbers.where(density >= 1, kind(1), shares)
