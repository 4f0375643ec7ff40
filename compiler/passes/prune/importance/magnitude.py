"""Importance from the weights alone: magnitudes, scales, chance."""

from __future__ import annotations

import dataclasses
import functools
import zlib
from typing import TYPE_CHECKING, Any

import numpy as np

from compiler.passes.prune.importance.importance import Importance, arrays, sizes
from compiler.passes.prune.importance.roles import SCALE
from compiler.passes.prune.importance.units import Parts, measured, parts, slots
from mapping.core import register

if TYPE_CHECKING:
    from compiler.passes.prune.structure import Slot, Structure
    from compiler.program import Program


@register("value", "prune_magnitude")
@dataclasses.dataclass(frozen=True)
class Magnitude(Importance):
    r"""The size of a unit's weights.

    $$ s_{k,u} = \sum_{w \in k, u} |w|^p $$

    Attributes:
        p: the power, 1 or 2 mostly.

    Raises:
        ValueError: if the power is not positive.

    Li et al., "Pruning Filters for Efficient ConvNets", ICLR 2017,
    https://arxiv.org/abs/1608.08710.
    """

    p: float = 2.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.p > 0:
            raise ValueError(f"prune.Magnitude: expected p > 0, got {self.p!r}.")

    def parts(self, program: Program, structure: Structure) -> Parts:
        """The summed powers."""
        values = arrays(program, f"prune.{type(self).__name__}")
        wanted = self.counted(structure)
        found = measured(values, wanted, functools.partial(_power, self.p))
        return parts(found, wanted, sizes(structure))


def l1(
    *, reduction: str = "mean", normalization: str = "mean", bias: bool = False
) -> Magnitude:
    """The sum of magnitudes of a unit's weights; see [`Magnitude`][].

    Args:
        reduction: over the slices of a unit.
        normalization: within a group.
        bias: whether biases count.

    >>> l1(normalization="lamp")
    Magnitude(reduction='mean', normalization='lamp', bias=False, p=1.0)
    """
    return Magnitude(reduction, normalization, bias, 1.0)


def l2(
    *, reduction: str = "mean", normalization: str = "mean", bias: bool = False
) -> Magnitude:
    """The sum of squares of a unit's weights; see [`Magnitude`][].

    Args:
        reduction: over the slices of a unit.
        normalization: within a group.
        bias: whether biases count.

    >>> l2(reduction="first").p
    2.0
    """
    return Magnitude(reduction, normalization, bias, 2.0)


def _power(p: float, w: Any) -> Any:
    """|w|^p in float32; exactly w and w * w where it is one of them."""
    size = abs(w).astype("float32")
    if p == 1:
        return size
    return size * size if p == 2 else size ** np.float32(p)


@register("value", "prune_batch_norm_scale")
@dataclasses.dataclass(frozen=True)
class BatchNormScale(Magnitude):
    r"""The size of the gains a unit is multiplied with in its norms.

    $$ s_{k,u} = |\gamma_{k,u}| $$

    A gain is a leaf that multiplies values along one axis, whatever it is called: of
    batch, layer or group norm, a learned layer scale. A group that has none (no norm,
    or one without a gain) is not scored, so nothing of it is removed.

    Liu et al., "Learning Efficient Convolutional Networks through Network Slimming",
    ICCV 2017, https://arxiv.org/abs/1708.06519.
    """

    p: float = 1.0

    def counted(self, structure: Structure) -> dict[str, list[Slot]]:
        """By group, its gains."""
        return slots(structure, (SCALE,))


def batch_norm_scale(
    *, reduction: str = "mean", normalization: str = "none"
) -> BatchNormScale:
    """The magnitude of a unit's gains; see [`BatchNormScale`][].

    Args:
        reduction: over several gains of a unit.
        normalization: within a group; gains are comparable as they are.

    >>> batch_norm_scale().normalization
    'none'
    """
    return BatchNormScale(reduction, normalization)


@register("value", "prune_random")
@dataclasses.dataclass(frozen=True)
class Random(Importance):
    """Chance: what any other importance has to beat.

    Scores are uniform in [0, 1), others for each group, and depend on the seed and the
    name of the group alone.

    Attributes:
        seed: of the draw.
    """

    seed: int = 0
    normalization: str = "none"

    def parts(self, program: Program, structure: Structure) -> Parts:
        """Draws."""
        found = {}
        for group in structure.groups:
            draw = np.random.default_rng((self.seed, zlib.crc32(group.name.encode())))
            found[group.name] = [draw.random(group.size)]
        return found


def random(seed: int = 0) -> Random:
    """Scores by chance; see [`Random`][].

    >>> random(3).seed
    3
    """
    return Random(seed=seed)
