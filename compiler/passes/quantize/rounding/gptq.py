"""Weights rounded so that the outputs of their products move little."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import jax

from compiler.graph import Graph
from compiler.passes.base import Pass, Rewrite
from compiler.passes.quantize.arithmetic.activations import Activations
from compiler.passes.quantize.calibrate import Calibration, kept
from compiler.passes.quantize.physical import Stored
from compiler.passes.quantize.rounding import feedback, normal
from compiler.passes.quantize.rounding.measured import hessian_of, noted, seen
from compiler.passes.quantize.rules import RuleSpec, as_rules
from compiler.passes.quantize.storage.encoding import Encoding
from compiler.passes.quantize.storage.scheme import Scheme
from compiler.passes.quantize.weights import QuantizeWeights, chosen_scheme
from mapping.core import register

if TYPE_CHECKING:
    from compiler.program import Program


@dataclasses.dataclass(frozen=True, eq=False)
class Roundings:
    """What was decided for one program.

    Attributes:
        found: what its products are given.
        parts: by path, what is stored of a weight.
        notes: by path, how it was rounded.
    """

    found: Calibration
    parts: dict[str, dict[str, Any]]
    notes: dict[str, str]


@register("pass", "gptq")
@dataclasses.dataclass(frozen=True)
class Gptq(QuantizeWeights):
    r"""Stores weights in few bits, rounded by what they are multiplied with.

    $$ \min_Q\ \mathrm{E}\,\lVert x^\top (W - Q) \rVert^2 =
       \min_Q\ \mathrm{tr}\,(W - Q)^\top H (W - Q), \qquad H = \mathrm{E}\, x x^\top $$

    greedily, row by row; see `rounding.feedback.gptq`. What is stored and how it is
    used is as with [`QuantizeWeights`][], and so is the rest of it: each column moves
    its outputs at most as far as rounding to nearest does, on the batches. A weight
    without a Hessian (a table that is only looked up, the kernel of a grouped
    convolution, what never ran) is rounded to nearest, and the report says so. One
    that several products share is rounded for all of them.

    The program runs once on each batch as it is at this point of the recipe. The pass
    that was applied keeps what it measured, so that it can be applied to other weights.

    Attributes:
        activations: how activations are rounded when they come; None if they are not.
        order: whether rows are rounded by the size of their inputs, not in turn.
        damping: the share of the mean of H's diagonal that is added to it.
        batches: what to measure on: inputs of the program, or a [`Calibration`][]
            with Hessians.
        decided: what was measured and rounded.

    Raises:
        CalibrationError: if there are no batches, or no Hessians.
        ValueError: if damping is not a positive number.

    Frantar et al., 2022, https://arxiv.org/abs/2210.17323.
    """

    activations: Activations | None = None
    order: bool = False
    damping: float = 0.01
    batches: Any = dataclasses.field(default=None, repr=False, compare=False)
    decided: Roundings | None = dataclasses.field(
        default=None, init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (math.isfinite(self.damping) and self.damping > 0):
            raise ValueError(
                f"quantize.gptq: expected a positive damping, got {self.damping!r}."
            )

    @property
    def rounding(self) -> Activations | None:
        """How activations are rounded; None if they are not."""
        return self.activations

    def decide(self, program: Program) -> Pass:
        """Measures what products are given, and rounds their weights."""
        super().decide(program)
        planned = self.planned(program.graph)
        if not planned.encodings:
            return dataclasses.replace(self, batches=None)
        found = seen("gptq", program, self.batches, True, self.decided)
        values = dict(zip(program.graph.paths, program.values, strict=True))
        parts, notes = {}, {}
        for decision in planned.decisions:
            path, encoding = decision.leaf.path, decision.encoding
            if encoding is None:
                continue
            hessian = hessian_of(decision, found)
            if isinstance(hessian, str):
                notes[path] = f"rounded to nearest: {hessian}"
                continue
            parts[path], after, before = _rounded(
                values[path], hessian, encoding, self.order, self.damping
            )
            share = float(after) / max(float(before), 1e-38)
            notes[path] = f"squared error of outputs {share:.2g} of rounded to nearest"
        made = dataclasses.replace(self, batches=None)
        object.__setattr__(made, "decided", Roundings(found, parts, notes))
        return made

    def rewrite(self, graph: Graph) -> Rewrite:
        """Replaces each weight by what is stored of it."""
        rewrite = super().rewrite(graph)
        notes = self.decided.notes if self.decided else {}
        fired = rewrite.events.fired
        fired[:] = [noted(event, notes.get(event.path)) for event in fired]
        return rewrite

    def prepared(
        self, graph: Graph, logical: Graph, stored: Stored, leaves: Sequence[Any]
    ) -> list[Any]:
        """What is stored: what was rounded before, and the rest from the leaves."""
        values = super().prepared(graph, logical, stored, leaves)
        parts = self.decided.parts if self.decided else {}
        names = stored.names(logical)
        paths = [name for path in logical.paths for name in names[path].values()]
        made = dict(zip(paths, values, strict=True))
        for path, own in parts.items():
            made |= {names[path][name]: array for name, array in own.items()}
        return [made[path] for path in paths]


def gptq(
    batches: Iterable[Any] | Calibration | None = None,
    dtype: str | Scheme = "int4",
    *,
    group: int | str | None = None,
    symmetric: bool = True,
    activations: Activations | None = None,
    order: bool = False,
    damping: float = 0.01,
    rules: RuleSpec = (),
    skip: str | Sequence[str] = (),
    min_coverage: float = 0.0,
) -> Gptq:
    """Rounds weights by what they are multiplied with; see [`Gptq`][].

    Args:
        batches: inputs of the program to measure on, as they come to this point of
            the recipe; a few hundred tokens for each row of the largest weight are
            plenty.
        dtype: `"int4"`, `"int8"`, `"nf4"`, ...; or a [`Scheme`][].
        group: `"channel"`, `"tensor"`, or how many rows share a scale.
        symmetric: without zero points.
        activations: how activations are rounded when they come; None if they are not.
        order: whether rows are rounded by the size of their inputs, not in turn.
        damping: the share of the mean of the Hessian's diagonal that is added to it.
        rules: a dict from globs to schemes, or a list of [`Rule`][]s.
        skip: globs of paths that are left as they are.
        min_coverage: the least share of bytes to be quantized.

    >>> import jax, jax.numpy as jnp, compiler as mc
    >>> x = jax.random.normal(jax.random.key(0), (64, 16)) @ jnp.ones((16, 32)) + 1.0
    >>> w = jax.random.normal(jax.random.key(1), (32, 8))
    >>> program = mc.trace(lambda w, x: x @ w, w, x)
    >>> plain = program >> mc.quantize.weights("int4")
    >>> better = program >> gptq([x], "int4")
    >>> plain.bytes == better.bytes
    True
    >>> def error(small):
    ...     return float(((small(x) - program(x)) ** 2).mean())
    >>> error(better) < 0.2 * error(plain)
    True
    """
    scheme = chosen_scheme(dtype, group, symmetric)
    return Gptq(
        scheme,
        as_rules(rules, skip),
        min_coverage,
        activations,
        order,
        damping,
        kept(batches),
    )


@functools.partial(jax.jit, static_argnums=(2, 3, 4))
def _rounded(
    value: Any, hessian: Any, encoding: Encoding, order: bool, damping: float
) -> tuple[dict[str, Any], Any, Any]:
    """What is stored, and the squared error of outputs, of it and of the nearest."""
    weight = normal.matrices(encoding, value)
    scheme = encoding.scheme
    made = feedback.gptq(weight, hessian, scheme, order=order, damping=damping)
    near = feedback.nearest(weight, hessian, scheme)
    return normal.stored(encoding, made), made.loss.sum(), near.loss.sum()
