"""What is made of one mapping."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from mapping.combinators.lift import as_mapping
from mapping.core import Mapping


@dataclasses.dataclass(frozen=True)
class Wrapper(Mapping):
    """A mapping round another.

    Attributes:
        inner: the mapping inside; a function is lifted.
    """

    inner: Mapping | Callable[..., Any]

    def __post_init__(self) -> None:
        object.__setattr__(self, "inner", as_mapping(self.inner))

    @property
    def mapping(self) -> Mapping:
        """The mapping inside."""
        return as_mapping(self.inner)
