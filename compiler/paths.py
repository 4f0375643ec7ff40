"""Paths of operations: where in the user's model an equation belongs.

linen, haiku and `mapping` write their names into the scopes of what they trace. nnx
writes none and equinox the names of its classes; there an operation belongs to the
parameters that flow into it, and what has no parameters to what came before it.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

from compiler import jaxprs
from compiler.graph import Graph, Leaf

_COLLECTIONS = ("params", "state", "batch_stats", "cache")
"""What a leaf's path begins with, where params and state are told apart."""

_WRAPPED = re.compile(
    r"\b(?:vmap|jvp|transpose|jit|pjit|remat|checkpoint|rematted_computation|shard_map)"
    r"\(([^()]*)\)"
)
"""How JAX marks the names of scopes it has transformed."""

_CLASS = re.compile(r"eqx\.|.*->|mapping\.member-")
"""Scopes that tell what is computed and not where: equinox's layers, einsums, and for
which of the functions traced together."""


class Origin(NamedTuple):
    """Where a value comes from.

    Attributes:
        path: of the operation that made it, or of what its leaf belongs to.
        weight: whether it follows from leaves alone.
        order: how late it was made.
    """

    path: str = ""
    weight: bool = False
    order: int = 0


@dataclasses.dataclass(frozen=True)
class Operation:
    """One equation at one place of the program.

    Attributes:
        equation: the equation.
        path: where it belongs; empty for the whole.
        times: how often one call of the program runs it, as far as that is known.
        bodies: the operations inside it, for each of its bodies.
    """

    equation: jaxprs.Equation
    path: str
    times: int
    bodies: tuple[tuple[Operation, ...], ...] = ()


def operations(graph: Graph) -> tuple[Operation, ...]:
    """The equations of a graph as a tree, each with its path.

    >>> import jax.numpy as jnp, compiler as mc
    >>> def mlp(layers, x):
    ...     for layer in layers:
    ...         x = jnp.tanh(x @ layer["kernel"])
    ...     return x
    >>> layers = [{"kernel": jnp.eye(2)}, {"kernel": jnp.eye(2)}]
    >>> program = mc.trace(mlp, layers, jnp.ones((1, 2)))
    >>> [(o.path, o.equation.primitive.name) for o in operations(program.graph)]
    [('0', 'dot_general'), ('0', 'tanh'), ('1', 'dot_general'), ('1', 'tanh')]
    """
    namer = Namer(graph)
    origins = namer.inputs(graph)
    return _operations(namer, graph.jaxpr, origins, "", 1)[0]


def flatten(found: Sequence[Operation]) -> Iterator[Operation]:
    """Every operation, each followed by those inside it."""
    for operation in found:
        yield operation
        for body in operation.bodies:
            yield from flatten(body)


def matches(glob: str, path: str) -> bool:
    """Whether a glob names a path, or something the path is inside of.

    >>> matches("encoder/*/query", "encoder/block_2/query/dot")
    True
    >>> matches("query", "encoder/block_2/query")
    False
    """
    return fnmatchcase(path, glob) or fnmatchcase(path, f"{glob}/*")


def owner(leaf: Leaf) -> str:
    """The path of what a leaf belongs to: `params/dense/kernel` is `dense`'s."""
    return owner_and_kind(leaf)[0]


def owner_and_kind(leaf: Leaf) -> tuple[str, bool]:
    """The path a leaf belongs to, and whether it is state."""
    names = leaf.path.split("/")
    if names[-1] == "value" and names[0] not in _COLLECTIONS:
        names.pop()  # nnx keeps every array in a variable
    collected = len(names) > 1 and names[0] in _COLLECTIONS
    kept = collected and names[0] != "params"
    if names[:2] == ["state", "params"] and len(names) > 2:  # frozen, or a step's
        names = names[1:]
    own = (name for name in names[collected:-1] if name != "~")  # haiku's own mark
    return "/".join(own), kept


class Namer:
    """Tells the path of each equation of one graph, as a walk meets them in order."""

    def __init__(self, graph: Graph | None = None) -> None:
        self._root = "" if graph is None else _root(graph)
        self._met = 0

    def inputs(self, graph: Graph) -> list[Origin]:
        """Where the graph's inputs come from."""
        leaves = [Origin(owner(leaf), True) for leaf in graph.leaves]
        return leaves + [Origin()] * len(graph.inputs)

    def name(self, scope: str, origins: Sequence[Origin]) -> Origin:
        """Where an equation's results come from: its path, and what it follows from.

        Args:
            scope: the whole scope of the equation, outer scopes included.
            origins: of the operands that are no constants.
        """
        self._met += 1
        weight = bool(origins) and all(origin.weight for origin in origins)
        named = names(scope)
        path = _below(named, self._root) if named else _inherited(origins)
        return Origin(path, weight, self._met)


def plain(scope: str, root: str = "") -> str:
    """A scope as a path.

    >>> plain("transpose(jvp(Net))/encoder/dense", "Net")
    'encoder/dense'
    """
    return _below(names(scope), root)


@functools.lru_cache(maxsize=65536)
def names(scope: str) -> tuple[str, ...]:
    """The names in a scope that tell a place."""
    while (shorter := _WRAPPED.sub(r"\1", scope)) != scope:
        scope = shorter
    return tuple(n for n in scope.split("/") if n and not _CLASS.match(n))


def _below(names: Sequence[str], root: str) -> str:
    return "/".join(names[1:] if root and names[:1] == (root,) else names)


def join(*scopes: str) -> str:
    """Scopes one inside the other."""
    return "/".join(filter(None, scopes))


def _inherited(origins: Sequence[Origin]) -> str:
    """The path of the weights that flow in, else of what holds all that does."""
    weights = [origin.path for origin in origins if origin.weight]
    return _common(weights or [one.path for one in origins if one.order and one.path])


def _common(paths: Sequence[str]) -> str:
    """What all of the paths are inside of."""
    if len(set(paths)) <= 1:
        return paths[0] if paths else ""
    shared = []
    for names in zip(*(path.split("/") for path in paths), strict=False):
        if len(set(names)) > 1:
            break
        shared.append(names[0])
    return "/".join(shared)


def _root(graph: Graph) -> str:
    """The name of the whole, where a framework writes it before every scope.

    It is known by what stands below it, which the leaves are named after.
    """
    scopes = [names(jaxprs.scope(e)) for e in jaxprs.equations(graph.jaxpr)]
    first = {scope[0] for scope in scopes if scope}
    first -= set(_COLLECTIONS)  # passes scope work on a weight by the leaf's path
    owners = {owner(leaf).split("/")[0] for leaf in graph.leaves}
    if len(first) != 1 or first & owners:
        return ""
    if owners <= {""} and any("/" in leaf.path for leaf in graph.leaves):
        return first.pop()
    inside = {n for e, _ in jaxprs.nested(graph.jaxpr) for n in names(jaxprs.scope(e))}
    return first.pop() if owners & inside else ""


def _operations(
    namer: Namer,
    jaxpr: jaxprs.Jaxpr,
    origins: Sequence[Origin],
    within: str,
    times: int,
) -> tuple[tuple[Operation, ...], list[Origin]]:
    """The operations of a jaxpr, and where its outputs come from."""
    env = dict(zip(jaxpr.jaxpr.invars, origins, strict=True))
    found = []

    def look(var: Any) -> Origin:
        return Origin() if jaxprs.is_literal(var) else env.get(var, Origin())

    for equation in jaxprs.equations(jaxpr):
        given = [look(var) for var in equation.invars]
        read = [env[v] for v in jaxprs.reads(equation.invars) if v in env]
        scope = join(within, jaxprs.scope(equation))
        made = namer.name(scope, read)
        inner = times * jaxprs.repeats(equation)
        bodies, outputs = [], [made] * len(equation.outvars)
        for body in jaxprs.bodies(equation):
            taken = [given[position] for position in body.operands]
            inside, last = _operations(namer, body.jaxpr, taken, scope, inner)
            bodies.append(inside)
            if len(last) == len(outputs):
                outputs = last
        found.append(Operation(equation, made.path, times, tuple(bodies)))
        env.update(zip(equation.outvars, outputs, strict=True))
    return tuple(found), [look(var) for var in jaxpr.jaxpr.outvars]
