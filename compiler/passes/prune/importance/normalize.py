"""Scores of different groups made comparable."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

Normalize = Callable[[np.ndarray], np.ndarray]

_SMALL = 1e-8


def normalized(scores: np.ndarray, normalization: str) -> np.ndarray:
    r"""The scores of one group, comparable with those of others.

    `"none"` leaves them, `"mean"`, `"sum"` and `"max"` divide by that of the group,
    `"sentinel"` by its median and `"sentinel_q"` by the element q of the way through
    the sorted scores. `"gaussian"` subtracts the mean and divides by the standard
    deviation (of a sample). `"lamp"` divides by the sum of all that are not smaller:

    $$ s_u \Big/ \sum_{v:\, s_v \ge s_u} s_v $$

    Where it would divide by zero, the scores stay as they are.

    Lee et al., "Layer-adaptive Sparsity for the Magnitude-based Pruning", ICLR 2021,
    https://arxiv.org/abs/2010.07611.

    >>> scores = np.array([1.0, 3.0])
    >>> normalized(scores, "mean"), normalized(scores, "lamp")
    (array([0.5, 1.5]), array([0.25, 1.  ]))
    """
    if normalization.startswith(_SENTINEL):
        return _sentinel(scores, _share(normalization))
    return _NORMALIZATIONS[normalization](scores)


def check(normalization: str) -> None:
    """Checks a name.

    Raises:
        ValueError: if there is none like it.
    """
    known = normalization in _NORMALIZATIONS
    if not known and not (
        normalization.startswith(_SENTINEL) and 0 <= _share(normalization) < 1
    ):
        names = ", ".join((*_NORMALIZATIONS, _SENTINEL, f"{_SENTINEL}_0.25"))
        raise ValueError(
            f"normalization: expected one of {names}, got {normalization!r}."
        )


_SENTINEL = "sentinel"


def _share(name: str) -> float:
    """Which of the sorted scores a sentinel is; nan for a name that is none."""
    share = name.removeprefix(_SENTINEL) or "_0.5"
    try:
        return float(share[1:]) if share[0] == "_" else np.nan
    except ValueError:
        return np.nan


def _sentinel(scores: np.ndarray, share: float) -> np.ndarray:
    return _over(scores, np.sort(scores)[int(share * len(scores))])


def _over(scores: np.ndarray, by: float) -> np.ndarray:
    return scores / by if by else scores


def _gaussian(scores: np.ndarray) -> np.ndarray:
    spread = scores.std(ddof=1) if len(scores) > 1 else 0.0
    return (scores - scores.mean()) / (spread + _SMALL)


def _lamp(scores: np.ndarray) -> np.ndarray:
    order = np.argsort(scores, kind="stable")
    left = np.cumsum(scores[order][::-1])[::-1]
    share = np.divide(scores[order], left, out=np.zeros_like(left), where=left > 0)
    made = np.empty_like(scores)
    made[order] = share
    return made


_NORMALIZATIONS: dict[str, Normalize] = {
    "none": lambda scores: scores,
    "mean": lambda scores: _over(scores, scores.mean()),
    "sum": lambda scores: _over(scores, scores.sum()),
    "max": lambda scores: _over(scores, scores.max()),
    "gaussian": _gaussian,
    "lamp": _lamp,
}
