"""What is known of the values of a program while precision is decided."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np

from compiler.rewrite import Site


@dataclasses.dataclass(eq=False, repr=False)
class Value:
    """A float32 value on its way through the program.

    Attributes:
        node: the equation that made it.
        dtype: of few bits, if the value is one of those numbers exactly.
        literals: the constants it is made of, if it is made of nothing else.
        plain: whether it is a weight, or a constant, only seen in another way.
        uses: how many equations and outputs consume it.
        takers: the equations among them, once for each use.
    """

    node: Node
    dtype: Any = None
    literals: tuple[Any, ...] | None = None
    plain: bool = False
    uses: int = 0
    takers: list[Node] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(eq=False, repr=False)
class Node:
    """One equation.

    Attributes:
        site: where it stands.
        target: the dtype of few bits asked for here; None where it is float32.
        kind: the table that names it: `"low"`, `"exact"`, `"follow"`, `"convert"`.
        operands: its float32 operands.
        results: its outputs; None for those that are not float32.
        low: whether it is computed in few bits.
        why: why it is not, where that is worth a word.
    """

    site: Site
    target: Any
    kind: str | None
    operands: list[Source]
    results: list[Value | None] = dataclasses.field(default_factory=list)
    low: bool = False
    why: str = ""


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Source:
    """A float32 operand: the value if an equation made it, and what else is known.

    Attributes:
        value: what an equation made; None for inputs and constants.
        known: whether it follows from leaves and constants alone.
        literal: the constant, if it is one number written into the program.
    """

    value: Value | None
    known: bool
    literal: Any = None

    @property
    def literals(self) -> tuple[Any, ...] | None:
        """The constants it is made of, if it is made of nothing else."""
        if self.literal is not None:
            return (self.literal,)
        return None if self.value is None else self.value.literals

    @property
    def plain(self) -> bool:
        """Whether it is a weight or constant, not computed from some."""
        return self.known and (self.value is None or self.value.plain)

    def has(self, dtype: Any) -> bool:
        """Whether it is a number of few bits already."""
        if self.value is None:
            return False
        node = self.value.node
        return self.value.dtype == dtype or (node.low and node.target == dtype)

    def exact(self, dtype: Any) -> bool:
        """Whether rounding it would change nothing."""
        if self.literals is not None:
            return all(fits(literal, dtype) for literal in self.literals)
        return self.has(dtype)

    def roundable(self, dtype: Any) -> bool:
        """Whether it may be rounded for arithmetic between products."""
        literals = self.literals or ()
        return self.exact(dtype) or (
            self.plain and all(finite(literal, dtype) for literal in literals)
        )


def fits(literal: Any, dtype: Any) -> bool:
    """Whether few bits hold a constant exactly."""
    with np.errstate(over="ignore"):
        return bool(np.array_equal(np.asarray(literal, dtype), literal, equal_nan=True))


def is_single(spec: Any) -> bool:
    """Whether a value is of the dtype that gives way to fewer bits."""
    return getattr(spec, "dtype", None) == jnp.float32


def finite(literal: Any, dtype: Any) -> bool:
    """Whether a constant keeps from overflowing."""
    with np.errstate(over="ignore"):
        rounded = np.asarray(literal, dtype)
    return bool(np.array_equal(np.isfinite(rounded), np.isfinite(literal)))
