"""Which weights may be stored in few bits: those nothing reads in more."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from compiler import jaxprs
from compiler.graph import Graph
from compiler.passes.precision.tables import EXACT
from compiler.passes.precision.values import is_single
from compiler.rewrite import Event, Events

_INSIDE = ("scan", "while", "cond", "remat2", "jit", "closed_call", "shard_map")


def storable(graph: Graph, dtype: Any, events: Events) -> frozenset[str]:
    """The paths of the float32 leaves that are only rounded, looked up or moved.

    Args:
        graph: with its products in few bits already.
        dtype: what the leaves would be stored in.
        events: where it is said why others stay.
    """
    owners: dict[Any, set[str]] = {}
    for leaf, var in zip(graph.leaves, graph.jaxpr.jaxpr.invars, strict=False):
        if is_single(leaf.spec):
            owners[var] = {leaf.path}
    readers: dict[str, str] = {}
    _follow(graph.jaxpr, owners, jnp.dtype(dtype), readers)
    chosen = set()
    for (path,) in owners.values():
        if path in readers:
            events.skipped.append(Event(path, f"stays float32: {readers[path]}"))
        else:
            chosen.add(path)
    return frozenset(chosen)


def _follow(
    jaxpr: jaxprs.Jaxpr,
    owners: dict[Any, set[str]],
    dtype: Any,
    readers: dict[str, str],
) -> None:
    """Follows leaves through what moves them; records what reads them in float32."""
    for equation in jaxprs.equations(jaxpr):
        given = [
            set() if jaxprs.is_literal(v) else owners.get(v, set())
            for v in equation.invars
        ]
        reached = set().union(*given)
        name, outvars = equation.primitive.name, equation.outvars
        if not reached:
            continue
        if name == "convert_element_type" and outvars[0].aval.dtype == dtype:
            continue
        if name == "gather" and not given[1]:
            continue
        if name in _INSIDE:
            for body in jaxprs.bodies(equation):
                taken = [given[place] for place in body.operands]
                inner = dict(zip(body.jaxpr.jaxpr.invars, taken, strict=True))
                _follow(body.jaxpr, inner, dtype, readers)
        elif name in EXACT and len(outvars) == 1 and is_single(outvars[0].aval):
            owners[outvars[0]] = reached
        else:
            reason = f"{name} reads it ({jaxprs.source(equation)})"
            readers.update((path, reason) for path in reached if path not in readers)
    for var in jaxprs.variables(jaxpr.jaxpr.outvars):
        readers.update((path, "it is an output") for path in owners.get(var, ()))


def stored(graph: Graph, paths: frozenset[str], dtype: Any) -> Graph:
    """The graph with some leaves in few bits, widened as the first thing."""

    def function(*arguments: Any) -> list[Any]:
        leaves = [
            jax.lax.convert_element_type(value, jnp.float32) if path in paths else value
            for path, value in zip(graph.paths, arguments, strict=False)
        ]
        return graph.evaluate(leaves, arguments[len(leaves) :])

    leaves = tuple(
        dataclasses.replace(leaf, spec=jax.ShapeDtypeStruct(leaf.spec.shape, dtype))
        if leaf.path in paths
        else leaf
        for leaf in graph.leaves
    )
    jaxpr = jaxprs.make(function, [*(leaf.spec for leaf in leaves), *graph.inputs])
    return dataclasses.replace(graph, jaxpr=jaxpr, leaves=leaves)


def lowered(
    paths: Sequence[str], chosen: frozenset[str], dtype: Any, values: Sequence[Any]
) -> list[Any]:
    """Rounds the chosen leaves."""
    return [
        value.astype(dtype) if path in chosen else value
        for path, value in zip(paths, values, strict=True)
    ]
