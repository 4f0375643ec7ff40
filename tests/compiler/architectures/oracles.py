"""Judges of a pruned function that know nothing of each other.

O1 puts zeros in the place of what was removed, in the original function. O2 evaluates
the original shapes with neutral elements there (it shares the analysis, and so proves
the least). O3 builds the model again at the widths that are left. The groups counted by
hand see what none of these can: units that could go and were kept.
"""

from __future__ import annotations

import contextlib
import copy
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

import compiler as mc
from architectures.declared import Architecture, Units, Widths
from compiler.graph import Graph
from compiler.passes.prune.plan import Plan
from compiler.passes.prune.structure import Group, Structure, masked, shrink, structure
from compiler.updates import counterparts
from mapping.core import path_string

TOLERANCE = 1e-5
"""The largest difference of a result, relative to the largest number in it."""

FAST = {
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
}
"""What is run once is compiled as quickly as can be."""

if jax.__version_info__ < (0, 12):
    FAST["xla_cpu_use_fusion_emitters"] = False  # later ones do not have it


def run(function: Callable[..., Any], *arguments: Any) -> Any:
    """Computes a function once."""
    return jax.jit(function, compiler_options=FAST)(*arguments)


@contextlib.contextmanager
def foreign() -> Iterator[None]:
    """Lets dtypes and ranks promote, as frameworks expect."""
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        yield


class Case:
    """An architecture traced, and half of every group chosen at random.

    Attributes:
        architecture: which.
        variables: random.
        inputs: random.
        program: traced.
        structure: what the compiler found.
    """

    def __init__(self, architecture: Architecture, seed: int = 0) -> None:
        self.architecture = architecture
        with foreign():
            made = architecture.build(architecture.widths)
            self.function, self.variables, self.inputs = made
            self.program = mc.trace(self.function, self.variables, *self.inputs)
        self.structure = structure(self.program.graph)
        self._random = np.random.default_rng(seed)

    def again(self) -> Case:
        """The same, analysed anew."""
        new = copy.copy(self)
        for name in ("named", "removed", "whole", "small", "pruned", "widths"):
            new.__dict__.pop(name, None)
        new.structure = Structure(self.program.graph)
        new._random = np.random.default_rng(0)
        return new

    @functools.cached_property
    def wanted(self) -> dict[tuple[int, frozenset[tuple[str, int]]], Units]:
        """The groups written by hand, by how many units lie on which axes."""
        ranks = {x.path: len(x.spec.shape) for x in self.program.graph.leaves}
        return {(g.size, g.axes(ranks)): g for g in self.architecture.groups}

    @functools.cached_property
    def named(self) -> dict[str, Group]:
        """The groups the compiler found, by the names written by hand.

        Raises:
            AssertionError: if they are others than those written by hand.
        """
        wanted = self.wanted
        found = {(g.size, axes_of(g, self.structure)): g for g in self.structure.groups}
        assert len(wanted) == len(self.architecture.groups), "two groups are the same"
        missing, more = wanted.keys() - found.keys(), found.keys() - wanted.keys()
        told = [f"  missing {wanted[key].name} {written(key)}" for key in missing]
        told += [f"  found {found[key].name} {written(key)}" for key in more]
        assert not told, "\n".join(["groups differ:", *sorted(told)])
        assert len(found) == len(self.structure.groups), "two groups look the same"
        crossed = [at for group in found.values() for at in self.crossed(group)]
        assert not crossed, f"units stand in another order: {crossed}"
        return {wanted[key].name: group for key, group in found.items()}

    def crossed(self, group: Group) -> list[str]:
        """Where an axis of as many indices as units has them in another order.

        The judges below cannot see this where zeros are no removal.
        """
        leaves = self.program.graph.leaves
        return [
            f"{leaves[slot.leaf].path}:{slot.axis}"
            for slot in group.slots
            if leaves[slot.leaf].spec.shape[slot.axis] == group.size
            and leaves[slot.leaf].path not in self.architecture.turned
            and not np.array_equal(slot.unit, slot.index)
        ]

    @functools.cached_property
    def removed(self) -> dict[str, np.ndarray]:
        """Half of the units of every group, at random, by the names written by hand."""
        return {
            name: np.sort(self._random.permutation(group.size)[: group.size // 2])
            for name, group in sorted(self.named.items())
        }

    def plan(self, units: Sequence[Units]) -> Plan:
        gone = {self.named[u.name].name: self.removed[u.name] for u in units}
        return self.structure.plan(gone)

    @functools.cached_property
    def whole(self) -> Plan:
        """The plan for half of every group."""
        return self.plan(self.architecture.groups)

    def leaves(self, cut: Callable[[Any, str], Any]) -> list[Any]:
        """The leaves, each changed by `cut(value, path)`."""
        graph = self.program.graph
        values = map(as_numpy, graph.unpack(self.variables))
        return [cut(v, p) for v, p in zip(values, graph.paths, strict=True)]

    @functools.cached_property
    def small(self) -> Graph:
        return shrink(self.structure, self.whole)

    @functools.cached_property
    def pruned(self) -> list[np.ndarray]:
        """What the pruned function gives."""
        return evaluated(self.small, self.leaves(self.whole.cut), self.inputs)

    def zeroed(self) -> float | None:
        """O1: the error against zeros; None where zeros are no removal at all."""
        plain = [g for g in self.architecture.groups if not g.across]
        if not plain:
            return None
        if len(plain) == len(self.architecture.groups):
            plan, pruned = self.whole, self.pruned
        else:
            plan = self.plan(plain)
            small = shrink(self.structure, plan)
            pruned = evaluated(small, self.leaves(plan.cut), self.inputs)
        wanted = evaluated(self.program.graph, self.leaves(plan.zeroed), self.inputs)
        return error(pruned, self.fitted(wanted, pruned))

    def masked(self) -> float:
        """O2: the error against neutral elements, with garbage in what was removed."""

        def littered(value: Any, path: str) -> Any:
            zeroed = self.whole.zeroed(value, path)
            if zeroed is value:
                return value
            gone = self.whole.zeroed(np.ones_like(value), path) == 0
            litter = self._random.normal(0.0, 9.0, value.shape).astype(value.dtype)
            return np.where(gone, litter, value)

        graph = masked(self.structure, self.whole)
        wanted = evaluated(graph, self.leaves(littered), self.inputs)
        return error(self.pruned, self.fitted(wanted, self.pruned))

    def fitted(
        self, wanted: Sequence[np.ndarray], got: Sequence[np.ndarray]
    ) -> list[np.ndarray]:
        """Outputs of the original shapes; those that are leaves again are cut alike."""
        pairs = counterparts(self.program.graph)
        paths = self.program.graph.paths
        found = []
        for place, (one, other) in enumerate(zip(wanted, got, strict=True)):
            if one.shape != other.shape:
                one = np.asarray(self.whole.cut(one, paths[pairs[place]]))
            found.append(one)
        return found

    @functools.cached_property
    def widths(self) -> Widths:
        """The widths that are left."""
        kept = {}
        for name, group in self.named.items():
            gone = self.gone(group)
            kept[name] = np.setdiff1d(np.arange(group.size), gone)
        return Widths(self.architecture.widths.full, kept)

    def gone(self, group: Group) -> list[int]:
        """The units of a group that the plan really removes."""
        slot = group.slots[0]
        path = self.program.graph.paths[slot.leaf]
        size = dict(self.whole.shapes)[path][slot.axis]
        kept = self.whole.axes(path).get(slot.axis, np.arange(size))
        return [
            unit
            for unit in range(group.size)
            if not np.isin(slot.index[slot.unit == unit], kept).any()
        ]

    def rebuilt(self) -> float:
        """O3: the error against the model built at the widths that are left."""
        function, variables = self.rebuild()
        outputs = run(function, variables, *self.inputs)
        return error(self.pruned, arrays(outputs))

    def rebuild(self) -> tuple[Callable[..., Any], Any]:
        """The model at the widths that are left, with the sliced leaves loaded."""
        with foreign():
            function, fresh, _ = self.architecture.build(self.widths)
        cut = dict(
            zip(self.program.graph.paths, self.leaves(self.whole.cut), strict=True)
        )

        def load(path: Any, value: Any) -> Any:
            name = path_string(path)
            if not hasattr(value, "dtype"):
                return value
            assert value.shape == cut[name].shape, (name, value.shape, cut[name].shape)
            return cut.pop(name)

        called = jax.tree_util.tree_map_with_path(load, fresh)
        assert not cut, f"unused: {list(cut)}"
        values, tree = jax.tree.flatten(called)
        fixed = [None if hasattr(value, "dtype") else value for value in values]

        def promoting(leaves: Sequence[Any], *arguments: Any) -> Any:
            arrays = iter(leaves)
            whole = [next(arrays) if one is None else one for one in fixed]
            with foreign():
                return function(jax.tree.unflatten(tree, whole), *arguments)

        return promoting, [value for value in values if hasattr(value, "dtype")]


def axes_of(group: Group, found: Structure) -> frozenset[tuple[str, int]]:
    """The axes of leaves that a group lies on."""
    paths = found.graph.paths
    return frozenset((paths[slot.leaf], slot.axis) for slot in group.slots)


def written(key: tuple[int, frozenset[tuple[str, int]]]) -> str:
    size, axes = key
    return f"{size}: " + " ".join(f"{path}:{axis}" for path, axis in sorted(axes))


def as_numpy(value: Any) -> Any:
    """Numbers where no operation is compiled for them; keys as they are."""
    is_key = jax.dtypes.issubdtype(value.dtype, jax.dtypes.extended)
    return value if is_key else np.asarray(value)


def arrays(tree: Any) -> list[np.ndarray]:
    return [np.asarray(x) for x in jax.tree.leaves(tree)]


def evaluated(graph: Graph, leaves: Sequence[Any], inputs: Any) -> list[np.ndarray]:
    """The flat outputs of a graph."""
    return arrays(run(graph.evaluate, leaves, jax.tree.leaves(inputs)))


def error(got: Sequence[np.ndarray], wanted: Sequence[np.ndarray]) -> float:
    """The largest difference, relative to the largest number of each output."""
    assert [x.shape for x in got] == [x.shape for x in wanted]
    worst = 0.0
    for one, other in zip(got, wanted, strict=True):
        if not one.size:
            continue
        one, other = one.astype(np.float64), other.astype(np.float64)
        assert np.isfinite(one).all(), "not finite"
        size = max(np.abs(other).max(), 1e-6)
        worst = max(worst, float(np.abs(one - other).max() / size))
    return worst
