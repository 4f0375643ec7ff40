"""The structure of a graph: what of its leaves can go, and what goes with it."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping as Dict
from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

import jax
import numpy as np

from compiler import jaxprs
from compiler.errors import PlanError
from compiler.graph import Graph, Leaf, drop_dead
from compiler.passes.prune.plan import Plan
from compiler.passes.prune.structure import rules as rules
from compiler.passes.prune.structure.analysis import Analysis
from compiler.passes.prune.structure.atoms import STAYS, Array
from compiler.passes.prune.structure.emit import Emit
from compiler.passes.prune.structure.groups import Group, find_groups
from compiler.passes.prune.structure.labels import Axes
from compiler.passes.prune.structure.numbers import fix
from compiler.passes.prune.structure.registry import RULES
from compiler.updates import counterparts


class Structure:
    """What can be removed from a graph, seen from its shapes and equations alone.

    Made by [`structure`][].

    Attributes:
        graph: the graph.
        analysis: the labels of every axis of every value.
        frame: of the whole graph.
        leaves: the labels of the axes of each leaf.
        resized: places of the outputs that are new values of leaves, and so become
            smaller with them.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.analysis = Analysis(RULES)
        self.leaves = [free(self.analysis, leaf) for leaf in graph.leaves]
        inputs = [(None,) * len(spec.shape) for spec in graph.inputs]
        self.frame = self.analysis.enter(
            graph.jaxpr, [*self.leaves, *inputs], leaves=len(self.leaves)
        )
        self.resized = frozenset(self._outputs())

    def _outputs(self) -> list[int]:
        """Lets outputs stay, but those that are leaves again, which are as these."""
        labels, atoms = self.analysis.labels, self.analysis.labels.atoms
        pairs, resized = counterparts(self.graph), []
        for place, axes in enumerate(self.frame.outputs):
            atoms.cause = OUTPUT - place
            fix(labels, self.frame.number(self.graph.jaxpr.jaxpr.outvars[place]))
            if place in pairs:
                for one, other in zip(axes, self.leaves[pairs[place]], strict=True):
                    labels.unify(one, other)
                resized.append(place)
            else:
                for vector in axes:
                    labels.freeze(vector)
        return resized

    @functools.cached_property
    def groups(self) -> tuple[Group, ...]:
        """Units of one kind, by what they disappear from."""
        opened = self.graph.jaxpr.jaxpr
        read = jaxprs.variables(opened.outvars)
        for equation in jaxprs.equations(self.graph.jaxpr):
            read |= jaxprs.variables(equation.invars)
        used = [var in read for var in opened.invars[: len(self.leaves)]]
        return find_groups(self.graph, self.analysis, self.leaves, used)

    def group(self, name: str) -> Group:
        """The group of this name.

        Raises:
            PlanError: if there is none.
        """
        for group in self.groups:
            if group.name == name:
                return group
        raise PlanError(
            f"{name}: expected the name of a group, got none of "
            f"{[group.name for group in self.groups][:8]}. See prune.groups(program)."
        )

    def plan(self, removed: Dict[str, Any]) -> Plan:
        """What goes when some units of some groups do.

        Where an axis of some value would become empty, units are put back.

        Args:
            removed: by the name of a group, the numbers of its units.

        Raises:
            PlanError: if there is no such group or unit.
        """
        gone = np.zeros(self.analysis.labels.atoms.count, np.bool_)
        for name, units in removed.items():
            group, units = self.group(name), np.asarray(units, np.int64)
            if units.size and not 0 <= units.min() <= units.max() < group.size:
                raise PlanError(
                    f"{name}: expected units from 0 to {group.size - 1}, got "
                    f"{units.min()} to {units.max()}. Count within the group."
                )
            gone[group.atoms[units]] = True
        self._put_back(gone)
        return self._plan(gone)

    def _plan(self, gone: Array) -> Plan:
        atoms = self.analysis.labels.atoms
        removed: dict[str, dict[int, Array]] = {}
        for leaf, axes in zip(self.graph.leaves, self.leaves, strict=True):
            for axis, vector in enumerate(axes):
                if vector is not None:
                    indices = np.flatnonzero(gone[atoms.resolve(vector)].any(1))
                    if len(indices):
                        removed.setdefault(leaf.path, {})[axis] = indices
        shapes = {leaf.path: leaf.spec.shape for leaf in self.graph.leaves}
        return Plan.of(removed, shapes)

    def _put_back(self, gone: Array) -> None:
        """Lets enough units stay that no axis of any value becomes too short."""
        for labels, least in self._short:
            lost = gone[labels]
            stays = int((~lost.any(1)).sum())
            rows = np.flatnonzero(lost.any(1))
            order = rows[np.argsort(lost[rows].sum(1), kind="stable")]
            for row in order[: max(least - stays, 0)]:
                gone[labels[row]] = False

    @functools.cached_property
    def _short(self) -> list[tuple[Array, int]]:
        """The different axes of all values, and how many indices of each must stay."""
        atoms = self.analysis.labels.atoms
        found: dict[bytes, tuple[Array, int]] = {}
        asked = [(v, 1) for v in self._vectors()]
        for vector, least in [*asked, *self.analysis.minimum]:
            labels = None if vector is None else atoms.resolve(vector)
            if labels is not None and labels.shape[1] and labels.any(1).all():
                key = labels.tobytes()
                least = max(least, found.get(key, (labels, 0))[1])
                found[key] = labels, least
        return list(found.values())

    def _vectors(self) -> list[Array]:
        seen: dict[int, Array] = {}
        for frame in self.frame.inside():
            for axes in frame.axes.values():
                seen |= {id(v): v for v in axes if v is not None}
        return list(seen.values())

    def removed(self, plan: Plan) -> Array:
        """The atoms that a plan removes.

        Raises:
            PlanError: if the plan is for leaves of other shapes, or does not remove
                what goes together in this graph.
        """
        atoms = self.analysis.labels.atoms
        total, lost = np.zeros((2, atoms.count), np.int64)
        for leaf, axes in zip(self.graph.leaves, self.leaves, strict=True):
            kept = _kept(plan, leaf)
            for axis, vector in enumerate(axes):
                if vector is None:
                    continue
                labels = atoms.resolve(vector)
                gone = np.ones(len(labels), np.bool_)
                gone[kept.get(axis, slice(None))] = False
                np.add.at(total, labels, 1)
                np.add.at(lost, labels[gone], 1)
        removed = (total > 0) & (lost == total)
        removed[STAYS] = False
        self._check_closed(plan, self._plan(removed))
        return np.flatnonzero(removed)

    def _check_closed(self, wanted: Plan, found: Plan) -> None:
        there = {leaf.path for leaf in self.graph.leaves}
        asked = {(p, a): i for p, a, i in wanted.removed if p in there}
        made = {(p, a): i for p, a, i in found.removed}
        for path, axis in sorted(asked.keys() | made.keys()):
            one, other = asked.get((path, axis), ()), made.get((path, axis), ())
            if one != other:
                off = sorted(set(one) ^ set(other))
                raise PlanError(
                    f"{path}, axis {axis}: expected a plan that removes what goes "
                    f"together in this function, index {off[0]} cannot go without "
                    "others, or not at all. Ask prune.why_not(program, path, axis), or "
                    "trace the functions together when planning."
                )

    def emit(self, plan: Plan, *, masking: bool = False) -> Emit:
        """An evaluation of the graph with what a plan removes gone."""
        gone = self.removed(plan)
        return Emit(self.analysis.labels, RULES, gone, masking=masking)


OUTPUT = -2
"""The cause of what an output fixes: this minus its place."""


def _kept(plan: Plan, leaf: Leaf) -> dict[int, Array]:
    kept = plan.axes(leaf.path)
    if kept and dict(plan.shapes)[leaf.path] != tuple(leaf.spec.shape):
        raise PlanError(
            f"{leaf.path}: expected the shape {dict(plan.shapes)[leaf.path]} the plan "
            f"was made for, got {tuple(leaf.spec.shape)}. Plan for this program."
        )
    return kept


def free(analysis: Analysis, leaf: Leaf) -> Axes:
    """Labels of a leaf's axes, each index of which may go."""
    if jax.dtypes.issubdtype(leaf.spec.dtype, jax.dtypes.extended):
        return (None,) * len(leaf.spec.shape)
    return tuple(analysis.labels.fresh(n, family=True) for n in leaf.spec.shape)


def structure(graph: Graph) -> Structure:
    """Finds what can be removed from a graph.

    >>> import jax.numpy as jnp, compiler as mc
    >>> def mlp(params, x):
    ...     return jnp.tanh(x @ params["first"]) @ params["second"]
    >>> params = {"first": jnp.ones((3, 8)), "second": jnp.ones((8, 2))}
    >>> program = mc.trace(mlp, params, jnp.ones((1, 3)))
    >>> [(group.name, group.size) for group in structure(program.graph).groups]
    [('first:1', 8)]
    """
    if graph not in _FOUND:
        _FOUND[graph] = Structure(graph)
    return _FOUND[graph]


_FOUND: WeakKeyDictionary[Graph, Structure] = WeakKeyDictionary()


def shrink(found: Structure, plan: Plan) -> Graph:
    """The graph with leaves cut by a plan, and everything as small as it becomes."""
    graph = found.graph
    leaves = tuple(Leaf(one.path, plan.cut(one.spec, one.path)) for one in graph.leaves)
    jaxpr = _evaluated(found, found.emit(plan), [leaf.spec for leaf in leaves])
    return dataclasses.replace(graph, jaxpr=jaxpr, leaves=leaves, encoded=None)


def masked(found: Structure, plan: Plan) -> Graph:
    """The graph in its own shapes, with neutral elements where a plan removes.

    What stands in the leaves there does not matter.
    """
    graph = found.graph
    emit = found.emit(plan, masking=True)
    jaxpr = _evaluated(found, emit, [leaf.spec for leaf in graph.leaves])
    return dataclasses.replace(graph, jaxpr=jaxpr, encoded=None)


def _evaluated(
    found: Structure, emit: Emit, leaves: Sequence[jax.ShapeDtypeStruct]
) -> jaxprs.Jaxpr:
    specs = [*leaves, *found.graph.inputs]
    return drop_dead(jaxprs.make(lambda *values: emit.run(found.frame, values), specs))
