"""Programs compiled ahead of time, and their measurement."""

from __future__ import annotations

import dataclasses
import math
import statistics
import time
from collections.abc import Callable, Sequence
from collections.abc import Mapping as Dict
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from compiler.cost.memory import donated
from compiler.errors import CompileError, InputMismatchError, VariablesMismatchError
from compiler.graph import is_abstract
from compiler.platforms import cached, compiled, device, foreign
from compiler.program import Program
from mapping.core import describe


class Memory(NamedTuple):
    """The bytes an executable needs, as its compiler tells.

    Attributes:
        arguments: variables and inputs.
        outputs: what it returns.
        aliased: outputs that lie in donated arguments.
        temporaries: what is computed between.
        code: the program itself; zero where the back end does not tell (CPU).
    """

    arguments: int
    outputs: int
    aliased: int
    temporaries: int
    code: int

    @property
    def total(self) -> int:
        """All that is held during a call."""
        return sum(self) - 2 * self.aliased


class Counted(NamedTuple):
    """What the compiler counts on its own form of the program; nan if it does not.

    The body of a loop counts once, however often it runs.

    Attributes:
        flops: arithmetic without transcendentals.
        transcendentals: exp, log, tanh and their like.
        bytes: accessed by every operation after fusion.
    """

    flops: float
    transcendentals: float
    bytes: float


@dataclasses.dataclass(frozen=True, eq=False)
class Executable:
    """A program compiled for some shapes. Made by `compile`.

    Call it with inputs, or with variables and inputs. It never compiles again: on
    other shapes it is an error.

    Attributes:
        program: what was compiled.
        lowered: JAX's own, before the compiler; see `jax.stages`.
        compiled: JAX's own, or None for a platform this machine does not have.
        specs: the inputs it takes.
        platform: what it runs on.
        donate: what a call gives up.

    >>> import jax.numpy as jnp, compiler as mc
    >>> program = mc.trace(lambda w, x: x @ w, jnp.eye(2), jnp.ones((1, 2)))
    >>> executable = mc.compile(program)
    >>> executable(jnp.ones((1, 2))).tolist(), executable.memory.outputs
    ([[1.0, 1.0]], 8)
    """

    program: Program
    lowered: jax.stages.Lowered = dataclasses.field(repr=False)
    compiled: jax.stages.Compiled | None = dataclasses.field(repr=False)
    specs: tuple[Any, ...]
    platform: str
    donate: tuple[str | int, ...] = ()

    def __call__(self, *arguments: Any) -> Any:
        """Runs it on inputs, or on variables and inputs.

        Raises:
            InputMismatchError: if they are not what it was compiled for.
            CompileError: if it was lowered for a platform that is not here.
        """
        given = self._arguments(arguments)
        try:
            return self._here()(*given)
        except (TypeError, ValueError):
            self._check(given)
            raise

    @property
    def memory(self) -> Memory | None:
        """The bytes it needs; None if the back end does not tell."""
        found = self.compiled.memory_analysis() if self.compiled else None
        if found is None:
            return None
        return Memory(
            found.argument_size_in_bytes,
            found.output_size_in_bytes,
            found.alias_size_in_bytes,
            found.temp_size_in_bytes,
            found.generated_code_size_in_bytes,
        )

    @property
    def cost(self) -> Counted:
        """The compiler's own count; of the program before it if it cannot run here."""
        found = (self.compiled or self.lowered).cost_analysis() or {}
        found = found[0] if isinstance(found, list) else found
        if found.get("flops", 0.0) < 0:  # an operation it knows nothing of
            found = {}
        unknown = 0.0 if found else math.nan
        names = ("flops", "transcendentals", "bytes accessed")
        return Counted(*(float(found.get(name, unknown)) for name in names))

    @property
    def text(self) -> str:
        """The optimised HLO; StableHLO for a platform that is not here."""
        return (self.compiled or self.lowered).as_text() or ""

    def latency(self, *arguments: Any, rounds: int = 7, seconds: float = 0.03) -> float:
        """The seconds one call takes, results waited for: a median over slices.

        What a call would give up is copied first, outside of the measured time.

        Args:
            *arguments: inputs, or variables and inputs.
            rounds: how many slices are measured.
            seconds: the length of a slice; with donation, of all together.
        """
        given = self._arguments(arguments)
        if not self.donate:
            run = {"": lambda: self(*given)}
            return latency(run, rounds=rounds, seconds=seconds)[""]
        times: list[float] = []
        until = time.perf_counter() + rounds * seconds
        while len(times) < rounds or time.perf_counter() < until:
            fresh = jax.block_until_ready(jax.tree.map(jnp.copy, given))
            began = time.perf_counter()
            jax.block_until_ready(self(*fresh))
            times.append(time.perf_counter() - began)
        return statistics.median(times)

    def _arguments(self, arguments: Sequence[Any]) -> tuple[Any, ...]:
        """Variables and inputs, whichever way they were given."""
        if len(arguments) == len(self.specs) + 1:
            return tuple(arguments)
        if len(arguments) != len(self.specs):
            raise InputMismatchError(
                f"inputs: expected {len(self.specs)} inputs, or variables and inputs, "
                f"got {len(arguments)} arguments. Call it as it was compiled."
            )
        own = self.program.variables
        if "variables" in self.donate or any(map(is_abstract, self.program.values)):
            why = "gives its variables up" if self.donate else "has no arrays"
            raise VariablesMismatchError(
                f"variables: expected them with the inputs, as this executable {why}. "
                "Call executable(variables, *inputs)."
            )
        return (own, *arguments)

    def _here(self) -> jax.stages.Compiled:
        if self.compiled is None:
            raise CompileError(
                f"target: expected a machine with {self.platform} to run on, this one "
                f"has {jax.default_backend()}. It was lowered only: read it with "
                ".text, or run it there."
            )
        return self.compiled

    def _check(self, given: tuple[Any, ...]) -> None:
        """Says what is wrong with arguments."""
        variables, *inputs = given
        self.program.graph.unpack(variables)
        want, tree = jax.tree.flatten(self.specs)
        values, given_tree = jax.tree.flatten(tuple(inputs))
        if tree != given_tree:
            raise InputMismatchError(
                f"inputs: compiled for {tree}, got {given_tree}. Call it as it was "
                "compiled."
            ) from None
        for spec, value in zip(want, values, strict=True):
            shape, dtype = np.shape(value), jax.dtypes.result_type(value)
            if (shape, dtype) != (spec.shape, spec.dtype):
                raise InputMismatchError(
                    f"inputs: compiled for {describe(spec)}, got "
                    f"{describe(jax.ShapeDtypeStruct(shape, dtype))}. Compile for it "
                    "too: compiler.compile(program, *inputs)."
                ) from None


def compile(
    program: Program,
    *inputs: Any,
    donate: Sequence[str | int] = (),
    options: Dict[str, Any] | None = None,
    cache: str | Path | None = None,
    target: str | None = None,
) -> Executable:
    """Compiles a program ahead of time.

    Args:
        program: traced, and rewritten or not.
        *inputs: arrays or `jax.ShapeDtypeStruct`s; the sample's shapes if there are
            none.
        donate: what a call may overwrite: `"variables"` (a training step that returns
            new ones), `"inputs"`, or the places of inputs.
        options: of XLA, for this program alone.
        cache: a folder that keeps the result for other processes; JAX's own settings
            are as before afterwards. Not for several threads at once, as JAX has one
            cache for a process.
        target: a platform: `"cpu"`, `"cuda"`, `"rocm"`, `"tpu"`. Where this machine has
            none, the program is lowered for it and can be looked at, not run.

    Raises:
        InputMismatchError: if the program does not take the inputs.
        CompileError: if XLA refuses the options or the program, or there is no such
            platform.

    >>> import compiler as mc
    >>> program = mc.trace(lambda w, x: x @ w, jnp.eye(3), jnp.ones((2, 3)))
    >>> executable = compile(program, jax.ShapeDtypeStruct((4, 3), "float32"))
    >>> executable(jnp.ones((4, 3))).shape, executable.cost.flops
    ((4, 3), 72.0)
    """
    graph = program.graph
    inputs = inputs or jax.tree.unflatten(graph.in_tree, graph.inputs)
    donated(graph, donate)  # says what is wrong with it
    donate = (donate,) if isinstance(donate, str) else tuple(donate)
    jitted = jax.jit(program.function, donate_argnums=_places(donate, len(inputs)))
    platform = {"gpu": "cuda"}.get(target or "", target) or jax.default_backend()
    here = device(platform)
    specs = jax.tree.map(_spec, tuple(inputs))
    traced = jitted.trace(program.variables, *inputs)
    if here is None:
        lowered, runs = foreign(traced, platform), None
    else:
        with jax.default_device(here if target else None), cached(cache):
            lowered = traced.lower()
            runs = compiled(lowered, dict(options or {}))
    return Executable(program, lowered, runs, specs, platform, donate)


def latency(
    calls: Dict[str, Callable[[], Any]], *, rounds: int = 7, seconds: float = 0.03
) -> dict[str, float]:
    """Measures calls against each other, in seconds.

    Each is warmed up, then they take turns in slices of about `seconds`, so that
    what else the machine does falls on all alike; each call waits for its result.

    Args:
        calls: by name, functions without arguments.
        rounds: slices each gets.
        seconds: length of a slice.

    Returns:
        By name, the median over slices of the mean time of a call.

    >>> times = latency({"sum": lambda: sum(range(10))}, rounds=3, seconds=0.001)
    >>> 0 < times["sum"] < 1
    True
    """
    counts = {}
    for name, run in calls.items():
        jax.block_until_ready(run())
        counts[name] = max(1, int(seconds / _timed(run, 1)))
    slices: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, run in calls.items():
            slices[name].append(_timed(run, counts[name]))
    return {name: statistics.median(times) for name, times in slices.items()}


def _timed(run: Callable[[], Any], count: int) -> float:
    began = time.perf_counter()
    for _ in range(count):
        jax.block_until_ready(run())
    return (time.perf_counter() - began) / count


def _places(donate: Sequence[str | int], inputs: int) -> list[int]:
    """Places among (variables, *inputs)."""
    places = {0} if "variables" in donate else set()
    places |= set(range(1, inputs + 1)) if "inputs" in donate else set()
    return sorted(places | {place + 1 for place in donate if isinstance(place, int)})


def _spec(value: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(np.shape(value), jax.dtypes.result_type(value))
