"""Adapters folded into the weights they belong to."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp

from compiler import jaxprs
from compiler.graph import Graph, Packing, drop_dead
from compiler.passes.adapt.lora import Lora
from compiler.passes.adapt.plan import Adapter, Partitioned, Plan
from compiler.passes.adapt.storage import Held, Storage
from compiler.passes.adapt.zero import Zero
from compiler.passes.base import Pass, Rewrite
from compiler.passes.factorize.factored import wider
from compiler.passes.factorize.rewriting import Report, factored
from compiler.passes.factorize.symbolic import evaluate
from compiler.rewrite import Event, Events
from mapping.core import register

if TYPE_CHECKING:
    from compiler.program import Program

Merged = dict[str, list[Adapter]]
"""By the path of a weight: its adapters that are folded into it."""


@register("pass", "lora_merge")
@dataclasses.dataclass(frozen=True)
class Merge(Pass):
    r"""Folds the adapters of [`lora`][] into their weights, and gives them back.

    $$ W \leftarrow W + \frac{\alpha}{r} A B $$

    computed in float32 at least. The arithmetic of the adapters leaves the program
    wherever other passes have put it, so that the result has the equations, the
    leaves and the paths of the program that was adapted; the same function up to the
    rounding of the sum.

    A quantized weight is decoded for it, and the sum is a floating weight again, under
    its own path, to be quantized anew by whatever pass; other weights stay as they are
    stored. Of products in floating point that is the same function, too, up to the
    rounding of the sum. Products of integers become products in floating point: the
    function loses the rounding of their activations.

    With `requantize` the sum is stored as the weight was, on a grid of its own range:
    each number moves by half a step of that grid at most, unless its scheme clips.

    Attributes:
        requantize: whether the weights of quantized leaves are stored in few bits
            again.
        plans: what `lora` decided; found in the program's history.
    """

    requantize: bool = False
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
        events, before = Events(), Storage.of(graph)
        specs = {leaf.path: leaf.spec for leaf in before.logical.leaves}
        merged: dict[str, list[Adapter]] = {}
        for adapter in (a for plan in self.plans or () for a in plan.adapters):
            why = _why_not(adapter, specs)
            if before.trained:
                why = "the program trains its weights in few bits. Convert it first"
            if why is None:
                merged.setdefault(adapter.base, []).append(adapter)
                events.fired.append(Event(adapter.base, self._told(adapter, before)))
            elif adapter.a in specs:
                events.skipped.append(Event(adapter.base, why))
        if not merged:
            if not events.skipped:
                events.skipped.append(Event("(program)", "has no adapters"))
            return Rewrite(graph, None, events)
        plans = () if events.skipped else self.plans or ()  # what is left is trained
        logical, names = _without(before.logical, merged, plans)
        kept = names if self.requantize else _others(names, merged)
        after = before.changed(logical, kept)
        prepare = functools.partial(_values, before, after, names, merged)
        return Rewrite(after.physical(graph), prepare, events)

    def _told(self, adapter: Adapter, before: Storage) -> str:
        encoding = before.stored.encodings.get(adapter.base)
        if encoding is None:
            return "its adapter merged into it"
        result = encoding.scheme if self.requantize else encoding.dtype
        return f"its adapter merged into it, {encoding.scheme} -> {result}"


def merge(*, requantize: bool = False) -> Merge:
    """Folds adapters into the weights; see [`Merge`][].

    Args:
        requantize: whether weights that are quantized stay so.

    >>> import jax, compiler as mc
    >>> from compiler.passes.adapt import lora
    >>> program = mc.trace(lambda v, x: x @ v["w"], {"w": jnp.eye(8)}, jnp.ones((1, 8)))
    >>> adapted = lora(rank=2)(program)
    >>> trained = jax.tree.map(lambda leaf: leaf + 0.5, adapted.variables)
    >>> merge()(adapted.with_variables(trained)).graph.paths
    ['w']
    """
    return Merge(requantize)


def _why_not(adapter: Adapter, specs: dict[str, Any]) -> str | None:
    matrix = adapter.matrix
    shapes = dict(
        zip((adapter.a, adapter.b), matrix.factors(adapter.rank), strict=True)
    )
    for path, shape in (shapes | {adapter.base: matrix.shape}).items():
        if f"{path}/values" in specs:
            return f"{path} is quantized and was rewritten since. Merge before that"
        if path not in specs or specs[path].shape != shape:
            return f"{path} has changed since (folded). Merge before that"
    if not jnp.issubdtype(specs[adapter.base].dtype, jnp.floating):
        return f"not floating: {specs[adapter.base].dtype}"
    return None


def _without(
    graph: Graph, merged: Merged, plans: Sequence[Plan]
) -> tuple[Graph, dict[str, str]]:
    """The graph without adapters, and the new paths of the leaves it keeps."""
    gone = {name for some in merged.values() for a in some for name in (a.a, a.b)}
    kept = [leaf for leaf in graph.leaves if leaf.path not in gone]

    def function(*arguments: Any) -> list[Any]:
        given = iter(arguments)
        leaves = [
            Zero(leaf.spec) if leaf.path in gone else next(given)
            for leaf in graph.leaves
        ]
        return evaluate(graph.jaxpr, [*leaves, *given])

    specs = [leaf.spec for leaf in kept]
    jaxpr = drop_dead(jaxprs.make(function, [*specs, *graph.inputs]))
    names = {leaf.path: leaf.path for leaf in kept}
    for plan in reversed(plans):
        old = {new: path for path, new in plan.renamed}
        names = {path: old.get(name, name) for path, name in names.items()}
    new = graph.with_leaves(list(names.values()), jaxpr)
    if plans:
        before = Packing(None, plans[0].bundled)
        if isinstance(graph.packing, Partitioned):
            before = graph.packing.before
        new = dataclasses.replace(new, packing=before)
    return new, names


def _others(names: dict[str, str], merged: Merged) -> dict[str, str]:
    return {path: name for path, name in names.items() if path not in merged}


def _values(
    before: Storage,
    after: Storage,
    names: dict[str, str],
    merged: Merged,
    leaves: Sequence[Any],
) -> list[Any]:
    """What is stored of the weights with their adapters in them."""
    held, found = before.held(leaves), {}
    for path, new in names.items():
        found[new] = held[path]
        if path in merged:
            encoding = after.stored.encodings.get(new)
            value = _sum(merged[path], before, held)
            found[new] = {"": value}
            if encoding is not None:
                found[new] = held[path] | encoding.encode(value)
    return after.leaves(found)


def _sum(adapters: Sequence[Adapter], before: Storage, held: Held) -> Any:
    """A weight and the products of its adapters."""
    value = before.value(adapters[0].base, held)
    wide = wider(value.dtype, jnp.float32)
    total = value.astype(wide)
    for adapter in adapters:
        a, b = (before.value(p, held).astype(wide) for p in (adapter.a, adapter.b))
        total = factored(adapter.matrix, a, b, Report(), total, adapter.scale).dense()
    return total.astype(value.dtype)
