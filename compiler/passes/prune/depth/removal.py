"""Blocks and steps taken out of a graph, with the leaves that only they read."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from compiler.graph import Graph, Leaf, nbytes
from compiler.passes.base import Prepare, Rewrite
from compiler.passes.prune.depth.blocks import Block, blocks
from compiler.passes.prune.depth.cut import without_blocks, without_leaves
from compiler.passes.prune.depth.inline import inlined
from compiler.passes.prune.depth.steps import Step, steps
from compiler.passes.prune.structure import shrink, structure
from compiler.rewrite import Event, Events


def removed(graph: Graph, keys: Sequence[str]) -> Rewrite:
    """The graph without some blocks and steps; itself if there are none of them.

    Args:
        graph: any.
        keys: of blocks and steps; what is not there is skipped.
    """
    events = Events()
    known = {block.key: block for block in blocks(graph)}
    turns = {step.key: step for step in steps(graph)}
    for key in keys:
        if key not in known and key not in turns:
            events.skipped.append(Event(key, "there is no such block (any more)"))
    new, prepare = graph, None
    if going := [known[key] for key in keys if key in known]:
        whole = inlined(graph)
        new, prepare, gone = without_leaves(whole, without_blocks(whole, going))
        prepare = prepare if gone else None
        _tell(going, gone, events)
    if any(key in turns for key in keys):
        own = [step for step in steps(new) if step.key in keys]
        new, cut = _without_steps(new, own, events)
        prepare = _after(prepare, cut)
    return Rewrite(new, prepare, events)


def _without_steps(
    graph: Graph, going: Sequence[Step], events: Events
) -> tuple[Graph, Prepare]:
    """Loops with fewer turns, over shorter stacks."""
    whole = inlined(graph)
    found, numbers = structure(whole), defaultdict(list)
    for step in going:
        numbers[step.group].append(step.number)
    plan = found.plan(dict(numbers))
    for step in going:
        leaf, axis, indices = step.slots[0]
        kept = plan.axes(graph.leaves[leaf].path).get(axis, indices)
        if set(indices.tolist()) & set(kept):
            why = "stays: a loop has one turn at least"
            events.skipped.append(Event(step.key, why, step.source))
        else:
            what = f"removed, with its part of {len(step.leaves)} leaves"
            events.fired.append(Event(step.key, what, step.source))
    paths = graph.paths

    def prepare(leaves: Sequence[Any]) -> list[Any]:
        return [plan.cut(x, path) for x, path in zip(leaves, paths, strict=True)]

    return shrink(found, plan), prepare


def _after(first: Prepare | None, second: Prepare) -> Prepare:
    if first is None:
        return second
    return lambda leaves: second(first(leaves))


def _tell(going: Sequence[Block], gone: Sequence[Leaf], events: Events) -> None:
    """What is gone, and what stays of it because others read it too."""
    left = {leaf.path: leaf for leaf in gone}
    for block in going:
        read = (*block.leaves, *block.shared)
        own = [left.pop(path) for path in read if path in left]
        size = sum(map(nbytes, (leaf.spec for leaf in own)))
        what = f"removed, with {len(own)} leaves of {size} bytes"
        events.fired.append(Event(block.key, what, block.source))
        for path in block.shared:
            if all(path != leaf.path for leaf in gone):
                why = f"stays: {block.key} is not all that reads it"
                events.skipped.append(Event(path, why, block.source))
    for path in left:
        events.fired.append(Event(path, "removed: only what is gone read it"))
