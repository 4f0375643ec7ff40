"""Measuring a program from inside: statistics as further outputs of one function.

The graph is evaluated as it is, and where a product meets a weight its other operand is
measured. What is measured inside a loop comes out of it stacked, if the loop hands out
slices of the weight, else merged as the loop goes; a branch that is not taken measures
nothing. So the function stays pure, and jits and maps like any other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax

from compiler import jaxprs
from compiler.graph import Graph
from compiler.passes.factorize.symbolic import where_going
from compiler.passes.quantize.calibrate.measures import (
    PLAIN,
    Measurements,
    across,
    measure,
    merge,
    nothing,
)
from compiler.passes.quantize.calibrate.watched import Watched, watched

Statistics = dict[str, Measurements]
"""Measurements by the key of the product."""


def observe(
    graph: Graph, measures: Sequence[str] = PLAIN
) -> Callable[[Sequence[Any], Sequence[Any]], tuple[list[Any], Statistics]]:
    """A function of leaves and flat inputs that also tells what products are given.

    It returns the graph's flat outputs, and by the key of each product
    (`sites.keyed`) its measurements. Those of a weight that a scan goes along have
    the scan's length in front. Look-ups are given no activation and are not in it, nor
    are weights that are no floating leaves.

    Args:
        graph: of a program.
        measures: names in `measures.MEASURES`.

    >>> import jax.numpy as jnp, compiler as mc
    >>> def stack(w, x):
    ...     return jax.lax.scan(lambda h, w: (jnp.tanh(h @ w), None), x, w)[0]
    >>> program = mc.trace(stack, jnp.ones((3, 2, 2)), jnp.ones((5, 2)))
    >>> observed = jax.jit(observe(program.graph, ("high", "absmax")))
    >>> outputs, found = observed(program.values, [jnp.full((5, 2), 0.25)])
    >>> found["variables"]["absmax"].shape, float(found["variables"]["high"][0])
    ((3, 2), 0.25)
    """
    return _Observer(graph, tuple(measures)).run


class _Observer:
    """Evaluates a graph and gathers what its products were given."""

    def __init__(self, graph: Graph, measures: tuple[str, ...]) -> None:
        self.jaxpr, found = watched(graph)
        self.measures = measures
        self.here: dict[int, list[Watched]] = {}
        for one in found:
            self.here.setdefault(id(one.site.equation), []).append(one)
        self.inside: dict[int, list[Watched]] = {}
        self.lengths: dict[str, list[int]] = {}
        self._enter(self.jaxpr, [])

    def _enter(self, jaxpr: jaxprs.Jaxpr, lengths: list[int]) -> list[Watched]:
        """Notes which products are inside of which equation, and in which scans."""
        found: list[Watched] = []
        for equation in jaxprs.equations(jaxpr):
            within = self.here.get(id(equation), [])
            self.lengths |= {one.key: lengths for one in within}
            inner = lengths
            if equation.primitive.name == "scan":
                inner = [*lengths, equation.params["length"]]
            for body in jaxprs.bodies(equation):
                within = [*within, *self._enter(body.jaxpr, inner)]
            self.inside[id(equation)] = within
            found += within
        return found

    def run(
        self, leaves: Sequence[Any], inputs: Sequence[Any]
    ) -> tuple[list[Any], Statistics]:
        """The outputs, and the statistics of every product."""
        return self.evaluate(self.jaxpr, [*leaves, *inputs], 0)

    def evaluate(
        self, jaxpr: jaxprs.Jaxpr, values: Sequence[Any], depth: int
    ) -> tuple[list[Any], Statistics]:
        """A body's outputs and what is measured in it, so many scans deep."""
        env = dict(zip(jaxpr.jaxpr.constvars, jaxpr.consts, strict=True))
        env |= zip(jaxpr.jaxpr.invars, values, strict=True)
        found: Statistics = {}

        def look(var: Any) -> Any:
            return var.val if jaxprs.is_literal(var) else env[var]

        for equation in jaxprs.equations(jaxpr):
            operands = [look(var) for var in equation.invars]
            with jaxprs.provenance(equation):
                results, new = self._step(equation, operands, depth)
            found |= new
            env.update(zip(equation.outvars, results, strict=True))
        return [look(var) for var in jaxpr.jaxpr.outvars], found

    def empty(self, products: Iterable[Watched], depth: int) -> Any:
        """What is measured of products that do not run, so many scans deep."""
        return {one.key: nothing(self._specs(one, depth)) for one in products}

    def _specs(self, one: Watched, depth: int) -> Measurements:
        equation = one.site.equation
        x = jaxprs.spec(equation.invars[1 - one.site.operand])
        y = jaxprs.spec(equation.outvars[0])
        made = jax.eval_shape(lambda x, y: measure(self.measures, x, y, one.form), x, y)
        loops = zip(self.lengths[one.key], one.trail.loops, strict=True)
        stack = [n for n, sliced in [*loops][depth:] if sliced]
        return {
            name: jax.ShapeDtypeStruct((*stack, *spec.shape), spec.dtype)
            for name, spec in made.items()
        }

    def _step(
        self, equation: jaxprs.Equation, operands: Sequence[Any], depth: int
    ) -> tuple[list[Any], Statistics]:
        if not self.inside.get(id(equation)):
            return jaxprs.bind(equation, operands), {}
        control = _CONTROL.get(equation.primitive.name)
        if control is not None:
            return control(self, equation, operands, depth)
        if jaxprs.bodies(equation):  # nothing is differentiated: its body will do
            (body,) = jaxprs.bodies(equation)
            return self.evaluate(body.jaxpr, operands, depth)
        (result,) = jaxprs.bind(equation, operands)
        return [result], {
            one.key: measure(
                self.measures, operands[1 - one.site.operand], result, one.form
            )
            for one in self.here[id(equation)]
        }


def _merged(first: Statistics, second: Statistics) -> Statistics:
    return {key: merge(found, second[key]) for key, found in first.items()}


def _scan(
    observer: _Observer, equation: jaxprs.Equation, operands: Sequence[Any], depth: int
) -> tuple[list[Any], Statistics]:
    (body,) = jaxprs.bodies(equation)
    consts, carry = jaxprs.scan_counts(equation)
    fixed, xs = operands[:consts], operands[consts + carry :]
    within = observer.inside[id(equation)]
    kept = [one for one in within if not one.trail.loops[depth]]

    def step(carried: Any, slices: Sequence[Any]) -> Any:
        values, total = carried
        given = [*fixed, *values, *slices]
        outputs, found = observer.evaluate(body.jaxpr, given, depth + 1)
        apart = {key: value for key, value in found.items() if key not in total}
        return (outputs[:carry], _merged(total, found)), (outputs[carry:], apart)

    start = list(operands[consts : consts + carry]), observer.empty(kept, depth + 1)
    options = {k: equation.params[k] for k in ("length", "reverse", "unroll")}
    (last, total), (stacked, apart) = jax.lax.scan(step, start, list(xs), **options)
    return [*last, *stacked], total | apart


def _while(
    observer: _Observer, equation: jaxprs.Equation, operands: Sequence[Any], depth: int
) -> tuple[list[Any], Statistics]:
    """The condition is computed where it can be measured: at the end of each turn.

    A mapped loop turns until all are done; those that are done are measured, too.
    """
    test, turn = jaxprs.bodies(equation)
    count = len(equation.outvars)
    within = observer.inside[id(equation)]

    def run(body: jaxprs.Body, values: Sequence[Any]) -> tuple[list[Any], Statistics]:
        fixed = [operands[i] for i in body.operands[: len(body.operands) - count]]
        return observer.evaluate(body.jaxpr, [*fixed, *values], depth)

    def step(carried: Any) -> Any:
        go, before, total = carried
        values, found = run(turn, before)
        values = [where_going(go, *pair) for pair in zip(values, before, strict=True)]
        (go,), more = run(test, values)
        found = observer.empty(within, depth) | found | more
        return go, values, _merged(total, found)

    values = list(operands[len(operands) - count :])
    (go,), found = run(test, values)
    start = go, values, observer.empty(within, depth) | found
    _, last, total = jax.lax.while_loop(lambda carried: carried[0].any(), step, start)
    return last, total


def _cond(
    observer: _Observer, equation: jaxprs.Equation, operands: Sequence[Any], depth: int
) -> tuple[list[Any], Statistics]:
    within = observer.inside[id(equation)]

    def branch(body: jaxprs.Body) -> Callable[..., Any]:
        def run(*values: Any) -> tuple[list[Any], Statistics]:
            outputs, found = observer.evaluate(body.jaxpr, values, depth)
            return outputs, observer.empty(within, depth) | found

        return run

    index, *given = operands
    return jax.lax.switch(index, [*map(branch, jaxprs.bodies(equation))], *given)


def _shard_map(
    observer: _Observer, equation: jaxprs.Equation, operands: Sequence[Any], depth: int
) -> tuple[list[Any], Statistics]:
    """What all devices measure together; what several do alike counts several times."""
    (body,), params = jaxprs.bodies(equation), equation.params
    axes = params["newly_manual_axes"]

    def run(*values: Any) -> tuple[list[Any], Statistics]:
        outputs, found = observer.evaluate(body.jaxpr, values, depth)
        return outputs, {key: across(one, tuple(axes)) for key, one in found.items()}

    specs = list(params["out_specs"]), jax.sharding.PartitionSpec()
    sharded = jax.shard_map(
        run,
        mesh=params["mesh"],
        in_specs=params["in_specs"],
        out_specs=specs,
        axis_names=axes,
        check_vma=False,  # nothing is differentiated
    )
    return sharded(*operands)


_CONTROL: dict[str, Callable[..., tuple[list[Any], Statistics]]] = {
    "scan": _scan,
    "while": _while,
    "cond": _cond,
    "shard_map": _shard_map,
}
