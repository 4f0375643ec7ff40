"""Equations emitted again, on other operands or with other bodies."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.extend import core

from compiler.jaxprs.build import constants_to_inputs
from compiler.jaxprs.calls import Body, replace_bodies
from compiler.jaxprs.kinds import Equation


def primitive(name: str) -> Any:
    """One of JAX's own primitives."""
    return getattr(core.primitives, f"{name}_p")


def bind(equation: Equation, operands: Sequence[Any], **params: Any) -> list[Any]:
    """Emits an equation's primitive again, on new operands, always as a list.

    Derivative rules travel with it.
    """
    primitive = equation.primitive
    bound = primitive.get_bind_params({**equation.params, **params})
    functions, bound = bound if isinstance(bound, tuple) else ((), bound)
    result = primitive.bind(*functions, *operands, **bound)
    return list(result) if primitive.multiple_results else [result]


def rebind(
    equation: Equation, operands: Sequence[Any], new: Sequence[Body]
) -> list[Any]:
    """Emits an equation again, with other bodies and operands."""
    if equation.primitive.name == "remat2" and new[0].jaxpr.consts:
        consts = list(new[0].jaxpr.consts)  # its body has no room for any
        body = constants_to_inputs(new[0].jaxpr, consts, 0)
        operands, new = [*consts, *operands], [new[0]._replace(jaxpr=body)]
    return bind(equation, operands, **(replace_bodies(equation, new) if new else {}))


def sharded(equation: Equation, function: Callable[..., Any]) -> Callable[..., Any]:
    """A function run on every shard as the body of a `shard_map` equation is."""
    params = equation.params
    names = ("mesh", "in_specs", "out_specs", "check_vma")
    options = {name: params[name] for name in names}
    axes = params["newly_manual_axes"]
    return jax.shard_map(function, axis_names=axes, **options)
