"""Foreign trees as nested dicts of arrays, and back."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from mapping.errors import FieldError, MissingVariablesError, NameCollisionError

Names: TypeAlias = tuple[str, ...]
"""Where a leaf is in a nested dict: the steps of its path."""


def is_array(leaf: Any) -> bool:
    """Whether a leaf is data: an array, or the shape of one."""
    return isinstance(leaf, jax.Array | np.ndarray | jax.ShapeDtypeStruct)


def is_floating(leaf: Any) -> bool:
    """Whether a leaf can have a gradient."""
    return is_array(leaf) and jnp.issubdtype(leaf.dtype, jnp.inexact)


def strong(leaf: jax.Array) -> jax.Array:
    """Fixes a weak dtype, which a training step would otherwise change."""
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.extended):
        return leaf
    return jax.lax.convert_element_type(leaf, leaf.dtype)


def names(path: Sequence[Any]) -> Names:
    """Writes a JAX key path as the names of a nested dict.

    >>> leaves, _ = jax.tree_util.tree_flatten_with_path({"layers": [1]})
    >>> names(leaves[0][0])
    ('layers', '0')
    """
    return tuple(jax.tree_util.keystr((step,), simple=True) for step in path)


def nest(leaves: Iterable[tuple[Names, Any]]) -> dict[str, Any]:
    """Builds a nested dict from leaves with their names.

    Raises:
        NameCollisionError: if two leaves would be in one place.

    >>> nest([(("layers", "0", "w"), 1), (("bias",), 2)])
    {'layers': {'0': {'w': 1}}, 'bias': 2}
    """
    tree: dict[str, Any] = {}
    for path, leaf in leaves:
        branch: Any = tree
        for name in path[:-1]:
            branch = branch.setdefault(name, {}) if isinstance(branch, dict) else None
        if not isinstance(branch, dict) or path[-1] in branch:
            raise NameCollisionError(
                f"{'/'.join(path)}: expected a path for each array, got two with this "
                "one. Rename an attribute, or a key, of the foreign module."
            )
        branch[path[-1]] = leaf
    return tree


def find(tree: Any, path: Names, where: str) -> Any:
    """Returns the leaf of a nested dict that has these names.

    Raises:
        MissingVariablesError: if there is none.
    """
    branch = tree
    for name in path:
        if not isinstance(branch, dict) or name not in branch:
            raise MissingVariablesError(
                f"{where}: expects variables made by its init, got none at "
                f"{'/'.join(path)}. Pass the Variables that init returned."
            )
        branch = branch[name]
    return branch


class Values:
    """Arrays that are compared by what is in them.

    A mapping may hold no arrays, which have no value to be compared by; yet what a
    foreign module starts from is part of what it is. They are kept on the host: the
    originals may be donated to a training step.

    >>> start = Values([jnp.arange(3.0)])
    >>> start == Values([jnp.arange(3.0)]), start == Values([jnp.ones(3)])
    (True, False)
    >>> start.restore()[0].tolist()
    [0.0, 1.0, 2.0]
    """

    def __init__(self, arrays: Iterable[Any]) -> None:
        self._arrays = tuple(_on_host(array) for array in arrays)

    def restore(self) -> list[jax.Array]:
        """Returns the arrays, freshly made."""
        return [_on_device(*each) for each in self._arrays]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Values):
            return NotImplemented
        if self is other:
            return True
        return self._outline == other._outline and all(
            mine.tobytes() == theirs.tobytes()
            for (mine, _), (theirs, _) in zip(self._arrays, other._arrays, strict=True)
        )

    def __hash__(self) -> int:
        return hash(self._outline)

    def __repr__(self) -> str:
        return f"Values({len(self._arrays)} arrays)"

    @property
    def _outline(self) -> tuple[Any, ...]:
        return tuple((a.shape, a.dtype.name, kind) for a, kind in self._arrays)


class Valued:
    """What equals another by its `value`; by identity where that has no hash.

    A foreign module may hold anything: a list among its fields makes it equal to
    itself alone, and all else works.
    """

    kind: str
    value: tuple[Any, ...]

    def _hash(self) -> int | None:
        with contextlib.suppress(TypeError):
            return hash(self.value)
        return None

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, type(self)):
            return NotImplemented
        own = self._hash()
        if self is other or own is None:
            return self is other
        return own == other._hash() and self.value == other.value

    def __hash__(self) -> int:
        own = self._hash()
        return object.__hash__(self) if own is None else own

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.kind})"


def _on_host(array: Any) -> tuple[np.ndarray, str | None]:
    kind = None
    if jax.dtypes.issubdtype(array.dtype, jax.dtypes.prng_key):
        array, kind = jax.random.key_data(array), str(jax.random.key_impl(array))
    if not isinstance(array, jax.ShapeDtypeStruct):
        with contextlib.suppress(jax.errors.TracerArrayConversionError):
            return np.array(array), kind
    raise FieldError(
        f"of: expected a module with its arrays, got {type(array).__name__}. Adapt it "
        "outside of jit and eval_shape."
    )


def _on_device(array: np.ndarray, kind: str | None) -> jax.Array:
    if kind is not None:
        return jax.random.wrap_key_data(jnp.array(array), impl=kind)
    return jnp.array(array)
