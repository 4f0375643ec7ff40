"""Finds the blocks of a graph and wraps each in `jax.checkpoint`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax

from compiler import jaxprs
from compiler.graph import evaluate, read
from compiler.passes.globs import prefixes
from compiler.passes.remat.regions import Regions
from compiler.paths import Operation, flatten, join, matches
from compiler.rewrite import Event, Events

_ENTERED = ("scan", "cond", "jit", "closed_call", "remat2")
"""Bodies that may hold blocks. A derivative rule would not see what is done inside its
call, and a `while` has no gradient."""


@dataclasses.dataclass
class Blocks:
    """Wraps the blocks of one graph.

    Attributes:
        globs: what names them.
        policy: what is kept of them.
        events: what was wrapped, and what not.
        left: the blocks that are not to be touched.
    """

    globs: tuple[str, ...]
    policy: Callable[..., Any]
    events: Events = dataclasses.field(default_factory=Events)
    left: set[str] = dataclasses.field(default_factory=set)

    def leave_gradients(self, found: Sequence[Operation], within: str = "") -> None:
        """Leaves blocks whose gradient is in the graph already."""
        for operation in found:
            scope = join(within, jaxprs.scope(operation.equation))
            block = self._block(operation)
            if block is not None and block not in self.left and "transpose(" in scope:
                self.left.add(block)
                why = (
                    "its gradient is in the graph already, and with it the choice of "
                    "what is kept; rematerialise the function, then differentiate it"
                )
                self._skipped(block, why, operation)
            for body in operation.bodies:
                self.leave_gradients(body, scope)

    def wrap(
        self, jaxpr: jaxprs.Jaxpr, found: Sequence[Operation], looped: bool
    ) -> jaxprs.Jaxpr:
        """A jaxpr with its blocks wrapped; the same one if there are none to wrap."""
        fired = len(self.events.fired)
        keys = [self._key(operation) for operation in found]
        regions = Regions(jaxpr, keys)
        wrapped = {
            region
            for region, places in enumerate(regions.members)
            if self._worth(str(keys[places[0]]), [found[i] for i in places])
        }
        inside = {
            i: self._enter(operation, looped)
            for i, operation in enumerate(found)
            if keys[i] is None
        }
        if len(self.events.fired) == fired:
            return jaxpr
        specs = [jaxprs.spec(var) for var in jaxpr.jaxpr.invars]
        readers = _readers(jaxpr)

        def run(*values: Any) -> list[Any]:
            env = dict(zip(jaxpr.jaxpr.constvars, jaxpr.consts, strict=True))
            env |= zip(jaxpr.jaxpr.invars, values, strict=True)
            for places in regions.order():
                if regions.owner.get(places[0]) in wrapped:
                    border = _border(jaxpr, places, readers)
                    self._emit_block(jaxpr, places, border, env, looped)
                else:
                    _emit(jaxpr, places, inside, env)
            return [read(env, var) for var in jaxpr.jaxpr.outvars]

        return jaxprs.make(run, specs)

    def _enter(self, operation: Operation, looped: bool) -> dict[str, Any]:
        """The params of an equation whose bodies hold blocks, those wrapped."""
        equation = operation.equation
        name = equation.primitive.name
        if name not in _ENTERED or self._is_wrapped(operation):
            return {}
        looped = looped or name == "scan"
        bodies = jaxprs.bodies(equation)
        new = [
            body._replace(jaxpr=self.wrap(body.jaxpr, inner, looped))
            for body, inner in zip(bodies, operation.bodies, strict=True)
        ]
        same = all(a.jaxpr is b.jaxpr for a, b in zip(bodies, new, strict=True))
        return {} if same else jaxprs.replace_bodies(equation, new)

    def _is_wrapped(self, operation: Operation) -> bool:
        """Whether an operation is one rematerialised block, or a part of one."""
        if operation.equation.primitive.name != "remat2":
            return False
        inner = (self._block(o) for o in flatten(operation.bodies[0]))
        return len({block for block in inner if block is not None}) == 1

    def _key(self, operation: Operation) -> str | None:
        """The block an operation is to be wrapped with."""
        block, equation = self._block(operation), operation.equation
        arrays = all(hasattr(v.aval, "dtype") for v in equation.outvars)
        if block is None or block in self.left or equation.effects or not arrays:
            return None
        whole = equation.primitive.name in ("scan", "while") and operation.path == block
        return None if whole else block

    def _block(self, operation: Operation) -> str | None:
        """The shortest path that a glob names and the operation stands in."""
        if not operation.path:
            return None
        for path in prefixes(operation.path):
            if any(matches(glob, path) for glob in self.globs):
                return path
        return None

    def _worth(self, block: str, members: Sequence[Operation]) -> bool:
        """Whether a region is worth wrapping; records it."""
        if all(o.equation.primitive.name == "remat2" for o in members):
            self._skipped(block, "it is rematerialised already", members[0])
        elif len(members) == 1:
            self._skipped(
                block, "one operation alone: nothing less could be kept", members[0]
            )
        else:
            what = f"{len(members)} operations are computed again for the gradient"
            source = jaxprs.source(members[0].equation)
            self.events.fired.append(Event(block, what, source))
            return True
        return False

    def _skipped(self, block: str, why: str, operation: Operation) -> None:
        source = jaxprs.source(operation.equation)
        self.events.skipped.append(Event(block, why, source))

    def _emit_block(
        self,
        jaxpr: jaxprs.Jaxpr,
        places: Sequence[int],
        border: tuple[list[Any], list[Any]],
        env: dict[Any, Any],
        looped: bool,
    ) -> None:
        """Emits equations as one `jax.checkpoint`."""
        members = [jaxprs.equations(jaxpr)[place] for place in places]
        shared = jaxprs.shared_scopes(members)
        inner = [jaxprs.in_scopes(e, slice(shared, None)) for e in members]
        inputs, outputs = border
        block = jaxprs.part(jaxpr, inputs, outputs, inner)

        def run(*values: Any) -> list[Any]:
            return evaluate(block, dict(zip(inputs, values, strict=True)))

        # A loop's barrier keeps its iterations apart; XLA needs no other inside it.
        region = jax.checkpoint(run, prevent_cse=not looped, policy=self.policy)
        with jaxprs.provenance(jaxprs.in_scopes(members[0], slice(shared))):
            results = region(*(env[var] for var in inputs))
        env.update(zip(outputs, results, strict=True))


def _emit(
    jaxpr: jaxprs.Jaxpr,
    places: Sequence[int],
    inside: dict[int, dict[str, Any]],
    env: dict[Any, Any],
) -> None:
    """Emits equations one by one."""
    for place in places:
        equation = jaxprs.equations(jaxpr)[place]
        operands = [read(env, var) for var in equation.invars]
        with jaxprs.provenance(equation):
            results = jaxprs.bind(equation, operands, **inside.get(place, {}))
        env.update(zip(equation.outvars, results, strict=True))


def _border(
    jaxpr: jaxprs.Jaxpr, places: Sequence[int], readers: dict[Any, set[int]]
) -> tuple[list[Any], list[Any]]:
    """What flows into some equations of a jaxpr, and what of theirs is used outside."""
    members = [jaxprs.equations(jaxpr)[place] for place in places]
    made = dict.fromkeys(v for e in members for v in e.outvars)
    reads = dict.fromkeys(v for e in members for v in jaxprs.reads(e.invars))
    inputs = [v for v in reads if v not in made]
    return inputs, [v for v in made if not readers.get(v, set()) <= set(places)]


def _readers(jaxpr: jaxprs.Jaxpr) -> dict[Any, set[int]]:
    """The equations that read each variable; -1 stands for the outputs."""
    found: dict[Any, set[int]] = {}
    for place, equation in enumerate(jaxprs.equations(jaxpr)):
        for var in jaxprs.variables(equation.invars):
            found.setdefault(var, set()).add(place)
    for var in jaxprs.variables(jaxpr.jaxpr.outvars):
        found.setdefault(var, set()).add(-1)
    return found
