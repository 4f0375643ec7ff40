"""What is open when a drawing is looked at first."""

from __future__ import annotations

from compiler.inspect.view.boxes import Box, Tree

_FEW = 12


def opened(tree: Tree, depth: int | None = None, limit: int = 40) -> set[Box]:
    """The boxes that are open: level by level, while at most `limit` are seen.

    Unasked, only what shows structure opens: groups that hold groups, and what
    holds next to everything. A small program opens as a whole.

    Args:
        tree: the boxes.
        depth: open exactly so many levels instead; 0 shows the outermost only.
        limit: how many boxes may be seen.
    """
    found, level, seen = {tree.root}, [tree.root], len(tree.root.children)
    small = len(tree.boxes) <= limit
    while level and (depth is None or depth > 0):
        inside = [c for box in level for c in box.children if c.children]
        level = inside
        if depth is not None:
            depth -= 1
        else:
            level = [c for c in inside if _opens(c, tree, small)]
            seen += sum(len(box.children) for box in level)
            if seen > limit and not all(_nearly_all(box, tree) for box in level):
                break
        found.update(level)
    return found


def _opens(box: Box, tree: Tree, small: bool) -> bool:
    """Whether a box is worth opening unasked: no runs and no small calls."""
    if box.kind in ("repeat", "function"):
        return False
    if box.kind == "operation" and box.count <= _FEW:
        return False
    if small or _nearly_all(box, tree):
        return True
    return any(child.children and child.count > _FEW for child in box.children)


def _nearly_all(box: Box, tree: Tree) -> bool:
    return box.count > 0.9 * tree.root.count
