"""Sparse training: an optimizer that keeps pruned weights at zero."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from mapping.errors import FieldError
from mapping.optimizers.optimizer import Optimizer, as_transform, tried
from mapping.paths import Tree, leaf_paths, path_string
from mapping.registry import register
from mapping.sparse.contest import Contest
from mapping.sparse.distributions import Uniform
from mapping.sparse.leaves import check_paths, sparse_leaves
from mapping.sparse.methods import Contestants, Hold, Magnitude, Method
from mapping.sparse.patterns import Single
from mapping.sparse.schedules import OneShot, Schedule
from mapping.sparse.state import SparseState, mask_moments, masked


@register(
    "optimizer",
    "sparse",
    examples=lambda: tried(Sparse(Optimizer.of(optax.sgd, 0.1), 0.5, Magnitude())),
)
@dataclasses.dataclass(frozen=True)
class Sparse(Optimizer):
    """An optimizer of sparse weights. Made by [`sparse`][] and [`hold`][].

    Attributes:
        optimizer: what [`as_transform`][mapping.optimizers.as_transform] takes.
        sparsity: a function from the step to the share of zeros.
        method: how what is kept is chosen.
        distribution: how much each leaf keeps.
        pattern: what is kept together.
        at: globs of what is made sparse, instead of the kernels.
        but: globs of what among these stays dense.

    >>> Sparse(Optimizer.of(optax.sgd, 0.1), 0.9).sparsity
    OneShot(sparsity=0.9, step=0)
    """

    optimizer: Any
    sparsity: Any
    method: Method = dataclasses.field(default_factory=Magnitude)
    distribution: Uniform = dataclasses.field(default_factory=Uniform)
    pattern: Single = dataclasses.field(default_factory=Single)
    at: tuple[str, ...] = ()
    but: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if isinstance(self.sparsity, int | float):
            object.__setattr__(self, "sparsity", OneShot(self.sparsity))
        as_transform(self.optimizer, "sparse.optimizer")
        check_paths(self.at, "sparse.at")
        check_paths(self.but, "sparse.but")
        if not callable(self.sparsity):
            raise FieldError(
                f"sparse.sparsity: expected a share or a schedule, got "
                f"{self.sparsity!r}. Write 0.9 or polynomial(0.9, 0, 1000)."
            )
        _check_kind(self.method, Method, "method", "magnitude()")
        _check_kind(self.distribution, Uniform, "distribution", "erk()")
        _check_kind(self.pattern, Single, "pattern", "Single()")
        Contest({}, self.distribution, self.pattern)

    def transform(self) -> optax.GradientTransformationExtraArgs:
        """The optimizer, with masks around it."""
        return optax.GradientTransformationExtraArgs(self._start, self._update)

    def _contest(self, params: Tree) -> tuple[Contest, dict[str, Any]]:
        leaves = sparse_leaves(params, self.at, self.but)
        shapes = {path: jnp.shape(leaf) for path, leaf in leaves.items()}
        return Contest(shapes, self.distribution, self.pattern), leaves

    def _start(self, params: Tree) -> SparseState:
        contest, leaves = self._contest(params)
        masks = {path: self.method.start(leaf) for path, leaf in leaves.items()}
        if None in masks.values():
            masks = self._first(contest)
        scores: Tree = ()
        if self.method.scored:
            zeros = {p: jnp.zeros_like(x, jnp.float32) for p, x in leaves.items()}
            scores = _placed(zeros, params)
        inner = as_transform(self.optimizer).init(params)
        return SparseState(
            _placed(masks, params), scores, jnp.zeros((), jnp.int32), inner
        )

    def _first(self, contest: Contest) -> dict[str, Any]:
        """Masks by chance, for the sparsity before the first step."""
        units = contest.units({p: jnp.ones(s) for p, s in contest.shapes.items()})
        counts = contest.counts(self._density(jnp.zeros((), jnp.int32)))
        first, pattern = self.method.first, self.pattern
        return contest.masks({n: first(n, pattern, units[n], counts[n]) for n in units})

    def _update(
        self, updates: Tree, state: Any, params: Tree = None, **extra: Any
    ) -> tuple[Tree, SparseState]:
        if params is None:
            raise FieldError(
                "sparse: expected the params beside the gradients, got none. Call "
                "update(gradients, state, params)."
            )
        contest, weights = self._contest(params)
        given = leaf_paths(updates)
        slopes = {path: given[path] for path in weights}
        scores = leaf_paths(state.scores)
        for path, score in scores.items():
            scores[path] = self.method.accumulate(score, weights[path], slopes[path])
        masks = self._masks(contest, weights, slopes, scores, state)
        updates, inner = as_transform(self.optimizer).update(
            _masked(updates, masks),
            mask_moments(state.inner_state, masks),
            _masked(params, masks),
            **extra,
        )
        count = optax.safe_increment(state.count)
        scores = _placed(scores, params) if scores else state.scores
        state = SparseState(_placed(masks, params), scores, count, inner)
        return _to_zero(updates, masks, weights), state

    def _masks(
        self,
        contest: Contest,
        weights: dict[str, Any],
        slopes: dict[str, Any],
        scores: dict[str, Any],
        state: Any,
    ) -> dict[str, Any]:
        """The masks as they are, or at the steps where it is time chosen anew."""
        masks, count = leaf_paths(state.masks), state.count

        def choose() -> dict[str, Any]:
            active = contest.units({p: m.astype(jnp.float32) for p, m in masks.items()})
            sizes = contest.units({path: _size(leaf) for path, leaf in weights.items()})
            steep = contest.units({path: _size(leaf) for path, leaf in slopes.items()})
            scored = contest.units(scores) if scores else {}
            kept = contest.counts(self._density(count))
            chosen = {}
            for name, size in sizes.items():
                own = jnp.asarray(kept[name], jnp.int32), count
                seen = active[name] > 0, size, steep[name], scored.get(name)
                now = Contestants(name, self.pattern, *seen, *own)
                chosen[name] = self.method.choose(now)
            return contest.masks(chosen)

        return jax.lax.cond(self._due(count), choose, lambda: masks)

    def _density(self, step: jax.Array) -> jax.Array:
        sparsity = jnp.asarray(self.sparsity(step), jnp.float32)
        return 1 - jnp.clip(sparsity, 0, 1)

    def _due(self, step: jax.Array) -> jax.Array:
        planned = self.sparsity
        always = jnp.ones((), bool)
        due = planned.updates(step) if isinstance(planned, Schedule) else always
        return due | self.method.updates(step)


def sparse(
    optimizer: Any,
    sparsity: Any,
    *,
    method: Method | None = None,
    distribution: Uniform | None = None,
    pattern: Single | None = None,
    at: tuple[str, ...] = (),
    but: tuple[str, ...] = (),
) -> Sparse:
    r"""Makes an optimizer train sparse weights.

    $$ \theta' = m' \odot (\theta + u(m' \odot g,\; m' \odot \theta)) $$

    The masks $m$ live in the optimizer's state and are chosen anew, from params and
    gradients, at the steps the schedule names: from the first such step on, pruned
    weights are exactly zero after each update, so that the forward sees them masked
    without knowing of it. Their moments are zero too, and weight decay does not move
    them. The gradients handed in are the dense ones, of the weights at zero as well.

    It has to be the outermost transform: what comes after it, such as a clip, would
    scale the very update that makes a weight zero. What comes before it is fine. Under
    `shard_map` or `pmap` it chooses from what a device holds; under `jit` from all.

    Args:
        optimizer: what [`as_transform`][mapping.optimizers.as_transform] takes.
        sparsity: the share of zeros in what is made sparse, from the first step on; or
            a schedule: [`one_shot`][], [`polynomial`][], [`cyclic`][], or any named
            function from the step, which then chooses at every step.
        method: [`magnitude`][] (the default), [`movement`][], [`set_`][], [`rigl`][].
        distribution: [`uniform`][] (the default), [`erk`][], [`global_`][],
            [`by_path`][].
        pattern: [`Single`][] weights (the default), [`NOfM`][], [`Block`][].
        at: globs of what is made sparse; by default the kernels (see
            [`sparse_leaves`][]).
        but: globs of what among these stays dense.

    Raises:
        FieldError: if an argument is none of these.
        UnknownPathError: when it meets params of which a glob names none.

    >>> from mapping.optimizers import sgd
    >>> transform = sparse(sgd(0.5), 0.5).transform()
    >>> params = {"kernel": jnp.array([[4.0, 1.0], [2.0, 3.0]])}
    >>> updates, state = transform.update(params, transform.init(params), params)
    >>> optax.apply_updates(params, updates)["kernel"].tolist()
    [[2.0, 0.0], [0.0, 1.5]]
    """
    return Sparse(
        optimizer,
        sparsity,
        method or Magnitude(),
        distribution or Uniform(),
        pattern or Single(),
        at,
        but,
    )


def hold(
    optimizer: Any, *, at: tuple[str, ...] = (), but: tuple[str, ...] = ()
) -> Sparse:
    """Makes an optimizer keep at zero what is zero when it starts.

    For weights that something else has pruned. A leaf of nothing but zeros is taken
    for one that is yet to be trained, and is.

    Args:
        optimizer: what [`as_transform`][mapping.optimizers.as_transform] takes.
        at: globs of what is held, instead of the kernels.
        but: globs of what among these is not.

    >>> params = {"kernel": jnp.array([[4.0, 0.0]])}
    >>> transform = hold(optax.sgd(1.0)).transform()
    >>> slopes = {"kernel": jnp.ones((1, 2))}
    >>> transform.update(slopes, transform.init(params), params)[0]["kernel"].tolist()
    [[-1.0, 0.0]]
    """
    return Sparse(optimizer, 0.0, Hold(), at=at, but=but)


def _check_kind(value: Any, kind: type, field: str, such: str) -> None:
    if not isinstance(value, kind):
        raise FieldError(f"sparse.{field}: expected one such as {such}, got {value!r}.")


def _size(leaf: Any) -> jax.Array:
    """Magnitudes, in float32 at least: the formats below it cannot hold sums."""
    leaf = jnp.abs(jnp.asarray(leaf))
    return leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32))


def _placed(found: dict[str, Any], params: Tree) -> Tree:
    """A tree like params, with no leaf where nothing was found."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: found.get(path_string(path), optax.MaskedNode()), params
    )


def _masked(tree: Tree, masks: dict[str, Any]) -> Tree:
    def apply(path: tuple[Any, ...], leaf: Any) -> Any:
        mask = masks.get(path_string(path))
        return leaf if mask is None else masked(leaf, mask)

    return jax.tree_util.tree_map_with_path(apply, tree)


def _to_zero(updates: Tree, masks: dict[str, Any], weights: dict[str, Any]) -> Tree:
    """The updates, and where the masks are not true those that lead to zero."""

    def apply(path: tuple[Any, ...], update: Any) -> Any:
        mask = masks.get(path_string(path))
        if mask is None:
            return update
        weight = jnp.asarray(weights[path_string(path)])
        dtype = jnp.promote_types(update.dtype, weight.dtype)
        leads = jnp.zeros_like(weight, dtype) - weight.astype(dtype)  # 0, not -0
        return jnp.where(mask, update.astype(dtype), leads)

    return jax.tree_util.tree_map_with_path(apply, updates)
