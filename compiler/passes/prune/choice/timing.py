"""How long a program takes when it is pruned, next to how long it takes now."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from compiler.cost.symbols import require_numbers
from compiler.graph import Graph
from compiler.passes.prune.importance.importance import arrays
from compiler.passes.prune.plan import Plan
from compiler.passes.prune.structure import shrink

if TYPE_CHECKING:
    from compiler.passes.prune.structure import Structure
    from compiler.program import Program

_ROUNDS, _SLICE = 7, 0.02


class Stopwatch:
    """Measures a program before and after plans are carried out.

    Both are compiled for the sample's shapes and take turns on inputs of zeros, so
    that what else the machine does falls on both.

    Args:
        program: before, with arrays.
        structure: of its graph.

    Raises:
        InputMismatchError: if it was traced on symbolic extents.
        VariablesMismatchError: if it has no arrays.
    """

    def __init__(self, program: Program, structure: Structure) -> None:
        require_numbers(program.graph)
        self._program, self._structure = program, structure
        self._values = arrays(program, "prune.budget")
        self._before = _call(program.graph, self._values)

    @functools.cached_property
    def now(self) -> float:
        """The seconds of a call before anything is removed."""
        return self._measured({"before": self._before})["before"]

    def __call__(self, plan: Plan) -> tuple[float, float]:
        """The seconds of a call before and after a plan is carried out."""
        paths = self._program.graph.paths
        pairs = zip(self._values, paths, strict=True)
        cut = [plan.cut(value, path) for value, path in pairs]
        after = _call(shrink(self._structure, plan), cut)
        found = self._measured({"before": self._before, "after": after})
        return found["before"], found["after"]

    def _measured(self, runs: dict[str, Any]) -> dict[str, float]:
        from compiler.executable import latency

        return latency(runs, rounds=_ROUNDS, seconds=_SLICE)


def _call(graph: Graph, values: Sequence[Any]) -> functools.partial[Any]:
    inputs = [_zeros(spec) for spec in graph.inputs]
    return functools.partial(jax.jit(graph.evaluate), list(values), inputs)


def _zeros(spec: jax.ShapeDtypeStruct) -> Any:
    if jax.dtypes.issubdtype(spec.dtype, jax.dtypes.prng_key):
        return jax.random.split(jax.random.key(0), spec.shape)
    return jnp.zeros(spec.shape, spec.dtype)
