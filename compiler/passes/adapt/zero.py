"""A weight that is zero, and what is left of the arithmetic with it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from compiler import jaxprs
from compiler.passes.factorize.symbolic import Symbolic, dense

_LINEAR = frozenset(
    (
        "dot_general",
        "conv_general_dilated",
        "ragged_dot_general",
        "mul",
        "neg",
        "transpose",
        "reshape",
        "squeeze",
        "broadcast_in_dim",
        "convert_element_type",
        "copy",
        "slice",
        "dynamic_slice",
        "split",
        "reduce_sum",
        "rev",
    )
)
"""What gives zero if one operand is (of finite values)."""


@dataclasses.dataclass(frozen=True, eq=False)
class Zero(Symbolic):
    """Stands for an array of zeros.

    Attributes:
        spec: its shape and dtype.
    """

    spec: jax.ShapeDtypeStruct

    def dense(self) -> Any:
        """The zeros."""
        return jnp.zeros(self.spec.shape, self.spec.dtype)

    def through(
        self, equation: jaxprs.Equation, operands: Sequence[Any], place: int
    ) -> list[Any] | None:
        """Zero times anything is zero; zero plus anything is that."""
        name = equation.primitive.name
        specs = [jaxprs.spec(var) for var in equation.outvars]
        if name in _LINEAR or (name in ("gather", "div") and place == 0):
            return [Zero(spec) for spec in specs]
        if name in ("add", "add_any") or (name == "sub" and place == 1):
            other = dense(operands[1 - place])
            if jnp.shape(other) == specs[0].shape and other.dtype == specs[0].dtype:
                return [other]
        return None

    def stacked(self) -> tuple[Any, Callable[[Any], Symbolic]]:
        """Its slices are zero and take no array."""
        spec = jax.ShapeDtypeStruct(self.spec.shape[1:], self.spec.dtype)
        return (), lambda _: Zero(spec)

    def parts(self) -> tuple[Any, Callable[[Any], Symbolic]]:
        """Itself, of no arrays."""
        return (), lambda _: self
