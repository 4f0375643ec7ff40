"""What is measured of the operands of a product, and how two measurements are one.

Each measure is a commutative monoid: it has a value for no numbers at all, and the
measurements of two batches, turns of a loop or branches merge to that of both.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from compiler.passes.quantize.calibrate.forms import Form
from compiler.passes.quantize.calibrate.histogram import histogram

Measurements = dict[str, Any]
"""Arrays by the name of the measure."""


class Measure(NamedTuple):
    """One kind of statistic.

    Attributes:
        of: takes the activation, the output, and the form of the product.
        merge: makes one of two.
        nothing: what it is of no numbers.
        shaped: whether it needs the product as one of matrices.
    """

    of: Callable[[Any, Any, Any], Any]
    merge: Callable[[Any, Any], Any] = jnp.add
    nothing: float = 0
    shaped: bool = False


def measure(names: Sequence[str], x: Any, y: Any, form: Form | None) -> Measurements:
    """Measures a product once.

    Args:
        names: of measures.
        x: the activation, as the product takes it.
        y: the output.
        form: the product as one of matrices, if it is one.
    """
    x, y = jnp.asarray(x), y.astype(jnp.float32)
    x = x.astype(jnp.float32)
    kept = [name for name in names if form is not None or not MEASURES[name].shaped]
    found = {name: MEASURES[name].of(x, y, form) for name in kept}
    return {name: value for name, value in found.items() if value is not None}


def merge(first: Measurements, second: Measurements) -> Measurements:
    """The measurements of both."""
    return {k: MEASURES[k].merge(value, second[k]) for k, value in first.items()}


def across(found: Measurements, axes: Any) -> Measurements:
    """The measurements of all devices along some axes of a mesh."""
    together = {jnp.add: jax.lax.psum, jnp.minimum: jax.lax.pmin}
    return {
        name: together.get(MEASURES[name].merge, jax.lax.pmax)(value, axes)
        for name, value in found.items()
    }


def nothing(specs: Measurements) -> Measurements:
    """The measurements of no numbers, of these shapes and dtypes."""
    return {
        name: jnp.full(spec.shape, MEASURES[name].nothing, spec.dtype)
        for name, spec in specs.items()
    }


def _count(x: Any, y: Any, form: Any) -> Any:
    return jnp.full((), x.size, jnp.uint32)


def _low(x: Any, y: Any, form: Any) -> Any:
    return jnp.min(x, initial=np.inf)


def _high(x: Any, y: Any, form: Any) -> Any:
    return jnp.max(x, initial=-np.inf)


def _histogram(x: Any, y: Any, form: Any) -> Any:
    return histogram(x)


def _tokens(x: Any, y: Any, form: Form) -> Any:
    return jnp.full((), jax.eval_shape(form.rows, x).shape[-2], jnp.uint32)


def _absmax(x: Any, y: Any, form: Form) -> Any:
    largest = functools.partial(jnp.max, initial=0.0)
    return largest(form.rows(form.pooled(jnp.abs(x), largest)), axis=-2)


def _sum(x: Any, y: Any, form: Form) -> Any:
    return jnp.sum(form.rows(form.pooled(x, jnp.sum)), axis=-2)


def _squares(x: Any, y: Any, form: Form) -> Any:
    return _sum(x * x, y, form)


def _magnitude(x: Any, y: Any, form: Form) -> Any:
    return _sum(jnp.abs(x), y, form)


def _active(x: Any, y: Any, form: Form) -> Any:
    return _sum((x != 0).astype(jnp.float32), y, form)


def _outputs(x: Any, y: Any, form: Form) -> Any:
    columns = form.columns(y)
    return None if columns is None else jnp.sum(columns, axis=-2)


def _hessian(x: Any, y: Any, form: Form) -> Any:
    rows = form.rows(x)
    exact = jax.lax.Precision.HIGHEST
    return jnp.einsum("...ti,...tj->...ij", rows, rows, precision=exact)


MEASURES: dict[str, Measure] = {
    "count": Measure(_count),
    "low": Measure(_low, jnp.minimum, np.inf),
    "high": Measure(_high, jnp.maximum, -np.inf),
    "histogram": Measure(_histogram),
    "tokens": Measure(_tokens, shaped=True),
    "absmax": Measure(_absmax, jnp.maximum, shaped=True),
    "sum": Measure(_sum, shaped=True),
    "squares": Measure(_squares, shaped=True),
    "magnitude": Measure(_magnitude, shaped=True),
    "active": Measure(_active, shaped=True),
    "outputs": Measure(_outputs, shaped=True),
    "hessian": Measure(_hessian, shaped=True),
}
"""By name: of the activation how many numbers, the smallest, the largest, the
histogram, how many tokens, of each feature the largest magnitude, and over tokens the
sum, the sum of squares, the sum of magnitudes and how many are not zero; of the output
the sum over tokens; the sum of x x^T."""

_ON_REQUEST = ("magnitude", "active", "hessian")

PLAIN = tuple(name for name in MEASURES if name not in _ON_REQUEST)
"""Those that every calibration takes: cheap, and of use to it."""
