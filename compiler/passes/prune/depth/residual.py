"""Which sums are residual: what is added was made from what it is added to."""

from __future__ import annotations

import dataclasses
import functools
import operator

import numpy as np

from compiler.passes.prune.depth.flow import Flow, Step

_LIGHT = frozenset(
    (
        "broadcast_in_dim",
        "convert_element_type",
        "copy",
        "copy_p",
        "closed_call",
        "div",
        "jit",
        "mul",
        "name",
        "neg",
        "optimization_barrier",
        "pcast",
        "pvary",
        "reduce_precision",
        "remat2",
        "reshape",
        "sharding_constraint",
        "squeeze",
        "stop_gradient",
        "transpose",
    )
)
"""What a shortcut may do to a value on its way and still be a shortcut."""


@dataclasses.dataclass(frozen=True)
class Branch:
    """What a residual sum adds to its shortcut.

    Attributes:
        step: the number of the sum among the steps.
        skip: which operand of the sum the shortcut is.
        outer: where it is one of several branches that are summed first, the sums
            that these are in, each with its operand that the branch is not in.
        own: the leaves read only in the branch, in the order it reads them.
        reads: all that its own operations read, in that order.
        shared: the leaves it reads through operations that others need too.
    """

    step: int
    skip: int
    outer: tuple[tuple[int, int], ...]
    own: tuple[int, ...]
    reads: tuple[int, ...]
    shared: tuple[int, ...]


def is_sum(flow: Flow, step: Step) -> bool:
    """Whether a step adds two activations of one shape."""
    equation = step.equation
    if equation is None or equation.primitive.name != "add":
        return False
    shape = equation.outvars[0].aval.shape
    known = any(flow.leaves[v] is not None for v in step.inputs)
    same = all(var.aval.shape == shape for var in equation.invars)
    return bool(shape) and same and not known


def shortcut(flow: Flow, step: Step) -> int | None:
    """Which operand of a sum the other one was made from, if it was."""
    for through in (False, True):
        for skip in (0, 1):
            one, other = step.inputs[skip], step.inputs[1 - skip]
            roots = _roots(flow, one, through)
            if roots & flow.before(other, min(flow.made[v] for v in roots)):
                return skip
    return None


def cancels(flow: Flow, step: Step, skip: int) -> bool:
    """Whether the shortcut is subtracted again: x + (q - x), a gradient's detour."""
    roots = _roots(flow, step.inputs[skip], False)
    for value in _roots(flow, step.inputs[1 - skip], False):
        maker = flow.steps[flow.made[value]] if flow.made[value] >= 0 else None
        if maker is not None and maker.equation is not None:
            name = maker.equation.primitive.name
            if name == "sub" and roots & _roots(flow, maker.inputs[1], False):
                return True
    return False


def branches(flow: Flow, number: int, skip: int, live: bytearray) -> list[Branch]:
    """What is added to a shortcut: one branch, or several that are summed first.

    Args:
        flow: of the graph.
        number: of the sum's step.
        skip: which operand the shortcut is.
        live: what is needed as things are.
    """
    stem = flow.steps[number].inputs[skip]
    roots = _roots(flow, stem, True)
    whole = _branch(flow, (number, skip), (), live, roots)
    return _divided(flow, whole, live, roots) or [whole]


def _divided(
    flow: Flow, whole: Branch, live: bytearray, roots: set[int]
) -> list[Branch] | None:
    """The branches that a branch is the sum of, if each has weights of its own."""
    added = flow.steps[whole.step].inputs[1 - whole.skip]
    number = flow.made[added]
    after = flow.needed({whole.step: flow.steps[whole.step].inputs[whole.skip]})
    if number < 0 or not is_sum(flow, flow.steps[number]) or after[added]:
        return None
    outer = ((whole.step, whole.skip), *whole.outer)
    parts: list[Branch] = []
    for skip in (1, 0):
        since = min(flow.made[root] for root in roots)
        part = flow.steps[number].inputs[1 - skip]
        one = _branch(flow, (number, skip), outer, live, roots)
        if roots.isdisjoint(flow.before(part, since)) or not one.own:
            return None
        parts += _divided(flow, one, live, roots) or [one]
    return parts


def _branch(
    flow: Flow,
    place: tuple[int, int],
    outer: tuple[tuple[int, int], ...],
    live: bytearray,
    roots: set[int],
) -> Branch:
    """What would be gone if a sum were one of its operands alone.

    Args:
        flow: of the graph.
        place: the number of the sum's step, and that operand.
        outer: the sums around it.
        live: what is needed as things are.
        roots: what the branch was made from.
    """
    number, skip = place
    stem, added = (flow.steps[number].inputs[i] for i in (skip, 1 - skip))
    after = flow.needed({number: stem})
    inside = flow.between(roots, added)
    reads: dict[int, None] = {}
    shared: dict[int, None] = {}
    for one in flow.steps[: number + 1]:
        if any(flow.leaves[v] is not None for v in one.outputs):
            continue
        if any(live[v] and not after[v] for v in one.outputs):
            reads |= dict.fromkeys(_leaves_read(flow, one))
        elif inside.intersection(one.outputs):
            shared |= dict.fromkeys(_leaves_read(flow, one))
    own = tuple(i for i in reads if not after[flow.given[i]])
    left = tuple(leaf for leaf in shared if leaf not in reads)
    return Branch(number, skip, outer, own, tuple(reads), left)


def _leaves_read(flow: Flow, step: Step) -> list[int]:
    """The leaves that known operands of a step follow from, in order."""
    bits = functools.reduce(operator.or_, (flow.leaves[v] or 0 for v in step.inputs), 0)
    return [i for i in range(bits.bit_length()) if bits >> i & 1]


def _roots(flow: Flow, value: int, through_sums: bool) -> set[int]:
    """A value and what it is, but for a gain, a cast or a new arrangement."""
    found: set[int] = set()
    waiting = [value]
    while waiting:
        value = waiting.pop()
        if value in found or flow.leaves[value] is not None:
            continue
        found.add(value)
        number = flow.made[value]
        if number < 0:
            continue
        step = flow.steps[number]
        given = [v for v in step.inputs if flow.leaves[v] is None]
        if _is_light(step, given) or (through_sums and is_sum(flow, step)):
            waiting.extend(given)
    return found


def _is_light(step: Step, given: list[int]) -> bool:
    name = step.equation.primitive.name if step.equation else step.border
    return len(given) == 1 and name in _LIGHT


def size(shapes: list[tuple[int, ...]], leaves: tuple[int, ...]) -> int:
    """How many numbers some leaves hold."""
    return sum(int(np.prod(shapes[i], dtype=np.int64)) for i in leaves)
