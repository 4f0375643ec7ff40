"""Rules for elementwise arithmetic: the affine maps themselves."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from compiler.passes.collapse.layout import (
    grows,
    plus,
    scaled,
    times,
    together,
)
from compiler.passes.collapse.notes import (
    MOST_PRODUCTS,
    Affine,
    Blocked,
    Linear,
    Made,
    affine,
    constant,
    identity,
    linear,
    may_absorb,
    moved,
    noted,
    whole,
)
from compiler.rewrite import Operand, Result, Rules, Site

AFFINE = Rules()


@dataclasses.dataclass(frozen=True)
class Step:
    """One equation as an affine map: operand * scale + shift, None for 1 and 0."""

    operand: Operand
    scale: Any = None
    shift: Any = None


@AFFINE.on("mul", "div", "add", "sub", "neg")
def merge(site: Site, *operands: Operand) -> list[Result] | None:
    """Merges an affine map into the product before it, or into the map before it."""
    unknown = [operand for operand in operands if not operand.known]
    if not unknown or not jnp.issubdtype(operands[0].dtype, jnp.floating):
        return None
    if len(unknown) == 2:
        summed = site.equation.primitive.name in ("add", "sub")
        return (_sum if summed else _times)(site, *operands)
    step = _step(site, operands)
    if step is None:
        return None
    merged = _into_product(site, operands, step)
    return _onto(site, operands, step) if merged is None else merged


def _step(site: Site, operands: Sequence[Operand]) -> Step | None:
    """Reads an equation of one unknown operand as an affine map of it."""
    name = site.equation.primitive.name
    if name == "neg":
        return Step(operands[0], np.asarray(-1, operands[0].dtype))
    place = 0 if operands[1].known else 1
    operand, other = operands[place], operands[1 - place]
    value = constant(other)
    if value.dtype != operand.dtype:
        return None
    if name == "mul":
        return Step(operand, value)
    if name == "add":
        return Step(operand, None, value)
    if name == "sub" and place == 1:
        return Step(operand, np.asarray(-1, operand.dtype), value)
    if place == 1 or (isinstance(value, np.ndarray) and not value.all()):
        return None
    with site.early():
        return (
            Step(operand, None, -value) if name == "sub" else Step(operand, 1 / value)
        )


def _into_product(
    site: Site, operands: Sequence[Operand], step: Step
) -> list[Result] | None:
    """Merges a factor into the kernels, and it and a term into the bias."""
    if isinstance(step.operand.note, Blocked) and step.operand.uses == 1:
        site.skipped(step.operand.note.why)
    note = linear(step.operand)
    if note is None or not _keeps_shape(site, step.operand):
        return None
    if site.refused:
        return _past(site, operands, step, note)
    with site.early():
        new = note if step.scale is None else note.scaled(step.scale)
        bias = scaled(note.bias, step.scale)
        if new is None or grows(bias, step.shift):
            return None
        new = dataclasses.replace(new, bias=plus(bias, step.shift))
    if step.scale is not None and not _may_scale(site, note):
        return None
    if new.bias is not None and note.bias is None:  # one equation either way
        return [Result(site.emit(*(o.value for o in operands))[0], new)]
    if step.scale is not None:
        site.fired("scale merged into the kernel before it")
    if step.shift is not None:
        site.fired("shift merged into the bias before it")
    return [Result(new.value(), new)]


def _past(
    site: Site, operands: Sequence[Operand], step: Step, note: Linear
) -> list[Result] | None:
    """Leaves a scale as it is, for scales after it to move on to the product before."""
    if step.shift is not None:
        return None
    place = [operand is step.operand for operand in operands].index(True)

    def emit(value: Any) -> Any:
        values = [operand.value for operand in operands]
        values[place] = value
        return site.emit(*values)[0]

    new = moved(whole(note), emit, lambda factor: factor)
    return [Result(emit(step.operand.value), new)]


def _may_scale(site: Site, note: Linear) -> bool:
    if site.equation.outvars[0].aval.dtype == jnp.float16:
        site.skipped("float16 has too small a range to merge a scale in")
    elif note.shared:
        site.skipped(
            "the kernel is used elsewhere too; scaling it would store it twice"
        )
    else:
        return True
    return False


def _onto(site: Site, operands: Sequence[Operand], step: Step) -> list[Result] | None:
    """Notes an affine map, together with the one before it."""
    operand = step.operand
    if site.refused or operand.dtype == jnp.float16:
        return None
    before = affine(operand)
    with site.early():
        if before is not None:
            moved = scaled(before.shift, step.scale)
            if (
                grows(before.scale, step.scale)
                or grows(before.shift, step.scale)
                or grows(moved, step.shift)
            ):
                before = None
        if before is None:
            before, moved = identity(operand), None
        scale, shift = times(before.scale, step.scale), plus(moved, step.shift)
    steps = before.steps + 1 if _keeps_shape(site, operand) else 1
    new = dataclasses.replace(before, scale=scale, shift=shift, steps=steps, site=site)
    return _fewest(site, operands, new)


def _times(site: Site, first: Operand, second: Operand) -> list[Result] | None:
    """Moves known factors out of a product of two unknown values: x s y = x y s."""
    maps = [_factor(first), _factor(second)]
    if site.equation.primitive.name == "div":
        maps[1] = None
    if site.refused or maps == [None, None]:
        return None
    one = maps[0] or identity(first)
    two = maps[1] or identity(second)
    if grows(one.scale, two.scale):
        return None
    with site.early():
        scale = times(one.scale, two.scale)
    kept = zip((one, two), (first, second), strict=True)
    new = Affine(
        base=functools.cache(lambda: site.emit(one.base(), two.base())[0]),
        shape=together(one.shape, two.shape),
        scale=scale,
        steps=sum(m.steps for m, operand in kept if _keeps_shape(site, operand)),
        site=site,
    )
    return _fewest(site, (first, second), new)


def _factor(operand: Operand) -> Affine | None:
    """The affine map an operand is, if it is a scale only."""
    found = affine(operand)
    return None if found is None or found.shift is not None else found


def _sum(site: Site, first: Operand, second: Operand) -> list[Result] | None:
    """Notes a sum or difference of products, which is linear in both kernels."""
    one, two = linear(first), linear(second)
    if one is None or two is None or one.products + two.products > MOST_PRODUCTS:
        return None
    if grows(one.bias, two.bias) or first.shape != second.shape:
        return None
    if site.refused:
        one, two = whole(one), whole(two)
    minus = site.equation.primitive.name == "sub" and two.bias is not None
    with site.early():
        bias = plus(one.bias, -two.bias if minus else two.bias)
    new = Made(
        parts=(one, two),
        emit=lambda *values: site.emit(*values)[0],
        back=lambda factor, _: factor,
        bias=bias,
        shared=one.shared or two.shared,
        products=one.products + two.products,
    )
    if one.bias is None or two.bias is None:
        return [Result(site.emit(first.value, second.value)[0], new)]
    site.fired("the biases of a sum merged into one")
    return [Result(new.value(), new)]


def _fewest(
    site: Site, operands: Sequence[Operand], note: Affine
) -> list[Result] | None:
    """Emits an affine map as few equations as it can be, and notes it."""
    if note.least >= note.steps or may_absorb(site.users):
        return noted(site, operands, note)
    site.fired("affine maps merged into one")
    return [Result(note.value(), dataclasses.replace(note, steps=note.least))]


def _keeps_shape(site: Site, operand: Operand) -> bool:
    """Whether the result has the operand's shape, not one it is broadcast to."""
    return operand.shape == site.equation.outvars[0].aval.shape
