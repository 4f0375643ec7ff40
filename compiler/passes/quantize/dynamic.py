"""Products of integers, with activations rounded by their own range at each call."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from compiler.passes.quantize.arithmetic.activations import Activations
from compiler.passes.quantize.rules import RuleSpec, as_rules
from compiler.passes.quantize.storage.scheme import Scheme
from compiler.passes.quantize.weights import QuantizeWeights, chosen_scheme
from mapping.core import register

_BY_TOKEN = Activations()


@register("pass", "quantize_dynamic")
@dataclasses.dataclass(frozen=True)
class QuantizeDynamic(QuantizeWeights):
    r"""Multiplies integers: weights as stored, activations rounded when they are known.

    $$ y = s_x s_w \sum_i q^x_i q^w_i, \qquad s_x = \max_i |x_i| / 127 $$

    with the sums in int32 and one scale for each token (each row that is multiplied,
    each example of a convolution) or for the whole tensor. Weights in a format without
    integers (nf4, float8) are used as [`QuantizeWeights`][] does, and so are tables and
    the experts of a ragged product. Convolutions need one symmetric scale for each
    channel. Gradients are those of the product in floating point.

    Attributes:
        activations: how they are rounded.

    Jacob et al., 2017, https://arxiv.org/abs/1712.05877.
    """

    activations: Activations = _BY_TOKEN

    @property
    def rounding(self) -> Activations:
        """How activations are rounded."""
        return self.activations


def dynamic(
    dtype: str | Scheme = "int8",
    *,
    group: int | str | None = None,
    activations: str | Activations = "int8",
    per: str = "token",
    symmetric: bool = True,
    rules: RuleSpec = (),
    skip: str | Sequence[str] = (),
    min_coverage: float = 0.0,
) -> QuantizeDynamic:
    """Products of integers, scaled by what comes; see [`QuantizeDynamic`][].

    Args:
        dtype: of the weights: `"int8"`, `"int4"`, ...; or a [`Scheme`][].
        group: of the weights: `"channel"`, `"tensor"`, or how many rows share a scale.
        activations: their dtype, or all of it as [`Activations`][].
        per: `"token"` or `"tensor"`.
        symmetric: without zero points, of activations.
        rules: a dict from globs to schemes, or a list of [`Rule`][]s.
        skip: globs of paths that are left as they are.
        min_coverage: the least share of bytes to be quantized.

    >>> import jax, jax.numpy as jnp, compiler as mc
    >>> program = mc.trace(lambda w, x: x @ w, jnp.eye(64), jnp.ones((1, 64)))
    >>> small = dynamic("int8")(program)
    >>> float(abs(small(jnp.ones((1, 64))) - 1).max()) < 1e-6
    True
    """
    rounding = as_activations(activations, per, symmetric)
    scheme = chosen_scheme(dtype, group, True)
    return QuantizeDynamic(scheme, as_rules(rules, skip), min_coverage, rounding)


def as_activations(spec: str | Activations, per: str, symmetric: bool) -> Activations:
    """How activations are rounded, from what users say of it."""
    if isinstance(spec, Activations):
        return spec
    return Activations(spec, per, symmetric)
