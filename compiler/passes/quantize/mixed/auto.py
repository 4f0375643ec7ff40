"""Bits where they matter: a scheme for each weight, within a budget."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from compiler.errors import BudgetError, CalibrationError
from compiler.graph import Graph, Leaf, nbytes
from compiler.passes.base import Pass, Rewrite
from compiler.passes.quantize.arithmetic.activations import Activations
from compiler.passes.quantize.dynamic import QuantizeDynamic, as_activations
from compiler.passes.quantize.mixed.budget import Option, least_harm, smallest
from compiler.passes.quantize.mixed.effects import Sensitivity
from compiler.passes.quantize.mixed.gradients import Loss, inputs_of
from compiler.passes.quantize.mixed.sensitivity import (
    SCHEMES,
    candidates,
    sensitivity,
)
from compiler.passes.quantize.mixed.timing import Latency, product_times, seconds_of
from compiler.passes.quantize.physical import origin
from compiler.passes.quantize.plan import Decision, Plan, plan
from compiler.passes.quantize.rules import Rule, RuleSpec, as_rules
from compiler.passes.quantize.storage.scheme import Scheme, as_scheme
from compiler.passes.quantize.weights import QuantizeWeights
from compiler.rewrite import Event
from compiler.sites import WeightSite
from mapping.core import register

if TYPE_CHECKING:
    from compiler.program import Program

Chosen = tuple[tuple[str, Scheme | None, float], ...]
"""Paths of weights, what each gets (None: it stays), and the predicted rise."""

Options = dict[str, list[Option]]
Costs = tuple[Options, float, float]
"""The options of each weight, what they may cost together, and the whole budget."""

_STAYS = "stays as it is: the budget allows it"
_NEVER_SMALLER = "would not get smaller under any of the schemes"


@register("pass", "quantize_auto")
@dataclasses.dataclass(frozen=True)
class QuantizeAuto(QuantizeWeights):
    r"""Gives each weight a scheme, such that the loss rises least within a budget.

    $$ \min_s \sum_w \Delta L_{w, s_w} \quad \text{such that} \quad
       \sum_w \mathrm{cost}_{w, s_w} \le B $$

    with the rises that [`sensitivity`][] predicts from one backward pass for each
    batch. A weight may stay as it is. What was chosen becomes plain data in `chosen`:
    the pass that stands in the program's history measures nothing, is the same on
    other inputs, and can be saved. A budget of time holds for the machine it was
    measured on: each product is timed alone under each scheme.

    Rises are predicted one weight at a time and added up (Yao et al., 2021,
    https://arxiv.org/abs/2011.10680); rounding of activations is not part of them.

    Attributes:
        budget: for the whole program: bytes (int), a share of the bytes of the
            program in floating point (float in (0, 1)), or a [`Latency`][].
        schemes: those to choose from.
        activations: how activations are rounded; None leaves them.
        chosen: what was decided.
        loss: takes the outputs and what a batch holds behind the inputs.
        batches: tuples of the program's inputs and the rest; or a [`Sensitivity`][].

    Raises:
        ValueError: if the budget is none.
        BudgetError: if even the smallest choice is more than the budget.
        CalibrationError: if there is no loss, or as [`sensitivity`][] does.
    """

    budget: float | int | Latency = 0.25
    schemes: tuple[Scheme, ...] = tuple(map(as_scheme, SCHEMES))
    activations: Activations | None = None
    chosen: Chosen | None = dataclasses.field(default=None, repr=False)
    loss: Loss | None = dataclasses.field(default=None, repr=False, compare=False)
    batches: Any = dataclasses.field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "schemes", tuple(map(as_scheme, self.schemes)))
        if self.chosen is not None:
            chosen = tuple((path, scheme, rise) for path, scheme, rise in self.chosen)
            object.__setattr__(self, "chosen", chosen)
        _check_budget(self.budget)

    @property
    def rounding(self) -> Activations | None:
        """How activations are rounded."""
        return self.activations

    def decide(self, program: Program) -> Pass:
        """Measures, and chooses a scheme for every weight."""
        if self.chosen is not None:
            return super().decide(program)
        found = self._measured(program)
        budget = self.budget
        timed = isinstance(budget, Latency)
        if isinstance(budget, Latency):
            options, left, whole = self._by_time(program, found, budget)
        else:
            options, left, whole = self._by_bytes(program, found, budget)
        best = least_harm(options, left)
        if best is None:
            least = whole + smallest(options) - left
            raise BudgetError(
                f"budget: expected at least {_amount(least, timed)}, which the program "
                f"takes with the best of {', '.join(map(str, self.schemes))} for it "
                f"everywhere, got {_amount(whole, timed)}. Allow more, or add a scheme."
            )
        chosen = tuple((p, option.choice, option.harm) for p, option in best.items())
        decided = dataclasses.replace(self, chosen=chosen, loss=None, batches=None)
        return decided.decide(program)

    def rewrite(self, graph: Graph) -> Rewrite:
        """Stores each weight as was chosen."""
        rewrite = super().rewrite(graph)
        rises = {path: rise for path, scheme, rise in self.chosen or () if scheme}
        rewrite.events.fired[:] = [
            Event(e.path, f"{e.what}; predicted rise of the loss {rises[e.path]:.2g}")
            if e.path in rises
            else e
            for e in rewrite.events.fired
        ]
        return rewrite

    def planned(self, graph: Graph) -> Plan:
        """What becomes of each leaf."""
        logical, stored = origin(graph)
        exact = [Exactly(p, scheme=s) for p, s, _ in self.chosen or () if s is not None]
        rules, taken = (*self.rules, *exact), stored.encodings
        found = plan(logical, None, rules, self.rounding, taken)
        decisions = tuple(map(self._explained, found.decisions))
        return dataclasses.replace(found, decisions=decisions)

    def _explained(self, decision: Decision) -> Decision:
        """Says why a weight stays that no rule of the user is about."""
        leaf, sites = decision.leaf, list(decision.sites.values())
        ruled = any(rule.applies(leaf, sites) for rule in self.rules)
        if ruled or not decision.why.startswith("left out by rule"):
            return decision
        stays = {path for path, scheme, _ in self.chosen or () if scheme is None}
        why = _STAYS if leaf.path in stays else _NEVER_SMALLER
        return dataclasses.replace(decision, why=why)

    def _measured(self, program: Program) -> Sensitivity:
        """The effects on the weights that there is a choice for."""
        weights = candidates(program.graph, self.schemes, self.rules)
        if isinstance(self.batches, Sensitivity):
            effects = [
                e for e in self.batches.effects if e.scheme in weights.get(e.path, {})
            ]
            return dataclasses.replace(self.batches, effects=tuple(effects))
        if not weights:
            return Sensitivity((), 0.0, 1.0)
        if self.loss is None or self.batches is None:
            raise CalibrationError(
                "quantize.auto: expected a loss and batches to measure sensitivity "
                "with, got none. Pass quantize.auto(loss=..., batches=...)."
            )
        schemes, rules = self.schemes, self.rules
        return sensitivity(program, self.loss, self.batches, schemes, rules=rules)

    def _by_bytes(self, program: Program, found: Sensitivity, budget: float) -> Costs:
        """The options of each weight in bytes, and the bytes there are for them."""
        logical, stored = origin(program.graph)
        encodings = {**self.planned(program.graph).encodings, **stored.encodings}
        after = dataclasses.replace(stored, encodings=encodings)
        parts = [spec for leaf in logical.leaves for spec in after.specs(leaf).values()]
        fixed, options = sum(map(nbytes, parts)), {}
        for path in found.paths:
            before = found[path][0].before
            own = [Option(e.scheme, e.bytes, e.rise) for e in found[path]]
            options[path] = [Option(None, before, 0.0), *own]
            fixed -= before
        if isinstance(budget, float):
            budget = int(budget * sum(leaf.bytes for leaf in logical.leaves))
        return options, budget - fixed, budget

    def _by_time(self, program: Program, found: Sensitivity, budget: Latency) -> Costs:
        """The options of each weight in seconds, against what it takes now."""
        if not found.paths:
            return {}, 0.0, 0.0
        schemes = {path: [e.scheme for e in found[path]] for path in found.paths}
        step = QuantizeWeights()
        if self.activations is not None:
            step = QuantizeDynamic(activations=self.activations)
        times = product_times(program.graph, schemes, step)
        inputs = ()
        if not isinstance(self.batches, Sensitivity):
            inputs = inputs_of(program, self.batches[0])
        now = seconds_of(program, inputs)
        # Alone, products may take longer together than the program they are part of.
        part = min(1.0, now / sum(own[None] for own in times.values()))
        options = {}
        for path, own in times.items():
            gains = [part * (own[e.scheme] - own[None]) for e in found[path]]
            stored = [
                Option(e.scheme, gain, e.rise)
                for e, gain in zip(found[path], gains, strict=True)
            ]
            options[path] = [Option(None, 0.0, 0.0), *stored]
        limit = budget.limit(now)
        return options, limit - now, limit


class Exactly(Rule):
    """A rule for one leaf alone, whatever else its path would name."""

    def applies(self, leaf: Leaf, sites: Sequence[WeightSite]) -> bool:
        """Whether it is the leaf."""
        return leaf.path == self.path


def auto(
    budget: float | Latency = 0.25,
    *,
    loss: Loss | None = None,
    batches: Iterable[Any] | Sensitivity | None = None,
    schemes: Sequence[str | Scheme] | None = None,
    activations: str | Activations | None = None,
    rules: RuleSpec = (),
    skip: str | Sequence[str] = (),
    min_coverage: float = 0.0,
) -> QuantizeAuto:
    """A scheme for each weight within a budget; see [`QuantizeAuto`][].

    Args:
        budget: for the whole program: bytes (int), a share of its bytes in floating
            point (float in (0, 1)), or `quantize.latency(seconds)`.
        loss: `loss(outputs, *rest)`, a scalar, the mean over examples.
        batches: tuples of the program's inputs, then the rest, which the loss takes;
            or a [`Sensitivity`][] that was measured before.
        schemes: those to choose from; int8, int4, nf4 and int2 if not given, or those
            that were measured.
        activations: their dtype, or all of it as [`Activations`][]; None leaves them.
        rules: a dict from globs to schemes, or a list of [`Rule`][]s: not chosen.
        skip: globs of paths that are left as they are.
        min_coverage: the least share of bytes to be quantized.

    >>> import jax.numpy as jnp, compiler as mc
    >>> weights = {"a": jnp.eye(32), "b": jnp.eye(32) + 0.1}
    >>> program = mc.trace(lambda v, x: x @ v["a"] @ v["b"], weights, jnp.ones((4, 32)))
    >>> step = auto(
    ...     0.22, loss=lambda y, t: ((y - t) ** 2).mean(),
    ...     batches=[(jnp.ones((4, 32)), 0.5)], schemes=("int8", "int4"),
    ... )
    >>> small = program >> step
    >>> [(path, scheme.dtype) for path, scheme, _ in small.recipe[0].chosen]
    [('b', 'int8'), ('a', 'int4')]
    >>> small.bytes / program.bytes
    0.21875
    """
    if activations is not None:
        activations = as_activations(activations, "token", True)
    if isinstance(batches, Sensitivity):
        schemes = schemes or tuple(e.scheme for e in batches.effects)
    elif batches is not None:
        batches = tuple(batches)
    return QuantizeAuto(
        rules=as_rules(rules, skip),
        min_coverage=min_coverage,
        budget=budget,
        schemes=tuple(dict.fromkeys(map(as_scheme, schemes or SCHEMES))),
        activations=activations,
        loss=loss,
        batches=batches,
    )


def _check_budget(budget: float | Latency) -> None:
    whole = isinstance(budget, int) and not isinstance(budget, bool)
    if isinstance(budget, Latency) or (whole and budget > 0):
        return
    if not isinstance(budget, float) or not 0 < budget < 1:
        raise ValueError(
            "quantize.auto: expected a budget in bytes (a positive int), a share of "
            f"the bytes (a float in (0, 1)) or quantize.latency(...), got {budget!r}."
        )


def _amount(number: float, seconds: bool) -> str:
    return f"{number:.3g} seconds" if seconds else f"{math.ceil(number):,} bytes"
