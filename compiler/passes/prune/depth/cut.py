"""Sums replaced by their shortcuts, and what is then read by nobody removed."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from jax import lax

from compiler import jaxprs
from compiler.graph import Graph, Leaf
from compiler.passes.base import Prepare
from compiler.passes.prune.depth.blocks import Block
from compiler.passes.prune.depth.flow import Place
from compiler.passes.simplify.control import passed_through, same_in_every_branch
from compiler.passes.simplify.dead import without_dead
from compiler.passes.simplify.record import Record
from compiler.passes.simplify.sweep import Scope, Settings, Table

Skips = Mapping[Place, int]
"""By the place of a sum, the operand that stands for its result."""


def without_blocks(graph: Graph, going: Sequence[Block]) -> Graph:
    """The graph with sums replaced by an operand, and nothing dead; leaves stay.

    Args:
        graph: one that `inlined` returned.
        going: blocks of it.
    """
    skips: dict[Place, int] = {}
    for block in going:
        for place, skip in ((block.place, block.skip), *block.outer):
            if skips.setdefault(place, skip) == skip:
                break  # else both operands are gone, and so is the sum itself
    record = Record(graph)
    jaxpr, _ = without_dead(_replaced(graph.jaxpr, skips, ()), record)
    if skips:  # a checkpoint or a branch may have nothing left to do
        swept = Scope(Settings(_EMPTY, False, record)).run(jaxpr, {})
        jaxpr, _ = without_dead(swept, record)
    return dataclasses.replace(graph, jaxpr=jaxpr)


_EMPTY = Table()
_EMPTY.on("remat2")(passed_through)
_EMPTY.on("cond")(same_in_every_branch)


def without_leaves(before: Graph, after: Graph) -> tuple[Graph, Prepare, list[Leaf]]:
    """Drops the leaves that were read before and are not any more.

    Args:
        before: the graph as it was.
        after: the same leaves, other equations.

    Returns:
        The graph, what prepares its leaves, and the leaves that are gone.
    """
    was, now = _read(without_blocks(before, ())), _read(after)
    keep = [i for i in range(len(before.leaves)) if i in now or i not in was]
    gone = [leaf for i, leaf in enumerate(before.leaves) if i not in set(keep)]
    inner, count = after.jaxpr.jaxpr, len(before.leaves)
    inputs = [*(inner.invars[i] for i in keep), *inner.invars[count:]]
    constants = list(zip(inner.constvars, after.jaxpr.consts, strict=True))
    jaxpr = jaxprs.rebuilt(after.jaxpr, inner.eqns, inputs, inner.outvars, constants)

    def prepare(leaves: Sequence[Any]) -> list[Any]:
        return [leaves[i] for i in keep]

    paths = [before.paths[i] for i in keep]
    new = after.with_leaves(paths, jaxpr)
    return dataclasses.replace(new, encoded=None), prepare, gone


def _read(graph: Graph) -> set[int]:
    """The numbers of the leaves that are read."""
    inner = graph.jaxpr.jaxpr
    used = jaxprs.variables(inner.outvars)
    for equation in inner.eqns:
        used |= jaxprs.variables(equation.invars)
    return {i for i in range(len(graph.leaves)) if inner.invars[i] in used}


def _replaced(jaxpr: jaxprs.Jaxpr, skips: Skips, before: Place) -> jaxprs.Jaxpr:
    """A jaxpr, whose equations stand behind a place, without the sums."""
    stands: dict[Any, Any] = {}
    equations = []

    def look(operand: Any) -> Any:
        if jaxprs.is_literal(operand):
            return operand
        return stands.get(operand, operand)

    for number, equation in enumerate(jaxprs.equations(jaxpr)):
        place = (*before, number)
        equation = equation.replace(invars=[look(v) for v in equation.invars])
        if place in skips:
            own, (result,) = equation.invars[skips[place]], equation.outvars
            if own.aval == result.aval:
                stands[result] = own
                continue
            equation = _cast(equation, own)
        else:
            equation = _inside(equation, skips, place)
        equations.append(equation)
    inner = jaxpr.jaxpr
    constants = list(zip(inner.constvars, jaxpr.consts, strict=True))
    outputs = [look(v) for v in inner.outvars]
    return jaxprs.rebuilt(jaxpr, equations, inner.invars, outputs, constants)


def _inside(equation: jaxprs.Equation, skips: Skips, place: Place) -> jaxprs.Equation:
    """An equation with the sums in its bodies replaced."""
    count = len(place)
    touched = {skip[count] for skip in skips if skip[:count] == place}
    if not touched:
        return equation
    bodies = [
        body._replace(jaxpr=_replaced(body.jaxpr, skips, (*place, index)))
        if index in touched
        else body
        for index, body in enumerate(jaxprs.bodies(equation))
    ]
    return jaxprs.with_params(equation, **jaxprs.replace_bodies(equation, bodies))


def _cast(equation: jaxprs.Equation, operand: Any) -> jaxprs.Equation:
    """A sum as a cast of one operand: it is of a weaker type than the result."""
    (result,) = equation.outvars
    like = jaxprs.spec(operand)
    made = jaxprs.make(lambda x: lax.convert_element_type(x, result.aval.dtype), [like])
    cast = jaxprs.equations(made)
    if not cast:  # nothing to cast but the weakness of a type, which no one reads
        cast = jaxprs.equations(jaxprs.make(lax.optimization_barrier, [like]))
    return cast[0].replace(
        invars=[operand], outvars=[result], source_info=equation.source_info
    )
