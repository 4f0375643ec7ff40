"""Two-tower recommenders."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from mapping.core import Mapping, describe
from mapping.errors import ShapeMismatchError
from mapping.fields import check_count
from mapping.foreign import lenient_promotion
from mapping.layers import Dense, Embed
from mapping.layers.guard import wide
from mapping.model import Model, Run
from mapping.models.guard import check_widths, lift_fields, where
from mapping.models.mlp import MLP
from mapping.registry import Example, register, spec

_TINY = 1e-8
"""Length of a vector that has no direction yet."""


@register(
    "model",
    "tower",
    examples=lambda: Example(Tower(2, (3, 4), 2, (4,)), (jnp.array([[1, 3], [2, 0]]),)),
)
@dataclasses.dataclass(frozen=True)
class Tower(Model):
    r"""One side of a recommender: what is known of a user, or an item, to a vector.

    $$ y = \mathrm{MLP}([E^1_{x_1}, \dots, E^n_{x_n}]) $$

    Takes integers (batch, n), a column for each feature: the number of the user
    itself, their country, ..; numbers that are measured are put into classes first.
    Without hidden layers and with one feature it is matrix factorisation, up to a
    linear map. For features that are vectors already use any mapping instead.

    Params: `embed1/embedding`, .., `embedn/embedding`, `mlp/..`.

    Attributes:
        size: of the vector.
        vocabularies: how many values each feature has.
        features: of each embedding.
        hidden: widths of the MLP's hidden layers.
        activation: of the hidden layers.

    >>> tower = Tower(8, vocabularies=(100, 7))
    >>> x = jnp.array([[99, 0], [3, 6]])
    >>> tower(tower.init(jax.random.key(0), x).params, x).shape
    (2, 8)
    """

    size: int
    vocabularies: tuple[int, ...]
    features: int = 32
    hidden: tuple[int, ...] = (64,)
    activation: Mapping | Callable[..., Any] = jax.nn.relu

    def __post_init__(self) -> None:
        check_count(self.size, "Tower.size")
        check_count(self.features, "Tower.features")
        check_widths(self.vocabularies, "Tower.vocabularies")
        check_widths(self.hidden, "Tower.hidden", least=0)
        lift_fields(self, "activation")

    def parts(self) -> dict[str, Any]:
        """An embedding of each feature, and what joins them."""
        embeds = {
            f"embed{number}": Embed(count, self.features)
            for number, count in enumerate(self.vocabularies, 1)
        }
        return {**embeds, "mlp": MLP(self.size, self.hidden, self.activation)}

    def forward(self, run: Run, x: jax.Array) -> jax.Array:
        """Looks every feature up and joins them."""
        count = len(self.vocabularies)
        if x.ndim == 0 or x.shape[-1] != count:
            raise ShapeMismatchError(
                f"{where(run)} (Tower): expects {count} features along "
                f"the last axis, one for each vocabulary, got {describe(x)}. For one "
                "number each write x[:, None]."
            )
        rows = [run(f"embed{i + 1}", x[..., i]) for i in range(count)]
        return run.mlp(jnp.concatenate(rows, axis=-1))


@register(
    "model",
    "two_tower",
    examples=lambda: Example(TwoTower(Dense(3), Dense(3)), (spec(4, 2), spec(4, 5))),
)
@dataclasses.dataclass(frozen=True)
class TwoTower(Model):
    r"""Users and items as directions; who likes what is the angle between them.

    $$ s(u, i) = \frac{f(u) \cdot g(i)}{\|f(u)\| \|g(i)\|} $$

    Takes users and items, row by row, and returns the unit vectors of both, which
    [`InBatchSoftmax`][] takes. `Flow(model, "users")` and `Flow(model, "items")` are
    the towers, `Flow(model, "recommend")` the best of a catalogue: the vectors of the
    items are computed once and searched as any index is.

    Params: `user/..`, `item/..`.

    Covington, Adams & Sargin, "Deep Neural Networks for YouTube Recommendations",
    2016, https://doi.org/10.1145/2959100.2959190; Yi et al., "Sampling-Bias-Corrected
    Neural Modeling for Large Corpus Item Recommendations", 2019,
    https://doi.org/10.1145/3298689.3346996.

    Attributes:
        user: a mapping f to (batch, size), such as a [`Tower`][].
        item: a mapping g to vectors of the same size.
        count: how many items `recommend` returns.

    Raises:
        ShapeMismatchError: if the towers return vectors of different sizes.

    >>> model = TwoTower(Tower(8, (100,)), Tower(8, (50,)), count=3)
    >>> users, items = jnp.arange(6)[:, None], jnp.arange(50)[:, None]
    >>> v = model.init(jax.random.key(0), users, items[:6])
    >>> from mapping import Flow
    >>> scores, numbers = Flow(model, "recommend")(v.params, users, items)
    >>> scores.shape, numbers.shape
    ((6, 3), (6, 3))
    """

    user: Mapping | Callable[..., Any]
    item: Mapping | Callable[..., Any]
    count: int = 10

    def __post_init__(self) -> None:
        check_count(self.count, "TwoTower.count")
        lift_fields(self, "user", "item")

    def parts(self) -> dict[str, Any]:
        """The two towers."""
        return {"user": self.user, "item": self.item}

    def forward(
        self, run: Run, users: jax.Array, items: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """The vectors of users, and of the items they chose."""
        return self._vectors(run, users, items)

    def users(self, run: Run, users: jax.Array) -> jax.Array:
        """Unit vectors of users."""
        return _unit(run.user(users))

    def items(self, run: Run, items: jax.Array) -> jax.Array:
        """Unit vectors of items."""
        return _unit(run.item(items))

    def recommend(
        self,
        run: Run,
        users: jax.Array,
        catalogue: jax.Array,
        seen: jax.Array | None = None,
    ) -> tuple[jax.Array, jax.Array]:
        """Scores and row numbers of the best items of a catalogue, best first.

        `seen`, booleans (users, items), says which are not to be recommended; where
        too few are left, they come last with the score -inf.
        """
        vectors, others = self._vectors(run, users, catalogue)
        scores = jnp.einsum("...d,nd->...n", vectors, others)
        if seen is not None:
            scores = jnp.where(seen, -jnp.inf, scores)
        return jax.lax.top_k(scores, min(self.count, scores.shape[-1]))

    def _vectors(self, run: Run, users: Any, items: Any) -> tuple[Any, Any]:
        pair = self.users(run, users), self.items(run, items)
        if pair[0].shape[-1:] != pair[1].shape[-1:]:
            raise ShapeMismatchError(
                f"{where(run)} (TwoTower): expected vectors of one size from both "
                f"towers, got {describe(pair)}. Give them the same size."
            )
        return pair


def _unit(vectors: jax.Array) -> jax.Array:
    """Vectors of length one; lengths are taken in float32 at least."""
    given = wide(vectors)
    with lenient_promotion():
        lengths = optax.safe_norm(given, _TINY, axis=-1, keepdims=True)
        return (given / lengths).astype(vectors.dtype)
