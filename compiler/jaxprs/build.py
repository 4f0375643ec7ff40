"""Jaxprs made by tracing, or of the parts of another without tracing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.core
from jax.extend import core, source_info_util

from compiler.jaxprs.calls import bodies, replace_bodies, with_params
from compiler.jaxprs.kinds import Equation, Jaxpr, Var, equations, spec


def make(function: Callable[..., Any], specs: Sequence[Any]) -> Jaxpr:
    """Traces a function of flat arrays to a closed jaxpr, without running it."""
    with source_info_util.reset_name_stack():
        return jax.make_jaxpr(function)(*specs)


def check(jaxpr: Jaxpr) -> None:
    """Raises if a jaxpr is not well-typed."""
    core.check_jaxpr(jaxpr.jaxpr)


def with_equations(jaxpr: Jaxpr, kept: list[Equation]) -> Jaxpr:
    """The same jaxpr with some of its equations only."""
    return _with_constants(jaxpr.jaxpr.replace(eqns=kept), jaxpr.consts)


def part(
    jaxpr: Jaxpr, inputs: Sequence[Var], outputs: Sequence[Var], kept: list[Equation]
) -> Jaxpr:
    """Some equations of a jaxpr as a jaxpr of their own, without tracing them."""
    opened = jaxpr.jaxpr
    effects = set().union(*(equation.effects for equation in kept))
    new = opened.replace(
        invars=list(inputs), outvars=list(outputs), eqns=kept, effects=effects
    )
    return _with_constants(new, jaxpr.consts)


def rebuilt(
    jaxpr: Jaxpr,
    equations: list[Equation],
    inputs: Sequence[Var],
    outputs: Sequence[Any],
    constants: Sequence[tuple[Var, Any]],
) -> Jaxpr:
    """The same jaxpr with other equations, inputs, outputs and constants."""
    new = jaxpr.jaxpr.replace(
        eqns=equations,
        invars=list(inputs),
        outvars=list(outputs),
        constvars=[var for var, _ in constants],
    )
    return _with_constants(new, [value for _, value in constants])


def _with_constants(jaxpr: Any, constants: Sequence[Any]) -> Jaxpr:
    """An open jaxpr closed over constants."""
    if core.ClosedJaxpr is core.Jaxpr:  # one class for both since JAX 0.12
        return jaxpr.replace(consts=constants)
    return core.ClosedJaxpr(jaxpr, constants)


def captured_arrays(jaxpr: Jaxpr) -> tuple[jax.Array, ...]:
    """The arrays a traced function closed over (what it made itself is not among)."""
    return tuple(
        c
        for c in jaxpr.consts
        if isinstance(c, jax.Array) and not isinstance(c, jax.core.Tracer)
    )


def constants_to_inputs(jaxpr: Jaxpr, arrays: Sequence[Any], place: int) -> Jaxpr:
    """Turns the constants that are these arrays into inputs, from `place` on."""
    if not arrays:
        return jaxpr
    specs = [spec(var) for var in jaxpr.jaxpr.invars]
    extra = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in arrays]
    where = {id(array): place + i for i, array in enumerate(arrays)}

    def run(*arguments: Any) -> list[Any]:
        consts = [
            arguments[where[id(c)]] if id(c) in where else c for c in jaxpr.consts
        ]
        own = (*arguments[:place], *arguments[place + len(arrays) :])
        return jax.core.eval_jaxpr(jaxpr.jaxpr, consts, *own)

    return make(run, [*specs[:place], *extra, *specs[place:]])


def distinct(jaxpr: Jaxpr) -> Jaxpr:
    """The same jaxpr with an object of its own for each equation at each place.

    JAX keeps one body for all calls of a function; what is known of an equation in it
    would be known of none of the calls.
    """
    new = []
    for equation in equations(jaxpr):
        inside = [b._replace(jaxpr=distinct(b.jaxpr)) for b in bodies(equation)]
        new.append(with_params(equation, **replace_bodies(equation, inside)))
    return with_equations(jaxpr, new)
