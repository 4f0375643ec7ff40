"""What calibration tells of a leaf that is a weight of one product or several."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from compiler.errors import CalibrationError
from compiler.passes.quantize.calibrate import Calibration, SiteStatistics, calibrate
from compiler.rewrite import Event
from compiler.sites import WeightSite

if TYPE_CHECKING:
    from compiler.passes.quantize.plan import Decision
    from compiler.program import Program


def seen(
    name: str,
    program: Program,
    batches: Any,
    hessians: bool,
    before: Any,
    family: str = "quantize",
) -> Calibration:
    """What a program's products are given: measured now, or by the user before.

    Args:
        name: of the pass, for errors.
        program: at this point of the recipe.
        batches: inputs of it, or a [`Calibration`][].
        hessians: whether Hessians are needed.
        before: what was decided before, with what was `found` then: it counts where
            no batches are given.
        family: where the pass belongs, for errors.

    Raises:
        CalibrationError: if there is nothing to measure on, or Hessians are missing.
    """
    if batches is None and before is not None:
        return before.found
    if batches is None:
        raise CalibrationError(
            f"{family}.{name}: expected batches to measure activations on, got none. "
            f"Pass {family}.{name}(batches=...)."
        )
    if not isinstance(batches, Calibration):
        return calibrate(program, batches, hessians=hessians)
    shaped = [site for site in batches.sites.values() if site.absmax is not None]
    if hessians and shaped and all(site.hessian is None for site in shaped):
        raise CalibrationError(
            f"{family}.{name}: expected a calibration with Hessians, got one without. "
            "Pass calibrate(program, batches, hessians=True), or the batches."
        )
    return batches


def hessian_of(decision: Decision, found: Calibration) -> np.ndarray | str:
    r"""The mean of $x x^\top$ over all that a weight meets, `[stack, rows, rows]`.

    Or why there is none. Products that share the weight add up; if it is looked up
    too, its vectors matter for themselves, as if inputs as large came one by one.
    """
    encoding = decision.encoding
    products = {k: s for k, s in decision.sites.items() if s.kind != "lookup"}
    if encoding is None or not products:
        return "it is looked up only"
    stack = tuple(encoding.shape[axis] for axis in encoding.stack)
    total: Any = np.float32(0)
    tokens = 0
    for key, site in products.items():
        statistics = found.sites.get(key)
        why = _why_not(site, statistics, encoding.rows, encoding.stack)
        if statistics is None or why:
            return why
        count = math.prod(encoding.shape[axis] for axis in encoding.rows)
        if statistics.hessian.shape[-1] != count:
            raise CalibrationError(
                f"{key}: expected a Hessian of {count} rows, got one of "
                f"{statistics.hessian.shape[-1]}. Calibrate this program."
            )
        total = total + statistics.hessian
        tokens += int(statistics.tokens.sum())
    if not np.isfinite(total).all():
        return "the squares of its inputs overflow"
    rows = total.shape[-1]
    whole = np.broadcast_to(total / max(tokens, 1), (*stack, rows, rows))
    whole = whole.reshape(math.prod(stack), rows, rows)
    if len(products) == len(decision.sites):
        return whole
    size = np.trace(whole, axis1=1, axis2=2)[:, None, None] / rows
    return whole + size * np.eye(rows, dtype=np.float32)


def _why_not(
    site: WeightSite,
    statistics: SiteStatistics | None,
    rows: tuple[int, ...],
    stack: tuple[int, ...],
) -> str:
    if statistics is None:
        return "its inputs were not measured"
    if not statistics.count.any():
        return "its product never ran"
    if site.groups > 1:
        return "it is the kernel of a grouped convolution"
    if statistics.hessian is None:
        return statistics.why or "its inputs were not measured in all batches"
    if site.contracted != frozenset(rows) or site.batched != frozenset(stack):
        return "its products sum over different axes"
    return ""


def statistics_of(key: str, found: Mapping[str, SiteStatistics]) -> Any:
    """What one product was given, or why that is not known."""
    statistics = found.get(key)
    if statistics is None:
        return "its inputs were not measured"
    if not statistics.count.any():
        return "its product never ran"
    if statistics.absmax is None:
        return statistics.why or "its inputs were not measured in all batches"
    return statistics


def noted(event: Event, note: str | None) -> Event:
    """An event with something added to what it tells."""
    if note is None:
        return event
    return dataclasses.replace(event, what=f"{event.what}; {note}")
