"""What a pass did, and what it left alone and why."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Event:
    """Something a pass did, or left alone.

    Attributes:
        path: the scope, or the leaf, it happened at.
        what: what was done, or why nothing was.
        source: the line of user code, where there is one.
    """

    path: str
    what: str
    source: str = ""

    def __str__(self) -> str:
        """One line, as in a report."""
        return f"{self.path}: {self.what}" + (
            f" ({self.source})" if self.source else ""
        )


@dataclasses.dataclass
class Events:
    """What fired and what was skipped in one pass, in order."""

    fired: list[Event] = dataclasses.field(default_factory=list)
    skipped: list[Event] = dataclasses.field(default_factory=list)
