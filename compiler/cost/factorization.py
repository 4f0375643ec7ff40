"""The arithmetic of matrix factorizations.

Golub & Van Loan, "Matrix Computations", 4th edition, 2013. Iterative ones take about
this on ordinary matrices.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Mapping as Dict
from typing import Any


def factorization(name: str, rows: int, columns: int, params: Dict[str, Any]) -> int:
    """Counts the operations of one real matrix.

    >>> factorization("cholesky", 6, 6, {})
    72
    """
    m, n = max(rows, columns), min(rows, columns)
    return round(FACTORIZATIONS[name](m, n, params))


def _svd(m: int, n: int, params: Dict[str, Any]) -> float:
    vectors = params.get("compute_uv", True)
    wide = params.get("full_matrices", False)
    if not vectors:
        return 4 * m * n * n - 4 * n**3 / 3
    return (4 * m * m * n + 8 * m * n * n if wide else 14 * m * n * n) + 9 * n**3


def _qr(m: int, n: int, params: Dict[str, Any]) -> float:
    factor = 2 * m * n * n - 2 * n**3 / 3
    square = 4 * (m * m * n - m * n * n + n**3 / 3)
    return factor + (square if params.get("full_matrices") else factor)


FACTORIZATIONS: dict[str, Callable[[int, int, Dict[str, Any]], float]] = {
    "cholesky": lambda m, n, _: n**3 / 3,
    "lu": lambda m, n, _: m * n * n - n**3 / 3,
    "qr": _qr,
    "geqrf": lambda m, n, _: 2 * m * n * n - 2 * n**3 / 3,
    "geqp3": lambda m, n, _: 2 * m * n * n - 2 * n**3 / 3,
    "householder_product": lambda m, n, _: 2 * m * n * n - 2 * n**3 / 3,
    "svd": _svd,
    "eigh": lambda m, n, _: 9 * n**3,
    "eig": lambda m, n, _: 25 * n**3,
    "schur": lambda m, n, _: 25 * n**3,
    "hessenberg": lambda m, n, _: 10 * n**3 / 3,
    "tridiagonal": lambda m, n, _: 4 * n**3 / 3,
}
"""For m >= n, by the name of the primitive."""
