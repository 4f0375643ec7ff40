"""What adapters begin with."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from compiler.passes.adapt.plan import Adapter
from compiler.passes.factorize.rewriting import Report, factored, factorise

_BLOCK = 1024


def gaussian(adapters: Sequence[Adapter], seed: int) -> dict[str, jax.Array]:
    """A of each adapter by its path, in float32: normal with variance 1 / m.

    They are drawn as one array of blocks, each of a key of its own, since a program
    with a draw for every adapter takes long to compile.
    """
    shapes = [adapter.matrix.factors(adapter.rank)[0] for adapter in adapters]
    counts = [-(-math.prod(shape) // _BLOCK) for shape in shapes]
    names = np.repeat([_number(adapter.a) for adapter in adapters], counts)
    places = np.concatenate([np.arange(count) for count in counts])

    def draw(name: Any, place: Any) -> jax.Array:
        key = jax.random.fold_in(jax.random.key(seed), name)
        return jax.random.normal(jax.random.fold_in(key, place), (_BLOCK,), jnp.float32)

    drawn = jax.vmap(draw)(names.astype(np.uint32), places.astype(np.uint32))
    parts = jnp.split(drawn, np.cumsum(counts)[:-1])
    return {
        adapter.a: part.ravel()[: math.prod(shape)].reshape(shape)
        / math.sqrt(adapter.matrix.extents[1])
        for adapter, shape, part in zip(adapters, shapes, parts, strict=True)
    }


def principal(adapter: Adapter, value: Any) -> tuple[Any, Any, Any]:
    """What remains of a weight, and its leading singular vectors as A and B."""
    left, right = factorise(adapter.matrix, value, adapter.rank)
    root = math.sqrt(adapter.scale)
    part = factored(adapter.matrix, left, right, Report()).dense()
    return value - part, left / root, right / root


def _number(path: str) -> int:
    """A number for a path, the same in every process."""
    return int.from_bytes(hashlib.sha256(path.encode()).digest()[:4], "big")
