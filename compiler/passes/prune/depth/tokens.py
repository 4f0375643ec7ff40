"""The structure of a function of token ids: what goes with a row of their table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from compiler import jaxprs
from compiler.errors import PlanError, UnknownPathError
from compiler.graph import Graph
from compiler.passes.prune.plan import Plan
from compiler.passes.prune.structure import RULES, Structure
from compiler.passes.prune.structure.analysis import Analysis
from compiler.passes.prune.structure.atoms import STAYS, Array
from compiler.passes.prune.structure.frame import Frame, Place
from compiler.passes.prune.structure.labels import Vector
from compiler.passes.prune.structure.numbers import Numbering, Numbers, fix
from compiler.passes.prune.structure.structure import OUTPUT, free
from compiler.updates import counterparts


class Tokens(Structure):
    """A structure in which integer inputs number rows, and outputs may be over them.

    Attributes:
        path: of the table.
        axis: of it.
        size: how many rows it has.
    """

    def __init__(self, graph: Graph, path: str | None) -> None:
        """Analyses a graph.

        Args:
            graph: of a function of token ids.
            path: of the table, if ids look up several.
        """
        self.graph = graph
        self.analysis = Analysis(RULES)
        self.leaves = [free(self.analysis, leaf) for leaf in graph.leaves]
        variables, count = graph.jaxpr.jaxpr.invars, len(graph.leaves)
        self._ids = {
            var: Numbering()
            for var in variables[count:]
            if jaxprs.is_array(var) and jnp.issubdtype(var.aval.dtype, jnp.integer)
        }
        axes = [*self.leaves, *((None,) * len(spec.shape) for spec in graph.inputs)]
        self.frame = self.analysis.enter(
            graph.jaxpr, axes, numbers=self._ids, leaves=count
        )
        self.path, self.axis = self._table(path)
        leaf = graph.leaves[graph.paths.index(self.path)]
        self.size = int(leaf.spec.shape[self.axis])
        self.resized = frozenset(self._outputs())

    def plan_tokens(self, gone: Sequence[int], among_kept: bool) -> Plan:
        """What goes with some rows of the table.

        Args:
            gone: numbers of rows.
            among_kept: whether something may be done over all that are left.

        Raises:
            PlanError: if a row has to stay, or something is done over all of them.
        """
        atoms = self.analysis.labels.atoms
        labels = atoms.resolve(self._rows)
        stays = [row for row in gone if not labels[row].any()]
        if stays:
            raise PlanError(self._why(stays))
        removed = np.zeros(atoms.count, np.bool_)
        removed[labels[list(gone)]] = True
        removed[STAYS] = False
        least = max(
            (n for v, n in self.analysis.minimum if self._is_over(v)), default=1
        )
        if self.size - len(gone) < least:
            raise PlanError(
                f"{self.path}: expected to keep {least} rows or more, as the function "
                f"takes the {least} first of them, got {self.size - len(gone)}."
            )
        if not among_kept and (why := whole_uses(self.frame, self._is_over, set())):
            raise PlanError(f"{self.path}: {why}")
        return self._plan(removed)

    @property
    def _rows(self) -> Array:
        return self._labels_of(self.path, self.axis)

    def _is_over(self, vector: Vector) -> bool:
        """Whether an axis is over the rows of the table."""
        if vector is None:
            return False
        resolve = self.analysis.labels.atoms.resolve
        rows = resolve(self._rows)
        return bool(np.isin(resolve(vector), rows[rows > STAYS]).any())

    def _table(self, path: str | None) -> tuple[str, int]:
        """The leaf that ids look up, and along which axis."""
        resolve, found = self.analysis.labels.atoms.resolve, {}
        for numbering in self._ids.values():
            vector = numbering.root.vector
            wanted = None if vector is None else resolve(vector)
            if wanted is None or not wanted.any():
                continue
            for leaf, axes in zip(self.graph.leaves, self.leaves, strict=True):
                for axis, own in enumerate(axes):
                    same = own is not None and len(own) == len(wanted)
                    if same and np.array_equal(resolve(own), wanted):
                        found.setdefault(leaf.path, axis)
        tables = {p: a for p, a in found.items() if self._is_matrix(p)}
        found = tables or found
        roots = {resolve(self._labels_of(p, a)).tobytes() for p, a in found.items()}
        if path is not None and path in found:
            return path, found[path]
        if path is not None or not found:
            raise UnknownPathError(
                f"{path or 'variables'}: expected a table that ids among the inputs "
                f"look up, there are: {', '.join(found) or 'none'}. "
                + ("Name one of these." if found else self._untold())
            )
        if len(roots) > 1:
            raise PlanError(
                f"prune.vocabulary: expected one table that ids look up, there are "
                f"{', '.join(found)}. Say which with path=."
            )
        return next(iter(found.items()))

    def _is_matrix(self, path: str) -> bool:
        leaf = self.graph.leaves[self.graph.paths.index(path)]
        return len(leaf.spec.shape) > 1

    def _labels_of(self, path: str, axis: int) -> Array:
        vector = self.leaves[self.graph.paths.index(path)][axis]
        return np.zeros((0, 1), np.int64) if vector is None else vector

    def _untold(self) -> str:
        """Why nothing of the leaves can go that integers of the inputs look up."""
        for place in self.analysis.places:
            numbers = [place.number(i) for i in range(len(place.operands))]
            if place.computes and any(n in self._ids.values() for n in numbers):
                name, source = (
                    place.equation.primitive.name,
                    jaxprs.source(place.equation),
                )
                return f"{name} computes with ids ({source}), so they stay as they are."
        return "Trace a function of integer token ids."

    def _outputs(self) -> list[int]:
        """Lets outputs be over the rows of the table; all else stays."""
        labels, atoms = self.analysis.labels, self.analysis.labels.atoms
        pairs, resized = counterparts(self.graph), []
        for place, axes in enumerate(self.frame.outputs):
            atoms.cause = OUTPUT - place
            self._keep_ids(self.frame.number(self.graph.jaxpr.jaxpr.outvars[place]))
            for axis, vector in enumerate(axes):
                if place in pairs:
                    labels.unify(vector, self.leaves[pairs[place]][axis])
                elif self._is_logits(vector, axis == len(axes) - 1):
                    labels.unify(vector, self._rows)
                elif not self._is_over(vector):
                    labels.freeze(vector)
            if place in pairs or any(map(self._is_over, axes)):
                resized.append(place)
        for numbering in self._ids.values():
            self._keep_ids(numbering)
        return resized

    def _is_logits(self, vector: Vector, last: bool) -> bool:
        """Whether an axis of an output is the vocabulary of a layer of its own."""
        whole = vector is not None and len(vector) == self.size and last
        return whole and self.analysis.labels.is_live(vector)

    def _keep_ids(self, numbers: Numbers | None) -> None:
        """Integers that number something else than rows of the table stay."""
        plain = isinstance(numbers, Numbering) and numbers.root.told
        if not plain or not self._is_over(numbers.root.vector):
            fix(self.analysis.labels, numbers)

    def _why(self, stays: Sequence[int]) -> str:
        from compiler.passes.prune.structure.why import Reasons

        leaf = self.graph.paths.index(self.path)
        reasons = Reasons(self).of(leaf, self.axis)
        own = [reason for reason in reasons if set(reason.indices) & set(stays)]
        return (
            f"{self.path}: expected rows that may go, {len(stays)} of them stay (the "
            f"first is {stays[0]}): {'; '.join(map(str, own[:3]))}. Keep these ids."
        )


def whole_uses(
    frame: Frame,
    is_over: Callable[[Vector], bool],
    one_hot: set[Any],
    source: str = "",
) -> str:
    """What is done over a whole axis, so that it changes when a part of it goes.

    Args:
        frame: of the graph, or of a body in it.
        is_over: tells the axis.
        one_hot: inputs of the frame that are zero for all indices but one; what else is
            so is added.
        source: the line of user code around it.
    """
    for place in frame.places:
        line = jaxprs.source(place.equation) or source
        name, operands = place.equation.primitive.name, place.equation.invars
        named = [not jaxprs.is_literal(v) and v in one_hot for v in operands]
        if (name in _KEEPS and any(named)) or (name == "eq" and place.counted):
            one_hot.update(place.equation.outvars)
        over = any(is_over(place.operands[i][axis]) for i, axis in _along(place))
        if over and not any(named):
            return (
                f"{name} goes over the whole vocabulary at {place.scope or '(root)'} "
                f"({line}): it would be of what is kept "
                "alone. Trace a function that returns logits, or allow it with "
                "among_kept=True."
            )
        pairs = zip(place.frames.items(), jaxprs.bodies(place.equation), strict=False)
        for (_, inner), body in pairs:
            doors = zip(inner.jaxpr.jaxpr.invars, body.operands, strict=True)
            own = {var for var, position in doors if named[position]}
            if why := whole_uses(inner, is_over, own, line):
                return why
            leave = zip(inner.jaxpr.jaxpr.outvars, place.equation.outvars, strict=False)
            one_hot.update(v for u, v in leave if not jaxprs.is_literal(u) and u in own)
    return ""


_KEEPS = (
    "broadcast_in_dim",
    "convert_element_type",
    "mul",
    "reshape",
    "select_n",
    "squeeze",
    "transpose",
)
"""What is zero for all tokens but one stays so."""


def _along(place: Place) -> list[tuple[int, int]]:
    """The axes an equation goes along: operand and axis."""
    name, params = place.equation.primitive.name, place.params
    if name == "dot_general":
        (left, right), _ = params["dimension_numbers"]
        return [(0, axis) for axis in left] + [(1, axis) for axis in right]
    if name == "top_k":
        return [(0, params.get("axis", -1) % len(place.operands[0]))]
    if name.startswith("cum"):
        return [(0, params["axis"])]
    if name.startswith(("reduce_", "arg")):
        axes = params.get("axes", ())
        return [(0, axis) for axis in axes]
    return []
