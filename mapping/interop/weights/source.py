"""Where torch's weights come from."""

from __future__ import annotations

import os
from collections.abc import Mapping as Dict
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from safetensors.numpy import load_file

from mapping.errors import LoadError

Source: TypeAlias = Dict[str, Any] | str | os.PathLike[str]
"""A `state_dict` of tensors or numpy arrays, or the path of a `.safetensors` file."""


def read(source: Source) -> dict[str, np.ndarray]:
    """Reads every tensor as a numpy array; torch itself is not needed.

    Raises:
        LoadError: if it is neither, or the file is of another kind.

    >>> read({"fc.bias": np.zeros(2)})
    {'fc.bias': array([0., 0.])}
    """
    if isinstance(source, str | os.PathLike):
        if Path(source).suffix != ".safetensors":
            raise LoadError(
                f"{source}: expected a .safetensors file, got another. A pickled "
                "checkpoint can run code: load it in torch with weights_only=True and "
                "pass the state_dict."
            )
        return load_file(source)
    if not isinstance(source, Dict) or not all(map(_is_tensor, source.values())):
        raise LoadError(
            f"{type(source).__name__}: expected a dict of tensors by name, or the path "
            "of a .safetensors file. Pass module.state_dict()."
        )
    return {str(name): _array(tensor) for name, tensor in source.items()}


def _is_tensor(value: Any) -> bool:
    return hasattr(value, "shape") and hasattr(value, "dtype")


def _array(tensor: Any) -> np.ndarray:
    if hasattr(tensor, "detach"):
        tensor = tensor.detach().cpu()
        if str(tensor.dtype) == "torch.bfloat16":
            tensor = tensor.float()  # numpy has none; every value has one in float32
        return tensor.numpy()
    return np.asarray(tensor)
