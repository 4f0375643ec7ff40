"""Evaluating a graph and handing out some of the values inside it.

What is inside a loop comes out of it stacked along a new first axis; what is inside a
branch that is not taken, or a loop that does not turn, is zero. Everything can be
differentiated, and what has a derivative rule of its own keeps it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp

from compiler import jaxprs
from compiler.distill.places import Place
from compiler.errors import TapError
from compiler.passes.factorize.symbolic import where_going

Places: TypeAlias = Mapping[str, Place]
Found: TypeAlias = dict[str, Any]


def evaluate(
    jaxpr: jaxprs.Jaxpr, values: Sequence[Any], places: Places
) -> tuple[list[Any], Found]:
    """A jaxpr's outputs, and the values at some places by name.

    Raises:
        TapError: if a place cannot be reached.
    """
    env = dict(zip(jaxpr.jaxpr.constvars, jaxpr.consts, strict=True))
    env |= zip(jaxpr.jaxpr.invars, values, strict=True)
    found: Found = {}

    def look(var: Any) -> Any:
        return var.val if jaxprs.is_literal(var) else env[var]

    for number, equation in enumerate(jaxprs.equations(jaxpr)):
        operands = [look(var) for var in equation.invars]
        inside = _inside(places, number)
        with jaxprs.provenance(equation):
            if inside:
                results, new = _enter(equation, operands, inside)
                found |= new
            else:
                results = jaxprs.bind(equation, operands)
        env.update(zip(equation.outvars, results, strict=True))
        for name, place in places.items():
            if not place.route and place.equation == number:
                found[name] = results[place.output]
    return [look(var) for var in jaxpr.jaxpr.outvars], found


def _inside(places: Places, number: int) -> dict[int, dict[str, Place]]:
    """The places inside an equation, by body, as seen from there."""
    found: dict[int, dict[str, Place]] = {}
    for name, place in places.items():
        if place.route and place.route[0][0] == number:
            inner = place._replace(route=place.route[1:])
            found.setdefault(place.route[0][1], {})[name] = inner
    return found


def _enter(
    equation: jaxprs.Equation,
    operands: Sequence[Any],
    inside: Mapping[int, Places],
) -> tuple[list[Any], Found]:
    enter = _CONTROL.get(equation.primitive.name)
    if enter is None:
        raise TapError(
            f"{', '.join(n for own in inside.values() for n in own)}: expected a value "
            f"that can be handed out, is inside a {equation.primitive.name} "
            f"({jaxprs.source(equation)}). Tap what that gives."
        )
    return enter(equation, operands, inside)


def _empty(body: jaxprs.Jaxpr, places: Places) -> Found:
    """Zeros for what is found in a body."""
    specs = [jaxprs.spec(var) for var in body.jaxpr.invars]
    found = jax.eval_shape(lambda *v: evaluate(body, v, places)[1], *specs)
    return jax.tree.map(lambda spec: jnp.zeros(spec.shape, spec.dtype), found)


def _scan(
    equation: jaxprs.Equation, operands: Sequence[Any], inside: Mapping[int, Places]
) -> tuple[list[Any], Found]:
    (body,) = jaxprs.bodies(equation)
    consts, carry = jaxprs.scan_counts(equation)
    fixed, xs = operands[:consts], operands[consts + carry :]

    def step(carried: Any, slices: Sequence[Any]) -> Any:
        outputs, found = evaluate(body.jaxpr, [*fixed, *carried, *slices], inside[0])
        return outputs[:carry], (outputs[carry:], found)

    start = list(operands[consts : consts + carry])
    options = {k: equation.params[k] for k in ("length", "reverse", "unroll")}
    last, (stacked, found) = jax.lax.scan(step, start, list(xs), **options)
    return [*last, *stacked], found


def _while(
    equation: jaxprs.Equation, operands: Sequence[Any], inside: Mapping[int, Places]
) -> tuple[list[Any], Found]:
    """What is found is that of the last turn. The condition is computed at its end."""
    bodies = jaxprs.bodies(equation)
    count = len(equation.outvars)

    def run(which: int, values: Sequence[Any]) -> tuple[list[Any], Found]:
        taken = bodies[which].operands
        fixed = [operands[i] for i in taken[: len(taken) - count]]
        own = inside.get(which, {})
        return evaluate(bodies[which].jaxpr, [*fixed, *values], own)

    def step(carried: Any) -> Any:
        go, before, last = carried
        values, found = run(1, before)
        values = [where_going(go, *pair) for pair in zip(values, before, strict=True)]
        (again,), more = run(0, values)
        new = {name: _where(go, value, last[name]) for name, value in found.items()}
        return again, values, new | more

    values = list(operands[len(operands) - count :])
    (go,), first = run(0, values)
    empty = _empty(bodies[1].jaxpr, inside[1]) if 1 in inside else {}
    start = go, values, first | empty
    _, last, found = jax.lax.while_loop(lambda carried: carried[0].any(), step, start)
    return last, found


def _where(go: Any, new: Any, old: Any) -> Any:
    """The new value where a loop goes on; all of it where it is not mapped as that."""
    mapped = new.shape[: go.ndim] == go.shape
    return where_going(go, new, old) if mapped else new


def _cond(
    equation: jaxprs.Equation, operands: Sequence[Any], inside: Mapping[int, Places]
) -> tuple[list[Any], Found]:
    bodies = jaxprs.bodies(equation)
    empty: Found = {}
    for i, places in inside.items():
        empty |= _empty(bodies[i].jaxpr, places)

    def branch(i: int) -> Callable[..., Any]:
        def run(*values: Any) -> tuple[list[Any], Found]:
            outputs, found = evaluate(bodies[i].jaxpr, values, inside.get(i, {}))
            return outputs, empty | found

        return run

    index, *given = operands
    return jax.lax.switch(index, [branch(i) for i in range(len(bodies))], *given)


def _remat(
    equation: jaxprs.Equation, operands: Sequence[Any], inside: Mapping[int, Places]
) -> tuple[list[Any], Found]:
    """Computed again in the backward pass like the rest of the body."""
    (body,) = jaxprs.bodies(equation)
    names = sorted(inside[0])

    def run(*values: Any) -> list[Any]:
        outputs, found = evaluate(body.jaxpr, values, inside[0])
        return [*outputs, *(found[name] for name in names)]

    specs = [jaxprs.spec(var) for var in body.jaxpr.jaxpr.invars]
    larger = body._replace(jaxpr=jaxprs.make(run, specs))
    results = jaxprs.rebind(equation, operands, [larger])
    count = len(equation.outvars)
    return results[:count], dict(zip(names, results[count:], strict=True))


def _custom(
    equation: jaxprs.Equation, operands: Sequence[Any], inside: Mapping[int, Places]
) -> tuple[list[Any], Found]:
    """The results with their own derivative; what is inside computed beside them."""
    (body,) = jaxprs.bodies(equation)
    found = evaluate(body.jaxpr, operands, inside[0])[1]
    return jaxprs.bind(equation, operands), found


def _call(
    equation: jaxprs.Equation, operands: Sequence[Any], inside: Mapping[int, Places]
) -> tuple[list[Any], Found]:
    (body,) = jaxprs.bodies(equation)
    return evaluate(body.jaxpr, operands, inside[0])


_CONTROL: dict[str, Callable[..., tuple[list[Any], Found]]] = {
    "scan": _scan,
    "while": _while,
    "cond": _cond,
    "remat2": _remat,
    "custom_jvp_call": _custom,
    "custom_vjp_call": _custom,
    "jit": _call,
    "closed_call": _call,
}
