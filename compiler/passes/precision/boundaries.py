"""Takes values of few bits into the bodies of loops and calls, and out of them.

A body is given and gives float32 where it was traced so. What it would round anyway is
rounded before it, once and not in each iteration (weights, stacked weights); what was
widened just before it is widened inside it instead; and the same for what comes out.
What a loop carries stays float32: errors would add up.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from compiler import jaxprs
from compiler.graph import drop_dead, evaluate, required
from compiler.rewrite import Operand, Result, Site

_FEW = (jnp.dtype(jnp.bfloat16), jnp.dtype(jnp.float16))
_NARROWED = ("scan", "while", "cond", "remat2", "jit")
"""Bodies that are no more than the equations in them, without a derivative rule."""


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Low:
    """What is noted of a float32 value that is a number of few bits: that number."""

    value: Any


def widened(value: Any) -> Result:
    """A value of few bits as a float32 one, with a note of what it was."""
    return Result(jax.lax.convert_element_type(value, jnp.float32), Low(value))


def cross(
    site: Site,
    operands: Sequence[Operand],
    wanted: Sequence[Any],
    rounded: Callable[[Operand, Any], Any],
) -> list[Any] | None:
    """Emits a loop or call with bodies that take and give few bits where they can.

    Args:
        site: an equation with bodies, already rewritten.
        operands: its operands.
        wanted: for each output the dtype that all who use it read it in, or None.
        rounded: rounds an operand, outside.
    """
    if site.equation.primitive.name not in _NARROWED:
        return None
    values = [operand.value for operand in operands]
    for place, operand in enumerate(operands):
        dtype = _entering(site, place, operand)
        if dtype is not None:
            values[place] = rounded(operand, dtype)
    left = _leaving(site, wanted)
    same = all(v is o.value for v, o in zip(values, operands, strict=True))
    if same and not any(left):
        return None
    bodies = [body._replace(jaxpr=_narrow(body, values, left)) for body in site.bodies]
    outputs = site.emit(*values, **jaxprs.replace_bodies(site.equation, bodies))
    site.fired("values cross in few bits")
    return [
        widened(output) if dtype else output
        for output, dtype in zip(outputs, left, strict=True)
    ]


def _entering(site: Site, place: int, operand: Operand) -> Any:
    """The dtype an operand can enter in; None where it stays as it is."""
    if place in _carried(site.equation):
        return None
    wanted: set[Any] = set()
    for body in site.bodies:
        for i in [i for i, at in enumerate(body.operands) if at == place]:
            wanted |= _read_as(body.jaxpr, body.jaxpr.jaxpr.invars[i])
    if not wanted or getattr(operand, "dtype", None) != jnp.float32:
        return None
    if isinstance(operand.note, Low):
        return operand.note.value.dtype
    (dtype, *more) = wanted
    return dtype if not more and dtype in _FEW else None


def _carried(equation: jaxprs.Equation) -> range:
    """The operands a loop carries, which it gives back in the same dtype."""
    if equation.primitive.name == "while":
        return range(len(equation.invars))[-len(equation.outvars) :]
    if equation.primitive.name != "scan":
        return range(0)
    consts, carry = jaxprs.scan_counts(equation)
    return range(consts, consts + carry)


def _read_as(jaxpr: jaxprs.Jaxpr, var: Any) -> set[Any]:
    """The dtypes a body reads an input in."""
    found = {var.aval.dtype} if var in jaxprs.variables(jaxpr.jaxpr.outvars) else set()
    for equation in jaxprs.equations(jaxpr):
        if var in jaxprs.variables(equation.invars):
            converts = equation.primitive.name == "convert_element_type"
            found.add(equation.outvars[0].aval.dtype if converts else var.aval.dtype)
    return found


def _leaving(site: Site, wanted: Sequence[Any]) -> list[Any]:
    """The dtype each output leaves in, None where it stays as it is.

    Few bits if it is widened as the last thing, or rounded by all that use it.
    """
    if site.equation.primitive.name == "while":
        return [None] * len(wanted)
    carried = len(_carried(site.equation))
    found: list[Any] = [None] * carried
    sources = [_widenings(body.jaxpr) for body in site.bodies]
    for i, dtype in list(enumerate(wanted))[carried:]:
        ends = [body.jaxpr.jaxpr.outvars[i] for body in site.bodies]
        before = {
            None if jaxprs.is_literal(v) or v not in s else s[v].aval.dtype
            for v, s in zip(ends, sources, strict=True)
        }
        found.append(before.pop() if len(before) == 1 and None not in before else dtype)
    return found


def _widenings(jaxpr: jaxprs.Jaxpr) -> dict[Any, Any]:
    """What each variable that was widened was before."""
    return {
        equation.outvars[0]: equation.invars[0]
        for equation in jaxprs.equations(jaxpr)
        if equation.primitive.name == "convert_element_type"
        and equation.outvars[0].aval.dtype == jnp.float32
        and equation.invars[0].aval.dtype in _FEW
        and not jaxprs.is_literal(equation.invars[0])
    }


def _narrow(
    body: jaxprs.Body, values: Sequence[Any], left: Sequence[Any]
) -> jaxprs.Jaxpr:
    """A body for operands as they are now, that gives some outputs in few bits."""
    jaxpr, sources = body.jaxpr, _widenings(body.jaxpr)
    invars, outvars = jaxpr.jaxpr.invars, list(jaxpr.jaxpr.outvars)
    left = [None] * len(outvars) if len(left) != len(outvars) else left  # a condition
    for i, dtype in enumerate(left):
        source = None if jaxprs.is_literal(outvars[i]) else sources.get(outvars[i])
        if source is not None and source.aval.dtype == dtype:
            outvars[i] = source
    jaxpr = jaxprs.part(jaxpr, invars, outvars, jaxprs.equations(jaxpr))
    specs = [jaxprs.spec(var) for var in invars]
    for i, place in enumerate(body.operands):
        if specs[i].dtype != values[place].dtype:
            specs[i] = jax.ShapeDtypeStruct(specs[i].shape, values[place].dtype)

    def run(*arguments: Any) -> list[Any]:
        outputs = evaluate(jaxpr, _environment(jaxpr, arguments))
        return [
            jax.lax.convert_element_type(output, dtype or output.dtype)
            for output, dtype in zip(outputs, left, strict=True)
        ]

    return drop_dead(jaxprs.make(run, specs))


def _environment(jaxpr: jaxprs.Jaxpr, arguments: Sequence[Any]) -> dict[Any, Any]:
    """A body's inputs, those of few bits widened for those who want that."""
    env = dict(zip(jaxpr.jaxpr.invars, arguments, strict=True))
    narrow = {v: x for v, x in env.items() if v.aval.dtype != x.dtype}
    for equation in jaxprs.equations(jaxpr):
        if equation.primitive.name == "convert_element_type":
            (operand,), (result,) = equation.invars, equation.outvars
            value = None if jaxprs.is_literal(operand) else narrow.get(operand)
            if value is not None and result.aval.dtype == value.dtype:
                env[result] = value
    needs = required(jaxpr, set(env) - narrow.keys())
    for var, value in narrow.items():
        if var in needs:
            env[var] = jax.lax.convert_element_type(value, var.aval.dtype)
    return env
