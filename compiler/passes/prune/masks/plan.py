"""What becomes of each leaf: how many zeros, in which pattern, or why none."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from compiler.errors import UnknownPathError
from compiler.graph import Graph, Leaf
from compiler.passes.globs import names_of
from compiler.passes.prune.masks.patterns import Aim, Pattern, n_and_m
from compiler.passes.prune.masks.shares import sparsities
from compiler.passes.prune.masks.weights import Weight, as_weight
from compiler.paths import matches
from compiler.sites import WeightSite, named, sites_by_leaf

MASK = "mask"
"""What the leaf beside a weight is called that says where its zeros are."""


@dataclasses.dataclass(frozen=True)
class Decision:
    """What becomes of one leaf.

    Attributes:
        leaf: the leaf.
        sites: its uses, by their keys.
        weight: how it is a weight; None if it stays.
        sparsity: the share of zeros it gets; None where weights compete for it.
        pattern: where zeros may stand.
        why: the reason if it stays.
    """

    leaf: Leaf
    sites: dict[str, WeightSite]
    weight: Weight | None = None
    sparsity: float | None = None
    pattern: Pattern = None
    why: str = ""


@dataclasses.dataclass(frozen=True)
class Plan:
    """What becomes of a graph's leaves.

    Attributes:
        decisions: one for each leaf, in order.
        unused: globs of rules that are about nothing.
    """

    decisions: tuple[Decision, ...]
    unused: tuple[str, ...] = ()

    @property
    def chosen(self) -> list[tuple[Decision, Weight]]:
        """The leaves that get zeros."""
        return [(d, d.weight) for d in self.decisions if d.weight is not None]


def plan(
    graph: Graph,
    sparsity: float,
    distribution: str,
    pattern: Pattern,
    rules: Sequence[tuple[str, Aim]],
) -> Plan:
    """Decides for every leaf, by the first rule that is about it.

    Args:
        graph: whose.
        sparsity: of the weights no rule is about, together.
        distribution: how it is spread over them: `"uniform"`, `"global"`, `"erk"`.
        pattern: of these weights.
        rules: globs, and what they ask for.

    Raises:
        UnknownPathError: if a rule that leaves weights out names no leaf.
    """
    uses = sites_by_leaf(graph)
    names = {id(site): key for key, site in named(graph, uses).items()}
    decisions, used = [], set()
    for place, leaf in enumerate(graph.leaves):
        if is_mask(graph, leaf.path):
            continue
        sites = uses.get(place, [])
        number = _rule_for(leaf, sites, rules)
        used.add(number)
        aim = sparsity if number is None else rules[number][1]
        weight = as_weight(graph, leaf, sites, lookups=number is not None)
        own = {names[id(site)]: site for site in sites}
        if number is not None and aim is None and isinstance(weight, Weight):
            weight = f"left out by rule {rules[number][0]}"
        decision = Decision(leaf, own)
        if isinstance(weight, Weight):
            kind = pattern if number is None else _pattern_of(aim, pattern)
            share = None if number is None and distribution == "global" else aim
            decision = _decided(decision, weight, share, kind)
        else:
            decision = dataclasses.replace(decision, why=weight)
        decisions.append((decision, number is None))
    unused = tuple(rule[0] for i, rule in enumerate(rules) if i not in used)
    _check_unused(graph, unused, rules)
    made = [decision for decision, _ in decisions]
    if distribution == "erk":
        made = _by_shape(decisions, sparsity)
    return Plan(tuple(made), unused)


def is_mask(graph: Graph, path: str) -> bool:
    """Whether a leaf says where the zeros of another are."""
    own = path.removeprefix("state/").removesuffix(f"/{MASK}")
    return path == f"state/{own}/{MASK}" and f"params/{own}" in graph.paths


def mask_path(path: str) -> str:
    """Where the mask of a weight among params stands.

    >>> mask_path("params/dense/kernel")
    'state/dense/kernel/mask'
    """
    return f"state/{path.removeprefix('params/')}/{MASK}"


def _rule_for(
    leaf: Leaf, sites: Sequence[WeightSite], rules: Sequence[tuple[str, Aim]]
) -> int | None:
    called = names_of(leaf, sites)
    for number, (glob, _) in enumerate(rules):
        if any(matches(glob, name) for name in called):
            return number
    return None


def _pattern_of(aim: Aim, pattern: Pattern) -> Pattern:
    """A number asks for zeros anywhere, or in blocks where these are the pattern."""
    if isinstance(aim, str):
        return aim
    return None if isinstance(pattern, str) else pattern


def _decided(
    decision: Decision, weight: Weight, share: Aim, pattern: Pattern
) -> Decision:
    pair = n_and_m(pattern)
    if pair is None:
        number = None if isinstance(share, str) else share
        return dataclasses.replace(
            decision, weight=weight, sparsity=number, pattern=pattern
        )
    why = ""
    if weight.mixed:
        why = "its product sums over a part of an axis: no neighbours to choose among"
    elif weight.extents[2] <= pair[0]:
        why = f"has {weight.extents[2]} input features: nothing to choose {pattern} of"
    if why:
        return dataclasses.replace(decision, why=why)
    return dataclasses.replace(
        decision, weight=weight, sparsity=1 - pair[0] / pair[1], pattern=pattern
    )


def _by_shape(
    decisions: Sequence[tuple[Decision, bool]], sparsity: float
) -> list[Decision]:
    """Sparsities by the shapes of the weights no rule is about."""
    together = {
        d.leaf.path: d.weight for d, free in decisions if free and d.weight is not None
    }
    found = sparsities(together, sparsity)
    return [
        dataclasses.replace(d, sparsity=found[d.leaf.path])
        if d.leaf.path in found and free
        else d
        for d, free in decisions
    ]


def _check_unused(
    graph: Graph, unused: Sequence[str], rules: Sequence[tuple[str, Aim]]
) -> None:
    left_out = [glob for glob, aim in rules if aim is None and glob in unused]
    if left_out:
        raise UnknownPathError(
            f"{left_out[0]}: names no leaf of the program, or only such as an earlier "
            f"rule is about. Its leaves: {', '.join(graph.paths[:8])}"
            f"{', ...' if len(graph.paths) > 8 else ''}."
        )
