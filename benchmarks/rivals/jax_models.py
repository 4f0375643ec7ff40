"""The micro-models of `prune_rivals.py` in flax, as their users would write them."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

MODELS = {}
relu = nn.relu


class Model(nn.Module):
    """A function that makes its layers as it goes."""

    forward: Callable[..., jax.Array]
    share: int = 1

    @nn.compact
    def __call__(self, x):
        return self.forward(self, x)

    def weight(self, name, *shape):
        """A parameter without a layer."""
        return self.param(name, nn.initializers.normal(), shape)


def model(name):
    """Enters a function under the name of its case."""

    def enter(function):
        MODELS[name] = Model(function)
        return function

    return enter


def conv(features, size=3, **options):
    return nn.Conv(features, (size, size), **options)


@model("convolutions and batch norm")
def conv_norm_conv(self, x):
    return conv(5)(relu(nn.BatchNorm(use_running_average=True)(conv(16)(x))))


@model("residual connection")
def residual(self, x):
    x = conv(16)(x)
    return conv(5)(relu(x + conv(16)(relu(conv(16)(x)))))


@model("concatenation of branches")
def concatenated(self, x):
    a = relu(conv(16)(x))
    parts = [a, relu(conv(8, 1)(x)), relu(conv(12)(a))]
    return conv(5)(jnp.concatenate(parts, -1))


@model("squeeze and excite")
def squeeze_excite(self, x):
    x = relu(conv(16)(x))
    gate = conv(16, 1)(relu(conv(4, 1)(x.mean((1, 2), keepdims=True))))
    return conv(5)(x * jax.nn.sigmoid(gate))


@model("SwiGLU of two projections")
def swiglu(self, x):
    return nn.Dense(16)(nn.silu(nn.Dense(32)(x)) * nn.Dense(32)(x))


@model("depthwise convolution")
def depthwise(self, x):
    return conv(5)(relu(conv(16, feature_group_count=16)(relu(conv(16)(x)))))


@model("grouped convolution")
def grouped(self, x):
    return conv(5)(relu(conv(16, feature_group_count=4)(relu(conv(16)(x)))))


@model("flattened image into a dense layer")
def flattened(self, x):
    return nn.Dense(5)(relu(conv(16)(x)).reshape(len(x), -1))


@model("transposed convolution")
def transposed(self, x):
    return conv(5)(relu(nn.ConvTranspose(12, (2, 2), (2, 2))(relu(conv(16)(x)))))


@model("channels last through dense layers")
def channels_last(self, x):
    x = conv(16)(x)
    return conv(5)(relu(x + nn.Dense(16)(nn.gelu(nn.Dense(32)(x)))))


def attend(q, k, v):
    """Attention over (batch, tokens, heads, size)."""
    weights = jax.nn.softmax(jnp.einsum("bthd,bshd->bhts", q, k) * 0.5)
    return jnp.einsum("bhts,bshd->bthd", weights, v).reshape(*q.shape[:2], -1)


def projected(x, heads=4):
    """A projection, viewed as heads."""
    return nn.Dense(8 * heads)(x).reshape(*x.shape[:2], heads, 8)


@model("attention, heads by a view")
def attention(self, x):
    return nn.Dense(16)(attend(projected(x), projected(x), projected(x)))


@model("attention from one fused projection")
def fused(self, x):
    qkv = nn.Dense(96)(x).reshape(*x.shape[:2], 3, 4, 8)
    return nn.Dense(16)(attend(*(qkv[:, :, i] for i in range(3))))


@model("a layer used twice")
def reused(self, x):
    b = nn.Dense(32)
    return nn.Dense(5)(relu(b(relu(b(relu(nn.Dense(32)(x)))))))


@model("windows over rolled tokens")
def windows(self, x):
    y = jnp.roll(nn.Dense(32)(x), 1, 1).reshape(len(x) * 3, 2, -1)
    y = relu(nn.Dense(24)(relu(y - y.mean(1, keepdims=True))))
    return nn.Dense(5)(jnp.roll(y.reshape(len(x), 6, -1), -1, 1))


@model("group norm")
def group_norm(self, x):
    groups, size = 4 // self.share, 4 // self.share
    return conv(5)(relu(nn.GroupNorm(groups)(conv(groups * size)(x))))


@model("layer norm before a residual branch")
def layer_norm(self, x):
    width = 32 // self.share
    x = nn.Dense(width)(x)
    return nn.Dense(5)(x + relu(nn.Dense(width)(nn.LayerNorm()(x))))


@model("channel shuffle")
def shuffled(self, x):
    x = relu(conv(16)(x))
    y = x.reshape(*x.shape[:3], 2, 8).swapaxes(3, 4).reshape(x.shape)
    return conv(5)(relu(conv(16)(y)))


@model("GLU by chunk of one projection")
def chunked(self, x):
    gate, up = jnp.split(nn.Dense(64)(x), 2, -1)
    return nn.Dense(5)(nn.silu(gate) * up)


@model("pixel shuffle")
def pixel_shuffled(self, x):
    x = conv(32)(relu(conv(16)(x)))
    b, h, w, _ = x.shape
    x = x.reshape(b, h, w, 8, 2, 2).transpose(0, 1, 4, 2, 5, 3)
    return conv(5)(relu(x.reshape(b, 2 * h, 2 * w, 8)))


@model("depthwise convolution with multiplier 2")
def multiplied(self, x):
    return conv(5)(relu(conv(32, feature_group_count=16)(relu(conv(16)(x)))))


@model("dense layer viewed as an image")
def viewed(self, x):
    y = relu(nn.Dense(32 * 16)(x[:, 0])).reshape(-1, 4, 4, 32)
    return conv(5)(relu(conv(12)(y)))


@model("grouped-query attention by expand")
def grouped_query(self, x):
    x = nn.Dense(24)(x)
    q, k, v = projected(x), projected(x, 2), projected(x, 2)
    shape = (*x.shape[:2], 2, 2, 8)
    k, v = (jnp.broadcast_to(y[:, :, :, None], shape).reshape(q.shape) for y in (k, v))
    return nn.Dense(5)(x + nn.Dense(24)(attend(q, k, v)))


@model("rotary positions, halves rotated")
def rotary(self, x):
    x = nn.Dense(24)(x)
    q, k, v = projected(x), projected(x), projected(x)
    angle = jnp.arange(x.shape[1])[:, None] / 100 ** (jnp.arange(4) / 4)
    cos, sin = (jnp.tile(f(angle), 2)[:, None] for f in (jnp.cos, jnp.sin))
    q, k = (
        y * cos + jnp.concatenate([-y[..., 4:], y[..., :4]], -1) * sin for y in (q, k)
    )
    return nn.Dense(5)(x + nn.Dense(24)(attend(q, k, v)))


@model("einsum over weights")
def einsum(self, x):
    w, u = self.weight("w", 16, 4, 8), self.weight("u", 4, 8, 16)
    hidden = relu(jnp.einsum("btd,dhe->bthe", x, w))
    return nn.Dense(16)(jnp.einsum("bthe,hed->btd", hidden, u))


@model("one matrix used as it is and transposed")
def tied(self, x):
    w = self.weight("w", 24, 32)
    y = relu(relu(nn.Dense(24)(x)) @ w)
    return nn.Dense(5)(relu(nn.Dense(24)(y @ w.T)))


@model("embedding tied to the logits")
def tied_embedding(self, tokens):
    table = nn.Embed(11, 24)
    y = table(tokens)
    return table.attend(y + relu(nn.Dense(24)(y)))


@model("slices of channels")
def sliced(self, x):
    y = relu(conv(32)(x))
    return conv(5)(jnp.concatenate([relu(conv(16)(y[..., :16])), y[..., 16:]], -1))


@model("mean and maximum over channels")
def over_channels(self, x):
    x = relu(conv(16 // self.share)(x))
    both = [x.mean(-1, keepdims=True), x.max(-1, keepdims=True)]
    return conv(5)(x * jax.nn.sigmoid(conv(1)(jnp.concatenate(both, -1))))


@model("product of features with features")
def features(self, x):
    a, b = nn.Dense(32)(x), nn.Dense(32)(x)
    return nn.Dense(5)(relu(a @ b.swapaxes(1, 2)))


@model("LSTM between dense layers")
def lstm(self, x):
    return nn.Dense(5)(nn.RNN(nn.OptimizedLSTMCell(32))(relu(nn.Dense(24)(x))))


@model("split at written sizes")
def split(self, x):
    one, two = jnp.split(relu(conv(24)(x)), [8], -1)
    return conv(5)(relu(conv(16)(one) + conv(16)(two)))


@model("patches merged by strided slices")
def merging(self, x):
    x = relu(conv(16)(x))
    parts = [x[:, i::2, j::2] for j in (0, 1) for i in (0, 1)]
    return nn.Dense(5)(relu(nn.Dense(32)(jnp.concatenate(parts, -1))))


@model("weight norm")
def weight_norm(self, x):
    y = relu(nn.WeightNorm(nn.Dense(32 // self.share))(x))
    return nn.Dense(5)(relu(nn.Dense(24 // self.share)(y)))


@model("low rank as a product of two weights")
def low_rank(self, x):
    y = relu(nn.Dense(32)(x))
    w = self.weight("v", 32, 4) @ self.weight("u", 4, 32)
    return nn.Dense(5)(relu(y @ w))
