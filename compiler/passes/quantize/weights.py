"""Weights in few bits; the arithmetic stays in floating point."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp

from compiler.errors import CoverageError, NonFiniteWeightsError, UnknownPathError
from compiler.graph import Graph, is_abstract
from compiler.passes.base import Pass, Rewrite
from compiler.passes.quantize.arithmetic.activations import Activations
from compiler.passes.quantize.coverage import Coverage, covered
from compiler.passes.quantize.physical import (
    StaticScales,
    Stored,
    origin,
    physical,
    prepare,
)
from compiler.passes.quantize.plan import Plan, plan
from compiler.passes.quantize.rules import Rule, RuleSpec, as_rules
from compiler.passes.quantize.storage.scheme import Scheme, as_scheme
from compiler.rewrite import Event, Events
from mapping.core import register

if TYPE_CHECKING:
    from compiler.program import Program


_INT8 = Scheme()


@register("pass", "quantize_weights")
@dataclasses.dataclass(frozen=True)
class QuantizeWeights(Pass):
    r"""Stores each weight in few bits, rounded to a grid of its own channel or group.

    $$ s_c = \max_i |W_{ic}| / 127, \qquad Q = \mathrm{round}(W / s), \qquad
       W \approx s\,Q, \qquad |W - s\,Q| \le s / 2 $$

    in int8; see [`Scheme`][] for other formats. A weight is a floating leaf of two or
    more axes that reaches a product, a convolution or a look-up, however it was
    transposed, reshaped, stacked for a loop or passed into a call. Products stay in
    floating point. A large weight is decoded a tile at a time and never whole; of a
    table only the rows that are looked up are.

    Attributes:
        scheme: of weights no rule is about.
        rules: which scheme weights get, by path and by kind of product; the first
            that matches counts.
        min_coverage: the least share of the bytes of floating leaves that has to be
            quantized, from 0 to 1.

    Raises:
        UnknownPathError: if a rule that leaves weights out names no leaf.
        NonFiniteWeightsError: if a weight holds inf or nan.
        CoverageError: if less was quantized than `min_coverage`.

    Jacob et al., 2017, https://arxiv.org/abs/1712.05877; per channel after
    Krishnamoorthi, 2018, https://arxiv.org/abs/1806.08342.
    """

    scheme: Scheme = _INT8
    rules: tuple[Rule, ...] = ()
    min_coverage: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "scheme", as_scheme(self.scheme))
        object.__setattr__(self, "rules", tuple(self.rules))
        if not 0 <= self.min_coverage <= 1:
            raise ValueError(
                f"min_coverage: expected a share from 0 to 1, got {self.min_coverage}."
            )

    def __str__(self) -> str:
        """The scheme, and how many rules differ from it."""
        rules = f", {len(self.rules)} rules" if self.rules else ""
        return f"{type(self).__name__}({self.scheme}{rules})"

    @property
    def rounding(self) -> Activations | None:
        """How activations are rounded; None if they are not."""
        return None

    @property
    def static(self) -> StaticScales:
        """The scales of activations that are known beforehand."""
        return {}

    def decide(self, program: Program) -> Pass:
        """Nothing to choose; refuses weights that cannot be rounded."""
        graph = program.graph
        chosen = self.planned(graph)
        for rule in chosen.unused:
            if rule.scheme is None:
                raise UnknownPathError(
                    f"{rule.path}: names no leaf of the program, or only such as an "
                    f"earlier rule is about. Its leaves: {', '.join(graph.paths[:8])}"
                    f"{', ...' if len(graph.paths) > 8 else ''}."
                )
        values = dict(zip(graph.paths, program.values, strict=True))
        for path in chosen.encodings:
            check_finite(path, values.get(path))
        if self.min_coverage:
            self._check_coverage(graph, chosen)
        return self

    def rewrite(self, graph: Graph) -> Rewrite:
        """Replaces each weight by what is stored of it."""
        chosen, (logical, before) = self.planned(graph), origin(graph)
        events = Events()
        if chosen.encodings:
            stored = before.joined(self.storing(chosen))
            new, uses = physical(logical, stored)
        else:
            new, uses, stored = graph, None, before
        found = covered(logical, chosen, before, uses)
        _record(chosen, found, events)
        if not chosen.encodings:
            return Rewrite(graph, None, events)
        new = dataclasses.replace(new, coverage=found)
        prepared = functools.partial(self.prepared, graph, logical, stored)
        return Rewrite(new, prepared, events)

    def storing(self, chosen: Plan) -> Stored:
        """How what was chosen is stored."""
        return Stored(chosen.encodings, chosen.activations, self.static)

    def prepared(
        self, graph: Graph, logical: Graph, stored: Stored, leaves: Sequence[Any]
    ) -> list[Any]:
        """What is stored, from the graph's leaves."""
        return prepare(graph, logical, stored, leaves)

    def planned(self, graph: Graph) -> Plan:
        """What becomes of each leaf."""
        logical, before = origin(graph)
        return plan(logical, self.scheme, self.rules, self.rounding, before.encodings)

    def _check_coverage(self, graph: Graph, chosen: Plan) -> None:
        logical, before = origin(graph)
        found = covered(logical, chosen, before)
        if found.share < self.min_coverage:
            raise CoverageError(
                f"expected at least {self.min_coverage:.1%} of the weights' bytes "
                f"quantized, got {found.share:.1%}. Left out: {found.reasons()}. "
                "Change the rules, or lower min_coverage."
            )


def weights(
    dtype: str | Scheme = "int8",
    *,
    group: int | str | None = None,
    symmetric: bool = True,
    rules: RuleSpec = (),
    skip: str | Sequence[str] = (),
    min_coverage: float = 0.0,
) -> QuantizeWeights:
    """Stores weights in few bits; see [`QuantizeWeights`][].

    Args:
        dtype: `"int8"`, `"int4"`, `"nf4"`, `"float8_e4m3"`, ...; or a [`Scheme`][].
        group: `"channel"`, `"tensor"`, or how many rows share a scale.
        symmetric: without zero points.
        rules: a dict from globs to schemes, or a list of [`Rule`][]s.
        skip: globs of paths that are left as they are.
        min_coverage: the least share of bytes to be quantized.

    >>> import compiler as mc
    >>> program = mc.trace(lambda w, x: x @ w, jnp.eye(64), jnp.ones((1, 64)))
    >>> small = weights("int8")(program)
    >>> program.bytes, small.bytes, small.graph.paths
    (16384, 4352, ['variables/scale', 'variables/values'])
    >>> weights("int4", group=16)(program).bytes
    3072
    """
    scheme = chosen_scheme(dtype, group, symmetric)
    return QuantizeWeights(scheme, as_rules(rules, skip), min_coverage)


def chosen_scheme(
    dtype: str | Scheme, group: int | str | None, symmetric: bool
) -> Scheme:
    """A scheme from what users say of it."""
    scheme = as_scheme(dtype)
    if group is not None:
        scheme = dataclasses.replace(scheme, group=group)
    return scheme if symmetric else dataclasses.replace(scheme, symmetric=False)


def check_finite(path: str, value: Any) -> None:
    """Refuses a weight that cannot be rounded; one without numbers passes."""
    if value is None or is_abstract(value):
        return
    bad = int(jnp.size(value) - jnp.isfinite(value).sum())
    if bad:
        raise NonFiniteWeightsError(
            f"{path}: expected finite weights, got {bad} infinite or nan of "
            f"{value.size}. Mend them, or leave the leaf out with skip=({path!r},)."
        )


def _record(chosen: Plan, found: Coverage, events: Events) -> None:
    for decision in chosen.decisions:
        path = decision.leaf.path
        if decision.encoding is None:
            events.skipped.append(Event(path, decision.why))
        else:
            what = f"{decision.leaf.spec.dtype} -> {decision.encoding.scheme}"
            events.fired.append(Event(path, what + found.note(path)))
    events.skipped += [Event(str(rule), "matched nothing") for rule in chosen.unused]
    events.skipped += [
        Event(row.path or row.kind, row.why, row.source)
        for row in found.rows
        if not row.leaf and row.kind != "lookup"
    ]
