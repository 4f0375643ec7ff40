"""Models whose parts run one after the other."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from mapping.combinators import Serial
from mapping.core import Mapping
from mapping.model import Model, Run


@dataclasses.dataclass(frozen=True)
class InOrder(Model):
    """A model that is a `Serial` of what its fields say: define `parts` alone."""

    def forward(self, run: Run, x: Any) -> Any:
        """Runs the parts in the order in which `parts` names them."""
        for name in self.parts():
            x = run(name, x)
        return x


def serial(**steps: Mapping | Callable[..., Any] | None) -> Serial:
    """A `Serial` of those steps that are there."""
    return Serial(**{name: step for name, step in steps.items() if step is not None})
