"""Attention and token mixing in flax linen."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from architectures.declared import Weight, architecture, integers, linen, normal


def attention(w, name, dropout=0.0, **names):
    """Attention whose scale stays that of the full head size.

    Args:
        names: of the groups of heads, of query-key sizes and of value sizes.
    """
    names = {"heads": "heads", "qk": "qk", "v": "v"} | names
    heads, size, full = w[names["heads"]], w[names["qk"]], w.full[names["qk"]]
    assert w[names["v"]] == size, "linen has one size for both"

    def attend(query, key, value, **options):
        again = np.float32(np.sqrt(size / full))
        return nn.dot_product_attention(query * again, key, value, **options)

    def layer(x, *others, **options):
        return nn.MultiHeadDotProductAttention(
            heads,
            out_features=x.shape[-1],
            qkv_features=heads * size,
            dropout_rate=dropout,
            attention_fn=attend,
            name=name,
        )(x, *others, **options)

    return layer


def feed_forward(w, x, name="", hidden="hidden"):
    y = nn.gelu(nn.Dense(w[hidden], name=f"{name}f1")(x))
    return nn.Dense(x.shape[-1], name=f"{name}f2")(y)


BLOCK = """
    heads  4  | query/*:-2 key/*:-2 value/*:-2 out/kernel:0
    qk     2  | query/*:-1 key/*:-1
    v      2  | value/*:-1 out/kernel:1
    hidden 10 | f1/*:-1 f2/kernel:0
"""


def block(w, x, mask=None):
    y = nn.LayerNorm(name="l1")(x)
    x = x + attention(w, "attention")(y, mask=mask)
    return x + feed_forward(w, nn.LayerNorm(name="l2")(x))


STREAM = """
    l*/*:0 query/kernel:0 key/kernel:0 value/kernel:0 out/*:-1 f1/kernel:0 f2/*:-1
"""


@architecture(
    "linen",
    f"stream 8 | patch/*:-1 cls/value:-1 place/value:-1 head/kernel:0 {STREAM.strip()}"
    f" | norm {BLOCK}",
)
def vit(w):
    def forward(x):
        x = nn.Conv(w["stream"], (4, 4), (4, 4), name="patch")(x)
        x = x.reshape(x.shape[0], -1, w["stream"])
        first = Weight((1, 1, w["stream"]), name="cls")()
        x = jnp.concatenate([jnp.tile(first, (x.shape[0], 1, 1)), x], 1)
        x = block(w, x + Weight((1, 5, w["stream"]), name="place")())
        return nn.Dense(3, name="head")(nn.LayerNorm(name="l3")(x)[:, 0])

    return linen(forward, normal(2, 8, 8, 3))


@architecture(
    "linen",
    f"stream 8 | embed/embedding:1 place/embedding:1 {STREAM.strip()} | norm {BLOCK}",
)
def tied_language_model(w):
    def forward(tokens):
        embed = nn.Embed(11, w["stream"], name="embed")
        place = nn.Embed(6, w["stream"], name="place")
        x = embed(tokens) * np.float32(np.sqrt(w.full["stream"]))
        x = x + place(jnp.arange(tokens.shape[1]))[None]
        x = block(w, x, nn.make_causal_mask(tokens))
        return embed.attend(nn.LayerNorm(name="l3")(x))

    return linen(forward, integers(2, 6, below=11))


@architecture(
    "linen",
    """
    stream  8  | embed/embedding:1 r*/scale:0 query/kernel:0 key/kernel:0
               | value/kernel:0 out/kernel:2 *f1/kernel:0 *f2/kernel:1 | norm
    heads1  4  | bias/embedding:1 encode/[!o]*/kernel:1 encode/out/kernel:0
    heads2  4  | decode/[!o]*/kernel:1 decode/out/kernel:0
    heads3  2  | cross/[!o]*/kernel:1 cross/out/kernel:0
    qk1     2  | encode/query/kernel:2 encode/key/kernel:2
    v1      2  | encode/value/kernel:2 encode/out/kernel:1
    qk2     2  | decode/query/kernel:2 decode/key/kernel:2
    v2      2  | decode/value/kernel:2 decode/out/kernel:1
    qk3     4  | cross/query/kernel:2 cross/key/kernel:2
    v3      4  | cross/value/kernel:2 cross/out/kernel:1
    hidden1 10 | ef1/kernel:1 ef2/kernel:0
    hidden2 6  | df1/kernel:1 df2/kernel:0
    """,
)
def t5(w):
    buckets = np.minimum(np.abs(np.arange(5)[:, None] - np.arange(5)), 3)

    def attend(name, number, x, y, bias=None):
        heads, qk, v = (w[f"{n}{number}"] for n in ("heads", "qk", "v"))
        q, k, value = (
            nn.DenseGeneral((heads, size), use_bias=False, name=f"{name}/{layer}")(
                source
            )
            for layer, size, source in (
                ("query", qk, x),
                ("key", qk, y),
                ("value", v, y),
            )
        )
        logits = jnp.einsum("bqhd,bkhd->bhqk", q, k)
        weights = jax.nn.softmax(logits if bias is None else logits + bias, -1)
        mixed = jnp.einsum("bhqk,bkhd->bqhd", weights, value)
        return nn.DenseGeneral(
            w["stream"], axis=(-2, -1), use_bias=False, name=f"{name}/out"
        )(mixed)

    def mlp(name, hidden, x):
        x = nn.relu(nn.Dense(w[hidden], use_bias=False, name=f"{name}f1")(x))
        return nn.Dense(w["stream"], use_bias=False, name=f"{name}f2")(x)

    def forward(source, target):
        embed = nn.Embed(11, w["stream"], name="embed")
        bias = nn.Embed(4, w["heads1"], name="bias")(buckets).transpose(2, 0, 1)[None]
        norms = (nn.RMSNorm(name=f"r{i}") for i in range(9))
        x = embed(source)
        y = next(norms)(x)
        x = x + attend("encode", 1, y, y, bias)
        x = x + mlp("e", "hidden1", next(norms)(x))
        memory = next(norms)(x)
        x = embed(target)
        y = next(norms)(x)
        causal = jnp.where(np.tri(4, dtype=bool), 0.0, -1e9)[None, None]
        x = x + attend("decode", 2, y, y, causal)
        x = x + attend("cross", 3, next(norms)(x), memory)
        x = x + mlp("d", "hidden2", next(norms)(x))
        return embed.attend(next(norms)(x))

    return linen(forward, integers(2, 5, below=11), integers(2, 4, below=11, seed=1))


@architecture(
    "linen",
    """
    stream 8  | embed/kernel:1 layers/l*/*:1 layers/*/query/kernel:1
              | layers/*/key/kernel:1 layers/*/value/kernel:1 layers/*/out/*:-1
              | layers/f1/kernel:1 layers/f2/*:-1 head/kernel:0 | norm
    heads  4  | query/*:-2 key/*:-2 value/*:-2 out/kernel:1
    qk     2  | query/*:-1 key/*:-1
    v      2  | value/*:-1 out/kernel:2
    hidden 10 | f1/*:-1 f2/kernel:1
    layers 4  | layers/*:0
    """,
)
def scanned_transformer(w):
    class Block(nn.Module):
        @nn.compact
        def __call__(self, x, _):
            return block(w, x), None

    def forward(x):
        x = nn.Dense(w["stream"], use_bias=False, name="embed")(x)
        blocks = nn.scan(
            nn.remat(Block),
            variable_axes={"params": 0},
            split_rngs={"params": True},
            length=w["layers"],
        )
        return nn.Dense(3, name="head")(blocks(name="layers")(x, None)[0])

    return linen(forward, normal(2, 5, 4))


@architecture(
    "linen",
    """
    stream   8 | patch/*:-1 l*/*:0 cf1/kernel:0 cf2/*:-1 head/kernel:0 | norm
    tokens   6 | tf1/*:-1 tf2/kernel:0
    channels 10 | cf1/*:-1 cf2/kernel:0
    """,
)
def mlp_mixer(w):
    def forward(x):
        x = nn.Conv(w["stream"], (4, 4), (4, 4), name="patch")(x)
        x = x.reshape(x.shape[0], -1, w["stream"])
        y = nn.LayerNorm(name="l1")(x).swapaxes(1, 2)
        x = x + feed_forward(w, y, "t", "tokens").swapaxes(1, 2)
        x = x + feed_forward(w, nn.LayerNorm(name="l2")(x), "c", "channels")
        return nn.Dense(3, name="head")(nn.LayerNorm(name="l3")(x).mean(1))

    return linen(forward, normal(2, 8, 8, 3))


@architecture(
    "linen",
    f"""
    stream 8  | patch/*:-1 merge_norm/*:0 merge/kernel:0 {STREAM.strip()} | norm
    heads  4  | place/embedding:1 query/*:-2 key/*:-2 value/*:-2 out/kernel:0
    qk     2  | query/*:-1 key/*:-1
    v      2  | value/*:-1 out/kernel:1
    hidden 10 | f1/*:-1 f2/kernel:0
    merged 6  | merge/kernel:1 head/kernel:0
    """,
)
def swin(w):
    at = np.stack(np.meshgrid(np.arange(2), np.arange(2), indexing="ij"), -1)
    at = at.reshape(4, 2)
    between = ((at[:, None] - at[None] + 1) * np.array([3, 1])).sum(-1)

    def windows(x):
        n, height, width, c = x.shape
        x = x.reshape(n, height // 2, 2, width // 2, 2, c)
        return x.transpose(0, 1, 3, 2, 4, 5).reshape(-1, 4, c)

    def image(x, shape):
        n, height, width, c = shape
        x = x.reshape(n, height // 2, width // 2, 2, 2, c)
        return x.transpose(0, 1, 3, 2, 4, 5).reshape(shape)

    def forward(x):
        x = nn.Conv(w["stream"], (2, 2), (2, 2), name="patch")(x)
        y = jnp.roll(nn.LayerNorm(name="l1")(x), (-1, -1), (1, 2))
        y = windows(y)
        place = nn.Embed(9, w["heads"], name="place")(between).transpose(2, 0, 1)[None]
        q, k, v = (
            nn.DenseGeneral((w["heads"], w[size]), name=name)(y)
            for name, size in (("query", "qk"), ("key", "qk"), ("value", "v"))
        )
        logits = jnp.einsum("bqhd,bkhd->bhqk", q * w.full["qk"] ** -0.5, k) + place
        y = jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(logits, -1), v)
        y = nn.DenseGeneral(w["stream"], axis=(-2, -1), name="out")(y)
        x = x + jnp.roll(image(y, x.shape), (1, 1), (1, 2))
        x = x + feed_forward(w, nn.LayerNorm(name="l2")(x))
        parts = [x[:, i::2, j::2] for j in (0, 1) for i in (0, 1)]
        x = nn.LayerNorm(name="merge_norm")(jnp.concatenate(parts, -1))
        x = nn.Dense(w["merged"], use_bias=False, name="merge")(x)
        return nn.Dense(3, name="head")(x.mean((1, 2)))

    return linen(forward, normal(2, 8, 8, 3))


@architecture(
    "linen",
    f"""
    latent 8 | latents/value:1 query/kernel:0 out/*:-1 l?/*:0 f1/kernel:0 f2/*:-1
             | head/kernel:0 | norm
    count  4 | latents/value:0 | mean over them
    input  6 | embed/*:-1 key/kernel:0 value/kernel:0
    {BLOCK}
    """,
)
def perceiver(w):
    def forward(x):
        x = nn.tanh(nn.Dense(w["input"], name="embed")(x))
        latents = Weight((w["count"], w["latent"]), name="latents")()
        latents = jnp.broadcast_to(latents[None], (x.shape[0], *latents.shape))
        z = latents + attention(w, "cross")(nn.LayerNorm(name="l1")(latents), x, x)
        z = z + feed_forward(w, nn.LayerNorm(name="l2")(z))
        return nn.Dense(3, name="head")(z.mean(1))

    return linen(forward, normal(2, 7, 4))


@architecture(
    "linen",
    """
    stream 8 | embed/*:-1 self/query/kernel:0 key/kernel:0 value/kernel:0 self/out/*:-1
             | l*/*:0 f1/kernel:0 f2/*:-1 | norm
    pool   6 | seed/value:1 pool/query/kernel:0 pool/out/*:-1 pf1/kernel:0 pf2/*:-1
             | head/kernel:0
    heads  4  | self/query/*:-2 self/key/*:-2 self/value/*:-2 self/out/kernel:0
    qk     2  | self/query/*:-1 self/key/*:-1
    v      2  | self/value/*:-1 self/out/kernel:1
    heads2 2  | pool/query/*:-2 pool/key/*:-2 pool/value/*:-2 pool/out/kernel:0
    qk2    4  | pool/query/*:-1 pool/key/*:-1
    v2     4  | pool/value/*:-1 pool/out/kernel:1
    hidden 10 | f1/*:-1 f2/kernel:0
    pooled 6  | pf1/*:-1 pf2/kernel:0
    """,
)
def set_transformer(w):
    def forward(x):
        x = nn.Dense(w["stream"], name="embed")(x)
        x = nn.LayerNorm(name="l1")(x + attention(w, "self")(x))
        x = nn.LayerNorm(name="l2")(x + feed_forward(w, x))
        seed = Weight((1, w["pool"]), name="seed")()[None]
        seed = jnp.repeat(seed, x.shape[0], 0)
        pool = attention(w, "pool", heads="heads2", qk="qk2", v="v2")
        y = seed + pool(seed, x)
        return nn.Dense(3, name="head")((y + feed_forward(w, y, "p", "pooled"))[:, 0])

    return linen(forward, normal(2, 5, 4))
