"""What two programs have in common, and what only one of them has."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence

from compiler.graph import Leaf
from compiler.inspect.view.boxes import Box, Tree


def align(before: Tree, after: Tree) -> dict[str, int]:
    """Marks every box of two trees, and pairs those that stand for one another.

    Groups go together by name within what they are inside of, operations by
    primitive: first those whose operands, results and parameters are described
    alike (`same`), then, in order, what is left of a primitive (`changed`). What
    finds no partner is `only` in one of the two.

    Args:
        before: one program.
        after: the other.

    Returns:
        How many operations are `same`, `changed`, `only before`, `only after`.

    >>> import jax.numpy as jnp, compiler as mc
    >>> from compiler.inspect.view.grouping import tree
    >>> program = mc.trace(lambda w, x: x @ jnp.exp(w), jnp.eye(2), jnp.ones((1, 2)))
    >>> align(tree(program.graph), tree(mc.fold()(program).graph))
    {'same': 0, 'changed': 1, 'only before': 1, 'only after': 0}
    """
    _match([before.root], [after.root])
    _pair_folds(before)
    for box in (*before.boxes, *after.boxes):
        if box.pair is None:
            box.mark = "only"
    counts = dict.fromkeys(("same", "changed", "only before", "only after"), 0)
    for tree, side in ((before, "before"), (after, "after")):
        for box in tree.boxes:
            if box.kind == "operation":
                if box.mark == "only":
                    counts[f"only {side}"] += 1
                elif side == "after":
                    counts[box.mark] += 1
    return counts


def _match(before: Sequence[Box], after: Sequence[Box]) -> None:
    """Pairs boxes of one place of both programs, and what is inside them."""
    rounds: tuple[tuple[Callable[[Box], Hashable], str], ...] = (
        (_described, "same"),
        (lambda box: (box.kind, box.name, box.shape), "changed"),
        (lambda box: (box.kind, box.name), "changed"),
        (lambda box: (box.kind, box.name.split(" ")[0]), "changed"),
    )
    for key, mark in rounds:
        waiting: dict[Hashable, list[Box]] = defaultdict(list)
        for box in reversed(before):
            if box.pair is None:
                waiting[key(box)].append(box)
        for box in after:
            if box.pair is None and waiting[key(box)]:
                _pair(waiting[key(box)].pop(), box, mark)
    for box in before:
        if box.pair is not None and box.children:
            _match(box.members, box.pair.members)


def _pair(before: Box, after: Box, mark: str) -> None:
    before.pair, after.pair = after, before
    before.mark = after.mark = mark


def _described(box: Box) -> Hashable:
    """What two operations that do the same have in common; of a group, its name."""
    if box.kind != "operation":
        return box.kind, box.name if box.parent else ""
    operands = tuple(
        (o.path, str(o.spec)) if isinstance(o, Leaf) else _given(o)
        for o in box.operands
    )
    return box.kind, box.name, box.shape, operands, box.details


def _given(operand: Box | str) -> str:
    return operand.shape if isinstance(operand, Box) else operand


def _pair_folds(before: Tree) -> None:
    """Pairs runs whose first members are paired, the inner ones first."""
    for box in reversed(before.boxes):
        if box.kind in ("repeat", "function"):
            pair = box.children[0].pair
            other = pair.parent if pair else None
            if other and other.kind == box.kind and other.pair is None:
                _pair(box, other, "same")
