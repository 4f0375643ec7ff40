"""Functions with derivative rules of their own: the rules shrink with them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from compiler import jaxprs
from compiler.passes.prune.structure.emit import Emit
from compiler.passes.prune.structure.frame import Frame, Place
from compiler.passes.prune.structure.labels import Axes
from compiler.passes.prune.structure.registry import RULES
from compiler.passes.prune.structure.rules.control import entered, pass_facts


def _in_rule(place: Place, jaxpr: jaxprs.Jaxpr, axes: list[Axes]) -> Frame:
    """Goes through a derivative rule; functions called in it are taken as written."""
    analysis = place.analysis
    analysis.in_rule = True
    try:
        return analysis.enter(jaxpr, axes, caller=place)
    finally:
        analysis.in_rule = False


def _unify_all(place: Place, one: list[Axes], other: list[Axes]) -> None:
    for left, right in zip(one, other, strict=True):
        for vector, again in zip(left, right, strict=True):
            place.labels.unify(vector, again)


def _with_jvp(emit: Emit, place: Place, values: list[Any]) -> list[Any]:
    primal, rule = place.frames[0], place.note
    if rule is None:
        return emit.run(primal, values)
    return list(_jvp_function(emit, primal, place.frames["jvp"], rule)(*values))


def _jvp_function(
    emit: Emit, primal: Frame, derivative: Frame, rule: jaxprs.Forward
) -> Callable[..., tuple[Any, ...]]:
    @jax.custom_jvp
    def function(*inputs: Any) -> tuple[Any, ...]:
        return tuple(emit.run(primal, inputs))

    @function.defjvp
    def _(inputs: Any, tangents: Any) -> Any:
        pairs = zip(tangents, rule.without, strict=True)
        given = [*inputs, *(t for t, without in pairs if not without)]
        results = emit.run(derivative, given)
        count = len(rule.constant)
        outputs, rest = results[:count], iter(results[count:])
        return tuple(outputs), tuple(
            jaxprs.no_tangent(output) if constant else next(rest)
            for output, constant in zip(outputs, rule.constant, strict=True)
        )

    return function


@RULES.on("custom_jvp_call", shrink=_with_jvp, mask=_with_jvp)
def custom_jvp(place: Place) -> list[Axes]:
    """The function, and its forward rule beside it."""
    frame = entered(place, 0, place.operands, carried=False)
    pass_facts(place, frame)
    outputs = frame.outputs
    if place.analysis.in_rule:
        return outputs
    rule = place.note = jaxprs.forward_rule(place.equation)
    if rule is None:
        return outputs
    pairs = zip(place.operands, rule.without, strict=True)
    given = [*place.operands, *(axes for axes, without in pairs if not without)]
    inside = place.frames["jvp"] = _in_rule(place, rule.jaxpr, given)
    moving = zip(outputs, rule.constant, strict=True)
    tangents = [axes for axes, constant in moving if not constant]
    _unify_all(place, [*outputs, *tangents], inside.outputs)
    return outputs


def _with_vjp(emit: Emit, place: Place, values: list[Any]) -> list[Any]:
    if place.note is None:
        return emit.run(place.frames[0], values)
    return list(_vjp_function(emit, place.frames, place.note)(*values))


def _vjp_function(
    emit: Emit, frames: dict[Any, Frame], rule: jaxprs.Backward
) -> Callable[..., tuple[Any, ...]]:
    count = len(frames[0].jaxpr.jaxpr.outvars)

    @jax.custom_vjp
    def function(*inputs: Any) -> tuple[Any, ...]:
        return tuple(emit.run(frames[0], inputs))

    def forward(*inputs: Any) -> Any:
        results = emit.run(frames["forward"], inputs)
        kept = [inputs[-1 - i] if i < 0 else results[i] for i in rule.residuals]
        return tuple(results[len(results) - count :]), (kept, inputs)

    def backward(residuals: Any, cotangents: Any) -> Any:
        kept, inputs = residuals
        found = iter(emit.run(frames["backward"], [*kept, *cotangents]))
        return tuple(
            next(found) if i in rule.inputs else jaxprs.no_tangent(x)
            for i, x in enumerate(inputs)
        )

    function.defvjp(forward, backward)
    return function


@RULES.on("custom_vjp_call", shrink=_with_vjp, mask=_with_vjp)
def custom_vjp(place: Place) -> list[Axes]:
    """The function, and its backward rule beside it."""
    frame = entered(place, 0, place.operands, carried=False)
    pass_facts(place, frame)
    outputs = frame.outputs
    if place.analysis.in_rule:
        return outputs
    rule = place.note = jaxprs.backward_rule(place.equation)
    if rule is None:
        return outputs
    forward = _in_rule(place, rule.forward, list(place.operands))
    found = forward.outputs
    kept = [place.operands[-1 - i] if i < 0 else found[i] for i in rule.residuals]
    backward = _in_rule(place, rule.backward, [*kept, *outputs])
    place.frames |= {"forward": forward, "backward": backward}
    _unify_all(place, outputs, found[len(found) - len(outputs) :])
    _unify_all(place, [place.operands[i] for i in rule.inputs], backward.outputs)
    return outputs
