"""What a pass is."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import jax

from compiler import jaxprs
from compiler.binding import digests
from compiler.errors import VerifyError
from compiler.graph import Graph
from compiler.rewrite import Events, Rules, Walk
from mapping.core import Mapping, describe, register

if TYPE_CHECKING:
    from compiler.program import Program

Prepare = Callable[[Sequence[Any]], list[Any]]
"""Computes a rewritten graph's leaves from the original's; a pure function."""


@dataclasses.dataclass(frozen=True)
class Rewrite:
    """What a pass makes of a graph, before any array is touched.

    Attributes:
        graph: the new graph.
        prepare: its leaves, from the old ones; None where they are the same.
        events: what fired, and what was skipped and why.
        resized: places of the outputs that may become smaller: new values of leaves
            that did, and what the user asked to have made smaller.

    >>> import jax.numpy as jnp, compiler as mc
    >>> class Nothing(Pass):
    ...     def rewrite(self, graph):
    ...         return Rewrite(graph)
    >>> program = mc.trace(lambda w, x: x @ w, jnp.eye(2), jnp.ones((1, 2)))
    >>> Nothing()(program).graph is program.graph
    True
    """

    graph: Graph
    prepare: Prepare | None = None
    events: Events = dataclasses.field(default_factory=Events)
    resized: frozenset[int] = frozenset()


@dataclasses.dataclass(frozen=True)
class Pass:
    """Rewrites a program. A value: it prints, compares, and can be saved as data.

    A subclass is a frozen dataclass that defines `rewrite`, which sees shapes and
    equations only and never the values of the weights. So it can be applied again
    to the same function at other batch sizes, or for other weights. A pass whose
    choices depend on values or data makes them in `decide`, which returns a pass
    that carries them.

    >>> from compiler.passes import fold, quantize
    >>> print(fold() >> quantize.weights("int8"))
    Fold() >> QuantizeWeights(int8)
    """

    def decide(self, program: Program) -> Pass:
        """Returns the pass with every choice made for this program; itself if none."""
        return self

    def rewrite(self, graph: Graph) -> Rewrite:
        """Rewrites a graph; pure, and independent of the weights' values."""
        raise TypeError(
            f"{type(self).__name__}: expected a method `rewrite(self, graph)` that "
            "returns a Rewrite, found none. Define it."
        )

    def review(self, program: Program, rewrite: Rewrite, values: Sequence[Any]) -> Pass:
        """Looks at the prepared leaves; returns another pass to have it done again."""
        return self

    def __call__(
        self,
        program: Program,
        *,
        sample: Sequence[Any] | None = None,
        tolerance: float | None = None,
    ) -> Program:
        """Applies the pass: the graph is rewritten, the leaves are prepared.

        Args:
            program: what to rewrite.
            sample: real inputs, on which the outputs are compared with those before;
                how far they moved stands in the history and the report.
            tolerance: how far they may, as a share of the largest value.

        Raises:
            VerifyError: if the pass broke the graph, changed its signature, or moved
                the outputs farther than allowed.
        """
        return program.rewritten(self, sample=sample, tolerance=tolerance)

    def __rshift__(self, other: Pass) -> Pass:
        """`a >> b`: first `a`, then `b`."""
        if isinstance(other, Mapping):
            raise TypeError(
                f"{self} >> {type(other).__name__}: expected a pass, got a program or "
                "mapping. A pass comes after what it rewrites: program >> pass."
            )
        if not isinstance(other, Pass):
            return NotImplemented
        return Pipeline((*self.passes, *other.passes))

    @property
    def passes(self) -> tuple[Pass, ...]:
        """The single passes this one is made of."""
        return (self,)


@register("pass", "pipeline")
@dataclasses.dataclass(frozen=True)
class Pipeline(Pass):
    """Passes one after the other; what `>>` makes. `Pipeline()` is the identity.

    Attributes:
        steps: the passes, in order.
    """

    steps: tuple[Pass, ...] = ()

    @property
    def passes(self) -> tuple[Pass, ...]:
        """The steps."""
        return self.steps

    def __call__(
        self,
        program: Program,
        *,
        sample: Sequence[Any] | None = None,
        tolerance: float | None = None,
    ) -> Program:
        """Applies each step in turn, each compared with what was before it."""
        for step in self.steps:
            program = step(program, sample=sample, tolerance=tolerance)
        return program

    def __str__(self) -> str:
        """The steps joined by `>>`."""
        return " >> ".join(map(str, self.steps))


def by_rules(graph: Graph, rules: Rules, *, known: bool = False) -> Rewrite:
    """Rewrites a graph by rules, its leaves as they are: the body of a simple pass.

    Args:
        graph: what to rewrite.
        rules: asked at every equation, at every depth.
        known: whether leaves and what follows from them count as known.

    >>> import jax.numpy as jnp, compiler as mc
    >>> rules = Rules()
    >>> @rules.on("tanh")
    ... def tanh_by_exp(site, x):
    ...     site.fired("tanh written by exp")
    ...     return [1.0 - 2.0 / (1.0 + jnp.exp(2.0 * x.value))]
    >>> program = mc.trace(lambda w, x: jnp.tanh(w * x), 1.0, jnp.ones(2))
    >>> [str(event.what) for event in by_rules(program.graph, rules).events.fired]
    ['tanh written by exp']
    """
    walk = Walk(rules, graph=graph)
    leaves, inputs = len(graph.leaves), len(graph.inputs)
    jaxpr = walk.rewrite(graph.jaxpr, [known] * leaves + [False] * inputs)
    return Rewrite(dataclasses.replace(graph, jaxpr=jaxpr), None, walk.events)


def fingerprint(before: Graph, rewrite: Rewrite) -> tuple[str, ...]:
    """Tells how a rewrite computes each new leaf from the old ones.

    Equal for two traces of one function only if the same arrays serve both.
    """
    prepare = rewrite.prepare
    if prepare is None:
        return ()
    specs = [leaf.spec for leaf in before.leaves]
    jaxpr = jaxprs.make(lambda *leaves: prepare(leaves), specs)
    found = digests(jaxpr, [True] * len(before.leaves))
    return tuple(
        str(v) if jaxprs.is_literal(v) else found.get(v, str(v))
        for v in jaxpr.jaxpr.outvars
    )


def verify(before: Graph, rewrite: Rewrite, name: str) -> None:
    """Checks that a rewrite is well-formed and kept inputs and outputs as they were.

    Raises:
        VerifyError: naming the pass and what is wrong.
    """
    try:
        rewrite.graph.verify()
    except VerifyError as error:
        raise VerifyError(f"{name}: {error}") from error.__cause__
    for what in ("inputs", "outputs"):
        old, new = getattr(before, what), getattr(rewrite.graph, what)
        free = rewrite.resized if what == "outputs" else frozenset()
        if _signatures(old, free) != _signatures(new, free):
            raise VerifyError(
                f"{name}: changed the {what} from {describe(old)} to {describe(new)}. "
                "A pass must keep them."
            )
    if rewrite.prepare is not None:
        made = jax.eval_shape(rewrite.prepare, [leaf.spec for leaf in before.leaves])
        for leaf, got in zip(rewrite.graph.leaves, made, strict=True):
            if (leaf.spec.shape, leaf.spec.dtype) != (got.shape, got.dtype):
                raise VerifyError(
                    f"{name}: prepares {leaf.path} as {describe(got)}, the graph "
                    f"takes {describe(leaf.spec)}."
                )


def _signatures(
    specs: Sequence[jax.ShapeDtypeStruct], free: frozenset[int]
) -> list[tuple[Any, ...]]:
    """What must stay of some arrays: of those that are free the rank alone."""
    return [
        (len(spec.shape) if place in free else spec.shape, spec.dtype)
        for place, spec in enumerate(specs)
    ]
