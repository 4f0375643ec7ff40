"""What our own layers ask of their fields, params and inputs.

Layers that are lifted from flax.linen are guarded by their adapter.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype

from mapping.core import Context, Variables, describe, require_variables
from mapping.errors import FieldError, MissingVariablesError, ShapeMismatchError
from mapping.fields import check_count
from mapping.foreign import lenient_promotion


def check_extents(value: Any, where: str, fix: str = "Use (3, 3) for images.") -> None:
    """Refuses what is no tuple of whole numbers >= 1."""
    if not isinstance(value, tuple):
        raise FieldError(
            f"{where}: expected an extent for each spatial axis, got {value!r}. {fix}"
        )
    for i, extent in enumerate(value):
        check_count(extent, f"{where}[{i}]")


def learned(
    variables: Variables, ctx: Context, kind: str, *names: str
) -> tuple[Any, ...]:
    """Returns the params of these names, or branches of them.

    Raises:
        MissingVariablesError: if one is missing.
    """
    require_variables(variables, ctx)
    if not all(name in variables.params for name in names):
        raise MissingVariablesError(
            f"{ctx.where} ({kind}): expects variables made by its init, got params "
            f"{sorted(variables.params)} and state {sorted(variables.state)}. Pass "
            "the Variables that init returned; to mapping(params, x), "
            "state=variables.state."
        )
    return tuple(variables.params[name] for name in names)


def require_features(ctx: Context, kind: str, x: jax.Array, wanted: int) -> None:
    """Refuses an input whose last axis is not what the params were made for."""
    if x.ndim == 0 or x.shape[-1] != wanted:
        raise ShapeMismatchError(
            f"{ctx.where} ({kind}): params expect {wanted} features in (the last "
            f"axis), got {describe(x)}. Re-run init with this input, or put "
            f"Dense({wanted}) before it."
        )


def require_axes(ctx: Context, kind: str, x: jax.Array, least: int, what: str) -> None:
    """Refuses an input of too few axes."""
    if x.ndim < least:
        raise ShapeMismatchError(
            f"{ctx.where} ({kind}): expects at least {least} axes ({what}), got "
            f"{describe(x)}. Reshape it, for instance x[None] for a batch of one."
        )


def together(*arrays: Any) -> list[jax.Array]:
    """Gives arrays one floating dtype, as flax.linen does with inputs and params."""
    with lenient_promotion():
        return list(promote_dtype(*arrays))


def wide(x: jax.Array) -> jax.Array:
    """At least float32, which statistics are taken in."""
    with lenient_promotion():
        return x.astype(jnp.promote_types(x.dtype, jnp.float32))
