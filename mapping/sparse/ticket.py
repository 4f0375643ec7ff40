"""What a search for lottery tickets found: a curve, and the tickets on it."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import numpy as np

from mapping.errors import UnknownPathError
from mapping.paths import Tree, leaf_paths, nearest, path_string
from mapping.sparse.state import masked


@dataclasses.dataclass(frozen=True)
class Round:
    """One point of the curve.

    Attributes:
        density: the share of weights kept, of those that are made sparse.
        score: what evaluating the trained ticket gave.
        control: what random masks of the same counts gave; None where none was tried.
    """

    density: float
    score: float
    control: float | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Lottery:
    """The rounds of a search, from dense to sparse, as data. See [`lottery`][].

    Attributes:
        rounds: the curve; the first is the dense network.
        start: what tickets are rewound to, by path.
        masks: of each round, by path.
        trained: what the last round trained, by path.
        seed: of its keys.

    >>> found = Lottery((Round(1.0, 0.98), Round(0.5, 0.975, 0.95)), {}, ({}, {}), {})
    >>> print(found)
      round   density     score   control
          0  100.0000%   0.98000         -
          1   50.0000%   0.97500   0.95000
    >>> found.winner(within=0.01)
    1
    """

    rounds: tuple[Round, ...]
    start: dict[str, np.ndarray]
    masks: tuple[dict[str, np.ndarray], ...]
    trained: dict[str, np.ndarray]
    seed: int = 0

    def winner(self, within: float = 0.01) -> int:
        """The number of the sparsest round whose score is that near to the dense one.

        Args:
            within: how much less than the dense network's it may be.
        """
        enough = self.rounds[0].score - within
        return max(
            number for number, row in enumerate(self.rounds) if row.score >= enough
        )

    def ticket(self, params: Tree, number: int | None = None) -> Tree:
        """The ticket itself: the weights to train from, zero where it has none.

        Args:
            params: a tree of the same paths, whose values are not looked at.
            number: of the round; the [`winner`][mapping.sparse.Lottery.winner]'s.

        Raises:
            UnknownPathError: if the params have other paths.
        """
        masks = self.masks[self.winner() if number is None else number]
        return rebuilt(params, ticket_of(self.start, masks))

    def arrays(self) -> dict[str, np.ndarray]:
        """All of it as arrays by name, such as `numpy.savez` writes.

        >>> found = Lottery((Round(1.0, 0.5),), {"a": np.ones(1)}, ({},), {})
        >>> Lottery.of(found.arrays()).rounds == found.rounds
        True
        """
        rows = [dataclasses.astuple(row) for row in self.rounds]  # None is NaN
        arrays = {"rounds": np.array(rows, float), "seed": np.array(self.seed)}
        arrays |= {f"start/{path}": leaf for path, leaf in self.start.items()}
        arrays |= {f"trained/{path}": leaf for path, leaf in self.trained.items()}
        for number, masks in enumerate(self.masks):
            arrays |= {f"masks/{number}/{path}": m for path, m in masks.items()}
        return arrays

    @staticmethod
    def of(arrays: Any) -> Lottery:
        """Reads what [`arrays`][mapping.sparse.Lottery.arrays] wrote."""
        rounds = tuple(
            Round(density, score, None if math.isnan(control) else control)
            for density, score, control in arrays["rounds"].tolist()
        )

        def under(name: str) -> dict[str, np.ndarray]:
            return {k[len(name) :]: arrays[k] for k in arrays if k.startswith(name)}

        masks = tuple(under(f"masks/{number}/") for number in range(len(rounds)))
        seed = int(arrays["seed"])
        return Lottery(rounds, under("start/"), masks, under("trained/"), seed)

    def __str__(self) -> str:
        lines = [f"{'round':>7}{'density':>10}{'score':>10}{'control':>10}"]
        for number, row in enumerate(self.rounds):
            control = "-" if row.control is None else f"{row.control:.5f}"
            lines.append(f"{number:7}{row.density:11.4%}{row.score:10.5f}{control:>10}")
        return "\n".join(lines)


def ticket_of(
    start: dict[str, np.ndarray], masks: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """The leaves to start from, masked where there is a mask."""
    return {
        path: masked(leaf, masks[path]) if path in masks else leaf
        for path, leaf in start.items()
    }


def rebuilt(params: Tree, leaves: dict[str, np.ndarray]) -> Tree:
    """A tree like `params` with these leaves.

    Raises:
        UnknownPathError: if one is missing.
    """
    for path in leaf_paths(params):
        if path not in leaves:
            raise UnknownPathError(
                f"{path}: none of {len(leaves)} leaves of the lottery. Nearest: "
                f"{nearest(path, leaves)}. Pass params of the same network."
            )
    return jax.tree_util.tree_map_with_path(
        lambda path, _: jax.numpy.asarray(leaves[path_string(path)]), params
    )
