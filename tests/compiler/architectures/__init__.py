"""Architectures of five styles, each with its groups written by hand."""

from architectures import (
    equinox_models,
    haiku_models,
    linen_attention,
    linen_convolutional,
    linen_residual,
    linen_various,
    nnx_models,
    plain_attention,
    plain_convolutional,
    plain_dense,
    plain_loops,
    plain_operations,
)
from architectures.declared import ARCHITECTURES as ARCHITECTURES

MODULES = (
    linen_convolutional,
    linen_residual,
    linen_attention,
    linen_various,
    nnx_models,
    equinox_models,
    haiku_models,
    plain_convolutional,
    plain_attention,
    plain_loops,
    plain_dense,
    plain_operations,
)
"""The files they are in."""
