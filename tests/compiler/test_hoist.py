"""What loops carry but never change is a constant of theirs, and what follows too."""

import jax
import jax.numpy as jnp
import pytest
from zoo import normal, relative_error

import compiler as mc
from compiler import jaxprs

V = {"w": normal(4, 4), "g": normal(1, 4)}


def inside(program):
    """The primitives inside the loops of a program."""
    outer = len(jaxprs.equations(program.graph.jaxpr))
    found = [e.primitive.name for e, _ in jaxprs.nested(program.graph.jaxpr)]
    assert len(found) > outer
    return found


def counted(v, x):
    def step(i, carry):
        w, g, h = carry
        return w, g, jnp.tanh(h @ (w * jnp.exp(g)))

    return jax.lax.fori_loop(0, 3, step, (v["w"], v["g"], x))[-1]


def waited(v, x):
    def step(carry):
        i, w, g, h = carry
        return i + 1, w, g, jnp.tanh(h @ (w * jnp.exp(g)))

    def goes_on(carry):
        return (carry[0] < 3) & (jnp.exp(carry[2]).sum() > 0)

    return jax.lax.while_loop(goes_on, step, (0, v["w"], v["g"], x))[-1]


def scanned(v, x):
    def step(carry, t):
        (w, g), h = carry
        h = jnp.tanh(h @ (w * jnp.exp(g)) + t)
        return ((w, g), h), h.sum()

    (_, last), sums = jax.lax.scan(step, ((v["w"], v["g"]), x), jnp.arange(3.0))
    return last, sums


def called(v, x):
    @jax.jit
    def layer(w, g, h):
        return w, g, jnp.tanh(h @ (w * jnp.exp(g)))

    def step(carry, _):
        return layer(*carry), None

    return jax.lax.scan(step, (v["w"], v["g"], x), None, 3)[0][-1]


def unrolled_backwards(v, x):
    def step(carry, t):
        g, h, w = carry
        return (g, jnp.tanh(h @ (w * jnp.exp(g)) * t), w), h

    xs = x.sum() * jnp.arange(6.0)
    return jax.lax.scan(step, (v["g"], x, v["w"]), xs, reverse=True, unroll=2)[1]


@pytest.mark.parametrize(
    "function", [counted, waited, scanned, called, unrolled_backwards]
)
def test_what_is_carried_unchanged_is_a_constant_of_the_loop(function):
    x = normal(2, 4)
    program = mc.trace(function, V, x)
    folded = program >> mc.fold()
    assert "exp" in inside(program)
    assert "exp" not in inside(folded)
    assert folded.bytes < program.bytes
    assert relative_error(folded(x), function(V, x)) < 1e-6
    assert relative_error(folded(normal(5, 4)), function(V, normal(5, 4))) < 1e-6
    again = folded >> mc.fold()
    assert str(again.graph) == str(folded.graph)
    assert not again.history[-1].events.fired


def test_a_batch_norm_whose_statistics_are_carried_is_merged():
    def function(v, x):
        def step(carry, _):
            w, scale, h = carry
            return (w, scale, jnp.tanh((h @ w) * scale)), None

        return jax.lax.scan(step, (v["w"], v["g"], x), None, 3)[0][-1]

    folded = mc.trace(function, V, normal(2, 4)) >> mc.fold()
    assert "mul" not in inside(folded)
    assert folded.graph.paths == ["w"]
    x = normal(2, 4, seed=1)
    assert relative_error(folded(x), function(V, x)) < 1e-6


def test_weights_that_change_places_or_values_are_not_constants():
    def swapped(v, x):
        def step(carry, _):
            a, b, h = carry
            return (b, a, jnp.tanh(h @ jnp.exp(a))), None

        return jax.lax.scan(step, (v["w"], 2.0 * v["w"], x), None, 3)[0][-1]

    def decayed(v, x):
        def step(carry, _):
            w, h = carry
            return (w * 0.5, jnp.tanh(h @ jnp.exp(w))), None

        return jax.lax.scan(step, (v["w"], x), None, 3)[0][-1]

    for function in (swapped, decayed):
        x = normal(2, 4)
        folded = mc.trace(function, V, x) >> mc.fold()
        assert "exp" in inside(folded)
        assert relative_error(folded(x), function(V, x)) < 1e-6


def test_a_carried_weight_that_is_returned_is_given_back_as_it_was():
    def function(v, x):
        def step(i, carry):
            g, h = carry
            return g, h + jnp.outer(jnp.exp(g), g)

        return jax.lax.fori_loop(0, 3, step, (v["g"][0], x))

    folded = mc.trace(function, V, normal(4, 4)) >> mc.fold()
    x = normal(4, 4, seed=1)
    got, want = folded(x), function(V, x)
    assert (got[0] == want[0]).all()
    assert relative_error(got, want) < 1e-6


def test_gradients_pass_through_a_hoisted_scan():
    x = normal(2, 4)
    folded = mc.trace(called, V, x) >> mc.fold()
    got = jax.grad(lambda x: folded.function(folded.variables, x).sum())(x)
    want = jax.grad(lambda x: called(V, x).sum())(x)
    assert relative_error(got, want) < 1e-5


def test_work_on_weights_inside_a_call_is_found():
    @jax.jit
    def layer(w, x):
        return x @ jnp.exp(w)

    folded = mc.trace(lambda v, x: jnp.tanh(layer(v, x)), V["w"], normal(2, 4))
    folded = folded >> mc.fold()
    names = [e.primitive.name for e, _ in jaxprs.nested(folded.graph.jaxpr)]
    assert "exp" not in names


def test_a_call_with_no_work_on_weights_stays_a_call():
    @jax.jit
    def layer(w, x):
        return jnp.sin(x) @ w

    program = mc.trace(lambda v, x: jnp.tanh(layer(v, x)), V["w"], normal(2, 4))
    folded = program >> mc.fold()
    assert str(folded.graph) == str(program.graph)
