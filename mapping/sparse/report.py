"""How sparse a tree is, leaf by leaf."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from mapping.paths import Tree, leaf_paths


@dataclasses.dataclass(frozen=True)
class Sparsity:
    """The zeros of a tree, by path. Made by [`sparsity`][].

    Attributes:
        leaves: by path its shape and how many of its numbers are not zero.

    >>> Sparsity((("kernel", (2, 2), 1),))["kernel"]
    0.75
    """

    leaves: tuple[tuple[str, tuple[int, ...], int], ...]

    def __getitem__(self, path: str) -> float:
        """The share of zeros of one leaf."""
        for name, shape, kept in self.leaves:
            if name == path:
                return _share(math.prod(shape), kept)
        raise KeyError(path)

    @property
    def size(self) -> int:
        """How many numbers there are."""
        return sum(math.prod(shape) for _, shape, _ in self.leaves)

    @property
    def kept(self) -> int:
        """How many of them are not zero."""
        return sum(kept for _, _, kept in self.leaves)

    @property
    def total(self) -> float:
        """The share of zeros of all."""
        return _share(self.size, self.kept)

    def __str__(self) -> str:
        rows = [(path, str([*shape]), kept, self[path]) for path, shape, kept in
                self.leaves]  # fmt: skip
        rows.append(("total", str([self.size]), self.kept, self.total))
        width = max(len(path) for path, *_ in rows)
        across = max(len(shape) for _, shape, *_ in rows)
        return "\n".join(
            f"{path:{width}}  {shape:>{across}}  {kept:>12,}  {share:8.2%}"
            for path, shape, kept, share in rows
        )


def sparsity(tree: Tree) -> Sparsity:
    """Counts the zeros of params, or what masks leave out, by path.

    Args:
        tree: arrays; [`read_masks`][] of an optimizer's state for its masks.

    >>> print(sparsity({"kernel": np.eye(4), "bias": np.ones(2)}))
    bias       [2]             2     0.00%
    kernel  [4, 4]             4    75.00%
    total     [18]             6    66.67%
    """
    return Sparsity(
        tuple(
            (path, np.shape(leaf), int(np.count_nonzero(np.asarray(leaf))))
            for path, leaf in leaf_paths(tree).items()
        )
    )


def _share(size: int, kept: int) -> float:
    return 1 - kept / size if size else 0.0
