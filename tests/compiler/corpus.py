"""More functions, for the engine as a whole: each kind of thing people trace.

With those of `zoo` over fifty. Each builder returns a pure function, its variables and
its inputs.
"""

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax import lax
from zoo import ZOO, disturbed, linen, normal


class DepthwiseNet(nn.Module):
    """Separable convolutions, pooling, squeeze and excite."""

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(8, (3, 3), padding="SAME")(x)
        x = nn.Conv(8, (3, 3), feature_group_count=8, use_bias=False)(x)
        x = nn.relu6(nn.BatchNorm(use_running_average=True)(x))
        gate = nn.sigmoid(nn.Dense(8)(x.mean((1, 2), keepdims=True)))
        x = nn.avg_pool(x * gate, (2, 2), (2, 2))
        return nn.Dense(4)(nn.GroupNorm(4)(x).mean((1, 2)))


class Transformer(nn.Module):
    """Causal, pre-norm, with tied output."""

    @nn.compact
    def __call__(self, tokens):
        embed = nn.Embed(20, 16)
        x = embed(tokens)
        mask = nn.make_causal_mask(tokens)
        for _ in range(2):
            x = x + nn.MultiHeadDotProductAttention(4)(nn.LayerNorm()(x), mask=mask)
            x = x + nn.Dense(16)(nn.gelu(nn.Dense(32)(nn.RMSNorm()(x))))
        return embed.attend(x)


def linen_dropout():
    model = nn.Sequential([nn.Dense(8), nn.Dropout(0.5, deterministic=False)])
    x = normal(4, 6)
    variables = model.init(
        {"params": jax.random.key(0), "dropout": jax.random.key(1)}, x
    )

    def forward(v, x, key):
        return model.apply(v, x, rngs={"dropout": key})

    return forward, variables, (x, jax.random.key(2))


def linen_batch_statistics():
    model = nn.Sequential([nn.Dense(8), nn.BatchNorm(use_running_average=False)])
    x = normal(4, 6)
    variables = disturbed(model.init(jax.random.key(0), x))
    return (
        (lambda v, x: model.apply(v, x, mutable=["batch_stats"])),
        variables,
        (x,),
    )


def linen_train_step():
    model, optimizer = DepthwiseNet(), optax.adamw(1e-2)
    x, y = normal(4, 8, 8, 3), jnp.array([0, 1, 2, 3])
    variables = disturbed(model.init(jax.random.key(0), x))
    params = variables["params"]
    state = {"params": params, "moments": optimizer.init(params)}

    def step(state, x, y):
        def loss(params):
            stats = variables["batch_stats"]
            logits = model.apply({"params": params, "batch_stats": stats}, x)
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, y)
            return losses.mean()

        value, gradient = jax.value_and_grad(loss)(state["params"])
        updates, moments = optimizer.update(gradient, state["moments"], state["params"])
        params = optax.apply_updates(state["params"], updates)
        return {"params": params, "moments": moments}, value

    return step, state, (x, y)


def nnx_net():
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.conv = nnx.Conv(3, 8, (3, 3), rngs=rngs)
            self.norm = nnx.BatchNorm(8, use_running_average=True, rngs=rngs)
            self.head = nnx.Linear(8, 4, rngs=rngs)

        def __call__(self, x):
            return self.head(nnx.relu(self.norm(self.conv(x))).mean((1, 2)))

    definition, state = nnx.split(Net(nnx.Rngs(0)))
    x = normal(2, 8, 8, 3)
    return (lambda s, x: nnx.merge(definition, s)(x)), disturbed(state), (x,)


def nnx_attention():
    layer = nnx.MultiHeadAttention(
        num_heads=2, in_features=8, decode=False, rngs=nnx.Rngs(0)
    )
    definition, state = nnx.split(layer)
    x = normal(2, 5, 8)
    return (lambda s, x: nnx.merge(definition, s)(x)), disturbed(state), (x,)


def nnx_gru():
    net = nnx.RNN(nnx.GRUCell(4, 6, rngs=nnx.Rngs(0)))
    definition, state = nnx.split(net)
    run = lambda s, x: nnx.merge(definition, s)(x)  # noqa: E731
    return run, state, (normal(2, 5, 4),)


def equinox_module(layer, *inputs):
    return (lambda m, *x: jax.vmap(m)(*x)), disturbed(layer), inputs


def equinox_gru():
    cell = disturbed(eqx.nn.GRUCell(4, 6, key=jax.random.key(0)))

    def forward(cell, x):
        step = lambda h, xi: (cell(xi, h), None)  # noqa: E731
        return jax.vmap(lambda x: lax.scan(step, jnp.zeros(6), x)[0])(x)

    return forward, cell, (normal(2, 5, 4),)


def equinox_scanned():
    """Layers stacked by a vmapped constructor, scanned over their arrays."""
    make = lambda key: eqx.nn.Linear(6, 6, key=key)  # noqa: E731
    layers = eqx.filter_vmap(make)(jax.random.split(jax.random.key(0), 3))
    arrays, rest = eqx.partition(layers, eqx.is_array)

    def forward(arrays, x):
        def step(h, layer):
            return jnp.tanh(jax.vmap(eqx.combine(layer, rest))(h)), None

        return lax.scan(step, x, arrays)[0]

    return forward, disturbed(arrays), (normal(2, 6),)


def haiku_transformed(build, *inputs):
    model = hk.without_apply_rng(hk.transform(build))
    return model.apply, disturbed(model.init(jax.random.key(0), *inputs)), inputs


def haiku_lstm(x):
    core = hk.LSTM(6)
    return hk.dynamic_unroll(core, x, core.initial_state(x.shape[1]))[0]


def haiku_attention(x):
    start = hk.initializers.VarianceScaling(1.0)
    return hk.MultiHeadAttention(2, 4, w_init=start, model_size=8)(x, x, x)


def plain_rotary(v, x):
    q = x @ v["q"]
    first, second = jnp.split(q, 2, axis=-1)
    angle = jnp.arange(x.shape[0], dtype=x.dtype)[:, None] * v["freq"]
    turned = [first * jnp.cos(angle) - second * jnp.sin(angle)]
    turned += [second * jnp.cos(angle) + first * jnp.sin(angle)]
    return jnp.concatenate(turned, -1)


def plain_attention_cache(v, cache, token, position):
    """One step of decoding: the cache is updated in place at a traced position."""
    new = token @ v["k"]
    cache = lax.dynamic_update_slice(cache, new[None], (position, 0))
    scores = jnp.where(jnp.arange(cache.shape[0]) <= position, cache @ token, -1e9)
    return jax.nn.softmax(scores) @ cache, cache


def plain_newton(v, x):
    """A while loop whose length depends on values."""

    def step(carry):
        i, y = carry
        return i + 1, y - (y**3 - x * v["scale"]) / (3 * y**2 + 1.0)

    return lax.while_loop(lambda c: c[0] < 20, step, (0, jnp.ones_like(x)))[1]


def plain_switch(v, x, which):
    branches = [lambda x: x @ v["w"], lambda x: jnp.sin(x) @ v["w"], jnp.zeros_like]
    return lax.switch(which, branches, x)


@jax.custom_jvp
def halved(x):
    return x * 0.5


halved.defjvp(lambda p, t: (halved(p[0]), 3.0 * t[0]))  # its derivative is its own


def plain_checkpointed(v, x):
    block = jax.checkpoint(lambda w, h: jnp.tanh(h @ w) * 1.0)
    for w in v["layers"]:
        x = block(w, x)
    return x


def plain_per_example_gradients(v, x, y):
    def loss(w, x, y):
        return (jnp.tanh(x @ w) - y) ** 2

    return jax.vmap(jax.grad(loss), (None, 0, 0))(v["w"], x, y)


def plain_hessian(v, x):
    return jax.hessian(lambda w: jnp.sum(jnp.cos(x * w) ** 2))(v["w"])


def plain_jvp(v, x):
    return jax.jvp(lambda w: jnp.tanh(x @ w), (v["w"],), (v["t"],))


def plain_random(v, key):
    first, second = jax.random.split(key)
    noise = jax.random.normal(first, (4, 3)) * v["scale"]
    order = jax.random.permutation(second, 4)
    return noise[order], jax.random.bernoulli(second, 0.3, (4,))


def plain_top_k(v, x):
    scores = x @ v["w"]
    best, places = lax.top_k(scores, 2)
    return jnp.sort(scores, axis=-1), best, places, jnp.argsort(scores, axis=0)


def plain_fft(v, x):
    return jnp.fft.irfft(jnp.fft.rfft(x) * v["filter"], n=x.shape[-1])


def plain_integers(v, codes):
    hashed = (codes * jnp.uint32(2654435761)) >> 7
    table = v["table"].at[hashed % 8].add(1)
    return table, jnp.bitwise_xor(codes, v["salt"]), lax.population_count(codes)


def plain_linear_algebra(v, x):
    gram = x.T @ x + jnp.eye(x.shape[1]) * v["ridge"]
    solved = jnp.linalg.solve(gram, x.T @ v["y"])
    return solved, jnp.linalg.cholesky(gram), jnp.linalg.norm(x)


def plain_mixture(v, x):
    gates = jax.nn.softmax(x @ v["gate"])
    expert = jnp.argmax(gates, -1)
    hot = jax.nn.one_hot(expert, 3)
    outputs = jnp.einsum("bd,edf->bef", x, v["experts"])
    return jnp.einsum("bef,be->bf", outputs, hot * gates)


def plain_segments(v, x, segment):
    summed = jax.ops.segment_sum(x * v["scale"], segment, num_segments=3)
    return summed / jnp.maximum(jax.ops.segment_max(x, segment, 3), 1.0)


def plain_associative(v, x):
    return lax.associative_scan(lambda a, b: a * v["decay"] + b, x)


def plain_cumulative(v, x):
    return jnp.cumsum(x * v["w"], 0), lax.cummax(x), jnp.cumprod(x * 0.1, 1)


def plain_bfloat16(v, x):
    low = x.astype(jnp.bfloat16) @ v["w"].astype(jnp.bfloat16)
    return jax.nn.softmax(low.astype(jnp.float32))


def plain_convolutions(v, x):
    numbers = ("NHWC", "HWIO", "NHWC")
    y = lax.conv_general_dilated(
        x, v["k"], (2, 2), "SAME", rhs_dilation=(2, 2), dimension_numbers=numbers
    )
    return lax.conv_transpose(y * v["s"], v["k"], (2, 2), "SAME", transpose_kernel=True)


def plain_pool_and_pad(v, x):
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="reflect")
    pooled = lax.reduce_window(
        x, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID"
    )
    return jnp.flip(pooled, 1) * v["s"]


def plain_nested_scan(v, x):
    def outer(h, w):
        inner = lambda c, s: (jnp.tanh(c * s), c)  # noqa: E731
        last, seen = lax.scan(inner, h @ w, v["gains"])
        return last, seen.sum(0)

    return lax.scan(outer, x, v["w"], reverse=True, unroll=2)


def plain_callback(v, x):
    shape = jax.ShapeDtypeStruct(x.shape, x.dtype)
    return (
        jax.pure_callback(lambda x: x * 2, shape, x, vmap_method="sequential") * v["s"]
    )


def plain_clustering(v, x):
    """One step of k-means: not a network at all."""
    distance = ((x[:, None] - v["centroids"]) ** 2).sum(-1)
    nearest = jax.nn.one_hot(distance.argmin(1), v["centroids"].shape[0])
    counts = nearest.sum(0)[:, None]
    return jnp.where(counts > 0, nearest.T @ x / jnp.maximum(counts, 1), v["centroids"])


TOKENS = jnp.arange(10).reshape(2, 5)
IMAGES = normal(2, 8, 8, 3)

CORPUS = ZOO | {
    "linen depthwise": lambda: linen(DepthwiseNet(), IMAGES),
    "linen transformer": lambda: linen(Transformer(), TOKENS),
    "linen dropout": linen_dropout,
    "linen statistics": linen_batch_statistics,
    "linen train step": linen_train_step,
    "nnx net": nnx_net,
    "nnx attention": nnx_attention,
    "nnx gru": nnx_gru,
    "equinox mlp": lambda: equinox_module(
        eqx.nn.MLP(4, 2, 8, 2, key=jax.random.key(0)), normal(3, 4)
    ),
    "equinox conv": lambda: equinox_module(
        eqx.nn.ConvTranspose2d(3, 4, 3, 2, key=jax.random.key(0)), normal(2, 3, 5, 5)
    ),
    "equinox norm": lambda: equinox_module(eqx.nn.LayerNorm(4), normal(3, 4)),
    "equinox gru": equinox_gru,
    "equinox scanned": equinox_scanned,
    "haiku lstm": lambda: haiku_transformed(haiku_lstm, normal(4, 2, 3)),
    "haiku resnet": lambda: haiku_transformed(
        lambda x: hk.Linear(3)(hk.nets.MLP([8, 4])(hk.Conv2D(4, 3)(x).mean((1, 2)))),
        IMAGES,
    ),
    "haiku attention": lambda: haiku_transformed(
        haiku_attention,
        normal(2, 5, 8),
    ),
    "rotary": lambda: (
        plain_rotary,
        {"q": normal(6, 8), "freq": normal(4)},
        (normal(5, 6),),
    ),
    "cache": lambda: (
        plain_attention_cache,
        {"k": normal(4, 4)},
        (normal(6, 4), normal(4, seed=1), 2),
    ),
    "newton": lambda: (plain_newton, {"scale": 1.3}, (jnp.abs(normal(4)) + 0.5,)),
    "switch": lambda: (plain_switch, {"w": normal(4, 4)}, (normal(3, 4), 1)),
    "custom jvp": lambda: (
        lambda v, x: halved(x @ v["w"]),
        {"w": normal(4, 4)},
        (normal(3, 4),),
    ),
    "checkpointed": lambda: (
        plain_checkpointed,
        {"layers": [normal(4, 4, seed=i) for i in range(2)]},
        (normal(3, 4),),
    ),
    "per example": lambda: (
        plain_per_example_gradients,
        {"w": normal(4)},
        (normal(3, 4), normal(3)),
    ),
    "hessian": lambda: (plain_hessian, {"w": normal(3)}, (normal(3),)),
    "jvp": lambda: (plain_jvp, {"w": normal(4, 2), "t": normal(4, 2)}, (normal(3, 4),)),
    "random": lambda: (plain_random, {"scale": 0.3}, (jax.random.key(3),)),
    "top k": lambda: (plain_top_k, {"w": normal(4, 6)}, (normal(3, 4),)),
    "fft": lambda: (plain_fft, {"filter": normal(5)}, (normal(3, 8),)),
    "integers": lambda: (
        plain_integers,
        {"table": jnp.zeros(8, jnp.int32), "salt": jnp.uint32(77)},
        (jnp.arange(6, dtype=jnp.uint32),),
    ),
    "linear algebra": lambda: (
        plain_linear_algebra,
        {"ridge": 0.5, "y": normal(6)},
        (normal(6, 3),),
    ),
    "mixture": lambda: (
        plain_mixture,
        {"gate": normal(4, 3), "experts": normal(3, 4, 5)},
        (normal(6, 4),),
    ),
    "segments": lambda: (
        plain_segments,
        {"scale": 2.0},
        (normal(5, 2), jnp.array([0, 0, 1, 2, 2])),
    ),
    "associative": lambda: (plain_associative, {"decay": 0.9}, (normal(7),)),
    "cumulative": lambda: (plain_cumulative, {"w": normal(3)}, (normal(4, 3),)),
    "bfloat16": lambda: (plain_bfloat16, {"w": normal(4, 3)}, (normal(2, 4),)),
    "convolutions": lambda: (
        plain_convolutions,
        {"k": normal(3, 3, 3, 4), "s": normal(1, 1, 1, 4)},
        (IMAGES,),
    ),
    "pool and pad": lambda: (plain_pool_and_pad, {"s": normal(3)}, (IMAGES,)),
    "nested scan": lambda: (
        plain_nested_scan,
        {"w": normal(3, 4, 4), "gains": normal(2)},
        (normal(2, 4),),
    ),
    "callback": lambda: (plain_callback, {"s": 3.0}, (normal(3),)),
    "clustering": lambda: (
        plain_clustering,
        {"centroids": normal(3, 2)},
        (normal(9, 2),),
    ),
}
