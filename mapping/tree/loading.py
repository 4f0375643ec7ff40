"""Values into a tree, by path."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable
from collections.abc import Mapping as Dict
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from mapping.core import Tree, describe, leaf_paths, path_string
from mapping.errors import LoadError, UnknownPathError
from mapping.paths import nearest
from mapping.tree.difference import Diff, Difference

Rename: TypeAlias = Dict[str, str | None] | Callable[[str], str | None]
"""New paths for old: by path, by what paths begin with, or by a function."""

_SHOWN = 20
"""Rows of a table in an error message."""


class Loaded(NamedTuple):
    """What loading gives back.

    Attributes:
        tree: the tree with its new values.
        diff: what did not fit; false if everything did.
    """

    tree: Tree
    diff: Diff


def load(
    into: Tree,
    values: Tree,
    *,
    strict: bool = True,
    rename: Rename | None = None,
    cast: bool = False,
) -> Loaded:
    """Loads values into a tree, each to its own path.

    Args:
        into: params, `Variables`, an optimizer's state; arrays or `ShapeDtypeStruct`s.
        values: a tree, or a flat dict of arrays by path (a safetensors file).
        strict: whether every leaf has to be given, and every value to fit. Otherwise
            what fits is loaded and the rest of `into` is left as it is.
        rename: from the values' paths to those of `into`: a dict of paths, or of what
            they begin with (`{"model/layers": "encoder"}`), or a function of the path.
            None drops a value.
        cast: whether values of another dtype are converted. Floats may lose
            precision; integers that would change are refused.

    Raises:
        LoadError: if strict and something does not fit, with the printed diff; or if
            two values are renamed to one path.
        UnknownPathError: if `rename` names a path that is not there.

    >>> params = {"head": {"kernel": jnp.zeros((2, 3)), "bias": jnp.zeros(3)}}
    >>> given = {"fc/kernel": np.ones((2, 3), "f4"), "fc/bias": np.ones(3, "f4")}
    >>> tree, diff = load(params, given, rename={"fc": "head"})
    >>> tree["head"]["bias"].tolist(), bool(diff)
    ([1.0, 1.0, 1.0], False)
    >>> load(params, {"head/kernel": np.ones((2, 4), "f4")})
    Traceback (most recent call last):
    ...
    mapping.errors.LoadError: load: expected a value that fits for each of 2 leaves,
    and no other:
       path         wanted         given          distance
    -  head/bias    float32[3]
    ~  head/kernel  float32[2, 3]  float32[2, 4]            another shape
    2 of 2 leaves differ. ...
    """
    fitting, found = _sorted_out(into, _renamed(leaf_paths(values), rename), cast)
    if strict and found:
        raise LoadError(
            f"load: expected a value that fits for each of {len(leaf_paths(into))} "
            f"leaves, and no other:\n{_hinted(found).table(_SHOWN)}\nRename values "
            "(rename=...), convert them (cast=True), or load what fits (strict=False)."
        )
    tree = jax.tree_util.tree_map_with_path(
        lambda path, leaf: fitting.get(path_string(path), leaf), into
    )
    return Loaded(tree, found)


def _sorted_out(
    into: Tree, given: dict[str, Any], cast: bool
) -> tuple[dict[str, Any], Diff]:
    """The values that fit, ready to be put in place, and what does not fit."""
    wanted, fitting, misfits = leaf_paths(into), {}, []
    for path, leaf in wanted.items():
        if path not in given:
            misfits.append(Difference(path, describe(leaf), None))
        elif (reason := _misfit(leaf, given[path], cast)) is not None:
            shown = (describe(leaf), describe(given[path]))
            misfits.append(Difference(path, *shown, note=reason))
        else:
            fitting[path] = _converted(leaf, given[path])
    for path in given.keys() - wanted.keys():
        misfits.append(Difference(path, None, describe(given[path])))
    entries = tuple(sorted(misfits, key=lambda entry: entry.path))
    total = len(given.keys() | wanted.keys())
    return fitting, Diff(entries, total, titles=("wanted", "given"))


def _misfit(leaf: Any, value: Any, cast: bool) -> str | None:
    """Why a value cannot be loaded; None if it can."""
    if np.shape(value) != np.shape(leaf):
        return "another shape"
    wanted, given = _dtype(leaf), _dtype(value)
    if wanted == given:
        return None
    if not cast:
        return "another dtype: cast=True converts it"
    extended = jax.dtypes.extended
    if any(jax.dtypes.issubdtype(dtype, extended) for dtype in (wanted, given)):
        return "cannot be converted"
    if jnp.issubdtype(wanted, jnp.inexact) and jnp.issubdtype(given, jnp.inexact):
        return None
    own = np.asarray(value)
    with np.errstate(all="ignore"):
        kept = np.array_equal(own.astype(wanted).astype(given), own)
    return None if kept else "its values would change"


def _dtype(value: Any) -> Any:
    """Its own: `result_type` reads float64 as float32 where that is disabled."""
    return value.dtype if hasattr(value, "dtype") else jax.dtypes.result_type(value)


def _converted(leaf: Any, value: Any) -> Any:
    """The value as the kind of array that stood there."""
    dtype = _dtype(leaf)
    if isinstance(leaf, np.ndarray):
        return np.asarray(value, dtype)
    same = isinstance(value, jax.Array) and value.dtype == dtype
    return value if same else jnp.asarray(value, dtype)


def _hinted(found: Diff) -> Diff:
    """Says for what is missing or unexpected which of the others is most like it."""
    hinted = []
    for entry in found.entries[:_SHOWN]:
        others = found.added if entry.after is None else found.removed
        close = difflib.get_close_matches(entry.path, others, n=1, cutoff=0.5)
        if close and None in (entry.before, entry.after):
            entry = dataclasses.replace(entry, note=f"nearest: {close[0]}")
        hinted.append(entry)
    entries = (*hinted, *found.entries[_SHOWN:])
    return dataclasses.replace(found, entries=entries)


def _renamed(
    values: dict[str, Any],
    rename: Rename | None,
) -> dict[str, Any]:
    if rename is None:
        return values
    change = _renamer(rename, values) if isinstance(rename, Dict) else rename
    renamed: dict[str, Any] = {}
    origin: dict[str, str] = {}
    for path, value in values.items():
        new = change(path)
        if new is None:
            continue
        if new in renamed:
            raise LoadError(
                f"{new}: expected one value, got {origin[new]} and {path} under one "
                "name. Rename one of them otherwise, or to None."
            )
        renamed[new], origin[new] = value, path
    return renamed


def _renamer(
    names: Dict[str, str | None], values: dict[str, Any]
) -> Callable[[str], str | None]:
    def begins(path: str, name: str) -> bool:
        return path == name or path.startswith(f"{name}/")

    for name in names:
        if not any(begins(path, name) for path in values):
            raise UnknownPathError(
                f"{name}: renames none of {len(values)} values. Nearest: "
                f"{nearest(name, values)}."
            )
    longest_first = sorted(names, key=len, reverse=True)

    def change(path: str) -> str | None:
        for name in longest_first:
            if begins(path, name):
                new = names[name]
                return None if new is None else (new + path[len(name) :]).lstrip("/")
        return path

    return change
