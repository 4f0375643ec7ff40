"""How a scale and a shift get through linear maps that have no kernel."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from compiler.passes.collapse.layout import lay, refolded
from compiler.passes.collapse.notes import constant
from compiler.rewrite import Operand, Site

Carry = Callable[[Any], Any]
"""Lays out along a map's output what is laid out along its input, or the reverse."""


@dataclasses.dataclass(frozen=True)
class Through:
    """How a scale and a shift get through a linear map.

    Attributes:
        forth: what a scale before is after; None where it is none.
        back: what a scale after is before; None where it is none.
        gain: what becomes of a constant 1; None where it is not constant.
        wider: whether the output repeats the input.
    """

    forth: Carry
    back: Carry
    gain: int | None = 1
    wider: bool = False

    def scale(self, value: Any) -> Any:
        """What becomes of a scale; None of one that does not get through."""
        return None if value is None else self.forth(value)

    def shift(self, value: Any) -> Any:
        """What becomes of a shift; None of one that does not get through."""
        moved = self.scale(value)
        if moved is None or self.gain is None:
            return None
        return moved if self.gain == 1 else moved * np.asarray(self.gain, value.dtype)


def through(site: Site, operands: Sequence[Operand]) -> Through | None:
    """How they get through an equation that is linear in its first operand."""
    return _THROUGH[site.equation.primitive.name](site, operands)


def _transpose(site: Site, operands: Sequence[Operand]) -> Through:
    order = tuple(site.equation.params["permutation"])
    inverse = tuple(order.index(i) for i in range(len(order)))
    return Through(_layer(order), _layer(inverse))


def _reshape(site: Site, operands: Sequence[Operand]) -> Through | None:
    if site.equation.params.get("dimensions") is not None:
        return None
    old, new = operands[0].shape, site.equation.outvars[0].aval.shape
    return Through(
        lambda value: refolded(value, old, new), lambda value: refolded(value, new, old)
    )


def _broadcast(site: Site, operands: Sequence[Operand]) -> Through:
    old, new = operands[0].shape, site.equation.outvars[0].aval.shape
    targets = site.equation.params["broadcast_dimensions"]
    sources: list[int | None] = [None] * len(new)
    for axis, target in enumerate(targets):
        sources[target] = axis
    back = [t if old[i] == new[t] else None for i, t in enumerate(targets)]
    kept = {t for t in back if t is not None}
    wider = any(n != 1 for i, n in enumerate(new) if i not in kept)
    return Through(_layer(sources), _layer(back), 1, wider)


def _reduce(site: Site, operands: Sequence[Operand]) -> Through:
    shape, axes = operands[0].shape, site.equation.params["axes"]
    left = [i for i in range(len(shape)) if i not in axes]
    back = [left.index(i) if i in left else None for i in range(len(shape))]
    return Through(_layer(left), _layer(back), _number(shape[i] for i in axes))


def _window(site: Site, operands: Sequence[Operand]) -> Through:
    params = site.equation.params
    window, spread = params["window_dimensions"], params["base_dilation"]
    plain_axis = [
        (n, stride, pad, base) == (1, 1, (0, 0), 1)
        for n, stride, pad, base in zip(
            window, params["window_strides"], params["padding"], spread, strict=True
        )
    ]
    whole = all(pad == (0, 0) for pad in params["padding"]) and set(spread) == {1}
    carry = _constant([i for i, free in enumerate(plain_axis) if not free])
    return Through(carry, carry, _number(window) if whole else None)


def _slice(site: Site, operands: Sequence[Operand]) -> Through:
    old, new = operands[0].shape, site.equation.outvars[0].aval.shape
    carry = _constant(
        [i for i, (a, b) in enumerate(zip(old, new, strict=True)) if a != b]
    )
    return Through(carry, carry)


def _reverse(site: Site, operands: Sequence[Operand]) -> Through:
    carry = _constant(site.equation.params["dimensions"])
    return Through(carry, carry)


def _pad(site: Site, operands: Sequence[Operand]) -> Through | None:
    filler = constant(operands[1])
    if not isinstance(filler, np.ndarray) or filler != 0:
        return None
    config = site.equation.params["padding_config"]
    carry = _constant([i for i, pad in enumerate(config) if any(pad)])
    return Through(carry, carry, None)


def _same(site: Site, operands: Sequence[Operand]) -> Through:
    return Through(_constant(()), _constant(()))


_THROUGH: dict[str, Callable[[Site, Sequence[Operand]], Through | None]] = {
    "transpose": _transpose,
    "reshape": _reshape,
    "squeeze": _reshape,
    "broadcast_in_dim": _broadcast,
    "reduce_sum": _reduce,
    "reduce_window_sum": _window,
    "slice": _slice,
    "rev": _reverse,
    "pad": _pad,
    "copy": _same,
}


def _layer(sources: Sequence[int | None]) -> Carry:
    return lambda value: lay(value, sources)


def _constant(axes: Sequence[int]) -> Carry:
    """Lets a value through that is constant along some axes."""

    def carry(value: Any) -> Any:
        shape = np.shape(value)
        return value if not shape or all(shape[i] == 1 for i in axes) else None

    return carry


def _number(extents: Iterable[Any]) -> int | None:
    known = list(extents)
    return math.prod(known) if all(isinstance(n, int) for n in known) else None
