"""Inputs divided by what weights are multiplied by, on any function."""

import digits
import equinox as eqx
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

import compiler as mc
from compiler.errors import CalibrationError, UnknownPathError
from compiler.passes.quantize.calibrate import calibrate
from compiler.passes.quantize.rounding.awq import awq
from compiler.passes.quantize.rounding.smooth import smooth
from compiler.passes.quantize.static import static
from compiler.passes.quantize.storage.scheme import Scheme
from compiler.passes.quantize.weights import weights
from mapping import from_config, to_config


def normal(*shape, seed=0):
    return jax.random.normal(jax.random.key(seed + sum(shape)), shape)


X = normal(6, 16).at[:, 3].multiply(50.0)


def relative(got, want):
    return float(jnp.abs(got - want).max() / jnp.abs(want).max())


def conv(x, w, groups=1):
    dims = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(
        x, w, (1, 1), "SAME", dimension_numbers=dims, feature_group_count=groups
    )


def scanned(v, x):
    return jax.lax.scan(lambda h, w: (jnp.tanh(h @ w), None), x, v["w"])[0]


def indexed(v, x):
    def body(i, h):
        return jnp.tanh(h @ jax.lax.dynamic_index_in_dim(v["w"], i, 0, False))

    return jax.lax.fori_loop(0, 3, body, x)


def branched(v, x):
    return jax.lax.cond(x.sum() > 0, lambda x: x @ v["w"], lambda x: x * 2.0, x)


def attention(v, x):
    q, k, u = (jnp.einsum("td,dhk->thk", x, v[name]) for name in ("q", "k", "u"))
    scores = jax.nn.softmax(jnp.einsum("thk,shk->hts", q, k))
    return jnp.einsum("thk,hkd->td", jnp.einsum("hts,shk->thk", scores, u), v["o"])


IMAGES = normal(2, 5, 5, 8).at[..., 2].multiply(30.0)
SITES = {
    "matmul": (lambda v, x: x @ v["w"], {"w": normal(16, 8)}, X),
    "transposed": (lambda v, x: x @ v["w"].T, {"w": normal(8, 16)}, X),
    "reshaped": (
        lambda v, x: x.reshape(6, 4, 4).reshape(6, 16) @ v["w"].reshape(16, 8),
        {"w": normal(4, 4, 8)},
        X,
    ),
    "two axes of rows": (
        lambda v, x: jnp.einsum("tab,bca->tc", x.reshape(6, 4, 4), v["w"]),
        {"w": normal(4, 8, 4)},
        X,
    ),
    "experts": (
        lambda v, x: jnp.einsum("etd,edf->etf", x.reshape(2, 3, 16), v["w"]),
        {"w": normal(2, 16, 8)},
        X,
    ),
    "convolution": (lambda v, x: conv(x, v["w"]), {"w": normal(3, 3, 8, 4)}, IMAGES),
    "scanned": (scanned, {"w": normal(3, 16, 16)}, X),
    "indexed in a loop": (indexed, {"w": normal(3, 16, 16)}, X),
    "in a branch": (branched, {"w": normal(16, 16)}, jnp.abs(X)),
    "cast": (
        lambda v, x: x @ v["w"].astype(jnp.float32),
        {"w": normal(16, 8).astype(jnp.bfloat16)},
        X,
    ),
    "remat": (
        lambda v, x: jax.checkpoint(lambda x: jnp.tanh(x @ v["w"]))(x),
        {"w": normal(16, 8)},
        X,
    ),
}


@pytest.mark.parametrize("site", SITES, ids=lambda name: name.replace(" ", "-"))
def test_the_function_stays_and_the_weight_takes_what_inputs_lose(site):
    function, v, x = SITES[site]
    program = mc.trace(function, v, x)
    found = calibrate(program, [x])
    even = program >> smooth(found, 0.5)
    assert [e.path for e in even.history[-1].events.fired] == ["w"]
    assert even.graph.paths == ["w", "w/smoothing"]
    assert not np.array_equal(even.variables["w"], v["w"])
    tolerance = 1e-2 if v["w"].dtype == jnp.bfloat16 else 2e-5
    assert relative(even(x), program(x)) < tolerance
    again = even >> smooth(found, 0.5)
    assert again.graph is even.graph
    assert not again.history[-1].events.fired


def test_factors_are_those_of_the_paper():
    w = normal(16, 8)
    even = mc.trace(lambda w, x: x @ w, w, X) >> smooth([X], 0.3)
    inputs, rows = np.abs(X).max(0), np.abs(w).max(1)
    expected = inputs**0.3 / rows**0.7
    expected /= np.exp(np.log(expected).mean())
    _, inverse = even.values
    np.testing.assert_allclose(1 / inverse, expected, rtol=1e-5)
    np.testing.assert_allclose(even.values[0], w * expected[:, None], rtol=1e-5)


def test_what_reads_the_same_shares_its_factors():
    names = {"q": (16, 2, 8), "k": (16, 2, 8), "u": (16, 2, 8), "o": (2, 8, 16)}
    v = {name: normal(*shape, seed=i) for i, (name, shape) in enumerate(names.items())}
    program = mc.trace(attention, v, X)
    even = program >> smooth([X])
    assert [p for p in even.graph.paths if p.endswith("smoothing")] == [
        "k/smoothing",
        "o/smoothing",
    ]
    assert "shared with q, u" in even.history[-1].events.fired[0].what
    assert relative(even(X), program(X)) < 2e-5
    ratios = [np.asarray(even.variables[n] / v[n])[:, 0, 0] for n in "qku"]
    np.testing.assert_allclose(ratios[0], ratios[1], rtol=1e-5)
    np.testing.assert_allclose(ratios[0], ratios[2], rtol=1e-5)


def test_what_is_left_is_left_for_a_reason():
    def function(v, x):
        table = v["tied"][jnp.zeros((6,), jnp.int32)]
        y = (x + table) @ v["tied"].T + x @ v["twice"] + (2 * x) @ v["twice"]
        y = y + x @ (v["normed"] / jnp.linalg.norm(v["normed"]))
        image = conv(x.reshape(1, 6, 2, 8), v["depthwise"], 8)
        return (
            y + v["bias"][None] + image.sum() + v["looked"][jnp.zeros((6,), jnp.int32)]
        )

    v = {
        "bias": normal(5),
        "depthwise": normal(3, 3, 1, 8),
        "looked": normal(4, 5),
        "normed": normal(16, 5),
        "tied": normal(5, 16),
        "twice": normal(16, 5),
    }
    program = mc.trace(function, v, X)
    left = program >> smooth([X])
    assert left.graph is program.graph
    reasons = {e.path: e.what for e in left.history[-1].events.skipped}
    assert reasons["bias"].startswith("reaches no product")
    assert reasons["depthwise"] == "is the kernel of a grouped convolution"
    assert reasons["looked"] == "is looked up only"
    assert reasons["normed"].startswith("is needed as it is by")
    assert (
        reasons["tied"]
        == reasons["twice"]
        == "is used 2 times, with inputs of their own"
    )


def test_a_branch_that_never_ran_is_left():
    function, v, x = SITES["in a branch"]
    left = mc.trace(function, v, x) >> smooth([-x])
    (event,) = left.history[-1].events.skipped
    assert event.what == "its product never ran"


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.MultiHeadDotProductAttention(num_heads=2)(nn.LayerNorm()(x)[None])[0]
        return nn.Dense(8)(nn.relu(nn.Dense(16)(x)))


def linen():
    net = Linen()
    return net.apply, net.init(jax.random.key(0), X)


def of_nnx():
    graph, state = nnx.split(nnx.Linear(16, 8, rngs=nnx.Rngs(0)))
    return lambda state, x: nnx.merge(graph, state)(x), state


def of_equinox():
    model = eqx.nn.MLP(16, 8, 12, 2, key=jax.random.key(0))
    return lambda model, x: jax.vmap(model)(x), model


def of_haiku():
    net = hk.without_apply_rng(hk.transform(lambda x: hk.nets.MLP([12, 8])(x)))
    return net.apply, net.init(jax.random.key(0), X)


@pytest.mark.parametrize("make", [linen, of_nnx, of_equinox, of_haiku])
def test_it_works_on_models_of_every_framework(make):
    function, v = make()
    program = mc.trace(function, v, X)
    found = calibrate(program, [X], hessians=True)
    for step in (smooth(found), awq(found, "int8")):
        even = program >> step
        assert even.history[-1].events.fired
        assert relative(even(X), program(X)) < 2e-5
        assert (even >> step).graph is even.graph


def test_it_can_be_differentiated_and_mapped():
    function, v, x = SITES["scanned"]
    program = mc.trace(function, v, x)
    even = program >> smooth([x])
    got = jax.jit(jax.grad(lambda x: even.function(even.variables, x).sum()))(x)
    want = jax.grad(lambda x: program.function(v, x).sum())(x)
    np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-4)
    each = jax.vmap(lambda x: even.function(even.variables, x[None])[0])(x)
    np.testing.assert_allclose(each, program(x), rtol=1e-4, atol=1e-5)


def test_one_sample_of_zeros_changes_nothing_but_rounding():
    w = normal(16, 8)
    program = mc.trace(lambda w, x: x @ w, w, X)
    for step in (smooth([X * 0], 1.0), awq([X * 0], "int4")):
        even = program >> step
        assert np.all(np.isfinite(even.values[0]))
        assert relative(even(X), program(X)) < 1e-5


def test_a_pass_that_was_applied_can_be_applied_to_other_weights():
    program = mc.trace(lambda w, x: x @ w, normal(16, 8), X)
    step = (program >> smooth([X])).recipe[-1]
    other = program.with_variables(normal(16, 8, seed=5))
    got = other >> step
    np.testing.assert_allclose(got.values[0], (other >> smooth([X])).values[0])


def test_recipes_print_and_are_written_without_data():
    program = mc.trace(lambda w, x: x @ w, normal(16, 8), X)
    (step,) = (program >> smooth([X], 0.25)).recipe
    assert str(step) == "Smooth(alpha=0.25, path=('*',))"
    assert from_config(to_config(step)) == step
    (step,) = (program >> awq([X], "nf4")).recipe
    assert from_config(to_config(step)) == step


def test_errors_say_what_to_do():
    program = mc.trace(lambda w, x: x @ w, normal(16, 8), X)
    with pytest.raises(CalibrationError, match=r"smooth: expected batches.*smooth\(b"):
        program >> smooth()
    with pytest.raises(
        CalibrationError, match=r"awq: expected a calibration with Hess"
    ):
        program >> awq(calibrate(program, [X]))
    with pytest.raises(ValueError, match=r"expected an alpha from 0 to 1, got 1.5"):
        smooth([X], 1.5)
    with pytest.raises(UnknownPathError, match="head: names no leaf"):
        program >> smooth([X], path="head")


def error(small, program):
    x = digits.data()[2]
    return float(((small(x) - program(x)) ** 2).mean())


def test_static_int8_of_a_trained_network_with_outliers_needs_smoothing():
    x, _, images, labels = digits.data()
    program = mc.trace(digits.mlp, digits.with_outliers(), x[:8])
    batches = [x[:256]]
    plain = program >> static("int8", batches=batches)
    even = program >> smooth(batches) >> static("int8", batches=batches)
    assert error(even, program) < 0.05 * error(plain, program)
    right = [(p(images).argmax(-1) == labels).mean() for p in (program, even)]
    assert right[1] > right[0] - 0.01


@pytest.mark.parametrize("outliers", [False, True], ids=["plain", "outliers"])
def test_awq_lowers_the_error_of_a_trained_network(outliers):
    x = digits.data()[0]
    params = digits.with_outliers() if outliers else digits.trained()
    program = mc.trace(digits.mlp, params, x[:8])
    scheme = Scheme("int4", 32)
    plain = program >> weights(scheme)
    better = program >> awq([x[:256]], scheme) >> weights(scheme)
    share = 0.3 if outliers else 0.9
    assert error(better, program) < share * error(plain, program)
