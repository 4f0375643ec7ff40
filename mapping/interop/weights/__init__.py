"""Torch's weights: read, renamed, laid out as ours; and back."""

from mapping.interop.weights.export import to_torch as to_torch
from mapping.interop.weights.load import Loaded as Loaded
from mapping.interop.weights.load import load_torch as load_torch
