"""Residual and separable convolutional networks in flax linen."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from architectures.declared import Weight, architecture, linen
from architectures.linen_convolutional import conv, head, image, norm

RESIDUAL = """
    stream  6  | stem/kernel:3 n0/*:0 a1/kernel:2 b1/kernel:3 nb1/*:0 a2/kernel:2
               | p2/kernel:2
    inner   8  | a1/kernel:3 na1/*:0 b1/kernel:2
    inner2  4  | a2/kernel:3 na2/*:0 b2/kernel:2
    stream2 10 | b2/kernel:3 nb2/*:0 p2/kernel:3 np2/*:0 head/kernel:0
"""


def residual(w, train):
    def step(features, name, strides=1):
        size = 1 if name[0] == "p" else 3
        return conv(features, name, size, strides=strides, use_bias=False)

    def batch_norm(name):
        return nn.BatchNorm(use_running_average=not train, name=name)

    def forward(x):
        x = nn.relu(batch_norm("n0")(step(w["stream"], "stem")(x)))
        y = nn.relu(batch_norm("na1")(step(w["inner"], "a1")(x)))
        y = batch_norm("nb1")(step(w["stream"], "b1")(y))
        x = nn.relu(x + y)
        y = nn.relu(batch_norm("na2")(step(w["inner2"], "a2", 2)(x)))
        y = batch_norm("nb2")(step(w["stream2"], "b2")(y))
        x = nn.relu(y + batch_norm("np2")(step(w["stream2"], "p2", 2)(x)))
        return head(x)

    return forward


@architecture("linen", RESIDUAL)
def residual_v1(w):
    return linen(residual(w, train=False), image())


@architecture("linen", RESIDUAL)
def residual_in_training(w):
    return linen(residual(w, train=True), image(), mutable=["batch_stats"])


@architecture(
    "linen",
    """
    stream  6 | stem/*:-1 n1/*:0 a/kernel:2 b/*:-1 n3/*:0 head/kernel:0
    padding 4 | b/*:-1 n3/*:0 head/kernel:0
    inner   8 | a/*:-1 n2/*:0 b/kernel:2
    """,
)
def residual_v2_padded(w):
    def forward(x):
        x = conv(w["stream"], "stem")(x)
        y = conv(w["inner"], "a", strides=2)(nn.relu(norm("n1")(x)))
        y = conv(w["stream"] + w["padding"], "b")(nn.relu(norm("n2")(y)))
        x = nn.avg_pool(x, (2, 2), (2, 2))
        x = jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, w["padding"])))
        return head(nn.relu(norm("n3")(x + y)))

    return linen(forward, image())


@architecture(
    "linen",
    """
    groups  4 | stem/*:-1 n1/*:0 a/kernel:2 b/*:-1 head/kernel:0
    within  2 | stem/*:-1 n1/*:0 a/kernel:2 b/*:-1 head/kernel:0 | norm
    groups2 2 | a/*:-1 n2/*:0 b/kernel:2
    within2 4 | a/*:-1 n2/*:0 b/kernel:2 | norm
    """,
)
def residual_group_norm(w):
    outer, inner = w["groups"] * w["within"], w["groups2"] * w["within2"]

    def forward(x):
        x = conv(outer, "stem")(x)
        y = nn.silu(nn.GroupNorm(w["groups"], name="n1")(x))
        y = nn.GroupNorm(w["groups2"], name="n2")(conv(inner, "a")(y))
        return head(nn.relu(x + conv(outer, "b")(nn.silu(y))))

    return linen(forward, image())


@architecture(
    "linen",
    """
    stem   6 | stem/*:-1 n1/*:0 d1/kernel:2 n2/*:0 d2/kernel:2 n3/*:0 head/kernel:0
    first  4 | d1/*:-1 n2/*:0 d2/kernel:2 n3/*:0 head/kernel:0
    second 4 | d2/*:-1 n3/*:0 head/kernel:0
    """,
)
def densenet(w):
    def forward(x):
        x = conv(w["stem"], "stem")(x)
        y = conv(w["first"], "d1")(nn.relu(norm("n1")(x)))
        x = jnp.concatenate([x, y], -1)
        y = conv(w["second"], "d2")(nn.relu(norm("n2")(x)))
        return head(nn.relu(norm("n3")(jnp.concatenate([x, y], -1))))

    return linen(forward, image())


@architecture(
    "linen",
    """
    stream 6  | stem/*:-1 e/kernel:2 p/*:-1 np/*:0 head/kernel:0
    hidden 10 | e/*:-1 ne/*:0 d/kernel:3 d/bias:0 nd/*:0 p/kernel:2
    """,
)
def mobilenet_v2(w):
    def forward(x):
        x = conv(w["stream"], "stem", strides=2)(x)
        y = nn.relu6(norm("ne")(conv(w["hidden"], "e", 1)(x)))
        y = conv(w["hidden"], "d", feature_group_count=w["hidden"])(y)
        y = norm("np")(conv(w["stream"], "p", 1)(nn.relu6(norm("nd")(y))))
        return head(x + y)

    return linen(forward, image())


@architecture(
    "linen",
    """
    stream  6 | stem/*:-1 e/kernel:2 p/*:-1 np/*:0 head/kernel:0
    hidden  8 | e/*:-1 ne/*:0 d/kernel:3 d/bias:0 nd/*:0 s1/kernel:2 s2/*:-1 p/kernel:2
    squeeze 4 | s1/*:-1 s2/kernel:2
    """,
)
def mobilenet_v3(w):
    def forward(x):
        x = nn.hard_swish(conv(w["stream"], "stem", strides=2)(x))
        y = nn.hard_swish(norm("ne")(conv(w["hidden"], "e", 1)(x)))
        y = norm("nd")(conv(w["hidden"], "d", feature_group_count=w["hidden"])(y))
        s = nn.relu(conv(w["squeeze"], "s1", 1)(y.mean((1, 2), keepdims=True)))
        y = nn.hard_swish(y * nn.hard_sigmoid(conv(w["hidden"], "s2", 1)(s)))
        return head(x + norm("np")(conv(w["stream"], "p", 1)(y)))

    return linen(forward, image())


@architecture(
    "linen",
    """
    hidden     6 | c1/*:-1 d/kernel:3 d/bias:0 n/*:0 c2/kernel:2
    multiplier 2 | d/kernel:3 d/bias:0 n/*:0 c2/kernel:2
    last       4 | c2/*:-1 head/kernel:0
    """,
)
def depthwise_multiplier(w):
    wide = w["hidden"] * w["multiplier"]

    def forward(x):
        x = nn.relu(conv(w["hidden"], "c1")(x))
        x = conv(wide, "d", feature_group_count=w["hidden"])(x)
        return head(nn.relu(conv(w["last"], "c2", 1)(nn.relu(norm("n")(x)))))

    return linen(forward, image())


@architecture(
    "linen",
    """
    stream 6 | stem/*:-1 a/kernel:2 c/*:-1 head/kernel:0
    groups 4 | a/*:-1 na/*:0 b/kernel:3 b/bias:0 nb/*:0 c/kernel:2
    taken  2 | a/*:-1 na/*:0 b/kernel:2
    given  4 | b/kernel:3 b/bias:0 nb/*:0 c/kernel:2
    """,
)
def resnext(w):
    groups = w["groups"]

    def forward(x):
        x = nn.relu(conv(w["stream"], "stem")(x))
        y = nn.relu(norm("na")(conv(groups * w["taken"], "a", 1)(x)))
        y = conv(groups * w["given"], "b", feature_group_count=groups)(y)
        return head(nn.relu(x + conv(w["stream"], "c", 1)(nn.relu(norm("nb")(y)))))

    return linen(forward, image())


@architecture(
    "linen",
    """
    stream 6 | stem/*:-1 n0/*:0 d/*:-1 n1/*:0 b/*:-1 layer_scale/value:0
           | a/kernel:0 head/kernel:0 | norm
    hidden 8 | a/*:-1 grn/*:0 b/kernel:0 | norm
    """,
)
def convnext_v2(w):
    def forward(x):
        x = nn.LayerNorm(name="n0")(conv(w["stream"], "stem", 2, strides=2)(x))
        y = conv(w["stream"], "d", feature_group_count=w["stream"])(x)
        y = nn.gelu(nn.Dense(w["hidden"], name="a")(nn.LayerNorm(name="n1")(y)))
        size = jnp.sqrt(jnp.square(y).sum((1, 2), keepdims=True) + 1e-6)
        gain = Weight((w["hidden"],), name="grn")()
        y = y + gain[None, None, None] * y * size / (
            size.mean(-1, keepdims=True) + 1e-6
        )
        y = nn.Dense(w["stream"], name="b")(y)
        return head(
            x + y * Weight((w["stream"],), name="layer_scale")()[None, None, None]
        )

    return linen(forward, image())


@architecture(
    "linen",
    """
    groups 4 | stem/*:-1 g1/kernel:3 g1/bias:0 n1/*:0 d/kernel:3 d/bias:0 n2/*:0
           | g2/kernel:2 g2/kernel:3 g2/bias:0 n3/*:0 head/kernel:0
    stream 2 | stem/*:-1 g1/kernel:2 g2/kernel:3 g2/bias:0 n3/*:0 head/kernel:0
    inner  2 | g1/kernel:3 g1/bias:0 n1/*:0 d/kernel:3 d/bias:0 n2/*:0 g2/kernel:2
    """,
)
def shufflenet_v1(w):
    groups = w["groups"]
    stream, hidden = groups * w["stream"], groups * groups * w["inner"]

    def forward(x):
        x = conv(stream, "stem")(x)
        y = conv(hidden, "g1", 1, feature_group_count=groups)(x)
        y = nn.relu(norm("n1")(y))
        y = y.reshape(*y.shape[:3], groups, groups * w["inner"])
        y = y.swapaxes(-1, -2).reshape(*y.shape[:3], hidden)
        y = norm("n2")(conv(hidden, "d", feature_group_count=hidden)(y))
        y = norm("n3")(conv(stream, "g2", 1, feature_group_count=groups)(y))
        return head(nn.relu(x + y))

    return linen(forward, image())


@architecture(
    "linen",
    """
    left  6 | stem/*:-1 b/*:-1 nb/*:0 head/kernel:0
    right 6 | stem/*:-1 a/kernel:2
    inner 4 | a/*:-1 na/*:0 b/kernel:2
    """,
)
def shufflenet_v2(w):
    def forward(x):
        x = nn.relu(conv(w["left"] + w["right"], "stem")(x))
        left, right = jnp.split(x, [w["left"]], axis=-1)
        right = nn.relu(norm("na")(conv(w["inner"], "a", 1)(right)))
        right = nn.relu(norm("nb")(conv(w["left"], "b")(right)))
        x = jnp.concatenate([left, right], -1)
        x = x.reshape(*x.shape[:3], 2, w["left"]).swapaxes(-1, -2)
        return head(jnp.tanh(x.reshape(*x.shape[:3], 2 * w["left"])))

    return linen(forward, image())


@architecture(
    "linen",
    """
    stem     6 | stem/*:-1 q/kernel:2 deep/kernel:2
    features 4 | q/*:-1 head/kernel:0
    upscaled 4 | deep/*:-1 out/kernel:2
    """,
)
def pixel_shuffle(w):
    def forward(x):
        x = nn.relu(conv(w["stem"], "stem", strides=2)(x))
        side = head(nn.relu(conv(w["features"], "q")(x)))
        x = conv(4 * w["upscaled"], "deep")(x)
        n, height, width, _ = x.shape
        x = x.reshape(n, height, width, 2, 2, w["upscaled"]).transpose(0, 1, 3, 2, 4, 5)
        x = nn.relu(x.reshape(n, 2 * height, 2 * width, w["upscaled"]))
        return conv(3, "out")(x), jax.nn.softmax(side)

    return linen(forward, image())
