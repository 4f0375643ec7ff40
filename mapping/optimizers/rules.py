"""Which rule of several a param falls under: the first glob that names its path."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax

from mapping.core import Tree, leaf_paths, path_string
from mapping.errors import FieldError, UnknownPathError
from mapping.paths import nearest
from mapping.tree import matches


def label(params: Tree, globs: Sequence[str], where: str) -> Tree:
    """Returns a tree that holds, for each param, the first glob that names it.

    Args:
        params: any tree.
        globs: of paths, the more special ones first.
        where: whose rules these are, for messages.

    Raises:
        UnknownPathError: if a param is named by none, or a glob has no param.

    >>> label({"head": {"kernel": 1}, "body": {"kernel": 2}}, ["head/*", "*"], "p")
    {'body': {'kernel': '*'}, 'head': {'kernel': 'head/*'}}
    """
    owners: dict[str, str | None] = {
        path: next((glob for glob in globs if matches(glob, path)), None)
        for path in leaf_paths(params)
    }
    bare = [path for path, owner in owners.items() if owner is None]
    if bare:
        more = f" and {len(bare) - 5} more" if len(bare) > 5 else ""
        raise UnknownPathError(
            f"{where}: expected a rule for each of {len(owners)} params, got none for "
            f"{', '.join(bare[:5])}{more}. Add one, last '*' for all others."
        )
    for glob in globs:
        _check_used(glob, owners, where)
    return jax.tree_util.tree_map_with_path(
        lambda path, _: owners[path_string(path)], params
    )


def _check_used(glob: str, owners: dict[str, Any], where: str) -> None:
    if glob in owners.values():
        return
    taken = [(path, owner) for path, owner in owners.items() if matches(glob, path)]
    if taken:
        raise UnknownPathError(
            f"{where}: the rule {glob!r} is never reached: {taken[0][0]} falls under "
            f"{taken[0][1]!r}, which comes first. Put the more special rule first."
        )
    raise UnknownPathError(
        f"{where}: the rule {glob!r} names none of {len(owners)} params. Nearest: "
        f"{nearest(glob, owners)}."
    )


def check_globs(globs: Sequence[Any], where: str) -> None:
    """Refuses rules that name no paths, or one twice."""
    for glob in globs:
        if not isinstance(glob, str) or globs.count(glob) > 1:
            raise FieldError(
                f"{where}: expected globs of paths, each once, got {glob!r}. Write "
                "{'head/*': ..., '*': ...}."
            )
    if not globs:
        raise FieldError(f"{where}: expected a rule at least, got none. Add '*'.")
