"""Bars by weight and scheme."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from compiler.errors import MissingExtraError


def bars(
    names: Sequence[str],
    heights: Mapping[str, Mapping[str, float]],
    title: str,
    path: str | Path | None = None,
) -> Any:
    """Draws groups of horizontal bars on a logarithmic scale, the first on top.

    Args:
        names: of the groups.
        heights: by series, by group.
        title: of the scale.
        path: of an SVG, PDF or PNG file.

    Returns:
        The path; without one, the figure.

    Raises:
        MissingExtraError: if matplotlib is not installed.
    """
    figure_class = _figure_class()
    figure = figure_class(figsize=(7.0, 1.2 + 0.35 * len(names)), layout="tight")
    axes = figure.subplots()
    width = 0.8 / max(len(heights), 1)
    for number, (series, own) in enumerate(heights.items()):
        places = [i + (number + 0.5) * width - 0.4 for i in range(len(names))]
        axes.barh(places, [own.get(n, 0.0) for n in names], width, label=series)
    if any(value > 0 for own in heights.values() for value in own.values()):
        axes.set_xscale("log")
    axes.set_yticks(range(len(names)), names, fontsize="small")
    axes.invert_yaxis()
    axes.set_xlabel(title)
    axes.grid(axis="x", alpha=0.3)
    if heights:
        axes.legend(fontsize="small")
    if path is None:
        return figure
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    return path


def _figure_class() -> Any:
    """matplotlib's figure, which draws to files without touching the user's pyplot."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError(
            "Sensitivity.plot needs matplotlib, which is not installed. Run: "
            'pip install "mapping[viz]"'
        ) from error
    return Figure
