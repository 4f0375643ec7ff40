"""Binding times: what can be computed before the inputs are seen, and how much of it.

Params are known before inputs. Of everything that depends on params alone, `cut`
chooses what to compute once and keep, so that as few bytes as possible are kept:
a minimum cut between the params and the equations that mix them with inputs. The
params themselves are one such cut, so a program never grows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence, Set
from typing import Any

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import breadth_first_order, maximum_flow

from compiler import jaxprs
from compiler.graph import nbytes

_SOURCE, _SINK = 0, 1
_VIEWS = frozenset(("reshape", "squeeze", "broadcast_in_dim"))


def cut(
    jaxpr: jaxprs.Jaxpr, known: Sequence[bool], allowed: Set[str] | None = None
) -> list[Any]:
    """Chooses the variables to compute once, of all that depend on known inputs.

    Among the choices of fewest bytes it takes the one that computes most.

    Args:
        jaxpr: a closed jaxpr.
        known: for each of its inputs, whether it is known early.
        allowed: digests of the computations whose results may be kept; all if None.

    Returns:
        Variables of the jaxpr: known inputs that are kept as they are, and results
        of equations. Everything else follows from these and the other inputs.
    """
    sources = [v for v, k in zip(jaxpr.jaxpr.invars, known, strict=True) if k]
    sources = [v for v in sources if jaxprs.is_array(v)]
    parents, wanted = dependencies(jaxpr, sources)
    if not wanted:
        return []
    number = {var: 2 + 2 * i for i, var in enumerate(parents)}
    weights = {v: _weight(v) for v in parents} | dict.fromkeys(_views(jaxpr, parents))
    infinite = sum(w for w in weights.values() if w is not None) + 1
    if allowed is not None:
        found = digests(jaxpr, known)
        denied = [v for v in parents if v not in sources and found[v] not in allowed]
        weights |= dict.fromkeys(denied)
    edges = [
        (number[v], number[v] + 1, infinite if w is None else w)
        for v, w in weights.items()
    ]
    edges += [(_SOURCE, number[v], infinite) for v in sources]
    edges += [(number[v] + 1, _SINK, infinite) for v in wanted]
    for var, inputs in parents.items():
        edges += [(number[u] + 1, number[var], infinite) for u in inputs]
    late = _late_side(edges, 2 + 2 * len(parents))
    return [v for v in parents if number[v] not in late and number[v] + 1 in late]


def digests(jaxpr: jaxprs.Jaxpr, known: Sequence[bool]) -> dict[Any, str]:
    """Tells computations on known inputs apart, in any trace of the same function.

    Two variables have the same digest if they are the same computation on the same
    known inputs. A computation that uses the extent of another input (it broadcasts
    to the batch, it slices to the length) has another digest for another extent.

    Returns:
        A digest for each variable that depends on known inputs and constants alone.
    """
    found: dict[Any, str] = {}
    for var, array in zip(jaxpr.jaxpr.constvars, jaxpr.consts, strict=True):
        found[var] = _digest("constant", np.asarray(array).tobytes())
    for i, (var, early) in enumerate(zip(jaxpr.jaxpr.invars, known, strict=True)):
        if early:
            found[var] = _digest("input", str(i).encode())
    for equation in jaxprs.equations(jaxpr):
        texts = [_operand_digest(found, var) for var in equation.invars]
        if None not in texts and not equation.effects:
            params = sorted((k, str(v)) for k, v in equation.params.items())
            text = f"{equation.primitive.name} {params} {texts}".encode()
            for place, var in enumerate(equation.outvars):
                found[var] = _digest(f"output {place}", text)
    return found


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
        operands = jaxprs.variables(equation.invars)
        early = {v for v in operands if v in parents}
        pure = not equation.effects and all(map(jaxprs.is_array, equation.outvars))
        if pure and all(v in constant for v in operands - early):
            if early:
                parents.update((v, early) for v in equation.outvars)
            else:
                constant.update(equation.outvars)
        else:
            wanted |= early
    outputs = jaxprs.variables(jaxpr.jaxpr.outvars)
    return parents, wanted | (outputs & parents.keys())


def _views(jaxpr: jaxprs.Jaxpr, parents: dict[Any, set[Any]]) -> list[Any]:
    """Results that are their operand in another shape: free, and so never kept."""
    free = [e for e in jaxprs.equations(jaxpr) if e.primitive.name in _VIEWS]
    return [v for equation in free for v in equation.outvars if v in parents]


def _weight(var: Any) -> int | None:
    """The bytes of a value; None where they depend on a symbolic extent."""
    spec = jaxprs.spec(var)
    if not all(isinstance(extent, int) for extent in spec.shape):
        return None
    return max(1, nbytes(spec))


def _operand_digest(found: dict[Any, str], var: Any) -> str | None:
    if jaxprs.is_literal(var):
        return f"{var.val} {var.aval}"
    return found.get(var)


def _digest(kind: str, data: bytes) -> str:
    return hashlib.blake2b(kind.encode() + data, digest_size=12).hexdigest()


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
