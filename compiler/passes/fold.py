"""Partial evaluation over params: what needs no input is computed once."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence, Set
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import jax.numpy as jnp

from compiler import jaxprs
from compiler.binding import cut, dependencies, digests
from compiler.graph import (
    Graph,
    evaluate,
    free_path,
    is_abstract,
    nbytes,
    needed,
    required,
)
from compiler.passes.base import Pass, Rewrite, fingerprint
from compiler.passes.collapse import COLLAPSE
from compiler.passes.hoist import HOIST
from compiler.rewrite import Event, Events, Walk, early_sites
from mapping.core import register

if TYPE_CHECKING:
    from compiler.program import Program


@register("pass", "fold")
@dataclasses.dataclass(frozen=True)
class Fold(Pass):
    r"""Evaluates everything that depends on params alone, once, at compile time.

    An affine map before or after a product (a batch norm, a scale, a bias, what a
    layer norm does last) is merged into the product's kernel and bias; what loops
    and branches derive from weights is moved out of them; then a minimum cut chooses
    which derived arrays become the new leaves, so that the program never holds more
    bytes than before.

    $$ (x * W) s + t \;\to\; x * (W s) + t, \qquad
       (x s + t) * W + b \;\to\; x * (s W) + (t * W + b) $$

    The result computes the same function up to rounding. Weights that are not
    needed any more are gone.

    Attributes:
        allowed: digests of the computations whose results may be kept; found by
            `decide`.

    >>> Fold() == fold()
    True

    Jones, Gomard & Sestoft, "Partial Evaluation and Automatic Program
    Generation", 1993 (binding times).
    """

    allowed: frozenset[str] | None = dataclasses.field(
        default=None, repr=False, compare=False
    )

    def decide(self, program: Program) -> Pass:
        """Allows to keep only what is the same for inputs of every shape.

        A value that depends on the batch size would fit one batch size only.
        """
        jaxpr, kept, _ = _early(program.graph, None)
        if set(kept) <= set(jaxpr.jaxpr.invars):  # nothing to keep, nothing to decide
            return dataclasses.replace(self, allowed=frozenset())
        allowed = _computations(program.graph, jaxpr)
        for graph in program.grown:
            allowed &= _computations(graph, _early(graph, None)[0])
        return dataclasses.replace(self, allowed=allowed)

    def review(self, program: Program, rewrite: Rewrite, values: Sequence[Any]) -> Pass:
        """Refuses to keep what is infinite or nan though its weights are finite.

        x / 0 is infinite where x is; W / 0 would be everywhere.
        """
        if rewrite.prepare is None or not all(map(_finite, program.values)):
            return self
        told = fingerprint(program.graph, rewrite)
        bad = {d for d, value in zip(told, values, strict=True) if not _finite(value)}
        allowed = self.allowed or frozenset()
        if allowed.isdisjoint(bad):
            return self
        return dataclasses.replace(self, allowed=allowed - bad)

    def rewrite(self, graph: Graph) -> Rewrite:
        """Splits the graph into what is computed once and what remains."""
        jaxpr, kept, events = _early(graph, self.allowed)
        if graph.carried:
            why = f"{len(graph.carried)} leaves are returned, moved: they stay"
            events.skipped.append(Event("variables", why))
        leaf_vars = jaxpr.jaxpr.invars[: len(graph.leaves)]
        if set(kept) == set(leaf_vars):
            return Rewrite(dataclasses.replace(graph, jaxpr=jaxpr), None, events)
        named = _named(jaxpr, graph, kept)
        names, kept = list(named), list(named.values())
        _record(names, graph, leaf_vars, kept, events)

        def prepare(leaves: Sequence[Any]) -> list[Any]:
            return evaluate(jaxpr, dict(zip(leaf_vars, leaves, strict=True)), kept)

        inputs = [*kept, *jaxpr.jaxpr.invars[len(leaf_vars) :]]
        outputs = jaxpr.jaxpr.outvars
        left = needed(jaxpr, outputs, set(inputs), effects=True)
        residual = jaxprs.part(jaxpr, inputs, outputs, left)
        return Rewrite(graph.with_leaves(names, residual), prepare, events)


def fold() -> Fold:
    """Partial evaluation over params; see [`Fold`][].

    >>> import jax, jax.numpy as jnp, compiler as mc
    >>> def f(variables, x):
    ...     return (x @ variables["kernel"]) * variables["scale"]
    >>> variables = {"kernel": jnp.eye(3), "scale": jnp.full((1, 3), 2.0)}
    >>> program = mc.trace(f, variables, jnp.ones((1, 3)))
    >>> folded = fold()(program)
    >>> folded.graph.paths, folded(jnp.ones((1, 3))).tolist()
    (['kernel'], [[2.0, 2.0, 2.0]])
    """
    return Fold()


def _finite(value: Any) -> bool:
    if is_abstract(value) or not jnp.issubdtype(value.dtype, jnp.inexact):
        return True
    return bool(jnp.isfinite(value).all())


def _known(graph: Graph) -> list[bool]:
    """What may be computed once: what the function itself moves changes every time."""
    leaves = [leaf.path not in graph.carried for leaf in graph.leaves]
    return leaves + [False] * len(graph.inputs)


def _computations(graph: Graph, jaxpr: jaxprs.Jaxpr) -> frozenset[str]:
    """The digests of all that can be computed from the leaves of a rewritten graph."""
    return frozenset(digests(jaxpr, _known(graph)).values())


def _early(
    graph: Graph, allowed: Set[str] | None
) -> tuple[jaxprs.Jaxpr, list[Any], Events]:
    """Rewrites the equations and chooses the variables to compute once.

    A rule that moves work to the weights pays only if the result is stored. Where
    it is not (it would be larger than what it came from), the rule is refused and
    the walk done again.
    """
    known, refused = _known(graph), frozenset[int]()
    while True:
        new, events = _walked(graph, refused)
        kept = cut(new, known, allowed)
        needs = required(new, set(kept))
        for place in range(len(graph.leaves)):
            var = new.jaxpr.invars[place]
            if not known[place] or (var in needs and not jaxprs.is_array(var)):
                kept.append(var)
        left = needed(new, new.jaxpr.outvars, set(kept), effects=True)
        useless = early_sites(jaxprs.with_equations(new, left))
        if useless <= refused:
            return new, kept, events
        refused |= useless


_WALKS: WeakKeyDictionary[Graph, dict[Set[int], tuple[jaxprs.Jaxpr, Events]]] = (
    WeakKeyDictionary()
)
"""Walks done before: what to keep is decided and then done on the same graph."""


def _walked(graph: Graph, refused: frozenset[int]) -> tuple[jaxprs.Jaxpr, Events]:
    """The equations rewritten by every rule, except at the sites refused."""
    done = _WALKS.setdefault(graph, {})
    if refused not in done:
        walk = Walk(COLLAPSE | HOIST, refused, graph)
        done[refused] = walk.rewrite(graph.jaxpr, _known(graph)), walk.events
    new, events = done[refused]
    return new, Events(list(events.fired), list(events.skipped))


def _named(jaxpr: jaxprs.Jaxpr, graph: Graph, kept: Sequence[Any]) -> dict[str, Any]:
    """Names each new leaf after the largest leaf it was computed from (a bias, of
    equals, and of those the one that is used first).

    The new leaves stand in the order of the leaves they are named after.
    """
    leaf_vars = jaxpr.jaxpr.invars[: len(graph.leaves)]
    place = {leaf: i for i, leaf in enumerate(leaf_vars)}
    parents, _ = dependencies(jaxpr, leaf_vars)
    roots: dict[Any, frozenset[int]] = {}
    for var, inputs in parents.items():
        own = (place[var],) if var in place else ()
        roots[var] = frozenset(own).union(*(roots[u] for u in inputs))
    rank = _ranks(graph)
    named = {graph.paths[place[v]]: (place[v], v) for v in kept if v in place}
    for var in kept:
        if var not in place:
            ranked = sorted(roots[var], key=lambda i: rank[i])
            free = [i for i in ranked if graph.paths[i] not in named]
            root = (free or ranked)[0]
            named[free_path(graph.paths[root], named)] = (root, var)
    ordered = sorted(named.items(), key=lambda item: item[1][0])
    return {name: var for name, (_, var) in ordered}


def _ranks(graph: Graph) -> list[tuple[Any, ...]]:
    """Orders leaves to be named after: the largest, a bias first, then by first use."""
    used: dict[Any, int] = {}
    for i, equation in enumerate(jaxprs.equations(graph.jaxpr)):
        for var in equation.invars:
            if not jaxprs.is_literal(var):
                used.setdefault(var, i)
    return [
        (-leaf.bytes, leaf.path.split("/")[-1] not in ("bias", "b"), used.get(var, 0))
        for leaf, var in zip(graph.leaves, graph.jaxpr.jaxpr.invars, strict=False)
    ]


def _record(
    names: Sequence[str],
    graph: Graph,
    leaf_vars: Sequence[Any],
    kept: Sequence[Any],
    events: Events,
) -> None:
    unchanged, left = set(leaf_vars), set(names)
    for name, var in zip(names, kept, strict=True):
        if var not in unchanged:
            size = nbytes(jaxprs.spec(var))
            events.fired.append(Event(name, f"computed once ({size} bytes)"))
    events.fired.extend(
        Event(path, "no longer needed") for path in graph.paths if path not in left
    )
