"""Dynamic training: layers are frozen and unfrozen as it goes on."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Hashable
from collections.abc import Mapping as Dict
from typing import Any, TypeAlias

import jax
import numpy as np
import optax

from mapping.errors import FieldError
from mapping.fields import check_count
from mapping.optimizers.optimizer import Optimizer, as_transform, tried
from mapping.optimizers.rules import check_globs, label
from mapping.registry import register

Window: TypeAlias = "float | tuple[float, float] | None"
"""The epoch from which params train; or from which and until which; None is never."""


@register(
    "optimizer",
    "gradual",
    examples=lambda: tried(
        Gradual(Optimizer.of(optax.sgd, 0.1), (("*/bias", 0), ("*", (0, 2))), 1)
    ),
)
@dataclasses.dataclass(frozen=True)
class Gradual(Optimizer):
    """Trains each group of params in its own span of epochs. Made by [`gradual`][].

    Attributes:
        optimizer: what [`as_transform`][] takes.
        windows: pairs of a glob and its window.
        steps_per_epoch: at least one.
    """

    optimizer: Any
    windows: tuple[tuple[str, Window], ...]
    steps_per_epoch: int

    def __post_init__(self) -> None:
        as_transform(self.optimizer, "gradual.optimizer")
        check_globs([glob for glob, _ in self.windows], "gradual")
        check_count(self.steps_per_epoch, "gradual.steps_per_epoch")
        for glob, window in self.windows:
            _check_window(window, f"gradual[{glob!r}]")

    def transform(self) -> optax.GradientTransformation:
        """One copy of the optimizer a group, each of which waits for its time."""
        globs = [glob for glob, _ in self.windows]
        groups: dict[Hashable, optax.GradientTransformation] = {
            glob: self._group(window) for glob, window in self.windows
        }
        return optax.partition(groups, lambda tree: label(tree, globs, "gradual"))

    def _group(self, window: Window) -> optax.GradientTransformation:
        if window is None:
            return optax.set_to_zero()
        transform = as_transform(self.optimizer)
        start, end = window if isinstance(window, tuple) else (window, math.inf)
        if start == 0 and end == math.inf:
            return transform
        return optax.conditionally_mask(transform, self._inside(start, end))

    def _inside(self, start: float, end: float) -> Callable[..., jax.Array]:
        first = math.ceil(start * self.steps_per_epoch)
        last = None if end == math.inf else math.ceil(end * self.steps_per_epoch)

        def inside(step: Any) -> Any:
            return step >= first if last is None else (step >= first) & (step < last)

        return inside


def gradual(
    optimizer: Any, windows: Dict[str, Window], *, steps_per_epoch: int
) -> Gradual:
    """Freezes and unfreezes params by path and epoch.

    Outside its window a param has no update at all, no weight decay either, and its
    moments stay as they are. Each group has a copy of the optimizer to itself, so
    what counts steps (bias correction, a schedule) counts the steps in which the group
    has trained, and what looks at all gradients (clipping by their norm) looks at the
    group's. Put a clip of the whole, or a schedule of the whole run, outside:
    `clip >> gradual(...)`. The step is counted in the state: no epoch is compiled anew.

    Args:
        optimizer: an optax transform, or an [`Optimizer`][].
        windows: by glob, in order of precedence: the epoch (from 0) at which params
            begin to train; or a pair, with the epoch at which they are frozen again;
            or None for params that never train, which have no moments.
        steps_per_epoch: how many updates make an epoch; with 1, windows are steps.

    Raises:
        FieldError: if a window is no span of epochs.
        UnknownPathError: when it meets params that no glob names, or a glob that
            names none.

    >>> import jax.numpy as jnp
    >>> from mapping.optimizers import sgd
    >>> params = {"body": jnp.ones(1), "head": jnp.ones(1)}
    >>> tuned = gradual(sgd(1.0), {"head": 0, "body": 1}, steps_per_epoch=1).transform()
    >>> first, state = tuned.update(params, tuned.init(params), params)
    >>> second, state = tuned.update(params, state, params)
    >>> [[float(u[name][0]) for name in params] for u in (first, second)]
    [[0.0, -1.0], [-1.0, -1.0]]
    """
    return Gradual(optimizer, tuple(windows.items()), steps_per_epoch)


def _check_window(window: Any, where: str) -> None:
    if window is None:
        return
    span = window if isinstance(window, tuple) else (window, math.inf)
    real = len(span) == 2 and all(
        isinstance(x, int | float | np.number) and not isinstance(x, bool) for x in span
    )
    if not real or not 0 <= span[0] < span[1] or span[0] == math.inf:
        raise FieldError(
            f"{where}: expected an epoch >= 0, a pair (from, until), or None for "
            f"never, got {window!r}."
        )
