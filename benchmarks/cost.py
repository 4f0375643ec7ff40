"""Costs counted on the graph against those of XLA's compiled program.

    python benchmarks/cost.py

The rival is XLA itself: `compile().cost_analysis()` and `memory_analysis()`. Ratios are
ours over XLA's; one means equal. XLA counts the body of a loop once, so a second ratio
divides by a compilation in which every scan is unrolled. Bytes are our estimate for
fused elementwise chains; XLA's own depend on what its back end fuses.
"""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import compiler as mc
from compiler import executable, jaxprs
from compiler.graph import Graph, read


def normal(*shape):
    """Inputs of unit variance."""
    return jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)


class Mlp(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(10)(nn.relu(nn.Dense(512)(nn.relu(nn.Dense(512)(x)))))


class ConvNet(nn.Module):
    @nn.compact
    def __call__(self, x):
        for features in (32, 64, 64):
            x = nn.Conv(features, (3, 3), strides=2, use_bias=False)(x)
            x = nn.relu(nn.BatchNorm(use_running_average=True)(x))
        return nn.Dense(10)(x.mean((1, 2)))


class Spreading(nn.Module):
    """Grouped, dilated and transposed convolutions."""

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(32, (3, 3), kernel_dilation=2)(x)
        x = nn.relu(nn.Conv(32, (3, 3), feature_group_count=8)(x))
        return nn.ConvTranspose(8, (4, 4), strides=(2, 2))(x)


class Block(nn.Module):
    @nn.compact
    def __call__(self, x, _=None):
        x = x + nn.MultiHeadDotProductAttention(4)(nn.LayerNorm()(x))
        y = nn.gelu(nn.Dense(512)(nn.LayerNorm()(x)))
        return x + nn.Dense(x.shape[-1])(y), None


class Scanned(nn.Module):
    @nn.compact
    def __call__(self, x):
        axes, rngs = nn.FrozenDict({"params": 0}), nn.FrozenDict({"params": True})
        stack = nn.scan(Block, variable_axes=axes, split_rngs=rngs, length=6)
        return stack()(x, None)[0]


def of(module, *inputs):
    """A linen module as a function of variables and inputs."""
    return module.apply, jax.jit(module.init)(jax.random.key(0), *inputs), inputs


def plain(function, *inputs):
    """A function without variables."""
    return lambda _, *x: function(*x), {}, inputs


def training():
    """A whole step of Adam on the small convolutional network."""
    x, y = normal(16, 32, 32, 3), jnp.zeros(16, jnp.int32)
    variables = jax.jit(ConvNet().init)(jax.random.key(0), x)
    optimizer = optax.adam(1e-3)

    def step(carry, x, y):
        variables, state = carry

        def loss(params):
            outputs = jnp.asarray(ConvNet().apply({**variables, "params": params}, x))
            return optax.softmax_cross_entropy_with_integer_labels(outputs, y).mean()

        grads = jax.grad(loss)(variables["params"])
        updates, state = optimizer.update(grads, state)
        params = optax.apply_updates(variables["params"], updates)
        return {**variables, "params": params}, state

    return step, (variables, optimizer.init(variables["params"])), (x, y)


CASES = {
    "mlp, batch 64": lambda: of(Mlp(), normal(64, 256)),
    "conv net, batch 16": lambda: of(ConvNet(), normal(16, 32, 32, 3)),
    "grouped, dilated, transposed": lambda: of(Spreading(), normal(4, 16, 16, 8)),
    "attention block": lambda: of(Block(), normal(2, 64, 128)),
    "six scanned blocks": lambda: of(Scanned(), normal(2, 64, 128)),
    "lstm, 32 steps": lambda: of(nn.RNN(nn.OptimizedLSTMCell(128)), normal(8, 32, 64)),
    "train step, conv net": training,
    "softmax": lambda: plain(jax.nn.softmax, normal(64, 1024)),
    "elementwise chain": lambda: plain(
        lambda x: jnp.tanh(x * 2.0 + 1.0) * jax.nn.sigmoid(x), normal(256, 1024)
    ),
    "fft, 64 x 1024": lambda: plain(
        lambda x: jnp.fft.fft(x.astype(jnp.complex64)), normal(64, 1024)
    ),
    "sort, 64 x 1024": lambda: plain(
        functools.partial(jax.lax.sort, dimension=1), normal(64, 1024)
    ),
    "running sum": lambda: plain(lambda x: jnp.cumsum(x, 1), normal(64, 1024)),
    "random normal": lambda: plain(
        lambda x: x + jax.random.normal(jax.random.key(0), x.shape), normal(64, 1024)
    ),
    "cholesky, 8 of 128": lambda: plain(
        lambda x: jax.lax.linalg.cholesky(
            x @ x.mT + 128.0 * jnp.eye(128), symmetrize_input=False
        ),
        normal(8, 128, 128),
    ),
}

WHY = {
    "conv net, batch 16": "XLA makes the whole network one library kernel",
    "six scanned blocks": "XLA counts the body of a loop once",
    "lstm, 32 steps": "XLA counts the body of a loop once",
    "train step, conv net": "XLA simplifies what the gradient's graph holds",
    "fft, 64 x 1024": "5 n log2 n here, 8 n log2 n and a conversion in XLA",
    "sort, 64 x 1024": "log2 of the axis here, of the whole array in XLA",
    "running sum": "n - 1 additions here, windows of 16 in XLA's own scan",
    "random normal": "erf_inv is one transcendental here, 37 operations in XLA",
    "cholesky, 8 of 128": "XLA does not count what LAPACK does",
}


def unrolled(jaxpr, values):
    """Evaluates a jaxpr with every scan written out."""
    env = dict(zip(jaxpr.jaxpr.invars, values, strict=True))
    env |= dict(zip(jaxpr.jaxpr.constvars, jaxpr.consts, strict=True))
    for equation in jaxprs.equations(jaxpr):
        given = [read(env, var) for var in equation.invars]
        bodies = jaxprs.bodies(equation)
        if equation.primitive.name == "scan":
            results = written_out(equation, bodies[0].jaxpr, given)
        elif len(bodies) == 1:
            results = unrolled(bodies[0].jaxpr, [given[i] for i in bodies[0].operands])
        else:
            results = jaxprs.bind(equation, given)
        env.update(zip(equation.outvars, results, strict=True))
    return [read(env, var) for var in jaxpr.jaxpr.outvars]


def written_out(equation, body, given):
    """A scan without a loop."""
    consts, carried = jaxprs.scan_counts(equation)
    fixed, carry, xs = given[:consts], given[consts : consts + carried], None
    xs = given[consts + carried :]
    steps = range(equation.params["length"])
    kept = []
    for i in reversed(steps) if equation.params["reverse"] else steps:
        results = unrolled(body, [*fixed, *carry, *(x[i] for x in xs)])
        carry = results[:carried]
        kept.append(results[carried:])
    order = kept[::-1] if equation.params["reverse"] else kept
    return [*carry, *(jnp.stack(column) for column in zip(*order, strict=True))]


def has_loop(graph: Graph):
    """Whether a graph has a scan anywhere."""
    return any(e.primitive.name == "scan" for e, _ in jaxprs.nested(graph.jaxpr))


def ratio(ours, theirs):
    """Ours over theirs."""
    return f"{ours / theirs:8.3f}" if theirs and not math.isnan(theirs) else f"{'-':>8}"


def row(name):
    """One line: FLOPs, transcendentals, bytes and peak, ours and the ratio to XLA's."""
    function, variables, inputs = CASES[name]()
    program = mc.trace(function, variables, *inputs)
    ours, told = mc.cost(program), executable.compile(program, *inputs)
    theirs, held = told.cost, told.memory.total if told.memory else math.nan
    flat = ""
    if has_loop(program.graph):
        values = [*program.values, *jax.tree.leaves(inputs)]
        run = jax.jit(functools.partial(unrolled, program.graph.jaxpr))
        counted = run.lower(values).compile().cost_analysis() or {}
        flat = ratio(ours.flops, counted.get("flops", math.nan))
    return (
        f"{name:29}{ours.flops:14,}{ratio(ours.flops, theirs.flops)}{flat:>8}"
        f"{ratio(ours.transcendentals, theirs.transcendentals)}"
        f"{ours.total.bytes:13,}{ratio(ours.total.bytes, theirs.bytes)}"
        f"{ratio(ours.total.unfused_bytes, theirs.bytes)}"
        f"{ours.fused_peak:13,}{ratio(ours.fused_peak, held)}"
        f"{ratio(ours.peak, held)}  {WHY.get(name, '')}"
    )


def main():
    """Prints the table."""
    print(
        f"jax {jax.__version__}, {jax.devices()[0].platform}; ratios are ours / XLA's"
    )
    print(
        f"{'':29}{'FLOPs':>14}{'ratio':>8}{'flat':>8}{'transc.':>8}{'bytes':>13}"
        f"{'fused':>8}{'unfused':>8}{'peak':>13}{'fused':>8}{'plain':>8}"
    )
    for name in CASES:
        print(row(name), flush=True)


if __name__ == "__main__":
    main()
