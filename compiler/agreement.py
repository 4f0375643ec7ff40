"""How far the outputs of two programs are apart on real data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from compiler.errors import VerifyError
from mapping.core import path_string


class Difference(NamedTuple):
    """The worst of all outputs.

    Attributes:
        absolute: the largest difference of two values.
        relative: the largest difference in an output, as a share of the largest
            value in it; inf where one is nan and the other is not.
        path: of the output it was found in.
    """

    absolute: float
    relative: float
    path: str


def difference(
    before: Callable[..., Any], after: Callable[..., Any], *inputs: Any
) -> Difference:
    r"""Measures how far two programs disagree on some inputs.

    $$ \max_o \frac{\max_i |a_{oi} - b_{oi}|}{\max_i |a_{oi}|} $$

    over the outputs $o$, each with values $i$.

    Args:
        before: a program, or any function.
        after: another that returns the same tree.
        *inputs: for both.

    Raises:
        VerifyError: if they return different trees, shapes or dtypes.

    >>> difference(lambda x: {"y": x}, lambda x: {"y": x * 1.5}, jnp.array([1.0, 2.0]))
    Difference(absolute=1.0, relative=0.5, path='y')
    """
    return between(before(*inputs), after(*inputs))


def between(first: Any, second: Any) -> Difference:
    """Measures how far two results of one structure are apart; see [`difference`][]."""
    pairs, structure = jax.tree_util.tree_flatten_with_path(first)
    others, other = jax.tree.flatten(second)
    if structure != other:
        raise VerifyError(f"outputs: expected {structure}, got {other}.")
    found = [
        Difference(*_apart(path_string(path), a, b), path_string(path))
        for (path, a), b in zip(pairs, others, strict=True)
    ]
    return max(found, key=lambda one: one.relative, default=Difference(0.0, 0.0, ""))


def check(name: str, found: Difference, tolerance: float | None) -> None:
    """Raises if a difference is larger than what was allowed.

    Raises:
        VerifyError: naming who made it, and the output.
    """
    if tolerance is not None and not found.relative <= tolerance:
        raise VerifyError(
            f"{found.path or 'output'}: expected a relative difference of at most "
            f"{tolerance:g} after {name}, got {found.relative:.3g}. Leave out what "
            "it did, or allow more with tolerance=."
        )


def _apart(path: str, a: Any, b: Any) -> tuple[float, float]:
    expected, got = jax.dtypes.result_type(a), jax.dtypes.result_type(b)
    if expected != got:
        raise VerifyError(f"{path or 'output'}: expected {expected}, got {got}.")
    a, b = _numbers(a), _numbers(b)
    if a.shape != b.shape:
        raise VerifyError(
            f"{path or 'output'}: expected shape {a.shape}, got {b.shape}."
        )
    if not a.size:
        return 0.0, 0.0
    worst, largest = (_integers if a.dtype.kind in "iu" else _floats)(a, b)
    return worst, worst / largest if largest else (np.inf if worst else 0.0)


def _integers(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    """The largest difference and the largest value, without rounding what is large."""
    high, low = np.maximum(a, b), np.minimum(a, b)
    apart = high.astype(np.uint64) - low.astype(np.uint64)  # right modulo 2^64
    return float(apart.max()), float(max(abs(int(a.max())), abs(int(a.min()))))


def _floats(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    """The largest difference and the largest value that is finite."""
    both = np.isnan(a) & np.isnan(b) | (a == b)
    with np.errstate(invalid="ignore", over="ignore"):
        apart = np.where(both, 0.0, np.abs(a - b))
    worst = float(np.inf if np.isnan(apart).any() else apart.max())
    return worst, float(np.max(np.abs(a), where=np.isfinite(a), initial=0.0))


def _numbers(value: Any) -> np.ndarray:
    """An array as numpy holds it without loss."""
    if jax.dtypes.issubdtype(jax.dtypes.result_type(value), jax.dtypes.prng_key):
        value = jax.random.key_data(value)
    value = np.asarray(jax.device_get(value))
    return value.astype(_wide(value.dtype))


def _wide(dtype: Any) -> Any:
    """The type that holds every value of another."""
    if jnp.issubdtype(dtype, jnp.complexfloating):
        return np.complex128
    if jnp.issubdtype(dtype, jnp.unsignedinteger):
        return np.uint64
    whole = dtype == np.bool_ or jnp.issubdtype(dtype, jnp.integer)
    return np.int64 if whole else np.float64
