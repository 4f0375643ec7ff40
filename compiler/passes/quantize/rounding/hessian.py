"""What a product's inputs say about the errors of its weight.

The mean squared error of y = x W is quadratic in the error of W, with the mean of
x x^T (half its Hessian) in the middle; columns do not mix.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

Array = jax.Array


def moved(error: Array, hessian: Array) -> Array:
    r"""How far each column's outputs move, squared and on average.

    $$ e_c = \mathrm{E}\,(x^\top \Delta_c)^2 = \Delta_c^\top H \Delta_c, \qquad
       H = \mathrm{E}\, x x^\top $$

    Args:
        error: $\Delta$, `[..., rows, columns]`.
        hessian: `[..., rows, rows]`.

    >>> error = jnp.asarray([[1.0, 0.0], [0.0, 2.0]])
    >>> moved(error, jnp.diag(jnp.asarray([3.0, 0.5]))).tolist()
    [3.0, 2.0]
    """
    pulled = jnp.matmul(hessian, error, precision="highest")
    return jnp.sum(error * pulled, axis=-2)


def inverse_factor(hessian: Array, damping: float = 0.01) -> Array:
    r"""The upper triangular U of the inverse, $H^{-1} = U^\top U$, of one Hessian.

    $U_{ij} / U_{ii}$ is how far row j has to go to make up best for an error of row i,
    when the rows before i are fixed. A share of the mean diagonal is added, which
    bounds the condition; a Hessian that cannot be inverted all the same (one of zeros,
    one that is not finite) counts as diagonal, so that nothing is made up for.

    $H = M M^\top$ with M upper triangular is Cholesky's from the last row to the first,
    and U the inverse of M: no inverse of H is formed.

    Args:
        hessian: `[rows, rows]`, symmetric.
        damping: the share of the mean diagonal that is added to the diagonal.

    >>> u = inverse_factor(jnp.asarray([[2.0, 1.0], [1.0, 1.0]]), damping=0.0)
    >>> (u.T @ u).round(3).tolist()
    [[1.0, -1.0], [-1.0, 2.0]]
    """
    rows = hessian.shape[-1]
    eye = jnp.eye(rows, dtype=hessian.dtype)
    mean = jnp.trace(hessian) / max(rows, 1)
    unit = jnp.where(mean > 0, mean, 1.0)
    scaled = hessian / unit + damping * eye
    reversed_ = jnp.linalg.cholesky(scaled[::-1, ::-1], symmetrize_input=False)
    factor = jax.scipy.linalg.solve_triangular(reversed_[::-1, ::-1], eye)
    sound = jnp.isfinite(factor).all() & (mean > 0)
    return jnp.where(sound, factor / jnp.sqrt(unit), eye)
