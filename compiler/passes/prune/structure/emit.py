"""The analysed program evaluated again: on smaller arrays, or on masked ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from compiler import jaxprs
from compiler.errors import VerifyError
from compiler.graph import read
from compiler.passes.prune.structure.atoms import STAYS, Array
from compiler.passes.prune.structure.frame import Frame, Place
from compiler.passes.prune.structure.labels import Axes, Labels, Vector
from compiler.passes.prune.structure.numbers import renumbered
from compiler.passes.prune.structure.registry import Registry
from mapping.core import describe


class Emit:
    """An evaluation of frames with some atoms removed.

    Attributes:
        masking: whether shapes stay as they are, with neutral elements in the place of
            what was removed; else everything is as small as it becomes.
    """

    def __init__(
        self,
        labels: Labels,
        rules: Registry,
        removed: Array,
        *,
        masking: bool = False,
    ) -> None:
        """Begins an evaluation.

        Args:
            labels: of the analysis.
            rules: by which it was made.
            removed: the atoms that go.
            masking: see the class.
        """
        self.masking = masking
        self._labels = labels
        self._rules = rules
        self._gone = np.zeros(labels.atoms.count, np.bool_)
        self._gone[removed] = True
        self._gone[STAYS] = False
        self._kept: dict[int, tuple[Vector, Array | None]] = {}

    def keep(self, vector: Vector) -> Array | None:
        """For each index of an axis whether it stays; None if all do."""
        if vector is None:
            return None
        found = self._kept.get(id(vector))
        if found is None:  # the vector is kept too, so that its id is not used again
            stays = ~self._gone[self._labels.atoms.resolve(vector)].any(1)
            found = self._kept[id(vector)] = vector, None if stays.all() else stays
        return found[1]

    def count(self, vector: Vector, extent: Any) -> Any:
        """How many indices of an axis stay."""
        kept = self.keep(vector)
        return extent if kept is None else int(kept.sum())

    def shape(self, axes: Axes, shape: Sequence[Any]) -> tuple[Any, ...]:
        """What a shape becomes."""
        return tuple(map(self.count, axes, shape))

    def result_shape(self, place: Place, result: int = 0) -> tuple[Any, ...]:
        """What the shape of one of an equation's results becomes."""
        return self.shape(
            place.results[result], place.equation.outvars[result].aval.shape
        )

    def is_changed(self, *axes: Axes) -> bool:
        """Whether any of some axes loses an index."""
        return any(self.keep(vector) is not None for one in axes for vector in one)

    def take(self, value: Any, axes: Axes) -> Any:
        """An array without what was removed of its axes."""
        for axis, vector in enumerate(axes):
            kept = self.keep(vector)
            if kept is not None:
                numpy = np if isinstance(value, np.ndarray) else jnp
                value = numpy.take(value, np.flatnonzero(kept), axis=axis)
        return value

    def fill(self, value: Any, axes: Axes, along: Sequence[int], neutral: Any) -> Any:
        """An array with a number in the place of what was removed along some axes."""
        for axis in along:
            kept = self.keep(axes[axis])
            if kept is not None:
                shape = [1] * value.ndim
                shape[axis] = len(kept)
                other = jnp.full(value.shape, neutral, value.dtype)
                stays = jnp.broadcast_to(kept.reshape(shape), value.shape)
                value = jnp.where(stays, value, other)
        return value

    def run(self, frame: Frame, values: Sequence[Any]) -> list[Any]:
        """Evaluates a frame on its inputs."""
        jaxpr = frame.jaxpr.jaxpr
        env = dict(zip(jaxpr.invars, values, strict=True))
        for var, constant in zip(jaxpr.constvars, frame.jaxpr.consts, strict=True):
            env[var] = (
                constant if self.masking else self.take(constant, frame.axes[var])
            )
        for place in frame.places:
            given = [read(env, operand) for operand in place.equation.invars]
            with jaxprs.provenance(place.equation):
                results = self._emitted(place, given)
            env.update(zip(place.equation.outvars, results, strict=True))
        return [read(env, operand) for operand in jaxpr.outvars]

    def _emitted(self, place: Place, values: list[Any]) -> list[Any]:
        rule = self._rules.of(place.equation.primitive.name)
        if place.counted and not self.masking:
            values = renumbered(self, place, values)
        face = rule.mask if self.masking else rule.shrink
        results = face(self, place, values)
        for number, (var, result) in enumerate(
            zip(place.equation.outvars, results, strict=True)
        ):
            want = (
                var.aval.shape
                if self.masking or not jaxprs.is_value(var)
                else self.result_shape(place, number)
            )
            if tuple(getattr(result, "shape", want)) != tuple(want):
                raise VerifyError(
                    f"{place.scope or '(root)'}: {place.equation.primitive.name} "
                    f"({jaxprs.source(place.equation)}): its rule for pruning should "
                    f"give {want}, gave {describe(result)}. The rule is wrong."
                )
        return results
