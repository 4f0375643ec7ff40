"""A mapping set up to be tried: variables, inputs, and ways to call it."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mapping.core import Context, State, Variables, call, describe, init, leaf_paths
from mapping.errors import ConformanceError
from mapping.registry import Example

NAME = "probe"
"""Every mapping is tried as a child, so that its errors have a path to name."""


@dataclasses.dataclass(frozen=True, eq=False)
class Probe:
    """An example with generic values.

    Attributes:
        example: what is tried.
        variables: initialised, then moved off zero, where mistakes hide.
        inputs: arrays for the example's specs.
    """

    example: Example
    variables: Variables
    inputs: tuple[Any, ...]

    @classmethod
    def of(cls, example: Example) -> Probe:
        """Initialises the example."""
        rng = np.random.default_rng(0)
        inputs = jax.tree.map(functools.partial(_fill, rng), example.inputs)
        own = init(NAME, example.mapping, jax.random.key(0), *inputs)
        params = jax.tree.map(functools.partial(_move, rng), own.params)
        return cls(example, Variables(params, own.state), inputs)

    def run(
        self,
        variables: Variables | None = None,
        inputs: tuple[Any, ...] | None = None,
        *,
        train: bool = False,
        key: jax.Array | None = None,
    ) -> tuple[Any, State]:
        """Calls the mapping, compiled: claims that ask alike share one program."""
        own = self.variables if variables is None else variables
        given = self.inputs if inputs is None else inputs
        return self._compiled(own, given, key, train=train)

    def eager(
        self,
        variables: Variables,
        inputs: tuple[Any, ...],
        key: jax.Array | None,
        train: bool,
    ) -> tuple[Any, State]:
        """Calls the mapping as the child it is."""
        ctx = Context(key=key, train=train)
        parent = Variables({NAME: variables.params}, {NAME: variables.state})
        return call(NAME, self.example.mapping, parent, *inputs, ctx=ctx)

    @functools.cached_property
    def _compiled(self) -> Callable[..., Any]:
        return jax.jit(self.eager, static_argnames="train")

    def other_inputs(self) -> tuple[Any, ...]:
        """More inputs of the same shapes."""
        rng = np.random.default_rng(1)

        def other(x: Any) -> Any:
            if _floating(x):
                return x + jnp.asarray(rng.normal(0, 0.5, x.shape), x.dtype)
            return x

        return jax.tree.map(other, self.inputs)

    def cast(self, dtype: str) -> tuple[Variables, tuple[Any, ...]]:
        """The variables and inputs with every floating leaf in another dtype."""

        def to(x: Any) -> Any:
            return jnp.asarray(x, dtype) if _floating(x) else jnp.asarray(x)

        return jax.tree.map(to, self.variables), jax.tree.map(to, self.inputs)


def expect(holds: bool, otherwise: str) -> None:
    """Raises unless a claim holds (`assert` is not compiled everywhere)."""
    if not holds:
        raise ConformanceError(otherwise)


def stacked(first: Any, second: Any) -> Any:
    """Two pytrees as one with a leading axis of two."""
    return jax.tree.map(lambda a, b: jnp.stack([a, b]), first, second)


def distance(got: Any, wanted: Any) -> float:
    """Largest difference of two pytrees, relative to the largest value (or one)."""
    shapes = [jax.tree.structure(tree) for tree in (got, wanted)]
    expect(shapes[0] == shapes[1], f"expected {shapes[1]}, got {shapes[0]}")
    worst = 0.0
    for path, (a, b) in _pairs(got, wanted).items():
        expect(a.shape == b.shape, f"{path}: expected {describe(b)}, got {describe(a)}")
        if not a.size or jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            continue
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        same = (a == b) | (np.isnan(a) & np.isnan(b))
        scale = max(1.0, float(np.max(np.abs(np.where(np.isfinite(b), b, 0.0)))))
        with np.errstate(invalid="ignore"):
            apart = np.where(same, 0.0, np.abs(a - b)) / scale
        worst = max(worst, float(np.max(np.where(np.isnan(apart), np.inf, apart))))
    return worst


def _pairs(got: Any, wanted: Any) -> dict[str, tuple[Any, Any]]:
    other = leaf_paths(wanted)
    return {path: (leaf, other[path]) for path, leaf in leaf_paths(got).items()}


def _fill(rng: np.random.Generator, leaf: Any) -> Any:
    if not isinstance(leaf, jax.ShapeDtypeStruct):
        return leaf
    if jnp.issubdtype(leaf.dtype, jnp.floating):
        return jnp.asarray(rng.normal(size=leaf.shape), leaf.dtype)
    return jnp.asarray(rng.integers(0, 2, leaf.shape), leaf.dtype)


def _move(rng: np.random.Generator, leaf: Any) -> Any:
    if not _floating(leaf):
        return leaf
    return leaf + jnp.asarray(rng.normal(0, 0.1, leaf.shape), leaf.dtype)


def _floating(x: Any) -> bool:
    return hasattr(x, "dtype") and jnp.issubdtype(x.dtype, jnp.floating)
