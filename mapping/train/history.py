"""What was logged, epoch by epoch; as data and as a picture."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from mapping.errors import DataError


@dataclasses.dataclass
class History:
    """The logs of a run: one row of named numbers an epoch.

    Attributes:
        rows: dicts such as `{"epoch": 1, "loss": 0.3, "accuracy": 0.98}`.

    >>> history = History([{"epoch": 1, "loss": 0.5}, {"epoch": 2, "loss": 0.25}])
    >>> history.column("loss")
    [0.5, 0.25]
    """

    rows: list[dict[str, float]] = dataclasses.field(default_factory=list)

    def column(self, name: str) -> list[float]:
        """Every epoch's value of one quantity."""
        known = self.rows[0] if self.rows else {}
        if name not in known:
            raise KeyError(f"{name!r}: not logged. There are: {', '.join(known)}.")
        return [row[name] for row in self.rows]

    def save(self, path: str | Path) -> Path:
        """Writes the rows as JSON."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(self.rows, indent=1) + "\n")
        return path

    def plot(self, path: str | Path) -> Path:
        """Draws every quantity against the epoch, into an SVG or PNG file.

        Needs matplotlib: `pip install "mapping[viz]"`.
        """
        figure_class = _figure_class()
        if not self.rows:
            raise DataError("History.plot: expected at least one epoch, got none.")
        names = [name for name in self.rows[0] if name not in ("epoch", "seconds")]
        figure = figure_class(figsize=(4.5 * len(names), 3.2), layout="tight")
        axes = figure.subplots(1, len(names), squeeze=False)
        for name, axis in zip(names, axes[0], strict=True):
            axis.plot(self.column("epoch"), self.column(name), marker=".")
            axis.set(title=name, xlabel="epoch")
            axis.grid(alpha=0.3)
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path)
        return path


def _figure_class() -> Any:
    """matplotlib's figure, which draws to files without touching the user's pyplot."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            "History.plot needs matplotlib, which is not installed. Run: "
            'pip install "mapping[viz]"'
        ) from error
    return Figure
