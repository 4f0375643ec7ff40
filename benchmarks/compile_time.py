"""What the compiler itself costs: trace and fold against `jax.make_jaxpr`.

    python benchmarks/compile_time.py

The rival is `jax.make_jaxpr` of the same function, a GPT-2-shaped stack of blocks
traced on shapes alone. Medians of five, in seconds.
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


def seconds(run):
    """The median time of five runs."""
    times = []
    for _ in range(5):
        began = time.perf_counter()
        run()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def main():
    """Prints a row for each depth."""
    print(f"jax {jax.__version__}")
    print(f"{'layers':>6}{'equations':>11}{'make_jaxpr':>12}{'trace':>8}{'fold':>8}")
    tokens = jax.ShapeDtypeStruct((2, 128), "int32")
    for layers in (3, 12, 48):
        model = GPT(layers)
        variables = jax.eval_shape(model.init, jax.random.key(0), tokens)
        program = mc.trace(model.apply, variables, tokens)
        rival = seconds(lambda m=model, v=variables: jax.make_jaxpr(m.apply)(v, tokens))
        trace = seconds(lambda m=model, v=variables: mc.trace(m.apply, v, tokens))
        fold = seconds(
            lambda m=model, v=variables: mc.trace(m.apply, v, tokens) >> mc.fold()
        )
        count = len(program.graph.jaxpr.eqns)
        print(f"{layers:6}{count:11,}{rival:12.2f}{trace:8.2f}{fold - trace:8.2f}")


if __name__ == "__main__":
    main()
