"""The pass that leaves out what a program does without need."""

from __future__ import annotations

import dataclasses

from compiler.errors import UnknownPartError
from compiler.graph import Graph
from compiler.passes.base import Pass, Rewrite
from compiler.passes.simplify.algebra import ALGEBRA
from compiler.passes.simplify.constants import CONSTANTS
from compiler.passes.simplify.control import CALLS, CONTROL
from compiler.passes.simplify.dead import without_dead
from compiler.passes.simplify.layout import LAYOUT
from compiler.passes.simplify.record import Record
from compiler.passes.simplify.sweep import Scope, Settings, Table
from mapping.core import register

_RULES = {
    "calls": CALLS,
    "constants": CONSTANTS,
    "layout": LAYOUT,
    "algebra": ALGEBRA,
    "control": CONTROL,
    "duplicates": Table(),
}

PARTS = tuple(_RULES)
"""The kinds of simplification there are."""

_SWEEPS = 20


@register("pass", "simplify")
@dataclasses.dataclass(frozen=True)
class Simplify(Pass):
    r"""Leaves out what a program does without need, until nothing is left to do.

    Identities of algebra and layout, operations on numbers, what is computed twice,
    decided branches, what loops carry for nobody, and everything no output depends
    on. Compiled, every output is the same bit for bit; where XLA would not do the
    same, two things may differ in the last place: a sum with zero leaves -0 as it is,
    and a product whose operand was transposed may sum in the order of its new layout.
    Left alone are `max(x, -inf)` and `min(x, inf)`, which pass on half of a derivative
    where both are equal, and loops of one step over arrays that are sharded over an
    explicit mesh.
    Leaves stay, read or not (`fold` drops them); shapes, effects, random keys,
    derivative rules, barriers and recomputation (`jax.checkpoint`) stay too.

    Equations are replaced and not traced anew, so the pass takes a few microseconds
    for each.

    Attributes:
        parts: which kinds are done, of `calls` (inlined), `constants`, `layout`,
            `algebra`, `control` and `duplicates`; dead code is removed in any case.

    Raises:
        UnknownPartError: if a part is none of these.

    >>> Simplify() == simplify()
    True

    Cocke, "Global Common Subexpression Elimination", 1970; Cytron et al.,
    "Efficiently Computing Static Single Assignment Form", 1991 (dead code).
    """

    parts: tuple[str, ...] = PARTS

    def __post_init__(self) -> None:
        unknown = [part for part in self.parts if part not in _RULES]
        if unknown:
            raise UnknownPartError(
                f"simplify: expected parts among {', '.join(PARTS)}, got "
                f"{unknown[0]!r}. Leave it out, or spell it so."
            )

    def rewrite(self, graph: Graph) -> Rewrite:
        """Sweeps through the equations until a sweep changes nothing."""
        rules = Table()
        for part, table in _RULES.items():
            rules = rules | table if part in self.parts else rules
        record = Record(graph)
        settings = Settings(rules, "duplicates" in self.parts, record)
        jaxpr = graph.jaxpr
        for _ in range(_SWEEPS):
            before = jaxpr
            settings.done.clear()
            jaxpr, _ = without_dead(Scope(settings).run(jaxpr, {}), record)
            if jaxpr is before:
                break
        new = dataclasses.replace(graph, jaxpr=jaxpr)
        return Rewrite(
            new if jaxpr is not graph.jaxpr else graph, None, record.events()
        )


def simplify(parts: tuple[str, ...] = PARTS) -> Simplify:
    """Leaves out what a program does without need; see [`Simplify`][].

    >>> import jax.numpy as jnp, compiler as mc
    >>> def f(w, x):
    ...     return jnp.tanh(-(-x) * 1.0) @ w + jnp.tanh(x) @ w
    >>> program = mc.trace(f, jnp.eye(2), jnp.ones((1, 2)))
    >>> shorter = simplify()(program)
    >>> [e.primitive.name for e in shorter.graph.jaxpr.jaxpr.eqns]
    ['tanh', 'dot_general', 'add']
    """
    return Simplify(tuple(parts))
