"""What a mapping costs at every call, beyond the plain function it is.

A model of 100 tiny layers, so that nearly all the time is the framework's own: a
compiled call of a mapping against a compiled plain function over the same nested
dict of params, and against flax.linen, taking turns, medians.

    python benchmarks/dispatch.py
"""

import statistics
import time

import flax.linen as nn
import jax
import jax.numpy as jnp

import mapping as mp

DEPTH, WIDTH, TURNS = 100, 4, 2000


class Linen(nn.Module):
    """The same layers in flax.linen."""

    @nn.compact
    def __call__(self, x):
        """Runs them."""
        for _ in range(DEPTH):
            x = nn.relu(nn.Dense(WIDTH)(x))
        return x


def plain(params, x):
    """The same function, written by hand over the same params."""
    for layer in params.values():
        x = jax.nn.relu(x @ layer["kernel"] + layer["bias"])
    return x


def contenders():
    """Compiled calls, by name."""
    x = jnp.ones((1, WIDTH))
    steps = {}
    for i in range(DEPTH):
        steps[f"dense_{i:03}"] = mp.layers.Dense(WIDTH)
        steps[f"relu_{i:03}"] = jax.nn.relu
    net = mp.Serial(**steps)
    params = net.init(jax.random.key(0), x).params
    variables = Linen().init(jax.random.key(0), x)
    ours, theirs = jax.jit(net), jax.jit(Linen().apply)
    static = jax.jit(lambda net, params, x: net(params, x), static_argnums=0)
    function = jax.jit(plain)
    return {
        "plain function": lambda: function(params, x),
        "mapping": lambda: ours(params, x),
        "mapping as a static argument": lambda: static(net, params, x),
        "flax.linen": lambda: theirs(variables, x),
    }


def main():
    """Times them in turn and prints the table."""
    calls = contenders()
    seconds = {name: [] for name in calls}
    for turn in range(TURNS):
        for name, call in calls.items():
            began = time.perf_counter()
            jax.block_until_ready(call())
            if turn >= TURNS // 10:
                seconds[name].append(time.perf_counter() - began)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    print(f"| {DEPTH} layers under jax.jit | us per call | ratio |\n|---|---|---|")
    for name, median in medians.items():
        ratio = median / medians["plain function"]
        print(f"| {name} | {1e6 * median:.0f} | {ratio:.2f} |")


if __name__ == "__main__":
    main()
