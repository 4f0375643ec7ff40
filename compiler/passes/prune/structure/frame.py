"""What is known of one jaxpr at one place it is called from."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from compiler import jaxprs
from compiler.passes.prune.structure.atoms import Array
from compiler.passes.prune.structure.known import known_literal
from compiler.passes.prune.structure.labels import Axes, Vector

if TYPE_CHECKING:
    from compiler.passes.prune.structure.analysis import Analysis


@dataclasses.dataclass(frozen=True)
class Sum:
    """A value that is a sum over axes, some of which may become shorter.

    Attributes:
        count: over how many numbers.
        axes: the labels and extents of the axes.
    """

    count: int
    axes: tuple[tuple[Vector, int], ...]


@dataclasses.dataclass(eq=False)
class Place:
    """One equation at one place of the program, as rules see it.

    Attributes:
        equation: the equation.
        frame: of the jaxpr it stands in.
        analysis: the whole, with the operations on labels.
        scope: the names around it.
        operands: the labels of its operands' axes.
        results: the labels of its results' axes, once the rule has given them.
        note: what the rule for labels tells those for shrinking and masking.
        frames: of the jaxprs inside it, by name.
    """

    equation: jaxprs.Equation
    frame: Frame
    analysis: Analysis
    scope: str
    operands: list[Axes]
    results: list[Axes] = dataclasses.field(default_factory=list)
    note: Any = None
    frames: dict[Any, Frame] = dataclasses.field(default_factory=dict)

    @property
    def params(self) -> dict[str, Any]:
        """The equation's parameters."""
        return self.equation.params

    @property
    def labels(self) -> Any:
        """The operations on labels: `fresh`, `freeze`, `unify`, `merge`, `split`."""
        return self.analysis.labels

    def shape(self, operand: int) -> tuple[Any, ...]:
        """The shape of an operand."""
        return self.equation.invars[operand].aval.shape

    def known(self, operand: int) -> Array | None:
        """The value of an operand, if it is known without any input."""
        return self.frame.value(self.equation.invars[operand])

    def freeze(self, *vectors: Vector) -> None:
        """Lets axes stay as they are, here."""
        for vector in vectors:
            self.labels.freeze(vector)


@dataclasses.dataclass(eq=False)
class Frame:
    """The labels of one jaxpr at one place it is called from.

    JAX keeps one body for all calls of a function; what is true of one call need not
    be of another, so each call has a frame of its own.

    Attributes:
        jaxpr: the closed jaxpr.
        axes: the labels of each variable's axes.
        values: of variables that are known without any input.
        sums: of variables that are sums over axes.
        early: variables that follow from leaves and constants alone.
        places: of its equations, in order.
    """

    jaxpr: jaxprs.Jaxpr
    axes: dict[Any, Axes] = dataclasses.field(default_factory=dict)
    values: dict[Any, Array] = dataclasses.field(default_factory=dict)
    sums: dict[Any, Sum] = dataclasses.field(default_factory=dict)
    early: set[Any] = dataclasses.field(default_factory=set)
    places: list[Place] = dataclasses.field(default_factory=list)

    def labels(self, operand: Any) -> Axes:
        """The labels of an operand's axes; those of a literal stay."""
        if jaxprs.is_literal(operand):
            return (None,) * len(operand.aval.shape)
        return self.axes[operand]

    def value(self, operand: Any) -> Array | None:
        """The value of an operand, if it is known."""
        if jaxprs.is_literal(operand):
            return known_literal(operand)
        return self.values.get(operand)

    def is_early(self, operand: Any) -> bool:
        """Whether an operand follows from leaves and constants alone."""
        return jaxprs.is_literal(operand) or operand in self.early

    def sum(self, operand: Any) -> Sum | None:
        """The sum an operand is, if it is one."""
        return None if jaxprs.is_literal(operand) else self.sums.get(operand)

    @property
    def outputs(self) -> list[Axes]:
        """The labels of its outputs' axes."""
        return [self.labels(operand) for operand in self.jaxpr.jaxpr.outvars]

    def inside(self) -> list[Frame]:
        """This frame and all those of the jaxprs inside."""
        found = [self]
        for place in self.places:
            for frame in place.frames.values():
                found.extend(frame.inside())
        return found
