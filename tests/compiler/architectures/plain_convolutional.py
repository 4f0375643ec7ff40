"""Convolutions and images in plain JAX, layouts of all kinds."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from architectures.declared import architecture, normal, plain


def conv(x, kernel, numbers=("NCHW", "OIHW", "NCHW"), stride=1, **options):
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), "SAME", dimension_numbers=numbers, **options
    )


@architecture(
    "plain",
    """
    stream 6 | stem:0 a:1 c:0 head:0
    inner  4 | a:0 gain_positive:0 b:1
    middle 8 | b:0 slope:0 c:1
    """,
)
def bottleneck_channels_first(w):
    def forward(p, x):
        x = conv(x, p["stem"], stride=2)
        y = conv(x, p["a"]) * p["gain_positive"][None, :, None, None]
        y = conv(jax.nn.relu(y), p["b"])
        y = jnp.where(y > 0, y, p["slope"].reshape(1, -1, 1, 1) * y)
        x = jax.nn.relu(x + conv(y, p["c"]))
        return x.mean((2, 3)) @ p["head"]

    stream, inner, middle = w["stream"], w["inner"], w["middle"]
    shapes = {
        **{"stem": (stream, 3, 3, 3), "a": (inner, stream, 1, 1), "head": (stream, 3)},
        **{"gain_positive": (inner,), "b": (middle, inner, 3, 3), "slope": (middle,)},
        "c": (stream, middle, 1, 1),
    }
    return plain(forward, shapes, normal(2, 3, 8, 8))


@architecture(
    "plain",
    """
    groups 2 | stem:3 b:3 out:0
    taken  4 | stem:3 b:2
    given  6 | b:3 out:0
    """,
)
def grouped_dilated(w):
    """Groups, holes and strides at once, to a layout of its own."""
    groups = w["groups"]

    def forward(p, x):
        x = jax.nn.relu(conv(x, p["stem"], ("NHWC", "HWIO", "NHWC")))
        x = conv(
            x,
            p["b"],
            ("NHWC", "HWIO", "HNWC"),
            stride=2,
            rhs_dilation=(2, 1),
            feature_group_count=groups,
        )
        return jnp.einsum("hnwc,co->nhwo", jax.nn.relu(x), p["out"])

    taken, given = w["taken"], w["given"]
    shapes = {
        "stem": (3, 3, 3, groups * taken),
        "b": (3, 3, taken, groups * given),
        "out": (groups * given, 2),
    }
    return plain(forward, shapes, normal(2, 8, 8, 3))


@architecture(
    "plain",
    """
    look   6 | l1:3 l2:2
    stem   4 | stem:3 out:2
    """,
)
def spatial_transformer(w):
    """Where to look is computed, and pixels are gathered from there."""

    def forward(p, x):
        numbers = "NHWC", "HWIO", "NHWC"
        look = conv(jax.nn.relu(conv(x, p["l1"], numbers)), p["l2"], numbers)
        y = jax.nn.relu(conv(x, p["stem"], numbers))
        moved = jax.vmap(sampled)(y, 4.0 + 3.0 * jnp.tanh(look))
        return conv(moved, p["out"], numbers)

    def sampled(image, at):
        low = jnp.floor(at).astype(jnp.int32)
        part = at - low.astype(jnp.float32)
        total = 0.0
        for i in (0, 1):
            for j in (0, 1):
                picked = image[
                    jnp.clip(low[..., 0] + i, 0, 7), jnp.clip(low[..., 1] + j, 0, 7)
                ]
                near = jnp.abs(1 - i - part[..., 0]) * jnp.abs(1 - j - part[..., 1])
                total = total + near[..., None] * picked
        return total

    look, stem = w["look"], w["stem"]
    shapes = {"l1": (3, 3, 3, look), "l2": (3, 3, look, 2)}
    return plain(
        forward,
        shapes | {"stem": (3, 3, 3, stem), "out": (1, 1, stem, 2)},
        normal(2, 8, 8, 3),
    )


@architecture(
    "plain",
    """
    stem   6 | w1:1 each:1 w2:0
    hidden 8 | w2:1 out:0
    """,
)
def einsum_convolution(w):
    """Patches cut by hand and contracted by einsum; a depthwise one by sums."""

    def patches(x, size):
        n, height, width, c = x.shape
        x = x.reshape(n, height // size, size, width // size, size, c)
        return x.transpose(0, 1, 3, 2, 4, 5).reshape(
            n, height // size, width // size, size * size * c
        )

    def forward(p, x):
        x = jax.nn.relu(jnp.einsum("nhwi,io->nhwo", patches(x, 2), p["w1"]))
        padded = jnp.pad(x, ((0, 0), (1, 0), (0, 0), (0, 0)))
        x = padded[:, 1:] * p["each"][0] + padded[:, :-1] * p["each"][1]
        x = jax.nn.relu(jnp.einsum("nhwi,io->nhwo", patches(x, 2), p["w2"]))
        return x.sum((1, 2)) @ p["out"]

    stem, hidden = w["stem"], w["hidden"]
    shapes = {"w1": (12, stem), "each": (2, stem), "w2": (4 * stem, hidden)}
    return plain(forward, shapes | {"out": (hidden, 3)}, normal(2, 8, 8, 3))


@architecture(
    "plain",
    """
    stem   6 | stem:3 s1:0 s2:1 spatial:2 out:2
    square 4 | s1:1 s2:0
    """,
)
def attention_of_channels_and_places(w):
    """CBAM-like: gates by channel from mean and maximum, gates by place."""

    def forward(p, x):
        numbers = "NHWC", "HWIO", "NHWC"
        x = jax.nn.relu(conv(x, p["stem"], numbers))
        gate = sum(
            jax.nn.relu(pooled @ p["s1"]) @ p["s2"]
            for pooled in (x.mean((1, 2)), x.max((1, 2)))
        )
        x = x * jax.nn.sigmoid(gate)[:, None, None]
        x = x * jax.nn.sigmoid(conv(x, p["spatial"], numbers))
        return conv(jax.nn.relu(x), p["out"], numbers, stride=2)

    stem, square = w["stem"], w["square"]
    shapes = {
        **{"stem": (3, 3, 3, stem), "s1": (stem, square), "s2": (square, stem)},
        **{"spatial": (3, 3, stem, 1), "out": (3, 3, stem, 2)},
    }
    return plain(forward, shapes, normal(2, 8, 8, 3))


@architecture(
    "plain",
    """
    first  4 | c1:0 c2:1
    second 6 | c2:0 out:1
    """,
)
def volumes(w):
    """Three spatial axes, pooled by windows."""

    def volume(x, kernel):
        numbers = "NCDHW", "OIDHW", "NCDHW"
        return jax.lax.conv_general_dilated(
            x, kernel, (1, 1, 1), "SAME", dimension_numbers=numbers
        )

    def forward(p, x):
        x = jax.nn.relu(volume(x, p["c1"]))
        window = (1, 1, 2, 2, 2)
        x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, window, window, "VALID")
        return volume(jax.nn.relu(volume(x, p["c2"])), p["out"])

    first, second = w["first"], w["second"]
    shapes = {"c1": (first, 2, 3, 3, 3), "c2": (second, first, 3, 3, 3)}
    return plain(forward, shapes | {"out": (2, second, 1, 1, 1)}, normal(1, 2, 4, 4, 4))
