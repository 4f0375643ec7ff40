"""The masks in an optimizer's state: found, read, applied to params."""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Mapping as Dict
from typing import Any, NamedTuple

import jax
import numpy as np

from mapping.errors import ShapeMismatchError, UnknownPathError
from mapping.paths import Tree, describe, leaf_paths, nearest, path_string
from mapping.sparse.largest import Array


class SparseState(NamedTuple):
    """What a sparse optimizer carries along.

    Attributes:
        masks: booleans with the paths of the params that are made sparse.
        scores: what its method accumulates, likewise; or nothing.
        count: steps so far.
        inner_state: of the optimizer inside.

    >>> import optax
    >>> from mapping.sparse import hold
    >>> state = hold(optax.sgd(0.1)).transform().init({"kernel": np.eye(2)})
    >>> type(state).__name__, state.masks["kernel"].tolist()
    ('SparseState', [[True, False], [False, True]])
    """

    masks: Tree
    scores: Tree
    count: Array
    inner_state: Any


def read_masks(state: Tree) -> dict[str, Array]:
    """Finds the masks in an optimizer's state, by the paths of the params.

    Args:
        state: of optax or of `mapping.optimizers`, a `TrainStep`'s, nested however.

    Raises:
        UnknownPathError: if there are none.

    >>> import optax
    >>> from mapping.sparse import sparse
    >>> params = {"kernel": np.ones((2, 2), "float32")}
    >>> transform = (optax.clip(1.0) >> sparse(optax.sgd(0.1), 0.5)).transform()
    >>> read_masks(transform.init(params))["kernel"].tolist()
    [[True, True], [True, True]]
    """
    found: dict[str, Array] = {}
    for node in _nodes(state):
        found |= leaf_paths(node["masks"])
    if not found:
        raise UnknownPathError(
            "read_masks: expected the state of a sparse optimizer, got one without "
            "masks. Pass what init or update of sparse(...) returned."
        )
    return found


def apply_masks(params: Tree, masks: Tree) -> Tree:
    """Sets to zero what the masks leave out.

    Args:
        params: any tree.
        masks: booleans by path, such as [`read_masks`][] returns, or a tree with the
            same paths; params without one stay as they are.

    Raises:
        UnknownPathError: if a mask belongs to none of the params.
        ShapeMismatchError: if it has another shape.

    >>> params = {"kernel": np.array([1.0, 2.0]), "bias": np.array([3.0])}
    >>> apply_masks(params, {"kernel": np.array([True, False])})
    {'bias': array([3.]), 'kernel': array([1., 0.])}
    """
    by_path, leaves = leaf_paths(masks), leaf_paths(params)
    for path, mask in by_path.items():
        if path not in leaves:
            raise UnknownPathError(
                f"{path}: a mask of none of {len(leaves)} params. Nearest: "
                f"{nearest(path, leaves)}."
            )
        if np.shape(mask) != np.shape(leaves[path]):
            raise ShapeMismatchError(
                f"{path}: expected a mask {list(np.shape(leaves[path]))}, got "
                f"{describe(mask)}. Pass the masks of these params."
            )

    def apply(path: tuple[Any, ...], leaf: Any) -> Any:
        mask = by_path.get(path_string(path))
        return leaf if mask is None else masked(leaf, mask)

    return jax.tree_util.tree_map_with_path(apply, params)


def masked(leaf: Array, mask: Array) -> Array:
    """The leaf, exactly zero where the mask is not true.

    >>> masked(np.array([-1.0, float("nan")]), np.array([True, False]))
    array([-1.,  0.])
    """
    host = isinstance(leaf, np.ndarray) and isinstance(mask, np.ndarray)
    numbers: Any = np if host else jax.numpy
    return numbers.where(mask, leaf, numbers.zeros_like(leaf))


def mask_moments(state: Tree, masks: dict[str, Array]) -> Tree:
    """Sets to zero the moments of pruned weights.

    A moment of a param is told by its path, which ends with that of the param, and by
    its shape.
    """

    def apply(path: tuple[Any, ...], leaf: Any) -> Any:
        mask = _longest(path_string(path), masks)
        same = mask is not None and np.shape(mask) == np.shape(leaf)
        return masked(leaf, mask) if same else leaf

    return jax.tree_util.tree_map_with_path(apply, state)


def _longest(path: str, masks: dict[str, Array]) -> Array | None:
    names = path.split("/")
    for start in range(len(names)):
        found = masks.get("/".join(names[start:]))
        if found is not None:
            return found
    return None


def _nodes(state: Tree) -> Iterator[Dict[str, Any]]:
    """The states of sparse optimizers, also where `Optimizer` wrote them as dicts."""
    for node in jax.tree.leaves(state, is_leaf=_is_sparse):
        if isinstance(node, SparseState):
            yield node._asdict()
            yield from _nodes(node.inner_state)
        elif _is_sparse(node):
            yield node
            yield from _nodes(node.get("inner_state", ()))


def _is_sparse(node: Any) -> bool:
    if isinstance(node, SparseState):
        return True
    return (
        isinstance(node, Dict)
        and {"masks", "count"} <= {*node}
        and {*node} <= {*SparseState._fields}
    )
