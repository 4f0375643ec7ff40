"""Guards what `compiler.jaxprs` reads out of JAX's equations."""

import jax
import jax.numpy as jnp
import pytest

from compiler import jaxprs


def only(function, *inputs, name):
    found = jax.make_jaxpr(function)(*inputs).eqns
    (equation,) = [e for e in found if e.primitive.name == name]
    return equation


X = jnp.ones((3, 4))
W = jnp.ones((4, 4))


def scan(w, x):
    return jax.lax.scan(lambda c, xi: ((c[0] @ w, c[1] + 1), xi), (x[0], 0), x)


def loop(w, x):
    return jax.lax.while_loop(lambda c: c.sum() < 9, lambda c: c @ w + 1, x)


def branch(w, x):
    return jax.lax.cond(x.sum() > 0, lambda x: x @ w, lambda x: x, x)


def test_scan_tells_constants_carry_and_slices_apart():
    equation = only(scan, W, X, name="scan")
    assert jaxprs.scan_counts(equation) == (1, 2)
    (body,) = jaxprs.bodies(equation)
    assert body.operands == (0, 1, 2, 3)
    assert body.carried == (False, True, True, False)
    assert body.jaxpr.jaxpr.invars[3].aval.shape == (4,)


def test_while_gives_each_body_its_own_constants_and_the_carry():
    equation = only(loop, W, X, name="while")
    condition, step = jaxprs.bodies(equation)
    assert condition.carried == (True,)
    assert condition.operands == (1,)
    assert step.operands == (0, 1)
    assert step.carried == (False, True)


def test_cond_branches_take_the_operands_after_the_index():
    equation = only(branch, W, X, name="cond")
    found = jaxprs.bodies(equation)
    assert len(found) == 2
    assert all(b.operands == (1, 2) and not any(b.carried) for b in found)


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (lambda w, x: jax.checkpoint(lambda x: jnp.sin(x @ w))(x), "remat2"),
        (lambda w, x: jax.jit(lambda x: jnp.sin(x @ w))(x), "jit"),
        (lambda w, x: jax.nn.relu(x @ w), "custom_jvp_call"),
        (scan, "scan"),
        (loop, "while"),
        (branch, "cond"),
    ],
)
def test_bodies_take_as_many_inputs_as_they_are_given_operands(function, name):
    equation = only(function, W, X, name=name)
    for body in jaxprs.bodies(equation):
        inside = body.jaxpr.jaxpr.invars
        assert len(inside) == len(body.operands)
        for var, place, carried in zip(
            inside, body.operands, body.carried, strict=True
        ):
            outside = equation.invars[place].aval
            sliced = name == "scan" and not carried and place >= 3
            assert var.aval.shape == (outside.shape[1:] if sliced else outside.shape)


@pytest.mark.parametrize("function", [scan, loop, branch])
def test_replacing_bodies_by_themselves_changes_nothing(function):
    jaxpr = jax.make_jaxpr(function)(W, X)

    def run(*arguments):
        env = dict(zip(jaxpr.jaxpr.invars, arguments, strict=True))
        for e in jaxpr.eqns:
            values = [v.val if jaxprs.is_literal(v) else env[v] for v in e.invars]
            params = jaxprs.replace_bodies(e, jaxprs.bodies(e))
            results = jaxprs.bind(e, values, **params)
            env.update(zip(e.outvars, results, strict=True))
        return [env[v] for v in jaxpr.jaxpr.outvars]

    again = jax.make_jaxpr(run)(W, X)
    assert str(again.jaxpr.pretty_print()) == str(jaxpr.jaxpr.pretty_print())


def test_scope_and_source_survive_rebinding():
    def function(x):
        with jax.named_scope("outer"), jax.named_scope("inner"):
            return jnp.sin(x)

    (equation,) = jax.make_jaxpr(function)(1.0).eqns

    def again(x):
        with jaxprs.provenance(equation):
            return jaxprs.bind(equation, [x])

    (copy,) = jaxprs.make(again, [jax.ShapeDtypeStruct((), "float32")]).eqns
    assert jaxprs.scope(copy) == jaxprs.scope(equation) == "outer/inner"
    assert jaxprs.source(copy) == jaxprs.source(equation)
    assert "test_jaxprs.py" in jaxprs.source(copy)


def test_a_call_with_shardings_is_not_plain():
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    plain = only(lambda x: jax.jit(jnp.sin)(x), X, name="jit")
    placed = only(lambda x: jax.jit(jnp.sin, out_shardings=sharding)(x), X, name="jit")
    assert jaxprs.is_plain_jit(plain)
    assert not jaxprs.is_plain_jit(placed)


def test_captured_arrays_are_found_and_become_inputs():
    jaxpr = jax.make_jaxpr(lambda x: x @ W + jnp.array([1.0, 2.0, 3.0, 4.0])[None])(X)
    assert [c is W for c in jaxprs.captured_arrays(jaxpr)] == [True]
    lifted = jaxprs.constants_to_inputs(jaxpr, (W,), 0)
    assert [v.aval.shape for v in lifted.jaxpr.invars] == [(4, 4), (3, 4)]
    got = jax.core.eval_jaxpr(lifted.jaxpr, lifted.consts, 2 * W, X)[0]
    assert (
        got.tolist() == (X @ (2 * W) + jnp.array([1.0, 2.0, 3.0, 4.0])[None]).tolist()
    )


def test_labels_name_the_function_that_is_called():
    assert jaxprs.label(only(jax.nn.relu, X, name="custom_jvp_call")) == (
        "custom_jvp_call relu"
    )
