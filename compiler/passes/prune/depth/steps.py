"""The steps of loops over stacked weights: each is a layer that can go."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from weakref import WeakKeyDictionary

import numpy as np

from compiler import jaxprs
from compiler.graph import Graph
from compiler.passes.prune.depth.flow import Place
from compiler.passes.prune.depth.inline import inlined
from compiler.passes.prune.structure import Group, structure
from compiler.passes.prune.structure.frame import Frame
from compiler.passes.prune.structure.frame import Place as Site
from compiler.paths import matches, owner


@dataclasses.dataclass(frozen=True, eq=False)
class Step:
    """One turn of a loop over stacked weights.

    Attributes:
        key: what the weights have in common, which turn it is, and of how many.
        group: the name of the group it is a unit of.
        number: which of the weights it takes, from 0.
        leaves: paths of the stacked leaves.
        parameters: how many numbers its part of them holds.
        source: the line of user code of the loop.
        place: of the loop among the equations of `inlined(graph)`; None if it stands in
            another loop, or there are several over these weights.
        slots: for each leaf its number, the axis and the indices that are its part.
    """

    key: str
    group: str
    number: int
    leaves: tuple[str, ...]
    parameters: int
    source: str
    place: Place | None
    slots: tuple[tuple[int, int, np.ndarray], ...]

    def matches(self, glob: str) -> bool:
        """Whether a glob names it."""
        return matches(glob, self.key)


def steps(graph: Graph) -> tuple[Step, ...]:
    """The steps of every loop over weights, in the order they run.

    >>> import jax, jax.numpy as jnp, compiler as mc
    >>> def stack(w, x):
    ...     return jax.lax.scan(lambda x, w: (x + jnp.tanh(x @ w), None), x, w["h"])[0]
    >>> program = mc.trace(stack, {"h": jnp.ones((3, 2, 2))}, jnp.ones((1, 2)))
    >>> [(step.key, step.parameters) for step in steps(program.graph)]
    [('h@0/3', 4), ('h@1/3', 4), ('h@2/3', 4)]
    """
    if graph not in _FOUND:
        _FOUND[graph] = tuple(_steps(graph))
    return _FOUND[graph]


_FOUND: WeakKeyDictionary[Graph, tuple[Step, ...]] = WeakKeyDictionary()
"""What was found before: a pass asks several times about one graph."""


def _steps(graph: Graph) -> Iterator[Step]:
    names = (equation.primitive.name for equation, _ in jaxprs.nested(graph.jaxpr))
    if "scan" not in names:
        return
    whole = inlined(graph)
    found = structure(whole)
    loops = list(_loops(found.frame, (), True))
    resolve = found.analysis.labels.atoms.resolve
    for group in found.groups:
        own = [
            (place, site)
            for place, site in loops
            if np.isin(resolve(site.note), group.atoms).any()
        ]
        if group.kind == "layers" and own:
            yield from _of_group(graph, group, own)


def _of_group(
    graph: Graph, group: Group, loops: list[tuple[Place | None, Site]]
) -> Iterator[Step]:
    paths = [graph.leaves[slot.leaf].path for slot in group.slots]
    name = _common([_names(graph, slot.leaf) for slot in group.slots])
    place = loops[0][0] if len(loops) == 1 else None
    source = jaxprs.source(loops[0][1].equation)
    backward = loops[0][1].params["reverse"]
    for number in range(group.size)[:: -1 if backward else 1]:
        slots = tuple(
            (slot.leaf, slot.axis, slot.index[slot.unit == number])
            for slot in group.slots
        )
        size = sum(
            int(np.prod(graph.leaves[leaf].spec.shape))
            * len(index)
            // graph.leaves[leaf].spec.shape[axis]
            for leaf, axis, index in slots
        )
        key = f"{name}@{number}/{group.size}"
        yield Step(key, group.name, number, tuple(paths), size, source, place, slots)


def _names(graph: Graph, leaf: int) -> list[str]:
    path = owner(graph.leaves[leaf]) or graph.leaves[leaf].path
    return path.split("/")


def _common(paths: list[list[str]]) -> str:
    shared = 0
    while all(len(p) > shared and p[shared] == paths[0][shared] for p in paths):
        shared += 1
    return "/".join(paths[0][:shared]) or "layers"


def _loops(
    frame: Frame, before: Place, plain: bool
) -> Iterator[tuple[Place | None, Site]]:
    """Every loop over weights, with its place if it runs once."""
    for number, site in enumerate(frame.places):
        place = (*before, number)
        name = site.equation.primitive.name
        if name == "scan" and site.note is not None:
            yield (place if plain else None), site
        for index, inner in site.frames.items():
            if isinstance(index, int):
                once = plain and name == "remat2"
                yield from _loops(inner, (*place, index), once)
