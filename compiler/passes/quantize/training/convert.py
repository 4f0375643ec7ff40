"""From floating weights that were trained for few bits to the few bits."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from compiler.errors import ConversionError
from compiler.graph import Graph
from compiler.passes.base import Pass, Prepare, Rewrite
from compiler.passes.quantize.physical import encoded, physical
from compiler.passes.quantize.training.train import QuantizeTrain
from compiler.passes.quantize.training.trained import Trained
from compiler.passes.quantize.weights import QuantizeWeights, check_finite
from compiler.rewrite import Event, Events
from mapping.core import register

if TYPE_CHECKING:
    from compiler.program import Applied, Program


@register("pass", "quantize_convert")
@dataclasses.dataclass(frozen=True)
class Convert(Pass):
    """Stores the weights that [`QuantizeTrain`][] trained, with the steps they learned.

    The result computes what the trained program computed, bit for bit where both are
    compiled with their variables as arguments. Other leaves stay what they are. Passes
    that changed the equations since, but no leaf, are applied again to the result;
    then the two agree up to rounding.

    Attributes:
        since: those passes.

    Raises:
        ConversionError: if the program is not one of [`QuantizeTrain`][], or its leaves
            were changed since.
        NonFiniteWeightsError: if training left inf or nan in a weight or a step.
    """

    since: tuple[Pass, ...] = dataclasses.field(default=(), repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "since", tuple(self.since))

    def decide(self, program: Program) -> Pass:
        """Finds what was done since; refuses programs that were not trained so."""
        since = _since(program.history, (QuantizeTrain, Convert))
        if since is None:
            raise ConversionError(
                "quantize.convert: expected a program whose weights are trained for "
                "few bits, got one made by "
                f"{_told(program.history) or 'trace() alone'}. Apply quantize.train() "
                "and train it; or quantize.weights() to quantize it as it is."
            )
        made, before = program.graph.encoded, program.history[: -len(since) or None]
        if isinstance(before[-1].step, Convert):
            return self
        since = _since(program.history, (QuantizeWeights,)) or ()
        lost = made is None or not isinstance(made.stored, Trained)
        if lost or any(applied.prepared for applied in since):
            raise ConversionError(
                "quantize.convert: expected the leaves that quantize.train() made, got "
                f"others, of {_told(program.history[len(before) :])}. Convert first, "
                "and apply that afterwards."
            )
        _check(program, made.logical, made.stored)
        return Convert(tuple(applied.step for applied in since))

    def rewrite(self, graph: Graph) -> Rewrite:
        """Replaces each trained weight by what is stored of it."""
        events, made = Events(), graph.encoded
        if made is None or not isinstance(made.stored, Trained):
            events.skipped.append(Event("", "holds no weights in training"))
            return Rewrite(graph, None, events)
        stored = made.stored
        new, _ = physical(made.logical, stored.plain)
        new = dataclasses.replace(new, coverage=graph.coverage)
        for path in stored.trained:
            scheme = stored.encodings[path].scheme
            events.fired.append(Event(path, f"stored as {scheme}, as it was trained"))
        prepares: list[Prepare] = [
            functools.partial(_prepare, graph, made.logical, stored)
        ]
        for step in self.since if encoded(graph) is None else ():
            rewrite = step.rewrite(new)
            new = rewrite.graph
            prepares += [rewrite.prepare] if rewrite.prepare else []
            events.fired.append(Event("", f"applied again: {step}"))
        return Rewrite(new, functools.partial(_one_by_one, prepares), events)


def convert() -> Convert:
    """Stores weights that were trained for few bits; see [`Convert`][].

    >>> import jax.numpy as jnp, compiler as mc
    >>> variables, x = {"w": jnp.eye(64)}, jnp.ones((1, 64))
    >>> program = mc.trace(lambda v, x: x @ v["w"], variables, x)
    >>> training = mc.quantize.train("int4")(program)
    >>> trained = training.with_variables(training.variables)
    >>> small = convert()(trained)
    >>> small.graph.paths, small.bytes
    (['w/scale', 'w/values'], 2560)
    >>> bool((small(x) == trained(x)).all())
    True
    """
    return Convert()


def _check(program: Program, logical: Graph, stored: Trained) -> None:
    values = dict(zip(program.graph.paths, program.values, strict=True))
    names = stored.names(logical)
    for path in stored.trained:
        for new in names[path].values():
            check_finite(new, values[new])


def _prepare(
    graph: Graph, logical: Graph, stored: Trained, leaves: Sequence[Any]
) -> list[Any]:
    """What is stored, from the leaves that were trained."""
    given = dict(zip(graph.paths, leaves, strict=True))
    names = stored.names(logical)
    made: list[Any] = []
    for path in logical.paths:
        arrays = {name: given[new] for name, new in names[path].items()}
        made += stored.converted(path, arrays).values()
    return made


def _one_by_one(prepares: Sequence[Prepare], leaves: Sequence[Any]) -> list[Any]:
    for prepare in prepares:
        leaves = prepare(leaves)
    return list(leaves)


def _since(
    history: Sequence[Applied], steps: tuple[type[Pass], ...]
) -> tuple[Applied, ...] | None:
    """What was applied after the last of these passes; None if there is none."""
    places = [i for i, each in enumerate(history) if isinstance(each.step, steps)]
    return tuple(history[places[-1] + 1 :]) if places else None


def _told(history: Sequence[Applied]) -> str:
    return " >> ".join(str(applied.step) for applied in history)
