"""Views that change nothing, undo each other, or are one view together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from compiler import jaxprs
from compiler.passes.simplify.sweep import Change, Scope, Table

LAYOUT = Table()


def _identity(what: str, *primitives: str) -> Callable[[Any], Any]:
    """Registers a test for equations that return their first operand as it is."""

    def register(test: Callable[[jaxprs.Equation], bool]) -> Any:
        @LAYOUT.on(*primitives)
        def rule(scope: Scope, equation: jaxprs.Equation) -> Change | None:
            if equation.invars[0].aval != equation.outvars[0].aval:
                return None
            if not test(equation):
                return None
            return Change(f"identity {what}", [equation.invars[0]])

        return test

    return register


@_identity("reshape", "reshape")
def _same_order(equation: jaxprs.Equation) -> bool:
    return equation.params["dimensions"] is None


@_identity("convert", "convert_element_type")
@_identity("copy", "copy", "copy_p")
@_identity("bitcast", "bitcast_convert_type")
@_identity("concatenate", "concatenate")
@_identity("split", "split")
def _same_type(equation: jaxprs.Equation) -> bool:
    return len(equation.invars) == 1 == len(equation.outvars)


@_identity("slice", "slice", "dynamic_slice")
def _whole(equation: jaxprs.Equation) -> bool:
    strides = equation.params.get("strides")
    return strides is None or all(stride == 1 for stride in strides)


@_identity("transpose", "transpose")
def _in_place(equation: jaxprs.Equation) -> bool:
    permutation = equation.params["permutation"]
    return tuple(permutation) == tuple(range(len(permutation)))


@_identity("broadcast", "broadcast_in_dim")
@_identity("squeeze", "squeeze")
def _same_shape(equation: jaxprs.Equation) -> bool:
    return len(equation.invars) == 1


@_identity("reduction", "reduce_sum", "reduce_max", "reduce_min", "reduce_prod")
@_identity("reduction", "reduce_and", "reduce_or")
def _over_nothing(equation: jaxprs.Equation) -> bool:
    return not equation.params["axes"]


@_identity("rev", "rev")
def _of_one(equation: jaxprs.Equation) -> bool:
    shape = equation.invars[0].aval.shape
    return all(shape[axis] == 1 for axis in equation.params["dimensions"])


@_identity("pad", "pad")
def _by_nothing(equation: jaxprs.Equation) -> bool:
    return all(tuple(c) == (0, 0, 0) for c in equation.params["padding_config"])


@LAYOUT.on("dynamic_update_slice")
def whole_update(scope: Scope, equation: jaxprs.Equation) -> Change | None:
    """An update of the whole array is the update."""
    update = equation.invars[1]
    if update.aval != equation.outvars[0].aval:
        return None
    return Change("update of the whole", [update])


@LAYOUT.on("transpose")
def transpose_of_transpose(scope: Scope, equation: jaxprs.Equation) -> Change | None:
    """Two permutations are one."""
    inner = scope.maker(equation.invars[0], "transpose")
    if inner is None:
        return None
    first, then = inner.params["permutation"], equation.params["permutation"]
    composed = tuple(first[axis] for axis in then)
    return _onto(inner, equation, "transposes joined", permutation=composed)


@LAYOUT.on("reshape")
def reshape_of_view(scope: Scope, equation: jaxprs.Equation) -> Change | None:
    """A reshape of what has the same elements in the same order."""
    inner = _row_major(scope, equation.invars[0])
    if inner is None or equation.params["dimensions"] is not None:
        return None
    if inner.invars[0].aval == equation.outvars[0].aval:
        return Change("reshape undone", [inner.invars[0]])
    return _onto(inner, equation, "reshapes joined")


@LAYOUT.on("squeeze", "broadcast_in_dim")
def view_undone(scope: Scope, equation: jaxprs.Equation) -> Change | None:
    """Axes of extent one that are added and removed again."""
    inner = _row_major(scope, equation.invars[0])
    if inner is None or not _keeps_order(equation):
        return None
    if inner.invars[0].aval != equation.outvars[0].aval:
        return None
    return Change("reshape undone", [inner.invars[0]])


@LAYOUT.on("broadcast_in_dim")
def broadcast_of_broadcast(scope: Scope, equation: jaxprs.Equation) -> Change | None:
    """Two broadcasts are one."""
    inner = scope.maker(equation.invars[0], "broadcast_in_dim")
    if inner is None or len(inner.invars) > 1 or len(equation.invars) > 1:
        return None
    then = equation.params["broadcast_dimensions"]
    composed = tuple(then[axis] for axis in inner.params["broadcast_dimensions"])
    return _onto(inner, equation, "broadcasts joined", broadcast_dimensions=composed)


@LAYOUT.on("squeeze")
def squeeze_of_squeeze(scope: Scope, equation: jaxprs.Equation) -> Change | None:
    """Two squeezes are one."""
    inner = scope.maker(equation.invars[0], "squeeze")
    if inner is None:
        return None
    first = inner.params["dimensions"]
    left = [i for i in range(len(inner.invars[0].aval.shape)) if i not in first]
    then = [left[axis] for axis in equation.params["dimensions"]]
    return _onto(
        inner, equation, "squeezes joined", dimensions=tuple(sorted([*first, *then]))
    )


@LAYOUT.on("slice")
def slice_of_slice(scope: Scope, equation: jaxprs.Equation) -> Change | None:
    """Two slices are one, where each takes every element between its limits."""
    inner = scope.maker(equation.invars[0], "slice")
    if inner is None or not (_whole(inner) and _whole(equation)):
        return None
    offset = inner.params["start_indices"]
    start, limit = (
        tuple(a + b for a, b in zip(offset, equation.params[name], strict=True))
        for name in ("start_indices", "limit_indices")
    )
    return _onto(
        inner, equation, "slices joined", start_indices=start, limit_indices=limit
    )


@LAYOUT.on("dynamic_slice")
def slice_at_numbers(scope: Scope, equation: jaxprs.Equation) -> Change | None:
    """A dynamic slice at known places is a slice, moved inside as JAX does."""
    value, *places = equation.invars
    sizes = equation.params["slice_sizes"]
    numbers = [scope.number(place) for place in places]
    if any(n is None for n in numbers) or len(places) != len(sizes):
        return None
    extents = value.aval.shape
    if not all(isinstance(n, int) for n in (*extents, *sizes)):
        return None
    start = tuple(
        min(max(int(n), 0), extent - size)  # ty: ignore[invalid-argument-type]
        for n, extent, size in zip(numbers, extents, sizes, strict=True)
    )
    limit = tuple(a + b for a, b in zip(start, sizes, strict=True))
    new = equation.replace(
        primitive=jaxprs.primitive("slice"),
        invars=[value],
        params={"start_indices": start, "limit_indices": limit, "strides": None},
    )
    return Change("slice at a known place", equation=new)


@LAYOUT.on("dot_general")
def dot_of_transpose(scope: Scope, equation: jaxprs.Equation) -> Change | None:
    """A product contracts the axes of what was transposed, where the order allows."""
    operands = list(equation.invars)
    contracted, batched = map(list, equation.params["dimension_numbers"])
    found = False
    for side in range(2):
        inner = scope.maker(operands[side], "transpose")
        if inner is None:
            continue
        back = inner.params["permutation"]
        taken = {*contracted[side], *batched[side]}
        free = [back[axis] for axis in range(len(back)) if axis not in taken]
        if free == sorted(free):
            contracted[side] = tuple(back[axis] for axis in contracted[side])
            batched[side] = tuple(back[axis] for axis in batched[side])
            operands[side] = inner.invars[0]
            found = True
    if not found:
        return None
    numbers = (tuple(map(tuple, contracted)), tuple(map(tuple, batched)))
    params = {**equation.params, "dimension_numbers": numbers}
    new = equation.replace(invars=operands, params=params)
    return Change("transpose merged into a product", equation=new)


def _row_major(scope: Scope, operand: Any) -> jaxprs.Equation | None:
    """The view that made an operand, if it kept the order of the elements."""
    inner = scope.maker(operand, "reshape", "squeeze", "broadcast_in_dim")
    return inner if inner is not None and _keeps_order(inner) else None


def _keeps_order(equation: jaxprs.Equation) -> bool:
    if len(equation.invars) > 1 or equation.params.get("sharding") is not None:
        return False
    if equation.primitive.name == "reshape":
        return equation.params["dimensions"] is None
    if equation.primitive.name == "squeeze":
        return True
    old, new = equation.invars[0].aval.shape, equation.outvars[0].aval.shape
    return [n for n in old if n != 1] == [n for n in new if n != 1]


def _onto(
    inner: jaxprs.Equation, equation: jaxprs.Equation, what: str, **params: Any
) -> Change:
    """The equation on the operands of the one before it."""
    new = equation.replace(
        invars=list(inner.invars), params={**equation.params, **params}
    )
    return Change(what, equation=new)
