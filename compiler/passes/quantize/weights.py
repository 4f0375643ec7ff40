"""Weights stored as small integers, one scale for each output channel."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from compiler import jaxprs
from compiler.errors import NonFiniteWeightsError, UnknownPathError
from compiler.graph import Graph, Leaf, free_path, is_abstract, nbytes
from compiler.passes.base import Pass, Rewrite
from compiler.rewrite import Event, Events
from compiler.sites import WeightSite, sites_by_leaf
from mapping.core import register

if TYPE_CHECKING:
    from compiler.program import Program

_LEVELS = {"int8": 127}


@register("pass", "quantize_weights")
@dataclasses.dataclass(frozen=True)
class QuantizeWeights(Pass):
    r"""Stores each weight in 8 bits, rounded to a grid of its own channel.

    $$ s_c = \max_i |W_{ic}| / 127, \qquad Q = \mathrm{round}(W / s), \qquad
       W \approx s\,Q, \qquad |W - s\,Q| \le s / 2 $$

    A weight is a floating leaf of two or more axes that reaches a product, a
    convolution or a look-up. The scale is one number for each index of the axes
    that are not summed over (symmetric, so zero stays zero). The arithmetic stays
    in the weight's own dtype: this shrinks what is stored and moved, and does not
    make a product faster.

    Attributes:
        dtype: `"int8"`.
        skip: globs of paths that are left as they are.

    Raises:
        UnknownPathError: if a glob in `skip` names no leaf.
        NonFiniteWeightsError: if a weight holds inf or nan.

    Jacob et al., 2017, https://arxiv.org/abs/1712.05877; per channel after
    Krishnamoorthi, 2018, https://arxiv.org/abs/1806.08342.
    """

    dtype: str = "int8"
    skip: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.dtype not in _LEVELS:
            raise ValueError(
                f"quantize.weights: expected a dtype of {sorted(_LEVELS)}, got "
                f"{self.dtype!r}."
            )

    def decide(self, program: Program) -> Pass:
        """Nothing to choose; refuses weights that cannot be rounded."""
        _check_globs(self.skip, program.graph.paths)
        chosen = self._chosen(program.graph, Events())
        for leaf, value in zip(program.graph.leaves, program.values, strict=True):
            if leaf.path in chosen and not is_abstract(value):
                bad = int(jnp.size(value) - jnp.isfinite(value).sum())
                if bad:
                    raise NonFiniteWeightsError(
                        f"{leaf.path}: expected finite weights, got {bad} infinite or "
                        f"nan of {value.size}. Mend them, or leave the leaf out with "
                        f"skip=({leaf.path!r},)."
                    )
        return self

    def rewrite(self, graph: Graph) -> Rewrite:
        """Replaces each weight by its integers and scales."""
        events = Events()
        chosen = self._chosen(graph, events)
        if not chosen:
            return Rewrite(graph, None, events)
        names: list[str] = []
        for path in graph.paths:
            parts = [f"{path}/scale", f"{path}/values"] if path in chosen else [path]
            others = {*graph.paths, *names} - {path}
            names += [free_path(part, others) for part in parts]

        def prepare(leaves: Sequence[Any]) -> list[Any]:
            new: list[Any] = []
            for path, value in zip(graph.paths, leaves, strict=True):
                axes = chosen.get(path)
                new += [value] if axes is None else _quantize(value, axes, self.dtype)
            return new

        def function(*arguments: Any) -> list[Any]:
            rest = iter(arguments[: len(names)])
            leaves = [
                _dequantize(path, next(rest), next(rest))
                if path in chosen
                else next(rest)
                for path in graph.paths
            ]
            return graph.evaluate(leaves, arguments[len(names) :])

        specs = [
            spec
            for leaf in graph.leaves
            for spec in _specs(leaf, chosen.get(leaf.path), self.dtype)
        ]
        jaxpr = jaxprs.make(function, specs + graph.inputs)
        return Rewrite(graph.with_leaves(names, jaxpr), prepare, events)

    def _chosen(self, graph: Graph, events: Events) -> dict[str, tuple[int, ...]]:
        """The leaves to quantize, with the axes each scale is shared along."""
        chosen = {}
        uses = sites_by_leaf(graph)
        opaque = any(
            equation.primitive.name == "call_exported"
            for equation, _ in jaxprs.nested(graph.jaxpr)
        )
        for i, leaf in enumerate(graph.leaves):
            why = self._why_not(leaf, uses.get(i))
            if leaf.path in graph.carried:
                why = "returned by the function, moved: it has to stay what it is"
            if opaque and uses.get(i) is None:
                why = "belongs to a loaded program, whose inside cannot be seen"
            if why is None:
                chosen[leaf.path] = _shared_axes(leaf, uses[i])
                why = f"{leaf.spec.dtype} -> {self.dtype}"
                events.fired.append(Event(leaf.path, why))
            else:
                events.skipped.append(Event(leaf.path, why))
        return chosen

    def _why_not(self, leaf: Leaf, use: Sequence[WeightSite] | None) -> str | None:
        shape = leaf.spec.shape
        if any(fnmatchcase(leaf.path, glob) for glob in self.skip):
            return "left out by skip"
        if not jnp.issubdtype(leaf.spec.dtype, jnp.floating):
            return f"not floating: {leaf.spec.dtype}"
        if use is None:
            return "reaches no product, convolution or look-up as a weight"
        if len(shape) < 2:
            return "has fewer than two axes"
        specs = _specs(leaf, _shared_axes(leaf, use), self.dtype)
        if sum(map(nbytes, specs)) >= leaf.bytes:
            return "would not get smaller: too few values share a scale"
        return None


def weights(dtype: str = "int8", *, skip: str | Sequence[str] = ()) -> QuantizeWeights:
    """Stores weights in 8 bits; see [`QuantizeWeights`][].

    >>> import compiler as mc
    >>> program = mc.trace(lambda w, x: x @ w, jnp.eye(64), jnp.ones((1, 64)))
    >>> small = weights("int8")(program)
    >>> program.bytes, small.bytes, small.graph.paths
    (16384, 4352, ['variables/scale', 'variables/values'])
    """
    return QuantizeWeights(dtype, (skip,) if isinstance(skip, str) else tuple(skip))


def _shared_axes(leaf: Leaf, use: Sequence[WeightSite]) -> tuple[int, ...]:
    """The axes a scale is shared along: those summed over, else all but the last."""
    summed = frozenset[int]().union(*(site.contracted for site in use))
    return tuple(sorted(summed)) or tuple(range(len(leaf.spec.shape) - 1))


def _quantize(value: Any, axes: tuple[int, ...], dtype: str) -> list[Any]:
    """Returns (scale, values); an all-zero channel has scale one.

    A scale is never smaller than the smallest normal number of its dtype: processors
    take what is smaller for zero.
    """
    wide = value.astype(jnp.float32)
    largest = jnp.max(jnp.abs(wide), axis=axes, keepdims=True)
    limit, smallest = _LEVELS[dtype], float(jnp.finfo(value.dtype).tiny)
    scale = jnp.where(largest > 0, jnp.maximum(largest / limit, smallest), 1.0)
    scale = scale.astype(value.dtype)
    rounded = jnp.round(wide / scale.astype(jnp.float32))
    values = jnp.clip(rounded, -limit, limit).astype(dtype)
    return [scale, values]


def _dequantize(path: str, scale: Any, values: Any) -> Any:
    with jax.named_scope(path):
        return values.astype(scale.dtype) * scale


def _specs(leaf: Leaf, axes: tuple[int, ...] | None, dtype: str) -> list[Any]:
    if axes is None:
        return [leaf.spec]
    shape = [1 if i in axes else n for i, n in enumerate(leaf.spec.shape)]
    return [
        jax.ShapeDtypeStruct(tuple(shape), leaf.spec.dtype),
        jax.ShapeDtypeStruct(leaf.spec.shape, np.dtype(dtype)),
    ]


def _check_globs(globs: Sequence[str], paths: Sequence[str]) -> None:
    for glob in globs:
        if not any(fnmatchcase(path, glob) for path in paths):
            raise UnknownPathError(
                f"{glob}: names no leaf of the program. Its leaves: "
                f"{', '.join(paths[:8])}{', ...' if len(paths) > 8 else ''}."
            )
