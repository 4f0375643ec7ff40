"""What a program costs, counted on its graph."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from typing import TYPE_CHECKING, Any

from compiler import jaxprs
from compiler.graph import Graph

if TYPE_CHECKING:
    from compiler.program import Program

_FREE = frozenset(
    [
        "reshape",
        "transpose",
        "broadcast_in_dim",
        "squeeze",
        "slice",
        "dynamic_slice",
        "gather",
        "concatenate",
        "dynamic_update_slice",
        "scatter",
        "pad",
        "rev",
        "iota",
        "copy",
        "convert_element_type",
        "split",
        "stack",
        "unstack",
        "tile",
        "stop_gradient",
        "bitcast_convert_type",
        "random_wrap",
        "random_unwrap",
        "dim_as_value",
        "copy_p",
        "optimization_barrier",
    ]
)
_REDUCE = ("reduce_", "arg", "cum")


@dataclasses.dataclass(frozen=True)
class Cost:
    """Arithmetic of one call.

    Attributes:
        flops: additions and multiplications (a fused multiply-add is two).
        by_scope: the same, by the scope it happens in, loops and calls included.
        uncounted: primitives whose inside cannot be seen, or whose number of
            iterations is not known (`while`, counted once).
    """

    flops: int
    by_scope: Counter[str]
    uncounted: tuple[str, ...]


def cost(program: Program | Graph) -> Cost:
    """Counts the floating-point operations of one call, for the sample's shapes.

    A `scan` multiplies by its length, of a `cond` the dearest branch counts, a
    product counts two for each pair it multiplies, elementwise arithmetic one for
    each element, and moving data nothing.

    >>> import jax.numpy as jnp, compiler as mc
    >>> program = mc.trace(lambda w, x: x @ w, jnp.eye(3), jnp.ones((2, 3)))
    >>> cost(program).flops
    36
    """
    by_scope: Counter[str] = Counter()
    uncounted: set[str] = set()
    graph = program if isinstance(program, Graph) else program.graph
    _count(graph.jaxpr, 1, "", by_scope, uncounted)
    return Cost(sum(by_scope.values()), by_scope, tuple(sorted(uncounted)))


def equation_flops(equation: jaxprs.Equation) -> int:
    """Counts the operations of one equation, without what is inside it."""
    name = equation.primitive.name
    if name == "dot_general":
        return 2 * _size(equation.outvars[0]) * _contracted(equation)
    if name == "conv_general_dilated":
        return _convolution(equation)
    if name in _FREE or jaxprs.has_jaxprs(equation):
        return 0
    if name.startswith("reduce_window"):
        window = math.prod(equation.params["window_dimensions"])
        return _size(equation.outvars[0]) * window
    if name.startswith(_REDUCE):
        return sum(map(_size, equation.invars))
    return sum(map(_size, equation.outvars))


def _count(
    jaxpr: jaxprs.Jaxpr,
    times: int,
    within: str,
    by_scope: Counter[str],
    uncounted: set[str],
) -> None:
    for equation in jaxprs.equations(jaxpr):
        name, bodies = equation.primitive.name, jaxprs.bodies(equation)
        if name == "while" or (jaxprs.has_jaxprs(equation) and not bodies):
            uncounted.add(name)
        if name in ("call_exported", "pure_callback", "io_callback", "ffi_call"):
            uncounted.add(name)
            continue
        scope = "/".join(filter(None, (within, jaxprs.scope(equation))))
        by_scope[scope] += times * equation_flops(equation)
        inner = times * (equation.params["length"] if name == "scan" else 1)
        counted = [Counter() for _ in bodies]
        for body, into in zip(bodies, counted, strict=True):
            _count(body.jaxpr, inner, scope, into, uncounted)
        if name == "cond":
            counted = [max(counted, key=lambda c: sum(c.values()))]
        for found in counted:
            by_scope.update(found)


def _contracted(equation: jaxprs.Equation) -> int:
    shape = equation.invars[0].aval.shape
    return math.prod(shape[i] for i in equation.params["dimension_numbers"][0][0])


def _convolution(equation: jaxprs.Equation) -> int:
    """Each output needs a window of the kernel; zeros put between inputs are free."""
    kernel = equation.invars[1].aval.shape
    output_axis = equation.params["dimension_numbers"].rhs_spec[0]
    window = math.prod(n for i, n in enumerate(kernel) if i != output_axis)
    spread = math.prod(equation.params["lhs_dilation"])
    return 2 * _size(equation.outvars[0]) * window // spread


def _size(var: Any) -> int:
    return math.prod(getattr(var.aval, "shape", ()))
