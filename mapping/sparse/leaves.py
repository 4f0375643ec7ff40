"""Which leaves of a tree are made sparse."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from mapping.errors import FieldError, NotTrainableError, UnknownPathError
from mapping.paths import Tree, describe, leaf_paths, nearest
from mapping.tree import matches

_DENSE = ("bias", "scale", "gamma", "beta", "embed", "norm")
"""Parts of names of what is dense unless it is asked for."""


def sparse_leaves(
    params: Tree,
    at: tuple[str, ...] = (),
    but: tuple[str, ...] = (),
    where: str = "sparse",
) -> dict[str, Any]:
    """Lists by path the leaves that are made sparse.

    Those are the kernels: all of rank 2 or more, except for biases, scales, norms and
    embeddings, told by the last two names of the path (stacked ones have a rank of 2,
    too). Globs say it otherwise.

    Args:
        params: any tree; only shapes and dtypes are looked at.
        at: globs of what is made sparse, instead of the kernels.
        but: globs of what among these stays dense.
        where: whose globs these are, for messages.

    Raises:
        UnknownPathError: if a glob names nothing, or nothing is left.
        NotTrainableError: if a glob of `at` names what is not real.

    >>> leaf = jnp.ones((2, 2))
    >>> params = {"dense": {"kernel": leaf, "bias": leaf}, "head": {"kernel": leaf}}
    >>> [*sparse_leaves(params, but=("head/*",))]
    ['dense/kernel']
    """
    leaves = leaf_paths(params)
    for glob in (*at, *but):
        _check_glob(glob, leaves, where)
    if at:
        chosen = [path for path in leaves if any(matches(glob, path) for glob in at)]
    else:
        chosen = [path for path, leaf in leaves.items() if _is_kernel(path, leaf)]
    found = {path: leaves[path] for path in chosen}
    for glob in but:
        found = {p: leaf for p, leaf in found.items() if not matches(glob, p)}
    if not found:
        raise UnknownPathError(
            f"{where}: expected a kernel at least among {len(leaves)} params, got "
            f"{', '.join([*leaves][:3]) or 'none'}. Name them: at=('*/weight',)."
        )
    for path, leaf in found.items():
        _check_real(path, leaf, where)
    return found


def check_paths(globs: Any, where: str) -> None:
    """Refuses what is no tuple of globs."""
    if not isinstance(globs, tuple) or not all(isinstance(g, str) for g in globs):
        raise FieldError(
            f"{where}: expected a tuple of globs, got {globs!r}. Write ('head/*',)."
        )


def _check_glob(glob: str, leaves: dict[str, Any], where: str) -> None:
    if not any(matches(glob, path) for path in leaves):
        raise UnknownPathError(
            f"{where}: {glob!r} names none of {len(leaves)} params. Nearest: "
            f"{nearest(glob, leaves)}."
        )


def _is_kernel(path: str, leaf: Any) -> bool:
    names = "/".join(path.lower().split("/")[-2:])
    dense = any(part in names for part in _DENSE)
    return not dense and jnp.ndim(leaf) >= 2 and _is_real(leaf)


def _is_real(leaf: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(leaf), jnp.floating)


def _check_real(path: str, leaf: Any, where: str) -> None:
    if not _is_real(leaf):
        raise NotTrainableError(
            f"{path}: expected real weights to make sparse, got {describe(leaf)}. "
            f"Leave it out: {where}(..., but=({path!r},))."
        )
