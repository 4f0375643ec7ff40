"""Mappings in other libraries: their outputs, state and names, and they train there."""

import functools

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.errors import ScopeParamShapeError

from mapping import Context, Serial, Variables, leaf_paths
from mapping.errors import MissingKeyError, MissingVariablesError
from mapping.foreign import lenient_promotion
from mapping.interop import (
    Pair,
    to_equinox,
    to_haiku,
    to_linen,
    to_nnx,
    to_pair,
)
from mapping.interop.from_haiku import flat
from mapping.layers import BatchNorm, Dense, Dropout
from mapping.losses import MeanSquaredError
from mapping.train import TrainStep

KEY = jax.random.key(0)
OPTIMIZER = optax.sgd(0.1, momentum=0.9)
STEPS = 3
RNG = np.random.default_rng(0)
X = RNG.normal(size=(6, 4)).astype(np.float32)
TARGET = RNG.normal(size=(6, 2)).astype(np.float32)
NET = Serial(hidden=Dense(5), norm=BatchNorm(), act=jnp.tanh, head=Dense(2))
NOISY = Serial(drop=Dropout(0.5), norm=BatchNorm())


@pytest.fixture(autouse=True)
def lenient():
    """The loops here are other libraries' own."""
    with lenient_promotion():
        yield


@functools.cache
def made(mapping):
    return mapping.init(KEY, X)


def mse(prediction):
    return jnp.mean((prediction - TARGET) ** 2)


def same(actual, expected):
    """Float32, a few steps of one program compiled two ways."""
    actual, expected = leaf_paths(actual), leaf_paths(expected)
    assert actual.keys() == expected.keys()
    for path in actual:
        np.testing.assert_allclose(
            actual[path], expected[path], rtol=1e-5, atol=1e-6, err_msg=path
        )


@functools.cache
def trained():
    """The params and state after the same steps by our own protocol."""
    step = TrainStep(NET, MeanSquaredError(), OPTIMIZER)
    v = step.start(KEY, made(NET))
    apply = jax.jit(lambda v: step.apply(v, (X, TARGET), ctx=Context(train=True))[1])
    for _ in range(STEPS):
        v = Variables({}, apply(v))
    assert (
        abs(
            v.state["params"]["head"]["kernel"] - made(NET).params["head"]["kernel"]
        ).max()
        > 0.01
    )
    return v.state["params"], v.state["state"]


def applied(mapping, key=None, train=False):
    return mapping.apply(made(mapping), X, ctx=Context(key, train))


# linen


def test_a_linen_module_computes_as_its_mapping():
    module, variables = to_linen(NET), made(NET)
    own = {"params": variables.params, "state": variables.state}
    same(module.apply(own, X), applied(NET)[0])
    y, changed = module.apply(own, X, train=True, mutable=["state"])
    same((y, changed["state"]), applied(NET, train=True))


def test_a_linen_module_makes_variables_with_the_mappings_names():
    variables = to_linen(NET).init(KEY, X)
    same(
        jax.tree.map(jnp.shape, variables["params"]),
        jax.tree.map(jnp.shape, made(NET).params),
    )
    same(variables["state"], made(NET).state)
    again = to_linen(NET).init(jax.random.key(1), X)
    hidden = [v["params"]["hidden"]["kernel"] for v in (variables, again)]
    assert (hidden[0] != hidden[1]).any()


def test_a_linen_module_draws_from_linens_stream():
    class Probe(nn.Module):
        @nn.compact
        def __call__(self):
            return self.make_rng("dropout")

    key = Probe().apply({}, rngs={"dropout": KEY})
    own = {"state": made(NOISY).state, "params": made(NOISY).params}
    y, changed = to_linen(NOISY).apply(
        own, X, train=True, mutable=["state"], rngs={"dropout": KEY}
    )
    same((y, changed["state"]), applied(NOISY, key, train=True))
    with pytest.raises(MissingKeyError, match=r"^drop: needs a random key"):
        to_linen(NOISY).apply(own, X, train=True, mutable=["state"])


def test_a_linen_module_lives_inside_another():
    class Outer(nn.Module):
        @nn.compact
        def __call__(self, x, train=False):
            return nn.Dense(1)(to_linen(NET, name="net")(x, train=train))

    variables = Outer().init(KEY, X)
    assert set(variables["params"]) == {"net", "Dense_0"}
    assert set(variables["state"]["net"]) == {"norm"}
    y, changed = Outer().apply(variables, X, train=True, mutable=["state"])
    assert y.shape == (6, 1)
    assert (changed["state"]["net"]["norm"]["mean"] != 0).any()


def test_a_linen_module_refuses_params_of_another_shape():
    wrong = jax.tree.map(lambda x: x[..., :1], made(NET).params)
    with pytest.raises(
        ScopeParamShapeError, match=r'"head".* expected .* shape \(2,\)'
    ):
        to_linen(NET).apply({"params": wrong, "state": made(NET).state}, X)


def test_a_mapping_trains_in_linen():
    module, (params, state) = to_linen(NET), (made(NET).params, made(NET).state)
    moments = OPTIMIZER.init(params)

    @jax.jit
    def update(params, state, moments):
        def loss(params):
            y, changed = module.apply(
                {"params": params, "state": state}, X, train=True, mutable=["state"]
            )
            return mse(y), changed["state"]

        grads, state_ = jax.grad(loss, has_aux=True)(params)
        updates, moments = OPTIMIZER.update(grads, moments)
        return optax.apply_updates(params, updates), state_, moments

    for _ in range(STEPS):
        params, state, moments = update(params, state, moments)
    same((params, state), trained())


# nnx


def values(tree):
    return jax.tree.map(
        lambda v: v.get_value(), tree, is_leaf=lambda v: isinstance(v, nnx.Variable)
    )


def test_an_nnx_module_computes_as_its_mapping():
    module = to_nnx(NET, KEY, X)
    assert module.params["hidden"]["kernel"].shape == (4, 5)
    module.eval()
    same(module(X), applied(NET)[0])
    same(values(module.state), made(NET).state)
    module.train()
    same(module(X), applied(NET, train=True)[0])
    same(values(module.state), applied(NET, train=True)[1])
    same(
        nnx.view(module, deterministic=True)(X),
        NET(made(NET).params, X, state=applied(NET, train=True)[1]),
    )


def test_an_nnx_module_draws_from_its_stream():
    module = to_nnx(NOISY, KEY, X)
    first, second = module(X), module(X)
    assert (first != second).any()
    module.eval()
    assert int(module.rngs.dropout.count.get_value()) == 2


def test_a_mapping_trains_in_nnx():
    module = to_nnx(NET, KEY, X)
    optimizer = nnx.Optimizer(module, OPTIMIZER, wrt=nnx.Param)

    @nnx.jit
    def update(module, optimizer):
        optimizer.update(module, nnx.grad(lambda m: mse(m(X)))(module))

    for _ in range(STEPS):
        update(module, optimizer)
    same((values(module.params), values(module.state)), trained())


# equinox


def test_an_equinox_module_computes_as_its_mapping():
    model, state = eqx.nn.make_with_state(to_equinox)(NET, made(NET))
    y, state = model(X, state)
    same(y, applied(NET, train=True)[0])
    same(state.get(model.state), applied(NET, train=True)[1])
    y, after = eqx.nn.inference_mode(model)(X, state)
    same(y, NET(model.params, X, state=state.get(model.state)))
    assert after is state


def test_an_equinox_module_without_state_returns_its_output():
    plain = Serial(hidden=Dense(3), drop=Dropout(0.5))
    model = to_equinox(plain, made(plain))
    same(model(X, key=KEY), applied(plain, KEY, train=True)[0])
    same(eqx.nn.inference_mode(model)(X), applied(plain)[0])
    with pytest.raises(MissingKeyError, match=r"^drop: needs a random key"):
        model(X)


def test_an_equinox_module_asks_for_its_state():
    model, _ = eqx.nn.make_with_state(to_equinox)(NET, made(NET))
    with pytest.raises(MissingVariablesError, match=r"\(Serial\): .*make_with_state"):
        model(X)
    with pytest.raises(MissingVariablesError, match="last input, got NoneType"):
        model()


def test_a_mapping_trains_in_equinox():
    model, state = eqx.nn.make_with_state(to_equinox)(NET, made(NET))
    moments = OPTIMIZER.init(eqx.filter(model, eqx.is_inexact_array))

    @eqx.filter_jit
    def update(model, state, moments):
        def loss(model, state):
            y, state = model(X, state)
            return mse(y), state

        grads, state = eqx.filter_grad(loss, has_aux=True)(model, state)
        updates, moments = OPTIMIZER.update(grads, moments)
        return eqx.apply_updates(model, updates), state, moments

    for _ in range(STEPS):
        model, state, moments = update(model, state, moments)
    same((model.params, state.get(model.state)), trained())


# haiku and pairs


def test_a_haiku_transform_computes_as_its_mapping():
    net = to_haiku(NET)
    params, state = net.init(KEY, X)
    assert set(params) == {"hidden", "norm", "head"}
    same(net.apply(params, state, None, X)[0], applied(NET)[0])
    y, state = net.apply(params, state, None, X, is_training=True)
    same((y, flat(applied(NET, train=True)[1])), (applied(NET, train=True)[0], state))
    params, state = to_haiku(NOISY).init(KEY, X)
    noisy = to_haiku(NOISY).apply(params, state, KEY, X, is_training=True)[0]
    same(noisy, applied(NOISY, KEY, train=True)[0])


def test_params_of_the_mapping_itself_are_haikus_top_module():
    net = to_haiku(Dense(2))
    params, state = net.init(KEY, X)
    assert (set(params), state) == ({"~"}, {})
    same(net.apply(params, state, None, X)[0], applied(Dense(2))[0])


def test_a_haiku_transform_lives_inside_another():
    net = to_haiku(NET)

    def outer(x):
        init, update = hk.lift_with_state(net.init, name="net")
        params, state = init(hk.next_rng_key(), x)
        y, state = net.apply(params, state, None, x, is_training=True)
        update.update(state)
        return hk.Linear(1)(y)

    pair = hk.transform_with_state(outer)
    params, state = pair.init(KEY, X)
    assert set(params) == {"net/hidden", "net/norm", "net/head", "linear"}
    y, changed = pair.apply(params, state, KEY, X)
    assert y.shape == (6, 1)
    assert (changed["net/norm"]["mean"] != state["net/norm"]["mean"]).any()


def test_a_mapping_trains_in_haiku():
    net = to_haiku(NET)
    params, state = net.init(KEY, X)
    moments = OPTIMIZER.init(params)

    @jax.jit
    def update(params, state, moments):
        def loss(params):
            y, changed = net.apply(params, state, None, X, is_training=True)
            return mse(y), changed

        grads, state_ = jax.grad(loss, has_aux=True)(params)
        updates, moments = OPTIMIZER.update(grads, moments)
        return optax.apply_updates(params, updates), state_, moments

    for _ in range(STEPS):
        params, state, moments = update(params, state, moments)
    same((params, state), tuple(flat(tree) for tree in trained()))


def test_a_pair_of_functions_goes_out_and_comes_back():
    init, apply = to_pair(NOISY)
    params, state = init(KEY, X)
    same(apply(params, state, X)[0], applied(NOISY)[0])
    same(apply(params, state, X, key=KEY, train=True), applied(NOISY, KEY, train=True))
    back = Pair(*to_pair(NET))
    assert back.style == "state"
    same(back.init(KEY, X), made(NET))
    same(back.apply(made(NET), X, ctx=Context(train=True)), applied(NET, train=True))
