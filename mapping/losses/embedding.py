"""Losses of how embeddings lie to each other."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import optax

from mapping.core import Context
from mapping.losses.loss import Loss, check_number
from mapping.registry import Example, register, spec

_TINY = 1e-16
"""Smallest squared length of a vector that still has a direction."""


@register(
    "loss",
    "cosine_distance",
    examples=lambda: (
        Example(CosineDistance(), (spec(4, 3), spec(4, 3)), batched=False),
        Example(CosineDistance("none"), (spec(4, 3), spec(4, 3))),
    ),
)
@dataclasses.dataclass(frozen=True)
class CosineDistance(Loss):
    r"""One minus the cosine of the angle between two vectors, in [0, 2].

    $$ \ell_i = 1 - \frac{y_i \cdot t_i}{\|y_i\| \|t_i\|} $$

    Inputs: prediction and target (..., d); a loss of each example. A vector shorter
    than 1e-8 has no direction; its cosine tends to zero.

    Attributes:
        reduction: see [`Loss`][].

    >>> float(CosineDistance()({}, jnp.array([[2.0, 0.0]]), jnp.array([[0.0, 1.0]])))
    1.0
    """

    reduction: str = "mean"

    def check(self, ctx: Context, prediction: jax.Array, target: jax.Array) -> None:
        """Wants vectors of one shape."""
        fits = prediction.ndim > 0 and prediction.shape == target.shape
        self.require(fits, "a target of vectors", (prediction, target), ctx)

    def each(self, prediction: jax.Array, target: jax.Array) -> jax.Array:
        """`optax.cosine_distance`."""
        target = target.astype(prediction.dtype)
        return optax.cosine_distance(prediction, target, epsilon=_TINY)


@register(
    "loss",
    "contrastive",
    examples=lambda: (
        Example(
            Contrastive(margin=3.0),
            (spec(4, 3), spec(4, 3), jnp.array([0, 1, 1, 0])),
            batched=False,
        ),
        Example(
            Contrastive(reduction="none"),
            (spec(4, 3), spec(4, 3), jnp.array([0, 1, 1, 0])),
        ),
    ),
)
@dataclasses.dataclass(frozen=True)
class Contrastive(Loss):
    r"""Pulls similar pairs together, pushes others a margin apart.

    $$ \ell_i = s_i d_i^2 + (1 - s_i) \max(0, margin - d_i)^2, \qquad
       d_i = \|a_i - b_i\| $$

    Inputs: embeddings $a$ and $b$ (..., d) and `similar` (...): 1 or true for a
    similar pair, else 0; beyond [0, 1] the loss is nan. A loss of each pair. For a
    model that returns the pair of embeddings, `similar` is the target.

    Hadsell, Chopra & LeCun, "Dimensionality Reduction by Learning an Invariant
    Mapping", 2006, https://doi.org/10.1109/CVPR.2006.100 (without its factor 1/2).

    Attributes:
        margin: distance beyond which dissimilar pairs are left alone, above 0.
        reduction: see [`Loss`][].

    >>> a, b = jnp.zeros((1, 2)), jnp.array([[0.6, 0.8]])
    >>> [float(Contrastive(2.0)({}, a, b, jnp.array([s]))) for s in (0, 1)]
    [1.0, 1.0]
    """

    margin: float = 1.0
    reduction: str = "mean"
    takes: ClassVar[int] = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number(self.margin, "Contrastive.margin", 0, open_=True)

    def check(
        self, ctx: Context, first: jax.Array, second: jax.Array, similar: jax.Array
    ) -> None:
        """Wants pairs of vectors, and one answer a pair."""
        fits = first.ndim > 0 and first.shape == second.shape
        self.require(fits, "a second embedding", (first, second), ctx)
        fits = similar.shape == first.shape[:-1]
        self.require(fits, "one `similar` a pair", (first, similar), ctx)

    def each(
        self, first: jax.Array, second: jax.Array, similar: jax.Array
    ) -> jax.Array:
        """The distance of equal vectors has gradient zero."""
        share = similar.astype(first.dtype)
        apart = first - second.astype(first.dtype)
        distance = optax.safe_norm(apart, _TINY, axis=-1)
        short = jnp.maximum(self.margin - distance, 0)
        losses = share * jnp.square(apart).sum(-1) + (1 - share) * jnp.square(short)
        return jnp.where((share >= 0) & (share <= 1), losses, jnp.nan)


@register(
    "loss",
    "nt_xent",
    examples=lambda: Example(
        NTXent(0.5), (spec(6, 3), jnp.array([0, 0, 1, 1, 1, 2])), batched=False
    ),
)
@dataclasses.dataclass(frozen=True)
class NTXent(Loss):
    r"""Normalised temperature-scaled cross-entropy: tells partners from strangers.

    $$ \ell_i = \sum_{j \in P_i} -\log \frac{e^{s_{ij}}}
       {e^{s_{ij}} + \sum_{k \notin P_i, k \ne i} e^{s_{ik}}}, \qquad
       s_{ij} = \frac{\cos(z_i, z_j)}{temperature}, \qquad m_i = |P_i| $$

    with $P_i$ the others of the same label. Inputs: embeddings $z$ (n, d) and integer
    labels (n,), equal for what belongs together; a loss of each embedding, and the
    mean is over the pairs (0 if there are none).

    Chen et al., "A Simple Framework for Contrastive Learning of Visual
    Representations", 2020, https://arxiv.org/abs/2002.05709. The same as
    `optax.ntxent`, which has the mean only and overflows at low temperatures.

    Attributes:
        temperature: above 0; low ones look at the nearest strangers.
        reduction: see [`Loss`][].

    >>> z = jnp.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    >>> round(float(NTXent(1.0)({}, z, jnp.array([0, 0, 1, 1]))), 4)
    0.5514
    """

    temperature: float = 0.07
    reduction: str = "mean"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number(self.temperature, "NTXent.temperature", 0, open_=True)

    def check(self, ctx: Context, embeddings: jax.Array, labels: jax.Array) -> None:
        """Wants one integer label an embedding."""
        fits = embeddings.ndim == 2 and labels.shape == embeddings.shape[:1]
        fits = fits and jnp.issubdtype(labels.dtype, jnp.integer)
        what = "one integer label for each of (n, d) embeddings"
        self.require(fits, what, (embeddings, labels), ctx)

    def each(self, embeddings: jax.Array, labels: jax.Array) -> jax.Array:
        """The log of a ratio is a softplus of logarithms, which cannot overflow."""
        lengths = optax.safe_norm(embeddings, _TINY**0.5, axis=-1, keepdims=True)
        unit = embeddings / lengths
        cosines = jnp.matmul(unit, unit.T, precision="highest")
        similar = cosines / self.temperature
        strangers = labels[:, None] != labels
        # An embedding without strangers is told from them with certainty.
        floor = jnp.where(strangers, similar, jnp.finfo(similar.dtype).min / 2)
        against = jax.nn.logsumexp(floor, axis=1, keepdims=True)
        pairs = jax.nn.softplus(against - similar)
        return jnp.where(_partners(labels), pairs, 0).sum(1)

    def mass(self, embeddings: jax.Array, labels: jax.Array) -> jax.Array:
        """How many partners each embedding has."""
        return _partners(labels).sum(1).astype(embeddings.dtype)


@register(
    "loss",
    "triplet",
    examples=lambda: (
        Example(Triplet(), (spec(4, 3), spec(4, 3), spec(4, 3)), batched=False),
        Example(Triplet(2.0, "none"), (spec(4, 3), spec(4, 3), spec(4, 3))),
    ),
)
@dataclasses.dataclass(frozen=True)
class Triplet(Loss):
    r"""Wants the positive nearer to the anchor than the negative, by a margin.

    $$ \ell_i = \max(0, \|a_i - p_i\| - \|a_i - n_i\| + margin) $$

    Inputs: anchors, positives and negatives, each (..., d); a loss of each triplet.
    For a model that returns all three, the target may be weights of the triplets.

    Balntas et al., "Learning Shallow Convolutional Feature Descriptors with Triplet
    Losses", 2016, https://doi.org/10.5244/C.30.119.

    Attributes:
        margin: >= 0, a distance.
        reduction: see [`Loss`][].

    >>> a, p, n = jnp.array([[[0.0]], [[1.0]], [[1.5]]])
    >>> round(float(Triplet()({}, a, p, n)), 4)
    0.5
    """

    margin: float = 1.0
    reduction: str = "mean"
    takes: ClassVar[int] = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number(self.margin, "Triplet.margin", 0)

    def check(
        self, ctx: Context, anchor: jax.Array, positive: jax.Array, negative: jax.Array
    ) -> None:
        """Wants three vectors of one shape."""
        for what, other in (("positives", positive), ("negatives", negative)):
            fits = anchor.ndim > 0 and other.shape == anchor.shape
            self.require(fits, what, (anchor, other), ctx)

    def each(
        self, anchor: jax.Array, positive: jax.Array, negative: jax.Array
    ) -> jax.Array:
        """`optax.losses.triplet_margin_loss`."""
        return optax.losses.triplet_margin_loss(
            anchor,
            positive.astype(anchor.dtype),
            negative.astype(anchor.dtype),
            margin=self.margin,
        )


def _partners(labels: jax.Array) -> jax.Array:
    same = labels[:, None] == labels
    return same & ~jnp.eye(len(labels), dtype=bool)
