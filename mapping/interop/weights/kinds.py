"""What kind of layer lives at each path: shapes alone do not tell."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Iterator
from collections.abc import Mapping as Dict
from typing import Any

import flax.linen as nn
import numpy as np

from mapping.combinators import as_mapping
from mapping.combinators.steps import Steps
from mapping.core import Mapping
from mapping.errors import FieldError, LoadError, UnknownPathError
from mapping.layers import Bilinear, DepthwiseConv
from mapping.layers.linen import LinenLayer
from mapping.model import Model
from mapping.paths import nearest
from mapping.tree import matches

KINDS = ("dense", "matrix", "conv", "conv_transpose", "bilinear")
"""The kinds of layer whose kernels lie in different ways."""

_LINEN = {
    "Dense": "dense",
    "DenseGeneral": "dense",
    "Conv": "conv",
    "ConvTranspose": "conv_transpose",
}
_AUTOMATIC = re.compile(rf"({'|'.join(_LINEN)})_\d+")
"""What linen calls a layer that its author gave no name."""


class Kinds:
    """Knows the kind of layer at a path.

    From what the user said, else from the mapping that lives there, else from the
    name that linen gave it.

    >>> from mapping.layers import Conv
    >>> Kinds(Conv(2), {"kernel": 0}).at("")
    'conv'
    """

    def __init__(
        self, mapping: Mapping, params: Any, said: Dict[str, str] | None = None
    ) -> None:
        self._said = dict(said or {})
        for glob, kind in self._said.items():
            if kind not in KINDS:
                raise FieldError(
                    f"kinds[{glob!r}]: expected one of {', '.join(KINDS)}, got "
                    f"{kind!r}."
                )
        self._known = {"/".join(p): m for p, m in layers(mapping, params)}
        self._used: set[str] = set()

    def at(self, path: str) -> str | None:
        """The kind of layer at a path, None where nobody knows."""
        for glob, kind in self._said.items():
            if matches(glob, path):
                self._used.add(glob)
                return kind
        known = _kind(self._known.get(path))
        if known is not None:
            return known
        automatic = _AUTOMATIC.fullmatch(path.rpartition("/")[2])
        return _LINEN[automatic[1]] if automatic else None

    def refuse_copies(self, path: str, axes: int) -> None:
        """Refuses a kernel with more axes than the layer at its path has."""
        layer = self._known.get(path)
        module = layer.module() if isinstance(layer, LinenLayer) else layer
        space = getattr(module, "kernel_size", None)
        wanted = None if space is None else len(np.atleast_1d(space)) + 2
        wanted = 3 if isinstance(layer, Bilinear) else wanted
        if wanted is not None and axes != wanted:
            raise LoadError(
                f"{path}/kernel: expected the {wanted} axes of one layer, got {axes}: "
                "those of several copies. Take them apart, and write each by itself."
            )

    def check_used(self, paths: list[str]) -> None:
        """Refuses what was said of no layer."""
        for glob in self._said:
            if glob not in self._used:
                raise UnknownPathError(
                    f"kinds[{glob!r}]: names no layer with a kernel. Nearest: "
                    f"{nearest(glob, paths)}."
                )


def check_flattened(flattened: Iterable[str], kernels: Iterable[str]) -> None:
    """Refuses what was said to be flattened before no layer."""
    known = sorted(kernels)
    for path in flattened:
        if path not in known:
            raise UnknownPathError(
                f"flattened[{path!r}]: names no dense layer among those with a kernel. "
                f"Nearest: {nearest(path, known)}."
            )


def layers(
    mapping: Mapping, params: Any, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], Mapping]]:
    """Lists the mappings inside a mapping with the paths of their params."""
    yield path, mapping
    for name, child in _children(mapping).items():
        if isinstance(params, Dict) and name in params:
            yield from layers(child, params[name], (*path, name))
        elif name == "inner":  # a wrapper whose paths are those of what it wraps
            yield from layers(child, params, path)


def _children(mapping: Mapping) -> dict[str, Mapping]:
    if isinstance(mapping, Steps):
        return dict(mapping.children)
    if isinstance(mapping, Model):
        return {name: as_mapping(part) for name, part in mapping.parts().items()}
    fields = {f.name: getattr(mapping, f.name) for f in dataclasses.fields(mapping)}
    return {name: value for name, value in fields.items() if isinstance(value, Mapping)}


def _kind(mapping: Mapping | None) -> str | None:
    if isinstance(mapping, DepthwiseConv):
        return "conv"
    if isinstance(mapping, Bilinear):
        return "bilinear"
    if not isinstance(mapping, LinenLayer):
        return None
    module = mapping.module()
    if isinstance(module, nn.ConvTranspose) and module.transpose_kernel:
        return "conv_transpose_kernel"
    return _LINEN.get(type(module).__name__)
