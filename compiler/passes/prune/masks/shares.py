"""Sparsities of weights by their shapes."""

from __future__ import annotations

from collections.abc import Mapping

from compiler.passes.prune.masks.weights import Weight
from mapping.core import shares


def sparsities(weights: Mapping[str, Weight], sparsity: float) -> dict[str, float]:
    """The sparsity of each weight, so that all together have this one.

    Every matrix of a stack counts for itself, and so all of a stack get the same.

    >>> kernel = Weight("a", (64, 64), (), (), (0,), (1,))
    >>> stack = Weight("b", (4, 8, 8), (0,), (), (1,), (2,))
    >>> found = sparsities({"a": kernel, "b": stack}, 0.9)
    >>> {path: round(share, 3) for path, share in found.items()}
    {'a': 0.929, 'b': 0.433}
    """
    matrices = {
        (path, number): weight.matrix
        for path, weight in weights.items()
        for number in range(weight.extents[0])
    }
    keys = {f"{number}": key for number, key in enumerate(matrices)}
    named = {name: matrices[key] for name, key in keys.items()}
    found = shares.by_shape(named, 1 - sparsity)
    kept = {keys[name]: float(share) for name, share in found.items()}
    return {path: 1 - kept[path, 0] for path in weights}
