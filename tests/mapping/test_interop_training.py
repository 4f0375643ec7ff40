"""Adapted models train as they do at home: the same params and statistics.

Each is trained twice on the same batches with the same randomness: by our TrainStep,
and by the loop that its own library shows.
"""

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from mapping import Context, leaf_paths
from mapping.context import fold_name
from mapping.foreign import lenient_promotion
from mapping.interop import Equinox, Haiku, Linen, Nnx
from mapping.interop.from_haiku import flat
from mapping.losses import MeanSquaredError
from mapping.train import TrainStep

STEPS = 4
KEY = jax.random.key(7)
OPTIMIZER = optax.sgd(0.05, momentum=0.9)


@pytest.fixture(autouse=True)
def lenient():
    """The loops here are other libraries' own."""
    with lenient_promotion():
        yield


def batches(*shape, outputs=3, tokens=None):
    rng = np.random.default_rng(0)
    for _ in range(STEPS):
        x = rng.normal(size=shape).astype(np.float32)
        if tokens is not None:
            x = rng.integers(0, tokens, size=shape).astype(np.int32)
        yield x, rng.normal(size=(shape[0], outputs)).astype(np.float32)


def ours(mapping, variables, data):
    """Trains by the protocol; returns the params and the state."""
    step = TrainStep(mapping, MeanSquaredError(), OPTIMIZER)
    current = step.start(KEY, variables)
    apply = jax.jit(lambda v, batch: step.apply(v, batch, ctx=Context(train=True))[1])
    for batch in data:
        current = type(current)({}, apply(current, batch))
    return current.state["params"], current.state["state"]


def step_key(number):
    """The key that a mapping at the root is given in a step."""
    return Context(jax.random.fold_in(KEY, number)).rng()


def mse(prediction, target):
    return jnp.mean((prediction - target) ** 2)


def assert_same(actual, expected, moved_from):
    """Float32, four steps of one program compiled two ways."""
    actual, expected = leaf_paths(actual), leaf_paths(expected)
    before = leaf_paths(moved_from)
    assert actual.keys() == expected.keys() == before.keys()
    for path, value in actual.items():
        np.testing.assert_allclose(
            value, expected[path], rtol=1e-5, atol=1e-5, err_msg=path
        )
    moved = [p for p in actual if np.abs(actual[p] - before[p]).max() > 1e-3]
    assert len(moved) >= len(actual) / 2


# linen


class Block(nn.Module):
    features: int

    @nn.compact
    def __call__(self, x, train):
        y = nn.Conv(self.features, (3, 3), use_bias=False)(x)
        y = nn.relu(nn.BatchNorm(use_running_average=not train)(y))
        y = nn.Conv(self.features, (3, 3), use_bias=False)(y)
        return nn.relu(x + nn.BatchNorm(use_running_average=not train)(y))


class ResNet(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        x = nn.Conv(4, (3, 3), name="stem")(x)
        x = Block(4, name="block_1")(x, train)
        x = Block(4, name="block_2")(x, train)
        x = nn.Dropout(0.25, deterministic=not train)(x.mean((1, 2)))
        return nn.Dense(3, name="head")(x)


def test_a_linen_resnet_trains_as_in_linen():
    data = list(batches(4, 6, 6, 2))
    mapping = Linen(ResNet())
    start = mapping.init(jax.random.key(0), data[0][0])
    params, stats = start.params, start.state["batch_stats"]
    moments = OPTIMIZER.init(params)

    @jax.jit
    def update(params, stats, moments, x, target, key):
        def loss(params):
            variables = {"params": params, "batch_stats": stats}
            y, changed = ResNet().apply(
                variables, x, True, mutable=["batch_stats"], rngs={"dropout": key}
            )
            return mse(y, target), changed["batch_stats"]

        grads, stats_ = jax.grad(loss, has_aux=True)(params)
        updates, moments = OPTIMIZER.update(grads, moments)
        return optax.apply_updates(params, updates), stats_, moments

    for number, (x, target) in enumerate(data):
        params, stats, moments = update(
            params, stats, moments, x, target, step_key(number)
        )
    trained, state = ours(mapping, start, data)
    assert_same(trained, params, start.params)
    assert_same(state["batch_stats"], stats, start.state["batch_stats"])


# nnx


class Transformer(nnx.Module):
    def __init__(self, width, *, rngs):
        self.embed = nnx.Embed(11, width, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(
            2, width, dropout_rate=0.1, decode=False, rngs=rngs
        )
        self.norms = nnx.List([nnx.LayerNorm(width, rngs=rngs) for _ in range(2)])
        self.hidden = nnx.Linear(width, 2 * width, rngs=rngs)
        self.out = nnx.Linear(2 * width, width, rngs=rngs)
        self.dropout = nnx.Dropout(0.2, rngs=rngs)
        self.statistics = nnx.BatchNorm(width, momentum=0.9, rngs=rngs)
        self.head = nnx.Linear(width, 3, rngs=rngs)

    def __call__(self, tokens):
        x = self.embed(tokens)
        x = x + self.attention(self.norms[0](x))
        x = x + self.dropout(self.out(nnx.gelu(self.hidden(self.norms[1](x)))))
        return self.head(self.statistics(x.mean(1)))


def test_an_nnx_transformer_trains_as_in_nnx():
    data = list(batches(4, 5, tokens=11))
    model = Transformer(8, rngs=nnx.Rngs(0))
    mapping, start = Nnx.of(model)
    model.train()
    optimizer = nnx.Optimizer(model, OPTIMIZER, wrt=nnx.Param)

    @nnx.jit
    def update(model, optimizer, x, target):
        grads = nnx.grad(lambda model: mse(model(x), target))(model)
        optimizer.update(model, grads)

    for number, (x, target) in enumerate(data):
        for path, stream in nnx.iter_graph(model):
            if isinstance(stream, nnx.RngStream):
                own = fold_name(step_key(number), "/".join(map(str, path)))
                stream.key.set_value(own)
                stream.count.set_value(jnp.zeros((), jnp.uint32))
        update(model, optimizer, x, target)

    def of(kind):
        flat = nnx.to_flat_state(nnx.state(model, kind))
        return {"/".join(map(str, p)): v.get_value() for p, v in flat}

    trained, state = ours(mapping, start, data)
    assert_same(leaf_paths(trained), of(nnx.Param), leaf_paths(start.params))
    assert_same(leaf_paths(state), of(nnx.BatchStat), leaf_paths(start.state))


# equinox


class Recurrent(eqx.Module):
    cell: eqx.nn.GRUCell
    norm: eqx.nn.BatchNorm
    dropout: eqx.nn.Dropout
    head: eqx.nn.Linear

    def __init__(self, size, hidden, *, key):
        one, two = jax.random.split(key)
        self.cell = eqx.nn.GRUCell(size, hidden, key=one)
        self.norm = eqx.nn.BatchNorm(hidden, "batch", momentum=0.9, mode="batch")
        self.dropout = eqx.nn.Dropout(0.3)
        self.head = eqx.nn.Linear(hidden, 3, key=two)

    def __call__(self, xs, state, *, key=None):
        carry = jnp.zeros(self.cell.hidden_size)
        carry, _ = jax.lax.scan(lambda h, x: (self.cell(x, h), None), carry, xs)
        carry, state = self.norm(carry, state)
        return self.head(self.dropout(carry, key=key)), state


def test_an_equinox_rnn_trains_as_in_equinox():
    data = list(batches(4, 5, 2))
    model, state = eqx.nn.make_with_state(Recurrent)(2, 6, key=jax.random.key(0))
    mapping, start = Equinox.of(model, state, batch_axis="batch")
    moments = OPTIMIZER.init(eqx.filter(model, eqx.is_inexact_array))

    @eqx.filter_jit
    def update(model, state, moments, x, target, key):
        def loss(model, state):
            keyed = jax.vmap(
                lambda x, state, key: model(x, state, key=key),
                in_axes=(0, None, 0),
                out_axes=(0, None),
                axis_name="batch",
            )
            y, state = keyed(x, state, jax.random.split(key, len(x)))
            return mse(y, target), state

        grads, state = eqx.filter_grad(loss, has_aux=True)(model, state)
        updates, moments = OPTIMIZER.update(grads, moments)
        return eqx.apply_updates(model, updates), state, moments

    for number, (x, target) in enumerate(data):
        model, state, moments = update(
            model, state, moments, x, target, step_key(number)
        )
    trained, stats = ours(mapping, start, data)
    expected = leaf_paths(eqx.filter(model, eqx.is_inexact_array))
    assert_same(leaf_paths(trained), expected, leaf_paths(start.params))
    count, (mean, var) = (
        state.get(model.norm.batch_counter),
        state.get(model.norm.batch_state_index),
    )
    assert int(stats["norm"]["batch_counter"]) == int(count) == STEPS
    own = stats["norm"]["batch_state_index"]
    np.testing.assert_allclose(own["0"], mean, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(own["1"], var, rtol=1e-5, atol=1e-6)


# haiku


def network(x, is_training):
    x = hk.nets.MLP([8, 6], activate_final=True)(x)
    x = hk.BatchNorm(True, True, 0.9)(x, is_training)
    if is_training:
        x = hk.dropout(hk.next_rng_key(), 0.2, x)
    return hk.Linear(3, name="head")(x)


def test_a_haiku_model_trains_as_in_haiku():
    data = list(batches(6, 4))
    mapping = Haiku(network)
    start = mapping.init(jax.random.key(0), data[0][0])

    pair = hk.transform_with_state(network)
    params, state = pair.init(jax.random.key(0), data[0][0], is_training=True)
    moments = OPTIMIZER.init(params)

    @jax.jit
    def update(params, state, moments, x, target, key):
        def loss(params):
            y, changed = pair.apply(params, state, key, x, is_training=True)
            return mse(y, target), changed

        grads, changed = jax.grad(loss, has_aux=True)(params)
        updates, moments = OPTIMIZER.update(grads, moments)
        return optax.apply_updates(params, updates), changed, moments

    for number, (x, target) in enumerate(data):
        params, state, moments = update(
            params, state, moments, x, target, step_key(number)
        )
    trained, changed = ours(mapping, start, data)
    assert_same(flat(trained), params, flat(start.params))
    assert_same(flat(changed), state, flat(start.state))
