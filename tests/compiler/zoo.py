"""Functions of four frameworks, none written for the compiler.

Each builder returns a pure function, its variables and its inputs. Weights are random
and nowhere zero or one, so that a rewrite that drops one cannot pass unseen.
"""

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np


def disturbed(tree, seed=7):
    """Moves every floating leaf off its initial value."""
    leaves, structure = jax.tree.flatten(tree)
    random = np.random.default_rng(seed)

    def move(leaf):
        if not hasattr(leaf, "dtype") or not jnp.issubdtype(leaf.dtype, jnp.floating):
            return leaf
        noise = random.uniform(0.1, 0.4, np.shape(leaf))
        return leaf + jnp.asarray(noise, leaf.dtype)

    return structure.unflatten([move(leaf) for leaf in leaves])


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def linen(module, *inputs, **init):
    variables = disturbed(module.init(jax.random.key(0), *inputs, **init))
    return module.apply, variables, inputs


class LinenConvNet(nn.Module):
    """Batch norm after strided, transposed and grouped convolutions."""

    @nn.compact
    def __call__(self, x):
        for features in (8, 16):
            x = nn.Conv(features, (3, 3), strides=2)(x)
            x = nn.relu(nn.BatchNorm(use_running_average=True)(x))
        x = nn.ConvTranspose(8, (3, 3), strides=(2, 2), use_bias=False)(x)
        x = nn.gelu(nn.BatchNorm(use_running_average=True)(x))
        x = nn.Conv(8, (3, 3), feature_group_count=4)(x)
        x = nn.BatchNorm(use_running_average=True, axis=-1)(x)
        x = nn.max_pool(x, (2, 2), (2, 2))
        return nn.Dense(10)(x.reshape(x.shape[0], -1))


class LinenResidual(nn.Module):
    @nn.compact
    def __call__(self, x):
        y = nn.Conv(8, (3, 3), use_bias=False)(x)
        y = nn.relu(nn.BatchNorm(use_running_average=True)(y))
        y = nn.Conv(3, (3, 3), use_bias=False)(y)
        return nn.relu(nn.BatchNorm(use_running_average=True)(y) + x)


class LinenBlock(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        y = nn.gelu(nn.WeightNorm(nn.Dense(32))(nn.LayerNorm()(x)))
        return x + nn.Dense(16)(y), None


class LinenScanned(nn.Module):
    """Stacked weights, scanned and rematerialised."""

    @nn.compact
    def __call__(self, x):
        blocks = nn.scan(
            nn.remat(LinenBlock),
            variable_axes={"params": 0},
            split_rngs={"params": True},
            length=3,
        )
        return blocks()(x, None)[0]


class EquinoxNet(eqx.Module):
    conv: eqx.nn.Conv2d
    mlp: eqx.nn.MLP
    scale: jax.Array

    def __init__(self, key):
        first, second = jax.random.split(key)
        self.conv = eqx.nn.Conv2d(3, 8, 3, key=first)
        self.mlp = eqx.nn.MLP(8, 4, 16, 2, key=second)
        self.scale = jnp.full((8, 1, 1), 2.0)

    def __call__(self, x):
        x = jax.nn.relu(self.conv(x) * self.scale + 1.0)
        return self.mlp(x.mean((1, 2)))


def equinox_net():
    model = disturbed(EquinoxNet(jax.random.key(0)))
    return (lambda m, x: jax.vmap(m)(x)), model, (normal(4, 3, 8, 8),)


def equinox_attention():
    layer = eqx.nn.MultiheadAttention(2, 8, key=jax.random.key(0))
    return (
        (lambda m, x: jax.vmap(lambda s: m(s, s, s))(x)),
        disturbed(layer),
        (normal(2, 5, 8),),
    )


def haiku_batch_norm():
    def forward(x, training=False):
        x = hk.BatchNorm(True, True, 0.9)(hk.Conv2D(8, 3)(x), is_training=training)
        return hk.Linear(3)(hk.Flatten()(jax.nn.relu(x)))

    model = hk.without_apply_rng(hk.transform_with_state(forward))
    x = normal(4, 8, 8, 3)
    variables = disturbed(model.init(jax.random.key(0), x, True))
    return (lambda v, x: model.apply(v[0], v[1], x)[0]), variables, (x,)


def haiku_gru():
    def forward(x):
        core = hk.GRU(12)
        return hk.dynamic_unroll(core, x, core.initial_state(x.shape[1]))[0]

    model = hk.without_apply_rng(hk.transform(forward))
    x = normal(5, 2, 6)
    return model.apply, disturbed(model.init(jax.random.key(0), x)), (x,)


def plain_dense_stack():
    def forward(v, x):
        for layer in v:
            x = jnp.tanh((x @ layer["w"]) * layer["s"] / 2.0 + layer["b"])
        return x

    layers = [
        {"w": normal(8, 8, seed=i), "s": normal(1, 8, seed=9), "b": normal(1, 8)}
        for i in range(3)
    ]
    return forward, layers, (normal(4, 8),)


def plain_transposed_weights():
    def forward(v, x):
        return jnp.einsum("bi,oi->bo", x, v["w"] * v["g"]) @ v["u"].T * 3.0

    weights = {"w": normal(6, 8), "g": normal(6, 1, seed=1), "u": normal(5, 6, seed=2)}
    return forward, weights, (normal(4, 8),)


def plain_tied_embedding():
    def forward(v, tokens):
        return v["e"][tokens] @ v["e"].T * 0.5

    return forward, {"e": normal(50, 16)}, (jnp.arange(6),)


def plain_low_rank():
    factors = {"a": normal(64, 2), "b": normal(2, 64, seed=1)}
    return (lambda v, x: x @ (v["a"] @ v["b"])), factors, (normal(4, 64),)


def plain_while():
    def forward(v, x):
        kernel = v["w"]

        def step(carry):
            return carry[0] + 1, jnp.tanh(carry[1] @ (kernel * jnp.exp(v["g"])))

        return jax.lax.while_loop(lambda c: c[0] < 3, step, (0, x))[1]

    return forward, {"w": normal(8, 8), "g": normal(1, 8)}, (normal(4, 8),)


def plain_cond():
    def forward(v, x):
        small = lambda x: x @ jnp.exp(v["w"])  # noqa: E731
        large = lambda x: jnp.tanh(x @ jnp.exp(v["w"]))  # noqa: E731
        return jax.lax.cond(x.sum() > 0, large, small, x)

    return forward, {"w": normal(8, 8)}, (normal(4, 8),)


def plain_experts():
    def forward(v, x):
        return jax.vmap(lambda w, s, x: (x @ w) * s)(v["w"], v["s"], x)

    weights = {"w": normal(5, 8, 8), "s": normal(5, 1, 8)}
    return forward, weights, (normal(5, 4, 8),)


def plain_gradient():
    def forward(v, x):
        loss = lambda v: jnp.mean(jnp.tanh(x @ v["w"] * v["s"]))  # noqa: E731
        return jax.grad(loss)(v)

    return forward, {"w": normal(8, 8), "s": normal(1, 8)}, (normal(4, 8),)


def plain_custom_derivatives():
    @jax.custom_vjp
    def product(x, w):
        return x @ (w * 2.0)

    product.defvjp(
        lambda x, w: (x @ (w * 2.0), (x, w)),
        lambda r, g: (7.0 * (g @ r[1].T), r[0].T @ g),
    )
    return (
        (lambda v, x: jax.nn.silu(product(x, v["w"]))),
        {"w": normal(8, 8)},
        (normal(4, 8),),
    )


ZOO = {
    "linen conv net": lambda: linen(LinenConvNet(), normal(4, 16, 16, 3)),
    "linen residual": lambda: linen(LinenResidual(), normal(4, 8, 8, 3)),
    "linen attention": lambda: linen(
        nn.MultiHeadDotProductAttention(num_heads=4), normal(2, 8, 16)
    ),
    "linen lstm": lambda: linen(nn.RNN(nn.OptimizedLSTMCell(16)), normal(2, 8, 16)),
    "linen gru": lambda: linen(nn.RNN(nn.GRUCell(16)), normal(2, 8, 16)),
    "linen weight norm": lambda: linen(nn.WeightNorm(nn.Dense(16)), normal(2, 8)),
    "linen scanned": lambda: linen(LinenScanned(), normal(2, 8, 16)),
    "equinox net": equinox_net,
    "equinox attention": equinox_attention,
    "haiku batch norm": haiku_batch_norm,
    "haiku gru": haiku_gru,
    "plain dense stack": plain_dense_stack,
    "plain transposed": plain_transposed_weights,
    "plain tied embedding": plain_tied_embedding,
    "plain low rank": plain_low_rank,
    "plain while": plain_while,
    "plain cond": plain_cond,
    "plain experts": plain_experts,
    "plain gradient": plain_gradient,
    "plain custom derivatives": plain_custom_derivatives,
}


def relative_error(got, want):
    """The largest difference, as a share of the largest value, over a pytree."""
    got, want = jax.tree.leaves(got), jax.tree.leaves(want)
    assert len(got) == len(want)
    errors = [0.0]
    for a, b in zip(got, want, strict=True):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        assert a.shape == b.shape
        errors.append(np.max(np.abs(a - b)) / (np.max(np.abs(b)) + 1e-9))
    return max(errors)
