"""Masks as data: one bit for each number."""

from __future__ import annotations

import base64
import binascii
import dataclasses
import math
from typing import Any

import jax.numpy as jnp
import numpy as np

from mapping.core import register


@register("value", "prune_mask")
@dataclasses.dataclass(frozen=True)
class Mask:
    """Which numbers of one leaf are kept.

    Attributes:
        path: the leaf's.
        shape: the leaf's.
        bits: one for each number, the first the highest of its byte, in base 64.

    Raises:
        ValueError: if there are not as many bits as numbers.

    >>> mask = Mask.of("w", np.array([[True, False], [True, True]]))
    >>> mask.bits, mask.array().tolist()
    ('sA==', [[True, False], [True, True]])
    """

    path: str
    shape: tuple[int, ...]
    bits: str = dataclasses.field(repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(self.shape))
        try:
            length = len(base64.b64decode(self.bits, validate=True))
        except (binascii.Error, ValueError) as error:
            raise ValueError(
                f"{self.path}: expected bits in base 64: {error}"
            ) from error
        if length != -(-self.size // 8):
            raise ValueError(
                f"{self.path}: expected the bits of {self.size} numbers, got {length} "
                "bytes."
            )

    @classmethod
    def of(cls, path: str, mask: Any) -> Mask:
        """The mask as data."""
        array = np.asarray(mask, bool)
        bits = base64.b64encode(np.packbits(array).tobytes()).decode()
        return cls(path, array.shape, bits)

    @property
    def size(self) -> int:
        """How many numbers there are."""
        return math.prod(self.shape)

    @property
    def packed(self) -> np.ndarray[Any, Any]:
        """The bits, uint8."""
        return np.frombuffer(base64.b64decode(self.bits), np.uint8)

    def array(self) -> np.ndarray[Any, Any]:
        """The mask, bool, of the leaf's shape."""
        bits = np.unpackbits(self.packed, count=self.size)
        return bits.astype(bool).reshape(self.shape)

    def traced(self) -> Any:
        """The mask as JAX unpacks it: its constant is no larger than the bits."""
        bits = jnp.unpackbits(jnp.asarray(self.packed))[: self.size]
        return jnp.reshape(bits != 0, self.shape)

    def __str__(self) -> str:
        """How much is kept."""
        return f"{self.path}: {int(self.array().sum())} of {self.size} kept"
