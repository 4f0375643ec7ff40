"""The one walk through equations and control flow.

Rewriting is evaluation: the walk runs a jaxpr on abstract arrays, and where a rule
is registered for a primitive, emits what the rule says instead. What comes out of
tracing the walk is the new graph, with shapes, scopes and source lines right by
construction. A primitive nobody has a rule for is emitted as it was.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence, Set
from typing import Any

from compiler import jaxprs
from compiler.errors import RuleError
from compiler.events import Event as Event
from compiler.events import Events as Events
from compiler.graph import Graph, drop_dead, read
from compiler.paths import Namer, Origin, join
from compiler.rules import Operand as Operand
from compiler.rules import Result as Result
from compiler.rules import Rule as Rule
from compiler.rules import Rules as Rules
from compiler.rules import Site as Site
from compiler.rules import early_sites as early_sites
from compiler.uses import Users, Uses, is_smaller, uses
from mapping.core import describe


class Walk:
    """One traversal of a program with a set of rules.

    Attributes:
        rules: what is rewritten.
        refused: numbers of the sites where no work on weights may be added.
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
        self._opened = 0
        self._namer = Namer(graph)
        self._origins = None if graph is None else self._namer.inputs(graph)
        self._within = ""
        self._sharded_in = 0

    def rewrite(
        self,
        jaxpr: jaxprs.Jaxpr,
        known: Sequence[bool],
        origins: Sequence[Origin | None] | None = None,
    ) -> jaxprs.Jaxpr:
        """Rewrites a jaxpr; returns the same object if there is nothing to gain.

        It is another if a rule fired, or if a call was inlined that works on what is
        known while it waits for what is not.

        Args:
            jaxpr: a closed jaxpr.
            known: for each of its inputs, whether it is known before the others.
            origins: for each of its inputs, where it comes from; those of the
                graph's inputs by default.
        """
        before = len(self.events.fired), self._opened
        specs = [jaxprs.spec(var) for var in jaxpr.jaxpr.invars]
        given = self._origins if origins is None else origins
        given = [None] * len(specs) if given is None else given

        def run(*values: Any) -> list[Any]:
            operands = [
                Operand(value, early, origin=origin)
                for value, early, origin in zip(values, known, given, strict=True)
            ]
            return [operand.value for operand in self.run(jaxpr, operands)]

        new = drop_dead(jaxprs.make(run, specs))
        return jaxpr if before == (len(self.events.fired), self._opened) else new

    def run(self, jaxpr: jaxprs.Jaxpr, operands: Sequence[Operand]) -> list[Operand]:
        """Walks through a jaxpr's equations, emitting into the current trace."""
        found = uses(jaxpr, [operand.known for operand in operands])
        waits = not all(operand.known for operand in operands)
        env: dict[Any, Operand] = {
            var: Operand(value, known=True)
            for var, value in zip(jaxpr.jaxpr.constvars, jaxpr.consts, strict=True)
        }
        for var, operand in zip(jaxpr.jaxpr.invars, operands, strict=True):
            env[var] = _counted(operand, found, var, operand.late - waits)
        for equation in jaxprs.equations(jaxpr):
            given = [_operand(env, var) for var in equation.invars]
            users = [user for var in equation.outvars for user in found.users[var]]
            with jaxprs.provenance(equation):
                results = self._equation(equation, given, users)
            for var, result in zip(equation.outvars, results, strict=True):
                env[var] = _counted(result, found, var, result.late - 1)
        return [_operand(env, var) for var in jaxpr.jaxpr.outvars]

    def _equation(
        self, equation: jaxprs.Equation, operands: list[Operand], users: Users
    ) -> list[Operand]:
        outer = self._within
        self._within = join(outer, jaxprs.scope(equation))
        try:
            return self._emitted(equation, operands, users)
        finally:
            self._within = outer

    def _emitted(
        self,
        equation: jaxprs.Equation,
        operands: list[Operand],
        users: Users,
    ) -> list[Operand]:
        if jaxprs.is_plain_jit(equation):
            (body,) = jaxprs.bodies(equation)
            if _derives(equation, body.jaxpr, operands):
                self._opened += 1
            return self.run(body.jaxpr, operands)
        if equation.primitive.name == "shard_map":
            return self._sharded(equation, operands)
        origin = self._namer.name(
            self._within, [o.origin for o in operands if o.origin]
        )
        known = all(o.known for o in operands) and not equation.effects
        shared = any(_is_shared(o, equation.outvars) for o in operands if o.known)
        bodies = [self._body(body, operands) for body in jaxprs.bodies(equation)]
        self._met += 1
        made = Operand(None, known, shared=shared, origin=origin)
        number, refused = self._met, self._met in self.refused
        rules = self.rules.of(equation.primitive.name)
        site = Site(equation, bodies, self.events, number, origin.path, users, refused)
        if not bodies and jaxprs.is_opaque(equation):
            site.skipped(f"{equation.primitive.name}: its inside is left as it is")
        if refused and rules:
            site.skipped(_REFUSED)
        for rule in rules:
            results = rule(site, *operands)
            if results is not None:
                return _checked(site, rule, results, made)
        values = [operand.value for operand in operands]
        return [
            dataclasses.replace(made, value=value)
            for value in jaxprs.rebind(equation, values, bodies)
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
            self._sharded_in += 1
            made[:] = self.run(body.jaxpr, [_inside(o, value) for o, value in pairs])
            self._sharded_in -= 1
            return tuple(operand.value for operand in made)

        values = [operand.value for operand in operands]
        results = jaxprs.sharded(equation, run)(*values)
        return [
            Operand(value, known, origin=inner.origin)
            for value, inner in zip(results, made, strict=True)
        ]

    def _body(self, body: jaxprs.Body, operands: Sequence[Operand]) -> jaxprs.Body:
        """Rewrites one body, knowing of its inputs what is known of the operands."""
        if self._sharded_in or jaxprs.has_refs(body.jaxpr):
            return body  # what differs by shard, or changes, cannot be traced apart
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


_REFUSED = (
    "left as it is: its weights or its result are used elsewhere too, or what would "
    "be stored for it is larger"
)


def _counted(operand: Operand, found: Uses, var: Any, late: int) -> Operand:
    """An operand with the uses of a variable of this jaxpr, for the one it had."""
    used = operand.uses - 1 + len(found.users[var])
    return dataclasses.replace(operand, uses=used, late=late + found.late[var])


def _derives(
    call: jaxprs.Equation, body: jaxprs.Jaxpr, operands: Sequence[Operand]
) -> bool:
    """Whether a call that waits for what is not known works on what is."""
    pairs = zip(operands, call.invars, strict=True)
    given = [o.known and not jaxprs.is_literal(var) for o, var in pairs]
    return not all(o.known for o in operands) and uses(body, given).derives


def _is_shared(operand: Operand, results: Sequence[Any]) -> bool:
    """Whether results made of an operand would be stored beside it."""
    if operand.shared or operand.late <= 0:
        return operand.shared
    return not is_smaller(operand.value, [var.aval for var in results])


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
