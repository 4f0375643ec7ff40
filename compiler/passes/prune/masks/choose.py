"""Which numbers of a weight are kept, by their scores.

Zeros score 0 and every other number more, so that what is zero already goes first, and
choosing again among what was chosen changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from compiler.passes.prune.masks.patterns import Pattern, n_and_m
from compiler.passes.prune.masks.weights import Weight
from mapping.core import masks

Array = np.ndarray[Any, Any]


def ranked(scores: Array, values: Array) -> Array:
    """Scores, zero for what is zero already and above it for all else.

    >>> ranked(np.array([0.0, 0.0, 2.0]), np.array([5.0, 0.0, -1.0])) > 0
    array([ True, False,  True])
    """
    least = np.finfo(scores.dtype).tiny
    return np.where(values == 0, np.zeros((), scores.dtype), np.maximum(scores, least))


def kept(weight: Weight, scores: Array, sparsity: float, pattern: Pattern) -> Array:
    """The mask of one weight, each matrix of its stack for itself.

    Args:
        weight: how the leaf is a weight.
        scores: of the leaf's shape.
        sparsity: the share of zeros, where the pattern does not tell it.
        pattern: where zeros may stand.
    """
    normal = weight.normal(scores)
    pair = n_and_m(pattern)
    if pair is not None:
        return weight.array(masks.n_of_m(normal, *pair, axis=2))
    density = 1 - sparsity
    if isinstance(pattern, tuple):
        each = [masks.blocks(matrix, density, pattern) for matrix in normal]
    else:
        each = [masks.top_k(matrix, density) for matrix in normal]
    return weight.array(np.stack(each))


def kept_together(scores: Mapping[str, Array], sparsity: float) -> dict[str, Array]:
    """The masks of several weights whose numbers all compete with each other."""
    if not scores:
        return {}
    flat = np.concatenate([one.ravel() for one in scores.values()])
    mask = masks.top_k(flat, 1 - sparsity)
    ends = np.cumsum([one.size for one in scores.values()])[:-1]
    parts = np.split(mask, ends)
    return {
        path: part.reshape(one.shape)
        for (path, one), part in zip(scores.items(), parts, strict=True)
    }


def kept_per_output(weight: Weight, scores: Array, sparsity: float) -> Array:
    """The mask of one weight where numbers compete that make the same output."""
    normal = weight.normal(scores)
    stack, outer, features, columns = normal.shape
    rows = normal.reshape(stack, outer * features, columns)
    last = masks.count(rows.shape[1], 1 - sparsity)
    best = np.argsort(-rows, axis=1, kind="stable")[:, :last]
    mask = np.zeros(rows.shape, bool)
    np.put_along_axis(mask, best, True, axis=1)
    return weight.array(mask.reshape(normal.shape))
