"""What storing weights in few bits would do to the loss: a table, and a picture."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from compiler.passes.quantize.mixed.plot import bars
from compiler.passes.quantize.storage.scheme import Scheme


@dataclasses.dataclass(frozen=True)
class Effect:
    """What storing one weight under one scheme would do.

    Attributes:
        path: of the weight.
        scheme: how it would be stored.
        before: its bytes as it is.
        bytes: under the scheme, scales and all.
        rise: of the loss, predicted; never negative.
        first: its first-order part, with its sign.
        second: its second-order part.
    """

    path: str
    scheme: Scheme
    before: int
    bytes: int
    rise: float
    first: float
    second: float


@dataclasses.dataclass(frozen=True)
class Sensitivity:
    """What every weight would cost under every scheme. Print it, or plot it.

    Attributes:
        effects: by weight, the most sensitive first, and scheme.
        loss: of the program as it is.
        scale: what squared gradients of a batch were multiplied by: about how many
            independent terms the loss of a batch is the mean of.
    """

    effects: tuple[Effect, ...]
    loss: float
    scale: float

    @property
    def paths(self) -> tuple[str, ...]:
        """The weights, the most sensitive first."""
        return tuple(dict.fromkeys(effect.path for effect in self.effects))

    def __getitem__(self, path: str) -> tuple[Effect, ...]:
        """The effects on one weight."""
        found = tuple(effect for effect in self.effects if effect.path == path)
        if not found:
            raise KeyError(f"{path!r}: not measured. There are: {self.paths}.")
        return found

    def as_rows(self) -> list[dict[str, Any]]:
        """One dict for each weight and scheme."""
        names = [field.name for field in dataclasses.fields(Effect)]
        rows = [{name: getattr(e, name) for name in names} for e in self.effects]
        return [row | {"scheme": str(row["scheme"])} for row in rows]

    def plot(self, path: str | Path | None = None) -> Any:
        """Draws the rise by weight and scheme, into an SVG, PDF or PNG file.

        Needs matplotlib: `pip install "mapping[viz]"`.

        Returns:
            The path; without one, matplotlib's figure.

        Raises:
            MissingExtraError: if matplotlib is not installed.
        """
        rises: dict[str, dict[str, float]] = {}
        for effect in self.effects:
            rises.setdefault(str(effect.scheme), {})[effect.path] = effect.rise
        return bars(self.paths, rises, "predicted rise of the loss", path)

    def __str__(self) -> str:
        """A table: a line for each weight, two columns for each scheme."""
        schemes = tuple(dict.fromkeys(str(effect.scheme) for effect in self.effects))
        width = max([len(path) for path in self.paths] + [6])
        head = f"{'weight':{width}} {'bytes':>12}"
        lines = [f"loss {self.loss:.6g}; its predicted rise, and bytes, by scheme"]
        lines.append(head + "".join(f"  {scheme:>24}" for scheme in schemes))
        for path in self.paths:
            own = {str(effect.scheme): effect for effect in self[path]}
            cells = [_cell(own.get(scheme)) for scheme in schemes]
            before = next(iter(own.values())).before
            lines.append(f"{path:{width}} {before:>12,}" + "".join(cells))
        return "\n".join(lines)


def _cell(effect: Effect | None) -> str:
    if effect is None:
        return f"  {'':>24}"
    return f"  {effect.rise:>11.3g} {effect.bytes:>12,}"
