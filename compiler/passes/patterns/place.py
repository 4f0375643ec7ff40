"""A place where a pattern stands, and what guards and replacements see of it."""

from __future__ import annotations

import dataclasses
import posixpath
from fractions import Fraction
from typing import Any

import jax

from compiler import jaxprs
from compiler.passes.patterns.pattern import Pattern
from compiler.passes.patterns.view import Node, Value
from compiler.rewrite import Event


@dataclasses.dataclass(frozen=True)
class Captured:
    """What stands for an argument of a pattern, as a guard sees it.

    Attributes:
        shape: its shape.
        dtype: its dtype.
        known: whether it follows from params, state and constants alone.
        value: the number, if it is one written into the program, else None.
    """

    shape: tuple[Any, ...]
    dtype: Any
    known: bool
    value: Any = None


@dataclasses.dataclass(frozen=True)
class Match:
    """A place where a pattern stands, as a guard sees it: `match["x"].shape`.

    Attributes:
        operands: what stands for each argument, by name ([`Captured`][], in trees
            where the argument is one).
        path: where the place belongs.
        source: the line of user code.

    >>> import compiler as mc, numpy as np
    >>> from compiler.passes.patterns import replace
    >>> def narrow(match):
    ...     return match["x"].shape[-1] <= 4
    >>> program = mc.trace(lambda w, x: jax.nn.relu(x @ w), np.eye(4), np.eye(4))
    >>> step = replace(jax.nn.relu, jax.nn.relu6, "float32[2,8]", when=narrow)
    >>> len((program >> step).history[-1].events.fired)
    1
    """

    operands: dict[str, Any]
    path: str
    source: str

    def __getitem__(self, name: str) -> Any:
        """What stands for an argument."""
        return self.operands[name]


@dataclasses.dataclass(eq=False)
class Place:
    """A place where a pattern is replaced.

    Attributes:
        anchor: the equation that stands for the pattern's last.
        nodes: all that stand for it.
        arguments: what stands for its arguments.
        outputs: what stands for its outputs.
        kept: those of its equations that others need too.
        out_tree: how the outputs make up what the pattern returns.
        slot: where in the order of the equations the replacement goes.
    """

    anchor: Node
    nodes: set[Node]
    arguments: list[Value]
    outputs: list[Value]
    out_tree: Any
    kept: set[Node] = dataclasses.field(default_factory=set)
    slot: Fraction = Fraction(0)

    @property
    def path(self) -> str:
        """What all of its equations are inside of."""
        return posixpath.commonpath([node.path for node in self.nodes])

    @property
    def scope(self) -> Any:
        """The scope of its replacement: what all of its equations are inside of."""
        return jaxprs.common_scope([node.scope for node in self.nodes])

    @property
    def source(self) -> str:
        """The line of user code it stands for."""
        return jaxprs.source(self.anchor.equation)

    def event(self, what: str) -> Event:
        """Something that happened here."""
        return Event(self.path or self.anchor.name, what, self.source)

    def __str__(self) -> str:
        """Where it is."""
        return f"{self.path or self.anchor.name} ({self.source})"


def match_of(place: Place, pattern: Pattern) -> Match:
    """A place as guards and replacements see it."""
    operands = [
        Captured(v.spec.shape, v.spec.dtype, v.known, v.number if v.constant else None)
        for v in place.arguments
    ]
    trees = jax.tree.unflatten(pattern.tree, operands)
    named = dict(zip(pattern.names, trees, strict=True))
    return Match(named, place.path, place.source)
