"""What pruning pays in time, and what finding out what can go costs.

    python benchmarks/prune.py [speed] [analysis]

Speed: flax models under jax.jit against the program with half of every group gone, and
against the model its author would have written at those widths. All take turns in one
process; medians over slices. FLOPs are counted from shapes. Promised: the speed-up is
at least 70% of what FLOPs say, on every row. Analysis: seconds for what can be removed
from GPT-2 and ResNet-50, from shapes alone, and how they grow with the equations.
Promised: under 5 s, and a time per equation that stays flat. Ends with status 0 only
if all promises are kept.
"""

import gc
import os
import sys
import time

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

import compiler as mc

SHARE, SECONDS, GROWTH = 0.7, 5.0, 1.5


class Bottleneck(nn.Module):
    """Three convolutions around a residual connection."""

    width: int
    stride: int = 1

    @nn.compact
    def __call__(self, x):
        y = self.normed(nn.Conv(self.width, (1, 1), use_bias=False)(x))
        strides = (self.stride, self.stride)
        y = nn.Conv(self.width, (3, 3), strides, use_bias=False)(nn.relu(y))
        y = nn.Conv(4 * self.width, (1, 1), use_bias=False)(nn.relu(self.normed(y)))
        if x.shape != y.shape:
            x = nn.Conv(4 * self.width, (1, 1), strides, use_bias=False)(x)
            x = self.normed(x)
        return nn.relu(x + self.normed(y))

    def normed(self, x):
        return nn.BatchNorm(use_running_average=True)(x)


class Basic(nn.Module):
    """Two convolutions around a residual connection."""

    width: int
    stride: int = 1

    @nn.compact
    def __call__(self, x):
        strides = (self.stride, self.stride)
        y = nn.Conv(self.width, (3, 3), strides, use_bias=False)(x)
        y = nn.relu(nn.BatchNorm(use_running_average=True)(y))
        y = nn.Conv(self.width, (3, 3), use_bias=False)(y)
        if x.shape != y.shape:
            x = nn.Conv(self.width, (1, 1), strides, use_bias=False)(x)
            x = nn.BatchNorm(use_running_average=True)(x)
        return nn.relu(x + nn.BatchNorm(use_running_average=True)(y))


class ResNet(nn.Module):
    """A stem, stages of blocks, a head."""

    widths: tuple = (64, 128, 256)
    depths: tuple = (2, 2, 2)
    block: type = Basic
    patch: int = 1

    @nn.compact
    def __call__(self, x):
        kernel = (7, 7) if self.patch > 1 else (3, 3)
        strides = (min(self.patch, 2),) * 2
        x = nn.Conv(self.widths[0], kernel, strides, use_bias=False)(x)
        x = nn.relu(nn.BatchNorm(use_running_average=True)(x))
        if self.patch > 1:
            x = nn.max_pool(x, (3, 3), (2, 2), "SAME")
        stages = zip(self.widths, self.depths, strict=True)
        for stage, (width, depth) in enumerate(stages):
            for number in range(depth):
                x = self.block(width, 2 if stage and not number else 1)(x)
        return nn.Dense(1000 if self.patch > 1 else 10)(x.mean((1, 2)))


class Block(nn.Module):
    """Causal attention and a feed-forward net, with norms before them."""

    heads: int
    size: int = 64

    @nn.compact
    def __call__(self, x):
        y, width = nn.LayerNorm()(x), x.shape[-1]
        heads = [nn.DenseGeneral((self.heads, self.size))(y) for _ in range(3)]
        scores = jnp.einsum("bthd,bshd->bhts", *heads[:2]) / np.sqrt(self.size)
        causal = jnp.tril(jnp.ones(scores.shape[-2:], bool))
        weights = nn.softmax(jnp.where(causal, scores, -1e9))
        mixed = jnp.einsum("bhts,bshd->bthd", weights, heads[2])
        x = x + nn.DenseGeneral(width, axis=(-2, -1))(mixed)
        return x + nn.Dense(width)(nn.gelu(nn.Dense(4 * width)(nn.LayerNorm()(x))))


class GPT(nn.Module):
    """Tokens to logits, with one table for both ends."""

    width: int
    layers: int
    vocabulary: int = 4096
    length: int = 1024

    @nn.compact
    def __call__(self, tokens):
        embed = nn.Embed(self.vocabulary, self.width)
        start = nn.initializers.normal()
        places = self.param("places", start, (self.length, self.width))
        x = embed(tokens) + places[: tokens.shape[1]][None]
        for _ in range(self.layers):
            x = Block(self.width // 64)(x)
        return embed.attend(nn.LayerNorm()(x))


class LSTM(nn.Module):
    """A recurrent net over a sequence, and what it says at every step."""

    width: int

    @nn.compact
    def __call__(self, x):
        return nn.Dense(32)(nn.RNN(nn.OptimizedLSTMCell(self.width))(x))


def normal(*shape):
    """Inputs of unit variance."""
    return jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)


def tokens(*shape):
    """Random tokens."""
    return jnp.asarray(np.random.default_rng(0).integers(0, 4096, shape), jnp.int32)


CASES = {
    "ResNet 64-256, 4 of 32x32": (
        ResNet(),
        ResNet((32, 64, 128)),
        normal(4, 32, 32, 3),
    ),
    "ResNet 64-512, 1 of 224x224": (
        ResNet((64, 128, 256, 512), (2, 2, 2, 2), patch=4),
        ResNet((32, 64, 128, 256), (2, 2, 2, 2), patch=4),
        normal(1, 224, 224, 3),
    ),
    "GPT 256 x 4, 4 of 128": (GPT(256, 4), GPT(128, 4), tokens(4, 128)),
    "GPT 512 x 6, 1 of 256": (GPT(512, 6), GPT(256, 6), tokens(1, 256)),
    "LSTM 512, 16 of 64": (LSTM(512), LSTM(256), normal(16, 64, 128)),
    "LSTM 512, 1 of 64": (LSTM(512), LSTM(256), normal(1, 64, 128)),
}
"""Each with the model at half of all widths, and its input."""


def speed(name, module, half, x):
    """One row, and whether the promise is kept."""
    variables = jax.jit(module.init)(jax.random.key(0), x)
    program = mc.trace(module.apply, variables, x)
    pruned = program >> mc.prune.structured(0.5)
    left = pruned.variables
    whole, small, built = map(jax.jit, (module.apply, pruned.function, half.apply))
    got, want = small(left, x), built(left, x)  # of other shapes, it would refuse
    if not np.allclose(got, want, rtol=0, atol=1e-4 * float(jnp.abs(want).max())):
        raise SystemExit(f"{name}: outputs differ from those of the model built small")
    calls = {
        "flax": lambda: whole(variables, x),
        "pruned": lambda: small(left, x),
        "built": lambda: built(left, x),
    }
    turns = [mc.latency(calls, rounds=3) for _ in range(4)]
    times = {call: min(turn[call] for turn in turns) for call in calls}
    flops = mc.cost(program).flops / mc.cost(pruned).flops
    ratio = times["flax"] / times["pruned"]
    print(
        f"{name:28}"
        + "".join(f"{times[call] * 1e3:9.2f}" for call in calls)
        + f"{program.size / pruned.size:8.2f}x{flops:8.2f}x{ratio:8.2f}x"
        + f"{ratio / flops:8.0%}",
        flush=True,
    )
    return ratio >= SHARE * flops


def speeds():
    """The table of times."""
    columns = ("flax ms", "pruned", "built")
    print(f"{'half of every group':28}" + "".join(f"{name:>9}" for name in columns))
    return [speed(name, *case) for name, case in CASES.items()]


def analysis(name, module, x):
    """One row; the seconds for groups, and for each equation."""
    variables = jax.eval_shape(module.init, jax.random.key(0), x)
    times = []
    for _ in range(3):
        program = mc.trace(module.apply, variables, x)
        gc.collect()
        began = time.process_time()
        groups = mc.prune.groups(program)
        times.append(time.process_time() - began)
    took, count = min(times), len(program.graph.jaxpr.jaxpr.eqns)
    print(
        f"{name:28}{program.size:13,}{count:11,}{len(groups):8}{took:9.2f}"
        f"{1e6 * took / count:9.0f}",
        flush=True,
    )
    return took, took / count


def analyses():
    """The table of analyses."""
    columns = ("equations", "groups", "seconds", "us each")
    print(
        f"{'what can be removed':28}{'parameters':>13}"
        + "{:>11}{:>8}{:>9}{:>9}".format(*columns)
    )
    pictures = jax.ShapeDtypeStruct((1, 224, 224, 3), "float32")
    tokens = jax.ShapeDtypeStruct((1, 1024), "int32")
    resnet = ResNet((64, 128, 256, 512), (3, 4, 6, 3), Bottleneck, 4)
    took, _ = analysis("ResNet-50", resnet, pictures)
    kept, each = [took < SECONDS], []
    for layers in (6, 12, 24, 48):
        took, one = analysis(f"GPT-2, {layers} layers", GPT(768, layers, 50257), tokens)
        each.append(one)
        if layers == 12:
            kept.append(took < SECONDS)
    return [*kept, max(each) <= GROWTH * each[0]]


def main():
    """Prints the tables; the exit status says whether all promises are kept."""
    print(f"jax {jax.__version__}, {jax.devices()[0].platform}, load {os.getloadavg()}")
    kept = []
    for name, table in {"analysis": analyses, "speed": speeds}.items():
        if name in sys.argv[1:] or not sys.argv[1:]:
            kept += table()
    print(f"{sum(kept)} of {len(kept)} promises kept, load {os.getloadavg()}")
    return 0 if all(kept) else 1


if __name__ == "__main__":
    sys.exit(main())
