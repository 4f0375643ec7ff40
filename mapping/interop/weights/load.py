"""Torch's weights into the variables of a mapping."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping as Dict
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mapping.core import Mapping, Variables, describe
from mapping.errors import LoadError
from mapping.interop.trees import Names as Steps
from mapping.interop.trees import names as steps_of
from mapping.interop.weights.fused import unfuse
from mapping.interop.weights.kinds import Kinds, check_flattened
from mapping.interop.weights.names import Names, Paths, Renaming
from mapping.interop.weights.rules import from_channels_first, into_leaf, leaf_for
from mapping.interop.weights.source import Source, read
from mapping.paths import nearest

COLLECTION = "batch_stats"
"""The branch of the state in which a lifted linen module keeps its statistics."""


@dataclasses.dataclass(frozen=True)
class Loaded:
    """What loading made.

    Attributes:
        variables: the mapping's, with torch's values.
        matched: where each of torch's tensors went, by name.
        missing: paths that no tensor was for; they are as they were.
        unexpected: tensors that there was no place for.
    """

    variables: Variables
    matched: dict[str, str]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]

    def __str__(self) -> str:
        lines = [f"{name} -> {path}" for name, path in self.matched.items()]
        lines += [f"(missing) -> {path}" for path in self.missing]
        lines += [f"{name} -> (unexpected)" for name in self.unexpected]
        return "\n".join(lines)


def load_torch(
    source: Source,
    mapping: Mapping,
    into: Variables,
    *,
    names: Names = None,
    kinds: Dict[str, str] | None = None,
    flattened: Dict[str, tuple[int, ...]] | None = None,
    strict: bool = True,
) -> Loaded:
    """Loads a torch `state_dict` into the variables of a mapping.

    Names that differ in separators only (`layers.0.conv`, `layers_0/conv`) find each
    other; for others give `names`. How each tensor is laid out anew follows from the
    kind of layer at its path (the rules are in docs/interop.md); where nobody knows
    the kind, the only rule that fits is taken, and two are an error. Torch itself is
    not needed.

    Args:
        source: a dict of tensors or numpy arrays, or the path of a `.safetensors` file.
        mapping: what the variables are of; it says what kind of layer lives where.
        into: its variables, or their shapes from `outline`; dtypes stay.
        names: from torch's names to paths, such as `{"features.*": "block_*"}`; see
            `mapping.interop.weights.names.Renaming`.
        kinds: what kind of layer is at a path (a glob), where the mapping cannot tell:
            `dense`, `matrix`, `conv`, `conv_transpose` or `bilinear`.
        flattened: by the path of a dense layer, the extents (channels, *space) that
            torch flattened before it. We have channels last, so its rows change places.
        strict: whether every tensor must find its place and every leaf its tensor.

    Raises:
        LoadError: if something is missing, unexpected, ambiguous or given twice.
        ShapeMismatchError: if a tensor does not fit its leaf.
        UnknownPathError: if a name, a kind or a flattened path fits nothing.

    >>> from mapping.layers import Dense
    >>> dense = Dense(2)
    >>> into = dense.init(jax.random.key(0), jnp.ones((1, 3)))
    >>> torch = {"weight": np.ones((2, 3)), "bias": np.zeros(2)}
    >>> print(load_torch(torch, dense, into))
    weight -> params/kernel
    bias -> params/bias
    """
    loading = _Loading(mapping, into, names, kinds, dict(flattened or {}))
    tensors = unfuse(read(source))
    for name, tensor in tensors.items():
        loading.place(name, tensor)
    loading.check_said(list(tensors))
    loaded = loading.result()
    if strict and (loaded.missing or loaded.unexpected):
        known = [path.partition("/")[2] for path in loading.leaves]
        raise LoadError(_differences(loaded, known))
    return loaded


class _Loading:
    """Tensors on their way to the leaves."""

    def __init__(
        self,
        mapping: Mapping,
        into: Variables,
        names: Names,
        kinds: Dict[str, str] | None,
        flattened: dict[str, tuple[int, ...]],
    ) -> None:
        self.into, self.flattened = into, flattened
        flat = jax.tree_util.tree_leaves_with_path(into)
        self.leaves = {"/".join(steps_of(path)): leaf for path, leaf in flat}
        self.layers: dict[Steps, dict[str, str]] = {}
        for path, _ in flat:
            _, *steps, leaf = steps_of(path)
            layer = tuple(step for step in steps if step != COLLECTION)
            self.layers.setdefault(layer, {})[leaf] = "/".join(steps_of(path))
        self.known = Paths(self.layers)
        self.kinds = Kinds(mapping, into.params, kinds)
        self.rename = Renaming(names, ".")
        self.placed: dict[str, dict[int | None, tuple[str, np.ndarray]]] = {}
        self.unexpected: list[str] = []
        self.seen: set[str] = set()

    def place(self, name: str, tensor: np.ndarray) -> None:
        """Finds the leaf of a tensor and lays the tensor out for it."""
        layer, _, leaf = name.rpartition(".")
        renamed = self.rename(layer, leaf)
        if renamed is None:
            return
        steps, index = _indexed(renamed[0])
        found = self.known.find(steps)
        if len(found) > 1:
            raise LoadError(
                f"{name}: expected one layer of this name, got "
                f"{' and '.join('/'.join(path) for path in found)}. Say which: "
                f"names={{{layer!r}: {'/'.join(found[0])!r}}}."
            )
        known = self.layers[found[0]] if found else {}
        own = renamed[1] if renamed[1] in known else None
        if renamed[1] is None:
            own = leaf_for(leaf, known, name)
        if own is None:
            self.unexpected.append(name)
            return
        self._lay_out(name, tensor, found[0], own, index)

    def _lay_out(
        self, name: str, tensor: np.ndarray, layer: Steps, leaf: str, index: int | None
    ) -> None:
        path, key = "/".join(layer), self.layers[layer][leaf]
        spec = jax.ShapeDtypeStruct(self.leaves[key].shape, self.leaves[key].dtype)
        if index is not None:
            spec = jax.ShapeDtypeStruct(spec.shape[1:], spec.dtype)
        kind = None
        if leaf == "kernel":
            self.seen.add(path)
            kind = self.kinds.at(path)
            if path in self.flattened:
                tensor = from_channels_first(tensor, self.flattened[path], name)
        where = f"{name} -> {key}"
        laid_out = into_leaf(tensor, leaf, spec, kind, where)
        others = self.placed.setdefault(key, {})
        if index in others or (others and None in (index, *others)):
            raise LoadError(
                f"{key}: expected one tensor, got {next(iter(others.values()))[0]} and "
                f"{name}. Leave one out: names={{{name!r}: None}}."
            )
        others[index] = (name, laid_out)

    def check_said(self, tensors: list[str]) -> None:
        """Refuses what was said of nothing."""
        self.rename.check_used([*tensors, *{t.rpartition(".")[0] for t in tensors}])
        self.kinds.check_used(sorted(self.seen))
        check_flattened(self.flattened, self.seen)

    def result(self) -> Loaded:
        """The variables, and what is left over."""
        values = {key: self._value(key, parts) for key, parts in self.placed.items()}

        def new(path: Any, leaf: Any) -> Any:
            return values.get("/".join(steps_of(path)), leaf)

        return Loaded(
            jax.tree_util.tree_map_with_path(new, self.into),
            {n: key for key, own in self.placed.items() for n, _ in own.values()},
            tuple(key for key in self.leaves if key not in self.placed),
            tuple(self.unexpected),
        )

    def _value(
        self, key: str, parts: dict[int | None, tuple[str, np.ndarray]]
    ) -> jax.Array:
        leaf = self.leaves[key]
        if None in parts:
            return jnp.array(parts[None][1], leaf.dtype)
        wanted = range(leaf.shape[0])
        if set(parts) != set(wanted):
            raise LoadError(
                f"{key}: expected a tensor for each of the {len(wanted)} copies in "
                f"{describe(leaf)}, got those for {sorted(map(str, parts))}. Number "
                "them from 0: names={'layers.*': 'layers[*]'}."
            )
        return jnp.array(np.stack([parts[i][1] for i in wanted]), leaf.dtype)


def _indexed(steps: Steps) -> tuple[Steps, int | None]:
    """`("blocks[3]", "dense")` is the fourth copy of `("blocks", "dense")`."""
    index = None
    plain = []
    for step in steps:
        found = re.fullmatch(r"(.*)\[(\d+)\]", step)
        if found is not None:
            step, index = found[1], int(found[2])
        plain.append(step)
    return tuple(plain), index


def _differences(loaded: Loaded, known: list[str]) -> str:
    lines = [
        "load_torch: expected every tensor to find a place, got "
        f"{len(loaded.unexpected)} unexpected and {len(loaded.missing)} missing. Give "
        "names=..., or strict=False."
    ]
    for name in loaded.unexpected:
        lines.append(
            f"  unexpected: {name} (nearest: {nearest(name.replace('.', '/'), known)})"
        )
    return "\n".join([*lines, *(f"  missing: {path}" for path in loaded.missing)])
