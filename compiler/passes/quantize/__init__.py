"""Quantization: fewer bits for the same function."""

from compiler.passes.quantize.weights import QuantizeWeights as QuantizeWeights
from compiler.passes.quantize.weights import weights as weights
