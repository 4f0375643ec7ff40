"""How large a rank: given, from the energy to keep, or from a budget of parameters."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import Any

import numpy as np

from compiler.passes.factorize.matrix import Matrix

Spectra = dict[str, np.ndarray]
"""By path: the singular values of each matrix of a stack, (stack, min(m, n))."""


def spectrum(matrix: Matrix, value: Any) -> np.ndarray:
    """The singular values of a weight, largest first, in float64."""
    array = np.asarray(value).astype(np.float64)
    order = (*matrix.stack, *matrix.rows, *matrix.columns)
    stacked = array.transpose(order).reshape(matrix.extents)
    return np.linalg.svd(stacked, compute_uv=False)


def energy(values: np.ndarray, rank: int) -> float:
    r"""The share of the squares kept by a rank, in the worst matrix of a stack.

    $$ e_r = \sum_{i \le r} \sigma_i^2 / \sum_i \sigma_i^2 $$

    >>> energy(np.array([[2.0, 1.0]]), 1)
    0.8
    """
    squares = values**2
    total = squares.sum(-1)
    kept = squares[:, :rank].sum(-1)
    shares = np.divide(kept, total, out=np.ones_like(total), where=total > 0)
    return float(shares.min())


def rank_of_energy(values: np.ndarray, wanted: float) -> int:
    """The smallest rank that keeps this share of every matrix of a stack.

    >>> rank_of_energy(np.array([[2.0, 1.0, 0.0]]), 0.9)
    2
    """
    ranks = range(1, values.shape[-1] + 1)
    return next((r for r in ranks if energy(values, r) >= wanted), len(ranks))


def size(matrix: Matrix, rank: int) -> int:
    """How many numbers two factors of this rank hold."""
    stack, rows, columns = matrix.extents
    return stack * rank * (rows + columns)


def largest(matrix: Matrix) -> int:
    """The largest rank whose factors hold fewer numbers than the weight; maybe zero."""
    _, rows, columns = matrix.extents
    return (rows * columns - 1) // (rows + columns)


def ranks_of_budget(
    matrices: Sequence[Matrix], spectra: Spectra, budget: int
) -> dict[str, int]:
    """Spends a number of parameters on ranks, where they keep the most first.

    Each weight begins at rank one; then the next singular value is bought that keeps
    the largest share of its weight for each parameter. A weight whose factors would
    be as large as itself stays whole, and is left out of the result.

    Raises:
        ValueError: if rank one everywhere is more than the budget.
    """
    ranks = {matrix.path: 1 for matrix in matrices}
    spent = sum(size(matrix, 1) for matrix in matrices)
    if spent > budget:
        raise ValueError(
            f"low_rank: expected a budget of at least {spent} numbers for the weights "
            f"it may factorise (rank one everywhere), got {max(budget, 0)}. Allow "
            "more, or name more weights with path."
        )
    heap = [(-_gain(m, spectra[m.path], 1), i) for i, m in enumerate(matrices)]
    heapq.heapify(heap)
    while heap:
        _, i = heapq.heappop(heap)
        matrix = matrices[i]
        rank = ranks[matrix.path] + 1
        whole = matrix.extents[0] * matrix.extents[1] * matrix.extents[2]
        cost = min(size(matrix, rank), whole) - size(matrix, rank - 1)
        if spent + cost > budget:
            continue
        spent += cost
        ranks[matrix.path] = rank
        if rank <= largest(matrix):
            heapq.heappush(heap, (-_gain(matrix, spectra[matrix.path], rank), i))
    return {m.path: ranks[m.path] for m in matrices if ranks[m.path] <= largest(m)}


def _gain(matrix: Matrix, values: np.ndarray, rank: int) -> float:
    """The share of a weight that one more rank keeps, for each parameter it costs."""
    if rank >= values.shape[-1]:
        return 0.0
    total = float((values**2).sum())
    share = float((values[:, rank] ** 2).sum()) / total if total else 0.0
    return share / size(matrix, 1)
