"""What a user asks before pruning: what goes together, and why something does not."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from compiler.errors import UnknownPathError
from compiler.graph import Graph
from compiler.passes.prune.structure import Group, structure
from compiler.passes.prune.structure.why import Reason, Reasons

if TYPE_CHECKING:
    from compiler.program import Program


@dataclasses.dataclass(frozen=True)
class Groups:
    """The groups of a program; prints what goes together, by path.

    Attributes:
        graph: the program's.
        found: the groups.
    """

    graph: Graph
    found: tuple[Group, ...]

    def __iter__(self) -> Iterator[Group]:
        """One group after the other."""
        return iter(self.found)

    def __len__(self) -> int:
        """How many groups there are."""
        return len(self.found)

    def __getitem__(self, name: str | int) -> Group:
        """A group by its name or number."""
        if isinstance(name, int):
            return self.found[name]
        return {group.name: group for group in self.found}[name]

    def __str__(self) -> str:
        """A line for each group, and one for each leaf it takes from."""
        lines = []
        for group in self.found:
            lines.append(f"{group.name}  {group.size} {group.kind}")
            for slot in group.slots:
                leaf = self.graph.leaves[slot.leaf]
                each = len(slot.index) // group.size
                times = f", {each} indices each" if each > 1 else ""
                shape = tuple(leaf.spec.shape)
                lines.append(f"    {leaf.path}  {shape}  axis {slot.axis}{times}")
        return "\n".join(lines)


def groups(program: Program) -> Groups:
    """What of a program can be removed, and what goes with it.

    Units of a group could be exchanged for one another; each disappears from several
    leaves at once. Shapes alone decide: weights may be `jax.ShapeDtypeStruct`s.

    >>> import jax.numpy as jnp, compiler as mc
    >>> def mlp(params, x):
    ...     return jnp.tanh(x @ params["first"]) @ params["second"]
    >>> params = {"first": jnp.ones((3, 8)), "second": jnp.ones((8, 2))}
    >>> print(groups(mc.trace(mlp, params, jnp.ones((1, 3)))))
    first:1  8 channels
        first  (3, 8)  axis 1
        second  (8, 2)  axis 0
    """
    graph = _graph(program)
    return Groups(graph, structure(graph).groups)


def _graph(program: Program) -> Graph:
    graph = getattr(program, "graph", None)
    if not isinstance(graph, Graph):
        raise TypeError(
            f"prune: expected a program, got {type(program).__name__}. Trace it: "
            "compiler.trace(function, variables, *inputs)."
        )
    return graph


@dataclasses.dataclass(frozen=True)
class WhyNot:
    """Why an axis of a leaf stays as it is.

    Attributes:
        path: of the leaf.
        axis: which of its axes.
        reasons: for each cause the indices it fixes; none if each may go.
    """

    path: str
    axis: int
    reasons: tuple[Reason, ...]

    def __str__(self) -> str:
        """A line for each reason."""
        if not self.reasons:
            return f"{self.path}, axis {self.axis}: nothing keeps it"
        lines = [f"    {reason}" for reason in self.reasons]
        return "\n".join([f"{self.path}, axis {self.axis} stays", *lines])


def _nearest(path: str, graph: Graph) -> list[str]:
    return difflib.get_close_matches(path, graph.paths, 5, 0.3) or graph.paths[:8]


def why_not(program: Program, path: str, axis: int) -> WhyNot:
    """Tells why an axis of a leaf cannot be pruned: which equation fixes it, and where.

    Args:
        program: the program.
        path: of the leaf, such as `params/dense/kernel`.
        axis: of the leaf; negative ones count from the end.

    Raises:
        UnknownPathError: if there is no such leaf or axis.

    >>> import jax.numpy as jnp, compiler as mc
    >>> program = mc.trace(lambda w, x: x @ w, jnp.ones((3, 2)), jnp.ones((1, 3)))
    >>> print(why_not(program, "variables", 1))
    variables, axis 1 stays
        2 indices: output 0 has this axis
    """
    graph = _graph(program)
    if path not in graph.paths:
        raise UnknownPathError(
            f"{path}: expected the path of a leaf, got none. The nearest there are: "
            f"{', '.join(_nearest(path, graph))}. See prune.groups(program)."
        )
    leaf = graph.paths.index(path)
    rank = len(graph.leaves[leaf].spec.shape)
    if not -rank <= axis < rank:
        raise UnknownPathError(
            f"{path}: expected an axis below {rank}, got {axis}. Its shape is "
            f"{tuple(graph.leaves[leaf].spec.shape)}."
        )
    reasons = Reasons(structure(graph)).of(leaf, axis % rank)
    return WhyNot(path, axis % rank, tuple(reasons))
