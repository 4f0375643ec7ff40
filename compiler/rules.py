"""Rules: what to emit in place of an equation, by primitive and path."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax

from compiler import jaxprs
from compiler.events import Event, Events
from compiler.paths import Origin, matches


@dataclasses.dataclass(frozen=True)
class Operand:
    """A value on its way through the walk.

    Attributes:
        value: the array (abstract while tracing).
        known: whether it depends on params, state and constants alone, and so can
            be computed before any input is seen.
        uses: how many equations and outputs consume it.
        shared: whether something it was computed from is consumed elsewhere too.
        note: what the rule that made it tells the rules downstream.
        origin: the path it comes from.
    """

    value: Any
    known: bool = False
    uses: int = 1
    shared: bool = False
    note: Any = None
    origin: Origin | None = None

    @property
    def shape(self) -> tuple[Any, ...]:
        """Its shape."""
        return self.value.shape

    @property
    def dtype(self) -> Any:
        """Its dtype."""
        return self.value.dtype


@dataclasses.dataclass(frozen=True)
class Result:
    """What a rule returns for one output when it has something to note.

    Attributes:
        value: the array.
        note: handed to the rules that consume it.
    """

    value: Any
    note: Any = None


@dataclasses.dataclass(frozen=True)
class Site:
    """Where a rule is asked: one equation, at one place of the program.

    Attributes:
        equation: the equation.
        bodies: the jaxprs inside it, already rewritten.
        events: where what happens is recorded.
        number: how many equations the walk met before; the same in every walk with
            rules that see the same program.
        path: where in the user's model it belongs.
        scope: the names around the equation, which what it emits carries.
    """

    equation: jaxprs.Equation
    bodies: Sequence[jaxprs.Body]
    events: Events
    number: int
    path: str = ""
    scope: Any = dataclasses.field(default_factory=jaxprs.current_scope)

    def emit(self, *values: Any, **params: Any) -> list[Any]:
        """Emits the equation on other operands, or with other params."""
        with jaxprs.provenance(self.equation, self.scope):
            return jaxprs.bind(self.equation, values, **params)

    def early(self) -> Any:
        """Marks what is emitted inside as work on weights that should be stored.

        `early_sites` finds what of it was not.
        """
        return jax.named_scope(f"{_EARLY}{self.number}")

    def fired(self, what: str) -> None:
        """Records that the rule changed the program here."""
        self.events.fired.append(self._event(what))

    def skipped(self, why: str) -> None:
        """Records that the rule left something alone, and why."""
        self.events.skipped.append(self._event(why))

    def _event(self, text: str) -> Event:
        where = self.path or self.equation.primitive.name
        return Event(where, text, jaxprs.source(self.equation))


_EARLY = "mapping.early-"


def early_sites(jaxpr: jaxprs.Jaxpr) -> set[int]:
    """The numbers of the sites whose early work a jaxpr still does at every call."""
    scopes = (jaxprs.scope(equation) for equation, _ in jaxprs.nested(jaxpr))
    return {
        int(n)
        for scope in scopes
        for n in re.findall(re.escape(_EARLY) + r"(\d+)", scope)
    }


Rule = Callable[..., Sequence[Any] | None]
"""`rule(site, *operands)` returns the new outputs, or None to leave it alone."""


class Rules:
    """Rewriting rules by primitive; the first that does not decline is used.

    >>> rules = Rules()
    >>> @rules.on("sin")
    ... def sine_of_zero(site, x):
    ...     return None
    >>> len(rules.of("sin"))
    1
    """

    def __init__(self) -> None:
        self._rules: dict[str, list[Rule]] = {}

    def on(self, *primitives: str, path: str = "*") -> Callable[[Rule], Rule]:
        """Registers the decorated rule for some primitives, by name.

        Args:
            *primitives: `"dot_general"`, `"tanh"`, ...
            path: a glob; the rule is asked only at and inside the paths it names.
        """

        def register(rule: Rule) -> Rule:
            for name in primitives:
                own = rule if path == "*" else _only_at(path, rule)
                self._rules.setdefault(name, []).append(own)
            return rule

        return register

    def of(self, primitive: str) -> Sequence[Rule]:
        """The rules for a primitive."""
        return self._rules.get(primitive, ())

    def __or__(self, other: Rules) -> Rules:
        """These rules, then the other's."""
        both = Rules()
        for one in (self, other):
            for name, rules in one._rules.items():
                both._rules.setdefault(name, []).extend(rules)
        return both


def _only_at(path: str, rule: Rule) -> Rule:
    """A rule that declines wherever the glob does not name the site."""

    @functools.wraps(rule)
    def asked(site: Site, *operands: Operand) -> Sequence[Any] | None:
        return rule(site, *operands) if matches(path, site.path) else None

    return asked
