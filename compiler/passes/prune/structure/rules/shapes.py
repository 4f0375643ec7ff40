"""Operations that give an array another shape."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from compiler import jaxprs
from compiler.passes.prune.structure.emit import Emit
from compiler.passes.prune.structure.frame import Place
from compiler.passes.prune.structure.labels import Axes, Vector
from compiler.passes.prune.structure.registry import RULES


def sized(param: str) -> Any:
    """Emits an equation one of whose params is the shape of its result."""

    def shrink(emit: Emit, place: Place, values: list[Any]) -> list[Any]:
        shape = emit.result_shape(place)
        return jaxprs.bind(place.equation, values, **{param: shape})

    return shrink


def _carry_sum(place: Place) -> None:
    """A sum stays one through a change of shape."""
    if summed := place.frame.sum(place.equation.invars[0]):
        place.frame.sums[place.equation.outvars[0]] = summed


@RULES.on("broadcast_in_dim", shrink=sized("shape"))
def spread(place: Place) -> list[Axes]:
    """New axes are free to follow what they meet.

    Inside a derivative they stay: what is spread there is the derivative of a sum, and
    if that sum was part of a mean, the count is in a number nobody can tell.
    """
    _carry_sum(place)
    shape, own = place.params["shape"], place.shape(0)
    backward = place.is_backward and not _is_zero(place.known(0))
    axes: list[Vector] = [None if backward else place.labels.fresh(n) for n in shape]
    for axis, target in enumerate(place.params["broadcast_dimensions"]):
        if own[axis] == shape[target]:
            axes[target] = place.operands[0][axis]
    return [tuple(axes)]


def _is_zero(value: Any) -> bool:
    return value is not None and not np.any(value)


@RULES.on("reshape", shrink=sized("new_sizes"))
def reshape(place: Place) -> list[Axes]:
    """Axes become one, or one becomes several, in the smallest blocks that match."""
    _carry_sum(place)
    order = place.params["dimensions"] or range(len(place.shape(0)))
    operand = [place.operands[0][i] for i in order]
    before = [place.shape(0)[i] for i in order]
    after = place.params["new_sizes"]
    axes: list[Vector] = [None] * len(after)
    if 0 in before:
        return [tuple(axes)]
    for olds, news in blocks(before, after):
        extents = [before[i] for i in olds] + [after[i] for i in news]
        if len(olds) == len(news) == 1:
            axes[news[0]] = operand[olds[0]]
        elif not all(isinstance(n, int) for n in extents):
            place.freeze(*(operand[i] for i in olds))
        else:
            merged = place.labels.merge(
                [operand[i] for i in olds], [before[i] for i in olds]
            )
            parts = place.labels.split(merged, [after[i] for i in news])
            for axis, vector in zip(news, parts, strict=True):
                axes[axis] = vector
    return [tuple(axes)]


def blocks(
    before: Sequence[Any], after: Sequence[Any]
) -> list[tuple[list[int], list[int]]]:
    """The smallest independent parts of a reshape, as axes before and after.

    >>> blocks((2, 6, 5), (2, 3, 2, 5))
    [([0], [0]), ([1], [1, 2]), ([2], [3])]
    """
    old = [i for i, n in enumerate(before) if not _is_one(n)]
    new = [i for i, n in enumerate(after) if not _is_one(n)]
    first, last = [], []
    while old and new and _same(before[old[0]], after[new[0]]):
        first.append(([old.pop(0)], [new.pop(0)]))
    while old and new and _same(before[old[-1]], after[new[-1]]):
        last.append(([old.pop()], [new.pop()]))
    if not all(isinstance(before[i], int) for i in old):
        return [*first, (old, new), *reversed(last)]
    while old and new:
        left, right = [old.pop(0)], [new.pop(0)]
        while (p := _product(before, left)) != (q := _product(after, right)):
            if p < q:
                left.append(old.pop(0))
            else:
                right.append(new.pop(0))
        first.append((left, right))
    return [*first, *reversed(last)]


def _product(shape: Sequence[Any], axes: Sequence[int]) -> int:
    return int(np.prod([shape[i] for i in axes], dtype=np.int64))


def _is_one(extent: Any) -> bool:
    return isinstance(extent, int) and extent == 1


def _same(one: Any, other: Any) -> bool:
    return isinstance(one, int) == isinstance(other, int) and bool(one == other)


@RULES.on("transpose")
def transpose(place: Place) -> list[Axes]:
    """The axes, in another order."""
    _carry_sum(place)
    return [tuple(place.operands[0][i] for i in place.params["permutation"])]


@RULES.on("squeeze")
def squeeze(place: Place) -> list[Axes]:
    """The axes without some of extent one."""
    _carry_sum(place)
    rank = len(place.operands[0])
    gone = {axis % rank for axis in place.params["dimensions"]}
    return [tuple(v for i, v in enumerate(place.operands[0]) if i not in gone)]


@RULES.on("rev")
def rev(place: Place) -> list[Axes]:
    """Labels turn round with their axis."""
    return [
        tuple(
            vector[::-1]
            if vector is not None and i in place.params["dimensions"]
            else vector
            for i, vector in enumerate(place.operands[0])
        )
    ]


@RULES.on("bitcast_convert_type")
def bitcast(place: Place) -> list[Axes]:
    """The same bits as another type; what numbers parts of one is a last axis."""
    after = place.equation.outvars[0].aval.shape
    axes: list[Vector] = [None] * len(after)
    for i, vector in enumerate(place.operands[0]):
        if i < len(after):
            axes[i] = vector
        else:
            place.freeze(vector)
    return [tuple(axes)]


def _tiled(emit: Emit, place: Place, values: list[Any]) -> list[Any]:
    reps = map(emit.count, place.note, place.params["reps"])
    return jaxprs.bind(place.equation, values, reps=tuple(reps))


@RULES.on("tile", shrink=_tiled)
def tile(place: Place) -> list[Axes]:
    """An axis several times over: copies times indices."""
    copies, axes = [], []
    parts = zip(place.operands[0], place.shape(0), place.params["reps"], strict=True)
    for vector, extent, times in parts:
        copy = place.labels.fresh(times)
        copies.append(copy)
        axes.append(
            vector
            if times == 1
            else place.labels.merge([copy, vector], [times, extent])
        )
    place.note = copies
    return [tuple(axes)]


def _free(emit: Emit, place: Place, values: list[Any]) -> list[Any]:
    """Emits all of it and takes what stays: each index is what it was."""
    return [emit.take(jaxprs.bind(place.equation, values)[0], place.results[0])]


def _numbered(emit: Emit, place: Place, values: list[Any]) -> list[Any]:
    if emit.keep(place.results[0][place.params["dimension"]]) is None:
        return sized("shape")(emit, place, values)
    return _free(emit, place, values)


@RULES.on("iota", shrink=_numbered)
@RULES.on("random_bits", shrink=_free)
def made(place: Place) -> list[Axes]:
    """What is made of nothing but its shape is free to follow what it meets."""
    shape = place.equation.outvars[0].aval.shape
    return [tuple(map(place.labels.fresh, shape))]
