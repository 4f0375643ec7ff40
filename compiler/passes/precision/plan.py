"""Which equations are computed in few bits: decided for the whole program at once.

Products are. Exact operations are if what they take has few bits. Arithmetic is if it
stands between products: it takes a product's result, and products alone take its.
Starting from all that might be, what breaks these rules is taken out until nothing
does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from compiler import jaxprs
from compiler.graph import Graph
from compiler.passes.base import by_rules
from compiler.passes.precision.tables import EXACT
from compiler.passes.precision.values import Node, Source, Value, fits, is_single
from compiler.rewrite import Operand, Result, Rule, Rules, Site


def plan(
    graph: Graph,
    kinds: Callable[[str], str | None],
    target: Callable[[str], Any],
) -> dict[int, Node]:
    """Decides for each equation of a graph, by the number the walk gives it.

    Args:
        graph: what is to be rewritten.
        kinds: the table that names a primitive: `"low"`, `"follow"`, or None.
        target: the dtype of few bits for a path; None where float32 stays.
    """
    nodes: dict[int, Node] = {}

    def observe(site: Site, *operands: Operand) -> list[Result]:
        """Notes on every result which equation made it."""
        node = nodes[site.number] = _node(site, operands, kinds, target(site.path))
        outputs = site.emit(*(operand.value for operand in operands))
        node.results = [Value(node) if is_single(o) else None for o in outputs]
        _trace_constants(node)
        return [Result(o, v) for o, v in zip(outputs, node.results, strict=True)]

    by_rules(graph, Everywhere(observe), known=True)
    _settle(list(nodes.values()))
    return nodes


class Everywhere(Rules):
    """One rule for every primitive."""

    def __init__(self, rule: Rule) -> None:
        super().__init__()
        self._rule = rule

    def of(self, primitive: str) -> Sequence[Rule]:
        """The rule."""
        return (self._rule,)


def _node(
    site: Site,
    operands: Sequence[Operand],
    kinds: Callable[[str], str | None],
    target: Any,
) -> Node:
    equation = site.equation
    node = Node(site, target, _kind(equation, kinds), [])
    for operand in operands:
        value = operand.note if isinstance(operand.note, Value) else None
        if value is not None:
            value.uses = max(value.uses, operand.uses)
            value.takers.append(node)
        if is_single(operand):
            node.operands.append(Source(value, operand.known, _literal(operand)))
    if node.kind in ("low", "exact", "follow"):
        node.why = _why_not(node, operands)
        node.low = target is not None and bool(node.operands) and not node.why
    return node


def _literal(operand: Operand) -> Any:
    """The number an operand is, if it is written into the program."""
    traced = isinstance(operand.value, jax.core.Tracer)
    return None if traced or np.ndim(operand.value) else operand.value


def _kind(equation: jaxprs.Equation, kinds: Callable[[str], str | None]) -> str | None:
    name = equation.primitive.name
    if name == "convert_element_type":  # float32 to float32 forgets a weak type
        ends = (equation.invars[0].aval, equation.outvars[0].aval)
        return "exact" if all(map(is_single, ends)) else "convert"
    if name == "custom_jvp_call":  # its derivative rule is one for float32
        return "exact" if only_exact(equation) else None
    if jaxprs.has_jaxprs(equation) or equation.effects:
        return None
    return kinds(name) or ("exact" if name in EXACT else None)


def only_exact(equation: jaxprs.Equation) -> bool:
    """Whether a call only moves and chooses among numbers that few bits hold: relu."""
    for body in jaxprs.bodies(equation):
        for inner, _ in jaxprs.nested(body.jaxpr):
            name = inner.primitive.name
            literals = [v.val for v in inner.invars if jaxprs.is_literal(v)]
            plain = name in EXACT or jaxprs.is_plain_jit(inner)
            if not plain or not all(fits(v, jnp.bfloat16) for v in literals):
                return False
    return True


def _why_not(node: Node, operands: Sequence[Operand]) -> str:
    """What forbids few bits here, apart from the path."""
    params = node.site.equation.params
    dtypes = {jnp.dtype(o.dtype) for o in operands if _is_floating(o.dtype)}
    others = dtypes - {jnp.dtype(jnp.float32)}
    if others:
        return f"not float32: {', '.join(sorted(map(str, others)))}"
    asked = params.get("preferred_element_type")
    if asked is not None and asked != jnp.float32:
        return f"asks for a result in {asked}"
    if "HIGHEST" in str(params.get("precision")):
        return "asks for the highest precision"
    return ""


def _is_floating(dtype: Any) -> bool:
    return jax.dtypes.issubdtype(dtype, np.inexact)


def _trace_constants(node: Node) -> None:
    """Tells what results are worth beyond being what an equation made."""
    invars, results = node.site.equation.invars, node.results
    if node.kind == "convert":
        if results[0] is not None and not is_single(invars[0].aval):
            results[0].dtype = invars[0].aval.dtype
    elif node.kind == "exact":
        found = [source.literals for source in node.operands]
        whole = len(found) == len(invars) and None not in found
        for value in filter(None, results):
            value.literals = sum(filter(None, found), ()) if whole else None
            value.plain = all(source.plain for source in node.operands)


def _settle(nodes: Sequence[Node]) -> None:
    """Takes out what breaks the rules, until nothing does."""
    pending = list(nodes)
    while pending:
        node = pending.pop()
        if node.low and node.kind != "low" and not _allowed(node):
            node.low = False
            pending.extend(s.value.node for s in node.operands if s.value is not None)
            for value in node.results:
                pending.extend(() if value is None else value.takers)


def _allowed(node: Node) -> bool:
    """Whether an exact or following operation may be done in few bits."""
    dtype, sources = node.target, node.operands
    if not any(source.has(dtype) for source in sources):
        return False
    if node.kind == "exact" and all(source.exact(dtype) for source in sources):
        return True
    if None in node.results or node.site.bodies:
        return False
    roundable = all(source.roundable(dtype) for source in sources)
    return roundable and all(served(value, dtype) for value in node.results)


def served(value: Value | None, dtype: Any) -> Any:
    """The dtype, if whatever uses a value reads it in that; else None."""
    if value is None or dtype is None or not value.uses:
        return None
    read = value.uses == len(value.takers) and all(
        _takes(t, dtype) for t in value.takers
    )
    return dtype if read else None


def _takes(node: Node, dtype: Any) -> bool:
    if node.kind == "convert":
        return node.site.equation.outvars[0].aval.dtype == dtype
    return node.low and node.target == dtype
