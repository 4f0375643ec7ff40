"""The residual blocks of a program: `prune.blocks`."""

from __future__ import annotations

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from compiler import jaxprs
from compiler.events import Event
from compiler.graph import Graph
from compiler.passes.prune.depth.flow import Flow, Place
from compiler.passes.prune.depth.inline import inlined
from compiler.passes.prune.depth.residual import (
    Branch,
    branches,
    cancels,
    is_sum,
    shortcut,
    size,
)
from compiler.passes.prune.depth.steps import Step, steps
from compiler.paths import Operation, matches, names, operations, owner

if TYPE_CHECKING:
    from compiler.program import Program


@dataclasses.dataclass(frozen=True, eq=False)
class Block:
    """One residual branch: what is added to a shortcut, and can be left out.

    Attributes:
        key: its name, made of the leaves it reads; the same for every trace of one
            function, whatever the shapes of its inputs.
        layer: the path of the layer it is part of.
        path: where the sum belongs.
        leaves: paths of the leaves that only it reads.
        shared: paths of the leaves it reads that others read too.
        parameters: how many numbers its own leaves hold.
        source: the line of user code of the sum.
        inside: the primitives it stands inside of: a loop, a branch, a checkpoint.
        place: of the sum among the equations of `inlined(graph)`.
        skip: which operand of the sum remains.
        outer: places and operands of the sums that it is a part of what they add.
    """

    key: str
    layer: str
    path: str
    leaves: tuple[str, ...]
    shared: tuple[str, ...]
    parameters: int
    source: str
    inside: tuple[str, ...]
    place: Place
    skip: int
    outer: tuple[tuple[Place, int], ...] = ()

    @property
    def is_looped(self) -> bool:
        """Whether it stands in a loop or a branch, and so is no layer of its own."""
        return any(name != "remat2" for name in self.inside)

    def matches(self, glob: str) -> bool:
        """Whether a glob names it, by its key, its layer or its path."""
        known = [self.key, self.key.partition("#")[0], self.layer, self.path]
        return any(matches(glob, name) for name in known if name)

    def reads(self, glob: str) -> bool:
        """Whether a glob names a module it reads."""
        head, _, tail = self.key.partition("#")[0].rpartition("/")
        parts = [f"{head}/{part}" if head else part for part in tail.split("+")]
        return any(matches(glob, part) for part in parts)

    def contains(self, other: Block) -> bool:
        """Whether another stands inside it."""
        return set(self.leaves) > set(other.leaves)


@dataclasses.dataclass(frozen=True, eq=False)
class Blocks(Sequence[Block]):
    """The residual branches of a program, in the order they run, as a sequence.

    Attributes:
        found: the branches.
        refused: sums of two activations that are none, and why.
        steps: the turns of loops over stacked weights, each of which is a layer.
    """

    found: tuple[Block, ...]
    refused: tuple[Event, ...]
    steps: tuple[Step, ...] = ()

    def __len__(self) -> int:
        return len(self.found)

    def __getitem__(self, index):
        return self.found[index]

    def __iter__(self) -> Iterator[Block]:
        return iter(self.found)

    def __str__(self) -> str:
        """A line for each branch, then for each sum that is none."""
        lines = [
            f"{b.key}: {b.parameters} parameters in {len(b.leaves)} leaves"
            + (f", {len(b.shared)} more shared" if b.shared else "")
            + (f", inside {'/'.join(b.inside)}" if b.inside else "")
            + f" ({b.source})"
            for b in self.found
        ]
        lines += [
            f"{step.key}: {step.parameters} parameters in {len(step.leaves)} leaves "
            f"({step.source})"
            for step in self.steps
        ]
        count = Counter(f"no block: {event}" for event in self.refused)
        for line, times in count.items():
            lines.append(line if times == 1 else f"{line}, {times} times")
        return "\n".join(lines)


def blocks(program: Program | Graph) -> Blocks:
    r"""Finds the residual branches of a program: sums $y = s(x) + f(x)$.

    The shortcut $s$ is $x$ itself, or $x$ with a gain, a cast or another arrangement,
    or a sum of such; the branch $f$ reads leaves that nothing else does the same with.
    Sums of two activations that are no such thing are told with the reason.

    >>> import jax.numpy as jnp, compiler as mc
    >>> def net(layers, x):
    ...     for layer in layers:
    ...         x = x + jnp.tanh(x @ layer["w"])
    ...     return x
    >>> program = mc.trace(net, [{"w": jnp.eye(2)}] * 2, jnp.ones((1, 2)))
    >>> [(block.key, block.parameters) for block in blocks(program)]
    [('0/w', 4), ('1/w', 4)]
    """
    graph = program if isinstance(program, Graph) else program.graph
    if graph not in _FOUND:
        _FOUND[graph] = _Search(graph).run()
    return _FOUND[graph]


_FOUND: WeakKeyDictionary[Graph, Blocks] = WeakKeyDictionary()
"""What was found before: a pass asks several times about one graph."""


class _Search:
    """Goes through the sums of one graph."""

    def __init__(self, graph: Graph) -> None:
        self.original, self.graph = graph, inlined(graph)
        self.flow = Flow(self.graph)
        self.live = self.flow.needed()
        self.shapes = [leaf.spec.shape for leaf in graph.leaves]
        self.paths = dict(_places(operations(self.graph), ()))
        self._refused: list[tuple[int, Event]] = []

    def run(self) -> Blocks:
        found = [b for n in range(len(self.flow.steps)) for b in self._branches(n)]
        inside = {b.step for b in found if b.outer}
        self.refused = [event for n, event in self._refused if n not in inside]
        keys = _numbered([self._key(b) for b in found])
        layers = self._layers(found, keys)
        made = map(self._block, found, keys, layers)
        turns = steps(self.original)
        return Blocks(tuple(made), tuple(self.refused), turns)

    def _branches(self, number: int) -> list[Branch]:
        """What a sum adds to its shortcut, if it is residual and has weights."""
        step = self.flow.steps[number]
        if not is_sum(self.flow, step) or not self.live[step.outputs[0]]:
            return []
        if "jvp(" in step.scope or "transpose(" in step.scope:
            return self._refuse(number, _GRADIENT)
        skip = shortcut(self.flow, step)
        if skip is None:
            return self._refuse(number, _NO_SHORTCUT)
        if cancels(self.flow, step, skip):
            return self._refuse(number, "the shortcut is subtracted again")
        found = branches(self.flow, number, skip, self.live)
        for one in found:
            if why := self._why_not(one):
                return self._refuse(number, why)
        return found

    def _why_not(self, one: Branch) -> str:
        """Why a branch is none that can be removed; empty if it can."""
        names = ", ".join(self.graph.paths[i] for i in one.shared[:3])
        if not one.reads and not names:
            return "no weights in what is added"
        if size(self.shapes, one.reads) <= size(self.shapes, one.shared):
            return f"what is added is used elsewhere too: {names} would stay"
        return ""

    def _refuse(self, number: int, why: str) -> list[Branch]:
        step = self.flow.steps[number]
        where = self.paths.get(step.place, "") or "add"
        event = Event(where, why, jaxprs.source(step.equation))
        self._refused.append((number, event))
        return []

    def _names(self, leaves: Sequence[int]) -> list[str]:
        return [self.graph.paths[i] for i in leaves]

    def _key(self, found: Branch) -> str:
        """What is common to its leaves, and the parts of it that they are in."""
        return _together([self._address(i).split("/") for i in found.reads])

    def _address(self, leaf: int) -> str:
        """The path of a leaf without the collection it is in."""
        one = self.graph.leaves[leaf]
        names = one.path.split("/")
        last = names[-1] if names[-1] != "value" or len(names) == 1 else names[-2]
        own = owner(one)
        if own.split("/")[-1:] == [last]:  # nnx: the variable's own name is the last
            return own
        return f"{own}/{last}" if own else last

    def _layers(self, found: Sequence[Branch], keys: Sequence[str]) -> list[str]:
        """For each branch the layer: where its sum stands, if no twin stands there."""
        places = []
        for one, key in zip(found, keys, strict=True):
            step = self.flow.steps[one.step]
            path = self.paths.get(step.place, "") if names(step.scope) else ""
            places.append(path or _part_of(key))
        kinds = defaultdict(list)
        for one, place in zip(found, places, strict=True):
            kinds[place].append(sorted(self.shapes[i] for i in one.reads))
        layers = []
        for place, key in zip(places, keys, strict=True):
            alike = any(kinds[place].count(kind) > 1 for kind in kinds[place])
            layers.append(key if alike or not place else place)
        return layers

    def _block(self, found: Branch, key: str, layer: str) -> Block:
        step = self.flow.steps[found.step]
        rest = [i for i in found.reads if i not in found.own]
        return Block(
            key,
            layer,
            self.paths.get(step.place, ""),
            tuple(self._names(found.own)),
            tuple(self._names([*rest, *found.shared])),
            size(self.shapes, found.own),
            jaxprs.source(step.equation),
            step.holders,
            step.place,
            found.skip,
            tuple((self.flow.steps[n].place, i) for n, i in found.outer),
        )


_NO_SHORTCUT = "neither operand is what the other was made from"
_GRADIENT = (
    "its derivative is in the function too, which would stay that of the whole; prune "
    "the forward function and differentiate it then"
)


def _places(found: Sequence[Operation], before: Place) -> Iterator[tuple[Place, str]]:
    for number, operation in enumerate(found):
        yield (*before, number), operation.path
        for index, body in enumerate(operation.bodies):
            yield from _places(body, (*before, number, index))


def _together(paths: list[list[str]]) -> str:
    """Several paths as one: `h/ln/scale` and `h/mlp/kernel` are `h/ln+mlp`."""
    shared = 0
    while all(len(p) > shared + 1 and p[shared] == paths[0][shared] for p in paths):
        shared += 1
    last = dict.fromkeys(path[shared] for path in paths)
    return "/".join([*paths[0][:shared], "+".join(last)])


def _numbered(keys: list[str]) -> list[str]:
    """Keys that are all different: equal ones tell which of how many they are."""
    total, met = Counter(keys), Counter()
    told = []
    for key in keys:
        met[key] += 1
        told.append(f"{key}#{met[key]}/{total[key]}" if total[key] > 1 else key)
    return told


def _part_of(key: str) -> str:
    """A path up to the last name in it that is a number, else all but the last."""
    parts = key.partition("#")[0].split("/")[:-1]
    places = [i for i, part in enumerate(parts) if part.isdigit()]
    return "/".join(parts[: places[-1] + 1] if places else parts)
