"""The graph of a traced function: equations, and leaves that have paths."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Container, Sequence
from collections.abc import Mapping as Dict
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from compiler import jaxprs
from compiler.errors import VariablesMismatchError, VerifyError
from mapping.core import Variables, describe, leaf_paths


@dataclasses.dataclass(frozen=True)
class Leaf:
    """One array of the program's variables.

    Attributes:
        path: its address, such as `params/conv/kernel`.
        spec: its shape and dtype.
    """

    path: str
    spec: jax.ShapeDtypeStruct

    @property
    def bytes(self) -> int:
        """Its size in memory."""
        return nbytes(self.spec)


@dataclasses.dataclass(frozen=True)
class Packing:
    """How leaves make up the variables a program is called with.

    Attributes:
        tree: the tree the user gave, or None for a nested dict made from the paths.
        bundled: whether that dict is split into `mapping.Variables` (then every
            path begins with `params/` or `state/`).
        fixed: by path, what the tree held that is no array: built into the program.
    """

    tree: Any = None
    bundled: bool = False
    fixed: Dict[str, Any] = dataclasses.field(default_factory=dict)

    def pack(self, paths: Sequence[str], values: Sequence[Any]) -> Any:
        """Builds variables from leaves in the order of `paths`."""
        if self.tree is not None:
            return jax.tree.unflatten(self.tree, values)
        if list(paths) == [_ALONE]:
            return values[0]
        tree = nest(dict(zip(paths, values, strict=True)))
        if not self.bundled:
            return tree
        return Variables(tree.get("params", {}), tree.get("state", {}))

    def unpack(self, paths: Sequence[str], variables: Any) -> list[Any]:
        """Finds the leaves in variables, in the order of `paths`."""
        if self.tree is not None:
            values, tree = jax.tree.flatten(variables)
            if tree == self.tree:
                return values
        given = {p or _ALONE: value for p, value in leaf_paths(variables).items()}
        given = {p: v for p, v in given.items() if not self._is_fixed(p, v)}
        missing, unknown = set(paths) - given.keys(), given.keys() - set(paths)
        if missing or unknown or self.tree is not None:
            raise VariablesMismatchError(
                f"variables: expected the leaves of the program, missing "
                f"{sorted(missing)[:5]}, not expected {sorted(unknown)[:5]}. Pass "
                "variables shaped like the program's own (program.variables)."
            )
        return [given[path] for path in paths]

    def _is_fixed(self, path: str, value: Any) -> bool:
        """Whether a leaf is what the program has built in; another value is refused."""
        if path not in self.fixed:
            return False
        own = self.fixed[path]
        if value is not own and (hasattr(value, "dtype") or value != own):
            raise VariablesMismatchError(
                f"{path}: expected {own!r}, which is no array and so built into the "
                f"program, got {value!r}. Make it an array before tracing."
            )
        return True


_ALONE = "variables"
"""The path of variables that are one array."""


@dataclasses.dataclass(frozen=True, eq=False)
class Graph:
    """A function of (leaves, inputs) as equations. Immutable.

    Attributes:
        jaxpr: the equations; its inputs are the leaves and then the flat inputs.
        leaves: the arrays the function is parametrised by, in order.
        packing: how the leaves make up the variables.
        in_tree: how the flat inputs make up the argument tuple.
        out_tree: how the flat outputs make up the result.
        carried: paths of the leaves that the function returns, moved, to be given to
            it again. A pass leaves them what they are.
        encoded: what the last quantizing pass made it from.
        coverage: how much of it that pass covered.
    """

    jaxpr: jaxprs.Jaxpr
    leaves: tuple[Leaf, ...]
    packing: Packing
    in_tree: Any
    out_tree: Any
    carried: frozenset[str] = frozenset()
    encoded: Any = dataclasses.field(default=None, repr=False)
    coverage: Any = dataclasses.field(default=None, repr=False)

    def with_leaves(self, paths: Sequence[str], jaxpr: jaxprs.Jaxpr) -> Graph:
        """The graph with other leaves, and equations that take them.

        Args:
            paths: of the new leaves.
            jaxpr: takes the new leaves and then the same inputs.
        """
        specs = [jaxprs.spec(v) for v in jaxpr.jaxpr.invars[: len(paths)]]
        leaves = tuple(map(Leaf, paths, specs))
        packing = dataclasses.replace(self.packing, tree=None)
        return dataclasses.replace(self, jaxpr=jaxpr, leaves=leaves, packing=packing)

    def pack(self, values: Sequence[Any]) -> Any:
        """Builds variables from values for the leaves."""
        return self.packing.pack(self.paths, values)

    def unpack(self, variables: Any) -> list[Any]:
        """Finds the leaves in variables.

        Raises:
            VariablesMismatchError: naming the paths that are missing, unknown or
                of another shape.
        """
        values = self.packing.unpack(self.paths, variables)
        wrong = [
            f"{leaf.path}: expected {describe(leaf.spec)}, got {describe(value)}"
            for leaf, value in zip(self.leaves, values, strict=True)
            if (np.shape(value), jax.dtypes.result_type(value))
            != (leaf.spec.shape, leaf.spec.dtype)
        ]
        if wrong:
            raise VariablesMismatchError(
                "; ".join(wrong[:5]) + ". Pass variables shaped like the program's own."
            )
        return values

    @property
    def inputs(self) -> list[jax.ShapeDtypeStruct]:
        """Shapes and dtypes of the flat inputs."""
        return [jaxprs.spec(v) for v in self.jaxpr.jaxpr.invars[len(self.leaves) :]]

    @property
    def outputs(self) -> list[jax.ShapeDtypeStruct]:
        """Shapes and dtypes of the flat outputs."""
        return [jaxprs.spec(v) for v in self.jaxpr.jaxpr.outvars]

    @functools.cached_property
    def paths(self) -> list[str]:
        """The paths of the leaves."""
        return [leaf.path for leaf in self.leaves]

    def evaluate(self, leaves: Sequence[Any], inputs: Sequence[Any]) -> list[Any]:
        """Computes the flat outputs; a pure function, to be traced or run."""
        given = zip(self.jaxpr.jaxpr.invars, (*leaves, *inputs), strict=True)
        return evaluate(self.jaxpr, dict(given))

    def verify(self) -> None:
        """Checks that the graph is well-formed.

        Raises:
            VerifyError: naming what is wrong.
        """
        try:
            jaxprs.check(self.jaxpr)
        except Exception as error:
            raise VerifyError(f"the graph is ill-typed: {error}") from error
        given = [jaxprs.spec(v) for v in self.jaxpr.jaxpr.invars]
        for leaf, got in zip(self.leaves, given, strict=False):
            if (leaf.spec.shape, leaf.spec.dtype) != (got.shape, got.dtype):
                raise VerifyError(
                    f"{leaf.path}: expected {describe(leaf.spec)}, the graph takes "
                    f"{describe(got)}."
                )
        if len(set(self.paths)) != len(self.paths):
            raise VerifyError(f"two leaves share one path: {self.paths}")

    def __str__(self) -> str:
        """One line for each leaf, input and equation."""
        lines = [f"leaf   {leaf.path}: {describe(leaf.spec)}" for leaf in self.leaves]
        lines += [f"input  {describe(spec)}" for spec in self.inputs]
        for equation in jaxprs.equations(self.jaxpr):
            results = describe([jaxprs.spec(v) for v in equation.outvars])
            where = jaxprs.scope(equation) or "(root)"
            lines.append(f"{where:24} {equation.primitive.name} -> {results}")
        return "\n".join(lines)


def evaluate(
    jaxpr: jaxprs.Jaxpr,
    env: dict[Any, Any],
    outputs: Sequence[Any] | None = None,
) -> list[Any]:
    """Computes some variables of a jaxpr from others; runs only what that needs.

    Each equation is emitted with its own scope and source line.

    Args:
        jaxpr: a closed jaxpr.
        env: arrays for the variables that are given.
        outputs: the variables wanted; the jaxpr's own outputs by default.
    """
    wanted = jaxpr.jaxpr.outvars if outputs is None else outputs
    env = dict(zip(jaxpr.jaxpr.constvars, jaxpr.consts, strict=True)) | env
    for equation in needed(jaxpr, wanted, set(env), effects=outputs is None):
        operands = [read(env, var) for var in equation.invars]
        with jaxprs.provenance(equation):
            results = jaxprs.bind(equation, operands)
        env.update(zip(equation.outvars, results, strict=True))
    return [read(env, var) for var in wanted]


def run(
    jaxpr: jaxprs.Jaxpr,
    values: Sequence[Any],
    step: Callable[[jaxprs.Equation, list[Any]], Sequence[Any]],
) -> list[Any]:
    """Computes a jaxpr's outputs from values of any kind, each equation by `step`."""
    env = dict(zip(jaxpr.jaxpr.constvars, jaxpr.consts, strict=True))
    env |= zip(jaxpr.jaxpr.invars, values, strict=True)
    for equation in jaxprs.equations(jaxpr):
        operands = [read(env, var) for var in equation.invars]
        with jaxprs.provenance(equation):
            results = step(equation, operands)
        env.update(zip(equation.outvars, results, strict=True))
    return [read(env, var) for var in jaxpr.jaxpr.outvars]


def read(env: dict[Any, Any], var: Any) -> Any:
    """The value of an operand: its own if it is a literal, else the environment's."""
    return var.val if jaxprs.is_literal(var) else env[var]


def needed(
    jaxpr: jaxprs.Jaxpr, outputs: Sequence[Any], given: set[Any], effects: bool
) -> list[Any]:
    """The equations that `outputs` depend on, when the `given` variables are there."""
    wanted = jaxprs.variables(outputs) - given
    kept = []
    for equation in reversed(jaxprs.equations(jaxpr)):
        results = wanted.intersection(equation.outvars)
        if results or (effects and equation.effects):
            kept.append(equation)
            wanted |= jaxprs.variables(equation.invars) - given
    return kept[::-1]


def required(jaxpr: jaxprs.Jaxpr, given: set[Any]) -> set[Any]:
    """The variables a jaxpr reads when the `given` ones need not be computed."""
    reads = list(jaxpr.jaxpr.outvars)
    for equation in needed(jaxpr, jaxpr.jaxpr.outvars, given, effects=True):
        reads.extend(equation.invars)
    return jaxprs.variables(reads)


def drop_dead(jaxpr: jaxprs.Jaxpr) -> jaxprs.Jaxpr:
    """Drops the equations no output depends on (and that have no effect)."""
    kept = needed(jaxpr, jaxpr.jaxpr.outvars, set(), effects=True)
    if len(kept) == len(jaxprs.equations(jaxpr)):
        return jaxpr
    return jaxprs.with_equations(jaxpr, kept)


def nest(values: dict[str, Any]) -> dict[str, Any]:
    """Builds a nested dict from paths; `leaf_paths` gives them back.

    Where one path goes on from another leaf, the rest of it is one key.

    >>> nest({"dense/kernel": 1, "dense/bias": 2, "dense/kernel/scale": 3})
    {'dense': {'kernel': 1, 'bias': 2, 'kernel/scale': 3}}
    """
    tree: dict[str, Any] = {}
    for path in sorted(values, key=lambda path: path.count("/")):
        node, names = tree, path.split("/")
        while len(names) > 1 and isinstance(node.get(names[0], {}), dict):
            node = node.setdefault(names.pop(0), {})
        node["/".join(names)] = values[path]
    return tree


def free_path(path: str, taken: Container[str]) -> str:
    """The path itself, or with the first number that makes it a new one.

    >>> free_path("kernel", {"kernel"})
    'kernel_2'
    """
    name, number = path, 1
    while name in taken:
        number += 1
        name = f"{path}_{number}"
    return name


def is_abstract(value: Any) -> bool:
    """Whether a value is a shape without numbers."""
    return isinstance(value, jax.ShapeDtypeStruct)


def nbytes(spec: Any) -> int:
    """The size of an array in memory; four-bit types count half a byte an element."""
    if jax.dtypes.issubdtype(spec.dtype, jax.dtypes.extended):
        return int(np.prod(spec.shape, dtype=np.int64)) * spec.dtype.itemsize
    dtype = jnp.dtype(spec.dtype)
    bits = jnp.iinfo(dtype).bits if jnp.issubdtype(dtype, jnp.integer) else None
    size = int(np.prod(spec.shape, dtype=np.int64))
    return -(-size * (bits or dtype.itemsize * 8) // 8)
