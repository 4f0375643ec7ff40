"""What leaves are selected by: a glob, a type, a dtype, a predicate."""

from __future__ import annotations

import fnmatch
import inspect
from collections.abc import Callable
from types import UnionType
from typing import Any, TypeAlias

import jax
import numpy as np

from mapping.core import Mapping, describe
from mapping.errors import SelectorError

Selector: TypeAlias = Any
"""A glob, a type, a dtype, or a predicate of `leaf` or of `path, leaf`."""

Matcher: TypeAlias = Callable[[str, Any], bool]


def matches(glob: str, path: str) -> bool:
    """Whether `glob` names `path`; `*` also crosses `/`.

    >>> matches("encoder/*/kernel", "encoder/block/query/kernel")
    True
    """
    return fnmatch.fnmatchcase(path, glob)


def matcher(selector: Selector) -> Matcher:
    """Turns a selector into a function of path and leaf.

    Raises:
        SelectorError: if it is none.
    """
    if isinstance(selector, str):
        return lambda path, leaf: matches(selector, path)
    if _is_dtype(selector):
        return lambda path, leaf: _has_dtype(leaf, selector)
    if isinstance(selector, type | UnionType):
        return lambda path, leaf: isinstance(leaf, selector)
    if callable(selector) and not isinstance(selector, Mapping):
        return _predicate(selector)
    raise SelectorError(
        "select: expected a glob, a type, a dtype or a predicate, got "
        f"{selector!r:.80}. "
        'Write .at("*/kernel"), .at(jnp.floating) or .at(lambda path, leaf: ...).'
    )


def _is_dtype(selector: Any) -> bool:
    """A dtype, a scalar type such as np.floating, or jnp.float32, which is neither."""
    if isinstance(selector, np.dtype):
        return True
    generic = isinstance(selector, type) and issubclass(selector, np.generic)
    return generic or isinstance(getattr(selector, "dtype", None), np.dtype)


def _has_dtype(leaf: Any, wanted: Any) -> bool:
    dtype = getattr(leaf, "dtype", None)
    if dtype is None and isinstance(leaf, bool | int | float | complex):
        dtype = jax.dtypes.result_type(leaf)
    return dtype is not None and jax.dtypes.issubdtype(dtype, wanted)


def _predicate(function: Callable[..., Any]) -> Matcher:
    wanted = _needed(function)
    if wanted not in (1, 2):
        raise SelectorError(
            f"select: expected a predicate of `leaf` or of `path, leaf`, got one of "
            f"{wanted} arguments. Change its signature."
        )

    def answer(path: str, leaf: Any) -> bool:
        said = function(path, leaf) if wanted == 2 else function(leaf)
        if np.shape(said):
            raise SelectorError(
                f"{path}: expected a predicate that answers with one bool, got "
                f"{describe(said)}. Reduce it, with jnp.any or jnp.all."
            )
        return bool(said)

    return answer


def _needed(function: Callable[..., Any]) -> int:
    """How many arguments a function cannot do without."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # some built-in functions have no signature
        return 1
    positional = (
        inspect.Parameter.POSITIONAL_ONLY,
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
    )
    return sum(p.kind in positional and p.default is p.empty for p in parameters)
