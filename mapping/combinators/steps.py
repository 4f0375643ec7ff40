"""What is made of several mappings: their names, chosen or derived."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable
from typing import Any, Self

from mapping.combinators.lift import as_mapping
from mapping.core import Mapping
from mapping.errors import NameCollisionError

Step = tuple[str | None, Mapping]


@dataclasses.dataclass(frozen=True, init=False, repr=False)
class Steps(Mapping):
    """Several mappings under one roof, each with a name.

    Those given by keyword carry the name you chose; those given by position are
    named after their kind (`dense`, `dense_2`, ...).

    Attributes:
        steps: pairs of a name (None where it was not chosen) and a mapping.

    Raises:
        NameCollisionError: if two are given the same name.
        NotAMappingError: if one is neither a mapping nor a function.
    """

    steps: tuple[Step, ...]

    def __init__(self, /, *steps: Mapping | Callable[..., Any], **named: Any) -> None:
        pairs = [(None, as_mapping(step)) for step in steps]
        pairs += [(name, as_mapping(step)) for name, step in named.items()]
        object.__setattr__(self, "steps", tuple(pairs))
        self.__post_init__()

    def __post_init__(self) -> None:
        chosen = [name for name, _ in self.steps if name is not None]
        for name in chosen:
            if not name or "/" in name:
                raise NameCollisionError(
                    f"{type(self).__name__}: expected names without /, which joins "
                    f"names to paths, got {name!r}. Rename the step."
                )
        twice = sorted({name for name in chosen if chosen.count(name) > 1})
        if twice:
            raise NameCollisionError(
                f"{type(self).__name__}: expected each name once, got {twice} twice. "
                "Rename one, or keep each part whole under a name of its own: "
                "Serial(first=..., second=...)."
            )

    @classmethod
    def from_fields(cls, *, steps: tuple[Step, ...], **fields: Any) -> Self:
        """Builds it from `(name or None, mapping)` pairs and its other fields."""
        made = cls.__new__(cls)
        for name, value in fields.items():
            object.__setattr__(made, name, value)
        pairs = tuple((name, as_mapping(step)) for name, step in steps)
        object.__setattr__(made, "steps", pairs)
        made.__post_init__()
        return made

    def __repr__(self) -> str:
        parts = [repr(s) if n is None else f"{n}={s!r}" for n, s in self.steps]
        for field in dataclasses.fields(self)[1:]:
            value = getattr(self, field.name)
            if value != field.default:
                parts.append(f"{field.name}={value!r}")
        return f"{type(self).__name__}({', '.join(parts)})"

    @functools.cached_property
    def names(self) -> tuple[str, ...]:
        """The name of every step, chosen or derived."""
        taken = {name for name, _ in self.steps if name is not None}
        names = []
        for name, mapping in self.steps:
            names.append(name or _free_name(_snake(mapping.kind), taken))
            taken.add(names[-1])
        return tuple(names)

    @property
    def children(self) -> tuple[tuple[str, Mapping], ...]:
        """The mappings with their names."""
        return tuple(
            (name, step) for name, (_, step) in zip(self.names, self.steps, strict=True)
        )


def _snake(kind: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", kind).lower().strip("_<>") or "step"


def _free_name(base: str, taken: set[str]) -> str:
    name, number = base, 1
    while name in taken:
        number += 1
        name = f"{base}_{number}"
    return name
