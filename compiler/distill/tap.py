"""Values inside a program, by path."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax

from compiler.distill.opened import opened
from compiler.distill.places import Place, find
from compiler.distill.tapped import evaluate
from compiler.errors import DistillError
from compiler.extents import accepted, as_arrays
from compiler.graph import Graph
from compiler.program import Program


def tap(program: Program, paths: str | Sequence[str]) -> Tap:
    """A function that also returns values inside a program, by path.

    The value of a path is the last one computed there that something outside of it
    reads (the last floating one, where there is one); of a path that runs several
    times that of the last. Where a scope has this name, what was traced in it counts;
    else what belongs to params of this path, and what follows from that alone (an
    activation after its layer). `path:primitive` is the last result of that primitive
    at the path or inside of it, such as `encoder/attention:dot_general`; `softmax`
    counts as one. The empty path is the whole program.

    What is inside a `scan` is stacked over its steps; a `while` gives the value of its
    last turn; what stands in a branch that was not taken is zero. What belongs to a
    gradient inside the program is not looked at.

    Args:
        program: any; the paths are those of [`summary`][].
        paths: globs of operation paths.

    Returns:
        A pure function of (variables, *inputs) that returns the program's outputs and
        a dict of values by path. It can be differentiated (derivative rules hold),
        jitted and mapped, and takes inputs of other extents as the program does.

    Raises:
        UnknownPathError: if a path or glob names nothing, with the nearest there is.
        TapError: if a value cannot be handed out (it is one device's, in a
            `shard_map`).

    >>> import jax.numpy as jnp, compiler as mc
    >>> def net(v, x):
    ...     with jax.named_scope("hidden"):
    ...         x = jnp.tanh(x @ v["hidden"])
    ...     return x @ v["head"]
    >>> weights = {"hidden": jnp.eye(2), "head": jnp.eye(2)}
    >>> program = mc.trace(net, weights, jnp.ones((1, 2)))
    >>> outputs, found = tap(program, "hidden")(program.variables, jnp.zeros((3, 2)))
    >>> {path: value.shape for path, value in found.items()}
    {'hidden': (3, 2)}
    """
    return Tap(program, (paths,) if isinstance(paths, str) else tuple(paths))


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Tap:
    """What [`tap`][] returns.

    Attributes:
        program: the program.
        globs: of the paths.
    """

    program: Program
    globs: tuple[str, ...]

    def __post_init__(self) -> None:
        if not isinstance(self.program, Program):
            raise DistillError(
                f"tap: expected a program, got {type(self.program).__name__}. Trace it "
                "first: mc.trace(function, variables, *inputs)."
            )
        object.__setattr__(self, "_known", {})
        self._places(self.program.graph)

    @functools.cached_property
    def paths(self) -> tuple[str, ...]:
        """What the globs name in the program."""
        return tuple(self._places(self.program.graph)[1])

    def __call__(self, variables: Any, *inputs: Any) -> tuple[Any, dict[str, Any]]:
        """The program's outputs, and the values by path."""
        own = self.program
        flat, in_tree = jax.tree.flatten(as_arrays(own.graph, inputs))
        graph = own.specialise(accepted(own.graph, flat, in_tree))
        wide, places = self._places(graph)
        leaves = graph.unpack(variables)
        outputs, found = evaluate(wide.jaxpr, [*leaves, *flat], places)
        named = {path: found[path] for path in places}
        return jax.tree.unflatten(graph.out_tree, outputs), named

    def _places(self, graph: Graph) -> tuple[Graph, dict[str, Place]]:
        """The graph opened, and where in it the values are."""
        known: dict[int, Any] = self.__dict__["_known"]
        if id(graph) not in known:  # the program keeps its graphs
            wide = opened(graph)
            known[id(graph)] = wide, find(wide, self.globs)
        return known[id(graph)]

    def __repr__(self) -> str:
        """What is tapped."""
        return f"Tap({', '.join(self.paths)})"
