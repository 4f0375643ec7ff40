"""Language models and attention in plain JAX."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from architectures.declared import architecture, integers, normal, plain

STREAM = "embed:1 place:1 gain*:0 in*:0 out*:-1 up:0 down:-1 head:0"


def layer_norm(x, gain):
    x = x - x.mean(-1, keepdims=True)
    return x / jnp.sqrt(jnp.square(x).mean(-1, keepdims=True) + 1e-5) * gain


def rms_norm(x, gain):
    return x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + 1e-6) * gain


def causal(logits):
    seen = np.tri(logits.shape[-1], dtype=bool)
    return jax.nn.softmax(jnp.where(seen, logits, -1e30), -1)


def attend(q, k, v, scale):
    """Causal attention; batch, time, heads, size."""
    weights = causal(jnp.einsum("bqhd,bkhd->bhqk", q, k) * scale)
    return jnp.einsum("bhqk,bkhd->bqhd", weights, v)


def language_model(w, fused, qkv, qk="qk", v="v"):
    """GPT around a fused projection to queries, keys and values.

    Args:
        fused: the shape of its weight.
        qkv: from the projection to the three, by head.
        qk: the group of the sizes of queries and keys.
        v: the group of the sizes of values.
    """

    def forward(p, tokens):
        x = p["embed"][tokens] + p["place"]
        q, k, v = qkv(layer_norm(x, p["gain1"]), p)
        y = attend(q, k, v, w.full[qk] ** -0.5)
        x = x + y.reshape(*y.shape[:2], -1) @ p["out"]
        y = jax.nn.gelu(layer_norm(x, p["gain2"]) @ p["up"] + p["bias"])
        return layer_norm(x + y @ p["down"], p["gain3"]) @ p["head"]

    d, hidden = w["stream"], w["hidden"]
    shapes = {
        **{"embed": (9, d), "place": (5, d), "in": fused, "head": (d, 9)},
        **{"gain1": (d,), "gain2": (d,), "gain3": (d,)},
        **{"up": (d, hidden), "bias": (hidden,), "down": (hidden, d)},
        "out": (w["heads"] * w[v], d),
    }
    return plain(forward, shapes, integers(2, 5, below=9))


GPT = f"""
    stream 8  | {STREAM} | norm
    heads  4  | in:1 out:0
    qk     2  | in:1
    v      6  | in:1 out:0
    hidden 10 | up:1 bias:0 down:0
"""


@architecture("plain", GPT)
def gpt_split_qkv(w):
    heads, qk, v = w["heads"], w["qk"], w["v"]

    def qkv(x, p):
        at = np.cumsum([heads * qk, heads * qk])
        parts = jnp.split(x @ p["in"], at, axis=-1)
        sizes = (qk, qk, v)
        return [
            part.reshape(*x.shape[:2], heads, size)
            for part, size in zip(parts, sizes, strict=True)
        ]

    return language_model(w, (w["stream"], heads * (2 * qk + v)), qkv)


@architecture("plain", GPT)
def gpt_chunks_in_each_head(w):
    heads, qk, v = w["heads"], w["qk"], w["v"]

    def qkv(x, p):
        y = (x @ p["in"]).reshape(*x.shape[:2], heads, 2 * qk + v)
        return y[..., :qk], y[..., qk : 2 * qk], y[..., 2 * qk :]

    return language_model(w, (w["stream"], heads * (2 * qk + v)), qkv)


@architecture(
    "plain",
    """
    stream 8  | embed:1 place:1 gain*:0 in:1 out:1 up:0 down:1 head:0 | norm
    heads  4  | in:2 out:0
    size   6  | in:3 out:0
    hidden 10 | up:1 bias:0 down:0
    """,
)
def gpt_stacked_qkv(w):
    """Three of one shape in a stack, so that all three lose the same sizes."""

    def qkv(x, p):
        return jnp.einsum("btd,cdhk->cbthk", x, p["in"])

    return language_model(
        w, (3, w["stream"], w["heads"], w["size"]), qkv, "size", "size"
    )


def rotary(x, kept, full, interleaved):
    """Turns pairs by their position; the pairs that are left keep their frequencies.

    Args:
        kept: the pairs, by number among the full.
    """
    pairs = jnp.asarray(kept, jnp.float32)
    if interleaved and len(kept) == full:
        pairs = jnp.arange(full, dtype=jnp.float32)
    angles = jnp.arange(x.shape[1], dtype=jnp.float32)[:, None] * 10.0 ** (
        -pairs / full
    )
    cos, sin = jnp.cos(angles)[None, :, None], jnp.sin(angles)[None, :, None]
    if interleaved:
        a, b = x[..., ::2], x[..., 1::2]
        turned = jnp.stack([a * cos - b * sin, a * sin + b * cos], -1)
        return turned.reshape(x.shape)
    a, b = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], -1)


def llama(w, grouped, interleaved):
    """Grouped queries, rotary embeddings, a gated feed-forward block."""
    shared, each, pairs, v = w["shared"], w["each"], w["pairs"], w["v"]

    def turn(x):
        return rotary(x, w.kept["pairs"], w.full["pairs"], interleaved)

    def attention(p, x):
        q = jnp.einsum("btd,dk->btk", x, p["q"]).reshape(
            *x.shape[:2], shared * each, 2 * pairs
        )
        k = (x @ p["k"]).reshape(*x.shape[:2], shared, 2 * pairs)
        value = (x @ p["v"]).reshape(*x.shape[:2], shared, v)
        q, k, scale = turn(q), turn(k), (2 * w.full["pairs"]) ** -0.5
        if not grouped:
            k, value = jnp.repeat(k, each, 2), jnp.repeat(value, each, 2)
            y = attend(q, k, value, scale)
        else:
            q = q.reshape(*q.shape[:2], shared, each, 2 * pairs)
            weights = causal(jnp.einsum("bqgrd,bkgd->bgrqk", q, k) * scale)
            y = jnp.einsum("bgrqk,bkgd->bqgrd", weights, value)
        return y.reshape(*x.shape[:2], -1) @ p["o"]

    def forward(p, tokens):
        x = p["embed"][tokens]
        x = x + attention(p, rms_norm(x, p["gain1"]))
        gate, up = jnp.split(rms_norm(x, p["gain2"]) @ p["both"], 2, axis=-1)
        x = x + (jax.nn.silu(gate) * up) @ p["down"]
        return rms_norm(x, p["gain3"]) @ p["embed"].T

    d = w["stream"]
    shapes = {
        **{"embed": (9, d), "gain1": (d,), "gain2": (d,), "gain3": (d,)},
        **{"q": (d, shared * each * 2 * pairs), "k": (d, shared * 2 * pairs)},
        **{"v": (d, shared * v), "o": (shared * each * v, d)},
        **{"both": (d, 2 * w["hidden"]), "down": (w["hidden"], d)},
    }
    return plain(forward, shapes, integers(2, 5, below=9))


LLAMA = """
    stream 8  | embed:1 gain*:0 q:0 k:0 v:0 o:1 both:0 down:1 | norm
    shared 4  | q:1 k:1 v:1 o:0
    each   2  | q:1 o:0
    pairs  4  | q:1 k:1
    v      6  | v:1 o:0
    hidden 10 | both:1 down:0
"""


@architecture("plain", LLAMA)
def llama_repeated_keys(w):
    return llama(w, grouped=False, interleaved=False)


@architecture("plain", LLAMA)
def llama_grouped_interleaved(w):
    return llama(w, grouped=True, interleaved=True)


@architecture(
    "plain",
    """
    stream 8 | embed:1 gain:0 q:0 k:0 v:0 o:2 | norm
    heads  4 | q:1 o:0
    qk     6 | q:2 k:1
    v      4 | v:1 o:1
    """,
)
def multi_query(w):
    def forward(p, x):
        x = x @ p["embed"]
        y = rms_norm(x, p["gain"])
        q, k, v = jnp.einsum("btd,dhk->bthk", y, p["q"]), y @ p["k"], y @ p["v"]
        weights = causal(jnp.einsum("bqhd,bkd->bhqk", q, k) * w.full["qk"] ** -0.5)
        y = jnp.einsum("bhqk,bkd->bqhd", weights, v)
        return jnp.einsum("bqhd,hdo->bqo", y, p["o"]) + x

    def headed(p, x):
        return forward(p, x) @ p["embed"].T

    d, heads, qk, v = w["stream"], w["heads"], w["qk"], w["v"]
    shapes = {
        **{"embed": (4, d), "gain": (d,), "q": (d, heads, qk), "k": (d, qk)},
        **{"v": (d, v), "o": (heads, v, d)},
    }
    return plain(headed, shapes, normal(2, 5, 4))


@architecture(
    "plain",
    """
    heads  4 | q:1 k:1 v:1 o:0
    size   6 | q:2 k:2
    v      6 | v:2 o:1
    """,
)
def stock_attention(w):
    """`jax.nn.dot_product_attention`, with the scale given."""

    def forward(p, x):
        q, k, v = (jnp.einsum("btd,dhk->bthk", x, p[name]) for name in "qkv")
        scale = w.full["size"] ** -0.5
        y = jax.nn.dot_product_attention(q, k, v, scale=scale, is_causal=True)
        return jnp.einsum("bthk,hko->bto", y, p["o"])

    shapes = dict.fromkeys("qk", (5, w["heads"], w["size"]))
    shapes |= {"v": (5, w["heads"], w["v"]), "o": (w["heads"], w["v"], 5)}
    return plain(forward, shapes, normal(2, 6, 5))


@architecture(
    "plain",
    """
    stream 8  | embed:1 layers/*norm:1 layers/in:2 layers/out:-1 layers/up:1
              | layers/down:-1 head:0 | norm
    heads  4  | layers/in:3 layers/out:1
    size   2  | layers/in:4 layers/out:2
    hidden 10 | layers/up:2 layers/down:1
    layers 4  | layers/*:0
    """,
)
def stacked_gpt(w):
    """Weights of all layers in one array each, and a loop over them."""

    def step(x, p):
        q, k, v = jnp.einsum("btd,cdhk->cbthk", layer_norm(x, p["a_norm"]), p["in"])
        y = attend(q, k, v, w.full["size"] ** -0.5)
        x = x + jnp.einsum("bthk,hkd->btd", y, p["out"])
        y = jax.nn.relu(layer_norm(x, p["b_norm"]) @ p["up"]) ** 2
        return x + y @ p["down"], None

    def forward(p, tokens):
        return jax.lax.scan(step, p["embed"][tokens], p["layers"])[0] @ p["head"]

    n, d, heads, size = w["layers"], w["stream"], w["heads"], w["size"]
    layers = {
        **{"a_norm": (n, d), "b_norm": (n, d), "in": (n, 3, d, heads, size)},
        **{"out": (n, heads, size, d), "up": (n, d, w["hidden"])},
        "down": (n, w["hidden"], d),
    }
    shapes = {"embed": (9, d), "layers": layers, "head": (d, 9)}
    return plain(forward, shapes, integers(2, 5, below=9))


@architecture(
    "plain",
    """
    heads 4 | q:1 k:1 v:1 o:0
    size  6 | q:2 k:2 | features of queries and keys that are not zero at zero
    v     2 | v:2 o:1
    """,
)
def linear_attention(w):
    def forward(p, x):
        q, k, v = (jnp.einsum("btd,dhk->bthk", x, p[name]) for name in "qkv")
        q, k = jax.nn.elu(q) + 1, jax.nn.elu(k) + 1
        memory = jnp.einsum("bthk,bthv->bhkv", k, v)
        y = jnp.einsum("bthk,bhkv->bthv", q, memory)
        y = y / jnp.einsum("bthk,bhk->bth", q, k.sum(1))[..., None]
        return jnp.einsum("bthv,hvo->bto", y, p["o"])

    heads, size, v = w["heads"], w["size"], w["v"]
    shapes = dict.fromkeys("qk", (5, heads, size)) | {"v": (5, heads, v)}
    return plain(forward, shapes | {"o": (heads, v, 5)}, normal(2, 6, 5))


@architecture(
    "plain",
    """
    hidden 10 | up:1 bias:0 down:0
    """,
)
def fourier_mixing(w):
    """FNet: a Fourier transform over features, whose width cannot change."""

    def forward(p, x):
        x = x @ p["embed"]
        x = layer_norm(x + jnp.fft.fft2(x, axes=(1, 2)).real, p["gain"])
        x = x + jax.nn.gelu(x @ p["up"] + p["bias"]) @ p["down"]
        return x @ p["head"]

    hidden = w["hidden"]
    shapes = {"embed": (4, 6), "gain": (6,), "head": (6, 3)}
    shapes |= {"up": (6, hidden), "bias": (hidden,), "down": (hidden, 6)}
    return plain(forward, shapes, normal(2, 8, 4))
