"""The cut: never larger than the weights, never larger than any other cut."""

import itertools

import jax
import jax.numpy as jnp
from hypothesis import given, settings
from hypothesis import strategies as st

from compiler.binding import cut, dependencies, digests
from compiler.graph import evaluate, nbytes


def bytes_of(variables):
    return sum(nbytes(v.aval) for v in variables)


@st.composite
def programs(draw):
    """A function of two weights and an input, of random operations on vectors."""
    steps = draw(
        st.lists(
            st.tuples(
                st.sampled_from(["add", "half", "double", "sin", "mix"]),
                st.integers(0, 9),
                st.integers(0, 9),
            ),
            min_size=1,
            max_size=7,
        )
    )
    sizes = draw(st.tuples(st.sampled_from([2, 4, 8]), st.sampled_from([2, 4, 8])))

    def function(a, b, x):
        values = [a, b]
        result = x
        for name, i, j in steps:
            u, v = values[i % len(values)], values[j % len(values)]
            if name == "add" and u.shape == v.shape:
                values.append(u + v)
            elif name == "half" and u.shape[0] > 1:
                values.append(jnp.sin(u[: u.shape[0] // 2]))
            elif name == "double" and u.shape[0] < 32:
                values.append(jnp.concatenate([u, u]))
            elif name == "sin":
                values.append(jnp.sin(u))
            else:
                result = result + u.sum() + u[0] * x
        return result * values[-1][0]

    specs = [jax.ShapeDtypeStruct((n,), "float32") for n in (*sizes, 3)]
    return jax.make_jaxpr(function)(*specs)


def is_cut(jaxpr, early, chosen):
    """Whether the outputs follow from the chosen variables and the late inputs."""
    env = {v: jnp.ones(v.aval.shape, v.aval.dtype) for v in chosen}
    env |= {v: jnp.ones(v.aval.shape, v.aval.dtype) for v in jaxpr.jaxpr.invars[early:]}
    try:
        jax.eval_shape(lambda: evaluate(jaxpr, env))
    except KeyError:
        return False
    return True


@settings(max_examples=60, deadline=None)
@given(programs())
def test_the_cut_is_sufficient_and_of_all_sufficient_ones_the_smallest(jaxpr):
    chosen = cut(jaxpr, [True, True, False])
    assert is_cut(jaxpr, 2, chosen)
    assert bytes_of(chosen) <= bytes_of(jaxpr.jaxpr.invars[:2])
    parents, _ = dependencies(jaxpr, jaxpr.jaxpr.invars[:2])
    views = {
        v
        for e in jaxpr.eqns
        for v in e.outvars
        if e.primitive.name in ("reshape", "squeeze", "broadcast_in_dim")
    }
    candidates = [v for v in parents if v not in views]
    for count in range(min(3, len(candidates)) + 1):
        for other in itertools.combinations(candidates, count):
            if bytes_of(other) < bytes_of(chosen):
                assert not is_cut(jaxpr, 2, other)


def test_an_eight_bit_weight_is_not_expanded_back():
    def function(values, scale, x):
        return x @ (values.astype(jnp.float32) * scale)

    specs = [
        jax.ShapeDtypeStruct((64, 64), "int8"),
        jax.ShapeDtypeStruct((1, 64), "float32"),
        jax.ShapeDtypeStruct((2, 64), "float32"),
    ]
    jaxpr = jax.make_jaxpr(function)(*specs)
    assert cut(jaxpr, [True, True, False]) == jaxpr.jaxpr.invars[:2]


def test_a_cast_to_fewer_bits_is_kept():
    jaxpr = jax.make_jaxpr(lambda w, x: x @ w.astype(jnp.bfloat16))(
        jax.ShapeDtypeStruct((8, 8), "float32"),
        jax.ShapeDtypeStruct((2, 8), "bfloat16"),
    )
    (kept,) = cut(jaxpr, [True, False])
    assert kept.aval.dtype == jnp.bfloat16


def test_outputs_that_depend_on_weights_alone_are_kept():
    jaxpr = jax.make_jaxpr(lambda w, x: (jnp.sin(w), x))(1.0, 2.0)
    assert cut(jaxpr, [True, False]) == [jaxpr.jaxpr.outvars[0]]


def test_digests_tell_a_computation_in_any_trace_and_notice_the_batch():
    def function(w, x):
        return x + jnp.broadcast_to(jnp.sin(w), x.shape) * jnp.cos(w)

    def traced(batch):
        jaxpr = jax.make_jaxpr(function)(jnp.ones((1, 4)), jnp.ones((batch, 4)))
        found = digests(jaxpr, [True, False])
        return {
            e.primitive.name: found[e.outvars[0]]
            for e in jaxpr.eqns
            if e.outvars[0] in found
        }

    two, three = traced(2), traced(3)
    assert two["sin"] == three["sin"] != two["cos"] == three["cos"]
    assert two["broadcast_in_dim"] != three["broadcast_in_dim"]
