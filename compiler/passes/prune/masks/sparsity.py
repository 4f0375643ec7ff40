"""How many zeros there are in a program's weights, and where."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from compiler.errors import VariablesMismatchError
from compiler.graph import is_abstract
from compiler.passes.adapt.storage import Storage
from compiler.passes.prune.masks.plan import is_mask, mask_path
from compiler.sites import sites_by_leaf

if TYPE_CHECKING:
    from compiler.program import Program


@dataclasses.dataclass(frozen=True)
class Row:
    """The zeros of one weight.

    Attributes:
        path: of the leaf.
        zeros: how many of its numbers are zero.
        size: how many numbers it has.
    """

    path: str
    zeros: int
    size: int

    @property
    def share(self) -> float:
        """Of its numbers, how many are zero, from 0 to 1."""
        return self.zeros / max(self.size, 1)


@dataclasses.dataclass(frozen=True)
class Sparsity:
    """The zeros of a program's weights.

    Attributes:
        rows: one for each leaf that reaches a product, convolution or look-up.
    """

    rows: tuple[Row, ...]

    @property
    def total(self) -> Row:
        """All weights together."""
        zeros, sizes = ([r.zeros for r in self.rows], [r.size for r in self.rows])
        return Row("all weights", sum(zeros), sum(sizes))

    @property
    def share(self) -> float:
        """Of the numbers of all weights, how many are zero, from 0 to 1."""
        return self.total.share

    def __getitem__(self, path: str) -> Row:
        """The row of a path."""
        return next(row for row in self.rows if row.path == path)

    def __str__(self) -> str:
        """A line for each weight, and the total."""
        head = ("weight", "zeros", "of", "share")
        cells = [head] + [
            (row.path, str(row.zeros), str(row.size), f"{row.share:.1%}")
            for row in (*self.rows, self.total)
        ]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        return "\n".join(
            "  ".join([first.ljust(widths[0]), *_right(rest, widths[1:])])
            for first, *rest in cells
        )


def sparsity(program: Program) -> Sparsity:
    """Counts the zeros of a program's weights, as they are used.

    What is stored in few bits counts as decoded; what a mask beside a weight leaves
    out counts as zero. Negative zeros are zeros here.

    Raises:
        VariablesMismatchError: if the program has no arrays.

    >>> import jax.numpy as jnp, compiler as mc
    >>> program = mc.trace(lambda v, x: x @ v["w"], {"w": jnp.eye(4)}, jnp.ones((1, 4)))
    >>> print(sparsity(program))
    weight       zeros  of  share
    w               12  16  75.0%
    all weights     12  16  75.0%
    """
    if any(map(is_abstract, program.values)):
        raise VariablesMismatchError(
            "prune.sparsity: expected a program with arrays, got one that was traced "
            "on shapes alone. Give it some with program.with_variables(...)."
        )
    storage = Storage.of(program.graph)
    graph, held = storage.logical, storage.held(program.values)
    rows = []
    for place in sorted(sites_by_leaf(graph)):
        path = graph.leaves[place].path
        if is_mask(graph, path):
            continue
        used = np.asarray(jax.device_get(storage.value(path, held))) != 0
        if path.startswith("params/") and mask_path(path) in held:
            used = used & np.asarray(storage.value(mask_path(path), held))
        rows.append(Row(path, int(used.size - used.sum()), used.size))
    return Sparsity(tuple(rows))


def masks(program: Program) -> dict[str, Any]:
    """What pruning has kept of a program's weights, by the paths of its variables.

    The masks of its recipe, joined; one that is a leaf counts as it is. They are what
    [`by_masks`][] takes, and `mapping.sparse.apply_masks`.

    >>> import jax.numpy as jnp, compiler as mc
    >>> from compiler.passes.prune.masks.magnitude import magnitude
    >>> w = {"w": jnp.asarray([[3.0, -1.0], [0.5, 2.0]])}
    >>> program = mc.trace(lambda v, x: x @ v["w"], w, jnp.ones((1, 2)))
    >>> masks(program >> magnitude(0.5))["w"].tolist()
    [[True, False], [False, True]]
    """
    from compiler.passes.globs import shortened
    from compiler.passes.prune.masks.masking import Masking

    given = dict(zip(program.graph.paths, program.values, strict=True))
    chosen = [s.decided for s in program.recipe if isinstance(s, Masking) and s.decided]
    found: dict[str, Any] = {}
    for leaf in program.graph.leaves:
        own = [
            one.masks[name].array()
            for one in chosen
            for name in shortened(leaf.path)
            if name in one.masks and one.masks[name].shape == leaf.spec.shape
        ]
        if leaf.path.startswith("params/") and mask_path(leaf.path) in given:
            own = [np.asarray(given[mask_path(leaf.path)])]
        if own:
            found[leaf.path] = np.logical_and.reduce(own)
    return found


def _right(cells: list[str], widths: list[int]) -> list[str]:
    return [cell.rjust(width) for cell, width in zip(cells, widths, strict=True)]
