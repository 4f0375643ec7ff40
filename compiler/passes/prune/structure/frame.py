"""What is known of one jaxpr at one place it is called from."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from compiler import jaxprs
from compiler.passes.prune.structure.atoms import Array
from compiler.passes.prune.structure.known import known_literal
from compiler.passes.prune.structure.labels import Axes, Vector
from compiler.passes.prune.structure.numbers import Numbering, Numbers

if TYPE_CHECKING:
    from compiler.passes.prune.structure.analysis import Analysis


@dataclasses.dataclass(frozen=True, eq=False)
class Sum:
    """A value that is a sum over axes, some of which may become shorter.

    Attributes:
        count: over how many numbers; may be a symbol.
        axes: the labels and extents of the axes.
        power: how it grows with the count now: a sum by 1, its root by a half, a mean
            not at all.
        home: how it did before it met the count.
    """

    count: Any
    axes: tuple[tuple[Vector, Any], ...]
    power: float = 1.0
    home: float = 1.0

    def to_power(self, exponent: float) -> Sum:
        """The value to a power."""
        power, home = self.power * exponent, self.home * exponent
        return dataclasses.replace(self, power=power, home=home)

    def times(self, exponent: float) -> Sum:
        """The value times the count to a power."""
        return dataclasses.replace(self, power=self.power + exponent)

    def __eq__(self, other: object) -> bool:
        """Whether another is a sum over the same axes, to the same power."""
        if not isinstance(other, Sum) or len(self.axes) != len(other.axes):
            return False
        pairs = zip(self.axes, other.axes, strict=True)
        same = all(a is b and n == m for (a, n), (b, m) in pairs)
        return same and self.power == other.power

    __hash__ = object.__hash__


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
        computes: whether it computes with numbers of indices, which fixes these.
        counted: operands that meet numbers of indices, and are counted as these are.
    """

    equation: jaxprs.Equation
    frame: Frame
    analysis: Analysis
    scope: str
    operands: list[Axes]
    results: list[Axes] = dataclasses.field(default_factory=list)
    note: Any = None
    frames: dict[Any, Frame] = dataclasses.field(default_factory=dict)
    computes: bool = False
    counted: list[tuple[int, Numbering, str]] = dataclasses.field(default_factory=list)

    @property
    def source(self) -> str:
        """The line of user code it comes from: its own, or its call's."""
        caller = self.frame.caller
        own = jaxprs.source(self.equation)
        return own or ("" if caller is None else caller.source)

    @property
    def is_backward(self) -> bool:
        """Whether it was made by differentiating: what it spreads are derivatives."""
        return "transpose(" in self.scope

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

    def number(self, operand: int) -> Numbers | None:
        """What the integers of an operand number, if they do."""
        return self.frame.number(self.equation.invars[operand])

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
        sums: of variables that are sums over axes, the last step first.
        extents: of variables that are computed from extents that are symbols: what they
            are, None if nobody can tell.
        early: variables that follow from leaves and constants alone.
        numbers: of integers that number indices of an axis, which.
        places: of its equations, in order.
        caller: the equation it is a body of; None for the whole.
    """

    jaxpr: jaxprs.Jaxpr
    axes: dict[Any, Axes] = dataclasses.field(default_factory=dict)
    values: dict[Any, Array] = dataclasses.field(default_factory=dict)
    sums: dict[Any, tuple[Sum, ...]] = dataclasses.field(default_factory=dict)
    extents: dict[Any, Any] = dataclasses.field(default_factory=dict)
    early: set[Any] = dataclasses.field(default_factory=set)
    numbers: dict[Any, Numbers] = dataclasses.field(default_factory=dict)
    places: list[Place] = dataclasses.field(default_factory=list)
    caller: Place | None = None

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

    def sum(self, operand: Any) -> tuple[Sum, ...]:
        """The sums an operand is made by, the last first; none if it is no sum."""
        return () if jaxprs.is_literal(operand) else self.sums.get(operand, ())

    def number(self, operand: Any) -> Numbers | None:
        """What integers number, if they do."""
        return None if jaxprs.is_literal(operand) else self.numbers.get(operand)

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
