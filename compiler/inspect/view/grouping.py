"""Makes boxes of a graph."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax

from compiler import jaxprs
from compiler.cost import Arithmetic, arithmetic, has_symbols, is_number
from compiler.cost.primitives import MOVING
from compiler.graph import Graph, Leaf
from compiler.inspect.view.boxes import SYMBOLIC, Box, Tree, number, plain_value
from compiler.inspect.view.functions import fold_functions
from compiler.inspect.view.repeats import fold_repeats
from compiler.paths import Operation, operations
from mapping.core import leaf_paths

_PRODUCTS = ("dot_general", "conv_general_dilated", "ragged_dot", "scaled_matmul")
_REDUCTIONS = ("reduce_", "arg", "cum", "sort", "top_k")
_FEW = 6


def tree(graph: Graph, title: str = "program") -> Tree:
    """Groups the operations of a graph by path.

    The bodies of `scan`, `while`, `cond`, of calls and of custom derivatives are
    groups as well, and so is a run of groups that are alike.

    Args:
        graph: the graph.
        title: of the drawing.

    >>> import jax, jax.numpy as jnp, compiler as mc
    >>> def net(w, x):
    ...     with jax.named_scope("dense"):
    ...         x = jnp.tanh(x @ w)
    ...     with jax.named_scope("head"):
    ...         return jnp.exp(x)
    >>> program = mc.trace(net, jnp.eye(2), jnp.ones((1, 2)))
    >>> [(box.kind, box.name) for box in tree(program.graph).boxes[2:5]]
    [('group', 'dense'), ('operation', 'dot_general'), ('operation', 'tanh')]
    """
    root = Box("group", title)
    inputs = _inputs(graph, root)
    given = [*graph.leaves, *inputs]
    env = dict(zip(graph.jaxpr.jaxpr.invars, given, strict=True))
    _fill(root, graph.jaxpr, operations(graph), env)
    _outputs(graph, root, env)
    fold_functions(root)
    fold_repeats(root)
    _add_up(root, graph)
    return Tree(title, number(root), graph.leaves)


def _inputs(graph: Graph, root: Box) -> list[Box]:
    inputs = graph.inputs
    within = root.add(Box("group", "inputs")) if len(inputs) > _FEW else root
    names = _names(graph.in_tree, len(inputs))
    return [
        within.add(Box("input", f"input {name}".strip(), shape=_written(spec)))
        for name, spec in zip(names, inputs, strict=True)
    ]


def _outputs(graph: Graph, root: Box, env: dict[Any, Any]) -> None:
    results = graph.jaxpr.jaxpr.outvars
    within = root.add(Box("group", "outputs")) if len(results) > _FEW else root
    names = _names(graph.out_tree, len(results))
    for name, var in zip(names, results, strict=True):
        box = Box("output", f"output {name}".strip(), shape=_written(var.aval))
        box.operands = (_operand(var, env),)
        within.add(box)


def _names(structure: Any, count: int) -> list[str]:
    """The paths of flat values in the tree they make up."""
    return list(leaf_paths(jax.tree.unflatten(structure, range(count))))


def _fill(
    inside: Box,
    jaxpr: jaxprs.Jaxpr,
    found: Sequence[Operation],
    env: dict[Any, Any],
) -> None:
    """Puts the operations of one jaxpr into a box, grouped by path."""
    groups = {"": inside}
    for operation in found:
        equation = operation.equation
        below = _below(operation.path, inside.path)
        box = _group(groups, below, operation.path).add(_box(operation, env))
        inner = jaxprs.bodies(equation)
        for place, (body, ops) in enumerate(zip(inner, operation.bodies, strict=True)):
            into = box
            if len(inner) > 1:
                name = _body_name(body, place)
                into = box.add(Box("body", name, box.path, early=box.early))
            taken = [_operand(equation.invars[i], env) for i in body.operands]
            _fill(into, body.jaxpr, ops, dict(zip(_invars(body), taken, strict=True)))
        env.update((var, box) for var in equation.outvars)


def _invars(body: jaxprs.Body) -> Sequence[Any]:
    return body.jaxpr.jaxpr.invars


def _body_name(body: jaxprs.Body, place: int) -> str:
    return f"branch {place}" if body.index is not None else body.param.split("_")[0]


def _below(path: str, outer: str) -> str:
    """What of a path goes on from another."""
    names, others = path.split("/"), outer.split("/")
    shared = 0
    while shared < min(len(names), len(others)) and names[shared] == others[shared]:
        shared += 1
    return "/".join(names[shared:])


def _group(groups: dict[str, Box], below: str, path: str) -> Box:
    """The group for a path, made with those around it where there is none."""
    if below not in groups:
        rest, _, name = below.rpartition("/")
        outer = _group(groups, rest, path.rpartition("/")[0])
        groups[below] = outer.add(Box("group", name, path))
    return groups[below]


def _box(operation: Operation, env: dict[Any, Any]) -> Box:
    equation = operation.equation
    operands = tuple(_operand(var, env) for var in equation.invars)
    counted = _counted(operation)
    flops, transcendentals = counted or Arithmetic()
    times = operation.times if is_number(operation.times) else 1
    params = ((key, plain_value(v)) for key, v in sorted(equation.params.items()))
    return Box(
        "operation",
        jaxprs.label(equation),
        operation.path,
        shape=", ".join(_written(v.aval) for v in equation.outvars) or "nothing",
        operands=operands,
        source=jaxprs.source(equation),
        category=_category(equation, counted),
        details=tuple((k, v) for k, v in params if v not in (None, "None", "()")),
        note=_note(operation, counted),
        times=times,
        flops=flops * times,
        transcendentals=transcendentals * times,
        early=all(not isinstance(o, Box) or o.early for o in operands),
        count=1,
    )


def _counted(operation: Operation) -> Arithmetic | None:
    """The arithmetic of one operation; None if it is unknown, or depends on symbols."""
    equation = operation.equation
    computes = equation.primitive.name not in MOVING and not jaxprs.bodies(equation)
    return None if computes and _is_symbolic(operation) else arithmetic(equation)


def _is_symbolic(operation: Operation) -> bool:
    equation = operation.equation
    symbols = has_symbols(*equation.invars, *equation.outvars)
    return symbols or not is_number(operation.times)


def _note(operation: Operation, counted: Arithmetic | None) -> str:
    equation = operation.equation
    if equation.primitive.name == "while":
        return "unknown number of iterations, counted once"
    if equation.primitive.name == "scan":
        return f"{equation.params['length']} iterations"
    if counted is None and _is_symbolic(operation):
        return SYMBOLIC
    return "" if counted else "unknown, not counted"


def _operand(var: Any, env: dict[Any, Any]) -> Box | Leaf | str:
    if jaxprs.is_literal(var):
        return f"{var.val}" if getattr(var.aval, "shape", None) == () else "constant"
    return env.get(var, "constant")


def _written(aval: Any) -> str:
    if hasattr(aval, "shape") and hasattr(aval, "dtype"):
        return f"{aval.dtype}[{', '.join(map(str, aval.shape))}]"
    return str(aval)


def _category(equation: jaxprs.Equation, counted: Arithmetic | None) -> str:
    name = equation.primitive.name
    if jaxprs.has_jaxprs(equation):
        return "control"
    if name.startswith(_PRODUCTS):
        return "product"
    if name.startswith(_REDUCTIONS):
        return "reduce"
    return "move" if counted == Arithmetic() else "elementwise"


def _add_up(root: Box, graph: Graph) -> None:
    """Adds costs up from the inside out; of branches the dearest counts."""
    place = {id(leaf): i for i, leaf in enumerate(graph.leaves)}
    order = list(root.walk())
    for box in order:
        for leaf in box.reads:
            size = 0 if has_symbols(leaf.spec) else leaf.bytes
            _read(box, place[id(leaf)], size)
    for box in reversed(order):
        counted = box.children
        if box.kind == "operation" and box.name.startswith("cond"):
            counted = [max(counted, key=lambda b: b.flops + b.transcendentals)]
        box.flops += sum(child.flops for child in counted)
        box.transcendentals += sum(child.transcendentals for child in counted)
        box.count += sum(child.count for child in box.children)
        if box.kind in ("group", "repeat", "function"):
            box.early = all(child.early for child in box.children)


def _read(box: Box, leaf: int, size: int) -> None:
    for outer in box.above():
        if leaf in outer.leaves:
            return
        outer.leaves[leaf] = None
        outer.bytes += size
