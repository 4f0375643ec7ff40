"""One sweep through a program that replaces equations, without tracing it anew."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from compiler import jaxprs
from compiler.passes.simplify.duplicates import Keys
from compiler.passes.simplify.record import Record


@dataclasses.dataclass(frozen=True)
class Change:
    """What a rule makes of an equation.

    Attributes:
        what: what was done, for the report; it may be counted: "identity reshape".
        values: for each output what stands for it from now on, None where the
            equation still computes it.
        equation: what takes the place of the equation, None if nothing does or, with
            `values` that are None, if it stays.
    """

    what: str
    values: Sequence[Any] | None = None
    equation: jaxprs.Equation | None = None


Simplifier = Callable[["Scope", jaxprs.Equation], Change | None]
"""`rule(scope, equation)` returns a change, or None to leave the equation alone."""


class Table:
    """Rules by the name of the primitive; the first that does not decline is used."""

    def __init__(self) -> None:
        self.rules: dict[str, list[Simplifier]] = {}

    def on(self, *primitives: str) -> Callable[[Simplifier], Simplifier]:
        """Registers the decorated rule for some primitives, by name."""

        def register(rule: Simplifier) -> Simplifier:
            for name in primitives:
                self.rules.setdefault(name, []).append(rule)
            return rule

        return register

    def __or__(self, other: Table) -> Table:
        """These rules, then the other's."""
        both = Table()
        for one in (self, other):
            for name, rules in one.rules.items():
                both.rules.setdefault(name, []).extend(rules)
        return both


@dataclasses.dataclass
class Settings:
    """What one application of the pass does, and what it has seen.

    Attributes:
        rules: what is rewritten.
        merge: whether equal computations are done once.
        record: where what happens is counted.
        keys: tells equal computations.
        done: bodies that were swept, and what they became.
    """

    rules: Table
    merge: bool
    record: Record
    keys: Keys = dataclasses.field(default_factory=Keys)
    done: dict[Any, tuple[Any, Any]] = dataclasses.field(default_factory=dict)


class Scope:
    """The equations of one jaxpr, as they are rewritten from first to last.

    Attributes:
        settings: what is done.
        takes_constants: whether constants may be added.
        changed: whether anything was rewritten.
    """

    def __init__(self, settings: Settings, takes_constants: bool = True) -> None:
        self.settings = settings
        self.takes_constants = takes_constants
        self.changed = False
        self._stands: dict[Any, Any] = {}
        self._made: dict[Any, jaxprs.Equation] = {}
        self._seen: dict[Any, Sequence[Any]] = {}
        self._equations: list[jaxprs.Equation] = []
        self._constants: dict[Any, Any] = {}

    def maker(self, operand: Any, *primitives: str) -> jaxprs.Equation | None:
        """The equation that computes an operand, if it is one of some primitives."""
        if jaxprs.is_literal(operand):
            return None
        equation = self._made.get(operand)
        if equation is None or equation.primitive.name not in primitives:
            return None
        return equation

    def number(self, operand: Any) -> np.ndarray | None:
        """The number an operand is everywhere, if that is known."""
        if jaxprs.is_literal(operand):
            value = np.asarray(operand.val, operand.aval.dtype)
            return value if value.shape == () else None
        spread = self.maker(operand, "broadcast_in_dim")
        if spread is None or not jaxprs.is_literal(spread.invars[0]):
            return None
        return self.number(spread.invars[0])

    def inline(
        self, outer: jaxprs.Equation, body: jaxprs.Jaxpr, operands: Sequence[Any]
    ) -> list[Any] | None:
        """Puts the equations of a body here; returns what stands for its outputs.

        None if they cannot stand here: constants have no place, references would be
        renamed, or an operand is not of the very type the body was traced for.
        """
        inner = body.jaxpr
        if (body.consts and not self.takes_constants) or jaxprs.has_refs(body):
            return None
        if not same_types(operands, inner.invars):
            return None
        self._constants.update(zip(inner.constvars, body.consts, strict=True))
        self._stands.update(zip(inner.invars, operands, strict=True))
        for equation in inner.eqns:
            made = [jaxprs.fresh(var) for var in equation.outvars]
            self.settings.record.same_path(made, equation, outer)
            self._add(jaxprs.within(equation, outer).replace(outvars=made))
            for old, new in zip(equation.outvars, made, strict=True):
                self._stands[old] = self._stands.get(new, new)
        return [self._read(var) for var in inner.outvars]

    def run(self, jaxpr: jaxprs.Jaxpr, given: dict[Any, Any]) -> jaxprs.Jaxpr:
        """Rewrites a jaxpr; returns the same object if nothing changed.

        Args:
            jaxpr: a closed jaxpr.
            given: literals that stand for some of its inputs.
        """
        self._stands.update(given)
        inner = jaxpr.jaxpr
        self._constants.update(zip(inner.constvars, jaxpr.consts, strict=True))
        for equation in inner.eqns:
            self._add(equation)
        outputs = [self._read(var) for var in inner.outvars]
        if not self.changed:
            return jaxpr
        return jaxprs.rebuilt(
            jaxpr, self._equations, inner.invars, outputs, [*self._constants.items()]
        )

    def _read(self, operand: Any) -> Any:
        if jaxprs.is_literal(operand):
            return operand
        return self._stands.get(operand, operand)

    def _add(self, equation: jaxprs.Equation) -> None:
        """Simplifies one equation and keeps what is left of it."""
        operands = [self._read(operand) for operand in equation.invars]
        if any(a is not b for a, b in zip(operands, equation.invars, strict=True)):
            equation = equation.replace(invars=operands)
            self.changed = True
        equation = self._with_bodies(equation)
        for _ in range(_LIMIT):
            change = self._change(equation)
            if change is None:
                break
            self.changed = True
            self.settings.record.fired(change.what, equation)
            self._substitute(equation, change.values or ())
            if change.equation is None:
                if None not in (change.values or (None,)):
                    return
                break
            equation = change.equation
        self._keep(equation)

    def _change(self, equation: jaxprs.Equation) -> Change | None:
        for rule in self.settings.rules.rules.get(equation.primitive.name, ()):
            change = rule(self, equation)
            if change is not None and _fits(equation, change):
                return change
        return None

    def _substitute(self, equation: jaxprs.Equation, values: Sequence[Any]) -> None:
        for var, value in zip(equation.outvars, values, strict=False):
            if value is not None:
                self._stands[var] = value

    def _keep(self, equation: jaxprs.Equation) -> None:
        if self.settings.merge:
            key = self.settings.keys.of(equation)
            twin = None if key is None else self._seen.get(key)
            if twin is not None:
                self.changed = True
                self.settings.record.fired("equal computation done once", equation)
                self._substitute(equation, twin)
                return
            if key is not None:
                equation = _undropped(equation)
                self._seen[key] = equation.outvars
        self._equations.append(equation)
        for var in equation.outvars:
            self._made[var] = equation

    def _with_bodies(self, equation: jaxprs.Equation) -> jaxprs.Equation:
        """The equation with its bodies rewritten, told which operands are literals."""
        old = jaxprs.bodies(equation)
        if not old or jaxprs.is_plain_jit(equation):
            return equation
        new = [self._with_body(equation, body) for body in old]
        if all(a.jaxpr.jaxpr is b.jaxpr.jaxpr for a, b in zip(old, new, strict=True)):
            return equation
        self.changed = True
        params = {**equation.params, **jaxprs.replace_bodies(equation, new)}
        return equation.replace(params=params)

    def _with_body(self, equation: jaxprs.Equation, body: jaxprs.Body) -> jaxprs.Body:
        done, key = self.settings.done, jaxprs.identity(body.jaxpr)
        given = _literals(equation, body)
        if not given and key in done:
            return body._replace(jaxpr=done[key][1])
        scope = Scope(self.settings, jaxprs.takes_constants(equation, body))
        new = scope.run(body.jaxpr, given)
        if not given:
            done[key] = (body.jaxpr, new)
        return body._replace(jaxpr=new)


_LIMIT = 32
"""How often one equation is rewritten at most before it is left to the next sweep."""

_TAKES_LITERALS = frozenset({"scan", "while", "cond", "remat2", "jit"})
"""Bodies that may be told a constant operand, as the operand is dropped after."""


def _literals(equation: jaxprs.Equation, body: jaxprs.Body) -> dict[Any, Any]:
    """The inputs of a body that are one literal in every iteration."""
    given: dict[Any, Any] = {}
    if equation.primitive.name not in _TAKES_LITERALS:
        return given
    places = zip(body.jaxpr.jaxpr.invars, body.operands, body.carried, strict=True)
    for var, place, carried in places:
        operand = equation.invars[place]
        if jaxprs.is_literal(operand) and not carried:
            value = jaxprs.literal(operand.val, var)
            if value is not None:
                given[var] = value
    return given


def same_types(one: Sequence[Any], other: Sequence[Any]) -> bool:
    """Whether rows of variables have equal types, weak types told apart."""
    return all(
        a.aval is b.aval or a.aval == b.aval for a, b in zip(one, other, strict=True)
    )


def _fits(equation: jaxprs.Equation, change: Change) -> bool:
    """Whether what stands for each output has the very type of it."""
    return all(
        value is None or value.aval == var.aval
        for var, value in zip(equation.outvars, change.values or (), strict=False)
    )


def _undropped(equation: jaxprs.Equation) -> jaxprs.Equation:
    """An equation whose outputs can all be read, as a later twin may want them."""
    if not any(map(jaxprs.is_dropped, equation.outvars)):
        return equation
    made = [jaxprs.fresh(v) if jaxprs.is_dropped(v) else v for v in equation.outvars]
    return equation.replace(outvars=made)
