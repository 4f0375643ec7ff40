"""How much layers do to what goes through them, measured on data."""

from __future__ import annotations

import functools
from collections.abc import Callable, Container, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from compiler import jaxprs
from compiler.errors import CalibrationError
from compiler.extents import accepted, as_arrays
from compiler.graph import Graph, read
from compiler.passes.prune.depth.blocks import blocks
from compiler.passes.prune.depth.flow import Place
from compiler.passes.prune.depth.inline import inlined
from compiler.passes.prune.depth.removal import removed
from compiler.passes.prune.depth.steps import steps

if TYPE_CHECKING:
    from compiler.passes.prune.depth.choice import Unit
    from compiler.program import Program

Point = tuple[Place, int | None]
"""Where activations are looked at: a sum, or a step of a loop."""


def turns(
    program: Program,
    units: Sequence[Unit],
    batches: Sequence[Any] | None,
    axis: int,
    window: int | None,
) -> np.ndarray:
    r"""How far units turn what goes through them, averaged over tokens and batches.

    $$ 1 - \mathrm{E} \cos(x_i, y_i) \quad\text{or}\quad
       \mathrm{E} \arccos(\cos(x_i, y_{i + n - 1})) / \pi $$

    Args:
        program: any that has arrays.
        units: what is measured, in the order it runs.
        batches: inputs of the program.
        axis: where the features are.
        window: the $n$ of the second; None for the first.

    Returns:
        A number for each unit, or for each window of units; infinite where a window
        goes from one loop to another.
    """
    length = window or 1
    windows = [units[i : i + length] for i in range(len(units) - length + 1)]
    whole = [len({_chain(unit) for unit in own}) == 1 for own in windows]
    pairs = zip(windows, whole, strict=True)
    spans = tuple((own[0].keys[0], own[-1].keys[-1]) for own, fits in pairs if fits)
    total, given = np.zeros(len(spans)), _batches(batches)
    for batch in given:
        flat, graph = _given(program, batch)
        measure = _measured(graph, spans, axis, window is not None)
        total += np.asarray(measure(program.values, flat), np.float64)
    if not np.isfinite(total).all():
        raise CalibrationError(
            "prune.layers: expected finite activations, got infinite ones or nan. "
            "Look at the batches."
        )
    found = np.full(len(windows), np.inf)
    found[np.asarray(whole, np.bool_)] = total / len(given)
    return found


def _chain(unit: Unit) -> str:
    """What units have in common that follow one another."""
    return unit.step.group if unit.step else ""


def losses(
    program: Program,
    units: Sequence[Unit],
    batches: Sequence[Any] | None,
    loss: Callable[..., Any],
) -> np.ndarray:
    """By how much a loss rises when a unit is left out, averaged over batches."""
    total = np.zeros(len(units))
    taken = len(program.graph.in_tree.children())
    for batch in (given := _batches(batches)):
        parts = batch if isinstance(batch, tuple | list) else (batch,)
        flat, graph = _given(program, tuple(parts[:taken]))
        base = _loss(graph, program.values, flat, loss, parts[taken:])
        for number, unit in enumerate(units):
            without = removed(graph, unit.keys)
            prepare = without.prepare or list
            values = prepare(list(program.values))
            new = _loss(without.graph, values, flat, loss, parts[taken:])
            total[number] += new - base
    return total / len(given)


def _loss(
    graph: Graph,
    values: Sequence[Any],
    flat: Sequence[Any],
    loss: Callable[..., Any],
    rest: Sequence[Any],
) -> float:
    @jax.jit
    def run(values: Sequence[Any], flat: Sequence[Any], rest: Sequence[Any]) -> Any:
        outputs = graph.evaluate(values, flat)
        return loss(jax.tree.unflatten(graph.out_tree, outputs), *rest)

    value = np.asarray(run(list(values), list(flat), list(rest)), np.float64)
    if value.shape != () or not np.isfinite(value):
        raise CalibrationError(
            f"prune.layers: expected a loss that is one finite number, got "
            f"{value.tolist()!r}."
        )
    return float(value)


def _batches(batches: Sequence[Any] | None) -> Sequence[Any]:
    if not batches:
        raise CalibrationError(
            "prune.layers: expected batches to measure on, got none. Pass some inputs "
            "of the program, prune.layers(..., batches=[x]), or importance='magnitude'."
        )
    return batches


def _given(program: Program, batch: Any) -> tuple[list[Any], Graph]:
    """Flat inputs, and the program's graph for their shapes."""
    inputs = batch if isinstance(batch, tuple | list) else (batch,)
    flat, in_tree = jax.tree.flatten(as_arrays(program.graph, tuple(inputs)))
    graph = program.specialise(accepted(program.graph, flat, in_tree))
    return flat, graph


@functools.lru_cache(maxsize=32)
def _measured(
    graph: Graph, spans: tuple[tuple[str, str], ...], axis: int, angle: bool
) -> Callable[..., Any]:
    """A compiled function of leaves and inputs that measures spans of units."""
    points = _points(graph)
    _check_seen([key for span in spans for key in span], points)
    whole, watch = inlined(graph), _Watch(points.values())

    @jax.jit
    def run(values: Sequence[Any], flat: Sequence[Any]) -> Any:
        seen: dict[Point, tuple[Any, Any]] = {}
        watch.run(whole.jaxpr, [*values, *flat], (), seen)
        found = [
            _turned(seen[points[a]][0], seen[points[b]][1], axis, angle)
            for a, b in spans
        ]
        return jnp.stack(found) if found else jnp.zeros(0)

    return run


def _check_seen(keys: Sequence[str], points: Container[str]) -> None:
    hidden = [key for key in keys if key not in points]
    if hidden:
        raise CalibrationError(
            f"{hidden[0]}: expected a layer that runs once, to see what it is given, "
            "got a step of a loop inside another, or of weights several loops use. "
            "Choose importance='magnitude', a loss, or give paths."
        )


def _points(graph: Graph) -> dict[str, Point]:
    """Where to look at what each block and step is given and gives."""
    found: dict[str, Point] = {}
    for block in blocks(graph):
        if not block.is_looped:  # the sum that has the shortcut itself, and which it is
            outer = block.outer[-1] if block.outer else (block.place, block.skip)
            found[block.key] = (*outer[0], -1 - outer[1]), None
    for step in steps(graph):
        if step.place is not None:
            found[step.key] = step.place, step.number
    return found


def _turned(x: Any, y: Any, axis: int, angle: bool) -> Any:
    """How far one value is turned from another, averaged over all but the features."""
    if x.shape != y.shape:
        raise CalibrationError(
            f"prune.layers: expected layers that keep the shape, got {x.shape} and "
            f"{y.shape}. Use unit='branch', or importance='magnitude'."
        )
    x, y = x.astype(jnp.float32), y.astype(jnp.float32)
    norms = jnp.linalg.norm(x, axis=axis) * jnp.linalg.norm(y, axis=axis)
    same = jnp.all(x == y, axis=axis)
    cosine = (x * y).sum(axis) / jnp.maximum(norms, 1e-30)
    cosine = jnp.clip(jnp.where(same, 1.0, cosine), -1.0, 1.0)
    return jnp.mean(jnp.arccos(cosine) / np.pi if angle else 1.0 - cosine)


class _Watch:
    """Evaluates a graph and notes what some sums and steps are given and give."""

    def __init__(self, points: Iterable[Point]) -> None:
        wanted = list(points)
        self._sums = {place[:-1]: -1 - place[-1] for place, i in wanted if i is None}
        self._loops = {place for place, i in wanted if i is not None}

    def run(
        self,
        jaxpr: jaxprs.Jaxpr,
        given: Sequence[Any],
        before: Place,
        seen: dict[Point, tuple[Any, Any]],
    ) -> list[Any]:
        """Evaluates a jaxpr that stands behind a place, checkpoints opened."""
        env = dict(zip(jaxpr.jaxpr.constvars, jaxpr.consts, strict=True))
        env |= dict(zip(jaxpr.jaxpr.invars, given, strict=True))
        for number, equation in enumerate(jaxprs.equations(jaxpr)):
            place = (*before, number)
            operands = [read(env, var) for var in equation.invars]
            if equation.primitive.name == "remat2":
                (body,) = jaxprs.bodies(equation)
                results = self.run(body.jaxpr, operands, (*place, 0), seen)
            elif place in self._loops:
                results = _watched_loop(equation, operands, place, seen)
            else:
                results = jaxprs.bind(equation, operands)
            if place in self._sums:
                skip = self._sums[place]
                seen[(*place, -1 - skip), None] = operands[skip], results[0]
            env.update(zip(equation.outvars, results, strict=True))
        return [read(env, var) for var in jaxpr.jaxpr.outvars]


def _watched_loop(
    equation: jaxprs.Equation,
    operands: Sequence[Any],
    place: Place,
    seen: dict[Point, tuple[Any, Any]],
) -> list[Any]:
    """Runs a loop that also gives out what it carries, step by step."""
    (body,) = jaxprs.bodies(equation)
    constants, carry = jaxprs.scan_counts(equation)
    consts, first = operands[:constants], list(operands[constants:][:carry])
    floats = [i for i in range(carry) if jnp.issubdtype(first[i].dtype, jnp.floating)]
    if not floats:
        raise CalibrationError(
            f"prune.layers: expected a loop that carries activations "
            f"({jaxprs.source(equation)}), got none. Use importance='magnitude'."
        )
    main = max(floats, key=lambda i: first[i].size)

    def turn(carried: list[Any], sliced: list[Any]) -> Any:
        values = jax.core.eval_jaxpr(
            body.jaxpr.jaxpr, body.jaxpr.consts, *consts, *carried, *sliced
        )
        return list(values[:carry]), (list(values[carry:]), carried[main])

    last, (stacked, passed) = jax.lax.scan(
        turn,
        first,
        list(operands[constants + carry :]),
        length=equation.params["length"],
        reverse=equation.params["reverse"],
    )
    count, by = len(passed), -1 if equation.params["reverse"] else 1
    for number in range(count):
        after = number + by
        given = passed[after] if 0 <= after < count else last[main]
        seen[place, number] = passed[number], given
    return [*last, *stacked]
