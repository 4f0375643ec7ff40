"""A graph as the values that flow between its steps, calls looked through."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

from compiler import jaxprs
from compiler.cost.primitives import (
    FUSIBLE,
    READ_IN_PART,
    REDUCTIONS,
    SPREADING,
    VIEWS,
    WRITTEN_IN_PART,
)
from compiler.graph import Graph, nbytes
from compiler.paths import Operation, operations, owner

_LOOPS = frozenset(["scan", "while", "cond", "shard_map"])
"""What is not a mere call of its body."""


@dataclasses.dataclass(frozen=True)
class Value:
    """An array in memory.

    Attributes:
        number: tells it apart.
        bytes: its size.
        path: of the operation that made it, or of what its leaf belongs to.
    """

    number: int
    bytes: int
    path: str


@dataclasses.dataclass(frozen=True)
class Step:
    """One equation that does something.

    Attributes:
        operation: the equation, its path and how often it runs.
        reads: its operands that are in memory.
        writes: its results.
        regions: what runs inside it.
    """

    operation: Operation
    reads: tuple[Value, ...]
    writes: tuple[Value, ...]
    regions: tuple[Region, ...] = ()

    @property
    def name(self) -> str:
        """The primitive."""
        return self.operation.equation.primitive.name

    def traffic(self) -> tuple[list[tuple[Value, int]], int]:
        """The bytes it reads of each operand, and those it writes, on its own."""
        size = sum(value.bytes for value in self.writes)
        if self.regions:
            return [], 0
        if self.name in READ_IN_PART:
            whole = [(value, value.bytes) for value in self.reads[1:]]
            return [(v, min(size, v.bytes)) for v in self.reads[:1]] + whole, size
        if self.name in WRITTEN_IN_PART:
            place = 1 if self.name == "dynamic_update_slice" else 2
            part = _bytes(self.operation.equation.invars[place])
            old = part if self.name.startswith("scatter-") else 0
            return [
                (v, old if v is self.reads[0] else v.bytes) for v in self.reads
            ], part
        return [(value, value.bytes) for value in self.reads], size


@dataclasses.dataclass(frozen=True)
class Region:
    """Steps that run one after the other, and the values around them.

    Attributes:
        steps: in order.
        inputs: what it is given.
        outputs: what it gives back.
        constants: arrays it holds.
    """

    steps: tuple[Step, ...]
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    constants: tuple[Value, ...] = ()


def flow(graph: Graph) -> Region:
    """The steps of a whole graph; its inputs are its leaves and then its inputs."""
    paths = [owner(leaf) for leaf in graph.leaves] + [""] * len(graph.inputs)
    return _Builder().region(graph.jaxpr, operations(graph), paths)


class _Builder:
    """Numbers the values of one graph."""

    def __init__(self) -> None:
        self._numbers = itertools.count()

    def region(
        self,
        jaxpr: jaxprs.Jaxpr,
        operations: Sequence[Operation],
        paths: Sequence[str],
    ) -> Region:
        variables = jaxpr.jaxpr.invars
        inputs = [self._new(v, p) for v, p in zip(variables, paths, strict=True)]
        env = dict(zip(variables, inputs, strict=True))
        constants = self._constants(jaxpr, env)
        steps = tuple(self._steps(operations, env))
        outputs = _known(env, jaxpr.jaxpr.outvars)
        return Region(steps, tuple(inputs), outputs, tuple(constants))

    def _new(self, var: Any, path: str) -> Value:
        return Value(next(self._numbers), _bytes(var), path)

    def _constants(self, jaxpr: jaxprs.Jaxpr, env: dict[Any, Value]) -> list[Value]:
        found = [self._new(var, "") for var in jaxpr.jaxpr.constvars]
        env.update(zip(jaxpr.jaxpr.constvars, found, strict=True))
        return found

    def _steps(
        self, operations: Sequence[Operation], env: dict[Any, Value]
    ) -> Iterator[Step]:
        for operation in operations:
            equation, path = operation.equation, operation.path
            name, bodies = equation.primitive.name, jaxprs.bodies(equation)
            if name in VIEWS and not bodies:
                for result, var in zip(equation.outvars, equation.invars, strict=False):
                    held = None if jaxprs.is_literal(var) else env.get(var)
                    env[result] = held or self._new(result, path)
                continue
            if len(bodies) == 1 and name not in _LOOPS:
                yield from self._call(operation, bodies[0], env)
                continue
            for var in equation.outvars:
                env[var] = self._new(var, path)
            regions = tuple(
                self.region(body.jaxpr, inside, [path] * len(body.jaxpr.jaxpr.invars))
                for body, inside in zip(bodies, operation.bodies, strict=True)
            )
            writes = tuple(env[var] for var in equation.outvars)
            yield Step(operation, _known(env, equation.invars), writes, regions)

    def _call(
        self, operation: Operation, body: jaxprs.Body, env: dict[Any, Value]
    ) -> Iterator[Step]:
        """The steps of a function that is called, as if they were written here."""
        equation, inner = operation.equation, {}
        for var, position in zip(body.jaxpr.jaxpr.invars, body.operands, strict=True):
            given = equation.invars[position]
            if not jaxprs.is_literal(given) and given in env:  # else a number
                inner[var] = env[given]
        self._constants(body.jaxpr, inner)
        yield from self._steps(operation.bodies[0], inner)
        for var, made in zip(equation.outvars, body.jaxpr.jaxpr.outvars, strict=True):
            found = None if jaxprs.is_literal(made) else inner.get(made)
            env[var] = found or self._new(var, operation.path)


def clusters(region: Region) -> list[frozenset[int]]:
    """For each step, at which steps its results are finally computed.

    A fusing compiler computes elementwise steps where they are used, so that nothing
    between them is written to memory: a step whose results are read in one kernel
    alone becomes a part of it; broadcasts are repeated wherever they are needed.
    """
    readers: dict[Value, list[int]] = {}
    for place, step in enumerate(region.steps):
        for value in step.reads:
            readers.setdefault(value, []).append(place)
    kept = set(region.outputs)
    at: list[frozenset[int]] = [frozenset([i]) for i in range(len(region.steps))]
    for place in reversed(range(len(region.steps))):
        step = region.steps[place]
        users = {i for value in step.writes for i in readers.get(value, ())}
        if step.name not in FUSIBLE or not users or not kept.isdisjoint(step.writes):
            continue
        kernels = frozenset[int]().union(*(at[i] for i in users))
        alone = len(kernels) == 1 or step.name in SPREADING
        if alone and all(_takes(region.steps[i], step) for i in users):
            at[place] = kernels
    return at


def _takes(user: Step, made: Step) -> bool:
    """Whether a step computes an operand on the way, rather than read it."""
    if user.name in ("dot_general", "conv_general_dilated"):
        return made.name == "transpose"
    if user.name in WRITTEN_IN_PART:
        return user.reads[0] not in made.writes
    return user.name in FUSIBLE or user.name in REDUCTIONS


def _known(env: dict[Any, Value], variables: Sequence[Any]) -> tuple[Value, ...]:
    """The values of operands, without literals and without repetitions."""
    found = map(env.get, jaxprs.reads(variables))
    return tuple(dict.fromkeys(value for value in found if value is not None))


def _bytes(var: Any) -> int:
    aval = var.aval
    aval = getattr(aval, "inner_aval", aval)
    if not hasattr(aval, "shape") or not hasattr(aval, "dtype"):
        return 0
    return nbytes(aval)
