"""Quantization sees products, not modules: the same in four frameworks and in none."""

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from corpus import CORPUS
from flax import nnx
from zoo import linen, normal, relative_error

import compiler as mc
from compiler.passes.quantize.physical import encoded

X, SEQUENCE, IMAGE = normal(4, 16), normal(2, 5, 16), normal(2, 6, 6, 8)
TOKENS = jnp.arange(6).reshape(2, 3)


def of_nnx(module, *inputs):
    graph, state = nnx.split(module)
    return (lambda state, *x: nnx.merge(graph, state)(*x)), state, inputs


def of_equinox(module, *inputs):
    return (lambda module, *x: jax.vmap(module)(*x)), module, inputs


def of_haiku(build, *inputs):
    forward = hk.without_apply_rng(hk.transform(build))
    return forward.apply, forward.init(jax.random.key(0), *inputs), inputs


class Tied(nn.Module):
    @nn.compact
    def __call__(self, tokens):
        table = nn.Embed(40, 16)
        return table.attend(nn.relu(nn.Dense(16)(table(tokens))))


class Stack(nn.Module):
    @nn.compact
    def __call__(self, x):
        def block(layer, x, _):
            return x + jnp.tanh(layer(x)), None

        scanned = nn.scan(
            block, variable_axes={"params": 0}, split_rngs={"params": True}, length=3
        )
        return scanned(nn.Dense(16), x, None)[0]


def equinox_lstm(cell, x):
    def run(sequence):
        start = (jnp.zeros(16), jnp.zeros(16))
        return jax.lax.scan(lambda c, x: (cell(x, c), None), start, sequence)[0][0]

    return jax.vmap(run)(x)


def haiku_lstm(x):
    core = hk.LSTM(16)
    return hk.dynamic_unroll(core, x, core.initial_state(x.shape[1]))[0]


def haiku_attention(x):
    init = hk.initializers.RandomNormal(0.25)
    return hk.MultiHeadAttention(2, 8, w_init=init)(x, x, x)


def nnx_attention():
    return nnx.MultiHeadAttention(
        num_heads=2, in_features=16, decode=False, rngs=nnx.Rngs(0)
    )


KEY = jax.random.key(0)
CASES = {
    "linen dense": lambda: linen(nn.Dense(16), X),
    "linen attention": lambda: linen(nn.MultiHeadDotProductAttention(4), SEQUENCE),
    "linen LSTM": lambda: linen(nn.RNN(nn.OptimizedLSTMCell(16)), SEQUENCE),
    "linen tied": lambda: linen(Tied(), TOKENS),
    "linen scanned": lambda: linen(Stack(), X),
    "linen transposed": lambda: linen(nn.ConvTranspose(8, (3, 3), (2, 2)), IMAGE),
    "linen weight norm": lambda: linen(nn.WeightNorm(nn.Dense(16)), X),
    "nnx linear": lambda: of_nnx(nnx.Linear(16, 32, rngs=nnx.Rngs(0)), X),
    "nnx attention": lambda: of_nnx(nnx_attention(), SEQUENCE),
    "nnx conv": lambda: of_nnx(nnx.Conv(8, 16, (3, 3), rngs=nnx.Rngs(0)), IMAGE),
    "equinox MLP": lambda: of_equinox(eqx.nn.MLP(16, 8, 16, 2, key=KEY), X),
    "equinox conv": lambda: of_equinox(eqx.nn.Conv2d(6, 8, 3, key=KEY), IMAGE),
    "equinox LSTM": lambda: (
        equinox_lstm,
        eqx.nn.LSTMCell(16, 16, key=KEY),
        (SEQUENCE,),
    ),
    "equinox embedding": lambda: (
        lambda table, tokens: jax.vmap(jax.vmap(table))(tokens),
        eqx.nn.Embedding(40, 16, key=KEY),
        (TOKENS,),
    ),
    "haiku linear": lambda: of_haiku(lambda x: hk.Linear(32)(x), X),
    "haiku attention": lambda: of_haiku(haiku_attention, SEQUENCE),
    "haiku depthwise": lambda: of_haiku(lambda x: hk.DepthwiseConv2D(2, 3)(x), IMAGE),
    "haiku LSTM": lambda: of_haiku(haiku_lstm, SEQUENCE),
}
LOOKUPS = {"equinox embedding"}


FOREIGN = [
    "linen transformer",
    "linen scanned",
    "equinox scanned",
    "nested scan",
    "checkpointed",
    "mixture",
    "switch",
    "plain custom derivatives",
]
"""Functions of the corpus, taken as they are: nothing is folded first."""


@pytest.fixture(params=CASES, ids=lambda name: name.replace(" ", "-"), scope="module")
def folded(request):
    function, variables, inputs = CASES[request.param]()
    program = mc.trace(function, variables, *inputs) >> mc.fold()
    return request.param, program, inputs


def is_weight(leaf):
    return jnp.issubdtype(leaf.spec.dtype, jnp.floating) and len(leaf.spec.shape) > 1


def test_every_weight_is_found(folded):
    _, program, inputs = folded
    small = program >> mc.quantize.weights("int8")
    fired = {event.path for event in small.history[-1].events.fired}
    biases = {"b", "bias"}
    wanted = {
        leaf.path
        for leaf in program.graph.leaves
        if is_weight(leaf) and not biases & set(leaf.path.split("/"))
    }
    assert wanted
    assert wanted <= fired
    assert relative_error(small(*inputs), program(*inputs)) < 0.02


def test_no_weight_is_decoded_whole_for_want_of_a_form(folded):
    _, program, _ = folded
    small = program >> mc.quantize.weights("int4", group=8)
    assert not mc.quantize.coverage(small).decoded


def test_every_product_with_a_weight_is_one_of_integers(folded):
    name, program, inputs = folded
    small = program >> mc.quantize.dynamic("int8")
    found = mc.quantize.coverage(small)
    products = [row for row in found.rows if row.leaf and row.kind in ("dot", "conv")]
    assert products or name in LOOKUPS
    assert all(row.how == "integer" for row in products)
    assert relative_error(small(*inputs), program(*inputs)) < 0.03


def with_decoded_weights(program, small):
    """The leaves of a program, with those that were quantized read back."""
    stored = encoded(small.graph).stored
    given = dict(zip(small.graph.paths, small.values, strict=True))
    names = stored.names(program.graph)
    found = []
    for path, value in zip(program.graph.paths, program.values, strict=True):
        if path in stored.encodings:
            encoding = stored.encodings[path]
            parts = {name: given[names[path][name]] for name in encoding.names}
            value = encoding.decode(parts)
        found.append(value)
    return program.graph.pack(found)


@pytest.mark.parametrize("name", FOREIGN, ids=lambda name: name.replace(" ", "-"))
def test_it_computes_what_the_decoded_weights_do(name):
    function, variables, inputs = CORPUS[name]()
    program = mc.trace(function, variables, *inputs)
    small = program >> mc.quantize.weights("nf4", group=2)
    assert small.history[-1].events.fired
    expected = program.function(with_decoded_weights(program, small), *inputs)
    for got, want in zip(
        jax.tree.leaves(small(*inputs)), jax.tree.leaves(expected), strict=True
    ):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
