"""Regularisers that make units small before they are removed."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from compiler.errors import UnknownPartError
from compiler.passes.prune.choice.ranking import Ranking
from compiler.passes.prune.choice.scope import Removed
from compiler.passes.prune.importance import l1
from compiler.passes.prune.importance.roles import SCALE, WEIGHT
from compiler.passes.prune.importance.units import slots, sums
from compiler.passes.prune.structure import structure

if TYPE_CHECKING:
    from compiler.passes.prune.structure import Group, Slot, Structure
    from compiler.program import Program

Penalty = Callable[..., Any]
"""Takes variables, and the number of steps so far; returns a scalar, float32."""


def regularizer(
    program: Program,
    kind: str = "group_lasso",
    *,
    rate: float = 1e-4,
    ranking: Ranking | None = None,
    alpha: float = 4.0,
    every: int = 1,
    limit: float = 1.0,
) -> Penalty:
    r"""A penalty to be added to a loss, so that whole units become small.

    With $w_u$ all weights and gains of a unit, wherever they are:

    `"group_lasso"` drives whole units to zero (Wen et al., "Learning Structured
    Sparsity", NeurIPS 2016, https://arxiv.org/abs/1608.03665):

    $$ \lambda \sum_u \sqrt{n_u}\, \lVert w_u \rVert_2 $$

    `"group_norm"` presses the smaller units of a group harder (Fang et al., "DepGraph",
    CVPR 2023, https://arxiv.org/abs/2301.12900); no gradient flows through $\gamma$:

    $$ \frac{\lambda}{2} \sum_u \gamma_u \lVert w_u \rVert_2^2, \qquad
       \gamma_u = 2^{\alpha (s_{max} - s_u) / (s_{max} - s_{min})},
       \quad s_u = \lVert w_u \rVert_2 $$

    `"batch_norm_scale"` is $\lambda \sum |\gamma|$ over the gains of norms (Liu et
    al., "Network Slimming", ICCV 2017, https://arxiv.org/abs/1708.06519).

    `"growing"` chooses the units once, from the program as it is, and presses them
    harder and harder: $\lambda$ is added to their weight decay after every so many
    steps (Wang et al., "Neural Pruning via Growing Regularization", ICLR 2021,
    https://arxiv.org/abs/2012.09243):

    $$ \frac{1}{2} \min\Big(\lambda \lfloor t / k \rfloor, \lambda_{max}\Big)
       \sum_{u\ \mathrm{chosen}} \lVert w_u \rVert_2^2 $$

    Args:
        program: whose structure is meant; for `"growing"`, with arrays.
        kind: one of these.
        rate: $\lambda$.
        ranking: whose kinds of groups are pressed, those ignored left out; for
            `"growing"` it chooses the units, by their L1 norms.
        alpha: $\alpha$ of `"group_norm"`.
        every: $k$ of `"growing"`, in steps.
        limit: $\lambda_{max}$ of `"growing"`.

    Returns:
        A pure function of variables like the program's and, for `"growing"`, of the
        number of steps so far (0 by default). It can be jitted and differentiated, at
        zero too.

    Raises:
        UnknownPartError: if there is no such kind.

    >>> import jax.numpy as jnp, compiler as mc
    >>> def mlp(params, x):
    ...     return jnp.tanh(x @ params["first"]) @ params["second"]
    >>> params = {"first": jnp.array([[3.0, 0.0]]), "second": jnp.array([[4.0], [0.0]])}
    >>> program = mc.trace(mlp, params, jnp.ones((1, 1)))
    >>> penalty = regularizer(program, rate=0.1)
    >>> round(float(penalty(params)), 4)  # 0.1 * sqrt(2) * 5
    0.7071
    >>> jax.grad(penalty)(params)["first"].round(4).tolist()
    [[0.08489999920129776, 0.0]]
    """
    if kind not in KINDS:
        raise UnknownPartError(
            f"prune.regularizer: expected a kind of {', '.join(KINDS)}, got {kind!r}."
        )
    found, ranking = structure(program.graph), ranking or Ranking()
    groups = [one for one in found.groups if not ranking.left_out(one, found)]
    if kind == "batch_norm_scale":
        return _gains(found, groups, rate)
    wanted = slots(found, (WEIGHT, SCALE))
    units = [_Units(found, group, wanted[group.name]) for group in groups]
    if kind == "growing":
        chosen = ranking.rank(found, l1().scores(program, found))
        return _growing(found, units, chosen, (rate, every, limit))
    each = _lasso if kind == "group_lasso" else functools.partial(_graded, alpha)

    def penalty(variables: Any, step: Any = 0) -> Any:
        del step
        values = found.graph.unpack(variables)
        return jnp.float32(rate) * sum((each(u, values) for u in units), _ZERO)

    return penalty


KINDS = ("group_lasso", "group_norm", "batch_norm_scale", "growing")
_ZERO = np.float32(0)


class _Units:
    """The units of one group, and the squared norm of each.

    Attributes:
        name: of the group.
        weights: how many weights each has, float32.
    """

    def __init__(self, found: Structure, group: Group, own: Sequence[Slot]) -> None:
        self.name, self._size, self._slots = group.name, group.size, own
        self.weights = np.zeros(group.size, np.float32)
        for slot in own:
            shape = found.graph.leaves[slot.leaf].spec.shape
            each = math.prod(shape) / shape[slot.axis]
            self.weights += each * np.bincount(slot.unit, minlength=group.size)

    def squares(self, values: Sequence[Any]) -> Any:
        """The squared norms, float32 `[units]`."""
        fields = {slot.leaf: _square(values[slot.leaf]) for slot in self._slots}
        along = sums(fields, self._slots, jnp.float32)
        total = jnp.zeros(self._size, jnp.float32)
        for slot in self._slots:
            picked = along[slot.leaf, slot.axis][np.asarray(slot.index, np.int32)]
            total = total.at[np.asarray(slot.unit, np.int32)].add(picked)
        return total


def _square(w: Any) -> Any:
    w = jnp.asarray(w)
    return (
        jnp.real(w * jnp.conj(w)) if jnp.iscomplexobj(w) else w.astype("float32") ** 2
    )


def _norms(squares: Any) -> Any:
    """Square roots whose derivative at zero is zero."""
    some = squares > 0
    return jnp.where(some, jnp.sqrt(jnp.where(some, squares, 1.0)), 0.0)


def _magnitudes(gains: Any) -> Any:
    """The sum of magnitudes, whose derivative at zero is zero."""
    return jnp.sum(gains * jax.lax.stop_gradient(jnp.sign(gains)))


def _lasso(units: _Units, values: Sequence[Any]) -> Any:
    return jnp.sum(np.sqrt(units.weights) * _norms(units.squares(values)))


def _graded(alpha: float, units: _Units, values: Sequence[Any]) -> Any:
    squares = units.squares(values)
    norms = jax.lax.stop_gradient(_norms(squares))
    spread = norms.max() - norms.min()
    lag = (norms.max() - norms) / jnp.where(spread > 0, spread, 1.0)
    return 0.5 * jnp.sum(jnp.exp2(alpha * lag) * squares)


def _gains(found: Structure, groups: Sequence[Group], rate: float) -> Penalty:
    wanted = slots(found, (SCALE,))
    leaves = sorted({slot.leaf for one in groups for slot in wanted[one.name]})

    def penalty(variables: Any, step: Any = 0) -> Any:
        del step
        values = found.graph.unpack(variables)
        gains = [jnp.asarray(values[i]).astype("float32") for i in leaves]
        return jnp.float32(rate) * sum((_magnitudes(g) for g in gains), _ZERO)

    return penalty


def _growing(
    found: Structure,
    units: Sequence[_Units],
    chosen: Removed,
    speed: tuple[float, int, float],
) -> Penalty:
    rate, every, limit = speed
    masks = {
        u.name: np.isin(np.arange(len(u.weights)), chosen.get(u.name, []))
        for u in units
    }

    def penalty(variables: Any, step: Any = 0) -> Any:
        values = found.graph.unpack(variables)
        turns = jnp.floor(jnp.asarray(step, jnp.float32) / every)
        now = jnp.minimum(rate * turns, limit)
        total = (jnp.sum(u.squares(values), where=masks[u.name]) for u in units)
        return 0.5 * now * sum(total, _ZERO)

    return penalty
