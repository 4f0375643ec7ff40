"""Measurements of all batches so far, on the host, where sums do not overflow."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from compiler.passes.quantize.calibrate.forms import Product
from compiler.passes.quantize.calibrate.measures import Measurements
from compiler.passes.quantize.calibrate.statistics import SiteStatistics
from compiler.passes.quantize.calibrate.watched import Watched

_SUMS = {
    "count": np.int64,
    "histogram": np.int64,
    "tokens": np.int64,
    "sum": np.float64,
    "squares": np.float64,
    "outputs": np.float64,
    "hessian": np.float32,
}
"""What is added up, and in which dtype."""


class Totals(NamedTuple):
    """The measurements of one product.

    Attributes:
        found: by measure.
        average_low: the moving average of the smallest number of each batch.
        average_high: that of the largest.
    """

    found: Measurements
    average_low: Any
    average_high: Any

    @classmethod
    def of(cls, measured: Measurements) -> Totals:
        """Of one batch."""
        found = {
            name: np.asarray(value).astype(_SUMS.get(name, np.float32))
            for name, value in measured.items()
        }
        ends = (found[name].astype(np.float64) for name in ("low", "high"))
        return cls(found, *ends)

    def plus(self, new: Totals, momentum: float) -> Totals:
        """With those of the next batch. What only some batches have is left out."""
        found = {}
        for name in self.found.keys() & new.found.keys():
            first, second = self.found[name], new.found[name]
            if name in _SUMS:
                found[name] = first + second
            else:
                found[name] = (np.minimum if name == "low" else np.maximum)(
                    first, second
                )
        before, now = self.found["count"] > 0, new.found["count"] > 0

        def average(old: Any, latest: Any) -> Any:
            with np.errstate(invalid="ignore"):  # infinite where nothing ran yet
                moved = momentum * old + (1 - momentum) * latest
            return np.where(before & now, moved, np.where(now, latest, old))

        low = average(self.average_low, new.average_low)
        return Totals(found, low, average(self.average_high, new.average_high))

    def site(self, product: Watched, shape: tuple[int, ...]) -> SiteStatistics:
        """What users read.

        Args:
            product: the product.
            shape: of its leaf.
        """
        found, site = self.found, product.site
        extra: dict[str, Any] = {}
        if "sum" in found:
            order = _leaf_order(product)
            tokens = found["tokens"]

            def placed(array: Any) -> Any:
                rest = range(len(order), array.ndim)
                return np.transpose(array, (*order, *rest))

            def mean(total: Any) -> Any:
                count = np.maximum(tokens, 1)
                count = count.reshape(count.shape + (1,) * (total.ndim - count.ndim))
                return placed((total / count).astype(np.float32))

            extra = {"tokens": tokens, "absmax": placed(found["absmax"])}
            extra["mean"] = mean(found["sum"])
            extra["squares"] = mean(found["squares"])
            if "outputs" in found:
                extra["output_mean"] = mean(found["outputs"])
            if "hessian" in found:
                extra["hessian"] = placed(found["hessian"])
        return SiteStatistics(
            site.path,
            site.source,
            site.kind,
            tuple(shape),
            *(found[name] for name in ("count", "low", "high")),
            self.average_low.astype(np.float32),
            self.average_high.astype(np.float32),
            found["histogram"],
            product.why,
            **extra,
        )


def _leaf_order(product: Watched) -> list[int]:
    """How axes that number matrices, loops first, are put in the leaf's order."""
    axes = [axis for axis, _ in product.trail.taken]
    if isinstance(product.form, Product):
        axes += [product.trail.axes[axis] for axis in product.form.form.stack]
    return sorted(range(len(axes)), key=lambda place: axes[place])
