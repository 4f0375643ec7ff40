"""Positions as angles."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mapping.core import Context, Mapping, State, Variables, describe
from mapping.errors import FieldError, ShapeMismatchError
from mapping.layers.guard import wide
from mapping.registry import Example, register, spec


def rotary(
    x: jax.Array,
    positions: jax.Array,
    *,
    base: float = 10_000.0,
    interleaved: bool = False,
) -> jax.Array:
    r"""Turns each pair of features by an angle that grows with the position.

    Pair $i$ of $d / 2$ is a complex number $z_i = a_i + \mathrm{i} b_i$, and

    $$ z_i \leftarrow z_i \, e^{\mathrm{i} p \, base^{-2 i / d}} $$

    so that the product of a query and a key depends on the distance of their
    positions only. The angles are computed in float32 at least; the result has the
    dtype of `x`.

    Su et al., "RoFormer", 2021, https://arxiv.org/abs/2104.09864.

    Args:
        x: (\*batch, length, heads, d), with d even.
        positions: integers (length,) or (\*batch, length), from 0.
        base: the longest wavelength is about 2 pi base positions.
        interleaved: which features make a pair: (0, 1), (2, 3), ... as in the paper
            and GPT-J, or, by default, (0, d/2), (1, d/2 + 1), ... as in GPT-NeoX and
            Llama. Weights are made for one of them.

    Raises:
        ShapeMismatchError: if d is odd, or the positions do not fit.

    >>> x = jnp.ones((1, 2, 1, 2))
    >>> [round(float(a), 4) for a in rotary(x, jnp.arange(2))[0, 1, 0]]
    [-0.3012, 1.3818]
    """
    _check(x, positions, "rotary")
    exact, features = wide(x), x.shape[-1]
    speeds = np.power(float(base), -np.arange(0, features, 2) / features)
    angles = positions[..., None, None].astype(exact.dtype) * jnp.asarray(
        speeds.reshape((1,) * (positions.ndim + 1) + (-1,)), exact.dtype
    )
    angles = angles.reshape((1,) * (x.ndim - angles.ndim) + angles.shape)
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    a, b = _pairs(exact, interleaved)
    turned = (a * cos - b * sin, a * sin + b * cos)
    if interleaved:
        return jnp.stack(turned, -1).reshape(x.shape).astype(x.dtype)
    return jnp.concatenate(turned, -1).astype(x.dtype)


@register(
    "layer",
    "rotary",
    examples=lambda: (
        Example(Rotary(), (spec(2, 5, 2, 4),)),
        Example(
            Rotary(base=100.0, interleaved=True),
            (spec(2, 3, 2, 4), jnp.array([[0, 1, 2], [4, 5, 6]])),
        ),
    ),
)
@dataclasses.dataclass(frozen=True)
class Rotary(Mapping):
    r"""Turns the features of queries and keys by their positions: [`rotary`][].

    Inputs: `x` (\*batch, length, heads, d) and, unless they count from 0,
    `positions`: integers (length,) or (\*batch, length).

    Su et al., "RoFormer", 2021, https://arxiv.org/abs/2104.09864.

    Attributes:
        base: the longest wavelength is about 2 pi base positions, > 0.
        interleaved: whether neighbours make a pair, as in the paper and GPT-J; by
            default feature i goes with i + d/2, as in GPT-NeoX and Llama.

    Raises:
        FieldError: if the base is not positive.
        ShapeMismatchError: if d is odd, or the positions do not fit.

    >>> x = jnp.ones((1, 2, 1, 2))
    >>> [round(float(a), 4) for a in Rotary()({}, x)[0, 1, 0]]
    [-0.3012, 1.3818]
    """

    base: float = 10_000.0
    interleaved: bool = False

    def __post_init__(self) -> None:
        if not self.base > 0:
            raise FieldError(
                f"Rotary.base: expected a number > 0, got {self.base!r}. The paper's "
                "is 10000."
            )

    def apply(
        self, variables: Variables, x: Any, positions: Any = None, *, ctx: Context
    ) -> tuple[jax.Array, State]:
        """Turns `x`."""
        if positions is None:
            positions = jnp.arange(x.shape[-3] if np.ndim(x) > 2 else 0)
        _check(x, positions, f"{ctx.where} (Rotary)")
        turned = rotary(x, positions, base=self.base, interleaved=self.interleaved)
        return turned, variables.state


def _check(x: Any, positions: Any, where: str) -> None:
    if np.ndim(x) < 3 or x.shape[-1] % 2:
        raise ShapeMismatchError(
            f"{where}: expected float[*batch, length, heads, d] with d even, got "
            f"{describe(x)}. Choose an even number of features per head."
        )
    wanted = x.shape[:-2]
    if positions.shape not in (wanted, wanted[-1:]):
        raise ShapeMismatchError(
            f"{where}: expected positions int{list(wanted[-1:])} or int{list(wanted)} "
            f"for {describe(x)}, got {describe(positions)}. Give one for each place."
        )


def _pairs(x: jax.Array, interleaved: bool) -> tuple[jax.Array, jax.Array]:
    if interleaved:
        return x[..., 0::2], x[..., 1::2]
    half = x.shape[-1] // 2
    return x[..., :half], x[..., half:]
