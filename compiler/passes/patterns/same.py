"""Whether two equations, constants or jaxprs are the same."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from compiler import jaxprs
from compiler.passes.patterns.view import Value, View, meant, view_of_jaxpr

_RULES = ("jvp_jaxpr_fun", "fwd_jaxpr_thunk", "bwd")
"""Params that hold derivative rules; they are compared by what they compute."""

_UNSAID = {"name", "weak_type", "debug_info", "out_trees", *_RULES}
"""Params that do not tell what is computed."""


def difference(
    expected: jaxprs.Equation, found: jaxprs.Equation, rules: bool = True
) -> str | None:
    """Tells how two equations of one primitive differ, None if they do not.

    Operands and results are left out.

    Args:
        expected: one.
        found: the other.
        rules: whether derivative rules of their own must compute the same too.
    """
    ours, theirs = expected.params, found.params
    for name in sorted((set(ours) | set(theirs)) - _UNSAID):
        if not _equal(ours.get(name), theirs.get(name), rules):
            if jaxprs.is_jaxpr(ours.get(name)):
                return "it computes something else inside"
            return f"{name}: expected {ours.get(name)}, found {theirs.get(name)}"
    if rules and any(ours.get(rule) is not theirs.get(rule) for rule in _RULES):
        return None if _same_rule(expected, found) else "it has another derivative rule"
    return None


def same_constant(ours: Value, theirs: Value) -> bool:
    """Whether two constants are equal, dtype and shape included."""
    dtype = ours.aval.dtype
    if (ours.aval.shape, dtype) != (theirs.aval.shape, theirs.aval.dtype):
        return False
    if jax.dtypes.issubdtype(dtype, jax.dtypes.extended):
        return ours.value is theirs.value
    first, second = np.asarray(ours.value, dtype), np.asarray(theirs.value, dtype)
    return bool(np.all((first == second) | ((first != first) & (second != second))))


def same_view(ours: View, theirs: View, rules: bool = True) -> bool:
    """Whether two views hold the same equations in the same order."""
    nodes = [[n for n in view.nodes if n.name != "pvary"] for view in (ours, theirs)]
    if len(ours.inputs) != len(theirs.inputs) or len(nodes[0]) != len(nodes[1]):
        return False
    pairs = dict(zip(ours.inputs, theirs.inputs, strict=True))

    def matching(first: Sequence[Value], second: Sequence[Value]) -> bool:
        return len(first) == len(second) and all(
            same_constant(a, b) if a.constant and b.constant else pairs.get(a) is b
            for a, b in zip(map(meant, first), map(meant, second), strict=True)
        )

    for one, other in zip(*nodes, strict=True):
        if one.name != other.name or not matching(one.inputs, other.inputs):
            return False
        if difference(one.equation, other.equation, rules):
            return False
        pairs.update(zip(one.outputs, other.outputs, strict=True))
    return matching(ours.outputs, theirs.outputs)


def _equal(ours: Any, theirs: Any, rules: bool) -> bool:
    """Whether two params are the same, jaxprs up to the names of their variables."""
    if ours is theirs:
        return True
    if jaxprs.is_jaxpr(ours) and jaxprs.is_jaxpr(theirs):
        first, second = (view_of_jaxpr(jaxprs.closed(j)) for j in (ours, theirs))
        return same_view(first, second, rules)
    if type(ours) is type(theirs) and isinstance(ours, tuple | list):
        pairs = zip(ours, theirs, strict=False)
        return len(ours) == len(theirs) and all(_equal(*p, rules) for p in pairs)
    arrays = np.ndarray | jax.Array
    if isinstance(ours, arrays) or isinstance(theirs, arrays):
        return np.array_equal(ours, theirs)
    return bool(ours == theirs)


def _same_rule(expected: jaxprs.Equation, found: jaxprs.Equation) -> bool:
    """Whether two calls are differentiated by rules that compute the same.

    Inside a `shard_map` a rule cannot be traced by itself; there the name tells.
    """
    try:
        ours, theirs = (view_of_jaxpr(_derivative(e)) for e in (expected, found))
    except Exception:
        return jaxprs.label(expected) == jaxprs.label(found)
    return same_view(ours, theirs, rules=False)


def _derivative(equation: jaxprs.Equation) -> jaxprs.Jaxpr:
    """The derivative of one call, by its own rule, as a jaxpr."""
    specs = [jaxprs.spec(var) for var in equation.invars]
    moving = [i for i, s in enumerate(specs) if jnp.issubdtype(s.dtype, jnp.inexact)]
    forward = "jvp_jaxpr_fun" in equation.params
    outputs = [jaxprs.spec(var) for var in equation.outvars]
    directions = [specs[i] for i in moving] if forward else outputs

    def run(operands: Sequence[Any], directions: Sequence[Any]) -> Any:
        def inner(*some: Any) -> list[Any]:
            values = dict(enumerate(operands)) | dict(zip(moving, some, strict=True))
            return jaxprs.bind(equation, list(values.values()))

        start = [operands[i] for i in moving]
        if forward:
            return jax.jvp(inner, start, list(directions))[1]
        return jax.vjp(inner, *start)[1](list(directions))

    return jaxprs.make(run, (specs, directions))
