"""The derivative rules that functions carry with them, as jaxprs.

JAX holds them as thunks whose form is its own; where one cannot be read, None says so
and the function is differentiated as written.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from compiler.jaxprs.kinds import Equation, Jaxpr, spec


class Forward(NamedTuple):
    """A `custom_jvp` rule.

    Attributes:
        jaxpr: takes the inputs and then the tangents of those that have any; gives the
            outputs and then the tangents of those that have any.
        without: for each input, whether it has no tangent.
        constant: for each output, whether it has none.
    """

    jaxpr: Jaxpr
    without: tuple[bool, ...]
    constant: tuple[bool, ...]


class Backward(NamedTuple):
    """A `custom_vjp` rule.

    Attributes:
        forward: takes the inputs; gives residuals and then the outputs.
        residuals: for each residual of `backward` its place among those of `forward`,
            or minus one minus the place of the input it is.
        backward: takes residuals and cotangents of the outputs; gives cotangents.
        inputs: the inputs these belong to.
    """

    forward: Jaxpr
    residuals: tuple[int, ...]
    backward: Jaxpr
    inputs: tuple[int, ...]


def forward_rule(equation: Equation) -> Forward | None:
    """The rule of a `custom_jvp_call`, None if it cannot be read."""
    params = equation.params
    if params.get("num_consts") or params.get("symbolic_zeros"):
        return None
    without = tuple(not has_tangent(var.aval) for var in equation.invars)
    try:
        opened, constants, constant = params["jvp_jaxpr_fun"].call_wrapped(*without)
    except Exception:
        return None
    return Forward(_closed(opened, constants), without, tuple(constant))


def backward_rule(equation: Equation) -> Backward | None:
    """The rule of a `custom_vjp_call`, None if it cannot be read."""
    params = equation.params
    if params.get("num_consts") or params.get("symbolic_zeros"):
        return None
    try:
        return _backward(equation)
    except Exception:
        return None


def _backward(equation: Equation) -> Backward:
    params, inputs = equation.params, equation.invars
    every = [True] * len(inputs)
    opened, constants = params["fwd_jaxpr_thunk"].call_wrapped(*every)
    forward, forwarded = _closed(opened, constants), params["out_trees"]()[2]
    free = iter(range(len(forwarded)))
    residuals = tuple(next(free) if i is None else -1 - i for i in forwarded)
    given = [inputs[-1 - i] if i < 0 else opened.outvars[i] for i in residuals]
    live: list[int] = []

    def run(*values: Any) -> list[Any]:
        found = params["bwd"].call_wrapped(*values)
        if len(found) == 2 and isinstance(found[0], list):
            found = found[0]  # since JAX 0.12 with what the rule has logged beside it
        live[:] = [i for i, value in enumerate(found) if _is_cotangent(value)]
        return [found[i] for i in live]

    specs = [spec(var) for var in (*given, *equation.outvars)]
    backward = jax.make_jaxpr(run)(*specs)
    return Backward(forward, residuals, backward, tuple(live))


def has_tangent(value: Any) -> bool:
    """Whether a value has a derivative: it holds floats or complex numbers."""
    return jnp.issubdtype(value.dtype, jnp.inexact)


def no_tangent(value: Any) -> Any:
    """The tangent of a value that has none, or of one that is constant."""
    if has_tangent(value):
        return jnp.zeros_like(value)
    return np.zeros(np.shape(value), jax.dtypes.float0)


def _is_cotangent(value: Any) -> bool:
    dtype = getattr(value, "dtype", None)
    return dtype is not None and dtype != jax.dtypes.float0


def _closed(jaxpr: Any, constants: Sequence[Any]) -> Jaxpr:
    if isinstance(jaxpr, core.ClosedJaxpr) and not constants:
        return jaxpr
    return core.ClosedJaxpr(jaxpr, constants)
