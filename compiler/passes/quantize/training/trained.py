"""Weights that are trained in floating point and used in few bits."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from compiler.graph import Leaf
from compiler.passes.factorize.factored import wider
from compiler.passes.quantize.arithmetic.activations import round_to
from compiler.passes.quantize.arithmetic.quantized import Quantized, Uses
from compiler.passes.quantize.arithmetic.straight import on_grid, usable
from compiler.passes.quantize.physical import Stored
from compiler.passes.quantize.storage.encoding import Encoding

STEP = "step"
_CODES = 127


@dataclasses.dataclass(frozen=True, eq=False)
class Trained(Stored):
    """How a graph's weights will be stored once they are trained.

    A leaf stays the floating weight it was, at its own path. Beside it are the steps
    of its grid and the scales of the activations it meets, where those are learned.

    Attributes:
        trained: by path, the leaves that are still floating, and whether their steps
            are learned. Others are stored already.
    """

    trained: Mapping[str, bool] = dataclasses.field(default_factory=dict)

    def kept(self, path: str) -> list[str]:
        """What there is of a leaf: itself, named nothing, its step, its scales."""
        if path not in self.trained:
            return super().kept(path)
        inputs = self.inputs(path) if self.trained[path] else {}
        named = [name for name in inputs if name.startswith("input_scale")]
        return ["", *([STEP] if self._steps(path) else []), *named]

    def specs(self, leaf: Leaf) -> dict[str, jax.ShapeDtypeStruct]:
        """What there is of a leaf."""
        if leaf.path not in self.trained:
            return super().specs(leaf)
        found = {"": leaf.spec}
        if self._steps(leaf.path):
            scale = self.encodings[leaf.path].specs["scale"]
            dtype = wider(scale.dtype, jnp.float32)
            found[STEP] = jax.ShapeDtypeStruct(scale.shape, dtype)
        for name in self.kept(leaf.path)[len(found) :]:
            shape = jnp.shape(self.inputs(leaf.path)[name])
            found[name] = jax.ShapeDtypeStruct(shape, jnp.float32)
        return found

    def values(self, path: str, leaf: Any) -> dict[str, Any]:
        """What there is of a leaf in the beginning: the steps that are usual."""
        if path not in self.trained:
            return super().values(path, leaf)
        found = {"": leaf}
        if self._steps(path):
            scale = self.encodings[path].encode(leaf)["scale"]
            found[STEP] = scale.astype(wider(scale.dtype, jnp.float32))
        for name in self.kept(path)[len(found) :]:
            found[name] = jnp.asarray(self.inputs(path)[name], jnp.float32)
        return found

    def joined(self, other: Stored) -> Stored:
        """The two together, which are about different leaves."""
        trained = dict(self.trained)
        if isinstance(other, Trained):
            trained |= other.trained
        return dataclasses.replace(super().joined(other), trained=trained)

    def renamed(self, names: Mapping[str, str]) -> Stored:
        """The same for a graph whose leaves are called otherwise."""
        trained = {names[p]: v for p, v in self.trained.items() if p in names}
        return dataclasses.replace(super().renamed(names), trained=trained)

    def quantized(self, leaf: Leaf, arrays: Mapping[str, Any], uses: Uses) -> Quantized:
        """The weight as it will be stored, with a derivative."""
        if leaf.path not in self.trained:
            return super().quantized(leaf, arrays, uses)
        encoding, inputs = self.encodings[leaf.path], self._inputs(leaf.path, arrays)
        found = _apart(functools.partial(self.converted, leaf.path), arrays)
        inputs = {name: round_to(value, found[name]) for name, value in inputs.items()}
        made = super().quantized(leaf, found | inputs, uses)
        step = self._step(leaf.path, arrays)
        return dataclasses.replace(
            made, carrier=_carrier(encoding, arrays[""], step, found)
        )

    def converted(self, path: str, arrays: Mapping[str, Any]) -> dict[str, Any]:
        """What is stored of a leaf after training."""
        if path not in self.trained:
            return dict(arrays)
        step = self._step(path, arrays)
        return self.encodings[path].encode(arrays[""], step) | self._inputs(
            path, arrays
        )

    @property
    def plain(self) -> Stored:
        """How weights are stored after training."""
        return Stored(self.encodings, self.activations, self.scales)

    def _steps(self, path: str) -> bool:
        """Whether the step of a leaf is learned; powers of two cannot be."""
        return self.trained[path] and not self.encodings[path].scheme.block

    def _step(self, path: str, arrays: Mapping[str, Any]) -> Any:
        """The learned step as it is used; None if it is chosen from the weight."""
        if not self._steps(path):
            return None
        encoding, scale = self.encodings[path], arrays[STEP]
        shared = math.prod(encoding.shape) / max(math.prod(scale.shape), 1)
        rate = _rate(shared, encoding.scheme.format.peak)
        return usable(scale, encoding.specs["scale"].dtype.name, rate)

    def _inputs(self, path: str, arrays: Mapping[str, Any]) -> dict[str, Any]:
        """The scales and zero points of what a leaf meets, as they are used."""
        rate = _rate(self.encodings[path].count, _CODES)
        return {
            name: usable(arrays[name], "float32", rate)
            if name in arrays
            else jnp.asarray(value, jnp.float32)
            for name, value in self.inputs(path).items()
        }


def _apart(
    convert: Callable[..., dict[str, Any]], arrays: Mapping[str, Any]
) -> dict[str, Any]:
    """What will be stored; nothing but nan if an array is not finite.

    XLA must find in what is done with it just what it finds in the converted program,
    where it comes from outside. Else it fuses both, and rounds some sums of products
    once and not twice. On a CPU, where barriers are gone before anything is fused, a
    branch keeps them apart.
    """
    arrays = jax.lax.stop_gradient(dict(arrays))
    finite = jnp.all(jnp.stack([jnp.isfinite(a).all() for a in arrays.values()]))

    def broken(arrays: Mapping[str, Any]) -> dict[str, Any]:
        specs = jax.eval_shape(convert, arrays)
        return {name: _broken(name, spec) for name, spec in specs.items()}

    def on_cpu(finite: Any, arrays: Mapping[str, Any]) -> dict[str, Any]:
        return jax.lax.cond(finite, convert, broken, arrays)

    def elsewhere(finite: Any, arrays: Mapping[str, Any]) -> dict[str, Any]:
        chosen = jax.tree.map(
            lambda good, bad: jnp.where(finite, good, bad),
            convert(arrays),
            broken(arrays),
        )
        return jax.lax.optimization_barrier(chosen)

    return jax.lax.platform_dependent(finite, arrays, cpu=on_cpu, default=elsewhere)


def _broken(name: str, spec: jax.ShapeDtypeStruct) -> Any:
    """Nan, also as the exponent of a power of two (OCP Microscaling Formats 1.0)."""
    if jnp.issubdtype(spec.dtype, jnp.inexact):
        return jnp.full(spec.shape, jnp.nan, spec.dtype)
    return jnp.full(spec.shape, 255 if name == "scale" else 0, spec.dtype)


def _rate(count: float, largest: float) -> float:
    """How much slower than weights a step learns; section 2.2 of the paper."""
    return 1 / math.sqrt(max(count * largest, 1))


def _carrier(
    encoding: Encoding, weight: Any, step: Any, parts: Mapping[str, Any]
) -> Any:
    """The rounded weight, differentiable in the weight and in its step."""
    wide = wider(weight.dtype, jnp.float32)
    scale = encoding.scales(parts).astype(wide)
    if step is not None:
        scale = round_to(encoding.scales({"scale": step}).astype(wide), scale)
    units, zeros = encoding.codes(parts).astype(wide), encoding.zeros(parts)
    scheme = encoding.scheme
    peak = scheme.format.peak
    low, high = scheme.levels if scheme.integer else (-peak, peak)
    ends = [jnp.asarray(end, wide) for end in (low, high)]
    if zeros is not None:
        shift = encoding.spread(zeros.astype(wide))
        units, ends = units - shift, [end - shift for end in ends]
    values = encoding.merge(weight.astype(wide))
    made = on_grid(values, encoding.spread(scale), units, *ends)
    return encoding.split(made).astype(weight.dtype)
