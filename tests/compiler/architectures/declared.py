"""How an architecture is declared: a builder, and its groups written by hand.

A builder takes widths and returns a pure function, its variables and its inputs. The
groups beside it say by hand what belongs together: a name, how many units, and the axes
of leaves they lie on. Nothing here knows how the compiler finds groups.
"""

from __future__ import annotations

import dataclasses
import functools
import zlib
from collections.abc import Callable
from collections.abc import Mapping as Dict
from fnmatch import fnmatchcase
from typing import Any

import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np

from mapping.core import path_string


@dataclasses.dataclass(frozen=True)
class Units:
    """A group written by hand.

    Attributes:
        name: under which a builder finds how many there are.
        size: how many there are before pruning.
        slots: where they lie, as `path suffix:axis`; `*` in it stands for anything,
            an axis may count from the end, `~` before it says that they stand there
            in another order.
        across: why zeros in their place are no removal (a norm, a softmax, a maximum
            over them); empty where they are.
    """

    name: str
    size: int
    slots: tuple[tuple[str, int], ...]
    across: str = ""

    def axes(self, ranks: Dict[str, int]) -> frozenset[tuple[str, int]]:
        """The axes of a model's leaves they lie on; every slot has to name one.

        Args:
            ranks: how many axes each leaf has, by path.
        """
        found: set[tuple[str, int]] = set()
        for written, axis in self.slots:
            suffix = written.removeprefix("~")
            globs = suffix, f"*/{suffix}"
            named = [p for p in ranks if any(fnmatchcase(p, g) for g in globs)]
            if not named:
                raise LookupError(f"{self.name}: no leaf {suffix} among {list(ranks)}")
            found |= {(path, axis % ranks[path]) for path in named}
        return frozenset(found)


class Widths(dict[str, int]):
    """How many units each group has, and which of the original ones they are.

    Attributes:
        full: how many there were, for constants that a formula keeps on purpose.
        kept: which are left, for what depends on their position.
    """

    def __init__(
        self, full: Dict[str, int], kept: Dict[str, np.ndarray] | None = None
    ) -> None:
        self.full = dict(full)
        self.kept = {n: np.arange(size) for n, size in full.items()} | dict(kept or {})
        super().__init__({name: len(index) for name, index in self.kept.items()})


Build = Callable[[Widths], tuple[Callable[..., Any], Any, tuple[Any, ...]]]


@dataclasses.dataclass(frozen=True)
class Architecture:
    """A model and what is known of it.

    Attributes:
        name: framework and model.
        build: makes it at given widths.
        groups: the truth.
        unlike: why it cannot be built again at the widths left, if it cannot.
    """

    name: str
    build: Build
    groups: tuple[Units, ...]
    unlike: str = ""

    @property
    def framework(self) -> str:
        return self.name.split()[0]

    @functools.cached_property
    def turned(self) -> set[str]:
        """Leaves on which units stand in another order."""
        slots = (suffix for group in self.groups for suffix, _ in group.slots)
        return {suffix[1:] for suffix in slots if suffix.startswith("~")}

    @property
    def widths(self) -> Widths:
        return Widths({group.name: group.size for group in self.groups})


ARCHITECTURES: dict[str, Architecture] = {}


def architecture(framework: str, table: str, unlike: str = "") -> Callable[..., Any]:
    """Registers a builder with its table of groups.

    A line of the table is `name size | slots | why zeros are no removal`; a line that
    begins with `|` goes on with the slots of the line above.
    """

    def register(build: Build) -> Build:
        name = f"{framework} {build.__name__.replace('_', ' ')}"
        assert name not in ARCHITECTURES, name
        ARCHITECTURES[name] = Architecture(name, build, parsed(table), unlike)
        return build

    return register


def parsed(table: str) -> tuple[Units, ...]:
    """Groups from the lines of a table."""
    rows: list[list[str]] = []
    for line in filter(str.strip, table.splitlines()):
        head, slots, *across = (cell.strip() for cell in line.split("|"))
        if head:
            rows.append([head, "", ""])
        rows[-1][1] += f" {slots}"
        rows[-1][2] += "".join(across)
    return tuple(_units(*row) for row in rows)


def _units(head: str, slots: str, across: str) -> Units:
    name, size = head.split()
    pairs = (slot.rsplit(":", 1) for slot in slots.split())
    return Units(name, int(size), tuple((p, int(axis)) for p, axis in pairs), across)


def normal(*shape: int, seed: int = 0, scale: float = 1.0) -> jax.Array:
    """Random inputs."""
    random = np.random.default_rng(seed)
    return jnp.asarray(scale * random.normal(size=shape), jnp.float32)


def integers(*shape: int, below: int, seed: int = 0) -> jax.Array:
    """Random tokens."""
    random = np.random.default_rng(seed)
    return jnp.asarray(random.integers(0, below, shape), jnp.int32)


def filled(tree: Any, seed: int = 0) -> Any:
    """Random numbers in place of the floating shapes of a tree, the same at each call.

    Scales and variances are positive; all else is around zero.
    """

    def fill(path: Any, leaf: Any) -> Any:
        if not hasattr(leaf, "shape") or not hasattr(leaf, "dtype"):
            return leaf
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            return jnp.zeros(leaf.shape, leaf.dtype)
        name = path_string(path)
        random = np.random.default_rng(zlib.crc32(name.encode()) + seed)
        positive = any(word in name for word in ("var", "scale", "gain", "positive"))
        fan = max(leaf.shape[:-1], default=4)
        values = (
            random.uniform(0.5, 1.5, leaf.shape)
            if positive
            else random.normal(size=leaf.shape) / np.sqrt(fan)
        )
        return jnp.asarray(values, leaf.dtype)

    return jax.tree_util.tree_map_with_path(fill, tree)


class Net(nn.Module):
    """A linen module of a function that makes its layers as it goes."""

    forward: Callable[..., Any]

    @nn.compact
    def __call__(self, *inputs: Any) -> Any:
        return self.forward(*inputs)


class Weight(nn.Module):
    """A bare param in linen."""

    shape: tuple[int, ...]

    @nn.compact
    def __call__(self) -> jax.Array:
        return self.param("value", nn.initializers.normal(), self.shape)


def linen(forward: Callable[..., Any], *inputs: Any, mutable: Any = False) -> Any:
    """A function with linen layers in it as a pure one, with random variables."""
    module = Net(forward)
    shapes = jax.eval_shape(module.init, jax.random.key(0), *inputs)

    def apply(variables: Any, *xs: Any) -> Any:
        return module.apply(variables, *xs, mutable=mutable)

    return apply, filled(shapes), inputs


def haiku(forward: Callable[..., Any], *inputs: Any) -> Any:
    """A haiku function without state, with random params."""
    model = hk.without_apply_rng(hk.transform(forward))
    shapes = jax.eval_shape(model.init, jax.random.key(0), *inputs)
    return model.apply, filled(shapes), inputs


def plain(function: Callable[..., Any], shapes: Any, *inputs: Any) -> Any:
    """A plain function of params, from the tree of their shapes."""
    specs = jax.tree.map(
        lambda shape: jax.ShapeDtypeStruct(shape, jnp.float32),
        shapes,
        is_leaf=lambda node: isinstance(node, tuple),
    )
    return function, filled(specs), inputs
