"""Rules that move what depends on params alone out of loops and branches.

After them everything known early stands at the top level of the program, where
`fold` can compute it once. A body gives up what `binding.cut` chooses, so nothing
is stored that is larger than what it came from.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax

from compiler import jaxprs
from compiler.binding import cut, dependencies
from compiler.graph import evaluate, required
from compiler.rewrite import Operand, Rules, Site, body_known

HOIST = Rules()


@HOIST.on("scan")
def hoist_from_scan(site: Site, *operands: Operand) -> list[Any] | None:
    """Computes before the loop what its body derives from constants and weights.

    What depends on the loop's constants only is computed once; what depends on
    one slice of stacked weights is computed for all slices and stacked again.
    """
    (body,) = site.bodies
    jaxpr, values = body.jaxpr, [operand.value for operand in operands]
    consts, carry = jaxprs.scan_counts(site.equation)
    inputs, outputs = jaxpr.jaxpr.invars, jaxpr.jaxpr.outvars
    moves = body.carried[consts : consts + carry]
    chosen = _chosen(
        site, body, operands, [*_where(moves, outputs[:carry]), *outputs[carry:]]
    )
    if not chosen:
        return None
    given = dict(zip(inputs, values, strict=True))
    carried = [v for v, c in zip(inputs, body.carried, strict=True) if c]
    slices = inputs[consts + carry :]
    fixed = {v: given[v] for v in inputs if v not in {*carried, *slices}}
    steady, _ = dependencies(jaxpr, list(fixed))
    once = [v for v in chosen if v in steady]
    each = [v for v in chosen if v not in steady]

    def derive(_: None, xs: Sequence[Any]) -> tuple[None, list[Any]]:
        return None, evaluate(jaxpr, fixed | _pair(slices, xs), each)

    def step(carry_in: Sequence[Any], xs: Sequence[Any]) -> tuple[list[Any], list[Any]]:
        env = fixed | _pair(carried, carry_in) | _pair((*left, *each), xs)
        outputs = evaluate(jaxpr, env)
        return _where(moves, outputs[:carry]), outputs[carry:]

    options = {k: site.equation.params[k] for k in ("length", "reverse", "unroll")}
    stacked = [given[v] for v in slices]
    with site.early():
        fixed |= _pair(once, evaluate(jaxpr, fixed, once))
        length = options["length"]
        derived = jax.lax.scan(derive, None, stacked, length)[1] if each else []
    needs = required(jaxpr, set(chosen))
    left = [v for v in slices if v in needs]
    xs = [*(given[v] for v in left), *derived]
    last, collected = jax.lax.scan(step, [given[v] for v in carried], xs, **options)
    _record(site, chosen)
    return [*_restored(moves, values[consts : consts + carry], last), *collected]


@HOIST.on("while")
def hoist_from_while(site: Site, *operands: Operand) -> list[Any] | None:
    """Computes before the loop what its condition and body derive from constants."""
    functions, chosen = [], []
    if site.bodies[0].jaxpr.jaxpr.outvars[0].aval.shape:
        return None  # mapped: each example has an end of its own
    count = len(site.equation.outvars)
    start, moves = len(operands) - count, site.bodies[1].carried[-count:]
    changing = _where(moves, site.bodies[1].jaxpr.jaxpr.outvars)
    for body, needed in zip(site.bodies, (None, changing), strict=True):
        invars = body.jaxpr.jaxpr.invars
        given = _pair(invars, [operands[i].value for i in body.operands])
        moving = _where(body.carried, invars)
        fixed = {v: given[v] for v in invars if v not in moving}
        kept = _chosen(site, body, operands, needed)
        with site.early():
            fixed |= _pair(kept, evaluate(body.jaxpr, fixed, kept))
        functions.append(_remainder(body.jaxpr, fixed, moving))
        chosen += kept
    if not chosen:
        return None
    condition, step = functions
    values = [operand.value for operand in operands[start:]]
    last = jax.lax.while_loop(
        lambda c: condition(c)[0],
        lambda c: _where(moves, step(c)),
        _where(moves, values),
    )
    _record(site, chosen)
    return _restored(moves, values, last)


@HOIST.on("cond")
def hoist_from_cond(site: Site, *operands: Operand) -> list[Any] | None:
    """Computes before the choice what any branch derives from weights."""
    branches, chosen = [], []
    for body in site.bodies:
        values = [operands[i].value for i in body.operands]
        given = _pair(body.jaxpr.jaxpr.invars, values)
        kept = _chosen(site, body, operands)
        with site.early():
            given |= _pair(kept, evaluate(body.jaxpr, given, kept))
        branches.append(_remainder(body.jaxpr, given, ()))
        chosen += kept
    if not chosen:
        return None
    _record(site, chosen)
    return list(jax.lax.switch(operands[0].value, branches, ()))


@HOIST.on("remat2")
def hoist_from_remat(site: Site, *operands: Operand) -> list[Any] | None:
    """Computes outside what a rematerialised region derives from weights."""
    (body,) = site.bodies
    jaxpr = body.jaxpr
    chosen = _chosen(site, body, operands)
    if not chosen:
        return None
    given = _pair(jaxpr.jaxpr.invars, [operand.value for operand in operands])
    with site.early():
        given |= _pair(chosen, evaluate(jaxpr, given, chosen))
    needs = required(jaxpr, set(chosen))
    inside = [v for v in (*jaxpr.jaxpr.invars, *chosen) if v in needs]
    options = {k: site.equation.params[k] for k in ("prevent_cse", "policy")}
    region = jax.checkpoint(_remainder(jaxpr, {}, inside), **options)
    _record(site, chosen)
    return list(region([given[v] for v in inside]))


def _chosen(
    site: Site,
    body: jaxprs.Body,
    operands: Sequence[Operand],
    outputs: Sequence[Any] | None = None,
) -> list[Any]:
    """The derived values worth computing outside; inputs stay where they are.

    Args:
        site: of the equation.
        body: one of its bodies.
        operands: of the equation.
        outputs: those that it has to compute; all by default.
    """
    jaxpr, inputs = body.jaxpr, body.jaxpr.jaxpr.invars
    if site.refused:
        return []
    if outputs is not None:
        jaxpr = jaxprs.part(jaxpr, inputs, outputs, jaxprs.equations(jaxpr))
    return [v for v in cut(jaxpr, body_known(body, operands)) if v not in inputs]


def _remainder(
    jaxpr: jaxprs.Jaxpr, fixed: dict[Any, Any], moving: Sequence[Any]
) -> Any:
    """What is left of a body once the `fixed` variables are given."""

    def body(values: Sequence[Any]) -> list[Any]:
        return evaluate(jaxpr, fixed | _pair(moving, values))

    return body


def _where(flags: Sequence[bool], values: Sequence[Any]) -> list[Any]:
    """The values whose flag is set."""
    return [value for value, flag in zip(values, flags, strict=True) if flag]


def _restored(
    moves: Sequence[bool], first: Sequence[Any], last: Sequence[Any]
) -> list[Any]:
    """What a loop ends with: what moved, and what never did as it was given."""
    rest = iter(last)
    pairs = zip(moves, first, strict=True)
    return [next(rest) if moved else value for moved, value in pairs]


def _pair(variables: Sequence[Any], values: Sequence[Any]) -> dict[Any, Any]:
    return dict(zip(variables, values, strict=True))


def _record(site: Site, chosen: Sequence[Any]) -> None:
    site.fired(f"{len(chosen)} weights-only value(s) moved out of the body")
