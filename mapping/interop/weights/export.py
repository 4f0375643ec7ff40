"""The variables of a mapping as torch's weights."""

from __future__ import annotations

from collections.abc import Mapping as Dict
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mapping.core import Mapping, Variables
from mapping.errors import LoadError
from mapping.interop.trees import names as steps_of
from mapping.interop.weights.fused import fuse
from mapping.interop.weights.kinds import Kinds, check_flattened
from mapping.interop.weights.load import COLLECTION
from mapping.interop.weights.names import Names, Renaming
from mapping.interop.weights.rules import (
    NAMES,
    WEIGHTS,
    into_tensor,
    to_channels_first,
)


def to_torch(
    mapping: Mapping,
    variables: Variables,
    *,
    names: Names = None,
    kinds: Dict[str, str] | None = None,
    flattened: Dict[str, tuple[int, ...]] | None = None,
) -> dict[str, np.ndarray]:
    """Writes the variables of a mapping as a torch `state_dict` of numpy arrays.

    The inverse of [`load_torch`][], by the same rules; `safetensors.numpy.save_file`
    keeps it, `torch.from_numpy` makes tensors of it.

    Args:
        mapping: what the variables are of.
        variables: its own.
        names: from paths to torch's names, such as `{"block_*": "features.*"}`.
        kinds: what kind of layer is at a path (a glob), where the mapping cannot tell.
        flattened: by the path of a dense layer, the extents (channels, *space) that
            torch flattens before it.

    Raises:
        LoadError: if nobody knows how a kernel lies, or two arrays get one name.
        ShapeMismatchError: if a flattened layer has another number of inputs.
        UnknownPathError: if a name, a kind or a flattened path fits nothing.

    >>> from mapping.layers import Dense
    >>> variables = Dense(2).init(jax.random.key(0), jnp.ones((1, 3)))
    >>> sorted(to_torch(Dense(2), variables, names={"": "fc"}))
    ['fc.bias', 'fc.weight']
    """
    writing = _Writing(mapping, variables, names, kinds, dict(flattened or {}))
    for whole, leaf in jax.tree_util.tree_leaves_with_path(variables):
        _, *steps, own = steps_of(whole)
        layer = "/".join(step for step in steps if step != COLLECTION)
        writing.write(layer, own, _host(leaf))
    writing.check_said()
    joined = fuse(writing.tensors)
    return {name: np.array(x, order="C") for name, x in joined.items()}


class _Writing:
    """Leaves on their way to torch."""

    def __init__(
        self,
        mapping: Mapping,
        variables: Variables,
        names: Names,
        kinds: Dict[str, str] | None,
        flattened: dict[str, tuple[int, ...]],
    ) -> None:
        self.kinds = Kinds(mapping, variables.params, kinds)
        self.rename, self.flattened = Renaming(names, "/"), flattened
        self.tensors: dict[str, np.ndarray] = {}
        self.paths: list[str] = []
        self.kernels: list[str] = []

    def write(self, layer: str, leaf: str, array: np.ndarray) -> None:
        """Names a leaf as torch does, and lays it out."""
        self.paths += [layer, f"{layer}/{leaf}"]
        renamed = self.rename(layer, leaf)
        if renamed is None:
            return
        name = ".".join([*renamed[0], renamed[1] or _torch_name(leaf)])
        if name in self.tensors:
            raise LoadError(
                f"{name}: expected one array of this name, got another at "
                f"{layer}/{leaf}. Rename one: names={{{layer!r}: ...}}."
            )
        if leaf != "kernel":
            self.tensors[name] = into_tensor(array, leaf, None, layer)
            return
        self.kernels.append(layer)
        self.kinds.refuse_copies(layer, array.ndim)
        weight = into_tensor(array, leaf, self.kinds.at(layer), layer)
        if layer in self.flattened:
            weight = to_channels_first(weight, self.flattened[layer], name)
        self.tensors[name] = weight

    def check_said(self) -> None:
        """Refuses what was said of nothing."""
        self.rename.check_used(self.paths)
        self.kinds.check_used(self.kernels)
        check_flattened(self.flattened, self.kernels)


_TORCH = {own: torch for torch, own in NAMES.items()} | dict.fromkeys(WEIGHTS, "weight")


def _torch_name(leaf: str) -> str:
    return _TORCH.get(leaf, leaf)


def _host(leaf: Any) -> np.ndarray:
    if leaf.dtype == jnp.bfloat16:
        leaf = leaf.astype(jnp.float32)  # numpy has none
    return np.asarray(leaf)
