"""Convolutional networks in flax linen."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from architectures.declared import architecture, linen, normal


def conv(features: int, name: str, size: int = 3, **options: Any) -> nn.Conv:
    return nn.Conv(features, (size, size), name=name, **options)


def norm(name: str) -> nn.BatchNorm:
    return nn.BatchNorm(use_running_average=True, name=name)


def image(channels: int = 3) -> jax.Array:
    return normal(2, 8, 8, channels)


def head(x: jax.Array) -> jax.Array:
    return nn.Dense(3, name="head")(x.mean((1, 2)))


@architecture(
    "linen",
    """
    first  6  | c1/*:-1 c2/kernel:2
    second 8  | c2/*:-1 d1/kernel:0
    hidden 10 | d1/*:-1 d2/kernel:0
    """,
)
def lenet(w):
    def forward(x):
        x = nn.avg_pool(nn.tanh(conv(w["first"], "c1")(x)), (2, 2), (2, 2))
        x = nn.tanh(conv(w["second"], "c2", strides=2)(x))
        x = nn.relu(nn.Dense(w["hidden"], name="d1")(x.reshape(x.shape[0], -1)))
        return nn.Dense(3, name="d2")(x)

    return linen(forward, image())


@architecture(
    "linen",
    """
    first  6 | c1/*:-1 n1/*:0 c2/kernel:2
    second 8 | c2/*:-1 n2/*:0 c3/kernel:2
    third  4 | c3/*:-1 n3/*:0 d1/kernel:0
    hidden 6 | d1/*:-1 d2/kernel:0
    """,
)
def vgg(w):
    def forward(x):
        for i, name in enumerate(("first", "second", "third")):
            x = nn.relu(norm(f"n{i + 1}")(conv(w[name], f"c{i + 1}")(x)))
            x = nn.max_pool(x, (2, 2), (2, 2)) if i else x
        x = nn.relu(nn.Dense(w["hidden"], name="d1")(x.reshape(x.shape[0], -1)))
        return nn.Dense(3, name="d2")(x)

    return linen(forward, image())


@architecture(
    "linen",
    """
    first  8 | c1/kernel:3 n1/*:0 c2/kernel:2
    second 6 | c2/kernel:3 n2/*:0 mean/kernel:0 spread/kernel:0
    code   4 | mean/*:-1 spread/*:-1 d1/kernel:0
    third  4 | d1/*:-1 c3/kernel:2
    fourth 6 | c3/*:-1 c4/kernel:2
    """,
    unlike="the noise of a narrower code is other noise",
)
def variational_autoencoder(w):
    def forward(x, key):
        for i, name in enumerate(("first", "second")):
            x = conv(w[name], f"c{i + 1}", strides=2, use_bias=False)(x)
            x = nn.silu(norm(f"n{i + 1}")(x))
        x = x.reshape(x.shape[0], -1)
        mean = nn.Dense(w["code"], name="mean")(x)
        spread = jnp.exp(0.5 * nn.Dense(w["code"], name="spread")(x))
        z = mean + spread * jax.random.normal(key, mean.shape)
        z = nn.Dense(4 * w["third"], name="d1")(z).reshape(-1, 2, 2, w["third"])
        for name, layer in (("fourth", "c3"), ("pixels", "c4")):
            features = w.get(name, 3)
            z = nn.ConvTranspose(features, (3, 3), (2, 2), name=layer)(nn.relu(z))
        return z, mean.sum(-1)

    return linen(forward, image(), jax.random.key(3))


@architecture(
    "linen",
    """
    encoded 6 | c1/*:-1 c2/kernel:2
    code    4 | c2/*:-1 u1/kernel:2
    decoded 6 | u1/*:-1 u2/kernel:2
    """,
)
def convolutional_autoencoder(w):
    def forward(x):
        x = nn.elu(conv(w["encoded"], "c1", strides=2)(x))
        x = nn.sigmoid(conv(w["code"], "c2", strides=2)(x))
        x = nn.elu(nn.ConvTranspose(w["decoded"], (2, 2), (2, 2), name="u1")(x))
        return nn.ConvTranspose(3, (2, 2), (2, 2), name="u2")(x)

    return linen(forward, image())


@architecture(
    "linen",
    """
    seed   6 | project/*:-1 n0/*:0 u1/kernel:2
    hidden 8 | u1/kernel:3 n1/*:0 u2/kernel:2
    """,
)
def generator(w):
    def forward(z):
        x = nn.Dense(4 * w["seed"], name="project")(z).reshape(-1, 2, 2, w["seed"])
        x = nn.relu(norm("n0")(x))
        x = nn.ConvTranspose(w["hidden"], (4, 4), (2, 2), use_bias=False, name="u1")(x)
        x = nn.relu(norm("n1")(x))
        return nn.tanh(nn.ConvTranspose(3, (4, 4), (2, 2), name="u2")(x))

    return linen(forward, normal(2, 5))


@architecture(
    "linen",
    """
    first  6 | c1/*:-1 c2/kernel:2
    second 8 | c2/kernel:3 n2/*:0 c3/kernel:2
    """,
)
def discriminator(w):
    def forward(x):
        x = nn.leaky_relu(conv(w["first"], "c1", 4, strides=2)(x), 0.2)
        x = conv(w["second"], "c2", 4, strides=2, use_bias=False)(x)
        x = nn.leaky_relu(norm("n2")(x), 0.2)
        return conv(1, "c3", 2, padding="VALID")(x)[:, 0, 0, 0]

    return linen(forward, image())


@architecture(
    "linen",
    """
    skip 6  | down/*:-1 mid/kernel:2 out/kernel:2
    mid  10 | mid/*:-1 up/kernel:2
    up   8  | up/*:-1 out/kernel:2
    last 4  | out/*:-1 head/kernel:2
    """,
)
def unet_transposed(w):
    def forward(x):
        skip = nn.relu(conv(w["skip"], "down")(x))
        x = nn.max_pool(skip, (2, 2), (2, 2))
        x = nn.relu(conv(w["mid"], "mid")(x))
        x = nn.ConvTranspose(w["up"], (2, 2), (2, 2), name="up")(x)
        x = nn.relu(conv(w["last"], "out")(jnp.concatenate([x, skip], -1)))
        return conv(2, "head", 1)(x)

    return linen(forward, image())


@architecture(
    "linen",
    """
    skip   6 | down/*:-1 low/kernel:2 out/kernel:2
    low    8 | low/*:-1 lowest/kernel:2 mid/kernel:2
    lowest 4 | lowest/*:-1 mid/kernel:2
    mid    6 | mid/*:-1 out/kernel:2
    """,
)
def unet_resized(w):
    def forward(x):
        skip = nn.relu(conv(w["skip"], "down")(x))
        low = nn.relu(conv(w["low"], "low", strides=2)(skip))
        lowest = nn.relu(conv(w["lowest"], "lowest", strides=2)(low))
        x = jax.image.resize(lowest, (*low.shape[:3], w["lowest"]), "nearest")
        x = nn.relu(conv(w["mid"], "mid")(jnp.concatenate([low, x], -1)))
        x = jax.image.resize(x, (*skip.shape[:3], w["mid"]), "bilinear")
        return conv(2, "out")(jnp.concatenate([skip, x], -1))

    return linen(forward, image())


@architecture(
    "linen",
    """
    stem    6 | stem/*:-1 one/kernel:2 reduce/kernel:2 pooled/kernel:2
    one     4 | one/*:-1 head/kernel:0
    reduced 4 | reduce/*:-1 three/kernel:2
    three   6 | three/*:-1 head/kernel:0
    pooled  4 | pooled/*:-1 head/kernel:0
    """,
)
def inception(w):
    def forward(x):
        x = nn.relu(conv(w["stem"], "stem")(x))
        one = conv(w["one"], "one", 1)(x)
        three = nn.relu(conv(w["reduced"], "reduce", 1)(x))
        three = conv(w["three"], "three")(three)
        pooled = nn.max_pool(x, (3, 3), padding="SAME")
        pooled = conv(w["pooled"], "pooled", 1)(pooled)
        return head(nn.relu(jnp.concatenate([one, three, pooled], -1)))

    return linen(forward, image())


@architecture(
    "linen",
    """
    stem   6 | stem/*:-1 a*/kernel:2 global/kernel:2
    first  4 | a1/*:-1 n/*:0 out/kernel:2
    second 4 | a2/*:-1 n/*:0 out/kernel:2
    whole  6 | global/*:-1 n/*:0 out/kernel:2
    last   4 | out/*:-1 head/kernel:0
    """,
)
def dilated_pyramid(w):
    def forward(x):
        x = nn.relu(conv(w["stem"], "stem")(x))
        branches = [
            conv(w[name], f"a{rate}", kernel_dilation=rate)(x)
            for rate, name in ((1, "first"), (2, "second"))
        ]
        whole = conv(w["whole"], "global", 1)(x.mean((1, 2), keepdims=True))
        branches.append(jnp.broadcast_to(whole, (*x.shape[:3], w["whole"])))
        x = nn.relu(norm("n")(jnp.concatenate(branches, -1)))
        return head(nn.relu(conv(w["last"], "out", 1)(x)))

    return linen(forward, image())
