"""Where in the user's code an equation comes from: its scope and its source line."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Sequence
from typing import Any

from jax.extend import source_info_util

from compiler.jaxprs.calls import Body, has_jaxprs, replace_bodies, with_params
from compiler.jaxprs.kinds import Equation


def scope(equation: Equation) -> str:
    """The names of the scopes an equation was traced in, joined by `/`."""
    return str(equation.source_info.name_stack)


def label(equation: Equation) -> str:
    """The name of the primitive and, for a call, of the function it calls."""
    name = equation.params.get("name")
    if not isinstance(name, str) and equation.primitive.name.startswith("custom_"):
        called = equation.params.get("call_jaxpr")
        info = called and called.jaxpr.debug_info
        name = ((info and info.func_src_info) or "").split(" at ")[0]
    called = isinstance(name, str) and name and has_jaxprs(equation)
    return f"{equation.primitive.name} {name}" if called else equation.primitive.name


def source(equation: Equation) -> str:
    """Where in the user's code an equation comes from: `file:line (function)`."""
    return source_info_util.summarize(equation.source_info)


def shared_scopes(equations: Sequence[Equation]) -> int:
    """How many scopes, from the outermost, all of the equations stand in."""
    scopes = [equation.source_info.name_stack for equation in equations]
    return len(common_scope(scopes).stack)


def common_scope(scopes: Sequence[Any]) -> Any:
    """What all of some scopes are inside of."""
    shared = []
    for names in zip(*(scope.stack for scope in scopes), strict=False):
        if any(name != names[0] for name in names):
            break
        shared.append(names[0])
    return source_info_util.NameStack(tuple(shared))


def current_scope() -> Any:
    """The names around what is emitted now."""
    return source_info_util.current_name_stack()


@contextlib.contextmanager
def provenance(equation: Equation, scope: Any = None) -> Generator[None, None, None]:
    """What is emitted inside carries the equation's scope and source line.

    Args:
        equation: whose.
        scope: the whole scope; by default the current one and the equation's own.
    """
    info = equation.source_info
    stack = current_scope() + info.name_stack if scope is None else scope
    with source_info_util.user_context(info.traceback, name_stack=stack):
        yield


def in_scopes(equation: Equation, scopes: slice) -> Equation:
    """An equation that stands in some of its scopes only."""
    return _placed(equation, equation.source_info.name_stack[scopes])


def within(equation: Equation, outer: Equation) -> Equation:
    """An equation of a body, as it stands when the body takes the place of `outer`."""
    around = outer.source_info.name_stack
    return _placed(equation, around + equation.source_info.name_stack)


def placed(equation: Equation, scope: Any, new: Sequence[Body]) -> Equation:
    """The same equation in another scope, with other bodies."""
    return _placed(with_params(equation, **replace_bodies(equation, new)), scope)


def _placed(equation: Equation, scope: Any) -> Equation:
    info = equation.source_info.replace(name_stack=scope)
    return equation.replace(source_info=info)
