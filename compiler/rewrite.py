"""The one walk through equations and control flow, and the registry of its rules.

Rewriting is evaluation: the walk runs a jaxpr on abstract arrays, and where a rule
is registered for a primitive, emits what the rule says instead. What comes out of
tracing the walk is the new graph, with shapes, scopes and source lines right by
construction. A primitive nobody has a rule for is emitted as it was.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections import Counter
from collections.abc import Callable, Sequence, Set
from typing import Any

import jax

from compiler import jaxprs
from compiler.errors import RuleError
from compiler.graph import Graph, drop_dead, read
from compiler.paths import Namer, Origin, join, matches
from mapping.core import describe


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
class Event:
    """Something a pass did, or left alone.

    Attributes:
        path: the scope, or the leaf, it happened at.
        what: what was done, or why nothing was.
        source: the line of user code, where there is one.
    """

    path: str
    what: str
    source: str = ""

    def __str__(self) -> str:
        """One line, as in a report."""
        return f"{self.path}: {self.what}" + (
            f" ({self.source})" if self.source else ""
        )


@dataclasses.dataclass
class Events:
    """What fired and what was skipped in one pass, in order."""

    fired: list[Event] = dataclasses.field(default_factory=list)
    skipped: list[Event] = dataclasses.field(default_factory=list)


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


class Walk:
    """One traversal of a program with a set of rules.

    Attributes:
        rules: what is rewritten.
        refused: numbers of the sites where no rule is asked.
        events: what happened so far.
    """

    def __init__(
        self,
        rules: Rules,
        refused: Set[int] = frozenset(),
        graph: Graph | None = None,
    ) -> None:
        """Starts a walk; `graph` gives its leaves' paths to operations without any."""
        self.rules = rules
        self.refused = refused
        self.events = Events()
        self._met = 0
        self._namer = Namer(graph)
        self._origins = None if graph is None else self._namer.inputs(graph)
        self._within = ""

    def rewrite(
        self,
        jaxpr: jaxprs.Jaxpr,
        known: Sequence[bool],
        origins: Sequence[Origin | None] | None = None,
    ) -> jaxprs.Jaxpr:
        """Rewrites a jaxpr; returns the same object if no rule fired.

        Args:
            jaxpr: a closed jaxpr.
            known: for each of its inputs, whether it is known before the others.
            origins: for each of its inputs, where it comes from; those of the
                graph's inputs by default.
        """
        fired = len(self.events.fired)
        specs = [jaxprs.spec(var) for var in jaxpr.jaxpr.invars]
        given = origins or self._origins or [None] * len(specs)

        def run(*values: Any) -> list[Any]:
            operands = [
                Operand(value, early, origin=origin)
                for value, early, origin in zip(values, known, given, strict=True)
            ]
            return [operand.value for operand in self.run(jaxpr, operands)]

        new = drop_dead(jaxprs.make(run, specs))
        return jaxpr if len(self.events.fired) == fired else new

    def run(self, jaxpr: jaxprs.Jaxpr, operands: Sequence[Operand]) -> list[Operand]:
        """Walks through a jaxpr's equations, emitting into the current trace."""
        uses = _uses(jaxpr)
        env: dict[Any, Operand] = {
            var: Operand(value, known=True)
            for var, value in zip(jaxpr.jaxpr.constvars, jaxpr.consts, strict=True)
        }
        for var, operand in zip(jaxpr.jaxpr.invars, operands, strict=True):
            env[var] = dataclasses.replace(operand, uses=operand.uses - 1 + uses[var])
        for equation in jaxprs.equations(jaxpr):
            given = [_operand(env, var) for var in equation.invars]
            with jaxprs.provenance(equation):
                results = self._equation(equation, given)
            for var, result in zip(equation.outvars, results, strict=True):
                inner = result.uses - 1
                env[var] = dataclasses.replace(result, uses=uses[var] + inner)
        return [_operand(env, var) for var in jaxpr.jaxpr.outvars]

    def _equation(
        self, equation: jaxprs.Equation, operands: list[Operand]
    ) -> list[Operand]:
        outer = self._within
        scope = self._within = join(outer, jaxprs.scope(equation))
        try:
            return self._emitted(equation, operands, scope)
        finally:
            self._within = outer

    def _emitted(
        self, equation: jaxprs.Equation, operands: list[Operand], scope: str
    ) -> list[Operand]:
        if jaxprs.is_plain_jit(equation):
            (body,) = jaxprs.bodies(equation)
            return self.run(body.jaxpr, operands)
        if equation.primitive.name == "shard_map":
            return self._sharded(equation, operands)
        origin = self._namer.name(scope, [o.origin for o in operands if o.origin])
        known = all(o.known for o in operands) and not equation.effects
        shared = any(o.shared or o.uses > 1 for o in operands if o.known)
        bodies = [self._body(body, operands) for body in jaxprs.bodies(equation)]
        self._met += 1
        made = Operand(None, known, 1, shared, None, origin)
        refused = self._met in self.refused
        rules = () if refused else self.rules.of(equation.primitive.name)
        site = Site(equation, bodies, self.events, self._met, origin.path)
        if not bodies and jaxprs.is_opaque(equation):
            site.skipped(f"{equation.primitive.name}: its inside is left as it is")
        for rule in rules:
            results = rule(site, *operands)
            if results is not None:
                return _checked(site, rule, results, made)
        values = [operand.value for operand in operands]
        params = jaxprs.replace_bodies(equation, bodies) if bodies else {}
        return [
            dataclasses.replace(made, value=value)
            for value in jaxprs.bind(equation, values, **params)
        ]

    def _sharded(
        self, equation: jaxprs.Equation, operands: list[Operand]
    ) -> list[Operand]:
        """Walks through what every shard does, where its axes have names."""
        (body,) = jaxprs.bodies(equation)
        known = all(operand.known for operand in operands)
        made: list[Operand] = []

        def run(*values: Any) -> tuple[Any, ...]:
            pairs = zip(operands, values, strict=True)
            made[:] = self.run(body.jaxpr, [_inside(o, value) for o, value in pairs])
            return tuple(operand.value for operand in made)

        values = [operand.value for operand in operands]
        results = jaxprs.sharded(equation, run)(*values)
        return [
            Operand(value, known, origin=inner.origin)
            for value, inner in zip(results, made, strict=True)
        ]

    def _body(self, body: jaxprs.Body, operands: Sequence[Operand]) -> jaxprs.Body:
        """Rewrites one body, knowing of its inputs what is known of the operands."""
        origins = [operands[position].origin for position in body.operands]
        known = body_known(body, operands)
        return body._replace(jaxpr=self.rewrite(body.jaxpr, known, origins))


def _inside(operand: Operand, value: Any) -> Operand:
    """An operand as a body sees it; notes are about the value outside."""
    return dataclasses.replace(operand, value=value, note=None)


def body_known(body: jaxprs.Body, operands: Sequence[Operand]) -> list[bool]:
    """For each input of a body, whether it is known in every iteration."""
    return [
        operands[position].known and not carried
        for position, carried in zip(body.operands, body.carried, strict=True)
    ]


def _uses(jaxpr: jaxprs.Jaxpr) -> Counter[Any]:
    uses: Counter[Any] = Counter()
    for equation in jaxprs.equations(jaxpr):
        uses.update(v for v in equation.invars if not jaxprs.is_literal(v))
    uses.update(v for v in jaxpr.jaxpr.outvars if not jaxprs.is_literal(v))
    return uses


def _operand(env: dict[Any, Operand], var: Any) -> Operand:
    if jaxprs.is_literal(var):
        return Operand(read({}, var), known=True)
    return env[var]


def _result(result: Any) -> Result:
    if isinstance(result, Operand):
        return Result(result.value, result.note)
    return result if isinstance(result, Result) else Result(result)


def _checked(
    site: Site, rule: Rule, results: Sequence[Any], made: Operand
) -> list[Operand]:
    """Turns a rule's results into operands; they must fit the equation's outputs."""
    name = getattr(rule, "__name__", repr(rule))
    outvars = site.equation.outvars
    if not isinstance(results, list | tuple):
        raise RuleError(
            f"{name} on {site.equation.primitive.name}: expected a list of outputs, "
            f"got {type(results).__name__}. Return [y], or None to decline."
        )
    results = [_result(result) for result in results]
    if len(results) != len(outvars):
        raise RuleError(
            f"{name} on {site.equation.primitive.name}: expected {len(outvars)} "
            f"outputs, got {len(results)}. Return one array for each."
        )
    for result, var in zip(results, outvars, strict=True):
        want = jaxprs.spec(var)
        if (result.value.shape, result.value.dtype) != (want.shape, want.dtype):
            raise RuleError(
                f"{name} on {site.equation.primitive.name}: expected "
                f"{describe(want)}, got {describe(result.value)}. Reshape or cast "
                "what the rule returns."
            )
    return [dataclasses.replace(made, value=r.value, note=r.note) for r in results]
