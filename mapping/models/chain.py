"""Steps in a row, some of which may not be there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mapping.combinators import Serial
from mapping.core import Mapping


def serial(**steps: Mapping | Callable[..., Any] | None) -> Serial:
    """A `Serial` of those steps that are there."""
    return Serial(**{name: step for name, step in steps.items() if step is not None})
