"""Rows of weights made larger before rounding where their inputs are large."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from compiler.graph import Graph, Leaf
from compiler.passes.quantize.calibrate import Calibration, SiteStatistics, kept
from compiler.passes.quantize.plan import Plan, plan
from compiler.passes.quantize.rounding import normal
from compiler.passes.quantize.rounding.balance import Reader, awq_factors
from compiler.passes.quantize.rounding.balancing import Balancing
from compiler.passes.quantize.rounding.groups import Group, Member
from compiler.passes.quantize.rules import Rule, RuleSpec, as_rules
from compiler.passes.quantize.storage.scheme import Scheme, as_scheme
from compiler.passes.quantize.weights import chosen_scheme
from compiler.sites import WeightSite
from mapping.core import register

_INT4 = as_scheme("int4")


@register("pass", "awq")
@dataclasses.dataclass(frozen=True)
class Awq(Balancing):
    r"""Protects the rows of weights that matter, before they are rounded.

    $$ x W = (x / s)\,(s W), \qquad s_j = (\mathrm{E}\,x_j^2)^{\alpha / 2}, \qquad
       \alpha^* = \arg\min_{\alpha \in [0, 1]}
       \mathrm{E}\,\lVert x^\top (W - \mathrm{round}(s W) / s) \rVert^2 $$

    A row that is made larger is rounded more finely than its neighbours, with which
    it shares a scale. The exponent is searched for each weight (for each matrix of a
    stack), by the error of the outputs that the scheme makes. The function stays what
    it was, up to rounding: it goes before
    [`quantize.weights`][QuantizeWeights] with the same scheme and rules.

    What is left as it is, and the new leaves, are those of [`Smooth`][].

    Attributes:
        scheme: what weights will be stored as.
        rules: which scheme weights get, by path and by kind of product.

    Raises:
        CalibrationError: if there are no batches, or no Hessians.

    Lin et al., 2023, https://arxiv.org/abs/2306.00978.
    """

    scheme: Scheme = _INT4
    rules: tuple[Rule, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "scheme", as_scheme(self.scheme))
        object.__setattr__(self, "rules", tuple(self.rules))

    @property
    def name(self) -> str:
        """What it is called."""
        return "awq"

    @property
    def hessians(self) -> bool:
        """It does."""
        return True

    def chosen(self, graph: Graph) -> list[tuple[Leaf, Sequence[WeightSite], str]]:
        """The leaves that will be stored in few bits."""
        return [
            (d.leaf, list(d.sites.values()), d.why) for d in self._plan(graph).decisions
        ]

    def measured(
        self, graph: Graph, group: Group, values: Mapping[str, Any], found: Any
    ) -> tuple[Any, str]:
        """Factors by the search."""
        encodings = self._plan(graph).encodings
        hessians = [_hessian(m, found[m.path]) for m in group.members]
        sizes = [_sizes(*pair) for pair in zip(group.members, hessians, strict=True)]
        weights = [
            normal.matrices(encodings[m.path], values[m.path]) for m in group.members
        ]
        kinds = tuple((encodings[m.path].scheme, m.feature) for m in group.members)
        factors, alphas = _searched(sizes[0], weights, hessians, kinds)
        ends = float(jnp.min(alphas)), float(jnp.max(alphas))
        told = " to ".join(dict.fromkeys(f"{end:.2f}" for end in ends))
        return factors, f"exponent {told}"

    def _plan(self, graph: Graph) -> Plan:
        return plan(graph, self.scheme, self.rules)


def awq(
    batches: Iterable[Any] | Calibration | None = None,
    dtype: str | Scheme = "int4",
    *,
    group: int | str | None = None,
    symmetric: bool = True,
    rules: RuleSpec = (),
    skip: str | Sequence[str] = (),
) -> Awq:
    """Protects the rows of weights that matter; see [`Awq`][].

    Args:
        batches: inputs of the program to measure on, as they come to this point of
            the recipe; or a [`Calibration`][] with Hessians.
        dtype: what weights will be stored as: `"int4"`, ...; or a [`Scheme`][].
        group: `"channel"`, `"tensor"`, or how many rows share a scale.
        symmetric: without zero points.
        rules: a dict from globs to schemes, or a list of [`Rule`][]s.
        skip: globs of paths that are left as they are.

    >>> import compiler as mc
    >>> x = jax.random.normal(jax.random.key(0), (64, 32)).at[:, 3].multiply(30.0)
    >>> w = jax.random.normal(jax.random.key(1), (32, 16))
    >>> program = mc.trace(lambda w, x: x @ w, w, x)
    >>> plain = program >> mc.quantize.weights("int4")
    >>> better = program >> awq([x], "int4") >> mc.quantize.weights("int4")
    >>> def error(small):
    ...     return float(((small(x) - program(x)) ** 2).mean())
    >>> error(better) < 0.5 * error(plain)
    True
    """
    scheme = chosen_scheme(dtype, group, symmetric)
    return Awq(scheme, as_rules(rules, skip), batches=kept(batches))


def _hessian(own: Member, found: SiteStatistics) -> Any:
    """The mean of x x^T, `[stack, rows, rows]`."""
    stack = [own.shape[axis] for axis in own.stack]
    rows = found.hessian.shape[-1]
    total = np.broadcast_to(found.hessian, (*stack, rows, rows))
    return jnp.asarray(total.reshape(-1, rows, rows) / max(int(found.tokens.max()), 1))


def _sizes(own: Member, hessian: Any) -> Any:
    """The root mean square of each feature of the inputs, `[stack, features]`."""
    squares = jnp.diagonal(hessian, axis1=-2, axis2=-1)
    return jnp.sqrt(jnp.mean(own.by_row(squares), axis=-1))


@functools.partial(jax.jit, static_argnames="kinds")
def _searched(
    sizes: Any,
    weights: Sequence[Any],
    hessians: Sequence[Any],
    kinds: tuple[tuple[Scheme, tuple[int, ...]], ...],
) -> tuple[Any, Any]:
    given = zip(weights, hessians, kinds, strict=True)
    return awq_factors(sizes, [Reader(w, h, *kind) for w, h, kind in given])
