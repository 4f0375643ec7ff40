"""How much the loss would rise if a weight were stored in few bits."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from compiler.errors import VariablesMismatchError
from compiler.graph import Graph, is_abstract
from compiler.passes.quantize.mixed.effects import Effect, Sensitivity
from compiler.passes.quantize.mixed.gradients import Gradients, Loss, gradients
from compiler.passes.quantize.physical import origin
from compiler.passes.quantize.plan import plan
from compiler.passes.quantize.rules import Rule, RuleSpec, as_rules
from compiler.passes.quantize.storage.encoding import Encoding
from compiler.passes.quantize.storage.scheme import Scheme, as_scheme

if TYPE_CHECKING:
    from compiler.program import Program

SCHEMES = ("int8", "int4", "nf4", "int2")
_NOISE = 1e8
"""Curvature over squared gradients, beyond which gradients are rounding errors."""


def sensitivity(
    program: Program,
    loss: Loss,
    batches: Iterable[Any],
    schemes: Sequence[str | Scheme] = SCHEMES,
    *,
    rules: RuleSpec = (),
    skip: str | Sequence[str] = (),
) -> Sensitivity:
    r"""Predicts the rise of the loss for every weight and scheme, without trying any.

    With the error $\delta = \mathrm{decode}(\mathrm{encode}(W)) - W$ of a weight and
    the gradients $g_b$ of the batches, one backward pass for each,

    $$ \Delta L \approx \max(0, |\bar g^\top \delta| - 2 \sigma)
       + \frac{m}{2} \sum_j \overline{g_j^2}\, \delta_j^2, \qquad
       \sigma^2 = \frac{1}{n} \sum_j \overline{g_j^2}\, \delta_j^2 $$

    Where the program was trained the first term vanishes, and what $n$ batches show of
    it is chance: so much ($2 \sigma$) is taken off. The second has the diagonal of the
    empirical Fisher matrix for the Hessian (Molchanov et al., 2019,
    https://arxiv.org/abs/1906.10771; for quantization, by products with the Hessian:
    Dong et al., 2019, https://arxiv.org/abs/1905.03696). Gradients of a batch of $m$
    independent terms are $m$ times too small in the square. How many there are only
    the loss knows; $m$ is such that the second terms of all weights, under the
    coarsest scheme, are together half of $\sum_j H_{jj} \delta_j^2$, which the same
    backward pass estimates.

    Where gradients vanish altogether (the loss compares the program with its own
    outputs), each weight's part of that sum takes their place, scaled to the size of
    the error (Dong et al., 2020, https://arxiv.org/abs/1911.03852).

    Args:
        program: as it comes to this point of the recipe, with arrays.
        loss: `loss(outputs, *rest)`, a scalar, the mean over examples.
        batches: tuples of the program's inputs, then the rest, which the loss takes:
            `(x, labels)` for `loss(outputs, labels)`.
        schemes: names, or [`Scheme`][]s.
        rules: weights that a rule is about are not measured.
        skip: globs of paths that are not measured.

    Raises:
        VariablesMismatchError: if the program has no arrays.
        CalibrationError: if batches or losses are not what was expected.

    >>> import compiler as mc
    >>> x, w = jax.random.normal(jax.random.key(0), (2, 32, 32))
    >>> f = lambda v, x: x @ v["a"] + 0.01 * (x @ v["b"])
    >>> program = mc.trace(f, {"a": w, "b": w}, x)
    >>> squared = lambda y, target: ((y - target) ** 2).mean()
    >>> found = sensitivity(program, squared, [(x, x @ w)], ["int8"])
    >>> [(effect.path, str(effect.scheme), effect.bytes) for effect in found.effects]
    [('a', 'int8', 1152), ('b', 'int8', 1152)]
    """
    chosen = tuple(dict.fromkeys(map(as_scheme, schemes)))
    if not chosen:
        raise ValueError(
            "schemes: expected at least one, got none. Pass ('int8', 'int4'), say."
        )
    encodings = candidates(program.graph, chosen, as_rules(rules, skip))
    weights = _arrays(program, encodings)
    coarsest = min(chosen, key=_fineness)
    along = {
        path: _error(own[coarsest], weights[path])
        if coarsest in own
        else jnp.zeros_like(weights[path])
        for path, own in encodings.items()
    }
    measured = gradients(program, loss, batches, along)
    scale = _scale(measured, along)
    effects = [
        _effect(path, encoding, weights[path], along[path], measured, scale)
        for path, own in encodings.items()
        for encoding in own.values()
    ]
    return Sensitivity(_ordered(effects), measured.loss, scale or 1.0)


def _effect(
    path: str,
    encoding: Encoding,
    weight: jax.Array,
    along: jax.Array,
    measured: Gradients,
    scale: float | None,
) -> Effect:
    """What one weight under one scheme does; by curvature alone without a scale."""
    error = _error(encoding, weight)
    sums = _sums(error, measured.mean[path], measured.square[path], along)
    first, square, size, reference = map(float, sums)
    if scale is not None:
        second = 0.5 * scale * square
    else:
        bend = max(0.0, measured.curvature[path])
        second = bend * size / reference if reference else 0.0
    chance = 2.0 * math.sqrt(square / measured.batches)
    rise = max(0.0, abs(first) - chance) + second
    before = math.prod(encoding.shape) * jnp.dtype(encoding.dtype).itemsize
    bits = encoding.scheme, before, encoding.bytes
    return Effect(path, *bits, rise, first, second)


def candidates(
    graph: Graph, schemes: Sequence[Scheme], rules: Sequence[Rule]
) -> dict[str, dict[Scheme, Encoding]]:
    """By path, the encodings a weight may get; weights a rule is about are left out."""
    logical, stored = origin(graph)
    ruled = plan(logical, None, rules, None, stored.encodings).encodings
    found: dict[str, dict[Scheme, Encoding]] = {}
    for scheme in schemes:
        own = plan(logical, scheme, rules, None, stored.encodings).encodings
        for path in own.keys() - ruled.keys():
            found.setdefault(path, {})[scheme] = own[path]
    return {path: found[path] for path in logical.paths if path in found}


def _arrays(program: Program, paths: Iterable[str]) -> dict[str, jax.Array]:
    values = dict(zip(program.graph.paths, program.values, strict=True))
    if any(map(is_abstract, values.values())):
        raise VariablesMismatchError(
            "sensitivity: expected weights to measure, got a program traced on shapes "
            "alone. Trace it with arrays."
        )
    return {path: jnp.asarray(values[path]) for path in paths}


def _fineness(scheme: Scheme) -> tuple[int, bool]:
    return scheme.bits, isinstance(scheme.group, int)


@functools.partial(jax.jit, static_argnums=0)
def _error(encoding: Encoding, weight: jax.Array) -> jax.Array:
    return encoding.decode(encoding.encode(weight)) - weight


@jax.jit
def _sums(error: Any, mean: Any, square: Any, along: Any) -> tuple[Any, ...]:
    """The sums over a weight that its effect is made of."""
    error, along = error.astype(jnp.float32), along.astype(jnp.float32)
    return (
        jnp.sum(mean * error),
        jnp.sum(square * error * error),
        jnp.sum(error * error),
        jnp.sum(along * along),
    )


def _scale(measured: Gradients, along: Mapping[str, jax.Array]) -> float | None:
    """How much squared gradients are too small; None if they tell nothing."""
    fisher = 0.5 * sum(
        float(jnp.sum(measured.square[path] * along[path].astype(jnp.float32) ** 2))
        for path in along
    )
    bend = sum(measured.curvature.values())
    if bend <= 0:
        return float(measured.examples)
    return bend / fisher if bend < _NOISE * fisher else None


def _ordered(effects: Sequence[Effect]) -> tuple[Effect, ...]:
    worst: dict[str, float] = {}
    for effect in effects:
        worst[effect.path] = max(effect.rise, worst.get(effect.path, 0.0))
    return tuple(sorted(effects, key=lambda effect: -worst[effect.path]))
