"""What folding pays: a flax model under jax.jit against the folded program.

    python benchmarks/fold.py

The rival is the model as its authors run it, `jax.jit(module.apply)`. All take turns in
one process; outputs are checked before anything is timed; medians over nine slices.
A ratio above one means the folded program is faster. Sizes are those of the leaves.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

import compiler as mc


class ConvNet(nn.Module):
    """Six 3x3 convolutions with batch norm."""

    @nn.compact
    def __call__(self, x):
        for features in (32, 32, 64, 64, 128, 128):
            stride = 2 if features > x.shape[-1] > 3 else 1
            x = nn.Conv(features, (3, 3), strides=stride, use_bias=False)(x)
            x = nn.relu(nn.BatchNorm(use_running_average=True)(x))
        return nn.Dense(10)(x.mean((1, 2)))


class Depthwise(nn.Module):
    """Four depthwise-separable blocks: cheap products, many batch norms."""

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(32, (3, 3), strides=2)(x)
        for features in (32, 64, 64, 128):
            width = x.shape[-1]
            x = nn.Conv(width, (3, 3), feature_group_count=width, use_bias=False)(x)
            x = nn.relu(nn.BatchNorm(use_running_average=True)(x))
            x = nn.Conv(features, (1, 1), use_bias=False)(x)
            x = nn.relu(nn.BatchNorm(use_running_average=True)(x))
        return nn.Dense(10)(x.mean((1, 2)))


def activated(x):
    """Batch norm, then the activation."""
    return nn.relu(nn.BatchNorm(use_running_average=True)(x))


class PreActivation(nn.Module):
    """Three residual blocks whose norms come before the convolutions."""

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(32, (3, 3), use_bias=False)(x)
        for features in (32, 64, 128):
            stride = 2 if features > 32 else 1
            y, strides = activated(x), (stride, stride)
            same = stride == 1
            x = x if same else nn.Conv(features, (1, 1), strides, use_bias=False)(y)
            y = nn.Conv(features, (3, 3), strides, use_bias=False)(y)
            x = x + nn.Conv(features, (3, 3), use_bias=False)(activated(y))
        return nn.Dense(10)(activated(x).mean((1, 2)))


class DenseBlock(nn.Module):
    """Four layers of a DenseNet, and the transition after them."""

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(32, (3, 3), use_bias=False)(x)
        for _ in range(4):
            y = nn.Conv(64, (1, 1), use_bias=False)(activated(x))
            y = nn.Conv(16, (3, 3), use_bias=False)(activated(y))
            x = jnp.concatenate([x, y], -1)
        x = nn.Conv(48, (1, 1), use_bias=False)(activated(x))
        return nn.Dense(10)(activated(nn.avg_pool(x, (2, 2), (2, 2))).mean((1, 2)))


class Encoder(nn.Module):
    """Two pre-norm transformer blocks."""

    @nn.compact
    def __call__(self, x):
        for _ in range(2):
            y = nn.LayerNorm()(x)
            x = x + nn.MultiHeadDotProductAttention(4)(y, y)
            y = nn.gelu(nn.Dense(512)(nn.LayerNorm()(x)))
            x = x + nn.Dense(128)(y)
        return x


class WeightNormed(nn.Module):
    """Four weight-normalised dense layers."""

    @nn.compact
    def __call__(self, x):
        for _ in range(4):
            x = nn.relu(nn.WeightNorm(nn.Dense(512))(x))
        return x


def normal(*shape):
    """Inputs of unit variance."""
    return jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)


CASES = {
    "conv net, batch 1": (ConvNet(), normal(1, 32, 32, 3)),
    "conv net, batch 16": (ConvNet(), normal(16, 32, 32, 3)),
    "depthwise, batch 1": (Depthwise(), normal(1, 64, 64, 3)),
    "depthwise, batch 16": (Depthwise(), normal(16, 64, 64, 3)),
    "pre-activation, batch 1": (PreActivation(), normal(1, 32, 32, 3)),
    "dense block, batch 1": (DenseBlock(), normal(1, 32, 32, 3)),
    "encoder, 64 tokens": (Encoder(), normal(1, 64, 128)),
    "lstm, 32 steps": (nn.RNN(nn.OptimizedLSTMCell(128)), normal(8, 32, 64)),
    "weight norm, batch 1": (WeightNormed(), normal(1, 512)),
}


def measure(name, module, x):
    """One row: times of the rival and of the folded program, and their sizes."""
    variables = jax.jit(module.init)(jax.random.key(0), x)
    rival = jax.jit(module.apply)
    program = mc.trace(module.apply, variables, x)
    folded = program >> mc.fold()
    want, got = rival(variables, x), folded(x)
    scale = float(jnp.abs(want).max())
    if not np.allclose(want, got, atol=1e-4 * scale):
        raise SystemExit(f"{name}: outputs differ")
    times = mc.latency(
        {
            "rival": lambda: rival(variables, x),
            "traced": lambda: program(x),
            "folded": lambda: folded(x),
        },
        rounds=9,
    )
    ratio = times["rival"] / times["folded"]
    small = folded >> mc.quantize.weights("int8")
    return (
        f"{name:25}{times['rival'] * 1e3:10.3f}{times['traced'] * 1e3:10.3f}"
        f"{times['folded'] * 1e3:10.3f}{ratio:8.2f}x"
        f"{program.bytes:12,}{folded.bytes:12,}{small.bytes:12,}"
    )


def main():
    """Prints the table."""
    print(f"jax {jax.__version__}, {jax.devices()[0].platform}")
    print(
        f"{'':25}{'flax jit':>10}{'traced':>10}{'folded':>10}{'ratio':>9}"
        f"{'bytes':>12}{'folded':>12}{'int8':>12}   (times in ms)"
    )
    for name, (module, x) in CASES.items():
        print(measure(name, module, x))


if __name__ == "__main__":
    main()
