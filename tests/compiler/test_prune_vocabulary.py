"""Vocabulary pruning: new(encode(tokens)) is old(tokens) of the tokens kept."""

import functools
import json

import equinox as eqx
import flax.linen as nn
import flax.nnx as nnx
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from zoo import normal, relative_error

import compiler as mc
import mapping as mp
from compiler.errors import PlanError, UnknownPathError
from compiler.passes.prune.vocabulary import PruneVocabulary, Vocabulary, vocabulary

SIZE, WIDTH = 11, 6
KEEP = [0, 2, 3, 5, 8, 9]
ROWS = jnp.array(KEEP)
WEIGHTS = {
    "table": normal(SIZE, WIDTH),
    "head": normal(WIDTH, SIZE, seed=1),
    "bias": normal(SIZE, seed=2),
    "positions": normal(7, WIDTH, seed=3),
}
TOKENS = ROWS[np.random.default_rng(4).integers(0, len(KEEP), (2, 5))]
TOKENS = TOKENS.astype(jnp.int32)


def looked_up(v, tokens):
    return jnp.tanh(v["table"][tokens])


def tied(v, tokens):
    x = looked_up(v, tokens) + v["positions"][None, : tokens.shape[1]]
    return x @ v["table"].T + v["bias"][None, None]


def untied(v, tokens):
    x = jnp.tanh(jnp.take(v["table"], tokens, axis=0))
    return x @ v["head"] + v["bias"][None, None]


def one_hot(v, tokens):
    return jnp.tanh(jax.nn.one_hot(tokens, SIZE) @ v["table"]) @ v["head"]


def with_padding(v, tokens):
    real = (tokens != 0) & (tokens > 0)
    return jnp.where(real[..., None], looked_up(v, tokens), 0.0) @ v["head"]


def recurrent(v, tokens):
    def step(state, token):
        state = jnp.tanh(state + v["table"][token])
        return state, state @ v["head"]

    first = jnp.zeros((tokens.shape[0], WIDTH))
    return jax.lax.scan(step, first, tokens.T)[1]


def pooled(v, tokens):
    return looked_up(v, tokens).sum(1)


def checkpointed(v, tokens):
    return jax.checkpoint(jax.jit(untied))(v, tokens)


def greedy(v, tokens):
    def step(token, _):
        logits = looked_up(v, token) @ v["head"]
        token = jnp.argmax(logits, -1).astype(jnp.int32)
        return token, token

    return jax.lax.scan(step, tokens[:, 0], None, length=4)[1]


def greedy_into_a_buffer(v, tokens):
    first = jnp.zeros((tokens.shape[0], 6), jnp.int32).at[:, 0].set(tokens[:, 0])

    def step(i, buffer):
        token = jax.lax.dynamic_index_in_dim(buffer, i, 1, keepdims=False)
        new = jnp.argmax(looked_up(v, token) @ v["head"], -1).astype(jnp.int32)
        return jax.lax.dynamic_update_index_in_dim(buffer, new, i + 1, 1)

    return jax.lax.fori_loop(0, 5, step, first)


def loss(v, tokens):
    logs = jax.nn.log_softmax(tied(v, tokens))
    return -jnp.take_along_axis(logs, tokens[..., None], -1).mean()


QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
"""Code that is compiled fast and runs slowly."""


def both(small, new, function, variables, tokens):
    """What the smaller program and the function give, compiled together."""

    @functools.partial(jax.jit, compiler_options=QUICK)
    def run(values, new, variables, tokens):
        got = small.graph.evaluate(values, [new])
        return got, jax.tree.leaves(function(variables, tokens))

    return run(small.values, new, variables, tokens)


LAWFUL = (tied, untied, one_hot, with_padding, recurrent, pooled, checkpointed)


def sliced(v):
    return {
        "table": v["table"][ROWS],
        "head": v["head"][:, ROWS],
        "bias": v["bias"][ROWS],
        "positions": v["positions"],
    }


@pytest.mark.parametrize("function", LAWFUL, ids=lambda f: f.__name__)
def test_logits_of_kept_tokens_are_what_they_were(function):
    program = mc.trace(function, WEIGHTS, TOKENS)
    small, ids = vocabulary(program, KEEP)
    assert ids.kept == tuple(KEEP)
    new = ids.encode(TOKENS)
    got, (want,) = both(small, new, function, WEIGHTS, TOKENS)
    want = want[..., ROWS] if want.shape[-1] == SIZE else want
    assert relative_error(got, want) < 1e-6
    assert dict(zip(small.graph.paths, small.values, strict=True))["table"].shape == (
        len(KEEP),
        WIDTH,
    )
    again = small >> small.recipe[-1]
    assert again.graph is small.graph
    assert again.history[-1].events.skipped[0].what == "has these rows alone already"


@pytest.mark.parametrize("function", [greedy, greedy_into_a_buffer, loss])
def test_what_is_done_over_all_tokens_has_to_be_allowed(function):
    program = mc.trace(function, WEIGHTS, TOKENS)
    with pytest.raises(PlanError, match=r"over the whole vocabulary .*allow it with"):
        vocabulary(program, KEEP)
    small, ids = vocabulary(program, KEEP, among_kept=True)
    new = ids.encode(TOKENS)
    (got,), (want,) = both(small, new, function, sliced(WEIGHTS), new)
    if function is loss:
        assert relative_error(got, want) < 1e-6
    else:
        assert np.array_equal(got, want)
        assert np.array_equal(ids.decode(got), ROWS[want])


def test_the_table_is_chosen_by_path_where_there_are_several():
    def function(v, tokens, places):
        return (looked_up(v, tokens) + v["positions"][places]) @ v["head"]

    places = jnp.broadcast_to(jnp.arange(5), (2, 5))
    program = mc.trace(function, WEIGHTS, TOKENS, places)
    with pytest.raises(PlanError, match=r"table, positions|positions, table"):
        vocabulary(program, KEEP)
    small, ids = vocabulary(program, KEEP, path="table")
    got = small(ids.encode(TOKENS), places)
    assert relative_error(got, program(TOKENS, places)[..., ROWS]) < 1e-6
    shorter, where = vocabulary(program, range(5), path="positions")
    assert shorter.variables["positions"].shape == (5, WIDTH)
    assert np.array_equal(
        shorter(TOKENS, where.encode(places)), program(TOKENS, places)
    )


class Linen(nn.Module):
    size: int

    @nn.compact
    def __call__(self, tokens):
        embed = nn.Embed(self.size, WIDTH)
        x = embed(tokens)
        x = x + nn.Dense(WIDTH)(nn.LayerNorm()(x))
        return embed.attend(x), nn.Dense(self.size)(x)


class Nnx(nnx.Module):
    def __init__(self, rngs):
        self.embed = nnx.Embed(SIZE, WIDTH, rngs=rngs)
        self.head = nnx.Linear(WIDTH, SIZE, rngs=rngs)

    def __call__(self, tokens):
        return self.head(jnp.tanh(self.embed(tokens)))


def linen_case():
    shapes = jax.eval_shape(Linen(SIZE).init, jax.random.key(0), TOKENS)
    return Linen(SIZE).apply, shapes


def nnx_case():
    shell, state = nnx.split(nnx.eval_shape(lambda: Nnx(nnx.Rngs(0))))
    return (lambda state, tokens: nnx.merge(shell, state)(tokens)), state


def equinox_case():
    def build(key):
        return {
            "embed": eqx.nn.Embedding(SIZE, WIDTH, key=key),
            "head": eqx.nn.Linear(WIDTH, SIZE, key=key),
        }

    def function(model, tokens):
        one = lambda token: model["head"](model["embed"](token))  # noqa: E731
        return jax.vmap(jax.vmap(one))(tokens)

    return function, eqx.filter_eval_shape(build, jax.random.key(0))


def haiku_case():
    def forward(tokens):
        return hk.Linear(SIZE)(jnp.tanh(hk.Embed(SIZE, WIDTH)(tokens)))

    model = hk.without_apply_rng(hk.transform(forward))
    return model.apply, jax.eval_shape(model.init, jax.random.key(0), TOKENS)


@pytest.mark.parametrize(
    "case", [linen_case, nnx_case, equinox_case, haiku_case], ids=lambda f: f.__name__
)
def test_models_of_four_frameworks_keep_their_logits(case):
    function, shapes = case()
    random = np.random.default_rng(3)

    def draw(leaf):
        if not hasattr(leaf, "shape"):
            return leaf
        return jnp.asarray(random.normal(size=leaf.shape), leaf.dtype)

    variables = jax.tree.map(draw, shapes)
    program = mc.trace(function, variables, TOKENS)
    small, ids = vocabulary(program, KEEP)
    new = ids.encode(TOKENS)
    got, want = both(small, new, program.function, program.variables, TOKENS)
    want = jax.tree.map(lambda y: y[..., ROWS], want)
    assert relative_error(got, want) < 1e-6
    smaller = {leaf.spec.shape for leaf in small.graph.leaves}
    assert not any(SIZE in shape for shape in smaller)


def test_other_batches_and_gradients_of_the_smaller_program():
    small, ids = vocabulary(mc.trace(tied, WEIGHTS, TOKENS), KEEP)
    short = TOKENS[:1, :3]
    want = jax.jit(tied)(sliced(WEIGHTS), ids.encode(short))
    assert relative_error(small(ids.encode(short)), want) < 1e-6
    total = lambda f: lambda v: f(v, ids.encode(TOKENS)).sum()  # noqa: E731
    got = jax.jit(jax.grad(total(small.function)))(small.variables)
    want = jax.jit(jax.grad(total(tied)))(sliced(WEIGHTS))
    assert relative_error(got["table"], want["table"]) < 1e-5


def test_a_corpus_tells_what_stays():
    program = mc.trace(tied, WEIGHTS, TOKENS)
    corpus = [np.array([[3, 5, 5], [9, 5, 3]]), np.array([0])]
    _, ids = vocabulary(program, corpus=corpus, min_count=2, keep=[10], unknown=0)
    assert ids == Vocabulary((0, 3, 5, 10), SIZE, 0)
    assert ids.encode(np.array([[3, 7], [-1, 0]])).tolist() == [[1, 0], [3, 0]]


def test_ids_and_logits_are_decoded():
    ids = Vocabulary((1, 4), 6)
    assert ids.decode(jnp.array([[1, 0]])).tolist() == [[4, 1]]
    inf = np.inf
    logits = ids.decode(jnp.array([0.5, 2.0])).tolist()
    assert logits == [-inf, 0.5, -inf, -inf, 2.0, -inf]
    with pytest.raises(ValueError, match=r"tokens that were kept, \[3\] are gone"):
        ids.encode([1, 3])
    with pytest.raises(ValueError, match="ids from 0 to 5, got 1 to 6"):
        ids.encode([1, 6])


def test_the_pass_and_the_map_are_data():
    small, ids = vocabulary(mc.trace(tied, WEIGHTS, TOKENS), KEEP)
    step = small.recipe[-1]
    assert isinstance(step, PruneVocabulary)
    for value in (step, ids):
        config = json.loads(json.dumps(mp.to_config(value)))
        assert mp.from_config(config) == value


def test_what_has_to_stay_is_told():
    padded = mc.trace(with_padding, WEIGHTS, TOKENS)
    with pytest.raises(PlanError, match=r"the first is 0.*Keep these ids"):
        vocabulary(padded, KEEP[1:])

    def shifted(v, tokens):
        return v["table"][tokens * 2 % SIZE]

    with pytest.raises(UnknownPathError, match=r"mul computes with ids \(.*shifted"):
        vocabulary(mc.trace(shifted, WEIGHTS, TOKENS), KEEP)
    program = mc.trace(tied, WEIGHTS, TOKENS)
    with pytest.raises(UnknownPathError, match=r"there are: table. Name one of these"):
        vocabulary(program, KEEP, path="head")
    with pytest.raises(ValueError, match=r"ids from 0 to 10, got \[11\]"):
        vocabulary(program, [0, 11])
    with pytest.raises(ValueError, match="got none"):
        vocabulary(program, [])
    with pytest.raises(ValueError, match="expected keep= or corpus="):
        vocabulary(program)
    with pytest.raises(PlanError, match="expected 12 rows, got 11"):
        program >> PruneVocabulary((0, 1), 12, "table")
