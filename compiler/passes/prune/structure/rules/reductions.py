"""Reductions: an axis that is reduced may lose indices; one that is scanned may not."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np

from compiler import jaxprs
from compiler.passes.prune.structure.emit import Emit
from compiler.passes.prune.structure.frame import Place
from compiler.passes.prune.structure.labels import Axes, Vector
from compiler.passes.prune.structure.numbers import Numbering
from compiler.passes.prune.structure.registry import RULES
from compiler.passes.prune.structure.rules.means import made


def lowest(dtype: Any) -> Any:
    """What is less than any number of a dtype."""
    if jnp.issubdtype(dtype, jnp.floating):
        return -np.inf
    return jnp.iinfo(dtype).min if dtype != np.bool_ else False


def _highest(dtype: Any) -> Any:
    if jnp.issubdtype(dtype, jnp.floating):
        return np.inf
    return jnp.iinfo(dtype).max if dtype != np.bool_ else True


_NEUTRAL = {
    "reduce_sum": lambda dtype: 0,
    "reduce_prod": lambda dtype: 1,
    "reduce_max": lowest,
    "reduce_min": _highest,
    "reduce_and": lambda dtype: jnp.bool_(True) if dtype == np.bool_ else -1,
    "reduce_or": lambda dtype: 0,
    "reduce_xor": lambda dtype: 0,
}


def _masked(emit: Emit, place: Place, values: list[Any]) -> list[Any]:
    neutral = _NEUTRAL[place.equation.primitive.name](values[0].dtype)
    along = place.params["axes"]
    value = emit.fill(values[0], place.operands[0], along, neutral)
    return jaxprs.bind(place.equation, [value])


@RULES.on(*_NEUTRAL, mask=_masked)
def reduced(place: Place) -> list[Axes]:
    """The axes that are left; a sum is remembered, as it may become a mean."""
    axes, operand = place.params["axes"], place.operands[0]
    if place.equation.primitive.name == "reduce_sum":
        made(place, [(operand[i], place.shape(0)[i]) for i in axes])
    return [tuple(v for i, v in enumerate(operand) if i not in axes)]


def _masked_choice(emit: Emit, place: Place, values: list[Any]) -> list[Any]:
    largest = place.equation.primitive.name == "argmax"
    neutral = (lowest if largest else _highest)(values[0].dtype)
    axes = place.params["axes"]
    filled = emit.fill(values[0], place.operands[0], axes, neutral)
    return jaxprs.bind(place.equation, [filled])


@RULES.on("argmax", "argmin", mask=_masked_choice)
def chosen(place: Place) -> list[Axes]:
    """Where the largest stands is a number of an index of that axis."""
    axes = place.params["axes"]
    place.analysis.roles.experts.append(place.operands[0][axes[0]])
    numbers = Numbering.of(place.operands[0][axes[0]])
    place.frame.numbers[place.equation.outvars[0]] = numbers
    return [tuple(v for i, v in enumerate(place.operands[0]) if i not in axes)]


def _along(place: Place, acted: set[int]) -> list[Axes]:
    """Every operand alike; the axes acted on stay, the others are one."""
    rank = len(place.equation.outvars[0].aval.shape)
    own = [axes for axes in place.operands if len(axes) == rank]
    axes: list[Vector] = list(own[0])
    for labels in own:
        for i, vector in enumerate(labels):
            if i in acted:
                place.freeze(vector)
            else:
                axes[i] = place.labels.unify(axes[i], vector)
    shape = place.equation.outvars[0].aval.shape
    extents = [None if v is None else len(v) for v in axes]
    result = tuple(
        v if n == m else None for v, n, m in zip(axes, extents, shape, strict=True)
    )
    return [result] * len(place.equation.outvars)


@RULES.on("cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp")
def accumulated(place: Place) -> list[Axes]:
    """The axis that is accumulated along stays."""
    return _along(place, {place.params["axis"]})


@RULES.on(
    "reduce_window",
    "reduce_window_sum",
    "reduce_window_max",
    "reduce_window_min",
    "select_and_gather_add",
)
def windows(place: Place) -> list[Axes]:
    """Axes with a window stay."""
    names = ("window_strides", "base_dilation", "window_dilation")
    acted = {i for i, n in enumerate(place.params["window_dimensions"]) if n != 1}
    for name in names:
        acted |= {i for i, n in enumerate(place.params.get(name) or ()) if n != 1}
    padded = place.params.get("padding") or ()
    acted |= {i for i, pair in enumerate(padded) if tuple(pair) != (0, 0)}
    return _along(place, acted)


@RULES.on("select_and_scatter_add")
def windows_back(place: Place) -> list[Axes]:
    """Axes with a window stay."""
    acted = {i for i, n in enumerate(place.params["window_dimensions"]) if n != 1}
    return _along(place, acted)


@RULES.on("fft")
def transformed(place: Place) -> list[Axes]:
    """The transformed axes stay."""
    rank = len(place.operands[0])
    return _along(place, set(range(rank - len(place.params["fft_lengths"]), rank)))
