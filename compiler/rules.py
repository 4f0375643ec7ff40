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
from compiler.uses import Users


@dataclasses.dataclass(frozen=True)
class Operand:
    """A value on its way through the walk.

    Attributes:
        value: the array (abstract while tracing).
        known: whether it depends on params, state and constants alone, and so can
            be computed before any input is seen.
        uses: how many equations and outputs consume it.
        late: how many of them wait for what is not known.
        shared: whether something no smaller that it was computed from is needed late,
            so that what is made of both would be stored twice.
        note: what the rule that made it tells the rules downstream.
        origin: the path it comes from.
    """

    value: Any
    known: bool = False
    uses: int = 1
    late: int = 1
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
        users: for each use of its results the equation, None where they leave.
        refused: whether no work on weights may be added here; a rule may still note.
        scope: the names around the equation, which what it emits carries.
    """

    equation: jaxprs.Equation
    bodies: Sequence[jaxprs.Body]
    events: Events
    number: int
    path: str = ""
    users: Users = ()
    refused: bool = False
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
    """The numbers of the sites whose early work a jaxpr still does at every call.

    A site that builds on another's early work is not among them: without the other
    its own may be stored.
    """
    found: set[int] = set()
    after: set[int] = set()
    _find_early(jaxpr, found, after)
    return found - after or found


def _find_early(jaxpr: jaxprs.Jaxpr, found: set[int], after: set[int]) -> None:
    """Collects the sites with early work, and those that build on others' work."""
    made: dict[Any, set[int]] = {}
    for equation in jaxprs.equations(jaxpr):
        marks = re.findall(re.escape(_EARLY) + r"(\d+)", jaxprs.scope(equation))
        own = {int(mark) for mark in marks}
        read = jaxprs.reads(equation.invars)
        before = set[int]().union(*(made.get(v, ()) for v in read))
        found |= own
        after |= own if before - own else set()
        if own or equation.primitive.name in _VIEWS:
            made.update((var, own or before) for var in equation.outvars)
        for body in jaxprs.bodies(equation):
            _find_early(body.jaxpr, found, after)


_VIEWS = frozenset(("reshape", "squeeze", "transpose", "broadcast_in_dim"))


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
