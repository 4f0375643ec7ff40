"""What was seen of activations, as plain numbers."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from compiler.errors import CalibrationError
from compiler.passes.quantize.calibrate.histogram import Cells
from compiler.passes.quantize.calibrate.observers import SEARCHES, Observer, parse


@dataclasses.dataclass(frozen=True, eq=False)
class SiteStatistics:
    """What one product was given in all batches. All arrays are numpy's.

    `loops` are the lengths of the scans that hand out its weight slice by slice, the
    outermost first; `stack` are the axes of the leaf that number matrices, in its
    order: those of the loops, experts; last the groups of a convolution. What is merged
    over turns of a loop that picks slices itself has extent one there.

    Attributes:
        path: where the product belongs.
        source: the line of user code it comes from.
        kind: `"dot"`, `"conv"` or `"ragged"`.
        shape: of the leaf.
        count: how many numbers, int64 `[*loops]`.
        low: the smallest, float32 `[*loops]`; infinite where there was none.
        high: the largest.
        average_low: the moving average of the smallest of each batch.
        average_high: that of the largest.
        histogram: int64 `[*loops, BINS]`, see `histogram`.
        why: why there are none of the following, if there are none.
        tokens: how many vectors were multiplied by each matrix, int64 `[*loops]`.
        absmax: of each input feature the largest magnitude, `[*stack, rows]`; rows are
            those of the weight, merged in the leaf's order.
        mean: of each input feature.
        squares: of each input feature the mean of its squares.
        output_mean: of each column of the float product, `[*stack, columns]`; None also
            where other weights stand beside this one in the product.
        hessian: the sum over tokens of x x^T, float32 `[*stack, rows, rows]`; None
            unless asked for.
    """

    path: str
    source: str
    kind: str
    shape: tuple[int, ...]
    count: Any
    low: Any
    high: Any
    average_low: Any
    average_high: Any
    histogram: Any
    why: str = ""
    tokens: Any = None
    absmax: Any = None
    mean: Any = None
    squares: Any = None
    output_mean: Any = None
    hessian: Any = None

    @property
    def loops(self) -> tuple[int, ...]:
        """The lengths of the scans that go along its weight."""
        return self.count.shape

    @property
    def ran(self) -> bool:
        """Whether every turn of its loops was given something."""
        return bool((self.count > 0).all())


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Calibration:
    """What the activations of a program were on some batches.

    Attributes:
        sites: by the key of each product (`sites.keyed`): the leaf's path, numbered
            from its second product on.
        batches: how many there were.
    """

    sites: Mapping[str, SiteStatistics]
    batches: int

    def range(
        self,
        key: str,
        observer: Observer = "minmax",
        symmetric: bool = True,
        bits: int = 8,
    ) -> tuple[Any, Any]:
        r"""The range that a product's activation should be rounded in.

        Args:
            key: of the product.
            observer: `"minmax"`: all that occurred. `"moving_average"`: of the smallest
                and the largest of each batch. `"percentile"`: all but 0.1%, or
                `("percentile", 99.99)`. `"mse"`: of least squared error.
                `"entropy"`: of least divergence, as TensorRT's.
            symmetric: low is -high; else zero is inside the range.
            bits: of what it is rounded to, for `"mse"` and `"entropy"`.

        Returns:
            Its ends, float32 `[*loops]`. Both are zero if all that occurred is.

        Raises:
            CalibrationError: if there is no such product, or it never ran.
            ValueError: if there is no such observer.

        >>> import compiler as mc
        >>> from compiler.passes.quantize.calibrate import calibrate
        >>> program = mc.trace(lambda w, x: x @ w, np.eye(2), np.ones((1, 2)))
        >>> found = calibrate(program, [np.array([[0.5, -2.0]], np.float32)])
        >>> low, high = found.range("variables", symmetric=False)
        >>> float(low), float(high)
        (-2.0, 0.5)
        """
        name, percent = parse(observer)
        found = self._found(key)
        if name == "minmax":
            low, high = found.low, found.high
        elif name == "moving_average":
            low, high = found.average_low, found.average_high
        else:
            ends = np.empty((2, *found.loops))
            for turn in np.ndindex(found.loops):
                least, most = float(found.low[turn]), float(found.high[turn])
                cells = Cells.of(found.histogram[turn], least, most)
                search = SEARCHES[name] if least or most else _nothing
                ends[(slice(None), *turn)] = search(cells, percent, symmetric, bits)
            low, high = ends
        return _around_zero(np.asarray(low), np.asarray(high), symmetric)

    def _found(self, key: str) -> SiteStatistics:
        found = self.sites.get(key)
        if found is None:
            known = ", ".join([*self.sites][:8]) or "none"
            raise CalibrationError(
                f"{key}: expected the key of a product that was measured, one of "
                f"{known}{', ...' if len(self.sites) > 8 else ''}."
            )
        if not found.ran:
            never = np.argwhere(found.count == 0)
            turns = f" in turn {never[0].tolist()} of its loops" if found.loops else ""
            raise CalibrationError(
                f"{key} ({found.source}): expected activations, got none: the product "
                f"never ran{turns} in {self.batches} batches (a branch not taken, a "
                "loop of no turns). Add a batch that runs it, or leave it out with "
                f"skip=({key.partition('#')[0]!r},)."
            )
        return found

    def __str__(self) -> str:
        """A line for each product."""
        rows = [_HEADER, *_rows(self.sites)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            "  ".join(cell.ljust(n) for cell, n in zip(row, widths, strict=True))
            for row in rows
        ]
        return "\n".join(line.rstrip() for line in lines)

    def __repr__(self) -> str:
        """How much there is."""
        return f"Calibration({len(self.sites)} products, {self.batches} batches)"


_HEADER = ("product", "kind", "loops", "values", "min", "max", "99.9%", "features")


def _rows(sites: Mapping[str, SiteStatistics]) -> Iterator[tuple[str, ...]]:
    for key, one in sites.items():
        cells = [key, one.kind, "x".join(map(str, one.loops)) or "-"]
        if not one.count.any():
            yield (*cells, "0", "never ran", "", "", "")
            continue
        total = one.histogram.reshape(-1, one.histogram.shape[-1]).sum(0)
        ends = float(one.low.min()), float(one.high.max())
        most = Cells.of(total, *ends).absolute().quantile(0.999)
        features = one.why or str(one.absmax.shape[-1])
        numbers = [f"{value:.4g}" for value in (*ends, most)]
        yield (*cells, str(int(one.count.sum())), *numbers, features)


def _nothing(*_: Any) -> tuple[float, float]:
    return 0.0, 0.0


def _around_zero(low: Any, high: Any, symmetric: bool) -> tuple[Any, Any]:
    """The range with zero in the middle of it, or at least inside."""
    if symmetric:
        high = np.maximum(np.abs(low), np.abs(high))
        low = -high
    low, high = np.minimum(low, 0.0), np.maximum(high, 0.0)
    return low.astype(np.float32), high.astype(np.float32)
