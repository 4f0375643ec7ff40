"""A small network trained on scikit-learn's digits, and one with outliers inside."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.datasets import load_digits

WIDTH = 64


def mlp(params, x):
    """Two hidden layers."""
    for name in ("first", "second"):
        x = jax.nn.relu(x @ params[name]["kernel"] + params[name]["bias"][None])
    return x @ params["head"]["kernel"] + params["head"]["bias"][None]


@functools.cache
def data():
    """Images in [0, 1] and labels: of 1500 to train on, of 297 to test."""
    found = load_digits()
    x, y = (found.data / 16).astype(np.float32), found.target
    order = np.random.default_rng(0).permutation(len(x))
    return x[order[:1500]], y[order[:1500]], x[order[1500:]], y[order[1500:]]


@functools.cache
def trained():
    """The params, trained on all images at once."""
    x, y, _, _ = data()
    sizes, rng = (64, WIDTH, WIDTH, 10), np.random.default_rng(1)
    params = {
        name: {
            "kernel": rng.normal(size=(m, n)).astype(np.float32) * np.sqrt(2 / m),
            "bias": np.zeros(n, np.float32),
        }
        for name, m, n in zip(
            ("first", "second", "head"), sizes, sizes[1:], strict=False
        )
    }
    params = jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), params)

    def loss(params):
        chances = jax.nn.log_softmax(mlp(params, x))
        return -jnp.take_along_axis(chances, y[:, None], 1).mean()

    @jax.jit
    def train(params):
        def step(carry, _):
            params, speed = carry
            speed = jax.tree.map(
                lambda s, g: 0.9 * s - 0.2 * g, speed, jax.grad(loss)(params)
            )
            return (jax.tree.map(jnp.add, params, speed), speed), None

        start = params, jax.tree.map(jnp.zeros_like, params)
        return jax.lax.scan(step, start, None, 150)[0][0]

    return train(params)


@functools.cache
def with_outliers():
    """The same function, some hidden units of which are large."""
    params = jax.tree.map(np.asarray, trained())
    for layer, following in (("first", "second"), ("second", "head")):
        size = np.ones(WIDTH, np.float32)
        size[::8] = 60.0
        params[layer] = {name: a * size for name, a in params[layer].items()}
        kernel = params[following]["kernel"] / size[:, None]
        params[following] = params[following] | {"kernel": kernel}
    return jax.tree.map(jnp.asarray, params)
