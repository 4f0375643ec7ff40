"""Derivatives of what is rounded in training: as if it had not been.

Rounding has no derivative worth following. Where a number lies inside the range of
its grid the derivative passes as if nothing was rounded (Bengio, Léonard & Courville,
2013, https://arxiv.org/abs/1308.3432); outside none does. The step of the grid has a
derivative of its own (Esser et al., 2019, https://arxiv.org/abs/1902.08153).
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

# A step chosen from the largest weight puts it on the edge, give or take a rounding.
_EDGE = 1 + 2.0**-20


@jax.custom_jvp
def on_grid(values: Any, step: Any, units: Any, low: Any, high: Any) -> Any:
    r"""Values as multiples of a step, differentiable in both.

    $$ \hat w = s u, \qquad
       \frac{\partial \hat w}{\partial w} = [l \le w / s \le h], \qquad
       \frac{\partial \hat w}{\partial s} =
       \begin{cases} u - w / s & l \le w / s \le h \\ u & \text{else} \end{cases} $$

    where $u$ is the number of the grid nearest to $w / s$, within $l$ and $h$: learned
    step size quantization, eq. 3 (Esser et al., 2019,
    https://arxiv.org/abs/1902.08153).

    Args:
        values: $w$.
        step: $s$, positive; broadcasts to the values.
        units: $u$, shaped as the values.
        low: $l$, at most 0; broadcasts to the values.
        high: $h$, at least 0; broadcasts to the values.

    >>> grad = jax.grad(on_grid, (0, 1))(0.8, 0.5, 2.0, -7.0, 7.0)
    >>> [round(float(each), 3) for each in grad]
    [1.0, 0.4]
    """
    return units * step


@on_grid.defjvp
def _on_grid(primals: Any, tangents: Any) -> tuple[Any, Any]:
    values, step, units, low, high = primals
    steps = values / step
    inside = (steps >= low * _EDGE) & (steps <= high * _EDGE)
    slope = jnp.where(inside, units - steps, units)
    moved = jnp.where(inside, tangents[0], jnp.zeros_like(tangents[0]))
    return on_grid(*primals), moved + slope * tangents[1]


@functools.partial(jax.custom_jvp, nondiff_argnums=(1, 2))
def usable(step: Any, dtype: Any, rate: float) -> Any:
    r"""A learned step as it is used: positive, and within what a dtype can hold.

    Training may bring a step to zero and beyond. Its size is what counts, and never
    less than the smallest normal number. The derivative is that of $|s|$, times a rate
    by which steps learn slower than the weights they are for.

    Args:
        step: of any shape.
        dtype: a floating one.
        rate: $1 / \sqrt{n q}$ for $n$ numbers in codes up to $q$.

    >>> usable(jnp.array([0.5, -0.5, 0.0]), "float32", 1.0).tolist()
    [0.5, 0.5, 1.1754943508222875e-38]
    """
    kind = jnp.finfo(dtype)
    return jnp.clip(jnp.abs(step), float(kind.tiny), float(kind.max))


@usable.defjvp
def _usable(dtype: Any, rate: float, primals: Any, tangents: Any) -> tuple[Any, Any]:
    (step,), (moved,) = primals, tangents
    slowed = moved * jnp.asarray(rate, moved.dtype)
    return usable(step, dtype, rate), jnp.where(step < 0, -slowed, slowed)
