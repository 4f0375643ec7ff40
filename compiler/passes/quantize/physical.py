"""From the graph a user wrote to the one that is stored and run, and back.

Quantization happens on the *logical* graph, whose leaves are floating weights. The
*physical* graph takes what is stored instead. It remembers the logical one for as long
as it is not rewritten further, so that what concerns weights (another scheme for the
rest, adapters, training) can start from there.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from compiler import jaxprs
from compiler.graph import Graph, Leaf, drop_dead, free_path
from compiler.passes.factorize.symbolic import evaluate
from compiler.passes.quantize.arithmetic.accumulator import Known
from compiler.passes.quantize.arithmetic.activations import Activations
from compiler.passes.quantize.arithmetic.operand import Arrangement
from compiler.passes.quantize.arithmetic.quantized import Quantized, Uses
from compiler.passes.quantize.storage.encoding import Encoding
from compiler.sites import keyed

StaticScales = Mapping[str, tuple[Any, ...]]
"""By the key of a product: the scale of its activation, and maybe its zero point."""


@dataclasses.dataclass(frozen=True, eq=False)
class Stored:
    """How a graph's weights are stored and used.

    Attributes:
        encodings: by the path of a leaf.
        activations: by the key of a product.
        scales: static ones, by the key of a product; those of others are measured
            when the program runs.
    """

    encodings: Mapping[str, Encoding]
    activations: Mapping[str, Activations] = dataclasses.field(default_factory=dict)
    scales: StaticScales = dataclasses.field(default_factory=dict)

    def names(self, graph: Graph) -> dict[str, dict[str, str]]:
        """For each leaf the new paths of what is stored, by what it is."""
        taken = {path for path in graph.paths if "" in self.kept(path)}
        found: dict[str, dict[str, str]] = {}
        for path in graph.paths:
            found[path] = {}
            for name in self.kept(path):
                new = free_path(f"{path}/{name}", taken) if name else path
                taken.add(new)
                found[path][name] = new
        return found

    def kept(self, path: str) -> list[str]:
        """What there is of a leaf, by name; by none if it stays what it is."""
        if path not in self.encodings:
            return [""]
        return [*self.encodings[path].names, *self.inputs(path)]

    def renamed(self, names: Mapping[str, str]) -> Stored:
        """The same for a graph whose leaves are called otherwise; those without a
        name are left out."""

        def new(found: Mapping[str, Any]) -> dict[str, Any]:
            parts = [(key.partition("#"), value) for key, value in found.items()]
            return {
                names[path] + mark + number: value
                for (path, mark, number), value in parts
                if path in names
            }

        return dataclasses.replace(
            self,
            encodings=new(self.encodings),
            activations=new(self.activations),
            scales=new(self.scales),
        )

    def specs(self, leaf: Leaf) -> dict[str, jax.ShapeDtypeStruct]:
        """What is stored for a leaf."""
        if leaf.path not in self.encodings:
            return {"": leaf.spec}
        inputs = {
            name: jax.ShapeDtypeStruct(jnp.shape(value), jnp.float32)
            for name, value in self.inputs(leaf.path).items()
        }
        return self.encodings[leaf.path].specs | inputs

    def values(self, path: str, leaf: Any) -> dict[str, Any]:
        """What is stored of the value of a leaf."""
        if path not in self.encodings:
            return {"": leaf}
        inputs = self.inputs(path).items()
        encoded = self.encodings[path].encode(leaf)
        return encoded | {k: jnp.asarray(v, jnp.float32) for k, v in inputs}

    def quantized(self, leaf: Leaf, arrays: Mapping[str, Any], uses: Uses) -> Quantized:
        """The value that what is stored stands for."""
        path, encoding = leaf.path, self.encodings[leaf.path]
        scales: dict[str, tuple[Any, ...]] = {}
        for key, name in self._named(path):
            scales[key] = (*scales.get(key, ()), arrays[name])
        return Quantized(
            path,
            encoding,
            {name: arrays[name] for name in encoding.names},
            Arrangement.of(encoding.shape),
            jnp.dtype(encoding.dtype),
            uses,
            scales,
        )

    def joined(self, other: Stored) -> Stored:
        """The two together, which are about different leaves."""
        special = other if isinstance(other, type(self)) else self
        return dataclasses.replace(
            special,
            encodings={**self.encodings, **other.encodings},
            activations={**self.activations, **other.activations},
            scales={**self.scales, **other.scales},
        )

    def _named(self, path: str) -> list[tuple[str, str]]:
        """The keys and names of static scales and zero points of a leaf's products."""
        found = []
        for key, values in self.scales.items():
            owner, _, number = key.partition("#")
            if owner == path:
                for name in ("input_scale", "input_zero")[: len(values)]:
                    found.append((key, f"{name}_{number}" if number else name))
        return found

    def inputs(self, path: str) -> dict[str, Any]:
        """Static scales and zero points of what a leaf meets, by name."""
        counts: dict[str, int] = {}
        found = {}
        for key, name in self._named(path):
            found[name] = self.scales[key][counts.get(key, 0)]
            counts[key] = counts.get(key, 0) + 1
        return found


@dataclasses.dataclass(frozen=True, eq=False)
class Encoded:
    """What a physical graph was made from.

    Attributes:
        jaxpr: of the physical graph; if the graph has another, it has been rewritten.
        logical: the graph of floating weights.
        stored: how they are stored.
    """

    jaxpr: jaxprs.Jaxpr
    logical: Graph
    stored: Stored


def encoded(graph: Graph) -> Encoded | None:
    """What a graph was made from, if it is as it was made."""
    found = graph.encoded
    return found if found is not None and found.jaxpr is graph.jaxpr else None


def origin(graph: Graph) -> tuple[Graph, Stored]:
    """The graph of floating weights, and what is stored of it already."""
    found = encoded(graph)
    return (graph, Stored({})) if found is None else (found.logical, found.stored)


def parts(graph: Graph) -> set[str]:
    """The paths of leaves that are parts of a weight stored in few bits."""
    paths = set(graph.paths)

    def is_part(path: str) -> bool:
        parent = path.rsplit("/", 1)[0]
        return f"{parent}/values" in paths and f"{parent}/scale" in paths

    return set(filter(is_part, paths))


def physical(logical: Graph, stored: Stored) -> tuple[Graph, Uses]:
    """The graph that takes what is stored, and what its products were given.

    A weight that would have to be decoded again and again in a loop is decoded before.
    """
    graph = dataclasses.replace(logical, jaxpr=jaxprs.distinct(logical.jaxpr))
    uses = _uses(graph, stored)
    jaxpr = _emitted(graph, stored, uses, frozenset())
    if uses.repeated:
        once = frozenset(uses.repeated)
        jaxpr = _emitted(graph, stored, _uses(graph, stored), once)
    names = stored.names(logical)
    paths = [name for leaf in logical.leaves for name in names[leaf.path].values()]
    made = logical.with_leaves(paths, jaxpr)
    return dataclasses.replace(made, encoded=Encoded(jaxpr, logical, stored)), uses


def _uses(graph: Graph, stored: Stored) -> Uses:
    keys: dict[tuple[str, int], str] = {}
    for key, site in keyed(graph).items():
        keys.setdefault((graph.paths[site.leaf], id(site.equation)), key)
    return Uses(keys, stored.activations)


def _emitted(
    graph: Graph, stored: Stored, uses: Uses, decoded: frozenset[str]
) -> jaxprs.Jaxpr:
    specs = [stored.specs(leaf) for leaf in graph.leaves]

    def value(leaf: Leaf, arrays: Mapping[str, Any]) -> Any:
        if leaf.path not in stored.encodings:
            known = stored.scales and leaf.path not in graph.carried
            return Known(arrays[""]) if known else arrays[""]
        with jax.named_scope(leaf.path):
            made = stored.quantized(leaf, arrays, uses)
            return made.dense() if leaf.path in decoded else made

    def function(*arguments: Any) -> list[Any]:
        given = iter(arguments)
        leaves = [
            value(leaf, {name: next(given) for name in spec})
            for leaf, spec in zip(graph.leaves, specs, strict=True)
        ]
        return evaluate(graph.jaxpr, [*leaves, *given])

    flat = [spec for leaf in specs for spec in leaf.values()]
    return drop_dead(jaxprs.make(function, [*flat, *graph.inputs]))


def prepare(
    graph: Graph, logical: Graph, stored: Stored, leaves: Sequence[Any]
) -> list[Any]:
    """What is stored, from the leaves of a graph: logical, or stored already."""
    given = dict(zip(graph.paths, leaves, strict=True))
    names = stored.names(logical)
    found: list[Any] = []
    for path in logical.paths:
        own = names[path].values()
        if given.keys() >= set(own):
            found += [given[name] for name in own]
        else:
            found += stored.values(path, given[path]).values()
    return found
