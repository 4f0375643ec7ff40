"""The recommender: its loss, its list, and what it finds in real interactions."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.special
from sklearn.datasets import load_digits

from mapping import Flow, Serial
from mapping.errors import FieldError, OutOfRangeError, ShapeMismatchError
from mapping.layers import Dense
from mapping.models import MLP, InBatchSoftmax, Tower, TwoTower
from mapping.train import fit

KEY = jax.random.key(0)
rng = np.random.default_rng(0)
NET = TwoTower(Dense(3), Dense(3), count=2)
USERS = jnp.asarray(rng.normal(size=(5, 4)), jnp.float32)
ITEMS = jnp.asarray(rng.normal(size=(5, 2)), jnp.float32)
V = NET.init(KEY, USERS, ITEMS)


def unit(x):
    return np.asarray(x) / np.linalg.norm(x, axis=-1, keepdims=True)


# --- towers --------------------------------------------------------------------------


def test_a_tower_joins_the_vectors_of_its_features():
    tower = Tower(3, (5, 7), 2, ())
    x = jnp.array([[4, 0], [1, 6]])
    params = tower.init(KEY, x).params
    tables = [params[name]["embedding"] for name in ("embed1", "embed2")]
    rows = np.concatenate([tables[0][x[:, 0]], tables[1][x[:, 1]]], axis=-1)
    wanted = rows @ params["mlp"]["head"]["kernel"]
    np.testing.assert_allclose(tower(params, x), wanted, atol=1e-6)
    with pytest.raises(OutOfRangeError, match=r"embed2 \(Embed\).*\[0, 7\)"):
        tower(params, jnp.array([[4, 7]]))


def test_towers_return_directions_and_none_for_nothing():
    users, items = NET(V.params, USERS, ITEMS)
    np.testing.assert_allclose(
        users, unit(Dense(3)(V.params["user"], USERS)), atol=1e-6
    )
    np.testing.assert_allclose(
        items, unit(Dense(3)(V.params["item"], ITEMS)), atol=1e-6
    )
    nothing = functools.partial(Flow(NET, "users"), V.params)
    assert not nothing(jnp.zeros((1, 4))).any()
    slope = jax.grad(lambda x: nothing(x).sum())(jnp.zeros((1, 4)))
    assert jnp.isfinite(slope).all()


def test_mistakes_are_told_by_path():
    bad = Serial(net=Tower(3, (5, 7)))
    with pytest.raises(ShapeMismatchError, match=r"net \(Tower\): expects 2 features"):
        bad.init(KEY, jnp.array([1, 2, 3]))
    with pytest.raises(ShapeMismatchError, match=r"^\(root\) \(TwoTower\).*one size"):
        TwoTower(Dense(3), Dense(4)).init(KEY, USERS, ITEMS)
    with pytest.raises(FieldError, match=r"Tower\.vocabularies: expected a tuple"):
        Tower(3, 100)
    with pytest.raises(FieldError, match=r"TwoTower\.count"):
        TwoTower(Dense(3), Dense(3), count=0)


# --- the list ------------------------------------------------------------------------


def test_the_best_of_a_catalogue_come_first_and_what_was_seen_never():
    catalogue = jnp.asarray(rng.normal(size=(9, 2)), jnp.float32)
    recommend = jax.jit(Flow(NET, "recommend").__call__)
    scores, numbers = recommend(V.params, USERS, catalogue)
    cosines = (
        unit(Dense(3)(V.params["user"], USERS))
        @ unit(Dense(3)(V.params["item"], catalogue)).T
    )
    best = np.argsort(-cosines, axis=1)[:, :2]
    np.testing.assert_array_equal(numbers, best)
    np.testing.assert_allclose(scores, np.take_along_axis(cosines, best, 1), atol=1e-6)
    seen = np.zeros((5, 9), bool)
    np.put_along_axis(seen, best[:, :1], True, 1)
    _, others = recommend(V.params, USERS, catalogue, seen)
    np.testing.assert_array_equal(others[:, 0], best[:, 1])
    few, _ = recommend(V.params, USERS, catalogue[:1])
    assert few.shape == (5, 1)
    assert np.isneginf(
        recommend(V.params, USERS, catalogue, ~np.zeros_like(seen))[0]
    ).all()


# --- the loss ------------------------------------------------------------------------


def test_a_batch_drawn_by_popularity_gives_the_softmax_over_the_catalogue():
    often = np.array([1, 4, 2, 3])
    numbers = np.repeat(np.arange(4), often)
    catalogue, users = unit(rng.normal(size=(4, 3))), unit(rng.normal(size=(10, 3)))
    scores = users @ catalogue.T / 0.2
    whole = scipy.special.log_softmax(scores, axis=1)[np.arange(10), numbers]
    pair = np.float32(users), np.float32(catalogue[numbers])
    loss = InBatchSoftmax(0.2, "none")
    got = loss({}, pair, often[numbers])
    np.testing.assert_allclose(got, np.log(often[numbers]) - whole, rtol=1e-4)
    np.testing.assert_allclose(loss({}, pair, 7.0 * often[numbers]), got, rtol=1e-4)
    weights = np.float32(rng.random(10))
    wanted = np.average(got, weights=weights)
    got = InBatchSoftmax(0.2)({}, pair, (often[numbers], weights))
    np.testing.assert_allclose(got, wanted, rtol=1e-5)


def test_rows_that_do_not_fit_are_refused():
    loss, u = InBatchSoftmax(), jnp.ones((4, 3))
    with pytest.raises(ShapeMismatchError, match=r"an item \(n, d\) for each user"):
        loss({}, u, jnp.ones((4, 2)), jnp.ones(4))
    with pytest.raises(ShapeMismatchError, match=r"a frequency for each row"):
        loss({}, u, u, jnp.ones(3))
    with pytest.raises(FieldError, match=r"InBatchSoftmax\.temperature"):
        InBatchSoftmax(0.0)
    assert jnp.isnan(loss({}, u, u, jnp.array([1, 0, 1, 1])))


# --- trained for real ----------------------------------------------------------------


def interactions():
    """Images "choose" the pixels they light. Of each image a third is hidden."""
    lit = load_digits().data >= 8
    lit = lit[:, lit.sum(0) >= 20]
    order = np.where(lit, np.random.default_rng(0).random(lit.shape), 2)
    hidden = lit & (order.argsort(1).argsort(1) < lit.sum(1, keepdims=True) // 3)
    return lit, hidden


def test_the_pixels_of_images_never_seen_are_recommended_from_those_that_are_known():
    lit, hidden = interactions()
    known, new = lit & ~hidden, np.arange(len(lit)) % 4 == 0
    images, chosen = (lit & ~new[:, None]).nonzero()
    often, items = np.bincount(chosen), np.arange(lit.shape[1])[:, None]
    net = TwoTower(MLP(16, (64,)), Tower(16, (len(items),), 16, ()), count=5)
    fitted = fit(
        net, (known[images].astype(np.float32), items[chosen], often[chosen]),
        loss=InBatchSoftmax(0.2), optimizer=optax.adam(1e-2), epochs=6, batch_size=256,
    )  # fmt: skip
    recommend = jax.jit(Flow(net, "recommend").__call__)
    users = known[new].astype(np.float32)
    _, best = recommend(fitted.variables.params, users, items, known[new])

    def recall(best):
        hits = np.take_along_axis(hidden[new], np.asarray(best), axis=1).sum(1)
        return np.mean(hits / np.minimum(hidden[new].sum(1), 5))

    def top(scores):
        return np.where(known[new], -1, scores).argsort(1)[:, ::-1][:, :5]

    together = lit[~new].T.astype(float) @ lit[~new]
    cosine = together / np.sqrt(np.outer(often, often))
    popular, neighbours = recall(top(often)), recall(top(users @ cosine))
    assert popular < neighbours < 0.62
    assert recall(best) > 0.68


def test_towers_may_be_any_mappings():
    net = TwoTower(MLP(4, (8,)), Tower(4, (10,)), count=3)
    x, numbers = jnp.ones((2, 6)), jnp.array([[1], [2]])
    v = net.init(KEY, x, numbers)
    assert [y.shape for y in net(v.params, x, numbers)] == [(2, 4), (2, 4)]
