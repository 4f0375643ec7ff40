"""Binding times: what can be computed before the inputs are seen, and how much of it.

Params are known before inputs. Of everything that depends on params alone, `cut`
chooses what to compute once and keep, so that as few bytes as possible are kept:
a minimum cut between the params and the equations that mix them with inputs. The
params themselves are one such cut, so a program never grows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import breadth_first_order, maximum_flow

from compiler import jaxprs
from compiler.graph import nbytes

_SOURCE, _SINK = 0, 1


def cut(jaxpr: jaxprs.Jaxpr, known: Sequence[bool]) -> list[Any]:
    """Chooses the variables to compute once, of all that depend on known inputs.

    Among the choices of fewest bytes it takes the one that computes most.

    Args:
        jaxpr: a closed jaxpr.
        known: for each of its inputs, whether it is known early.

    Returns:
        Variables of the jaxpr: known inputs that are kept as they are, and results
        of equations. Everything else follows from these and the other inputs.
    """
    sources = [v for v, k in zip(jaxpr.jaxpr.invars, known, strict=True) if k]
    sources = [v for v in sources if jaxprs.is_array(v)]
    parents, wanted = dependencies(jaxpr, sources)
    nodes = [v for v in parents if jaxprs.is_array(v)]
    if not wanted:
        return []
    number = {var: 2 + 2 * i for i, var in enumerate(nodes)}
    weights = np.array([max(1, nbytes(jaxprs.spec(v))) for v in nodes], np.int64)
    infinite = int(weights.sum()) + 1
    edges = [
        (number[v], number[v] + 1, int(w)) for v, w in zip(nodes, weights, strict=True)
    ]
    edges += [(_SOURCE, number[v], infinite) for v in sources]
    edges += [(number[v] + 1, _SINK, infinite) for v in wanted]
    for var, inputs in parents.items():
        edges += [(number[u] + 1, number[var], infinite) for u in inputs]
    late = _late_side(edges, 2 + 2 * len(nodes))
    return [v for v in nodes if number[v] not in late and number[v] + 1 in late]


def dependencies(
    jaxpr: jaxprs.Jaxpr, sources: Sequence[Any]
) -> tuple[dict[Any, set[Any]], set[Any]]:
    """Finds what follows from the sources and constants alone.

    Returns:
        For each such variable (sources included) those it is computed from; and
        the set of those that other equations, or the outputs, need.
    """
    parents: dict[Any, set[Any]] = {v: set() for v in sources}
    constant = set(jaxpr.jaxpr.constvars)
    wanted: set[Any] = set()
    for equation in jaxprs.equations(jaxpr):
        operands = {v for v in equation.invars if not jaxprs.is_literal(v)}
        early = operands & parents.keys()
        pure = not equation.effects and all(map(jaxprs.is_array, equation.outvars))
        if pure and operands <= parents.keys() | constant:
            if early:
                parents.update((v, early) for v in equation.outvars)
            else:
                constant.update(equation.outvars)
        else:
            wanted |= early
    outputs = {v for v in jaxpr.jaxpr.outvars if not jaxprs.is_literal(v)}
    return parents, wanted | (outputs & parents.keys())


def _late_side(edges: list[tuple[int, int, int]], size: int) -> set[int]:
    """The nodes on the sink's side of the minimum cut nearest to the sink."""
    rows, columns, capacity = np.array(edges, np.int64).T
    network = csr_array((capacity, (rows, columns)), shape=(size, size))
    flow = maximum_flow(network, _SOURCE, _SINK).flow
    residual = csr_array(network - flow)
    residual.eliminate_zeros()
    backward = csr_array(residual.T)
    reached = breadth_first_order(
        backward, _SINK, directed=True, return_predecessors=False
    )
    return set(reached.tolist())
