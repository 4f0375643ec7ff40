"""Rules: what a primitive means for pruning, its three faces together."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from compiler import jaxprs
from compiler.passes.prune.structure.frame import Place
from compiler.passes.prune.structure.labels import Axes

if TYPE_CHECKING:
    from compiler.passes.prune.structure.emit import Emit

LabelRule: TypeAlias = "Callable[[Place], Sequence[Axes]]"
EmitRule: TypeAlias = "Callable[[Emit, Place, list[Any]], list[Any]]"


def emit_alike(emit: Emit, place: Place, values: list[Any]) -> list[Any]:
    """Emits the equation as it was, on what its operands have become."""
    return jaxprs.bind(place.equation, values)


@dataclasses.dataclass(frozen=True)
class Rule:
    """What one primitive means for pruning.

    Attributes:
        labels: gives the labels of the results' axes, and makes those of the operands
            equal where the primitive needs it.
        shrink: emits the primitive on smaller operands.
        mask: emits it on operands of the original extents, with the neutral element
            where something was removed.
    """

    labels: LabelRule
    shrink: EmitRule = emit_alike
    mask: EmitRule = emit_alike


def frozen(place: Place) -> list[Axes]:
    """The rule of a primitive nobody knows: every axis stays as it is."""
    live = [v for axes in place.operands for v in axes if place.labels.is_live(v)]
    if live:
        place.analysis.unknown.append(place)
    place.freeze(*live)
    avals = [var.aval for var in place.equation.outvars]
    return [(None,) * len(getattr(aval, "shape", ())) for aval in avals]


class Registry:
    """Rules by the name of the primitive; what is not known stays as it is.

    >>> rules = Registry()
    >>> @rules.on("my_activation")
    ... def my_activation(place):
    ...     return [place.operands[0]]
    >>> rules.of("my_activation").labels is my_activation
    True
    >>> rules.of("another").labels is frozen
    True
    """

    def __init__(self) -> None:
        self._rules: dict[str, Rule] = {}

    def on(
        self,
        *primitives: str,
        shrink: EmitRule = emit_alike,
        mask: EmitRule = emit_alike,
    ) -> Callable[[LabelRule], LabelRule]:
        """Registers the decorated rule for labels, with its other two faces.

        Args:
            *primitives: by name.
            shrink: emits them on smaller operands; as they were by default, which
                suits all that hold no shape among their params.
            mask: emits them on masked operands.
        """

        def register(labels: LabelRule) -> LabelRule:
            for name in primitives:
                self._rules[name] = Rule(labels, shrink, mask)
            return labels

        return register

    @property
    def primitives(self) -> frozenset[str]:
        """The names of those that have a rule."""
        return frozenset(self._rules)

    def of(self, primitive: str) -> Rule:
        """The rule of a primitive."""
        return self._rules.get(primitive, _FROZEN)

    def replace(self, primitive: str, rule: Rule) -> None:
        """Puts another rule in the place of one."""
        self._rules[primitive] = rule


_FROZEN = Rule(frozen)

RULES = Registry()
"""The rules of JAX's primitives; add your own with `RULES.on(...)`."""
