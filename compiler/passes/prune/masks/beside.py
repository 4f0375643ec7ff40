"""A graph with masks beside its weights, so that training leaves their zeros alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from compiler import jaxprs
from compiler.graph import Graph, Packing, drop_dead
from compiler.passes.prune.masks.plan import mask_path


def names(graph: Graph) -> dict[str, str]:
    """What each leaf is called once params are told from state.

    A program that tells them apart keeps its names; else what is floating are params.

    >>> import compiler as mc
    >>> program = mc.trace(lambda w, x: x @ w["a"], {"a": jnp.eye(2)}, jnp.ones((1, 2)))
    >>> names(program.graph)
    {'a': 'params/a'}
    """
    if any(path.startswith(("params/", "state/")) for path in graph.paths):
        return {path: path for path in graph.paths}
    found = {}
    for leaf in graph.leaves:
        trained = jnp.issubdtype(leaf.spec.dtype, np.inexact)
        found[leaf.path] = f"{'params' if trained else 'state'}/{leaf.path}"
    return found


def masked(graph: Graph, weights: Sequence[str]) -> Graph:
    """The graph with weights multiplied by masks, leaves that follow all others.

    Args:
        graph: what is trained.
        weights: paths of those that get a mask, as `names` calls them.
    """
    renamed, count = names(graph), len(graph.leaves)
    paths = [renamed[leaf.path] for leaf in graph.leaves]
    specs = {renamed[leaf.path]: leaf.spec for leaf in graph.leaves}
    bits = [jax.ShapeDtypeStruct(specs[path].shape, np.bool_) for path in weights]

    def function(*arguments: Any) -> list[Any]:
        given = dict(zip(paths, arguments, strict=False))
        inputs = arguments[count + len(weights) :]
        for path, mask in zip(weights, arguments[count:], strict=False):
            with jax.named_scope(path):
                given[path] = zeroed(given[path], mask)
        return graph.evaluate([given[path] for path in paths], inputs)

    jaxpr = drop_dead(jaxprs.make(function, [*specs.values(), *bits, *graph.inputs]))
    new = graph.with_leaves([*paths, *map(mask_path, weights)], jaxpr)
    if paths == graph.paths:
        return new
    carried = frozenset(renamed[path] for path in graph.carried)
    return dataclasses.replace(new, packing=Packing(None, True), carried=carried)


def zeroed(value: Any, mask: Any) -> Any:
    """A value with zeros where the mask says so, whatever was there."""
    return jnp.where(mask, value, jnp.zeros((), value.dtype))
