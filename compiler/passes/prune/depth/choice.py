"""Which layers go: by name, or the least important of them."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from compiler.errors import UnknownPathError, VariablesMismatchError
from compiler.graph import is_abstract
from compiler.passes.prune.depth.blocks import Block, Blocks
from compiler.passes.prune.depth.influence import losses, turns
from compiler.passes.prune.depth.steps import Step, steps
from compiler.paths import matches

if TYPE_CHECKING:
    from compiler.passes.prune.depth.layers import PruneLayers
    from compiler.program import Program

Importance = str | Callable[..., Any]
"""`"magnitude"`, `"influence"`, `"angular"`, or a loss of (outputs, *rest)."""

NAMES = ("magnitude", "influence", "angular")


class Unit(NamedTuple):
    """What goes together: branches, or one step of a loop.

    Attributes:
        name: the layer's path, or the key of the branch or step.
        branches: in the order they run.
        step: the step.
    """

    name: str
    branches: tuple[Block, ...] = ()
    step: Step | None = None

    @property
    def keys(self) -> list[str]:
        """The keys of its branches, or of the step."""
        return [self.step.key] if self.step else [block.key for block in self.branches]


def named(
    program: Program, found: Blocks, globs: Sequence[str], gone: Sequence[str]
) -> list[str]:
    """The keys of branches and steps that globs name; those of `gone` are so already.

    Raises:
        UnknownPathError: naming the keys that come nearest.
    """
    keys: dict[str, None] = {}
    for glob in globs:
        own = _named(program, found, glob)
        before = [key for key in gone if matches(glob, key)]
        if not own and not before:
            known = [item.key for item in (*found, *steps(program.graph))]
            near = difflib.get_close_matches(glob, known, 5, 0.3) or known[:8]
            raise UnknownPathError(
                f"{glob}: expected a path or glob of residual blocks, names none. The "
                f"nearest there are: {', '.join(near) or '(there is no block)'}. "
                "prune.blocks(program) tells what was found, and why a sum is no block."
            )
        keys |= dict.fromkeys(own or before)
    return list(keys)


def _named(program: Program, found: Blocks, glob: str) -> list[str]:
    """The keys of what a glob names; of the blocks it names a part of, the inner."""
    named = [b for b in found if b.matches(glob)]
    partly = [b for b in found if b not in named and b.reads(glob)]
    kept = [b for b in partly if not any(map(b.contains, [*named, *partly]))]
    turns = [step.key for step in steps(program.graph) if step.matches(glob)]
    return [b.key for b in found if b in named or b in kept] + turns


def units(
    program: Program, found: Blocks, unit: str, skip: Sequence[str]
) -> list[Unit]:
    """What can be removed one by one: layers or branches in no loop, and steps."""
    stays = {key for glob in skip for key in _named(program, found, glob)}
    groups: dict[str, list[Block]] = {}
    for block in found:
        if not block.is_looped and _is_layer(block, found):
            name = block.layer if unit == "layer" else block.key
            groups.setdefault(name, []).append(block)
    made = [Unit(name, tuple(own)) for name, own in groups.items()]
    made += [Unit(step.key, (), step) for step in steps(program.graph)]
    return [one for one in made if not stays.intersection(one.keys)]


def _is_layer(block: Block, found: Blocks) -> bool:
    """Whether a block is a layer: no part of one, and no stage of several."""
    inside = [other for other in found if block.contains(other)]
    around = [other for other in found if other.contains(block)]
    alone = all(sum(map(other.contains, found)) > 1 for other in around)
    return len(inside) < 2 and alone


def chosen(step: PruneLayers, program: Program, found: Blocks) -> list[str]:
    """The keys of the least important branches."""
    known = units(program, found, step.unit, step.skip)
    count = step.count
    if count is None:
        count = round((step.ratio or 0.0) * len(known))
    if count > len(known):
        raise ValueError(
            f"prune.layers: expected to remove at most the {len(known)} {step.unit}s "
            f"there are, got count={count}. prune.blocks(program) lists them."
        )
    if not count:
        return []
    if any(map(is_abstract, program.values)):
        raise VariablesMismatchError(
            "prune.layers: expected arrays to tell what matters by, got a program that "
            "was traced on shapes alone. Trace it with arrays, or give paths."
        )
    if step.importance == "angular":
        angles = turns(program, known, step.batches, step.axis, count)
        if not np.isfinite(angles).any():
            raise ValueError(
                f"prune.layers: expected {count} {step.unit}s one after the other, "
                f"there are not so many. Remove fewer, or by another importance."
            )
        start = int(np.argmin(angles))
        return [key for unit in known[start : start + count] for key in unit.keys]
    scores = _scores(step, program, known)
    order = _spared(known, np.argsort(scores, kind="stable"))[:count]
    return [key for i in sorted(order) for key in known[i].keys]


def _spared(known: Sequence[Unit], order: np.ndarray) -> list[int]:
    """The order without the last step of each loop, which stays."""
    last: dict[str, int] = {}
    for i in order.tolist():
        if (step := known[i].step) is not None:
            last[step.group] = i
    return [i for i in order.tolist() if i not in last.values()]


def _scores(step: PruneLayers, program: Program, known: Sequence[Unit]) -> np.ndarray:
    """How much each unit matters."""
    if callable(step.importance):
        return losses(program, known, step.batches, step.importance)
    if step.importance == "influence":
        return turns(program, known, step.batches, step.axis, None)
    return np.array([_magnitude(program, unit) for unit in known])


def _magnitude(program: Program, unit: Unit) -> float:
    """The root mean square of the leaves of a unit."""
    values = dict(zip(program.graph.paths, program.values, strict=True))
    paths = dict.fromkeys(p for b in unit.branches for p in b.leaves)
    arrays = [np.asarray(values[path], np.float64) for path in paths]
    if unit.step is not None:
        arrays = [
            np.take(np.asarray(program.values[leaf], np.float64), indices, axis)
            for leaf, axis, indices in unit.step.slots
        ]
    size = sum(array.size for array in arrays)
    return float(np.sqrt(sum((array**2).sum() for array in arrays) / max(size, 1)))
