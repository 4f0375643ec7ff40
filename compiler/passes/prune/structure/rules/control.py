"""Calls, loops and branches: what goes in comes out with the same labels."""

from __future__ import annotations

from collections.abc import Mapping as Dict
from collections.abc import Sequence
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from compiler import jaxprs
from compiler.passes.prune.structure.atoms import Array
from compiler.passes.prune.structure.emit import Emit
from compiler.passes.prune.structure.frame import Frame, Place
from compiler.passes.prune.structure.labels import Axes, Vector
from compiler.passes.prune.structure.numbers import Numbering, first_of, fix, together
from compiler.passes.prune.structure.registry import RULES


def entered(
    place: Place,
    number: int,
    axes: Sequence[Axes],
    carried: bool,
    turning: Dict[int, Numbering] = MappingProxyType({}),
) -> Frame:
    """Goes into one of an equation's bodies.

    Args:
        place: the equation.
        number: which of its bodies.
        axes: the labels of the body's inputs.
        carried: whether what changes between iterations is told by the body.
        turning: by the position of an operand, what its integers number.
    """
    body = jaxprs.bodies(place.equation)[number]
    operands = [
        None if moves and carried else place.equation.invars[position]
        for position, moves in zip(body.operands, body.carried, strict=True)
    ]
    frame = place.analysis.enter(
        body.jaxpr,
        axes,
        caller=place,
        operands=operands,
        numbers={
            var: turning[position]
            for var, position in zip(
                body.jaxpr.jaxpr.invars, body.operands, strict=True
            )
            if position in turning
        },
    )
    place.frames[number] = frame
    return frame


def pass_facts(place: Place, frame: Frame) -> None:
    """Hands what is known of a body's outputs to the results of its call."""
    for inner, outer in zip(
        frame.jaxpr.jaxpr.outvars, place.equation.outvars, strict=True
    ):
        if (value := frame.value(inner)) is not None:
            place.frame.values[outer] = value
        if summed := frame.sum(inner):
            place.frame.sums[outer] = summed
        if not jaxprs.is_literal(inner) and inner in frame.extents:
            place.frame.extents[outer] = frame.extents[inner]
        if (numbers := frame.number(inner)) is not None:
            place.frame.numbers[outer] = numbers


def _turning(place: Place, first: int, count: int) -> dict[int, Numbering]:
    """What the integers that a loop carries number, which may be told inside it."""
    found = {}
    for position in range(first, first + count):
        var = place.equation.invars[position]
        own = place.number(position)
        if jaxprs.is_array(var) and jnp.issubdtype(var.aval.dtype, jnp.integer):
            known = isinstance(own, Numbering) and not own.root.free
            found[position] = own if known else Numbering()
        else:
            fix(place.labels, own)
    return found


def _turned(
    place: Place, turning: dict[int, Numbering], frame: Frame, first: int
) -> None:
    """What comes out of a turn numbers what went in, and so does what came first."""
    for position, one in turning.items():
        result = position - first
        again = frame.jaxpr.jaxpr.outvars[result]
        together(place, one, position, frame.number(again), None)
        if (own := place.number(position)) is not one:
            together(place, one, position, own, place.known(position))
        place.frame.numbers[place.equation.outvars[result]] = one


def traced(emit: Emit, frame: Frame, values: Sequence[Any]) -> jaxprs.Jaxpr:
    """A frame as a jaxpr of its own, for inputs like these."""
    specs = [jax.typeof(value) for value in values]
    return jaxprs.make(lambda *inputs: emit.run(frame, inputs), specs)


def _call(emit: Emit, place: Place, values: list[Any]) -> list[Any]:
    frame = place.frames[0]
    if jaxprs.is_plain_jit(place.equation):
        return emit.run(frame, values)
    (body,) = jaxprs.bodies(place.equation)
    new = body._replace(jaxpr=traced(emit, frame, values))
    return jaxprs.rebind(place.equation, values, [new])


@RULES.on("jit", "closed_call", "remat2", shrink=_call, mask=_call)
def call(place: Place) -> list[Axes]:
    """A call has the labels its body gives."""
    frame = entered(place, 0, place.operands, carried=False)
    pass_facts(place, frame)
    return frame.outputs


def _scan(emit: Emit, place: Place, values: list[Any]) -> list[Any]:
    constants, carry = jaxprs.scan_counts(place.equation)
    first = constants + carry
    sliced = [
        jax.typeof(x) if i < first else _slice_of(x) for i, x in enumerate(values)
    ]
    (body,) = jaxprs.bodies(place.equation)
    frame = place.frames[0]
    inner = jaxprs.make(lambda *inputs: emit.run(frame, inputs), sliced)
    length = emit.count(place.note, place.params["length"])
    params = jaxprs.replace_bodies(place.equation, [body._replace(jaxpr=inner)])
    kept = emit.keep(place.note) if emit.masking else None
    if kept is not None:  # a step that is removed is not made
        values = [*values[:first], *(x[np.flatnonzero(kept)] for x in values[first:])]
    results = jaxprs.bind(place.equation, values, **params, length=length)
    if kept is None:
        return results
    return [*results[:carry], *(_at(kept, x) for x in results[carry:])]


def _at(kept: Array, value: Any) -> Any:
    """What steps give at their places among all of them."""
    whole = jnp.zeros((len(kept), *value.shape[1:]), value.dtype)
    return whole.at[np.flatnonzero(kept)].set(value)


def _slice_of(value: Any) -> Any:
    aval = jax.typeof(value)
    return jax.ShapeDtypeStruct(aval.shape[1:], aval.dtype, weak_type=aval.weak_type)


@RULES.on("scan", shrink=_scan, mask=_scan)
def scan(place: Place) -> list[Axes]:
    """What is carried is one before and after; the steps are an axis of weights."""
    constants, carry = jaxprs.scan_counts(place.equation)
    first = constants + carry
    given, labels = place.operands, place.labels
    steps = _steps(place, first)
    inner = [*given[:first], *(axes[1:] for axes in given[first:])]
    turning = _turning(place, constants, carry)
    frame = entered(place, 0, inner, carried=True, turning=turning)
    _turned(place, turning, frame, constants)
    stacked = frame.jaxpr.jaxpr.outvars[carry:], place.equation.outvars[carry:]
    for var, result in zip(*stacked, strict=True):
        if isinstance(numbers := frame.number(var), Numbering) and not numbers.free:
            place.frame.numbers[result] = numbers
        else:
            fix(labels, numbers)
    outputs = frame.outputs
    carried = [
        tuple(map(labels.unify, before, after))
        for before, after in zip(given[constants:first], outputs[:carry], strict=True)
    ]
    return [*carried, *((steps, *axes) for axes in outputs[carry:])]


def _steps(place: Place, first: int) -> Vector:
    """The labels of the steps of a loop over weights; steps over inputs stay."""
    leading = [axes[0] for axes in place.operands[first:]]
    late = [v for v in place.equation.invars[first:] if not place.frame.is_early(v)]
    if not leading or late or place.analysis.in_rule:
        place.freeze(*leading)
        return None
    steps = leading[0]
    for vector in leading[1:]:
        steps = place.labels.unify(steps, vector)
    place.note = steps
    place.analysis.roles.layers.append(steps)
    return steps


def _while(emit: Emit, place: Place, values: list[Any]) -> list[Any]:
    new = []
    for number, body in enumerate(jaxprs.bodies(place.equation)):
        given = [values[position] for position in body.operands]
        jaxpr = traced(emit, place.frames[number], given)
        new.append(body._replace(jaxpr=jaxpr))
    return jaxprs.rebind(place.equation, values, new)


@RULES.on("while", shrink=_while, mask=_while)
def loop(place: Place) -> list[Axes]:
    """What is carried is one before and after."""
    condition, body = jaxprs.bodies(place.equation)
    count = len(place.equation.outvars)
    first = len(place.operands) - count
    turning = _turning(place, first, count)
    asked = [place.operands[i] for i in condition.operands]
    entered(place, 0, asked, carried=True, turning=turning)
    inner = [place.operands[i] for i in body.operands]
    frame = entered(place, 1, inner, carried=True, turning=turning)
    _turned(place, turning, frame, first)
    before = place.operands[first:]
    return [
        tuple(map(place.labels.unify, one, other))
        for one, other in zip(before, frame.outputs, strict=True)
    ]


@RULES.on("cond", shrink=_while, mask=_while)
def branches(place: Place) -> list[Axes]:
    """What the branches give is one."""
    results: list[Axes] = []
    for number, body in enumerate(jaxprs.bodies(place.equation)):
        inner = [place.operands[i] for i in body.operands]
        outputs = entered(place, number, inner, carried=False).outputs
        pairs = zip(results, outputs, strict=True)
        results = (
            [tuple(map(place.labels.unify, *pair)) for pair in pairs]
            if number
            else outputs
        )
    fix(place.labels, place.number(0))
    for result, var in enumerate(place.equation.outvars):
        outs = [f.jaxpr.jaxpr.outvars[result] for f in place.frames.values()]
        pairs = zip(place.frames.values(), outs, strict=True)
        given = [frame.number(out) for frame, out in pairs]
        if one := first_of(given):
            for other in given:
                together(place, one, 0, other, None)
            place.frame.numbers[var] = one
    return results
