"""What a weight's products were given, summed over all that share it."""

from __future__ import annotations

import math

import numpy as np

from compiler.errors import CalibrationError
from compiler.passes.prune.masks.plan import Decision
from compiler.passes.prune.masks.weights import Weight
from compiler.passes.quantize.calibrate import Calibration, SiteStatistics
from compiler.sites import WeightSite


def squares(decision: Decision, weight: Weight, found: Calibration) -> np.ndarray | str:
    r"""The mean of $x_j^2$, `[stack, groups, rows]`; or why there is none.

    Rows go by the leaf, `weight.turn` brings them in the order of the normal form.
    """
    return _mean(decision, weight, found, "squares")


def hessian(decision: Decision, weight: Weight, found: Calibration) -> np.ndarray | str:
    r"""The mean of $x x^\top$, `[stack, groups, rows, rows]`; or why there is none."""
    return _mean(decision, weight, found, "hessian")


def _mean(
    decision: Decision, weight: Weight, found: Calibration, what: str
) -> np.ndarray | str:
    products = {k: s for k, s in decision.sites.items() if s.kind != "lookup"}
    if not products:
        return "it is looked up only"
    rows = math.prod(weight.extents[1:3])
    total, tokens = np.zeros((), np.float64), 0
    for key, site in products.items():
        statistics = found.sites.get(key)
        why = _why_not(site, weight, statistics)
        if statistics is None or why:
            return why
        array, count = getattr(statistics, what), int(statistics.tokens.sum())
        if array.shape[-1] != rows:
            raise CalibrationError(
                f"{key}: expected statistics of {rows} rows, got {array.shape[-1]}. "
                "Calibrate this program."
            )
        # A mean is of each slice's own tokens, a sum of x x^T is not yet divided.
        share = count if what == "squares" else 1
        total, tokens = total + array.astype(np.float64) * share, tokens + count
    if not np.isfinite(total).all():
        return "the squares of its inputs overflow"
    tail = (rows,) * (1 if what == "squares" else 2)
    extents = [weight.shape[axis] for axis in weight.stack]
    groups = (weight.groups,) if weight.groups > 1 else ()
    whole = np.broadcast_to(total / max(tokens, 1), (*extents, *groups, *tail))
    return whole.reshape(math.prod(extents), weight.groups, *tail).astype(np.float32)


def _why_not(
    site: WeightSite, weight: Weight, statistics: SiteStatistics | None
) -> str:
    if statistics is None:
        return "its inputs were not measured"
    if not statistics.count.any():
        return "its product never ran"
    if statistics.squares is None:
        return statistics.why or "its inputs were not measured in all batches"
    same = site.contracted - set(weight.stack) == set(weight.rows)
    if not same or site.batched != set(weight.stack) or site.groups != weight.groups:
        return "its products sum over different axes"
    return ""
