"""Calibration: what the activations of a program are, from one pass over batches."""

from compiler.passes.quantize.calibrate.calibrate import calibrate as calibrate
from compiler.passes.quantize.calibrate.calibrate import iterated as iterated
from compiler.passes.quantize.calibrate.calibrate import kept as kept
from compiler.passes.quantize.calibrate.calibrate import placed as placed
from compiler.passes.quantize.calibrate.observe import observe as observe
from compiler.passes.quantize.calibrate.observers import Observer as Observer
from compiler.passes.quantize.calibrate.statistics import Calibration as Calibration
from compiler.passes.quantize.calibrate.statistics import (
    SiteStatistics as SiteStatistics,
)
