"""Extents that are symbols: what depends on them has no number yet."""

from __future__ import annotations

from typing import Any

import numpy as np

from compiler.errors import InputMismatchError
from compiler.graph import Graph
from mapping.core import describe


def has_symbols(*variables: Any) -> bool:
    """Whether the shape of a variable, or of a spec, has an extent without a number.

    >>> import jax
    >>> rows = jax.ShapeDtypeStruct(jax.export.symbolic_shape("rows, 8"), "float32")
    >>> has_symbols(rows), has_symbols(jax.ShapeDtypeStruct((2, 8), "float32"))
    (True, False)
    """
    shapes = (getattr(getattr(v, "aval", v), "shape", ()) for v in variables)
    return not all(is_number(extent) for shape in shapes for extent in shape)


def is_number(extent: Any) -> bool:
    """Whether an extent is a number, and no symbol."""
    return isinstance(extent, int | np.integer)


def require_numbers(graph: Graph) -> None:
    """Refuses a graph that has no costs, as its extents are symbols.

    Raises:
        InputMismatchError: naming an input or a leaf that has a symbol.
    """
    inputs = [(f"input {place}", spec) for place, spec in enumerate(graph.inputs)]
    for name, spec in [*inputs, *((leaf.path, leaf.spec) for leaf in graph.leaves)]:
        if has_symbols(spec):
            raise InputMismatchError(
                f"cost: expected extents that are numbers, {name} is "
                f"{describe(spec)}. Trace the program on an input with numbers, or "
                "count what it becomes for one: cost(program.specialise([spec]))."
            )
