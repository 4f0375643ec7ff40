"""How much of a program is in few bits, and one reason for each product that is not."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Container, Mapping
from typing import TYPE_CHECKING

import jax.numpy as jnp

from compiler import jaxprs
from compiler.cost.arithmetic import arithmetic
from compiler.graph import Graph, Leaf
from compiler.paths import Operation, flatten, operations
from compiler.sites import PRODUCTS, WeightSite

if TYPE_CHECKING:
    from compiler.passes.quantize.arithmetic.quantized import Uses
    from compiler.passes.quantize.physical import Stored
    from compiler.passes.quantize.plan import Decision, Plan
    from compiler.program import Program

WEIGHT_ONLY = "weight only"
INTEGER = "integer"


@dataclasses.dataclass(frozen=True)
class Row:
    """One product, or one leaf that reaches none.

    Attributes:
        key: of the product among the leaf's; empty if there is no weight.
        leaf: the path of the weight.
        path: of the operation.
        kind: `dot`, `conv`, `ragged`, `lookup`; empty for a leaf without a product.
        source: the line of user code.
        bytes: of the leaf before, counted at its first product.
        flops: of one call of the program.
        scheme: of the weight; empty if it is as it was.
        how: `"integer"` or `"weight only"`.
        why: the reason if it is as it was.
    """

    key: str
    leaf: str
    path: str
    kind: str
    source: str
    bytes: int
    flops: int
    scheme: str = ""
    how: str = ""
    why: str = ""


@dataclasses.dataclass(frozen=True)
class Coverage:
    """What of a program was quantized.

    Attributes:
        rows: one for each product, and for each floating leaf that reaches none.
        decoded: by path, where a whole weight is decoded at each call.
    """

    rows: tuple[Row, ...]
    decoded: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)

    @property
    def share(self) -> float:
        """Of the bytes of floating leaves, how much is quantized, from 0 to 1."""
        return _share([(row.bytes, bool(row.scheme)) for row in self.rows])

    @property
    def flops(self) -> float:
        """Of the FLOPs of all products, how much is done with quantized weights."""
        return _share([(row.flops, bool(row.scheme)) for row in self.rows])

    @property
    def integer_flops(self) -> float:
        """Of the FLOPs of all products, how much is done with integers."""
        return _share([(row.flops, row.how == INTEGER) for row in self.rows])

    def reasons(self) -> str:
        """What was left out and why, the largest first."""
        left = sorted((r for r in self.rows if r.why), key=lambda r: -r.bytes)
        told = [f"{row.leaf or row.path or row.kind}: {row.why}" for row in left[:5]]
        return "; ".join(told) + ("; ..." if len(left) > 5 else "")

    def note(self, path: str) -> str:
        """What to tell of a leaf beside its scheme."""
        hows = dict.fromkeys(r.how for r in self.rows if r.leaf == path and r.how)
        where = self.decoded.get(path, ())
        told = f", {' and '.join(hows)}" if hows else ""
        return told + (f"; decoded whole for {', '.join(where)}" if where else "")

    def __str__(self) -> str:
        """A table by path, and the totals."""
        lines = [
            f"bytes quantized {self.share:.1%}, FLOPs with quantized weights "
            f"{self.flops:.1%}, with integers {self.integer_flops:.1%}"
        ]
        for row in self.rows:
            name = row.key or row.leaf or row.path or "(no path)"
            what = f"{row.scheme}, {row.how}" if row.scheme else f"left: {row.why}"
            size = f"{row.bytes:>12,} bytes {row.flops:>15,} FLOPs"
            where = f" ({row.source})" if row.source and row.why else ""
            lines.append(f"{name:40} {row.kind:7}{size}  {what}{where}")
        return "\n".join(lines)


def coverage(program: Program) -> Coverage:
    """What the last quantizing pass did to a program, and what it left and why.

    Raises:
        LookupError: if the program was not quantized.

    >>> import compiler as mc
    >>> def f(v, x):
    ...     return (x @ v["w"]) @ (x @ v["w"]).T + v["b"]
    >>> variables = {"w": jnp.eye(8), "b": jnp.ones((4, 4))}
    >>> program = mc.trace(f, variables, jnp.ones((4, 8)))
    >>> found = coverage(program >> mc.quantize.weights("int8"))
    >>> round(found.share, 2), [row.why for row in found.rows if row.kind == "dot"]
    (0.8, ['', '', 'no weight: both operands depend on inputs'])
    """
    if program.graph.coverage is None:
        raise LookupError(
            "coverage: expected a quantized program, got one that no quantizing pass "
            "changed. Apply quantize.weights(), dynamic() or static() first."
        )
    return program.graph.coverage


def covered(
    graph: Graph, plan: Plan, before: Stored, uses: Uses | None = None
) -> Coverage:
    """What a plan covers of a logical graph.

    Args:
        graph: of floating weights.
        plan: what becomes of them.
        before: what was stored by earlier passes.
        uses: where weights were decoded whole, once that is known.
    """
    owners: dict[int, tuple[Decision, str, WeightSite]] = {}
    for decision in plan.decisions:
        for key, site in decision.sites.items():
            owners.setdefault(id(site.equation), (decision, key, site))
    integer = set() if uses is None else uses.integer
    rows, counted = [], set()
    for operation in flatten(operations(graph)):
        if operation.equation.primitive.name in PRODUCTS:
            owner = owners.get(id(operation.equation))
            row = _lone(operation)
            if owner is not None:
                row = _row(operation, owner, before, integer)
            rows.append(_once(row, counted) if row else None)
    rows += [
        _unused(d.leaf, d.why)
        for d in plan.decisions
        if not d.sites and jnp.issubdtype(d.leaf.spec.dtype, jnp.floating)
    ]
    decoded = {} if uses is None else {p: tuple(w) for p, w in uses.decoded.items()}
    return Coverage(tuple(row for row in rows if row is not None), decoded)


def _row(
    operation: Operation,
    owner: tuple[Decision, str, WeightSite],
    before: Stored,
    integer: Container[str],
) -> Row:
    decision, key, site = owner
    path = decision.leaf.path
    encoding = decision.encoding or before.encodings.get(path)
    how = INTEGER if key in integer else WEIGHT_ONLY
    return Row(
        key,
        path,
        operation.path,
        site.kind,
        site.source,
        decision.leaf.bytes,
        _flops(operation),
        str(encoding.scheme) if encoding else "",
        how if encoding else "",
        "" if encoding else decision.why,
    )


def _lone(operation: Operation) -> Row | None:
    """A product without a weight; a look-up without one is no product."""
    kind = PRODUCTS[operation.equation.primitive.name]
    if kind == "lookup":
        return None
    return Row(
        "",
        "",
        operation.path,
        kind,
        jaxprs.source(operation.equation),
        0,
        _flops(operation),
        why="no weight: both operands depend on inputs",
    )


def _unused(leaf: Leaf, why: str) -> Row:
    return Row("", leaf.path, "", "", "", leaf.bytes, 0, why=why)


def _once(row: Row, counted: set[str]) -> Row:
    """Counts the bytes of a leaf at its first product only."""
    if row.leaf in counted:
        return dataclasses.replace(row, bytes=0)
    counted.add(row.leaf)
    return row


def _flops(operation: Operation) -> int:
    """Of one call; none where that depends on an extent that may vary."""
    found = arithmetic(operation.equation)
    flops = found.flops if found else 0
    return operation.times * flops if isinstance(flops, int) else 0


def _share(parts: list[tuple[int, bool]]) -> float:
    total: Counter[bool] = Counter()
    for amount, inside in parts:
        total[inside] += amount
    everything = total[True] + total[False]
    return total[True] / everything if everything else 0.0
