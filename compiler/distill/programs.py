"""A program as a student or a teacher: what is trained of it, what it gives."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping as Dict
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from compiler import jaxprs
from compiler.distill.tap import Tap
from compiler.errors import DistillError, UnknownPathError
from compiler.graph import Graph, Leaf, is_abstract, nest
from compiler.passes.globs import shortened
from compiler.paths import owner_and_kind
from compiler.program import Program
from compiler.updates import returned
from mapping.core import Context, Variables, describe, leaf_paths


class Called(NamedTuple):
    """What one call of a side gives.

    Attributes:
        outputs: the logits.
        found: values inside of it, by path.
        state: what it carries along, moved.
    """

    outputs: Any
    found: dict[str, Any]
    state: Any


@dataclasses.dataclass(frozen=True, eq=False)
class ProgramSide:
    """A program.

    Attributes:
        program: the program.
        paths: of the values that are wanted beside its outputs.
        output: the path of the logits among its outputs, or None to find them.
        train: globs of the leaves that are trained, or None for all that are floating
            and neither state nor returned, moved.
        frozen: whether none is: a teacher.
    """

    program: Program
    paths: tuple[str, ...] = ()
    output: str | None = None
    train: tuple[str, ...] | None = None
    frozen: bool = False

    def __post_init__(self) -> None:
        if any(map(is_abstract, self.program.values)):
            raise DistillError(
                "distill: expected programs with arrays, got one that was traced on "
                "shapes alone. Give it some with program.with_variables(...)."
            )
        _ = self.tap  # paths that name nothing are refused at once

    @functools.cached_property
    def tap(self) -> Tap:
        """The program with the values that are wanted."""
        return Tap(self.program, self.paths)

    @property
    def count(self) -> int:
        """How many inputs it takes, but for a random key."""
        return len(self._inputs) - self._keyed

    @functools.cached_property
    def _inputs(self) -> tuple[Any, ...]:
        return jax.tree.unflatten(self.program.graph.in_tree, self.program.graph.inputs)

    @property
    def _keyed(self) -> bool:
        """Whether the last of several inputs is a random key."""
        return len(self._inputs) > 1 and _is_key(self._inputs[-1])

    @functools.cached_property
    def trained(self) -> tuple[str, ...]:
        """The leaves that are trained.

        Raises:
            UnknownPathError: if a glob names no floating leaf.
            DistillError: if there is none.
        """
        if self.frozen:
            return ()
        leaves = self.program.graph.leaves
        floats = [o for o in leaves if jnp.issubdtype(o.spec.dtype, jnp.inexact)]
        if self.train is None:
            found = [leaf.path for leaf in floats if not self._kept(leaf)]
        else:
            found = [leaf.path for leaf in floats if self._chosen(leaf.path)]
            self._check_named(found, [leaf.path for leaf in floats])
        if not found:
            raise DistillError(
                "distill: expected a student with floating leaves to train, got "
                f"{describe([leaf.spec for leaf in leaves[:5]])}. Train before "
                "rounding, or name leaves with train=."
            )
        return tuple(found)

    def _check_named(self, found: Sequence[str], floats: Sequence[str]) -> None:
        for glob in self.train or ():
            if not any(fnmatchcase(n, glob) for p in found for n in shortened(p)):
                raise UnknownPathError(
                    f"{glob}: expected a glob of floating leaves of the student, names "
                    f"none. There are: {', '.join(floats[:8])}."
                )

    def _kept(self, leaf: Leaf) -> bool:
        """Whether a leaf is state, or is returned moved."""
        if owner_and_kind(leaf)[1]:
            return True
        return leaf.path in self.program.graph.carried - self._unmoved

    @functools.cached_property
    def _unmoved(self) -> set[str]:
        """The leaves that are returned as they are, beside others that are not."""
        graph = self.program.graph
        outputs = jaxprs.variables(graph.jaxpr.jaxpr.outvars)
        given = zip(graph.paths, graph.jaxpr.jaxpr.invars, strict=False)
        return {path for path, var in given if var in outputs}

    def _chosen(self, path: str) -> bool:
        return any(fnmatchcase(n, g) for n in shortened(path) for g in self.train or ())

    def start(self, key: jax.Array, *inputs: Any) -> Variables:
        """Its own arrays: those that are trained, and the others."""
        values = dict(zip(self.program.graph.paths, self.program.values, strict=True))
        return self.parted(values)

    def parted(self, values: Dict[str, Any]) -> Variables:
        """Arrays by path as what is trained and what is not."""
        params = {path: values[path] for path in self.trained}
        rest = {path: value for path, value in values.items() if path not in params}
        return Variables(nest(params), nest(rest))

    def values(self, variables: Variables) -> dict[str, Any]:
        """The arrays by path again."""
        return leaf_paths(variables.params) | leaf_paths(variables.state)

    def own(self, variables: Variables) -> Any:
        """The variables the program itself takes."""
        values = self.values(variables)
        return self.program.graph.pack([values[p] for p in self.program.graph.paths])

    def __call__(
        self, variables: Variables, inputs: Sequence[Any], ctx: Context
    ) -> Called:
        """Runs it. A random key it takes last is the context's; so, in training, is
        one among its leaves."""
        values = self.values(variables)
        given = {
            path: _key_like(value, ctx, path) if _redrawn(value, ctx) else value
            for path, value in values.items()
        }
        tree = self.program.graph.pack([given[p] for p in self.program.graph.paths])
        if self._keyed and len(inputs) == self.count:
            inputs = [*inputs, _key_like(self._inputs[-1], ctx, "key")]
        result, found = self.tap(tree, *inputs)
        outputs, new = self._told_apart(result)
        return Called(outputs, found, self.parted(values | new).state)

    def _told_apart(self, result: Any) -> tuple[Any, dict[str, Any]]:
        """The logits, and the leaves that are returned, moved."""
        outputs = leaf_paths(result)
        updates = _updates(self.program.graph, outputs)
        names = [name for name in outputs if name not in set(updates.values())]
        if self.output is not None:
            if self.output not in outputs:
                raise DistillError(
                    f"output: expected a path of an output, got {self.output!r}. There "
                    f"are: {', '.join(map(repr, outputs))}."
                )
            names = [self.output]
        if len(names) != 1:
            raise DistillError(
                f"distill: expected one output, the logits, got {len(names)}: "
                f"{', '.join(names[:8])}. Name the one with output=."
            )
        return outputs[names[0]], {leaf: outputs[o] for leaf, o in updates.items()}


def _updates(graph: Graph, outputs: Dict[str, Any]) -> dict[str, str]:
    """By leaf that a program returns, moved, the path of the output that it is."""
    found: dict[str, str] = {}
    for leaf in graph.leaves:
        if leaf.path not in graph.carried:
            continue
        alike = [
            path
            for path, output in outputs.items()
            if returned({leaf.path: leaf.spec}, {path: output})
            and path not in found.values()
        ]
        if alike:
            found[leaf.path] = max(alike, key=lambda p: _shared(leaf.path, p))
    return found


def _shared(first: str, second: str) -> int:
    """How many of their last names two paths share."""
    pairs = zip(*(reversed(_names(path)) for path in (first, second)), strict=False)
    count = 0
    for a, b in pairs:
        if a != b:
            break
        count += 1
    return count


def _names(path: str) -> list[str]:
    return [name for name in path.split("/") if name != "value"]


def _is_key(value: Any) -> bool:
    """Whether a value, or its shape, is a random key."""
    if not hasattr(value, "dtype"):
        return False
    if jax.dtypes.issubdtype(value.dtype, jax.dtypes.prng_key):
        return not value.shape
    return value.dtype == np.uint32 and tuple(value.shape) == (2,)


def _redrawn(value: Any, ctx: Context) -> bool:
    """Whether a leaf is a key that would drop the same units at every step."""
    typed = jax.dtypes.issubdtype(value.dtype, jax.dtypes.prng_key)
    return ctx.train and ctx.key is not None and typed and not value.shape


def _key_like(like: Any, ctx: Context, name: str) -> Any:
    """The context's key for this place, typed or not as another is."""
    key = ctx.rng(name)
    if not jax.dtypes.issubdtype(key.dtype, jax.dtypes.prng_key):
        key = jax.random.wrap_key_data(key)
    typed = jax.dtypes.issubdtype(like.dtype, jax.dtypes.prng_key)
    return key if typed else jax.random.key_data(key)
