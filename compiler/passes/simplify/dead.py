"""What no output depends on is removed, out of loops and branches too."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from compiler import jaxprs
from compiler.passes.simplify.record import Record

Live = Sequence[bool]
"""For each of a row of variables, whether anything reads it."""


def without_dead(
    jaxpr: jaxprs.Jaxpr, record: Record, live: Live | None = None
) -> tuple[jaxprs.Jaxpr, list[bool]]:
    """Removes what the live outputs do not need; inputs and outputs stay.

    Args:
        jaxpr: a closed jaxpr.
        record: where what is removed is counted.
        live: for each output, whether it is read; all by default.

    Returns:
        The jaxpr, the same object if nothing was dead, and for each input whether
        it is read.
    """
    inner = jaxpr.jaxpr
    outputs = inner.outvars
    live = [True] * len(outputs) if live is None else live
    read = jaxprs.variables(v for v, used in zip(outputs, live, strict=True) if used)
    kept: list[jaxprs.Equation] = []
    changed = False
    for equation in reversed(inner.eqns):
        used = [var in read for var in equation.outvars]
        if not (any(used) or equation.effects or _holds(equation)):
            record.fired("operation nobody reads", equation)
            changed = True
            continue
        new = _pruned(equation, used, record)
        changed = changed or new is not equation
        kept.append(new)
        read |= jaxprs.variables(new.invars)
    constants = list(zip(inner.constvars, jaxpr.consts, strict=True))
    needed = [pair for pair in constants if pair[0] in read]
    if changed or len(needed) < len(constants):
        jaxpr = jaxprs.rebuilt(jaxpr, kept[::-1], inner.invars, outputs, needed)
    return jaxpr, [var in read for var in inner.invars]


def _pruned(
    equation: jaxprs.Equation, used: list[bool], record: Record
) -> jaxprs.Equation:
    """An equation without what is dead inside it."""
    bodies = jaxprs.bodies(equation)
    if not bodies:
        return equation
    prune = _PRUNERS.get(equation.primitive.name)
    if prune is None or any(jaxprs.has_refs(body.jaxpr) for body in bodies):
        return _inside(equation, bodies, record)
    new = prune(equation, bodies, used, record)
    fewer = len(new.invars) < len(equation.invars)
    if fewer or len(new.outvars) < len(equation.outvars):
        record.fired(f"unused value of a {equation.primitive.name}", equation)
    return new


def _inside(
    equation: jaxprs.Equation, bodies: Sequence[jaxprs.Body], record: Record
) -> jaxprs.Equation:
    """Removes dead equations of bodies whose inputs and outputs must stay."""
    new = [b._replace(jaxpr=without_dead(b.jaxpr, record)[0]) for b in bodies]
    return _with_bodies(equation, bodies, new)


def _call(
    equation: jaxprs.Equation,
    bodies: Sequence[jaxprs.Body],
    used: list[bool],
    record: Record,
) -> jaxprs.Equation:
    """Prunes a `jit` or `remat2`."""
    (body,) = bodies
    jaxpr, reads = without_dead(body.jaxpr, record, used)
    rows = dict.fromkeys(("in_shardings", "in_layouts", "donated_invars"), reads)
    rows |= dict.fromkeys(("out_shardings", "out_layouts"), used)
    params = {
        name: tuple(_kept(equation.params[name], row))
        for name, row in rows.items()
        if name in equation.params
    }
    new = body._replace(jaxpr=_signature(jaxpr, reads, used))
    return _rebuilt(equation, bodies, [new], reads, used, params)


def _cond(
    equation: jaxprs.Equation,
    bodies: Sequence[jaxprs.Body],
    used: list[bool],
    record: Record,
) -> jaxprs.Equation:
    """Prunes the branches of a `cond`: what none of them reads is dropped."""
    pruned = [without_dead(body.jaxpr, record, used) for body in bodies]
    reads = [any(row) for row in zip(*(row for _, row in pruned), strict=True)]
    new = [
        body._replace(jaxpr=_signature(jaxpr, reads, used))
        for body, (jaxpr, _) in zip(bodies, pruned, strict=True)
    ]
    return _rebuilt(equation, bodies, new, [True, *reads], used, {})


def _scan(
    equation: jaxprs.Equation,
    bodies: Sequence[jaxprs.Body],
    used: list[bool],
    record: Record,
) -> jaxprs.Equation:
    """Prunes a `scan`: a value that only feeds itself is not carried any more."""
    (body,) = bodies
    consts, carry = jaxprs.scan_counts(equation)
    used = list(used)
    while True:
        quiet = record.draft()
        jaxpr, reads = without_dead(body.jaxpr, quiet, used)
        feeds = reads[consts : consts + carry] + [False] * (len(used) - carry)
        wanted = [a or b for a, b in zip(used, feeds, strict=True)]
        if wanted == used:
            break
        used = wanted
    record.merge(quiet)
    reads = [*reads[:consts], *used[:carry], *reads[consts + carry :]]
    counts = jaxprs.with_scan_counts(
        sum(reads[:consts]), sum(reads[consts : consts + carry]), equation
    )
    if counts is None:
        return _with_bodies(equation, bodies, [body._replace(jaxpr=jaxpr)])
    new = body._replace(jaxpr=_signature(jaxpr, reads, used))
    return _rebuilt(equation, bodies, [new], reads, used, counts)


def _while(
    equation: jaxprs.Equation,
    bodies: Sequence[jaxprs.Body],
    used: list[bool],
    record: Record,
) -> jaxprs.Equation:
    """Prunes a `while`: what is carried but decides and feeds nothing is dropped."""
    test, step = bodies
    first, second = equation.params["cond_nconsts"], equation.params["body_nconsts"]
    asks, test_reads = without_dead(test.jaxpr, record)
    used = [a or b for a, b in zip(used, test_reads[first:], strict=True)]
    while True:
        quiet = record.draft()
        does, reads = without_dead(step.jaxpr, quiet, used)
        wanted = [a or b for a, b in zip(used, reads[second:], strict=True)]
        if wanted == used:
            break
        used = wanted
    record.merge(quiet)
    test_reads = [*test_reads[:first], *used]
    reads = [*reads[:second], *used]
    new = [
        test._replace(jaxpr=_signature(asks, test_reads, [True])),
        step._replace(jaxpr=_signature(does, reads, used)),
    ]
    counts = {
        "cond_nconsts": sum(test_reads[:first]),
        "body_nconsts": sum(reads[:second]),
    }
    operands = [*test_reads[:first], *reads]
    return _rebuilt(equation, bodies, new, operands, used, counts)


_Pruner = Callable[
    [jaxprs.Equation, Sequence[jaxprs.Body], list[bool], Record], jaxprs.Equation
]

_PRUNERS: dict[str, _Pruner] = {
    "jit": _call,
    "remat2": _call,
    "cond": _cond,
    "scan": _scan,
    "while": _while,
}


def _signature(jaxpr: jaxprs.Jaxpr, reads: Live, used: Live) -> jaxprs.Jaxpr:
    """A body with some of its inputs and outputs only."""
    if all(reads) and all(used):
        return jaxpr
    inner = jaxpr.jaxpr
    constants = list(zip(inner.constvars, jaxpr.consts, strict=True))
    inputs, outputs = _kept(inner.invars, reads), _kept(inner.outvars, used)
    return jaxprs.rebuilt(jaxpr, inner.eqns, inputs, outputs, constants)


def _rebuilt(
    equation: jaxprs.Equation,
    bodies: Sequence[jaxprs.Body],
    new: Sequence[jaxprs.Body],
    reads: Live,
    used: Live,
    params: dict[str, Any],
) -> jaxprs.Equation:
    """The equation with other bodies, without the operands and outputs not kept."""
    equation = _with_bodies(equation, bodies, new)
    if all(reads) and all(used):
        return equation
    return equation.replace(
        invars=_kept(equation.invars, reads),
        outvars=_kept(equation.outvars, used),
        params={**equation.params, **params},
    )


def _with_bodies(
    equation: jaxprs.Equation, old: Sequence[jaxprs.Body], new: Sequence[jaxprs.Body]
) -> jaxprs.Equation:
    if all(a.jaxpr.jaxpr is b.jaxpr.jaxpr for a, b in zip(old, new, strict=True)):
        return equation
    params = {**equation.params, **jaxprs.replace_bodies(equation, new)}
    return equation.replace(params=params)


def _holds(equation: jaxprs.Equation) -> bool:
    """Whether an equation deals in references or tokens, whose use is not seen here."""
    return not all(map(jaxprs.is_value, equation.outvars))


def _kept(row: Sequence[Any], keep: Live) -> list[Any]:
    return [item for item, kept in zip(row, keep, strict=True) if kept]
