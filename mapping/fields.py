"""What a mapping may hold: values that can be compared."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from mapping.errors import FieldError
from mapping.paths import describe


def check_fields(mapping: Any) -> None:
    """Refuses fields that have no value to be compared by."""
    for field in dataclasses.fields(mapping):
        value = getattr(mapping, field.name, None)  # __post_init__ may make it yet
        where = f"{type(mapping).__name__}.{field.name}"
        for part in _parts(value):
            _check_part(part, where)
        try:
            hash(value)
        except TypeError as error:
            raise FieldError(
                f"{where}: expected a hashable value, got a {type(value).__name__} "
                f"({error}). Use a tuple."
            ) from error


def check_count(value: Any, where: str) -> None:
    """Refuses what is no number of things."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise FieldError(f"{where}: expected a whole number >= 1, got {value!r}.")


def _check_part(value: Any, where: str) -> None:
    if isinstance(value, jax.Array | np.ndarray):
        raise FieldError(
            f"{where}: expected a hyper-parameter, got an array {describe(value)}. "
            "Create it in `init` and return it in Variables."
        )
    if getattr(value, "__name__", "") == "<lambda>":
        raise FieldError(
            f"{where}: expected a named function, got a lambda, which never equals "
            "itself once rebuilt and would be traced again each time. Define it with "
            "`def` at module level."
        )
    if isinstance(value, list | dict | set):
        raise FieldError(
            f"{where}: expected a hashable value, got a {type(value).__name__}. Use a "
            "tuple."
        )


def _parts(value: Any) -> Iterator[Any]:
    """A value and, in tuples and partials, what it is made of."""
    if type(value) is tuple:
        inside = value
    elif isinstance(value, functools.partial):
        inside = (value.func, *value.args, *value.keywords.values())
    else:
        inside = ()
        yield value
    for part in inside:
        yield from _parts(part)
