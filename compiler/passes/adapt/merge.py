"""Adapters folded into the weights they belong to."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp

from compiler import jaxprs
from compiler.graph import Graph, Packing, drop_dead
from compiler.passes.adapt.lora import Lora
from compiler.passes.adapt.plan import Adapter, Partitioned, Plan
from compiler.passes.adapt.zero import Zero
from compiler.passes.base import Pass, Rewrite
from compiler.passes.factorize.factored import wider
from compiler.passes.factorize.rewriting import Report, factored
from compiler.passes.factorize.symbolic import evaluate
from compiler.rewrite import Event, Events
from mapping.core import register

if TYPE_CHECKING:
    from compiler.program import Program


@register("pass", "lora_merge")
@dataclasses.dataclass(frozen=True)
class Merge(Pass):
    r"""Folds the adapters of [`lora`][] into their weights, and gives them back.

    $$ W \leftarrow W + \frac{\alpha}{r} A B $$

    computed in float32 at least. The arithmetic of the adapters leaves the program
    wherever other passes have put it, so that the result has the equations, the
    leaves and the paths of the program that was adapted; the same function up to the
    rounding of the sum.

    Attributes:
        plans: what `lora` decided; found in the program's history.
    """

    plans: tuple[Plan, ...] | None = dataclasses.field(
        default=None, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        if self.plans is not None:
            object.__setattr__(self, "plans", tuple(self.plans))

    def decide(self, program: Program) -> Pass:
        """Finds the adapters the program has."""
        steps = [applied.step for applied in program.history]
        plans = [s.plan for s in steps if isinstance(s, Lora) and s.plan is not None]
        return dataclasses.replace(self, plans=tuple(p for p in plans if p.adapters))

    def rewrite(self, graph: Graph) -> Rewrite:
        """Takes the adapters out of the equations and into the weights."""
        events = Events()
        specs = {leaf.path: leaf.spec for leaf in graph.leaves}
        merged: dict[str, list[Adapter]] = {}
        for adapter in (a for plan in self.plans or () for a in plan.adapters):
            why = _why_not(adapter, specs)
            if why is None:
                merged.setdefault(adapter.base, []).append(adapter)
                events.fired.append(Event(adapter.base, "its adapter merged into it"))
            elif adapter.a in specs:
                events.skipped.append(Event(adapter.base, why))
        if not merged:
            if not events.skipped:
                events.skipped.append(Event("(program)", "has no adapters"))
            return Rewrite(graph, None, events)
        return _merged(graph, merged, self.plans or (), events)


def merge() -> Merge:
    """Folds adapters into the weights; see [`Merge`][].

    >>> import jax, compiler as mc
    >>> from compiler.passes.adapt import lora
    >>> program = mc.trace(lambda v, x: x @ v["w"], {"w": jnp.eye(8)}, jnp.ones((1, 8)))
    >>> adapted = lora(rank=2)(program)
    >>> trained = jax.tree.map(lambda leaf: leaf + 0.5, adapted.variables)
    >>> merge()(adapted.with_variables(trained)).graph.paths
    ['w']
    """
    return Merge()


def _why_not(adapter: Adapter, specs: dict[str, Any]) -> str | None:
    matrix = adapter.matrix
    shapes = dict(
        zip((adapter.a, adapter.b), matrix.factors(adapter.rank), strict=True)
    )
    for path, shape in (shapes | {adapter.base: matrix.shape}).items():
        if path not in specs or specs[path].shape != shape:
            return f"{path} has changed since (folded, quantized). Merge before that"
    if not jnp.issubdtype(specs[adapter.base].dtype, jnp.floating):
        return f"not floating: {specs[adapter.base].dtype}"
    return None


def _merged(
    graph: Graph,
    merged: dict[str, list[Adapter]],
    plans: Sequence[Plan],
    events: Events,
) -> Rewrite:
    gone = {name for some in merged.values() for a in some for name in (a.a, a.b)}
    kept = [leaf for leaf in graph.leaves if leaf.path not in gone]

    def prepare(leaves: Sequence[Any]) -> list[Any]:
        given = dict(zip(graph.paths, leaves, strict=True))
        return [_value(merged.get(leaf.path, ()), leaf.path, given) for leaf in kept]

    def function(*arguments: Any) -> list[Any]:
        given = iter(arguments)
        leaves = [
            Zero(leaf.spec) if leaf.path in gone else next(given)
            for leaf in graph.leaves
        ]
        return evaluate(graph.jaxpr, [*leaves, *given])

    specs = [leaf.spec for leaf in kept]
    jaxpr = drop_dead(jaxprs.make(function, [*specs, *graph.inputs]))
    names = [leaf.path for leaf in kept]
    if events.skipped:  # what is left of the adapters is still trained
        return Rewrite(graph.with_leaves(names, jaxpr), prepare, events)
    for plan in reversed(plans):
        old = {new: path for path, new in plan.renamed}
        names = [old.get(name, name) for name in names]
    new = graph.with_leaves(names, jaxpr)
    before = Packing(None, plans[0].bundled)
    if isinstance(graph.packing, Partitioned):
        before = graph.packing.before
    return Rewrite(dataclasses.replace(new, packing=before), prepare, events)


def _value(adapters: Sequence[Adapter], path: str, given: dict[str, Any]) -> Any:
    value = given[path]
    if not adapters:
        return value
    wide = wider(value.dtype, jnp.float32)
    total = value.astype(wide)
    for adapter in adapters:
        a, b = given[adapter.a].astype(wide), given[adapter.b].astype(wide)
        total = factored(adapter.matrix, a, b, Report(), total, adapter.scale).dense()
    return total.astype(value.dtype)
