"""Lottery tickets: small networks inside a large one that train as well as it does."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from mapping.core import fold_name
from mapping.errors import DataError, FieldError
from mapping.fields import check_count
from mapping.paths import Tree, leaf_paths
from mapping.sparse.contest import choose
from mapping.sparse.distributions import Uniform
from mapping.sparse.leaves import sparse_leaves
from mapping.sparse.masks import check_share
from mapping.sparse.patterns import Single
from mapping.sparse.ticket import Lottery, Round, rebuilt, ticket_of


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Trained:
    """What a run returns that has an early state to rewind to.

    Attributes:
        params: at its end.
        early: after its first few steps.

    >>> Trained({"kernel": 2.0}, early={"kernel": 1.0}).early
    {'kernel': 1.0}
    """

    params: Tree
    early: Tree


def lottery(
    train: Callable[[Tree, dict[str, np.ndarray], jax.Array], Any],
    params: Tree,
    *,
    evaluate: Callable[[Tree], Any],
    density: float = 0.1,
    rounds: int = 10,
    distribution: Uniform | None = None,
    pattern: Single | None = None,
    at: tuple[str, ...] = (),
    but: tuple[str, ...] = (),
    control: bool = True,
    seed: int = 0,
    log: Callable[[Lottery], Any] | None = None,
    resume: Lottery | None = None,
) -> Lottery:
    r"""Searches for tickets: trains, prunes the smallest weights, rewinds, repeats.

    $$ d_r = d^{\,r / R}, \qquad r = 0, \dots, R $$

    is the share kept in round $r$; each prunes the same part of what is left. In each
    the weights go back to where they began: to `params`, or to the early state of the
    dense run, if `train` returns one. As a control the same is trained from random
    masks with the same counts in every leaf. Frankle & Carbin, "The Lottery Ticket
    Hypothesis", 2019, https://arxiv.org/abs/1803.03635; rewinding to step k: Frankle
    et al., "Linear Mode Connectivity and the Lottery Ticket Hypothesis", 2020,
    https://arxiv.org/abs/1912.05671.

    Args:
        train: `train(params, masks, key)` returns trained params, or [`Trained`][] to
            rewind to an early state. It gets params that are masked already, masks by
            path, and has to keep pruned weights at zero: with [`hold`][], or with
            [`apply_masks`][] after each update. All rounds have the same shapes and
            dtypes, so under `jax.jit` it is compiled once.
        params: what the dense run starts from.
        evaluate: of trained params, a number, the larger the better.
        density: the share of weights kept at last.
        rounds: in how many steps it is reached; 10 to a tenth prune 20% each.
        distribution: [`global_`][] by default, or [`uniform`][], [`erk`][].
        pattern: what is pruned together.
        at: globs of what is pruned, instead of the kernels (see [`sparse_leaves`][]).
        but: globs of what among these is not.
        control: whether random masks are trained too.
        seed: of the keys `train` gets, and of random masks.
        log: called with what was found so far, after each round.
        resume: an earlier result, with the same settings: its rounds are not repeated.

    Returns:
        The curve, with the masks of every round.

    Raises:
        FieldError: if a number is out of range.
        DataError: if what is to be resumed has other settings.
        UnknownPathError: if a glob names none of the params.

    >>> from mapping.sparse import apply_masks
    >>> aim = np.array([[3.0, 0.1], [0.2, -2.0]])
    >>> def train(params, masks, key):
    ...     return apply_masks({"kernel": aim}, masks)
    >>> def evaluate(params):
    ...     return -abs(params["kernel"] - aim).max()
    >>> start = {"kernel": np.ones((2, 2))}
    >>> found = lottery(train, start, evaluate=evaluate, density=0.5, rounds=1)
    >>> found.masks[1]["kernel"].tolist()
    [[True, False], [False, True]]
    """
    _check_run(density, rounds)
    chosen = tuple(sparse_leaves(params, at, but, "lottery"))
    search = _Search(train, evaluate, params, chosen, distribution, pattern, seed)
    found = resume
    for number in range(rounds + 1):
        share = density ** (number / rounds)
        if found is not None and number < len(found.rounds):
            _check_same(found, number, share, search)
            continue
        found = search.dense() if found is None else search.round(found, share, control)
        if log is not None:
            log(found)
    assert found is not None  # noqa: S101 - round 0 always is
    return found


@dataclasses.dataclass(frozen=True)
class _Search:
    train: Callable[..., Any]
    evaluate: Callable[[Tree], Any]
    params: Tree
    chosen: tuple[str, ...]
    distribution: Uniform | None
    pattern: Single | None
    seed: int

    def dense(self) -> Lottery:
        """Round 0."""
        start = _host(self.params)
        masks = {path: np.ones(start[path].shape, bool) for path in self.chosen}
        score, result = self.run(start, masks, 0, "ticket")
        if isinstance(result, Trained):
            start = _host(result.early)
        row = Round(1.0, score)
        return Lottery((row,), start, (masks,), _trained(result), self.seed)

    def round(self, found: Lottery, density: float, control: bool) -> Lottery:
        """The next round."""
        number = len(found.rounds)
        masks = self.pruned(found, density)
        score, result = self.run(found.start, masks, number, "ticket")
        other = None
        if control:
            shuffled = self.shuffled(masks, number)
            other, _ = self.run(found.start, shuffled, number, "control")
        kept = sum(mask.sum() for mask in masks.values())
        size = sum(mask.size for mask in masks.values())
        row = Round(float(kept / max(size, 1)), score, other)
        return dataclasses.replace(
            found,
            rounds=(*found.rounds, row),
            masks=(*found.masks, masks),
            trained=_trained(result),
        )

    def pruned(self, found: Lottery, density: float) -> dict[str, np.ndarray]:
        """The largest of what the last round trained."""
        last = found.masks[-1]
        scores = {
            path: np.where(last[path], abs(found.trained[path].astype(np.float32)), -1)
            for path in self.chosen
        }
        return choose(
            found.trained,
            1.0 - density,
            scores=scores,
            distribution=self.distribution,
            pattern=self.pattern,
            at=self.chosen,
        )

    def shuffled(
        self, masks: dict[str, np.ndarray], number: int
    ) -> dict[str, np.ndarray]:
        """Random masks, with as many units in every leaf."""
        draw = np.random.default_rng((self.seed, number))
        pattern, found = self.pattern or Single(), {}
        for path, mask in masks.items():
            active = pattern.units(mask.astype(np.float32)) > 0
            real = pattern.units(np.ones(mask.shape, np.float32)) > 0
            scores = np.where(real, draw.random(real.shape, np.float32), -1)
            chosen = pattern.choose(scores, pattern.held(active))
            found[path] = pattern.mask(chosen, mask.shape)
        return found

    def run(
        self,
        start: dict[str, np.ndarray],
        masks: dict[str, np.ndarray],
        number: int,
        what: str,
    ) -> tuple[float, Any]:
        """Trains and evaluates once."""
        key = jax.random.fold_in(fold_name(jax.random.key(self.seed), what), number)
        params = rebuilt(self.params, ticket_of(start, masks))
        result = self.train(params, masks, key)
        trained = result.params if isinstance(result, Trained) else result
        return float(self.evaluate(trained)), result


def _trained(result: Any) -> dict[str, np.ndarray]:
    return _host(result.params if isinstance(result, Trained) else result)


def _host(tree: Tree) -> dict[str, np.ndarray]:
    return {path: np.asarray(leaf) for path, leaf in leaf_paths(tree).items()}


def _check_run(density: float, rounds: int) -> None:
    check_share(density, "lottery.density")
    check_count(rounds, "lottery.rounds")
    if density == 0:
        raise FieldError("lottery.density: expected a share above 0, got 0.")


def _check_same(found: Lottery, number: int, share: float, search: _Search) -> None:
    """Refuses rounds of another search."""
    size = sum(mask.size for mask in found.masks[number].values())
    near = abs(found.rounds[number].density - share) * size <= len(search.chosen) + 1
    if {*found.masks[number]} != {*search.chosen} or not near:
        raise DataError(
            f"lottery.resume: expected round {number} to keep {share:.2%} of "
            f"{len(search.chosen)} leaves, got {found.rounds[number].density:.2%} of "
            f"{len(found.masks[number])}. Resume with the settings it was made with."
        )
