"""Metrics: mappings whose state is an accumulator that can be merged."""

from mapping.metrics.accuracy import Accuracy as Accuracy
