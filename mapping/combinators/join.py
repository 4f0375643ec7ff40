"""Making one output of several."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from mapping.core import Context, describe
from mapping.errors import FieldError, ShapeMismatchError
from mapping.paths import nearest


def _sum(outputs: Sequence[Any]) -> Any:
    return jax.tree.map(lambda *ys: sum(ys[1:], start=ys[0]), *outputs)


def _mean(outputs: Sequence[Any]) -> Any:
    return jax.tree.map(lambda y: y / jnp.asarray(len(outputs), y.dtype), _sum(outputs))


def _product(outputs: Sequence[Any]) -> Any:
    def product(*ys: Any) -> Any:
        total = ys[0]
        for y in ys[1:]:
            total = total * y
        return total

    return jax.tree.map(product, *outputs)


def _concat(outputs: Sequence[Any]) -> Any:
    return jax.tree.map(lambda *ys: jnp.concatenate(ys, axis=-1), *outputs)


def _stack(outputs: Sequence[Any]) -> Any:
    return jax.tree.map(lambda *ys: jnp.stack(ys), *outputs)


JOINS: dict[str, Callable[[Sequence[Any]], Any]] = {
    "sum": _sum,
    "mean": _mean,
    "product": _product,
    "concat": _concat,
    "stack": _stack,
}
"""How several outputs become one: `concat` along the last axis, `stack` a new first."""


def check_join(join: Any, where: str) -> None:
    """Refuses a name that is no way of joining."""
    if isinstance(join, str) and join not in JOINS:
        raise FieldError(
            f"{where}: expected one of {', '.join(JOINS)}, a mapping or None, got "
            f"{join!r}. Nearest: {nearest(join, JOINS)}."
        )


def joined(
    join: str, outputs: Sequence[Any], names: Sequence[str], ctx: Context
) -> Any:
    """Joins the outputs of the children called `names`.

    Raises:
        ShapeMismatchError: if their shapes do not allow it; it lists them.
    """
    shapes = [[leaf.shape for leaf in jax.tree.leaves(y)] for y in outputs]
    if join == "concat":
        shapes = [[shape[:-1] for shape in each] for each in shapes]
    structures = {jax.tree.structure(y) for y in outputs}
    if len(structures) > 1 or any(each != shapes[0] for each in shapes):
        listed = ", ".join(
            f"{name} {describe(y)}" for name, y in zip(names, outputs, strict=True)
        )
        raise ShapeMismatchError(
            f"{ctx.where}: outputs to {join} expect one shape"
            f"{' but for the last axis' if join == 'concat' else ''}, got {listed}. "
            "Put a mapping behind the odd one, or join otherwise."
        )
    return JOINS[join](outputs)
