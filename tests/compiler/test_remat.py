"""Rematerialisation: the same numbers, fewer of them kept."""

import functools

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import example, given, settings
from hypothesis import strategies as st
from jax.ad_checkpoint import checkpoint_name
from zoo import ZOO, normal, relative_error

import compiler as mc
import mapping as mp
from compiler import jaxprs
from compiler.errors import UnknownPathError
from compiler.passes.remat import Remat, remat
from compiler.passes.remat.regions import Regions


def blocks(v, x):
    """Three blocks, each with five values a gradient reads."""
    for name, block in sorted(v["encoder"].items()):
        with jax.named_scope(f"encoder/{name}"):
            h = checkpoint_name(jnp.sin(x @ block["up"]), "wide")
            x = x + jnp.tanh(jnp.exp(-h * h) @ block["down"])
    return x


def weights(count=3):
    return {
        "encoder": {
            f"block_{i}": {
                "up": normal(8, 64, seed=i) / 4,
                "down": normal(64, 8, seed=i),
            }
            for i in range(count)
        }
    }


def kernel():
    return {"block": {"kernel": normal(8, 8)}}


@functools.cache
def traced():
    return mc.trace(blocks, weights(), normal(4, 8))


def kept(function, v, *inputs):
    """The bytes a gradient keeps from the forward pass."""
    backward = jax.eval_shape(lambda *v: jax.vjp(function, *v)[1], v, *inputs)
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(backward))


def gradient(function, v, *inputs):
    def loss(v):
        return sum((y**2).sum() for y in jax.tree.leaves(function(v, *inputs)))

    return jax.grad(loss)(v)


def regions(program):
    found = jaxprs.nested(program.graph.jaxpr)
    return [e for e, _ in found if e.primitive.name == "remat2"]


def events(program):
    return program.history[-1].events


def test_blocks_keep_only_what_flows_in():
    program = traced()
    v, x = program.variables, normal(4, 8)
    small = program >> remat("encoder/*")
    own = sum(leaf.size * 4 for leaf in jax.tree.leaves(v))
    assert kept(small.function, v, x) == own + 3 * x.size * 4  # weights, block inputs
    assert kept(program.function, v, x) > own + 12 * x.size * 4
    assert [e.path for e in events(small).fired] == [
        f"encoder/block_{i}" for i in range(3)
    ]
    assert len(regions(small)) == 3


def test_values_and_gradients_are_the_same_numbers():
    program = traced()
    v, x = program.variables, normal(4, 8, seed=3)
    for policy in ("nothing", "dots", "everything_saveable"):
        small = program >> remat("encoder/*", policy)
        np.testing.assert_array_equal(small(x), program(x))
        with jax.disable_jit():
            np.testing.assert_array_equal(small.function(v, x), program.function(v, x))
            got, want = (gradient(p.function, v, x) for p in (small, program))
        jax.tree.map(np.testing.assert_array_equal, got, want)


def test_policies_order_what_is_kept():
    program = traced()
    v, x = program.variables, normal(4, 8)
    named = remat("encoder/*", "save_only_these_names", "wide")
    nothing, dots, everything = (
        kept((program >> remat("encoder/*", policy)).function, v, x)
        for policy in ("nothing", "dots", "everything")
    )
    names = kept((program >> named).function, v, x)
    assert nothing < names < dots < everything
    assert names == nothing + 3 * 4 * 64 * 4
    assert everything == kept(program.function, v, x)


def test_the_second_time_nothing_happens():
    once = traced() >> remat("encoder/*")
    twice = once >> remat("encoder/*")
    assert twice.graph is once.graph
    assert {e.what for e in events(twice).skipped} == {"it is rematerialised already"}


@pytest.mark.parametrize("name", ["linen scanned", "equinox attention"])
def test_foreign_models_keep_their_values(name):
    function, variables, inputs = ZOO[name]()
    program = mc.trace(function, variables, *inputs)
    small = program >> remat("*")
    assert relative_error(small(*inputs), program(*inputs)) == 0.0
    assert not events(small >> remat("*")).fired
    assert kept(small.function, program.variables, *inputs) <= kept(
        program.function, program.variables, *inputs
    )


def test_a_loop_is_rematerialised_inside():
    class Block(nn.Module):
        @nn.compact
        def __call__(self, x, _):
            return x + nn.Dense(8)(jnp.sin(jnp.sin(nn.Dense(64)(x)))), None

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            stack = nn.scan(
                Block,
                variable_axes={"params": 0},
                split_rngs={"params": True},
                length=4,
            )
            return stack(name="stack")(x, None)[0]

    x = normal(2, 8)
    v = Net().init(jax.random.key(0), x)
    program = mc.trace(Net().apply, v, x)
    small = program >> remat("stack")
    (region,) = regions(small)
    assert not region.params["prevent_cse"]  # the loop keeps its iterations apart
    own = sum(leaf.size * 4 for leaf in jax.tree.leaves(v))
    assert kept(small.function, v, x) <= own + 4 * x.size * 4 + 64
    got, want = (
        jax.jit(gradient, static_argnums=0)(p.function, v, x) for p in (small, program)
    )
    assert relative_error(got, want) < 1e-6


def test_a_loop_at_the_path_itself_is_rematerialised_inside():
    def function(v, x):
        with jax.named_scope("rnn"):
            step = lambda h, x: (jnp.sin(jnp.sin(h @ v["rnn"]["w"] + x)), None)  # noqa: E731
            return jax.lax.scan(step, 2.0 * x[0], x)[0]

    v, x = {"rnn": {"w": normal(8, 8)}}, normal(5, 2, 8)
    program = mc.trace(function, v, x)
    small = program >> remat("rnn")
    (loop,) = [e for e in small.graph.jaxpr.eqns if e.primitive.name == "scan"]
    (body,) = jaxprs.bodies(loop)
    assert [e.primitive.name for e in jaxprs.equations(body.jaxpr)] == ["remat2"]
    np.testing.assert_array_equal(small(x), program(x))
    assert not events(small >> remat("rnn")).fired


def test_models_without_scopes_are_divided_by_their_parameters():
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.layers = nnx.List([nnx.Linear(8, 8, rngs=rngs) for _ in range(3)])

        def __call__(self, x):
            for layer in self.layers:
                x = jnp.sin(jnp.sin(layer(x)))
            return x

    graph, state = nnx.split(Net(nnx.Rngs(0)))
    program = mc.trace(lambda s, x: nnx.merge(graph, s)(x), state, normal(4, 8))
    small = program >> remat("layers/*")
    assert [e.path for e in events(small).fired] == [f"layers/{i}" for i in range(3)]
    model = eqx.nn.MLP(8, 8, 8, 2, key=jax.random.key(0))
    program = mc.trace(lambda m, x: jax.vmap(m)(x), model, normal(4, 8))
    small = program >> remat("layers/*")
    assert len(regions(small)) >= 2
    np.testing.assert_array_equal(small(normal(4, 8)), program(normal(4, 8)))


def test_a_value_that_leaves_and_comes_back_divides_a_block():
    def function(v, x):
        with jax.named_scope("block"):
            a = jnp.sin(x @ v["block"]["kernel"])
            b = jnp.cos(a)
        with jax.named_scope("other"):
            c = jnp.exp(b)
        with jax.named_scope("block"):
            d = jnp.sin(c * b)
            return jnp.cos(d) + c

    v, x = kernel(), normal(2, 8)
    program = mc.trace(function, v, x)
    small = program >> remat("block")
    assert len(regions(small)) == 2
    np.testing.assert_array_equal(small(x), program(x))
    assert not events(small >> remat("block")).fired


def test_what_does_not_depend_on_a_block_does_not_divide_it():
    def function(v, x):
        with jax.named_scope("block"):
            a = jnp.sin(x @ v["block"]["kernel"])
        with jax.named_scope("aside"):
            b = jnp.exp(x)  # before it
            c = jnp.exp(a)  # after it
        with jax.named_scope("block"):
            return jnp.cos(a) * b, c

    v, x = kernel(), normal(2, 8)
    program = mc.trace(function, v, x)
    small = program >> remat("block")
    assert len(regions(small)) == 1
    jax.tree.map(np.testing.assert_array_equal, small(x), program(x))


@example([(0, 0, "a"), (1, 1, "b"), (0, 0, "c"), (3, 1, "a"), (2, 2, "c")])
@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 9), st.integers(0, 9), st.sampled_from("abc-")),
        min_size=1,
        max_size=24,
    )
)
def test_any_interleaving_is_divided_soundly(steps):
    def function(x):
        values = [x]
        for i, j, _ in steps:
            values.append(values[i % len(values)] - values[j % len(values)])
        return values[-1], values[len(values) // 2]

    jaxpr = jax.make_jaxpr(function)(1.0)
    keys = [None if key == "-" else key for _, _, key in steps]
    found = Regions(jaxpr, keys)
    ready = set(jaxpr.jaxpr.invars)
    order = list(found.order())
    for part in order:
        inside = set()
        for i in part:
            assert jaxprs.variables(jaxpr.eqns[i].invars) <= ready | inside
            inside |= set(jaxpr.eqns[i].outvars)
        ready |= inside
        assert len({keys[i] for i in part}) == 1
    assert sorted(i for part in order for i in part) == list(range(len(steps)))


def test_printing_happens_once_and_in_order(capfd):
    def function(v, x):
        with jax.named_scope("block"):
            h = jnp.sin(x @ v["block"]["kernel"])
            jax.debug.print("first {s}", s=h.sum(), ordered=True)
            h = jnp.sin(h)
            jax.debug.print("second {s}", s=h.sum(), ordered=True)
            return jnp.sin(h)

    v, x = kernel(), normal(2, 8)
    small = mc.trace(function, v, x) >> remat("block")
    assert len(regions(small)) == 1
    jax.jit(lambda v: gradient(small.function, v, x))(v)
    jax.effects_barrier()
    lines = capfd.readouterr().out.split("\n")
    assert [line.split()[0] for line in lines if line] == ["first", "second"]


def test_dropout_draws_the_same_mask_again():
    def function(v, x, key):
        with jax.named_scope("block"):
            h = jnp.sin(x @ v["block"]["kernel"])
            return jnp.sin(h * jax.random.bernoulli(key, 0.5, h.shape).astype(h.dtype))

    v, x, key = kernel(), normal(2, 8), jax.random.key(3)
    program = mc.trace(function, v, x, key)
    small = program >> remat("block")
    got, want = (gradient(p.function, v, x, key) for p in (small, program))
    assert relative_error(got, want) < 1e-6


def test_it_composes_with_jax_and_other_passes():
    program = traced() >> mc.fold()
    small = traced() >> mc.fold() >> remat("encoder/*", "dots")
    v, x = program.variables, normal(7, 8, seed=5)
    np.testing.assert_array_equal(small(x), program(x))
    many = normal(2, 4, 8)
    got, want = (jax.vmap(p.function, (None, 0))(v, many) for p in (small, program))
    assert relative_error(got, want) < 1e-6
    got, want = (
        jax.jvp(lambda x, p=p: p.function(v, x), (x,), (x,)) for p in (small, program)
    )
    assert relative_error(got, want) < 1e-6


def test_a_graph_with_its_gradient_is_left():
    v, x = weights(), normal(4, 8)
    program = mc.trace(lambda v, x: gradient(blocks, v, x), v, x)
    small = program >> remat("encoder/*")
    assert small.graph is program.graph
    assert len(events(small).skipped) == 3
    assert "gradient is in the graph already" in events(small).skipped[0].what


def test_one_operation_alone_is_left():
    def function(v, x):
        with jax.named_scope("block"):
            return x @ v["block"]["kernel"]

    program = mc.trace(function, kernel(), normal(2, 8))
    assert "one operation alone" in events(program >> remat("block")).skipped[0].what


def test_a_path_that_names_nothing_is_refused():
    with pytest.raises(UnknownPathError, match=r"encodr/\*: .* nearest there are: enc"):
        traced() >> remat("encodr/*")


def test_unknown_policies_are_refused():
    with pytest.raises(ValueError, match=r"got 'dots_savable'\. Did you mean dots_sav"):
        remat("*", "dots_savable")
    with pytest.raises(ValueError, match="save_only_these_names takes names, got none"):
        remat("*", "save_only_these_names")
    with pytest.raises(ValueError, match=r"nothing_saveable takes none, got \('a',\)"):
        remat("*", names="a")


def test_the_pass_is_data():
    step = remat(["a", "b/*"], "save_only_these_names", ("x", "y"))
    assert mp.from_config(mp.to_config(step)) == step
    assert remat("a") == Remat(("a",))
