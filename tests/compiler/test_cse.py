"""What is computed twice is computed once, and what must not be merged is not."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

import compiler as mc
from compiler import jaxprs
from compiler.passes.simplify import simplify

X = jnp.linspace(-1.0, 1.0, 6).reshape(2, 3)


def names(program):
    """The primitives at every depth."""
    return [e.primitive.name for e, _ in jaxprs.nested(program.graph.jaxpr)]


def merged(function, x=X, variables=()):
    """The primitives that are left; the values must be the same."""
    program = mc.trace(function, variables, x)
    shorter = program >> simplify()
    for got, want in zip(
        jax.tree.leaves(shorter(x)), jax.tree.leaves(program(x)), strict=True
    ):
        np.testing.assert_array_equal(got, want, strict=True)
    assert not (shorter >> simplify()).history[-1].events.fired
    return names(shorter)


def test_equal_computations_are_done_once():
    assert merged(lambda _, x: jnp.sin(x) * jnp.cos(x) + jnp.sin(x) * jnp.cos(x)) == [
        "sin",
        "cos",
        "mul",
        "add",
    ]


def test_operands_of_commutative_primitives_may_change_places():
    found = merged(lambda _, x: (x + jnp.sin(x)) * (jnp.sin(x) + x))
    assert found.count("add") == 1
    found = merged(lambda _, x: (x - jnp.sin(x)) * (jnp.sin(x) - x))
    assert found.count("sub") == 2


def test_params_and_literals_tell_computations_apart():
    found = merged(lambda _, x: (x.sum(0), x.sum(1), x.sum(0), x * 2.0, x * 3.0))
    assert found.count("reduce_sum") == 2
    assert found.count("mul") == 2


def test_zero_and_minus_zero_are_two_numbers():
    found = merged(
        lambda _, x: (jnp.copysign(1.0, x * 0.0), jnp.copysign(1.0, x * -0.0))
    )
    assert found.count("mul") == 2


def test_zero_and_minus_zero_are_two_params():
    def f(_, x):
        outside = x.at[jnp.full(1, 5)]
        plus = outside.get(mode="fill", fill_value=0.0)
        minus = outside.get(mode="fill", fill_value=-0.0)
        return jnp.copysign(1.0, plus), jnp.copysign(1.0, minus)

    assert merged(f).count("gather") == 2


def test_chains_collapse_in_one_go():
    def f(_, x):
        a = b = x
        for _ in range(20):
            a, b = jnp.sin(a) + 1.0, jnp.sin(b) + 1.0
        return a * b

    assert merged(f).count("sin") == 20


def test_equal_loops_are_run_once():
    def loop(x, factor):
        return lax.scan(lambda c, y: (c * factor + y, None), x[0], x)[0]

    found = merged(lambda _, x: (loop(x, 2.0), loop(x, 2.0), loop(x, 3.0)))
    assert found.count("scan") == 2


def test_equal_branches_inside_bodies_are_merged():
    def f(_, x):
        def step(c, y):
            return c + jnp.sin(y) * jnp.sin(y), None

        return lax.scan(step, x[0], x)[0]

    assert merged(f).count("sin") == 1


def test_equal_keys_draw_equal_numbers_and_others_do_not():
    def f(key, x):
        one, two = jax.random.split(key)
        return jax.random.normal(one, (2, 3)) + jax.random.normal(two, (2, 3)) * x

    key = jax.random.key(3)
    assert merged(f, variables=key).count("random_bits") == 2

    def same(key, x):
        return jax.random.normal(key, (2, 3)) + jax.random.normal(key, (2, 3)) * x

    assert merged(same, variables=key).count("random_bits") == 1


def test_effects_are_never_merged():
    def f(_, x):
        jax.debug.callback(lambda y: None, x)
        jax.debug.callback(lambda y: None, x)
        return x

    assert merged(f).count("debug_callback") == 2


def test_a_barrier_keeps_a_recomputation():
    def f(_, x):
        return jnp.sin(x) + jnp.sin(lax.optimization_barrier(x))

    assert merged(f).count("sin") == 2

    def twice(_, x):
        return lax.optimization_barrier(x) + lax.optimization_barrier(x)

    assert merged(twice).count("optimization_barrier") == 2


def test_recomputation_is_not_merged_with_the_forward_pass():
    def f(w, x):
        block = jax.checkpoint(lambda w: jnp.tanh(jnp.tanh(x @ w) @ w))
        return jax.value_and_grad(lambda w: block(w).sum())(w)

    program = mc.trace(f, jnp.eye(3), X)
    shorter = program >> simplify()
    assert names(shorter).count("tanh") == names(program).count("tanh") == 4
    assert "remat2" in names(shorter)
    np.testing.assert_array_equal(shorter(X)[1], program(X)[1])


def test_functions_with_derivative_rules_of_their_own_stay_two():
    def twice(scale):
        @jax.custom_jvp
        def f(x):
            return x * 2.0

        f.defjvp(lambda primals, tangents: (f(*primals), scale * tangents[0]))
        return f

    one, two = twice(1.0), twice(5.0)
    program = mc.trace(lambda _, x: one(x) + two(x), (), X)
    shorter = program >> simplify()
    grad = jax.grad(lambda x: shorter.function((), x).sum())(X)
    np.testing.assert_array_equal(grad, jnp.full((2, 3), 6.0))


def test_sharding_constraints_are_kept():
    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = NamedSharding(mesh, PartitionSpec("data"))

    def f(_, x):
        y = lax.with_sharding_constraint(x * 1.0, sharding)
        return y + lax.with_sharding_constraint(y, NamedSharding(mesh, PartitionSpec()))

    assert merged(f).count("sharding_constraint") == 2


def test_calls_with_shardings_stay_calls():
    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    placed = jax.jit(
        lambda x, y: (x + 0.5, y), in_shardings=sharding, out_shardings=sharding
    )
    found = merged(lambda _, x: placed(x, jnp.sin(x))[0])
    assert found == ["jit", "add"]


def test_the_cost_of_simplifying_is_linear():
    import time

    def chain(count):
        def f(_, x):
            for i in range(count // 4):
                x = jnp.sin(x * 1.0) + jnp.float32(i)
            return x

        graph = mc.trace(f, (), X).graph
        times = []
        for _ in range(3):
            began = time.process_time()
            simplify().rewrite(graph)
            times.append(time.process_time() - began)
        return min(times)

    assert chain(2000) < 20 * chain(200)
