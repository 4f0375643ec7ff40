"""One pass through a program that gives each axis of each value its labels."""

from __future__ import annotations

from collections.abc import Mapping as Dict
from collections.abc import Sequence
from types import MappingProxyType
from typing import Any

from compiler import jaxprs
from compiler.passes.prune.structure.frame import Frame, Place
from compiler.passes.prune.structure.known import (
    extent_result,
    is_extent,
    known_constant,
    known_result,
)
from compiler.passes.prune.structure.labels import Axes, Labels, Vector
from compiler.passes.prune.structure.numbers import Numbers
from compiler.passes.prune.structure.passing import follow
from compiler.passes.prune.structure.registry import Registry
from compiler.passes.prune.structure.roles import Roles
from compiler.paths import join


class Analysis:
    """The labels of a whole program.

    Attributes:
        labels: the operations on labels.
        rules: what each primitive does.
        places: every equation met, in order; a cause is a position in it.
        unknown: places of equations that no rule is known for.
        roles: axes by what is done along them.
        minimum: pairs of an axis and how many of its indices must stay.
    """

    def __init__(self, rules: Registry) -> None:
        self.labels = Labels()
        self.rules = rules
        self.places: list[Place] = []
        self.unknown: list[Place] = []
        self.roles = Roles(self.labels)
        self.minimum: list[tuple[Vector, int]] = []
        self.in_rule = False

    def enter(
        self,
        jaxpr: jaxprs.Jaxpr,
        axes: Sequence[Axes],
        *,
        caller: Place | None = None,
        operands: Sequence[Any] = (),
        numbers: Dict[Any, Numbers] = MappingProxyType({}),
        leaves: int = 0,
    ) -> Frame:
        """Goes through a jaxpr.

        Args:
            jaxpr: a closed jaxpr.
            axes: the labels of its inputs' axes.
            caller: the equation whose body it is.
            operands: the equation's operands that its inputs are; None for those that
                change from one iteration to the next.
            numbers: of inputs that number indices, by variable.
            leaves: how many of its inputs, from the first, are leaves.
        """
        frame = Frame(jaxpr, caller=caller)
        pairs = zip(jaxpr.jaxpr.constvars, jaxpr.consts, strict=True)
        for var, constant in pairs:
            frame.axes[var] = self._free(var)
            frame.early.add(var)
            if (value := known_constant(constant)) is not None:
                frame.values[var] = value
        frame.axes |= zip(jaxpr.jaxpr.invars, axes, strict=True)
        if caller is not None and operands:
            self._inherit(frame, caller.frame, operands)
        frame.numbers |= numbers
        frame.early.update(jaxpr.jaxpr.invars[:leaves])
        for equation in jaxprs.equations(jaxpr):
            self._equation(frame, equation)
        return frame

    def _free(self, var: Any) -> Axes:
        if not jaxprs.is_array(var):
            return (None,) * len(getattr(var.aval, "shape", ()))
        return tuple(self.labels.fresh(extent) for extent in var.aval.shape)

    def _inherit(self, frame: Frame, outer: Frame, operands: Sequence[Any]) -> None:
        for var, operand in zip(frame.jaxpr.jaxpr.invars, operands, strict=True):
            if operand is None:
                continue
            if (value := outer.value(operand)) is not None:
                frame.values[var] = value
            if summed := outer.sum(operand):
                frame.sums[var] = summed
            if not jaxprs.is_literal(operand) and operand in outer.extents:
                frame.extents[var] = outer.extents[operand]
            if (numbers := outer.number(operand)) is not None:
                frame.numbers[var] = numbers
            if outer.is_early(operand):
                frame.early.add(var)

    def _equation(self, frame: Frame, equation: jaxprs.Equation) -> None:
        around = "" if frame.caller is None else frame.caller.scope
        own = join(around, jaxprs.scope(equation))
        operands = [frame.labels(operand) for operand in equation.invars]
        place = Place(equation, frame, self, own, operands)
        cause = self.labels.atoms.cause = len(self.places)
        self.places.append(place)
        frame.places.append(place)
        self._follow(frame, equation)
        rule = self.rules.of(equation.primitive.name)
        results = rule.labels(place)
        self.labels.atoms.cause = cause  # equations inside have had their own
        place.results = [
            self._checked(place, var, axes)
            for var, axes in zip(equation.outvars, results, strict=True)
        ]
        frame.axes |= zip(equation.outvars, place.results, strict=True)
        follow(place)

    def _follow(self, frame: Frame, equation: jaxprs.Equation) -> None:
        """Notes what is known, and what follows from leaves alone."""
        if not equation.effects and all(map(frame.is_early, equation.invars)):
            frame.early.update(equation.outvars)
        if len(equation.outvars) == 1:
            values = [frame.value(operand) for operand in equation.invars]
            result = known_result(equation, values)
            if result is not None:
                frame.values[equation.outvars[0]] = result
            if is_extent(equation, frame.extents, values):
                extent = extent_result(equation, frame.extents, values)
                frame.extents[equation.outvars[0]] = extent

    def _checked(self, place: Place, var: Any, axes: Axes) -> Axes:
        """Labels that fit a variable; one index picked out of an axis stays."""
        shape = getattr(var.aval, "shape", ())
        if len(axes) != len(shape):
            raise ValueError(
                f"{place.equation.primitive.name}: its rule gave labels for "
                f"{len(axes)} axes of {shape}."
            )
        checked = []
        for vector, extent in zip(axes, shape, strict=True):
            if vector is not None and isinstance(extent, int) and extent <= 1:
                self.labels.freeze(vector)
                vector = None
            if vector is not None and len(vector) != extent:
                raise ValueError(
                    f"{place.equation.primitive.name}: its rule gave {len(vector)} "
                    f"labels for an axis of {shape}."
                )
            checked.append(vector)
        return tuple(checked)
