"""Data: from arrays to batches."""

from mapping.data.batches import batches as batches
