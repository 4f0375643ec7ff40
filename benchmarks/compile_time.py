"""What the compiler itself costs: trace, fold and simplify against `jax.make_jaxpr`.

    python benchmarks/compile_time.py

The rival is `jax.make_jaxpr` of the same function: a GPT-2-shaped stack of blocks, and
layers with a batch norm in plain JAX that fold everywhere, from a hundred equations to
twenty thousand. Traced on shapes alone. Medians of three, in seconds.
"""

import statistics
import time

import flax.linen as nn
import jax
import jax.numpy as jnp

import compiler as mc


class Block(nn.Module):
    """A pre-norm transformer block."""

    heads: int = 12

    @nn.compact
    def __call__(self, x):
        mask = nn.make_causal_mask(jnp.ones(x.shape[:2]))
        attention = nn.MultiHeadDotProductAttention(num_heads=self.heads)
        x = x + attention(nn.LayerNorm()(x), mask=mask)
        hidden = nn.gelu(nn.Dense(4 * x.shape[-1])(nn.LayerNorm()(x)))
        return x + nn.Dense(x.shape[-1])(hidden)


class GPT(nn.Module):
    """Token and position embeddings, blocks, tied output."""

    layers: int

    @nn.compact
    def __call__(self, tokens):
        embed = nn.Embed(50257, 768)
        positions = self.param("positions", nn.initializers.normal(), (1024, 768))
        x = embed(tokens) + positions[None, : tokens.shape[1]]
        for _ in range(self.layers):
            x = Block()(x)
        return embed.attend(nn.LayerNorm()(x))


def layers(variables, x):
    """Dense layers with a batch norm and a residual connection, in plain JAX."""
    for layer in variables:
        scale = layer["scale"] * jax.lax.rsqrt(layer["variance"] + 1e-5)
        y = (x @ layer["kernel"] - layer["mean"]) * scale + layer["bias"]
        x = x + jax.nn.gelu(y)
    return x


def plain(count):
    """Variables and input of that many layers, as shapes."""
    names = ("scale", "variance", "mean", "bias")
    row = jax.ShapeDtypeStruct((1, 8), "float32")
    layer = dict.fromkeys(names, row) | {"kernel": jax.ShapeDtypeStruct((8, 8), "f4")}
    return [layer] * count, jax.ShapeDtypeStruct((4, 8), "float32")


def seconds(run):
    """The median time of three runs."""
    times = []
    for _ in range(3):
        began = time.perf_counter()
        run()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def row(name, function, variables, x):
    """Prints what each step takes, and all of them for each equation."""
    program = mc.trace(function, variables, x)
    folded = program >> mc.fold()
    rival = seconds(lambda: jax.make_jaxpr(lambda v, x: function(v, x))(variables, x))
    trace = seconds(lambda: mc.trace(function, variables, x))
    fold = seconds(lambda: mc.trace(function, variables, x) >> mc.fold()) - trace
    simplify = seconds(lambda: folded >> mc.simplify())
    count = len(program.graph.jaxpr.eqns)
    each = 1e3 * (trace + fold + simplify) / count
    times = "".join(f"{t:10.2f}" for t in (rival, trace, fold, simplify))
    print(f"{name:12}{count:11,}{times}{each:14.2f}")


def main():
    """Prints a row for each model."""
    print(f"jax {jax.__version__}")
    head = "".join(f"{n:>10}" for n in ("make_jaxpr", "trace", "fold", "simplify"))
    print(f"{'':12}{'equations':>11}{head}{'ms/equation':>14}")
    tokens = jax.ShapeDtypeStruct((2, 128), "int32")
    for depth in (3, 12, 48):
        model = GPT(depth)
        variables = jax.eval_shape(model.init, jax.random.key(0), tokens)
        row(f"GPT-2, {depth}", model.apply, variables, tokens)
    for count in (7, 70, 700, 1400):
        row(f"plain, {count}", layers, *plain(count))


if __name__ == "__main__":
    main()
