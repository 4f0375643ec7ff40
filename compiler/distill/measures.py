r"""How far a student's values are from its teacher's: each a mean over examples.

All are exactly 0, with a gradient of exactly 0, where the two are equal; all are
computed in float32 at least.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp


def soft_targets(student: Any, teacher: Any, temperature: float) -> jax.Array:
    r"""The divergence of softened distributions, of each example.

    $$ T^2 \sum_c p_c (\log p_c - \log q_c) \qquad
       p = \mathrm{softmax}(t / T), \; q = \mathrm{softmax}(s / T) $$

    The factor keeps gradients of one size at every temperature: they are $T (q - p)$,
    and for large $T$ those of the squared error of the centred logits,
    $\|\tilde s - \tilde t\|^2 / 2C$. Hinton, Vinyals & Dean, "Distilling the Knowledge
    in a Neural Network", 2015, https://arxiv.org/abs/1503.02531.

    Args:
        student: logits (..., classes).
        teacher: the same shape.
        temperature: $T > 0$.

    >>> s, t = jnp.array([[0.0, 0.0]]), jnp.array([[0.0, 4.0]])
    >>> [round(float(soft_targets(s, t, T)[0]), 3) for T in (1.0, 1000.0)]
    [0.603, 2.0]
    """
    student, teacher = _wide(student), _wide(teacher)
    return temperature**2 * _divergence(student / temperature, teacher / temperature)


@jax.custom_jvp
def _divergence(student: jax.Array, teacher: jax.Array) -> jax.Array:
    r"""$\sum_c p_c (d_c + e^{-d_c} - 1)$ with $d = \log p - \log q$.

    It is the divergence, as $q$ adds up to 1. At high temperatures, where the terms
    $p_c d_c$ are large and cancel, those of this sum are as small as what is left.
    """
    q, p = _log_softmax(student), _log_softmax(teacher)
    near = jnp.abs(p - q) < _NEAR
    d = jnp.where(near, p - q, 0)
    small = d * d * (1 / 2 - d / 6 + d * d / 24 - d * d * d / 120)
    large = jnp.exp(p) * (p - q) + jnp.exp(q) - jnp.exp(p)
    return jnp.where(near, jnp.exp(p) * small, large).sum(-1)


_NEAR = 0.03
"""Below it the first terms of the series are exact in float32."""


@_divergence.defjvp
def _divergence_jvp(primals: Any, tangents: Any) -> tuple[Any, Any]:
    """As a formula: what is differentiated term by term is only nearly 0."""
    student, teacher = primals
    q, p = _log_softmax(student), _log_softmax(teacher)
    value = _divergence(student, teacher)
    moved = (jnp.exp(q) - jnp.exp(p)) * tangents[0]
    moved += jnp.exp(p) * (p - q - value[..., None]) * tangents[1]
    return value, moved.sum(-1)


def _log_softmax(logits: jax.Array) -> jax.Array:
    """Finite where a class is ruled out, so that 0 log 0 is 0."""
    return jnp.maximum(jax.nn.log_softmax(logits), jnp.finfo(logits.dtype).min / 2)


def cross_entropy(logits: Any, target: Any) -> jax.Array:
    r"""The task's own loss by default, of each example: $-\sum_c y_c \log q_c$.

    Args:
        logits: (..., classes).
        target: classes as integers (...), or a distribution (..., classes).
    """
    chances = _log_softmax(_wide(logits))
    if jnp.issubdtype(target.dtype, jnp.integer):
        return -jnp.take_along_axis(chances, target[..., None], -1)[..., 0]
    return -(target.astype(chances.dtype) * chances).sum(-1)


def squared(student: Any, teacher: Any) -> jax.Array:
    r"""Mean squared error, $\frac1n \sum_i (s_i - t_i)^2$ over all $n$ numbers.

    Romero et al., "FitNets: Hints for Thin Deep Nets", 2015,
    https://arxiv.org/abs/1412.6550 (which takes half the sum).

    >>> float(squared(jnp.array([1.0, 2.0]), jnp.array([1.0, 4.0])))
    2.0
    """
    return ((_wide(student) - _wide(teacher)) ** 2).mean()


def relative(student: Any, teacher: Any) -> jax.Array:
    r"""Squared error as a share: $\|s - t\|^2 / \|t\|^2$ over all numbers.

    >>> float(relative(jnp.array([1.0, 2.0]), jnp.array([0.0, 2.0])))
    0.25
    """
    size = (_wide(teacher) ** 2).mean()
    return squared(student, teacher) / jnp.where(size == 0, 1, size)


def similarity(student: Any, teacher: Any) -> jax.Array:
    r"""How differently examples resemble each other; widths need not agree.

    $$ \frac{1}{b^2} \|\hat G_s - \hat G_t\|_F^2 \qquad G = A A^\top $$

    with one row of $A$ for each of the $b$ examples, and each row of $\hat G$ of
    length 1. Tung & Mori, "Similarity-Preserving Knowledge Distillation", 2019,
    https://arxiv.org/abs/1907.09682.

    Args:
        student: (b, ...).
        teacher: (b, ...).

    >>> a = jnp.array([[1.0, 0.0], [0.0, 1.0]])
    >>> float(similarity(a, 3.0 * a)), float(similarity(a, jnp.ones((2, 5)))) > 0
    (0.0, True)
    """
    return (_apart(*_grams(student, teacher), (1,)) ** 2).mean()


def alignment(student: Any, teacher: Any) -> jax.Array:
    r"""One minus the linear centred kernel alignment; widths need not agree.

    $$ 1 - \frac{\langle K_s, K_t \rangle}{\|K_s\| \|K_t\|}
       = \tfrac12 \Big\| \frac{K_s}{\|K_s\|} - \frac{K_t}{\|K_t\|} \Big\|^2
       \qquad K = H A A^\top H, \; H = I - 1/b $$

    Between 0 and 1; invariant to rotation and scale of either. Kornblith et al.,
    "Similarity of Neural Network Representations Revisited", 2019,
    https://arxiv.org/abs/1905.00414.

    Args:
        student: (b, ...), more than one example.
        teacher: (b, ...).

    >>> a = jnp.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    >>> round(float(alignment(a, 3.0 * a[:, ::-1])), 6)
    0.0
    """
    kernels = map(_centred, _grams(student, teacher))
    return (_apart(*kernels, (0, 1)) ** 2).sum() / 2


def attention_maps(student: Any, teacher: Any, axis: int) -> jax.Array:
    r"""How differently positions are attended to; widths need not agree.

    $$ \frac1b \sum_{i=1}^b \|\hat Q_{s,i} - \hat Q_{t,i}\|^2
       \qquad Q_i = \sum_c A_{i,c}^2 $$

    with one number for each position of an example and each $\hat Q_i$ of length 1.
    Zagoruyko & Komodakis, "Paying More Attention to Attention", 2017,
    https://arxiv.org/abs/1612.03928 (activation-based, $p = 2$).

    Args:
        student: (b, ...) with features along `axis`.
        teacher: the same but for the number of features.
        axis: of the features.

    >>> a = jnp.array([[[1.0], [0.0]]])
    >>> round(float(attention_maps(a, 5.0 * jnp.ones((1, 2, 3)) * a, -1)), 6)
    0.0
    """
    s, t = _wide(student), _wide(teacher)
    maps = [(s * s).sum(axis), (t * t).sum(axis)]
    same = s.shape == t.shape
    delta = ((s - t) * (s + t)).sum(axis) if same else maps[0] - maps[1]
    rows = [m.reshape(m.shape[0], -1) for m in (delta, *maps)]
    return (_apart(*rows, (1,)) ** 2).sum(-1).mean()


def attention_rows(student: Any, teacher: Any) -> jax.Array:
    r"""The mean divergence of attention rows.

    $$ \frac1n \sum_{i=1}^n \sum_j p_{ij} (\log p_{ij} - \log q_{ij}) - p_{ij} + q_{ij}
    $$

    over the $n$ rows of all heads and examples; the last two cancel where rows add up
    to 1. Wang et al., "MiniLM", 2020, https://arxiv.org/abs/2002.10957.

    Args:
        student: probabilities $q$, rows along the last axis.
        teacher: probabilities $p$.

    >>> p = jnp.array([[1.0, 0.0]])
    >>> round(float(attention_rows(jnp.array([[0.5, 0.5]]), p)), 4)
    0.6931
    """
    q, p = _wide(student), _wide(teacher)
    least = jnp.finfo(q.dtype).tiny
    ratio = jnp.log(jnp.maximum(p, least)) - jnp.log(jnp.maximum(q, least))
    return (jnp.where(p > 0, p * ratio, 0) - p + q).sum(-1).mean()


def weighted_mean(losses: jax.Array, weights: jax.Array | None) -> jax.Array:
    r"""$\sum_i w_i \ell_i / \sum_i w_i$; the mean without weights, 0 if all are 0."""
    if weights is None:
        return losses.mean()
    tail = (1,) * (losses.ndim - weights.ndim)
    own = jnp.broadcast_to(weights.reshape(weights.shape + tail), losses.shape)
    own = own.astype(losses.dtype)
    total = own.sum()
    return jnp.where(own == 0, 0, losses * own).sum() / jnp.where(total == 0, 1, total)


def _wide(array: Any) -> jax.Array:
    """In float32 at least."""
    array = jnp.asarray(array)
    wide = (
        jnp.issubdtype(array.dtype, jnp.floating) and jnp.finfo(array.dtype).bits > 16
    )
    return array if wide else array.astype(jnp.float32)


def _grams(student: Any, teacher: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The difference of the examples' inner products, and these."""
    s, t = (_wide(a).reshape(a.shape[0], -1) for a in (student, teacher))
    first, second = s @ s.T, t @ t.T
    if s.shape != t.shape:
        return first - second, first, second
    return (s - t) @ s.T + t @ (s - t).T, first, second


def _centred(gram: jax.Array) -> jax.Array:
    rows = gram - gram.mean(1, keepdims=True)
    return rows - rows.mean(0, keepdims=True)


def _apart(
    delta: jax.Array, first: jax.Array, second: jax.Array, axes: Sequence[int]
) -> jax.Array:
    r"""$u / |u| - v / |v|$ along some axes, where a vector that is 0 stays 0.

    $$ \frac{\delta}{|u|} - v \frac{\langle \delta, u + v \rangle}{|u| |v| (|u| + |v|)}
       \qquad \delta = u - v $$

    is the same and rounds nothing where the two are equal.
    """
    squares = [(a * a).sum(axes, keepdims=True) for a in (first, second)]
    empty = (squares[0] == 0) | (squares[1] == 0)
    u, v = (jnp.sqrt(jnp.where(square == 0, 1, square)) for square in squares)
    shares = (delta / u) * ((first + second) / (u + v))
    along = shares.sum(axes, keepdims=True)
    return jnp.where(empty, first / u - second / v, delta / u - second / v * along)
