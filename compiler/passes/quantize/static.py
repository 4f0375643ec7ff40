"""Products of integers, with activations rounded by ranges measured before."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np

from compiler.errors import CalibrationError
from compiler.passes.base import Pass
from compiler.passes.quantize.arithmetic.activations import Activations, from_range
from compiler.passes.quantize.calibrate import Calibration, calibrate, kept
from compiler.passes.quantize.dynamic import as_activations
from compiler.passes.quantize.physical import StaticScales
from compiler.passes.quantize.rules import RuleSpec, as_rules
from compiler.passes.quantize.shared import shared
from compiler.passes.quantize.storage.scheme import Scheme
from compiler.passes.quantize.weights import QuantizeWeights, chosen_scheme
from mapping.core import register

if TYPE_CHECKING:
    from compiler.program import Program

Measured = tuple[tuple[str, Any, Any], ...]
"""Keys of products, with the scale and the zero point (or None) of their activation:
numbers, or nested lists for each step of the loops they are in."""


_BY_TENSOR = Activations(per="tensor")


@register("pass", "quantize_static")
@dataclasses.dataclass(frozen=True)
class QuantizeStatic(QuantizeWeights):
    r"""Multiplies integers, with scales of activations that calibration found.

    $$ y = s_x s_w \Big( \sum_i (q^x_i - z)\, q^w_i
           + \mathrm{round}\big(b / (s_x s_w)\big) \Big) $$

    with the sums and the bias in int32. Activations that are concatenated, added or
    only moved share one scale. What comes between two products (a bias in
    floating point, a relu, the next rounding) is elementwise, and one kernel when
    compiled.

    Attributes:
        activations: how they are rounded; one scale for the whole tensor.
        observer: what becomes of the statistics: `"minmax"`, `"moving_average"`,
            `"percentile"`, `"mse"` or `"entropy"`; see [`Calibration`][].
        scales: what was measured.
        batches: what to measure on: an iterable of inputs, or a [`Calibration`][].

    Raises:
        CalibrationError: if there are no batches.

    Jacob et al., 2017, https://arxiv.org/abs/1712.05877.
    """

    activations: Activations = _BY_TENSOR
    observer: str = "minmax"
    scales: Measured | None = dataclasses.field(default=None, repr=False)
    batches: Any = dataclasses.field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.activations.per != "tensor":
            raise ValueError(
                "quantize.static: expected activations per tensor, for tokens are not "
                f"known beforehand, got per {self.activations.per!r}. Use dynamic()."
            )

    @property
    def rounding(self) -> Activations:
        """How activations are rounded."""
        return self.activations

    @property
    def static(self) -> StaticScales:
        """What was measured, as arrays."""
        return as_arrays(self.scales)

    def decide(self, program: Program) -> Pass:
        """Runs the batches and turns what was seen into scales."""
        super().decide(program)
        if self.scales is not None:
            return self
        if self.batches is None:
            raise CalibrationError(
                "static activations: expected batches to measure them on, got none. "
                "Pass batches=."
            )
        chosen = self.planned(program.graph).activations
        seen = self.batches
        if not isinstance(seen, Calibration):
            seen = calibrate(program, self.batches)
        ranges = {
            key: seen.range(key, self.observer, symmetric=spec.symmetric)
            for key, spec in chosen.items()
        }
        for keys in shared(program.graph):
            _join(ranges, keys)
        found = [(key, *_scale(ranges[key], spec)) for key, spec in chosen.items()]
        return dataclasses.replace(self, scales=tuple(found), batches=None)


def static(
    dtype: str | Scheme = "int8",
    *,
    batches: Iterable[Any] | Calibration | None = None,
    observer: str = "minmax",
    group: int | str | None = None,
    activations: str | Activations = "int8",
    symmetric: bool = True,
    rules: RuleSpec = (),
    skip: str | Sequence[str] = (),
    min_coverage: float = 0.0,
) -> QuantizeStatic:
    """Products of integers with calibrated scales; see [`QuantizeStatic`][].

    Args:
        dtype: of the weights: `"int8"`, `"int4"`, ...; or a [`Scheme`][].
        batches: inputs of the program to measure activations on, as they come to
            this point of the recipe.
        observer: how a range is made of what was seen.
        group: of the weights: `"channel"`, `"tensor"`, or how many rows share a scale.
        activations: their dtype, or all of it as [`Activations`][].
        symmetric: without zero points, of activations.
        rules: a dict from globs to schemes, or a list of [`Rule`][]s.
        skip: globs of paths that are left as they are.
        min_coverage: the least share of bytes to be quantized.

    >>> import jax, jax.numpy as jnp, compiler as mc
    >>> x = jnp.linspace(-1.0, 1.0, 128).reshape(2, 64)
    >>> program = mc.trace(lambda w, x: x @ w, jnp.eye(64), x)
    >>> small = static("int8", batches=[x])(program)
    >>> small.graph.paths
    ['variables/scale', 'variables/values', 'variables/input_scale']
    >>> float(abs(small(x) - x).max()) < 0.01
    True
    """
    rounding = as_activations(activations, "tensor", symmetric)
    scheme = chosen_scheme(dtype, group, True)
    rules = as_rules(rules, skip)
    return QuantizeStatic(
        scheme, rules, min_coverage, rounding, observer, None, kept(batches)
    )


def as_arrays(measured: Measured | None) -> StaticScales:
    """What was measured, as arrays by the key of a product."""
    return {
        key: tuple(np.asarray(v, np.float32) for v in values if v is not None)
        for key, *values in measured or ()
    }


def _join(ranges: dict[str, tuple[Any, Any]], keys: Sequence[str]) -> None:
    """Gives the products that share a scale one range that holds all of theirs."""
    same = [key for key in keys if key in ranges]
    shapes = {np.shape(ranges[key][0]) for key in same}
    if len(same) < 2 or len(shapes) > 1:  # in loops of their own, each has its steps
        return
    low = np.min([ranges[key][0] for key in same], axis=0)
    high = np.max([ranges[key][1] for key in same], axis=0)
    ranges.update((key, (low, high)) for key in same)


def _scale(limits: tuple[Any, Any], spec: Activations) -> tuple[Any, Any]:
    """Scale and zero point of a range, as nested lists."""
    scale, zero = from_range(jnp.asarray(limits[0]), jnp.asarray(limits[1]), spec)
    zero = None if zero is None else np.asarray(zero).tolist()
    return np.asarray(scale).tolist(), zero
