"""What mixed precision did, in a few lines."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import jax.numpy as jnp

from compiler import jaxprs
from compiler.cost import equation_flops
from compiler.graph import Graph
from compiler.passes.precision.values import Node
from compiler.rewrite import Event


def operations_by_dtype(graph: Graph) -> Counter[str]:
    """Floating operations of one call by the fewest bits that flow into them.

    >>> import jax, compiler as mc
    >>> low = lambda w, x: x.astype(jnp.bfloat16) @ w.astype(jnp.bfloat16)
    >>> program = mc.trace(low, jnp.eye(4), jnp.ones((2, 4)))
    >>> operations_by_dtype(program.graph)
    Counter({'bfloat16': 64})
    """
    found: Counter[str] = Counter()
    for equation, times in jaxprs.nested(graph.jaxpr):
        dtypes = [getattr(v.aval, "dtype", None) for v in equation.invars]
        floating = [jnp.dtype(d) for d in dtypes if d is not None and _is_floating(d)]
        if floating:
            smallest = min(floating, key=lambda dtype: dtype.itemsize)
            found[str(smallest)] += times * equation_flops(equation)
    return +found


def share(graph: Graph) -> str:
    """One line: how much of the arithmetic is done in which dtype."""
    found = operations_by_dtype(graph)
    total = sum(found.values())
    parts = [f"{100 * n / total:.0f}% in {dtype}" for dtype, n in found.most_common()]
    return f"of {total} floating operations " + ", ".join(parts)


def grouped(events: Iterable[Event]) -> list[Event]:
    """One event for each path and each thing done there."""
    counts: dict[tuple[str, str], Counter[str]] = {}
    sources: dict[tuple[str, str], str] = {}
    for event in events:
        what, _, dtype = event.what.partition(" in ")
        key = event.path if event.path != what else "(none)", dtype
        counts.setdefault(key, Counter())[what] += 1
        sources.setdefault(key, event.source)
    return [
        Event(path, f"{_listed(found)} in {dtype}", sources[path, dtype])
        for (path, dtype), found in counts.items()
    ]


def left(nodes: Iterable[Node], products: Sequence[str]) -> list[Event]:
    """The products that stay as they are and why; and the rest, path by path."""
    events: list[Event] = []
    rest: dict[str, Counter[str]] = {}
    for node in nodes:
        site, name = node.site, node.site.equation.primitive.name
        if node.low or node.kind == "convert" or not node.operands:
            continue
        if name in products:
            why = node.why or "float32 by a rule"
            events.append(Event(site.path or name, why, jaxprs.source(site.equation)))
        elif not site.bodies:
            rest.setdefault(site.path, Counter())[name] += 1
    kept = {path or "(none)": _listed(found) for path, found in rest.items()}
    return events + [
        Event(path, f"stay float32: {what}") for path, what in kept.items()
    ]


def _listed(found: Counter[str]) -> str:
    parts = [f"{n} {name}" if n > 1 else name for name, n in sorted(found.items())]
    return ", ".join(parts)


def _is_floating(dtype: Any) -> bool:
    return bool(jnp.issubdtype(dtype, jnp.floating))
