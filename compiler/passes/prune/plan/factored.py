r"""Adafactor's second moments when what they are the factors of is cut.

They are the means of $V$ over its largest axis, $r$ (`v_row`), and over its second
largest, $c$ (`v_col`), and stand for $\hat V = r c / \bar r$. Of what stays they are

$$ r'_i = r_i \, \frac{\bar c_K}{\bar c}, \qquad
   c'_j = c_j \, \frac{\bar r_K}{\bar r}, $$

with $\bar r_K$ the mean over the rows that stay: then $r' c' / \bar r'$ is $\hat V$ for
all that stays. Another axis may be the largest then, or too short to be factored any
more.

Shazeer & Stern, 2018, https://arxiv.org/abs/1804.04235; the layout is that of
`optax.scale_by_factored_rms`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping as Dict
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from compiler.errors import PlanError
from compiler.passes.prune.plan.entries import Shape
from compiler.passes.prune.plan.match import Match, is_spec
from compiler.passes.prune.plan.owners import factor_axes, factor_dims
from compiler.passes.prune.plan.plan import Plan
from compiler.passes.prune.plan.slices import is_host, sized, take

_PARTS = ("v_row", "v_col", "v")


@dataclasses.dataclass(frozen=True)
class Factors:
    """The factors of one parameter's second moments.

    Attributes:
        path: of the parameter, in the plan.
        shape: of the parameter before.
        places: of `v_row`, `v_col` and `v` among the leaves.
        values: these leaves.
    """

    path: str
    shape: Shape
    places: tuple[int, ...]
    values: tuple[Any, ...]


def refactored(
    matches: Sequence[Match], plan: Plan, like: Sequence[Any] | None
) -> dict[int, Any]:
    """The factors of what is cut, by their places among the leaves.

    Args:
        matches: all leaves of a state.
        plan: what is cut.
        like: leaves that tell which of them are factored afterwards.

    Raises:
        PlanError: if nothing tells whether what is left is still factored.
    """
    found = _find(matches, dict(plan.shapes))
    shortest = min((sorted(one.shape)[-2] for one in found), default=0)
    made: dict[int, Any] = {}
    for one in found:
        kept = plan.axes(one.path)
        if not kept:
            continue
        left = plan.shape(one.path)
        if like is not None:
            dense = np.shape(like[one.places[-1]]) == left
        elif sorted(left)[-2] >= shortest:
            dense = False
        else:
            raise PlanError(
                f"{matches[one.places[0]].path}: expected to be told whether adafactor "
                f"still factors the shape {left}: it does from a size on that its "
                "state does not say. Pass like=jax.eval_shape(optimizer.init, small)."
            )
        made.update(zip(one.places, _convert(one, kept, dense), strict=True))
    return made


def _find(matches: Sequence[Match], shapes: Dict[str, Shape]) -> list[Factors]:
    """All parameters whose second moments are factored."""
    groups: dict[Any, dict[str, int]] = {}
    for place, one in enumerate(matches):
        owner = one.owner
        if owner and owner.role and owner.role[-1] in _PARTS and not is_spec(one.value):
            held = groups.setdefault((owner.path, owner.role[:-1]), {})
            held[owner.role[-1]] = place
    found = []
    for (path, _), held in groups.items():
        shape, places = shapes[path], tuple(held[p] for p in _PARTS if p in held)
        if len(places) < len(_PARTS) or len(shape) < 2:
            continue
        values = tuple(matches[place].value for place in places)
        wanted = (tuple(shape[a] for a in factor_axes(f, shape)) for f in _PARTS[:2])
        if [value.shape for value in values] == [*wanted, (1,)]:
            found.append(Factors(path, shape, places, values))
    return found


def _convert(one: Factors, kept: Dict[int, np.ndarray], dense: bool) -> Sequence[Any]:
    """`v_row`, `v_col` and `v` of what stays."""
    row, col, _ = one.values
    if isinstance(row, jax.ShapeDtypeStruct):
        return jax.eval_shape(
            lambda r, c: _factors(jnp, r, c, one, kept, dense), row, col
        )
    made = _factors(np if is_host(row) else jnp, row, col, one, kept, dense)
    return [value.astype(row.dtype) for value in made]


def _factors(
    xp: Any, row: Any, col: Any, one: Factors, kept: Dict[int, np.ndarray], dense: bool
) -> tuple[Any, Any, Any]:
    """As [`_convert`][], by the functions of numpy or those of jax."""
    second, largest = factor_dims(one.shape)
    wide = jnp.promote_types(row.dtype, jnp.float32)
    rest = {a: stay for a, stay in kept.items() if a not in (second, largest)}
    row = take(xp.expand_dims(row.astype(wide), largest), rest)
    col = take(xp.expand_dims(col.astype(wide), second), rest)
    rows = take(row, {a: stay for a, stay in kept.items() if a == second})
    cols = take(col, {a: stay for a, stay in kept.items() if a == largest})
    row_mean, col_mean = (
        row.mean(second, keepdims=True),
        col.mean(largest, keepdims=True),
    )
    row = rows * _ratio(xp, cols.mean(largest, keepdims=True), col_mean)
    col = cols * _ratio(xp, rows.mean(second, keepdims=True), row_mean)
    none, axes = xp.zeros(1, wide), factor_dims(sized(one.shape, kept))
    if not dense and axes == (second, largest):
        return row.squeeze(largest), col.squeeze(second), none
    full = _ratio(xp, row * col, row.mean(second, keepdims=True))
    if dense:
        return none, none, full
    return full.mean(axes[1]), full.mean(axes[0]), none


def _ratio(xp: Any, one: Any, other: Any) -> Any:
    """Of moments; before the first step all are zero, and any ratio will do."""
    return one / xp.where(other > 0, other, 1)
