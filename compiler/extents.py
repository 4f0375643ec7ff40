"""Inputs of other shapes: what a program takes, and what of it may vary."""

from __future__ import annotations

from collections.abc import Mapping as Dict
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from compiler.errors import InputMismatchError
from compiler.graph import Graph
from mapping.core import describe


class Extent(NamedTuple):
    """The length of some axes of the inputs that vary together.

    Attributes:
        size: in the sample.
        axes: pairs of an input's place and an axis of it.
    """

    size: int
    axes: tuple[tuple[int, int], ...]

    @property
    def leading(self) -> bool:
        """Whether it is that of leading axes: a batch."""
        return all(axis == 0 for _, axis in self.axes)


def extents(inputs: Sequence[jax.ShapeDtypeStruct]) -> list[Extent]:
    """The extents of inputs: axes of one length vary together, the leading apart."""
    groups: dict[tuple[bool, int], list[tuple[int, int]]] = {}
    for place, spec in enumerate(inputs):
        for axis, size in enumerate(spec.shape):
            groups.setdefault((axis > 0, size), []).append((place, axis))
    return [Extent(size, tuple(axes)) for (_, size), axes in groups.items()]


def replace_extents(
    inputs: Sequence[jax.ShapeDtypeStruct], new: Dict[Extent, Any]
) -> list[jax.ShapeDtypeStruct]:
    """The inputs with some extents replaced, by numbers or by symbols."""
    shapes = [list(spec.shape) for spec in inputs]
    for extent, size in new.items():
        for place, axis in extent.axes:
            shapes[place][axis] = size
    return [
        _with_shape(spec, shape) for shape, spec in zip(shapes, inputs, strict=True)
    ]


def accepted(
    graph: Graph, flat: Sequence[Any], in_tree: Any
) -> list[jax.ShapeDtypeStruct]:
    """The shapes of given inputs, with the graph's dtypes.

    Raises:
        InputMismatchError: if they are of another structure, rank or dtype.
    """
    if in_tree != graph.in_tree:
        raise InputMismatchError(
            f"inputs: expected {_structure(graph.in_tree)}, got "
            f"{_structure(in_tree)}. Call it as it was traced."
        )
    specs = []
    for want, value in zip(graph.inputs, flat, strict=True):
        shape, dtype = np.shape(value), jax.dtypes.result_type(value)
        if len(shape) != len(want.shape) or not _same_kind(dtype, want, value):
            raise InputMismatchError(
                f"inputs: expected {describe(want)} (any extents it was written "
                f"for), got {describe(jax.ShapeDtypeStruct(shape, dtype))}. "
                f"Reshape it, or cast it with x.astype({str(want.dtype)!r})."
            )
        specs.append(_with_shape(want, shape))
    return specs


_NUMBERS = (bool, int, float, complex)


def as_arrays(graph: Graph, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """The inputs, their Python numbers as arrays of the dtypes the graph takes."""
    flat, tree = jax.tree.flatten(inputs)
    if tree != graph.in_tree or not any(isinstance(v, _NUMBERS) for v in flat):
        return inputs
    pairs = zip(flat, graph.inputs, strict=True)
    return tree.unflatten(
        [
            jnp.asarray(value, spec.dtype) if _is_number(value, spec) else value
            for value, spec in pairs
        ]
    )


def _is_number(value: Any, spec: jax.ShapeDtypeStruct) -> bool:
    return isinstance(value, _NUMBERS) and _same_kind(None, spec, value)


def _with_shape(spec: jax.ShapeDtypeStruct, shape: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(tuple(shape), spec.dtype, weak_type=spec.weak_type)


def _same_kind(dtype: Any, want: jax.ShapeDtypeStruct, value: Any) -> bool:
    if isinstance(value, _NUMBERS):
        return jax.dtypes.result_type(value, want.dtype) == want.dtype
    return dtype == want.dtype


def _structure(tree: Any) -> str:
    return str(tree).removeprefix("PyTreeDef(").removesuffix(")")
