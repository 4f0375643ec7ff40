"""Which leaves are stored in few bits, and why the others are not."""

from __future__ import annotations

import dataclasses
from collections.abc import Container, Sequence

import jax.numpy as jnp

from compiler import jaxprs
from compiler.graph import Graph, Leaf
from compiler.passes.quantize.arithmetic.activations import Activations
from compiler.passes.quantize.physical import parts
from compiler.passes.quantize.rules import SAME, Rule
from compiler.passes.quantize.storage.encoding import Encoding
from compiler.passes.quantize.storage.scheme import Scheme
from compiler.sites import WeightSite, named, sites_by_leaf


@dataclasses.dataclass(frozen=True)
class Decision:
    """What becomes of one leaf.

    Attributes:
        leaf: the leaf.
        sites: its uses, by their keys.
        encoding: how it will be stored; None if it stays.
        activations: how what it meets is rounded; None if that stays.
        why: the reason if it stays.
    """

    leaf: Leaf
    sites: dict[str, WeightSite]
    encoding: Encoding | None = None
    activations: Activations | None = None
    why: str = ""


@dataclasses.dataclass(frozen=True)
class Plan:
    """What becomes of a graph's leaves.

    Attributes:
        decisions: one for each leaf, in order.
        unused: rules that matched nothing.
    """

    decisions: tuple[Decision, ...]
    unused: tuple[Rule, ...] = ()

    @property
    def encodings(self) -> dict[str, Encoding]:
        """By path, those that are stored in few bits."""
        return {d.leaf.path: d.encoding for d in self.decisions if d.encoding}

    @property
    def activations(self) -> dict[str, Activations]:
        """By the key of a product, how its activation is rounded."""
        return {
            key: decision.activations
            for decision in self.decisions
            for key, site in decision.sites.items()
            if decision.encoding and decision.activations and site.kind != "lookup"
        }


def plan(
    graph: Graph,
    scheme: Scheme | None,
    rules: Sequence[Rule] = (),
    activations: Activations | None = None,
    taken: Container[str] = (),
) -> Plan:
    """Decides for every leaf by the first rule that is about it.

    Args:
        graph: whose.
        scheme: of leaves that no rule is about; None leaves them.
        rules: in the order they are asked.
        activations: how activations are rounded where a rule says nothing else.
        taken: paths of leaves that are stored in few bits already.
    """
    uses = sites_by_leaf(graph)
    names = {id(site): key for key, site in named(graph, uses).items()}
    opaque = any(
        equation.primitive.name == "call_exported"
        for equation, _ in jaxprs.nested(graph.jaxpr)
    )
    taken_apart = parts(graph)
    decisions, used = [], set()
    for place, leaf in enumerate(graph.leaves):
        sites = uses.get(place, [])
        rule = next((r for r in rules if r.applies(leaf, sites)), None)
        used.add(rule)
        own = rule or Rule(scheme=scheme)
        own_sites = {names[id(site)]: site for site in sites}
        why = _why_not(graph, leaf, sites, own, opaque)
        if leaf.path in taken:
            why = "is quantized already"
        elif leaf.path in taken_apart - graph.carried:
            why = "belongs to a weight that is quantized already"
        encoding = None
        if why is None and isinstance(own.scheme, Scheme):
            encoding = encoding_of(leaf, sites, own.scheme)
            if encoding.bytes >= leaf.bytes:
                encoding, why = None, "would not get smaller: too few share a scale"
        rounding = activations if own.activations == SAME else own.activations
        rounding = rounding if isinstance(rounding, Activations) else None
        decisions.append(Decision(leaf, own_sites, encoding, rounding, why or ""))
    return Plan(tuple(decisions), tuple(rule for rule in rules if rule not in used))


def encoding_of(leaf: Leaf, sites: Sequence[WeightSite], scheme: Scheme) -> Encoding:
    """How a leaf is stored: its rows are what its products sum over."""
    products = [site for site in sites if site.kind != "lookup"] or list(sites)
    axes = range(len(leaf.spec.shape))
    stack = frozenset(axes).intersection(*(site.batched for site in products))
    rows = frozenset[int]().union(*(site.contracted for site in products)) - stack
    rows = rows or frozenset(axes[:-1]) - stack
    dtype = str(jnp.dtype(leaf.spec.dtype))
    return Encoding(scheme, leaf.spec.shape, dtype, tuple(rows), tuple(stack))


def _why_not(
    graph: Graph,
    leaf: Leaf,
    sites: Sequence[WeightSite],
    rule: Rule,
    opaque: bool,
) -> str | None:
    if leaf.path in graph.carried:
        return "returned by the function, moved: it has to stay what it is"
    if not jnp.issubdtype(leaf.spec.dtype, jnp.floating):
        return f"not floating: {leaf.spec.dtype}"
    if not sites and opaque:
        return "belongs to a loaded program, whose inside cannot be seen"
    if not sites:
        return "reaches no product, convolution or look-up as a weight"
    if rule.scheme is None:
        return f"left out by rule {rule.path}"
    if len(leaf.spec.shape) < 2:
        return "has fewer than two axes"
    return "is empty" if 0 in leaf.spec.shape else None
