"""What a function returns of its variables, to be given to it again.

A training step returns the params and moments it was given, moved; a model in training
its statistics. Such leaves mean something to the caller, so no pass may replace them by
what is computed from them.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping as Dict
from typing import TYPE_CHECKING, Any

import jax

from mapping.core import path_string

if TYPE_CHECKING:
    from compiler.graph import Graph


def returned(variables: Dict[str, Any], outputs: Dict[str, Any]) -> frozenset[str]:
    """The paths of the leaves that are found again among the outputs.

    A leaf is found again if an output has its shape, its dtype and its last name; where
    the last name is a number, its whole path. Containers do not matter: a state may be
    a tuple that comes back as a part of a larger one.

    Args:
        variables: by path, things with `shape` and `dtype`.
        outputs: the same.

    >>> import jax
    >>> w, n = jax.ShapeDtypeStruct((2,), "float32"), jax.ShapeDtypeStruct((), "int32")
    >>> sorted(returned({"a/w": w, "1": n}, {"0/w": w, "1": n, "2/w": n}))
    ['1', 'a/w']
    >>> sorted(returned({"layers/0": w}, {"0": w}))
    []
    """
    there = {_signature(path, output) for path, output in outputs.items()}
    return frozenset(
        path for path, leaf in variables.items() if _signature(path, leaf) in there
    )


def counterparts(graph: Graph) -> dict[int, int]:
    """For each output that is a new value of a leaf, the leaf's position.

    Where several would do, the one whose path has most names in common, from the end.
    """
    if not graph.carried:
        return {}
    free = {i for i, leaf in enumerate(graph.leaves) if leaf.path in graph.carried}
    numbered = jax.tree.unflatten(graph.out_tree, range(len(graph.outputs)))
    found = {}
    for names, place in jax.tree_util.tree_leaves_with_path(numbered):
        path, spec = path_string(names), graph.outputs[place]
        own = [
            i
            for i in sorted(free)
            if _signature(graph.leaves[i].path, graph.leaves[i].spec)
            == _signature(path, spec)
        ]
        if own:
            best = max(own, key=lambda i: _shared(graph.leaves[i].path, path))
            found[place] = best
            free.discard(best)
    return found


def _shared(one: str, other: str) -> int:
    """How many names two paths end in alike."""
    pairs = zip(reversed(one.split("/")), reversed(other.split("/")), strict=False)
    return len(list(itertools.takewhile(lambda pair: pair[0] == pair[1], pairs)))


def _signature(path: str, leaf: Any) -> tuple[str, Any, str]:
    path = path or "variables"  # of a tree that is one array
    names = [name for name in path.split("/") if name != "value"]  # as nnx has them
    named = bool(names) and not names[-1].isdigit()
    return names[-1] if named else path, leaf.shape, str(leaf.dtype)
