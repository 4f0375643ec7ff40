"""The one module that knows what a jaxpr looks like inside.

JAX's own names for the parts of a control-flow equation change between releases;
everything else in the compiler speaks through this file. Only public API is used
(`jax.extend`); `tests/compiler/test_jaxprs.py` guards what is read from params.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.core
import numpy as np
from jax.extend import core, source_info_util

Jaxpr: TypeAlias = Any
"""A closed jaxpr: with `.jaxpr` and `.consts`."""

Equation: TypeAlias = Any
Var: TypeAlias = Any


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


def make(function: Callable[..., Any], specs: Sequence[Any]) -> Jaxpr:
    """Traces a function of flat arrays to a closed jaxpr, without running it."""
    with source_info_util.reset_name_stack():
        return jax.make_jaxpr(function)(*specs)


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


def closed(jaxpr: Any) -> Jaxpr:
    """Returns a closed jaxpr for an open or closed one."""
    if isinstance(jaxpr, core.ClosedJaxpr):
        return jaxpr
    return core.ClosedJaxpr(jaxpr, ())


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


def rebind(
    equation: Equation, operands: Sequence[Any], new: Sequence[Body]
) -> list[Any]:
    """Emits an equation again, with other bodies and operands."""
    if equation.primitive.name == "remat2" and new[0].jaxpr.consts:
        consts = list(new[0].jaxpr.consts)  # its body has no room for any
        body = constants_to_inputs(new[0].jaxpr, consts, 0)
        operands, new = [*consts, *operands], [new[0]._replace(jaxpr=body)]
    return bind(equation, operands, **(replace_bodies(equation, new) if new else {}))


def with_equations(jaxpr: Jaxpr, kept: list[Equation]) -> Jaxpr:
    """The same jaxpr with some of its equations only."""
    return _with_constants(jaxpr.jaxpr.replace(eqns=kept), jaxpr.consts)


def part(
    jaxpr: Jaxpr, inputs: Sequence[Var], outputs: Sequence[Var], kept: list[Equation]
) -> Jaxpr:
    """Some equations of a jaxpr as a jaxpr of their own, without tracing them."""
    opened = jaxpr.jaxpr
    effects = set().union(*(equation.effects for equation in kept))
    new = opened.replace(
        invars=list(inputs), outvars=list(outputs), eqns=kept, effects=effects
    )
    return _with_constants(new, jaxpr.consts)


def _with_constants(jaxpr: Any, constants: Sequence[Any]) -> Jaxpr:
    """An open jaxpr closed over constants."""
    if core.ClosedJaxpr is core.Jaxpr:  # one class for both since JAX 0.12
        return jaxpr.replace(consts=constants)
    return core.ClosedJaxpr(jaxpr, constants)


def captured_arrays(jaxpr: Jaxpr) -> tuple[jax.Array, ...]:
    """The arrays a traced function closed over (what it made itself is not among)."""
    return tuple(
        c
        for c in jaxpr.consts
        if isinstance(c, jax.Array) and not isinstance(c, jax.core.Tracer)
    )


def constants_to_inputs(jaxpr: Jaxpr, arrays: Sequence[Any], place: int) -> Jaxpr:
    """Turns the constants that are these arrays into inputs, from `place` on."""
    if not arrays:
        return jaxpr
    specs = [spec(var) for var in jaxpr.jaxpr.invars]
    extra = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in arrays]
    where = {id(array): place + i for i, array in enumerate(arrays)}

    def run(*arguments: Any) -> list[Any]:
        consts = [
            arguments[where[id(c)]] if id(c) in where else c for c in jaxpr.consts
        ]
        own = (*arguments[:place], *arguments[place + len(arrays) :])
        return jax.core.eval_jaxpr(jaxpr.jaxpr, consts, *own)

    return make(run, [*specs[:place], *extra, *specs[place:]])


def bind(equation: Equation, operands: Sequence[Any], **params: Any) -> list[Any]:
    """Emits an equation's primitive again, on new operands, always as a list.

    Derivative rules travel with it.
    """
    primitive = equation.primitive
    bound = primitive.get_bind_params({**equation.params, **params})
    functions, bound = bound if isinstance(bound, tuple) else ((), bound)
    result = primitive.bind(*functions, *operands, **bound)
    return list(result) if primitive.multiple_results else [result]


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


def sharded(equation: Equation, function: Callable[..., Any]) -> Callable[..., Any]:
    """A function run on every shard as the body of a `shard_map` equation is."""
    params = equation.params
    names = ("mesh", "in_specs", "out_specs", "check_vma")
    options = {name: params[name] for name in names}
    axes = params["newly_manual_axes"]
    return jax.shard_map(function, axis_names=axes, **options)


def equations(jaxpr: Jaxpr) -> list[Equation]:
    """The equations of a closed jaxpr, in order."""
    return jaxpr.jaxpr.eqns


def nested(jaxpr: Jaxpr) -> Iterator[tuple[Equation, int]]:
    """Every equation at every depth, with how often a call runs it.

    A `scan` multiplies by its length; a `while` counts once, as no one knows.
    """
    for equation in equations(jaxpr):
        yield equation, 1
        for body in bodies(equation):
            for inner, count in nested(body.jaxpr):
                yield inner, count * repeats(equation)


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


def in_scopes(equation: Equation, scopes: slice) -> Equation:
    """An equation that stands in some of its scopes only."""
    return _placed(equation, equation.source_info.name_stack[scopes])


def _placed(equation: Equation, scope: Any) -> Equation:
    info = equation.source_info.replace(name_stack=scope)
    return equation.replace(source_info=info)


def with_params(equation: Equation, **params: Any) -> Equation:
    """The same equation with some other params; its operands are not looked at."""
    return equation.replace(params={**equation.params, **params})


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


def check(jaxpr: Jaxpr) -> None:
    """Raises if a jaxpr is not well-typed."""
    core.check_jaxpr(jaxpr.jaxpr)


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


def rebuilt(
    jaxpr: Jaxpr,
    equations: list[Equation],
    inputs: Sequence[Var],
    outputs: Sequence[Any],
    constants: Sequence[tuple[Var, Any]],
) -> Jaxpr:
    """The same jaxpr with other equations, inputs, outputs and constants."""
    new = jaxpr.jaxpr.replace(
        eqns=equations,
        invars=list(inputs),
        outvars=list(outputs),
        constvars=[var for var, _ in constants],
    )
    return _with_constants(new, [value for _, value in constants])


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


def fresh(var: Var) -> Var:
    """A new variable of the same type."""
    return core.Var(var.aval)


def is_dropped(var: Var) -> bool:
    """Whether an equation's output is marked as one that nothing reads."""
    return isinstance(var, core.DropVar)


def is_equation(thing: Any) -> bool:
    """Whether something is an equation."""
    return isinstance(thing, core.JaxprEqn)


def has_refs(jaxpr: Jaxpr) -> bool:
    """Whether a jaxpr reads or writes references (arrays that change in place)."""
    return bool(jaxpr.jaxpr.effects) and any(
        not is_value(var)
        for equation in equations(jaxpr)
        for var in (*equation.invars, *equation.outvars)
    )


def is_value(var: Var) -> bool:
    """Whether a variable holds a value: an array or keys, not a token or a ref."""
    return isinstance(var.aval, jax.core.ShapedArray)


def within(equation: Equation, outer: Equation) -> Equation:
    """An equation of a body, as it stands when the body takes the place of `outer`."""
    around = outer.source_info.name_stack
    return _placed(equation, around + equation.source_info.name_stack)


def primitive(name: str) -> Any:
    """One of JAX's own primitives."""
    return getattr(core.primitives, f"{name}_p")


def with_scan_counts(consts: int, carry: int, old: Equation) -> dict[str, Any] | None:
    """The params that say how many operands are constants and carried, if settable."""
    if "num_consts" not in old.params:
        return None
    return {"num_consts": consts, "num_carry": carry}


def takes_constants(equation: Equation, body: Body) -> bool:
    """Whether a body of an equation may have constants of its own."""
    held = equation.params[body.param]
    held = held if body.index is None else held[body.index]
    return isinstance(held, core.ClosedJaxpr)


def is_jaxpr(thing: Any) -> bool:
    """Whether something is a jaxpr, open or closed."""
    return isinstance(thing, core.Jaxpr | core.ClosedJaxpr)


def scalar(var: Var) -> Var:
    """A new variable for one element of a variable's array."""
    return core.Var(var.aval.update(shape=(), sharding=None))


def bits(operand: Any) -> bytes:
    """The bits of a literal, so that -0 is not 0."""
    return np.asarray(operand.val, operand.aval.dtype).tobytes()


def placed(equation: Equation, scope: Any, new: Sequence[Body]) -> Equation:
    """The same equation in another scope, with other bodies."""
    return _placed(with_params(equation, **replace_bodies(equation, new)), scope)


def identity(jaxpr: Jaxpr) -> tuple[Any, ...]:
    """What tells a closed jaxpr from others as long as it is kept."""
    return (id(jaxpr.jaxpr), *map(id, jaxpr.consts))


def distinct(jaxpr: Jaxpr) -> Jaxpr:
    """The same jaxpr with an object of its own for each equation at each place.

    JAX keeps one body for all calls of a function; what is known of an equation in it
    would be known of none of the calls.
    """
    new = []
    for equation in equations(jaxpr):
        inside = [b._replace(jaxpr=distinct(b.jaxpr)) for b in bodies(equation)]
        new.append(with_params(equation, **replace_bodies(equation, inside)))
    return with_equations(jaxpr, new)
