"""Variables and literals that are made anew."""

from __future__ import annotations

import functools
from typing import Any

import jax
import numpy as np
from jax.extend import core

from compiler.jaxprs.kinds import Jaxpr, Var, is_literal


def fresh(var: Var) -> Var:
    """A new variable of the same type."""
    return core.Var(var.aval)


def scalar(var: Var) -> Var:
    """A new variable for one element of a variable's array."""
    return core.Var(var.aval.update(shape=(), sharding=None))


def literal(value: Any, like: Var) -> Any:
    """A number as an operand with the type of a scalar variable, None if it has none.

    JAX makes it, so that it is kept as JAX keeps its own.
    """
    value = np.asarray(value, like.aval.dtype)
    weak = getattr(like.aval, "weak_type", False)
    (made,) = _literal(value.tobytes(), value.dtype, weak).jaxpr.outvars
    return made if is_literal(made) and made.aval == like.aval else None


@functools.lru_cache(maxsize=4096)
def _literal(data: bytes, dtype: Any, weak: bool) -> Jaxpr:
    value = np.frombuffer(data, dtype)[0]
    return jax.make_jaxpr(lambda: value.item() if weak else value)()


def bits(operand: Any) -> bytes:
    """The bits of a literal, so that -0 is not 0."""
    return np.asarray(operand.val, operand.aval.dtype).tobytes()
