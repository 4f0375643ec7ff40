"""What whole models ask of their fields, and say of their inputs."""

from __future__ import annotations

from typing import Any

from mapping.combinators import as_mapping
from mapping.core import Mapping, initialising
from mapping.errors import FieldError
from mapping.fields import check_count
from mapping.model import Run


def check_widths(value: Any, where: str, *, least: int = 1) -> None:
    """Refuses what is no tuple of whole numbers >= 1, as many as `least` or more."""
    if not isinstance(value, tuple) or len(value) < least:
        raise FieldError(
            f"{where}: expected a tuple of {least} or more whole numbers, got "
            f"{value!r}. Use {(32,) * max(least, 1)}."
        )
    for i, width in enumerate(value):
        check_count(width, f"{where}[{i}]")


def check_choice(value: Any, where: str, known: tuple[str, ...]) -> None:
    """Refuses a name that is none of those known."""
    if value not in known:
        raise FieldError(f"{where}: expected one of {', '.join(known)}, got {value!r}.")


def lift_fields(mapping: Mapping, *names: str) -> None:
    """Makes mappings of the functions that fields hold, so that they can be copied."""
    for name in names:
        value = getattr(mapping, name)
        if value is not None:
            object.__setattr__(mapping, name, as_mapping(value))


def where(run: Run) -> str:
    """The path of a model at work, or being initialised."""
    return (run.ctx if run.ctx.path else initialising()).where
