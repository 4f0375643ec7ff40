"""Rounding by Hessians and corrected means, as passes on any function."""

import digits
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import compiler as mc
from compiler.errors import CalibrationError
from compiler.passes.quantize.arithmetic.activations import Activations
from compiler.passes.quantize.calibrate import calibrate
from compiler.passes.quantize.rounding.bias import correct_bias
from compiler.passes.quantize.rounding.gptq import gptq
from compiler.passes.quantize.static import static
from compiler.passes.quantize.storage.scheme import Scheme
from compiler.passes.quantize.weights import weights
from mapping import from_config, to_config

INT4, INT2 = Scheme("int4", 16), Scheme("int2", 16, symmetric=False)


def normal(*shape, seed=0):
    return jax.random.normal(jax.random.key(seed + sum(shape)), shape)


def together(tokens, rows, seed=0):
    """Inputs whose features go together, and are not zero on average."""
    mixed = normal(tokens, rows, seed=seed) @ normal(rows, rows, seed=seed)
    return mixed / 4 + normal(1, rows, seed=seed)


def error(small, program, x):
    return float(((small(x) - program(x)) ** 2).mean())


def notes(program):
    return {e.path: e.what for e in program.history[-1].events.fired}


def trained():
    x = digits.data()[0]
    return mc.trace(digits.mlp, digits.trained(), x[:8]), [x[:256]], digits.data()[2]


@pytest.mark.parametrize(("scheme", "order"), [(INT4, False), (INT2, True)], ids=str)
def test_it_lowers_the_error_of_a_trained_network(scheme, order):
    program, batches, x = trained()
    plain = program >> weights(scheme)
    better = program >> gptq(batches, scheme, order=order)
    assert better.graph.paths == plain.graph.paths
    assert better.bytes == plain.bytes
    assert error(better, program, x) < 0.4 * error(plain, program, x)
    kernels = {"first/kernel", "head/kernel", "second/kernel"}
    assert set(notes(better)) == kernels
    assert all("of rounded to nearest" in note for note in notes(better).values())


def test_the_mean_of_a_trained_network_is_corrected():
    program, batches, x = trained()

    def shift(small):
        return float(abs((small(x) - program(x)).mean(0)).max())

    for step in (weights(INT4), static("int4", batches=batches)):
        plain, better = program >> step, program >> correct_bias(step, batches)
        assert shift(better) < 0.3 * shift(plain)
        assert error(better, program, x) < error(plain, program, x)
        assert better(x[:3]).shape == (3, 10)
        assert (better >> correct_bias(step, batches)).graph is better.graph


def test_terms_are_the_mean_of_what_is_lost():
    x, w = together(64, 32), normal(32, 6)
    program = mc.trace(lambda w, x: x @ w, w, x)
    plain = program >> weights(INT4)
    better = program >> correct_bias(weights(INT4), [x])
    terms = dict(zip(better.graph.paths, better.values, strict=True))
    expected = np.asarray(program(x) - plain(x), np.float64).mean(0)
    np.testing.assert_allclose(terms["variables/correction"], expected, atol=1e-5)
    np.testing.assert_allclose(better(x), np.asarray(plain(x)) + expected, atol=1e-4)


def test_integer_products_of_groups_keep_their_bias():
    v, x = {"b": jnp.full((1, 8), 5.0), "w": normal(32, 8)}, together(64, 32)
    program = mc.trace(lambda v, x: x @ v["w"] + v["b"], v, x)
    small = program >> static(INT4, batches=[x])
    plain = program >> weights(INT4)
    assert error(small, plain, x) < 1e-2


def conv(x, w, groups=1):
    dims = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(
        x, w, (1, 1), "SAME", dimension_numbers=dims, feature_group_count=groups
    )


def scanned(v, x):
    return jax.lax.scan(lambda h, w: (jnp.tanh(h @ w), None), x, v["w"])[0]


SITES = {
    "two axes of rows": (
        lambda v, x: jnp.einsum("tab,bca->tc", x.reshape(64, 4, 8), v["w"]),
        {"w": normal(8, 6, 4)},
        together(64, 32),
    ),
    "experts": (
        lambda v, x: jnp.einsum("etd,edf->etf", x.reshape(2, 64, 32), v["w"]),
        {"w": normal(2, 32, 8)},
        together(128, 32),
    ),
    "convolution": (
        lambda v, x: conv(x, v["w"]),
        {"w": normal(3, 3, 8, 4)},
        together(128, 8).reshape(2, 8, 8, 8),
    ),
    "scanned": (scanned, {"w": normal(3, 32, 32) / 4}, together(64, 32)),
}


@pytest.mark.parametrize("site", SITES, ids=lambda name: name.replace(" ", "-"))
def test_errors_and_means_get_smaller_however_a_weight_is_used(site):
    function, v, x = SITES[site]
    program = mc.trace(function, v, x)
    found = calibrate(program, [x], hessians=True)
    plain, better = program >> weights(INT4), program >> gptq(found, INT4)
    assert error(better, program, x) < 0.7 * error(plain, program, x)
    twice = better >> gptq([x], INT4)
    assert twice.graph is better.graph
    assert not twice.history[-1].events.fired
    fixed = program >> correct_bias(weights(INT4), found)
    assert error(fixed, program, x) < error(plain, program, x)
    if site in ("two axes of rows", "convolution"):
        moved = fixed(x) - program(x)
        assert jnp.abs(moved.reshape(-1, moved.shape[-1]).mean(0)).max() < 1e-4


def test_layers_of_a_scan_are_rounded_as_layers_of_their_own():
    _, v, x = SITES["scanned"]

    def unrolled(layers, x):
        for w in layers:
            x = jnp.tanh(x @ w)
        return x

    together = mc.trace(scanned, v, x) >> gptq([x], INT4)
    apart = mc.trace(unrolled, list(v["w"]), x) >> gptq([x], INT4)
    np.testing.assert_allclose(together(x), apart(x), atol=1e-5)


def test_a_shared_weight_is_rounded_for_all_its_products():
    x, y, w = together(64, 32), together(64, 32, seed=7), normal(32, 8)

    def both(w, x, y):
        return x @ w, y @ w

    def gap(small):
        pairs = zip(small(x, y), program(x, y), strict=True)
        return float(sum(((a - b) ** 2).mean() for a, b in pairs))

    program = mc.trace(both, w, x, y)
    shared = program >> gptq([(x, y)], INT4)
    half = mc.trace(lambda w, x: x @ w, w, x) >> gptq([x], INT4)
    one = (program >> weights(INT4)).with_variables(half.variables)
    assert gap(shared) < 0.7 * gap(one)


def test_what_has_no_hessian_is_rounded_to_nearest_and_says_so():
    def function(v, x):
        y = x @ v["w"] + v["table"][jnp.zeros((64,), jnp.int32)]
        image = conv(x.reshape(1, 64, 4, 8), v["depthwise"], 8)
        return jax.lax.cond(
            x.sum() > 1e9, lambda: x @ v["never"], lambda: y + image.sum()
        )

    x = together(64, 32)
    v = {
        "depthwise": normal(3, 3, 1, 8),
        "never": normal(32, 16),
        "table": normal(8, 16),
        "w": normal(32, 16),
    }
    program = mc.trace(function, v, x)
    scheme = Scheme("int8", "channel")
    plain, better = program >> weights(scheme), program >> gptq([x], scheme)
    found = notes(better)
    assert found["table"].endswith("rounded to nearest: it is looked up only")
    assert found["never"].endswith("rounded to nearest: its product never ran")
    assert found["depthwise"].endswith("the kernel of a grouped convolution")
    for name in ("depthwise", "never", "table"):
        same = jax.tree.map(
            np.array_equal, plain.variables[name], better.variables[name]
        )
        assert all(jax.tree.leaves(same))


@pytest.mark.parametrize("samples", [jnp.zeros((1, 32)), together(1, 32)])
def test_one_sample_gives_weights_that_are_finite_and_near(samples):
    w = normal(32, 8)
    program = mc.trace(lambda w, x: x @ w, w, together(4, 32))
    small = program >> gptq([samples], INT4)
    decoded = small(jnp.eye(32))
    assert jnp.isfinite(decoded).all()
    assert jnp.abs(decoded - w).max() < jnp.abs(w).max()


def test_it_serves_other_shapes_gradients_and_other_weights():
    x, w = together(64, 32), normal(32, 8)
    program = mc.trace(lambda w, x: x @ w, w, x)
    small = program >> gptq([x], INT4)
    assert small(x[:5]).shape == (5, 8)
    np.testing.assert_allclose(small(x[:5]), small(x)[:5], rtol=1e-5, atol=1e-5)
    gradient = jax.grad(lambda x: small.function(small.variables, x).sum())(x)
    np.testing.assert_allclose(gradient[0], small(jnp.eye(32)).sum(1), rtol=1e-4)
    other = program.with_variables(normal(32, 8, seed=5))
    kept = other >> small.recipe[-1]  # with what was measured before
    fresh = other >> gptq([x], INT4)
    np.testing.assert_allclose(kept(x), fresh(x), rtol=1e-5, atol=1e-5)


def test_activations_can_be_rounded_too():
    x, w = together(64, 32), normal(32, 8)
    program = mc.trace(lambda w, x: x @ w, w, x)
    small = program >> gptq([x], Scheme("int8"), activations=Activations())
    assert "integer" in notes(small)["variables"]
    assert error(small, program, x) < 1e-3 * float((program(x) ** 2).mean())


def test_recipes_print_and_are_written_without_data():
    x = together(16, 32)
    program = mc.trace(lambda w, x: x @ w, normal(32, 8), x)
    small = program >> gptq([x], INT4, damping=0.05)
    fixed = program >> correct_bias(weights(INT4), [x])
    for step in (small.recipe[-1], fixed.recipe[-1]):
        assert "Array" not in str(step)
        assert from_config(to_config(step)) == step
        with pytest.raises(CalibrationError, match="expected batches"):
            program >> from_config(to_config(step))


def test_errors_say_what_to_do():
    x = together(16, 32)
    program = mc.trace(lambda w, x: x @ w, normal(32, 8), x)
    with pytest.raises(
        CalibrationError, match=r"gptq: expected batches.*gptq\(batches"
    ):
        program >> gptq()
    with pytest.raises(CalibrationError, match=r"with Hessians.*hessians=True"):
        program >> gptq(calibrate(program, [x]))
    with pytest.raises(CalibrationError, match="at least one batch"):
        program >> gptq([])
    with pytest.raises(ValueError, match=r"expected a positive damping, got 0"):
        gptq([x], damping=0.0)
    with pytest.raises(TypeError, match=r"expected a quantizing pass, got Fold"):
        correct_bias(mc.fold(), [x])
