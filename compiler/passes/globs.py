"""Checks that the globs a pass was given name something."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from compiler.errors import UnknownPathError
from compiler.graph import Graph
from compiler.paths import flatten, matches, operations


def check_globs(globs: Sequence[str], graph: Graph) -> None:
    """Checks that each glob names an operation of the graph.

    Raises:
        UnknownPathError: naming the paths that come nearest.
    """
    if not globs:
        return
    paths = sorted({o.path for o in flatten(operations(graph)) if o.path})
    for glob in globs:
        if not any(matches(glob, path) for path in paths):
            known = sorted({part for path in paths for part in prefixes(path)})
            near = difflib.get_close_matches(glob, known, 5, 0.5) or known[:8]
            raise UnknownPathError(
                f"{glob}: expected a path or glob of operations, names none. The "
                f"nearest there are: {', '.join(near) or '(no operation has one)'}."
            )


def prefixes(path: str) -> list[str]:
    """A path and all it is inside of, the outermost first.

    >>> prefixes("a/b/c")
    ['a', 'a/b', 'a/b/c']
    """
    names = path.split("/")
    return ["/".join(names[: i + 1]) for i in range(len(names))]
