"""What the parts of a jaxpr are called, and what kinds of them there are."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeAlias

import jax
import jax.core
from jax.extend import core

Jaxpr: TypeAlias = Any
"""A closed jaxpr: with `.jaxpr` and `.consts`."""

Equation: TypeAlias = Any
Var: TypeAlias = Any


def equations(jaxpr: Jaxpr) -> list[Equation]:
    """The equations of a closed jaxpr, in order."""
    return jaxpr.jaxpr.eqns


def closed(jaxpr: Any) -> Jaxpr:
    """Returns a closed jaxpr for an open or closed one."""
    if isinstance(jaxpr, core.ClosedJaxpr):
        return jaxpr
    return core.ClosedJaxpr(jaxpr, ())


def spec(var: Var) -> jax.ShapeDtypeStruct:
    """The shape and dtype of a variable or literal."""
    aval = var.aval
    weak = getattr(aval, "weak_type", False)
    return jax.ShapeDtypeStruct(aval.shape, aval.dtype, weak_type=weak)


def is_literal(var: Var) -> bool:
    """Whether an operand is a constant written into the equation."""
    return isinstance(var, core.Literal)


def reads(operands: Iterable[Any]) -> list[Var]:
    """The operands that are no literals, in order."""
    return [operand for operand in operands if not is_literal(operand)]


def variables(operands: Iterable[Any]) -> set[Var]:
    """The operands that are no literals."""
    return set(reads(operands))


def is_array(var: Var) -> bool:
    """Whether a variable holds an ordinary array (not a token, a ref or a key)."""
    dtype = getattr(var.aval, "dtype", None)
    return dtype is not None and not jax.dtypes.issubdtype(dtype, jax.dtypes.extended)


def is_value(var: Var) -> bool:
    """Whether a variable holds a value: an array or keys, not a token or a ref."""
    return isinstance(var.aval, jax.core.ShapedArray)


def is_dropped(var: Var) -> bool:
    """Whether an equation's output is marked as one that nothing reads."""
    return isinstance(var, core.DropVar)


def is_equation(thing: Any) -> bool:
    """Whether something is an equation."""
    return isinstance(thing, core.JaxprEqn)


def is_jaxpr(thing: Any) -> bool:
    """Whether something is a jaxpr, open or closed."""
    return isinstance(thing, core.Jaxpr | core.ClosedJaxpr)


def has_refs(jaxpr: Jaxpr) -> bool:
    """Whether a jaxpr reads or writes references (arrays that change in place)."""
    return bool(jaxpr.jaxpr.effects) and any(
        not is_value(var)
        for equation in equations(jaxpr)
        for var in (*equation.invars, *equation.outvars)
    )


def identity(jaxpr: Jaxpr) -> tuple[Any, ...]:
    """What tells a closed jaxpr from others as long as it is kept."""
    return (id(jaxpr.jaxpr), *map(id, jaxpr.consts))
