"""Calls, branches and loops that decide nothing are replaced by what they do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
from jax import lax

from compiler import jaxprs
from compiler.passes.simplify.sweep import Change, Scope, Table, same_types

CALLS = Table()
CONTROL = Table()


@CALLS.on("jit", "closed_call")
def plain_call(scope: Scope, equation: jaxprs.Equation) -> Change | None:
    """A call without placement or options of its own is its body."""
    if not jaxprs.is_plain_jit(equation):
        return None
    (body,) = jaxprs.bodies(equation)
    if not same_types(body.jaxpr.jaxpr.outvars, equation.outvars):
        return None
    values = scope.inline(equation, body.jaxpr, equation.invars)
    return None if values is None else Change("call inlined", values)


@CONTROL.on("cond")
def decided_branch(scope: Scope, equation: jaxprs.Equation) -> Change | None:
    """A branch whose number is known is taken."""
    index, *operands = equation.invars
    number, branches = scope.number(index), jaxprs.bodies(equation)
    if number is None or not 0 <= int(number) < len(branches):
        return None
    taken = branches[int(number)]
    if not same_types(taken.jaxpr.jaxpr.outvars, equation.outvars):
        return None
    values = scope.inline(equation, taken.jaxpr, operands)
    return None if values is None else Change("branch that is decided", values)


@CONTROL.on("cond")
def same_in_every_branch(scope: Scope, equation: jaxprs.Equation) -> Change | None:
    """An output that is one operand, or one number, whatever branch is taken."""
    rows = [_passed(body, equation.invars) for body in jaxprs.bodies(equation)]
    values = [
        outs[0] if all(_same(outs[0], out) for out in outs) else None
        for outs in zip(*rows, strict=True)
    ]
    return _partly("output equal in every branch", equation, values)


@CONTROL.on("remat2")
def passed_through(scope: Scope, equation: jaxprs.Equation) -> Change | None:
    """An output that is an operand, or a number."""
    (body,) = jaxprs.bodies(equation)
    return _partly("value passed through", equation, _passed(body, equation.invars))


@CONTROL.on("while")
def loop_never_entered(scope: Scope, equation: jaxprs.Equation) -> Change | None:
    """A loop whose condition is false returns what it was given."""
    test, step = jaxprs.bodies(equation)
    (asked,) = test.jaxpr.jaxpr.outvars
    if not jaxprs.is_literal(asked) or bool(asked.val) or equation.effects:
        return None
    carried = step.operands[equation.params["body_nconsts"] :]
    given = [equation.invars[place] for place in carried]
    return Change("loop that is never entered", given)


@CONTROL.on("scan")
def loop_of_one(scope: Scope, equation: jaxprs.Equation) -> Change | None:
    """A loop of one step is its body."""
    if equation.params["length"] != 1:
        return None
    (body,) = jaxprs.bodies(equation)
    consts, carry = jaxprs.scan_counts(equation)
    inner, start = body.jaxpr.jaxpr, consts + carry
    fit = same_types(equation.invars[:start], inner.invars[:start])
    fit = fit and same_types(inner.outvars[:carry], equation.outvars[:carry])
    if not fit or body.jaxpr.consts or jaxprs.has_refs(body.jaxpr):
        return None
    taken = _each(_only, equation.invars[start:], inner.invars[start:])
    stacked = _each(_alone, inner.outvars[carry:], equation.outvars[carry:])
    if taken is None or stacked is None:  # before anything is put here
        return None
    given = list(equation.invars[:start])
    for view, operand in zip(taken, equation.invars[start:], strict=True):
        given += scope.inline(equation, view, [operand]) or ()
    values = scope.inline(equation, body.jaxpr, given)
    if values is None:
        return None
    results = values[:carry]
    for view, value in zip(stacked, values[carry:], strict=True):
        results += scope.inline(equation, view, [value]) or ()
    return Change("loop of one step", results)


@CONTROL.on("scan")
def carried_unchanged(scope: Scope, equation: jaxprs.Equation) -> Change | None:
    """What a loop carries and never changes is a constant of the loop."""
    (body,) = jaxprs.bodies(equation)
    consts, carry = jaxprs.scan_counts(equation)
    inner = body.jaxpr.jaxpr
    carried = inner.invars[consts : consts + carry]
    still = [i for i, var in enumerate(carried) if inner.outvars[i] is var]
    counts = jaxprs.with_scan_counts(consts + len(still), carry - len(still), equation)
    if not still or counts is None or jaxprs.has_refs(body.jaxpr):
        return None
    moved = [consts + i for i in still]
    order = [*range(consts), *moved]
    order += [i for i in range(len(inner.invars)) if i not in order]
    outs = [i for i in range(len(inner.outvars)) if i not in still]
    new = _reordered(equation, body, order, outs, counts)
    values = [
        equation.invars[consts + i] if i in still else None
        for i in range(len(inner.outvars))
    ]
    return Change("carried value that never changes", values, new)


@CONTROL.on("while")
def kept_by_while(scope: Scope, equation: jaxprs.Equation) -> Change | None:
    """What a `while` carries and never changes is a constant of test and step."""
    test, step = jaxprs.bodies(equation)
    first, second = equation.params["cond_nconsts"], equation.params["body_nconsts"]
    inner = step.jaxpr.jaxpr
    carried = inner.invars[second:]
    still = [i for i, var in enumerate(carried) if inner.outvars[i] is var]
    if not still or any(jaxprs.has_refs(body.jaxpr) for body in (test, step)):
        return None
    left = [i for i in range(len(carried)) if i not in still]
    new_test = _with_order(
        test, [*range(first), *(first + i for i in (*still, *left))], [0]
    )
    new_step = _with_order(
        step, [*range(second), *(second + i for i in (*still, *left))], left
    )
    given = equation.invars[first + second :]
    fixed = [given[i] for i in still]
    operands = [*equation.invars[:first], *fixed]
    operands += [*equation.invars[first : first + second], *fixed]
    operands += [given[i] for i in left]
    counts = {
        "cond_nconsts": first + len(still),
        "body_nconsts": second + len(still),
    }
    bodies = jaxprs.replace_bodies(equation, [new_test, new_step])
    new = equation.replace(
        invars=operands,
        outvars=[equation.outvars[i] for i in left],
        params={**equation.params, **bodies, **counts},
    )
    values = [given[i] if i in still else None for i in range(len(carried))]
    return Change("carried value that never changes", values, new)


def _only(stacked: Any) -> Any:
    return lax.squeeze(stacked, (0,))


def _alone(value: Any) -> Any:
    return jnp.expand_dims(value, 0)


def _each(
    view: Callable[[Any], Any], given: Sequence[Any], wanted: Sequence[Any]
) -> list[jaxprs.Jaxpr] | None:
    """A view of each variable; None if one does not have the very types.

    A view is traced on a shape alone, so one of an array that is sharded over an
    explicit mesh has another type.
    """
    views = [jaxprs.make(view, [jaxprs.spec(var)]) for var in given]
    inner = [view.jaxpr for view in views]
    fit = same_types(given, [one.invars[0] for one in inner])
    fit = fit and same_types(wanted, [one.outvars[0] for one in inner])
    return views if fit else None


def _passed(body: jaxprs.Body, operands: Sequence[Any]) -> list[Any]:
    """For each output of a body the operand or literal it is, None if computed."""
    inner = body.jaxpr.jaxpr
    place = dict(zip(inner.invars, body.operands, strict=True))
    return [
        out
        if jaxprs.is_literal(out)
        else operands[place[out]]
        if out in place
        else None
        for out in inner.outvars
    ]


def _same(one: Any, other: Any) -> bool:
    if one is None or other is None:
        return False
    if jaxprs.is_literal(one) and jaxprs.is_literal(other):
        return one.aval == other.aval and jaxprs.bits(one) == jaxprs.bits(other)
    return one is other


def _partly(
    what: str, equation: jaxprs.Equation, values: Sequence[Any]
) -> Change | None:
    """Replaces the outputs that have a value; the equation goes on without them."""
    if all(value is None for value in values) or equation.effects:
        return None
    return Change(what, values)


def _with_order(
    body: jaxprs.Body, inputs: Sequence[int], outputs: Sequence[int]
) -> jaxprs.Body:
    """A body with its inputs and outputs in another order, or some of them."""
    inner = body.jaxpr.jaxpr
    new = jaxprs.rebuilt(
        body.jaxpr,
        inner.eqns,
        [inner.invars[i] for i in inputs],
        [inner.outvars[i] for i in outputs],
        list(zip(inner.constvars, body.jaxpr.consts, strict=True)),
    )
    return body._replace(jaxpr=new)


def _reordered(
    equation: jaxprs.Equation,
    body: jaxprs.Body,
    inputs: Sequence[int],
    outputs: Sequence[int],
    params: dict[str, Any],
) -> jaxprs.Equation:
    """A scan with operands and outputs in another order."""
    bodies = jaxprs.replace_bodies(equation, [_with_order(body, inputs, outputs)])
    return equation.replace(
        invars=[equation.invars[i] for i in inputs],
        outvars=[equation.outvars[i] for i in outputs],
        params={**equation.params, **bodies, **params},
    )
