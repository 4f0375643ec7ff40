"""Recurrent and other networks in flax linen."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from architectures.declared import architecture, integers, linen, normal


@architecture(
    "linen",
    """
    first  8 | d1/*:-1 l1/*:0 d2/kernel:0 | norm
    second 6 | d2/*:-1 d3/kernel:0
    """,
)
def mlp(w):
    def forward(x):
        x = nn.gelu(nn.LayerNorm(name="l1")(nn.Dense(w["first"], name="d1")(x)))
        x = nn.softplus(nn.Dense(w["second"], name="d2")(x))
        return nn.Dense(3, name="d3")(x)

    return linen(forward, normal(4, 5))


@architecture(
    "linen",
    """
    first  8 | d1/*:-1 d2/kernel:0
    second 6 | d2/*:-1 d3/kernel:0
    """,
    unlike="the mask of a narrower layer is another mask",
)
def mlp_with_dropout(w):
    def forward(x, key):
        for i, name in enumerate(("first", "second")):
            x = nn.relu(nn.Dense(w[name], name=f"d{i + 1}")(x))
            key, own = jax.random.split(key)
            x = nn.Dropout(0.4, deterministic=False)(x, rng=own)
        return nn.Dense(3, name="d3")(x)

    return linen(forward, normal(4, 5), jax.random.key(1))


@architecture(
    "linen",
    """
    first  8 | Dense_0/*:-1 WeightNorm_0/*/scale:0 Dense_1/kernel:0
    second 6 | Dense_1/*:-1 WeightNorm_1/*/scale:0 Dense_2/kernel:0
    """,
)
def weight_norm(w):
    def forward(x):
        x = nn.relu(nn.WeightNorm(nn.Dense(w["first"]))(x))
        x = nn.relu(nn.WeightNorm(nn.Dense(w["second"]))(x))
        return nn.WeightNorm(nn.Dense(3))(x)

    return linen(forward, normal(4, 5))


@architecture(
    "linen",
    """
    embed  6 | embed/embedding:1 i?/kernel:0
    hidden 8 | i?/kernel:1 h?/kernel:0 h?/*:-1 head/kernel:0
    """,
)
def lstm(w):
    def forward(tokens):
        x = nn.Embed(9, w["embed"], name="embed")(tokens)
        x = nn.RNN(nn.OptimizedLSTMCell(w["hidden"]))(x)
        return nn.Dense(3, name="head")(x)

    return linen(forward, integers(2, 5, below=9))


@architecture(
    "linen",
    """
    forward  8 | forward/i?/*:-1 forward/h?/*:-1 forward/h?/kernel:0 head/kernel:0
    backward 6 | backward/i?/*:-1 backward/h?/*:-1 backward/h?/kernel:0 head/kernel:0
    """,
)
def bidirectional_gru(w):
    def forward(x):
        ahead = nn.RNN(nn.GRUCell(w["forward"], name="forward"))
        back = nn.RNN(nn.GRUCell(w["backward"], name="backward"))
        x = nn.Bidirectional(ahead, back)(x, seq_lengths=jnp.array([5, 3]))
        return nn.Dense(3, name="head")(x)

    return linen(forward, normal(2, 5, 4))


@architecture(
    "linen",
    """
    hidden 6 | hh/*:-1 ih/*:-1 hh/kernel:2 head/kernel:2
    """,
)
def convolutional_lstm(w):
    def forward(x):
        cell = nn.ConvLSTMCell(w["hidden"], (3, 3))
        return nn.Conv(2, (1, 1), name="head")(nn.RNN(cell)(x))

    return linen(forward, normal(2, 3, 6, 6, 2))


@architecture(
    "linen",
    """
    stream 6 | stem/*:-1 g?/kernel:1 r?/*:-1
    gate0  4 | g0/*:-1 r0/kernel:1 s0/kernel:1
    gate1  6 | g1/*:-1 r1/kernel:1 s1/kernel:1
    skip   8 | s?/*:-1 head/kernel:1
    """,
)
def wavenet(w):
    def layer(features, name, size=1, **options):
        return nn.Conv(features, (size,), padding="CAUSAL", name=name, **options)

    def forward(x):
        x = layer(w["stream"], "stem", 2)(x)
        skips = 0.0
        for i in range(2):
            both = layer(2 * w[f"gate{i}"], f"g{i}", 2, kernel_dilation=2**i)(x)
            value, gate = jnp.split(both, 2, axis=-1)
            y = jnp.tanh(value) * nn.sigmoid(gate)
            x = x + layer(w["stream"], f"r{i}")(y)
            skips = skips + layer(w["skip"], f"s{i}")(y)
        return layer(3, "head")(nn.relu(skips))

    return linen(forward, normal(2, 8, 3))


@architecture(
    "linen",
    """
    first  6 | p1/*:-1 b1/*:-1 *b1/kernel/scale:0 a2/kernel:1
             | p2/kernel:1
    inner  4 | a1/*:-1 *a1/kernel/scale:0 b1/kernel:1
    inner2 6 | a2/*:-1 *a2/kernel/scale:0 b2/kernel:1
    second 8 | b2/*:-1 *b2/kernel/scale:0 p2/*:-1 head/kernel:0
    """,
)
def temporal(w):
    """TCN: causal dilated convolutions with weight norm."""

    def forward(x):
        for i, name in ((1, "first"), (2, "second")):
            y, features = x, w["inner" if i == 1 else "inner2"]
            for letter, features_ in (("a", features), ("b", w[name])):
                layer = nn.Conv(
                    features_,
                    (2,),
                    padding="CAUSAL",
                    kernel_dilation=i,
                    name=f"{letter}{i}",
                )
                y = nn.relu(nn.WeightNorm(layer, name=f"norm_{letter}{i}")(y))
            x = nn.relu(y + nn.Conv(w[name], (1,), name=f"p{i}")(x))
        return nn.Dense(3, name="head")(x[:, -1])

    return linen(forward, normal(2, 8, 3))


@architecture(
    "linen",
    """
    stream 6 | d*/*:-1 t*/*:-1 d1/kernel:0 d2/kernel:0 t1/kernel:0 t2/kernel:0
           | head/kernel:0
    """,
)
def highway(w):
    def forward(x):
        x = nn.Dense(w["stream"], name="d0")(x)
        for i in (1, 2):
            carry = nn.sigmoid(nn.Dense(w["stream"], name=f"t{i}")(x))
            x = (
                carry * nn.tanh(nn.Dense(w["stream"], name=f"d{i}")(x))
                + (1 - carry) * x
            )
        return nn.Dense(3, name="head")(x)

    return linen(forward, normal(4, 5))


@architecture(
    "linen",
    """
    features  6 | c1/*:-1 film/*:-1 c2/kernel:2
    condition 4 | d1/*:-1 film/kernel:0
    last      4 | c2/*:-1 i2/*:0 head/kernel:0
    """,
)
def film(w):
    def forward(x, condition):
        x = nn.Conv(w["features"], (3, 3), name="c1")(x)
        condition = nn.relu(nn.Dense(w["condition"], name="d1")(condition))
        both = nn.Dense(2 * w["features"], name="film")(condition)[:, None, None]
        gain, shift = jnp.split(both, 2, axis=-1)
        x = nn.relu(x * (1.0 + gain) + shift)
        x = nn.InstanceNorm(name="i2")(nn.Conv(w["last"], (3, 3), name="c2")(x))
        return nn.Dense(3, name="head")(nn.relu(x).mean((1, 2)))

    return linen(forward, normal(2, 8, 8, 3), normal(2, 5))
