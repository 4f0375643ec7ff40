"""The jaxprs inside an equation, and the parameters that hold them.

JAX's own names for the parts of a control-flow equation change between releases.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from jax.extend import core

from compiler.jaxprs.kinds import Equation, Jaxpr, closed, equations


class Body(NamedTuple):
    """One jaxpr inside an equation.

    Attributes:
        param: the equation's parameter that holds it.
        index: its place where the parameter is a tuple, else None.
        jaxpr: the body, closed.
        operands: for each of its inputs, the position of the equation's operand it
            comes from.
        carried: for each of its inputs, whether it changes from one iteration to
            the next, so that what is known of the operand is not known of it.
    """

    param: str
    index: int | None
    jaxpr: Jaxpr
    operands: tuple[int, ...]
    carried: tuple[bool, ...]


def bodies(equation: Equation) -> list[Body]:
    """The jaxprs inside an equation whose inputs we can tell, none if it is opaque."""
    find = _BODIES.get(equation.primitive.name)
    return [] if find is None else find(equation)


def has_jaxprs(equation: Equation) -> bool:
    """Whether any parameter of the equation is a jaxpr."""
    return any(True for _ in core.jaxprs_in_params(equation.params))


def is_opaque(equation: Equation) -> bool:
    """Whether an equation does something inside that no rule can see."""
    name = equation.primitive.name
    if name in _FOREIGN:
        return True
    combines = name.startswith(_COMBINERS)
    return not combines and name not in _BODIES and has_jaxprs(equation)


_FOREIGN = frozenset(("call_exported", "ffi_call", "pure_callback", "io_callback"))
_COMBINERS = ("scatter", "reduce", "select_and_", "sort", "cum")
"""Primitives whose jaxpr is no more than how two numbers become one."""


def scan_counts(equation: Equation) -> tuple[int, int]:
    """How many operands of a `scan` are constants, and how many are carried."""
    params = equation.params
    if "num_consts" in params:
        return params["num_consts"], params["num_carry"]
    consts, carry, _ = params["ft_in"].unpack()
    return len(consts), len(carry)


def with_scan_counts(consts: int, carry: int, old: Equation) -> dict[str, Any] | None:
    """The params that say how many operands are constants and carried, if settable."""
    if "num_consts" not in old.params:
        return None
    return {"num_consts": consts, "num_carry": carry}


def with_params(equation: Equation, **params: Any) -> Equation:
    """The same equation with some other params; its operands are not looked at."""
    return equation.replace(params={**equation.params, **params})


def replace_bodies(equation: Equation, new: Sequence[Body]) -> dict[str, Any]:
    """The params of an equation that hold its bodies, with the bodies replaced."""
    params: dict[str, Any] = {}
    for body in new:
        old = equation.params[body.param]
        if body.index is None:
            params[body.param] = _like(body.jaxpr, old)
        else:
            together = list(params.get(body.param, old))
            together[body.index] = _like(body.jaxpr, old[body.index])
            params[body.param] = tuple(together)
    return params


def takes_constants(equation: Equation, body: Body) -> bool:
    """Whether a body of an equation may have constants of its own."""
    held = equation.params[body.param]
    held = held if body.index is None else held[body.index]
    return isinstance(held, core.ClosedJaxpr)


def is_plain_jit(equation: Equation) -> bool:
    """Whether an equation is a call that inlining does not change."""
    params = equation.params
    if equation.primitive.name == "closed_call":
        return True
    if equation.primitive.name != "jit":
        return False
    if params.get("compiler_options_kvs"):
        return False
    shardings = (*params["in_shardings"], *params["out_shardings"])
    return all(type(s).__name__ == "UnspecifiedValue" for s in shardings)


def repeats(equation: Equation) -> int:
    """How often an equation runs its bodies; once if no one knows (`while`)."""
    name, params = equation.primitive.name, equation.params
    if name == "shard_map":  # once on every device
        axes = params["newly_manual_axes"]
        return math.prod(params["mesh"].shape[axis] for axis in axes)
    return params["length"] if name == "scan" else 1


def nested(jaxpr: Jaxpr) -> Iterator[tuple[Equation, int]]:
    """Every equation at every depth, with how often a call runs it.

    A `scan` multiplies by its length; a `while` counts once, as no one knows.
    """
    for equation in equations(jaxpr):
        yield equation, 1
        for body in bodies(equation):
            for inner, count in nested(body.jaxpr):
                yield inner, count * repeats(equation)


def _like(jaxpr: Jaxpr, old: Any) -> Any:
    """Gives a new body the form (open or closed) the equation wants."""
    if isinstance(old, core.ClosedJaxpr):
        return jaxpr
    if jaxpr.consts:
        raise ValueError("a body without room for constants was given some")
    return jaxpr.jaxpr


def _direct(param: str, skip: int = 0) -> Callable[[Equation], list[Body]]:
    def find(equation: Equation) -> list[Body]:
        body = closed(equation.params[param])
        count = len(body.jaxpr.invars)
        return [_body(param, None, body, range(skip, skip + count), [False] * count)]

    return find


def _scan(equation: Equation) -> list[Body]:
    body = closed(equation.params["jaxpr"])
    consts, carry = scan_counts(equation)
    count = len(body.jaxpr.invars)
    moves = _moves(body, consts, carry)
    carried = [*[False] * consts, *moves, *[False] * (count - consts - carry)]
    return [_body("jaxpr", None, body, range(count), carried)]


def _while(equation: Equation) -> list[Body]:
    params, found = equation.params, []
    first, second = params["cond_nconsts"], params["body_nconsts"]
    carry = range(first + second, len(equation.invars))
    moves = _moves(closed(params["body_jaxpr"]), second, len(carry))
    for param, start, consts in (
        ("cond_jaxpr", 0, first),
        ("body_jaxpr", first, second),
    ):
        operands = [*range(start, start + consts), *carry]
        carried = [False] * consts + moves
        found.append(_body(param, None, closed(params[param]), operands, carried))
    return found


def _moves(body: Jaxpr, consts: int, carry: int) -> list[bool]:
    """For each carried value, whether the body gives back another than it was given."""
    given = body.jaxpr.invars[consts : consts + carry]
    pairs = zip(given, body.jaxpr.outvars, strict=False)
    return [_origin(body, out) is not var for var, out in pairs]


def _origin(jaxpr: Jaxpr, var: Any) -> Any:
    """The variable that calls give back as another, if they do."""
    for equation in reversed(equations(jaxpr)):
        made = [var is out for out in equation.outvars]
        if True in made and is_plain_jit(equation):
            inner = bodies(equation)[0].jaxpr
            found = _origin(inner, inner.jaxpr.outvars[made.index(True)])
            given = [found is one for one in inner.jaxpr.invars]
            if True not in given:
                return var
            var = equation.invars[given.index(True)]
    return var


def _cond(equation: Equation) -> list[Body]:
    count = len(equation.invars) - 1
    return [
        _body("branches", i, closed(branch), range(1, count + 1), [False] * count)
        for i, branch in enumerate(equation.params["branches"])
    ]


def _body(
    param: str,
    index: int | None,
    jaxpr: Jaxpr,
    operands: Sequence[int],
    carried: Sequence[bool],
) -> Body:
    return Body(param, index, jaxpr, tuple(operands), tuple(carried))


_BODIES: dict[str, Callable[[Equation], list[Body]]] = {
    "jit": _direct("jaxpr"),
    "closed_call": _direct("call_jaxpr"),
    "remat2": _direct("jaxpr"),
    "custom_jvp_call": _direct("call_jaxpr"),
    "custom_vjp_call": _direct("call_jaxpr"),
    "shard_map": _direct("jaxpr"),
    "scan": _scan,
    "while": _while,
    "cond": _cond,
}
