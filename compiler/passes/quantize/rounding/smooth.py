"""Inputs divided by factors that the weights' rows are multiplied by."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from compiler.graph import Graph, Leaf
from compiler.passes.factorize.matrix import chosen
from compiler.passes.quantize.calibrate import Calibration, SiteStatistics, kept
from compiler.passes.quantize.rounding.balance import smooth_factors
from compiler.passes.quantize.rounding.balancing import Balancing
from compiler.passes.quantize.rounding.groups import Group, Member
from compiler.sites import WeightSite
from mapping.core import register


@register("pass", "smooth")
@dataclasses.dataclass(frozen=True)
class Smooth(Balancing):
    r"""Takes outliers out of activations, before they are rounded.

    $$ x W = (x / s)\,(s W), \qquad
       s_j = \max |X_j|^{\alpha} / \max |W_j|^{1 - \alpha} $$

    for each feature j of what a product reads. A few features of activations are often
    many times as large as the rest, and one scale for all of them leaves the rest few
    codes; weights, which have a scale for each column, can take the difference. The
    function stays what it was, up to rounding. It goes before
    [`quantize.static`][QuantizeStatic], and after `fold`, which would undo it.

    Weights that read the same value (queries, keys, values) share the factors; those
    that a loop hands out have some for each turn. Of a convolution's kernel it is the
    channels. A weight that is used several times, looked up, or needed elsewhere stays
    as it is. The inverse of s is a new leaf, `<weight>/smoothing`.

    Attributes:
        alpha: how much of the activations' spread the weights take, in [0, 1].
        path: globs of the leaves, or of the operations that use them.

    Raises:
        ValueError: if alpha is not in [0, 1].
        CalibrationError: if there are no batches.
        UnknownPathError: if a glob names nothing.

    Xiao et al., 2022, https://arxiv.org/abs/2211.10438.
    """

    alpha: float = 0.5
    path: tuple[str, ...] = ("*",)

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", tuple(self.path))
        if not 0 <= self.alpha <= 1:
            raise ValueError(
                f"quantize.smooth: expected an alpha from 0 to 1, got {self.alpha!r}."
            )

    @property
    def name(self) -> str:
        """What it is called."""
        return "smooth"

    def chosen(self, graph: Graph) -> list[tuple[Leaf, Sequence[WeightSite], str]]:
        """The leaves that globs name."""
        return [(leaf, sites, "") for leaf, sites in chosen(graph, self.path)]

    def measured(
        self, graph: Graph, group: Group, values: Mapping[str, Any], found: Any
    ) -> tuple[Any, str]:
        """Factors from the largest inputs and weights of each feature."""
        inputs = [_largest_inputs(m, found[m.path]) for m in group.members]
        weights = [_largest_weights(m, values[m.path]) for m in group.members]
        largest = [functools.reduce(jnp.maximum, each) for each in (inputs, weights)]
        factors = smooth_factors(*largest, self.alpha)
        spread = [_spread(x) for x in (largest[0], largest[0] / factors)]
        return (
            factors,
            f"largest input over the median {spread[0]:.3g} -> {spread[1]:.3g}",
        )


def smooth(
    batches: Iterable[Any] | Calibration | None = None,
    alpha: float = 0.5,
    *,
    path: str | Sequence[str] = "*",
) -> Smooth:
    """Takes outliers out of activations; see [`Smooth`][].

    Args:
        batches: inputs of the program to measure on, as they come to this point of
            the recipe; or a [`Calibration`][].
        alpha: how much of the activations' spread the weights take, in [0, 1].
        path: globs of the leaves, or of the operations that use them.

    >>> import compiler as mc
    >>> x = jnp.ones((4, 8)).at[:, 3].multiply(100.0)
    >>> program = mc.trace(lambda w, x: x @ w, jnp.ones((8, 2)), x)
    >>> even = smooth([x])(program)
    >>> even.graph.paths
    ['variables', 'variables/smoothing']
    >>> print(even.history[-1].events.fired[0].what)
    inputs divided by 8 factors; largest input over the median 100 -> 10
    >>> bool(jnp.allclose(even(x), program(x), rtol=1e-5))
    True
    """
    globs = (path,) if isinstance(path, str) else tuple(path)
    return Smooth(alpha, globs, batches=kept(batches))


def _largest_inputs(own: Member, found: SiteStatistics) -> Any:
    """Of each feature, `[stack, features]`."""
    stack = [own.shape[axis] for axis in own.stack]
    whole = np.broadcast_to(found.absmax, (*stack, found.absmax.shape[-1]))
    return jnp.max(own.by_row(jnp.asarray(whole)), axis=-1)


def _largest_weights(own: Member, value: Any) -> Any:
    """Of each feature's rows, `[stack, features]`."""
    count = len(own.shape)
    others = [a for a in range(count) if a not in (*own.stack, *own.rows)]
    sizes = jnp.transpose(jnp.abs(value), (*own.stack, *own.rows, *others))
    sizes = sizes.astype(np.promote_types(np.float32, value.dtype))
    rows = jnp.max(sizes, axis=tuple(range(count - len(others), count)), initial=0)
    return jnp.max(own.by_row(rows), axis=-1)


def _spread(sizes: Any) -> float:
    """How many times as large as the median the largest feature is."""
    middle = jnp.median(sizes, axis=-1)
    return float(jnp.max(jnp.max(sizes, axis=-1) / jnp.where(middle > 0, middle, 1)))
