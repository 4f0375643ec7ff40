"""How torch lays a layer's weights out, and how linen does.

| layer          | torch                     | here                            |
|----------------|---------------------------|---------------------------------|
| dense          | weight (out, in)          | kernel (in, out)                |
| matrix         | weight (in, out)          | kernel (in, out)                |
| conv           | weight (out, in / g, *k)  | kernel (*k, in / g, out)        |
| conv_transpose | weight (in, out, *k)      | kernel (*k, in, out), k flipped |
| bilinear       | weight (out, in1, in2)    | kernel (in1, in2, out)          |
| norms          | weight, bias              | scale, bias                     |
| batch norm     | running_mean, running_var | mean, var (state)               |
| embedding      | weight (n, d)             | embedding (n, d)                |
| PReLU          | weight (1,)               | negative_slope ()               |

A `matrix` is what the transformers library calls Conv1D. A dense kernel may have
several axes in or out (heads): those of the matrix, unfolded.
"""

from __future__ import annotations

from collections.abc import Callable, Container
from typing import Any

import numpy as np

from mapping.errors import LoadError, ShapeMismatchError

WEIGHTS = ("kernel", "embedding", "scale", "negative_slope")
"""What torch's `weight` may be called here."""

NAMES = {"running_mean": "mean", "running_var": "var"}
"""What else is called otherwise."""

_MATRIX, _FORM = 2, 3
_TO_HEADS = ("query", "key", "value")


def leaf_for(torch_leaf: str, known: Container[str], where: str) -> str | None:
    """The name, among a layer's leaves, of what torch calls `torch_leaf`.

    >>> leaf_for("weight", ["kernel", "bias"], "fc"), leaf_for("weight", ["w"], "fc")
    ('kernel', None)
    """
    if torch_leaf == "weight":
        found = [name for name in WEIGHTS if name in known]
        if len(found) > 1:
            raise LoadError(
                f"{where}: expected one leaf that torch calls weight, got "
                f"{', '.join(found)}. Name it: names={{'layer.weight': 'layer/...'}}."
            )
        return found[0] if found else None
    name = NAMES.get(torch_leaf, torch_leaf)
    return name if name in known else None


def into_leaf(
    tensor: np.ndarray, leaf: str, spec: Any, kind: str | None, where: str
) -> np.ndarray:
    """Lays a tensor out as the leaf is.

    Args:
        tensor: torch's.
        leaf: the name of the leaf.
        spec: the leaf, or its shape.
        kind: of the layer, None where nobody knows.
        where: for messages.
    """
    shape = tuple(spec.shape)
    if leaf == "kernel":
        return _into_kernel(tensor, shape, kind, where)
    if leaf == "negative_slope" and tensor.shape == (1,):
        tensor = tensor.reshape(())
    if leaf == "bias" and tensor.ndim == 1 and tensor.size == np.prod(shape):
        tensor = tensor.reshape(shape)  # of heads
    return _fitting(tensor, shape, where)


def into_tensor(array: np.ndarray, leaf: str, kind: str | None, path: str) -> Any:
    """Lays a leaf out as torch does: the inverse of [`into_leaf`][]."""
    if leaf == "negative_slope":
        return array.reshape(-1)
    layer = path.rpartition("/")[2]
    if leaf == "bias" and layer in _TO_HEADS:
        return array.reshape(-1)
    if leaf != "kernel":
        return array
    if array.ndim == _MATRIX:
        return array if kind == "matrix" else array.T
    if kind in (None, "dense") and layer in _TO_HEADS:
        return array.reshape(array.shape[0], -1).T
    if kind in (None, "dense") and layer == "out":
        return array.reshape(-1, array.shape[-1]).T
    if kind not in _FROM_KERNEL:
        raise LoadError(
            f"{path}/kernel: expected a kernel whose layout is known, got "
            f"{list(array.shape)}. Say what kind of layer it is: "
            f"kinds={{{path!r}: 'conv'}}, or 'conv_transpose', or 'bilinear'."
        )
    return _FROM_KERNEL[kind](array)


def from_channels_first(
    weight: np.ndarray, extents: tuple[int, ...], where: str
) -> np.ndarray:
    """Reorders the columns of a dense layer that torch fed with flattened channels.

    Torch flattens (channels, *space), we flatten (*space, channels).

    >>> from_channels_first(np.arange(4)[None], (2, 2), "fc").tolist()
    [[0, 2, 1, 3]]
    """
    _check_flattened(weight, extents, where)
    unfolded = weight.reshape(len(weight), *extents)
    return np.moveaxis(unfolded, 1, -1).reshape(weight.shape)


def to_channels_first(
    weight: np.ndarray, extents: tuple[int, ...], where: str
) -> np.ndarray:
    """The inverse of [`from_channels_first`][], with the same extents.

    >>> to_channels_first(np.array([[0, 2, 1, 3]]), (2, 2), "fc").tolist()
    [[0, 1, 2, 3]]
    """
    _check_flattened(weight, extents, where)
    channels, *space = extents
    unfolded = weight.reshape(len(weight), *space, channels)
    return np.moveaxis(unfolded, -1, 1).reshape(weight.shape)


def _check_flattened(weight: np.ndarray, extents: tuple[int, ...], where: str) -> None:
    if weight.ndim != _MATRIX or weight.shape[1] != np.prod(extents):
        raise ShapeMismatchError(
            f"{where}: expected a matrix with {' * '.join(map(str, extents))} columns, "
            f"got {list(weight.shape)}. Give the extents that torch flattened: "
            "(channels, *space)."
        )


def _into_kernel(
    weight: np.ndarray, shape: tuple[int, ...], kind: str | None, where: str
) -> np.ndarray:
    if weight.ndim == _MATRIX and kind in (None, "dense", "matrix"):
        kernel = weight if kind == "matrix" else weight.T
        if len(shape) > _MATRIX and kernel.shape in _matrices(shape):
            kernel = kernel.reshape(shape)
        return _fitting(kernel, shape, where)
    if kind is not None:
        if kind not in _INTO_KERNEL or weight.ndim <= _MATRIX:
            raise _misfit(weight.shape, shape, f"{where} ({kind})")
        return _fitting(_INTO_KERNEL[kind](weight), shape, where)
    guesses = [k for k in _GUESSED if k != "bilinear" or weight.ndim == _FORM]
    options = {k: _INTO_KERNEL[k](weight) for k in guesses if weight.ndim > _MATRIX}
    fitting = [k for k, kernel in options.items() if kernel.shape == shape]
    if len(fitting) > 1:
        raise LoadError(
            f"{where}: expected to know what kind of layer this is, got a kernel "
            f"{list(shape)} that could be of {' or '.join(fitting)}. Say so: "
            f"kinds={{'*': {fitting[0]!r}}}."
        )
    if not fitting:
        raise _misfit(weight.shape, shape, where)
    return options[fitting[0]]


def _matrices(shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    """The matrices that such a kernel can be folded to."""
    return [
        (int(np.prod(shape[:i])), int(np.prod(shape[i:]))) for i in range(1, len(shape))
    ]


def _conv(weight: np.ndarray) -> np.ndarray:
    return np.moveaxis(weight, (0, 1), (-1, -2))


def _conv_back(kernel: np.ndarray) -> np.ndarray:
    return np.moveaxis(kernel, (-1, -2), (0, 1))


def _transposed(weight: np.ndarray) -> np.ndarray:
    return np.moveaxis(_flipped(weight, range(2, weight.ndim)), (0, 1), (-2, -1))


def _transposed_back(kernel: np.ndarray) -> np.ndarray:
    return np.moveaxis(_flipped(kernel, range(kernel.ndim - 2)), (-2, -1), (0, 1))


def _flipped(array: np.ndarray, axes: Any) -> np.ndarray:
    return np.flip(array, tuple(axes))


def _bilinear(weight: np.ndarray) -> np.ndarray:
    return np.moveaxis(weight, 0, -1)


def _bilinear_back(kernel: np.ndarray) -> np.ndarray:
    return np.moveaxis(kernel, -1, 0)


_INTO_KERNEL: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "conv": _conv,
    "conv_transpose": _transposed,
    "conv_transpose_kernel": _conv,  # linen swaps and flips such a kernel itself
    "bilinear": _bilinear,
}
_FROM_KERNEL: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "conv": _conv_back,
    "conv_transpose": _transposed_back,
    "conv_transpose_kernel": _conv_back,
    "bilinear": _bilinear_back,
}
_GUESSED = ("conv", "conv_transpose", "bilinear")


def _fitting(array: np.ndarray, shape: tuple[int, ...], where: str) -> np.ndarray:
    if array.shape != shape:
        raise _misfit(array.shape, shape, where)
    return array


def _misfit(got: Any, wanted: Any, where: str) -> ShapeMismatchError:
    return ShapeMismatchError(
        f"{where}: expected what fits {list(wanted)}, got {list(got)}. Give the "
        "mapping the extents of the torch module, or load into another path."
    )
