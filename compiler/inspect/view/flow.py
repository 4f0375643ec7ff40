"""Which boxes of one level data flows between."""

from __future__ import annotations

from collections import defaultdict

from compiler.inspect.view.boxes import Box, Tree


def flow(tree: Tree) -> dict[Box, list[tuple[int, int]]]:
    """For each box, the edges between its children, as places among them.

    An operation that reads what another made, however deep both are, is an edge
    between the two boxes of the level where their ways part.

    >>> import jax, jax.numpy as jnp, compiler as mc
    >>> from compiler.inspect.view.grouping import tree
    >>> def net(w, x):
    ...     with jax.named_scope("dense"):
    ...         x = jnp.tanh(x @ w)
    ...     with jax.named_scope("head"):
    ...         return jnp.exp(x)
    >>> boxes = tree(mc.trace(net, jnp.eye(2), jnp.ones((1, 2))).graph)
    >>> flow(boxes)[boxes.root]
    [(0, 1), (1, 2), (2, 3)]
    """
    place = {child: i for box in tree.boxes for i, child in enumerate(box.children)}
    edges: dict[Box, dict[tuple[int, int], None]] = defaultdict(dict)
    for box in tree.boxes:
        for operand in box.operands:
            if isinstance(operand, Box):
                outer, start, end = _part(operand, box)
                edges[outer][place[start], place[end]] = None
    return {box: list(found) for box, found in edges.items()}


def _part(start: Box, end: Box) -> tuple[Box, Box, Box]:
    """The innermost box around both, and its children that hold them."""
    outer = end.parent
    while outer is not None and not outer.index <= start.index < outer.end:
        end, outer = outer, outer.parent
    while start.parent is not None and start.parent is not outer:
        start = start.parent
    if outer is None:
        raise ValueError("two boxes of different trees")
    return outer, start, end
