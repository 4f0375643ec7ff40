"""Depth pruning: residual branches and whole layers go, with their leaves."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from compiler.graph import Graph
from compiler.passes.base import Pass, Rewrite
from compiler.passes.prune.depth.blocks import blocks
from compiler.passes.prune.depth.choice import NAMES, Importance, chosen, named
from compiler.passes.prune.depth.removal import removed
from mapping.core import register

if TYPE_CHECKING:
    from compiler.program import Program

_UNITS = ("layer", "branch")


@register("pass", "prune_layers")
@dataclasses.dataclass(frozen=True)
class PruneLayers(Pass):
    r"""Removes residual branches: of $y = x + f(x)$ remains $y = x$.

    Nothing is retrained and nothing approximated: the program is that of the same
    architecture with these blocks left out, and the leaves that only they read are
    gone from its variables. A leaf that is used elsewhere stays. What comes after the
    sum (a norm after the block, a division by $\sqrt 2$) stays as it is.

    A turn of a `scan` over stacked weights is a layer too: it goes with its part of
    every stacked leaf, and the loop has one turn less.

    Which go is told by paths, or by importance, the least important first:

    - `"magnitude"`: the root mean square of the weights of a unit's own leaves;
    - `"influence"`: how far it turns what goes through it, averaged over tokens,
      $1 - \mathrm{E} \cos(x, y)$ (ShortGPT);
    - `"angular"`: the `count` consecutive units that together turn it least, by
      $\mathrm{E} \arccos(\cos(x_i, y_{i + n})) / \pi$;
    - a function `loss(outputs, *rest)` of the program's outputs and of what a batch
      holds beyond its inputs: by how much it rises when the unit is left out.

    The pass that was applied carries the keys of the branches, so it is applied again
    at other batch sizes and to other weights; what is gone already it skips.

    Attributes:
        ratio: the share of units to remove, in (0, 1); rounded to nearest.
        count: how many units to remove.
        paths: globs of layers, of modules inside them, or keys of `prune.blocks`.
        importance: see above.
        unit: `"layer"` (attention and feed-forward of a transformer go together) or
            `"branch"`.
        axis: where the features of an activation are, for cosines.
        skip: globs of what stays in any case.
        removed: keys of the branches that go; found by `decide`.
        batches: what to measure on.

    Raises:
        UnknownPathError: if a glob names no block.
        CalibrationError: if there are no batches to measure on.
        ValueError: if it is not said what to remove, or more than there is.

    Men et al., "ShortGPT", 2024, https://arxiv.org/abs/2403.03853; Gromov et al., "The
    Unreasonable Ineffectiveness of the Deeper Layers", 2024,
    https://arxiv.org/abs/2403.17887; Song et al., "SLEB", 2024,
    https://arxiv.org/abs/2402.09025.
    """

    ratio: float | None = None
    count: int | None = None
    paths: tuple[str, ...] = ()
    importance: Importance = "magnitude"
    unit: str = "layer"
    axis: int = -1
    skip: tuple[str, ...] = ()
    removed: tuple[str, ...] | None = None
    batches: Any = dataclasses.field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        told = (self.ratio is not None) + (self.count is not None) + bool(self.paths)
        if self.removed is None and told != 1:
            raise ValueError(
                "prune.layers: expected one of a ratio, a count and paths, got "
                f"{told} of them. Say what to remove, as prune.layers(count=2)."
            )
        if self.ratio is not None and not 0 < self.ratio < 1:
            raise ValueError(
                f"prune.layers: ratio: expected more than 0 and less than 1, got "
                f"{self.ratio!r}. It is the share of layers to remove."
            )
        if self.count is not None and self.count < 1:
            raise ValueError(
                f"prune.layers: count: expected 1 or more, got {self.count!r}."
            )
        if not callable(self.importance) and self.importance not in NAMES:
            raise ValueError(
                f"prune.layers: importance: expected one of {', '.join(NAMES)}, or a "
                f"loss of the outputs, got {self.importance!r}."
            )
        if self.unit not in _UNITS:
            raise ValueError(
                f"prune.layers: unit: expected one of {', '.join(_UNITS)}, got "
                f"{self.unit!r}."
            )

    def decide(self, program: Program) -> Pass:
        """Chooses the branches that go."""
        if self.removed is not None:
            return dataclasses.replace(self, batches=None)
        found = blocks(program)
        if self.paths:
            gone = [key for step in program.recipe for key in _removed(step)]
            keys = named(program, found, self.paths, gone)
        else:
            keys = chosen(self, program, found)
        return dataclasses.replace(self, removed=tuple(keys), batches=None)

    def rewrite(self, graph: Graph) -> Rewrite:
        """Puts the shortcut where the sum was, and drops what nobody reads any more."""
        return removed(graph, self.removed or ())


def layers(
    ratio: float | None = None,
    *,
    count: int | None = None,
    paths: str | Sequence[str] = (),
    importance: str | Callable[..., Any] | None = None,
    batches: Iterable[Any] | None = None,
    unit: str = "layer",
    axis: int = -1,
    skip: str | Sequence[str] = (),
) -> PruneLayers:
    """Removes residual branches and whole layers; see [`PruneLayers`][].

    One after the other, each measured without those before, as SLEB does it:
    `prune.layers(count=1, ...) >> prune.layers(count=1, ...)`.

    Args:
        ratio: the share of layers to remove.
        count: how many to remove instead.
        paths: which to remove instead: globs of layers, modules or keys.
        importance: `"magnitude"`, `"influence"`, `"angular"`, or a loss of
            (outputs, *rest of the batch); `"influence"` by default where there are
            batches, else `"magnitude"`.
        batches: inputs of the program to measure on, an array each or a tuple of
            several; for a loss followed by what it takes.
        unit: `"layer"` or `"branch"`.
        axis: where the features of an activation are.
        skip: globs of what stays in any case.

    >>> import jax, jax.numpy as jnp, compiler as mc
    >>> def net(layers, x):
    ...     for layer in layers:
    ...         x = x + jnp.tanh(x @ layer["w"])
    ...     return x
    >>> weights = [{"w": jnp.eye(2)}, {"w": 0.01 * jnp.eye(2)}, {"w": jnp.eye(2)}]
    >>> x = jnp.array([[1.0, 2.0]])
    >>> program = mc.trace(net, weights, x)
    >>> shorter = program >> layers(count=1)
    >>> shorter.graph.paths
    ['0/w', '2/w']
    >>> bool((shorter(x) == net([weights[0], weights[2]], x)).all())
    True
    """
    kept = None if batches is None else tuple(batches)
    chosen_by = importance or ("magnitude" if kept is None else "influence")
    globs = (paths,) if isinstance(paths, str) else tuple(paths)
    stays = (skip,) if isinstance(skip, str) else tuple(skip)
    return PruneLayers(ratio, count, globs, chosen_by, unit, axis, stays, None, kept)


def _removed(step: Pass) -> tuple[str, ...]:
    return step.removed or () if isinstance(step, PruneLayers) else ()
