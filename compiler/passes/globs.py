"""What globs are about: leaves and operations, and that they name something."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from compiler.errors import UnknownPathError
from compiler.graph import Graph, Leaf
from compiler.paths import flatten, matches, operations
from compiler.sites import WeightSite

_COLLECTIONS = ("params", "state")


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


def names_of(leaf: Leaf, sites: Sequence[WeightSite]) -> list[str]:
    """What a leaf may be called: its path, shorter ones, those of where it is used."""
    return [*shortened(leaf.path), *(site.path for site in sites if site.path)]


def shortened(path: str) -> list[str]:
    """A path, and what is left of it without the collections it begins with.

    >>> shortened("state/params/dense/kernel")
    ['state/params/dense/kernel', 'params/dense/kernel', 'dense/kernel']
    """
    found = [path]
    while "/" in path and path.split("/", 1)[0] in _COLLECTIONS:
        path = path.split("/", 1)[1]
        found.append(path)
    return found
