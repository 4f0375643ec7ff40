"""What rounding does to the mean of outputs, taken back."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from compiler import jaxprs
from compiler.graph import Graph, drop_dead, free_path
from compiler.passes.base import Pass, Rewrite
from compiler.passes.factorize.symbolic import evaluate
from compiler.passes.quantize.arithmetic.operand import Arrangement
from compiler.passes.quantize.calibrate import Calibration, SiteStatistics, kept
from compiler.passes.quantize.physical import encoded
from compiler.passes.quantize.plan import Decision
from compiler.passes.quantize.rounding import normal
from compiler.passes.quantize.rounding.accompanied import Report, spread
from compiler.passes.quantize.rounding.balance import mean_shift
from compiler.passes.quantize.rounding.biased import Biased
from compiler.passes.quantize.rounding.measured import noted, seen, statistics_of
from compiler.passes.quantize.storage.encoding import Encoding
from compiler.passes.quantize.weights import QuantizeWeights
from mapping.core import register

if TYPE_CHECKING:
    from compiler.program import Program

NAME = "correction"
"""What the leaf of terms is called."""

_HIDDEN = "arithmetic stands between it and its product"


@dataclasses.dataclass(frozen=True, eq=False)
class Corrections:
    """What was decided for one program.

    Attributes:
        found: what its products are given.
        terms: by path, what is added to the columns, `[*stack, *columns]`.
        notes: by path, what to tell of it.
        left: by path, why nothing is added.
    """

    found: Calibration
    terms: dict[str, Any]
    notes: dict[str, str]
    left: dict[str, str]


@register("pass", "correct_bias")
@dataclasses.dataclass(frozen=True)
class CorrectBias(Pass):
    r"""Quantizes, and adds to outputs what they lose on average.

    $$ y = x \hat W + \mathrm{E}[x]\,(W - \hat W) $$

    The errors of a rounded column do not cancel where its inputs have a mean, such as
    after a relu; what they come to on average is one number for each column. It is a
    new leaf, `<weight>/correction`, added to the output of the product; it makes up
    for the weights, not for what a range of activations cuts off.

    A pass of its own it could not be: what a weight was is not known any more when it
    is rounded. So it goes around the pass that rounds. A weight used by several
    products, or by a grouped convolution, is rounded without.

    Attributes:
        step: the quantizing pass.
        batches: inputs of the program to measure on, or a [`Calibration`][].
        decided: what was measured, and the terms.

    Raises:
        CalibrationError: if there are no batches.
        TypeError: if `step` is no quantizing pass.

    Nagel et al., 2019, https://arxiv.org/abs/1906.04721.
    """

    step: QuantizeWeights
    batches: Any = dataclasses.field(default=None, repr=False, compare=False)
    decided: Corrections | None = dataclasses.field(
        default=None, init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        if not isinstance(self.step, QuantizeWeights):
            raise TypeError(
                "quantize.correct_bias: expected a quantizing pass, got "
                f"{type(self.step).__name__}. Pass what rounds the weights: "
                'correct_bias(quantize.weights("int4"), batches).'
            )

    def decide(self, program: Program) -> Pass:
        """Decides what the inner pass does, and measures what that does to means."""
        step: Any = self.step.decide(program)
        planned = step.planned(program.graph)
        if not planned.encodings:
            return dataclasses.replace(self, step=step, batches=None)
        found = seen("correct_bias", program, self.batches, False, self.decided)
        made = Corrections(found, {}, {}, {})
        after = _stored(step.rewrite(program.graph), program.values)
        before = dict(zip(program.graph.paths, program.values, strict=True))
        for decision in planned.decisions:
            path, encoding = decision.leaf.path, decision.encoding
            if encoding is None:
                continue
            statistics = _statistics(decision, found)
            if isinstance(statistics, str):
                made.left[path] = statistics
                continue
            parts = {name: after[path][name] for name in encoding.names}
            terms, size = _terms(encoding, before[path], parts, statistics)
            made.terms[path] = terms
            made.notes[path] = f"mean of outputs corrected by up to {size:.2g}"
        new = dataclasses.replace(self, step=step, batches=None)
        object.__setattr__(new, "decided", made)
        return new

    def rewrite(self, graph: Graph) -> Rewrite:
        """Adds the terms to the graph of floating weights, and quantizes that."""
        chosen = self._chosen(graph)
        if not chosen:
            return self.step.rewrite(graph)
        report = Report()
        _with_terms(graph, chosen, report)
        left = {path: _HIDDEN for path in chosen if path not in report.inputs}
        chosen = {path: e for path, e in chosen.items() if path not in left}
        names, jaxpr = _with_terms(graph, chosen, Report())
        inner = self.step.rewrite(graph.with_leaves(names, jaxpr))
        left |= self.decided.left if self.decided else {}
        notes = {
            path: f"mean of outputs not corrected: {why}" for path, why in left.items()
        }
        notes = (self.decided.notes if self.decided else {}) | notes
        fired = inner.events.fired
        fired[:] = [noted(event, notes.get(event.path)) for event in fired]

        def prepare(leaves: Sequence[Any]) -> list[Any]:
            whole = self._with_values(graph, chosen, leaves)
            return whole if inner.prepare is None else inner.prepare(whole)

        return Rewrite(inner.graph, prepare, inner.events)

    def _chosen(self, graph: Graph) -> dict[str, Encoding]:
        """The weights that get terms, so far as that can be told beforehand."""
        left = self.decided.left if self.decided else {}
        return {
            d.leaf.path: d.encoding
            for d in self.step.planned(graph).decisions
            if d.encoding is not None and d.leaf.path not in left and not _why_not(d)
        }

    def _with_values(
        self, graph: Graph, chosen: Mapping[str, Encoding], leaves: Sequence[Any]
    ) -> list[Any]:
        terms = self.decided.terms if self.decided else {}
        found: list[Any] = []
        for path, value in zip(graph.paths, leaves, strict=True):
            found.append(value)
            if path in chosen:
                spec = _spec(chosen[path])
                zeros = jnp.zeros(spec.shape, spec.dtype)
                given = terms.get(path)
                found.append(zeros if given is None else jnp.asarray(given, spec.dtype))
        return found


def correct_bias(
    step: QuantizeWeights,
    batches: Iterable[Any] | Calibration | None = None,
) -> CorrectBias:
    """Quantizes, and adds to outputs what they lose on average; see [`CorrectBias`][].

    Args:
        step: the quantizing pass: `weights`, `dynamic`, `static`, `gptq`.
        batches: inputs of the program to measure on, as they come to this point of
            the recipe; or a [`Calibration`][].

    >>> import compiler as mc
    >>> x = jax.random.uniform(jax.random.key(0), (64, 32))
    >>> w = jax.random.normal(jax.random.key(1), (32, 16))
    >>> program = mc.trace(lambda w, x: x @ w, w, x)
    >>> plain = program >> mc.quantize.weights("int4")
    >>> better = program >> correct_bias(mc.quantize.weights("int4"), [x])
    >>> def shift(small):
    ...     return float(abs((small(x) - program(x)).mean(0)).max())
    >>> shift(better) < 1e-4 * shift(plain)
    True
    """
    return CorrectBias(step, kept(batches))


def _why_not(decision: Decision) -> str:
    products = [site for site in decision.sites.values() if site.kind != "lookup"]
    if not products:
        return "it is looked up only"
    if len(products) > 1:
        return f"it is used {len(products)} times, with inputs of their own"
    (site,) = products
    encoding = decision.encoding
    if site.kind == "ragged" or site.groups > 1:
        return "its columns have inputs of their own"
    if encoding is None or site.contracted != frozenset(encoding.rows):
        return "its products sum over different axes"
    same = site.batched == frozenset(encoding.stack)
    return "" if same else "its products sum over different axes"


def _statistics(decision: Decision, found: Calibration) -> SiteStatistics | str:
    """What the one product of a weight is given, or why there are no terms for it."""
    why = _why_not(decision)
    if why:
        return why
    keys = [key for key, site in decision.sites.items() if site.kind != "lookup"]
    return statistics_of(keys[0], found.sites)


def _stored(rewrite: Rewrite, values: Sequence[Any]) -> dict[str, dict[str, Any]]:
    """What is stored after a rewrite: by the path of a weight, by name."""
    made = encoded(rewrite.graph)
    if made is None or rewrite.prepare is None:
        return {}
    new = jax.jit(rewrite.prepare)(list(values))
    arrays = dict(zip(rewrite.graph.paths, new, strict=True))
    return {
        path: {name: arrays[new] for name, new in own.items() if name}
        for path, own in made.stored.names(made.logical).items()
    }


def _terms(
    encoding: Encoding, before: Any, parts: Any, statistics: SiteStatistics
) -> tuple[Any, float]:
    """What to add to the columns, `[*stack, *columns]`, and the largest of it."""
    stack = [encoding.shape[axis] for axis in encoding.stack]
    wide = np.promote_types(np.float32, encoding.dtype)
    weight, rounded = (
        normal.matrices(encoding, jnp.asarray(array, wide))
        for array in (before, encoding.decode(parts))
    )
    rows = statistics.mean.shape[-1]
    mean = np.broadcast_to(statistics.mean, (*stack, rows)).reshape(-1, rows)
    shift = mean_shift(jnp.asarray(mean, wide), weight - rounded)
    return shift.reshape(_spec(encoding).shape), float(jnp.max(jnp.abs(shift)))


def _axes(encoding: Encoding) -> tuple[int, ...]:
    """The axes that terms lie along: those of the stack, then the columns."""
    gone = (*encoding.stack, *encoding.rows)
    columns = [a for a in range(len(encoding.shape)) if a not in gone]
    return (*encoding.stack, *columns)


def _spec(encoding: Encoding) -> jax.ShapeDtypeStruct:
    shape = tuple(encoding.shape[axis] for axis in _axes(encoding))
    return jax.ShapeDtypeStruct(shape, jnp.dtype(encoding.dtype))


def _with_terms(
    graph: Graph, chosen: Mapping[str, Encoding], report: Report
) -> tuple[list[str], jaxprs.Jaxpr]:
    """The equations with terms added, and the paths of the leaves they take."""
    names, specs, taken = [], [], set(graph.paths)
    for leaf in graph.leaves:
        names.append(leaf.path)
        specs.append(leaf.spec)
        if leaf.path in chosen:
            names.append(free_path(f"{leaf.path}/{NAME}", taken))
            taken.add(names[-1])
            specs.append(_spec(chosen[leaf.path]))

    def function(*arguments: Any) -> list[Any]:
        given = iter(arguments)
        leaves = []
        for leaf in graph.leaves:
            value = next(given)
            if leaf.path in chosen:
                code, shape = chosen[leaf.path], leaf.spec.shape
                terms = spread(next(given), _axes(code), _kept(code))
                view = Arrangement.of(shape)
                value = Biased(leaf.path, value, terms, view, leaf.spec.dtype, report)
            leaves.append(value)
        return evaluate(graph.jaxpr, [*leaves, *given])

    return names, drop_dead(jaxprs.make(function, [*specs, *graph.inputs]))


def _kept(encoding: Encoding) -> list[int]:
    """The array's shape, of extent one along rows."""
    return [1 if a in encoding.rows else n for a, n in enumerate(encoding.shape)]
