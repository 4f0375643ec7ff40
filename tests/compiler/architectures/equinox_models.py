"""Networks in equinox, most of them with channels first."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from equinox import nn

from architectures.declared import architecture, filled, integers, normal

KEY = jax.random.key(0)


class Module(eqx.Module):
    """Layers by name, and a function of them; called on one example."""

    layers: dict[str, Any]
    forward: Callable[..., Any] = eqx.field(static=True)

    def __call__(self, *inputs):
        return self.forward(self.layers, *inputs)


def model(make, forward, *inputs):
    """An equinox model as a function of batches, with random numbers in it."""
    made = eqx.filter_eval_shape(lambda key: Module(make(key), forward), KEY)

    def apply(model, *xs):
        return jax.vmap(model)(*xs)

    return apply, filled(made), inputs


def scanned(cell, state, x):
    return jax.lax.scan(lambda s, x: (cell(x, s),) * 2, state, x)[1]


@architecture(
    "equinox",
    """
    width 8 | layers/0/weight:0 layers/0/bias:0 layers/1/weight:1
    """,
)
def mlp(w):
    def make(key):
        return {"mlp": nn.MLP(5, 3, w["width"], 1, jax.nn.softplus, key=key)}

    return model(make, lambda m, x: m["mlp"](x), normal(4, 5))


@architecture(
    "equinox",
    """
    first  6 | c1/*:0 slope:0 c2/weight:1
    second 4 | c2/*:0 d1/weight:1
    hidden 8 | d1/*:0 d2/weight:1
    """,
)
def convolutional(w):
    def make(key):
        return {
            "c1": nn.Conv2d(3, w["first"], 3, padding=1, key=key),
            "slope": jnp.zeros((w["first"], 1, 1)),
            "c2": nn.Conv2d(w["first"], w["second"], 3, stride=2, key=key),
            "pool": nn.MaxPool2d(2, 1),
            "d1": nn.Linear(4 * w["second"], w["hidden"], key=key),
            "d2": nn.Linear(w["hidden"], 3, key=key),
        }

    def forward(m, x):
        x = m["c1"](x)
        x = jnp.where(x >= 0, x, m["slope"] * x)
        x = m["pool"](jax.nn.gelu(m["c2"](x)))
        return m["d2"](jax.nn.relu(m["d1"](x.ravel())))

    return model(make, forward, normal(2, 3, 8, 8))


@architecture(
    "equinox",
    """
    stream 8  | embed/weight:1 l?/*:0 query_proj/weight:1 key_proj/weight:1
              | value_proj/weight:1 output_proj/*:0 f1/weight:1 f2/*:0
              | head/weight:1 | norm
    heads  4  | query_proj/*:0 key_proj/*:0 value_proj/*:0 output_proj/weight:1
    qk     2  | query_proj/*:0 key_proj/*:0
    v      6  | value_proj/*:0 output_proj/weight:1
    hidden 10 | f1/*:0 f2/weight:1
    """,
)
def transformer(w):
    def make(key):
        d = w["stream"]
        return {
            "embed": nn.Embedding(9, d, key=key),
            "attention": nn.MultiheadAttention(
                w["heads"],
                d,
                qk_size=w["qk"],
                vo_size=w["v"],
                use_query_bias=True,
                use_value_bias=True,
                use_output_bias=True,
                key=key,
            ),
            "l1": nn.LayerNorm(d),
            "l2": nn.LayerNorm(d),
            "f1": nn.Linear(d, w["hidden"], key=key),
            "f2": nn.Linear(w["hidden"], d, key=key),
            "head": nn.Linear(d, 9, key=key),
        }

    again = np.float32(np.sqrt(w["qk"] / w.full["qk"]))

    def forward(m, tokens):
        x = jax.vmap(m["embed"])(tokens)
        y = jax.vmap(m["l1"])(x)

        def rescaled(query, key, value):
            return query * again, key, value

        mask = jnp.tri(len(tokens), dtype=bool)
        x = x + m["attention"](y, y, y, mask, process_heads=rescaled)
        y = jax.vmap(m["f1"])(jax.vmap(m["l2"])(x))
        x = x + jax.vmap(m["f2"])(jax.nn.relu(y))
        return jax.vmap(m["head"])(x)

    return model(make, forward, integers(2, 5, below=9))


@architecture(
    "equinox",
    """
    first  6 | lstm/weight_*:0 lstm/bias:0 lstm/weight_hh:1 gru/weight_ih:1
    second 8 | gru/*:0 gru/weight_hh:1 head/weight:1
    """,
)
def recurrent(w):
    def make(key):
        return {
            "lstm": nn.LSTMCell(4, w["first"], key=key),
            "gru": nn.GRUCell(w["first"], w["second"], key=key),
            "head": nn.Linear(w["second"], 3, key=key),
        }

    def forward(m, x):
        zeros = jnp.zeros(w["first"]), jnp.zeros(w["first"])

        def step(state, x):
            state = m["lstm"](x, state)
            return state, state[0]

        x = jax.lax.scan(step, zeros, x)[1]
        x = scanned(m["gru"], jnp.zeros(w["second"]), x)
        return m["head"](x[-1])

    return model(make, forward, normal(2, 5, 4))


@architecture(
    "equinox",
    """
    skip 6 | down/*:0 each/weight:0 each/bias:0 mid/weight:1 out/weight:1
    mid  8 | mid/*:0 up/weight:1
    up   4 | up/*:0 out/weight:1
    """,
)
def unet(w):
    def make(key):
        return {
            "down": nn.Conv2d(3, w["skip"], 3, padding=1, key=key),
            "each": nn.Conv2d(
                w["skip"], w["skip"], 3, padding=1, groups=w["skip"], key=key
            ),
            "mid": nn.Conv2d(w["skip"], w["mid"], 2, 2, key=key),
            "up": nn.ConvTranspose2d(w["mid"], w["up"], 2, 2, key=key),
            "out": nn.Conv2d(w["up"] + w["skip"], 2, 1, key=key),
        }

    def forward(m, x):
        skip = jax.nn.relu(m["each"](m["down"](x)))
        x = m["up"](jax.nn.silu(m["mid"](skip)))
        return m["out"](jnp.concatenate([x, skip]))

    return model(make, forward, normal(2, 3, 8, 8))


@architecture(
    "equinox",
    """
    hidden 8 | body1/*:0 body2/weight:1
    code   6 | body2/*:0 left/weight:1 right/weight:1
    """,
)
def siamese(w):
    """One body used for both inputs, compared by a bilinear form."""

    def make(key):
        return {
            "body1": nn.Linear(5, w["hidden"], key=key),
            "body2": nn.Linear(w["hidden"], w["code"], key=key),
            "left": nn.Linear(w["code"], 3, key=key),
            "right": nn.Linear(w["code"], 3, key=key),
        }

    def body(m, x):
        return m["body2"](jnp.tanh(m["body1"](x)))

    def forward(m, x, y):
        x, y = body(m, x), body(m, y)
        return m["left"](jnp.abs(x - y)) + m["right"](x * y), jnp.vdot(x, y)

    return model(make, forward, normal(4, 5), normal(4, 5, seed=1))


@architecture(
    "equinox",
    """
    groups 2 | stem/*:0 norm/*:0 head/weight:1
    within 4 | stem/*:0 norm/*:0 head/weight:1 | norm
    """,
)
def group_norm(w):
    features = w["groups"] * w["within"]

    def make(key):
        return {
            "stem": nn.Conv1d(3, features, 3, padding=1, key=key),
            "norm": nn.GroupNorm(w["groups"], features),
            "head": nn.Linear(features, 3, key=key),
        }

    def forward(m, x):
        return m["head"](jax.nn.relu(m["norm"](m["stem"](x))).max(-1))

    return model(make, forward, normal(2, 3, 8))


@architecture(
    "equinox",
    """
    stream 8 | patch/weight:0 patch/bias:0 blocks/l/*:1 blocks/f1/weight:2 blocks/f2/*:1
             | head/weight:1 | norm
    hidden 6 | blocks/f1/*:1 blocks/f2/weight:2
    layers 4 | blocks/*:0
    """,
)
def stacked_blocks(w):
    """Blocks stacked by filter_vmap, scanned and rematerialised."""

    def block(key):
        return {
            "l": nn.RMSNorm(w["stream"]),
            "f1": nn.Linear(w["stream"], w["hidden"], key=key),
            "f2": nn.Linear(w["hidden"], w["stream"], key=key),
        }

    def make(key):
        return {
            "patch": nn.Linear(4, w["stream"], key=key),
            "blocks": eqx.filter_vmap(block)(jax.random.split(key, w["layers"])),
            "head": nn.Linear(w["stream"], 3, key=key),
        }

    def forward(m, x):
        arrays, static = eqx.partition(m["blocks"], eqx.is_array)

        @jax.checkpoint
        def step(x, layer):
            layer = eqx.combine(layer, static)
            y = layer["f1"](layer["l"](x))
            return x + layer["f2"](jax.nn.silu(y)), None

        return m["head"](jax.lax.scan(step, m["patch"](x), arrays)[0])

    return model(make, forward, normal(4, 4))
