"""Emits the equations of a program in the precision that was decided."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from compiler.passes.precision.boundaries import Low, cross, widened
from compiler.passes.precision.plan import served
from compiler.passes.precision.values import Node, is_single
from compiler.rewrite import Operand, Result, Site

_DTYPES = ("preferred_element_type", "new_dtype")
"""Parameters of equations that name the dtype of the result."""


@dataclasses.dataclass(eq=False, repr=False)
class Emit:
    """The rule for every equation.

    Attributes:
        nodes: what was decided, by the site's number.
        rounded: values rounded so far, each beside what it was rounded from.
        crossed: whether values of few bits went into the body of a loop or call, so
            that there is more to decide inside it.
    """

    nodes: dict[int, Node]
    rounded: dict[tuple[int, Any], tuple[Any, Any]] = dataclasses.field(
        default_factory=dict
    )

    crossed: bool = False

    def __call__(self, site: Site, *operands: Operand) -> list[Any] | None:
        """Emits one equation, or leaves it alone."""
        node = self.nodes[site.number]
        if node.kind == "convert":
            return self._convert(site, operands[0])
        if site.bodies and not node.low:
            wanted = [served(value, node.target) for value in node.results]
            results = cross(site, operands, wanted, self.round)
            self.crossed |= results is not None
            return results
        if not node.low:
            return None
        if site.bodies:
            return self._around(site, operands, node.target)
        return self._low(site, operands, node.target)

    def _low(self, site: Site, operands: tuple[Operand, ...], dtype: Any) -> list[Any]:
        """Emits the equation in few bits; results are widened for who wants that."""
        values = [self.round(o, dtype) if is_single(o) else o.value for o in operands]
        asked = site.equation.params
        names = [name for name in _DTYPES if asked.get(name) is not None]
        params = dict.fromkeys(names, np.dtype(dtype))
        outputs = site.emit(*values, **params)
        site.fired(f"{site.equation.primitive.name} in {dtype}")
        return [
            widened(output) if is_single(var.aval) else output
            for output, var in zip(outputs, site.equation.outvars, strict=True)
        ]

    def _around(
        self, site: Site, operands: tuple[Operand, ...], dtype: Any
    ) -> list[Any]:
        """Emits a call in float32, and notes that its results have few bits."""
        outputs = site.emit(*(operand.value for operand in operands))
        return [Result(o, Low(jax.lax.convert_element_type(o, dtype))) for o in outputs]

    def _convert(self, site: Site, operand: Operand) -> list[Any] | None:
        """Widening and rounding again is nothing at all, so it is left out."""
        into = site.equation.outvars[0].aval.dtype
        if isinstance(operand.note, Low) and into == operand.note.value.dtype:
            return [operand.note.value]
        if into == jnp.float32 and operand.dtype in (jnp.bfloat16, jnp.float16):
            return [Result(site.emit(operand.value)[0], Low(operand.value))]
        return None

    def round(self, operand: Operand, dtype: Any) -> Any:
        """A float32 operand in few bits: what it was made from, if that is known."""
        note, value = operand.note, operand.value
        if isinstance(note, Low) and note.value.dtype == dtype:
            return note.value
        if not isinstance(value, jax.core.Tracer):  # it may be in several bodies
            return _rounded(value, dtype)
        key = id(value), np.dtype(dtype)
        if key not in self.rounded:
            self.rounded[key] = value, _rounded(value, dtype)
        return self.rounded[key][1]


def _rounded(value: Any, dtype: Any) -> Any:
    if isinstance(value, jax.Array) or np.ndim(value):
        return jax.lax.convert_element_type(value, dtype)
    return np.asarray(value, dtype)
