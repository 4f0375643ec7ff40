"""How long a weight's products take under each scheme, on this machine."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from compiler import jaxprs
from compiler.graph import Graph
from compiler.passes.quantize.physical import origin
from compiler.passes.quantize.storage.scheme import Scheme
from compiler.passes.quantize.weights import QuantizeWeights
from compiler.sites import WeightSite, sites_by_leaf
from mapping.core import register

if TYPE_CHECKING:
    from compiler.program import Program

Times = dict[str, dict[Scheme | None, float]]
"""By weight, seconds of its products in one call: under each scheme, and as it is."""


@register("value", "quantize_latency")
@dataclasses.dataclass(frozen=True)
class Latency:
    """A budget of time for one call of a program on this machine.

    Attributes:
        seconds: for a call.
        share: of the time it takes now, instead of seconds.

    Raises:
        ValueError: if not exactly one is given, and above zero.
    """

    seconds: float | None = None
    share: float | None = None

    def __post_init__(self) -> None:
        given = [value for value in (self.seconds, self.share) if value is not None]
        if len(given) != 1 or not given[0] > 0:
            raise ValueError(
                "quantize.latency: expected seconds or a share above zero, and not "
                f"both, got seconds={self.seconds}, share={self.share}."
            )

    def limit(self, now: float) -> float:
        """In seconds, for a program that takes so many now."""
        return self.seconds if self.seconds is not None else (self.share or 0.0) * now


def latency(seconds: float | None = None, *, share: float | None = None) -> Latency:
    """A budget of time for [`auto`][compiler.passes.quantize.mixed.auto.auto].

    >>> latency(share=0.5).limit(0.004), latency(0.001).limit(0.004)
    (0.002, 0.001)
    """
    return Latency(seconds, share)


def product_times(
    graph: Graph, schemes: Mapping[str, Sequence[Scheme]], step: QuantizeWeights
) -> Times:
    """Times the products of each weight alone, under each scheme and as they are.

    Each product is a small program of its own shapes; the schemes of one take turns.
    What it would share with its neighbours in the whole program is not seen.

    Args:
        graph: whose products.
        schemes: by the path of a weight.
        step: the pass that rewrites a product; its scheme is replaced.
    """
    graph, _ = origin(graph)
    uses = sites_by_leaf(graph)
    known: dict[Any, dict[Scheme | None, float]] = {}
    found: Times = {}
    for path, own in schemes.items():
        found[path] = dict.fromkeys([None, *own], 0.0)
        for site in uses.get(graph.paths.index(path), []):
            key = _signature(site), tuple(own)
            if key not in known:
                known[key] = _times(site, own, step)
            for scheme in found[path]:
                found[path][scheme] += site.times * known[key][scheme]
    return found


def seconds_of(program: Program, inputs: Sequence[Any]) -> float:
    """What one call of a program takes, a median; on zeros if there are no inputs."""
    from compiler.executable import latency as measured

    if not inputs:
        zeros = [jnp.zeros(spec.shape, spec.dtype) for spec in program.graph.inputs]
        inputs = jax.tree.unflatten(program.graph.in_tree, zeros)
    return measured({"": _call(program, inputs)}, rounds=5, seconds=0.02)[""]


def _times(
    site: WeightSite, schemes: Sequence[Scheme], step: QuantizeWeights
) -> dict[Scheme | None, float]:
    """Seconds of one product, alone."""
    from compiler.executable import latency as measured
    from compiler.trace import trace

    specs = [jaxprs.spec(var) for var in site.equation.invars]
    given = [_array(site, place, spec) for place, spec in enumerate(specs)]

    def product(weight: Any, *others: Any) -> Any:
        operands = list(others)
        operands.insert(site.operand, weight)
        return jaxprs.bind(site.equation, operands)

    weight = given.pop(site.operand)
    alone = trace(product, weight, *given)
    stored = [_stored(alone, scheme, step) for scheme in schemes]
    runs = [_call(program, given) for program in (alone, *stored)]
    found = measured(
        dict(zip(map(str, range(len(runs))), runs, strict=True)), rounds=5, seconds=0.01
    )
    return dict(zip([None, *schemes], found.values(), strict=True))


def _stored(alone: Program, scheme: Scheme, step: QuantizeWeights) -> Program:
    plain = dataclasses.replace(step, scheme=scheme, rules=(), min_coverage=0.0)
    return alone >> plain


def _call(program: Program, given: Sequence[Any]) -> functools.partial[Any]:
    return functools.partial(jax.jit(program.function), program.variables, *given)


def _array(site: WeightSite, place: int, spec: jax.ShapeDtypeStruct) -> Any:
    """Something like an operand: floats of order one, indices in range."""
    if jnp.issubdtype(spec.dtype, jnp.integer):
        ragged = site.kind == "ragged" and len(spec.shape) > 0
        tokens = site.equation.invars[0].aval.shape[0]
        return jnp.full(
            spec.shape, tokens // spec.shape[-1] if ragged else 0, spec.dtype
        )
    return jax.random.normal(jax.random.key(place), spec.shape).astype(spec.dtype)


def _signature(site: WeightSite) -> tuple[Any, ...]:
    avals = tuple(str(var.aval) for var in site.equation.invars)
    return site.equation.primitive.name, str(site.equation.params), avals, site.operand
