"""Integer arithmetic, bit for bit that of numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from zoo import normal

import compiler as mc
from compiler.passes.quantize import Activations

X, W, B = normal(5, 24), normal(24, 12, seed=1), normal(12, seed=2)
IMAGE, KERNEL = normal(2, 6, 6, 8), normal(3, 3, 8, 4, seed=1)
NHWC = ("NHWC", "HWIO", "NHWC")
F = np.float32


def dense(v, x):
    return x @ v["w"] + v["b"][None]


def convolution(v, x, **options):
    options = {"padding": "SAME", "window_strides": (1, 1)} | options
    return jax.lax.conv_general_dilated(x, v["w"], dimension_numbers=NHWC, **options)


def weights_of(program, path="w"):
    """Codes and scales as they were stored."""
    stored = program.variables[path]
    return np.asarray(stored["values"], np.int32), np.asarray(stored["scale"])


def symmetric(x, axis):
    """Codes and scale of activations, by their own range."""
    x = np.asarray(x)
    scale = np.abs(x).max(axis=axis, keepdims=True) * F(1 / 127)
    return np.clip(np.round(x * (F(1) / scale)), -127, 127).astype(np.int32), scale


def shifted(x, axis):
    """Codes, scale and zero point of activations, by their own range."""
    x = np.asarray(x)
    low = np.minimum(x.min(axis=axis, keepdims=True), 0)
    high = np.maximum(x.max(axis=axis, keepdims=True), 0)
    scale = (high - low) * F(1 / 255)
    zero = np.clip(np.round(F(-128) - low / scale), -128, 127).astype(np.int32)
    return (
        np.clip(np.round(x * (F(1) / scale)) + zero, -128, 127).astype(np.int32),
        scale,
        zero,
    )


def test_a_product_of_tokens_is_the_product_of_their_codes():
    program = mc.trace(lambda v, x: x @ v["w"], {"w": W}, X)
    small = program >> mc.quantize.dynamic("int8")
    codes, scale = symmetric(X, 1)
    values, step = weights_of(small)
    expected = (codes @ values).astype(F) * (scale * step)
    assert np.array_equal(small(X), expected)


def test_a_scale_for_the_whole_tensor():
    program = mc.trace(lambda v, x: x @ v["w"], {"w": W}, X)
    small = program >> mc.quantize.dynamic("int8", per="tensor")
    codes, scale = symmetric(X, None)
    values, step = weights_of(small)
    assert np.array_equal(small(X), (codes @ values).astype(F) * (scale * step))


def test_zero_points_are_subtracted_exactly():
    program = mc.trace(lambda v, x: x @ v["w"], {"w": W}, X + 1)
    small = program >> mc.quantize.dynamic("int8", symmetric=False)
    codes, scale, zero = shifted(X + 1, 1)
    values, step = weights_of(small)
    sums = (codes - zero) @ values
    assert np.array_equal(small(X + 1), sums.astype(F) * (scale * step))


def test_a_long_sum_does_not_lose_its_last_bits():
    """Beyond 2^24 a float32 holds no longer every integer; int32 does."""
    x, w = jnp.ones((2, 4096)), jnp.ones((4096, 16))
    small = mc.trace(lambda v, x: x @ v["w"], {"w": w}, x) >> mc.quantize.dynamic()
    expected = F(4096 * 127 * 127) * (F(1) * F(1 / 127) * (F(1) * F(1 / 127)))
    assert np.array_equal(small(x), np.full((2, 16), expected))


def test_a_convolution_is_that_of_its_codes():
    program = mc.trace(convolution, {"w": KERNEL}, IMAGE)
    small = program >> mc.quantize.dynamic("int8")
    codes, scale = symmetric(IMAGE, (1, 2, 3))
    values, step = weights_of(small)
    padded = np.pad(codes, ((0, 0), (1, 1), (1, 1), (0, 0)))
    sums = np.zeros((2, 6, 6, 4), np.int32)
    for i in range(3):
        for j in range(3):
            sums += padded[:, i : i + 6, j : j + 6] @ values[i, j]
    assert np.array_equal(small(IMAGE), sums.astype(F) * (scale * step.reshape(-1)))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"window_strides": (2, 2)},
        {"padding": ((2, 1), (1, 2)), "lhs_dilation": (2, 2)},
        {"rhs_dilation": (2, 2)},
    ],
    ids=["plain", "strided", "transposed", "dilated"],
)
def test_padding_stays_zero_when_there_is_a_zero_point(options):
    """In floating point the codes stand for (q - z) s, padded with zero."""
    program = mc.trace(lambda v, x: convolution(v, x, **options), {"w": KERNEL}, IMAGE)
    small = program >> mc.quantize.dynamic("int8", symmetric=False)
    codes, scale, zero = shifted(IMAGE, (1, 2, 3))
    values, step = weights_of(small)
    exact = convolution(
        {"w": jnp.asarray(values, jnp.float32)},
        jnp.asarray(codes - zero, jnp.float32),
        **options,
    )
    expected = np.asarray(exact) * (scale * step.reshape(-1))
    assert np.array_equal(small(IMAGE), expected)


def test_a_group_of_channels_of_its_own():
    kernel = normal(3, 3, 1, 8)

    def depthwise(v, x):
        return convolution(v, x, feature_group_count=8)

    small = mc.trace(depthwise, {"w": kernel}, IMAGE) >> mc.quantize.dynamic()
    codes, scale = symmetric(IMAGE, (1, 2, 3))
    values, step = weights_of(small)
    exact = depthwise({"w": jnp.asarray(values, jnp.float32)}, jnp.asarray(codes, F))
    assert np.array_equal(small(IMAGE), np.asarray(exact) * (scale * step.reshape(-1)))


def test_rows_of_experts():
    experts, sizes = normal(3, 16, 8), jnp.array([2, 5, 3])
    x = normal(10, 16)

    def mixture(v, x, sizes):
        return jax.lax.ragged_dot(x, v["w"], sizes)

    program = mc.trace(mixture, {"w": experts}, x, sizes)
    small = program >> mc.quantize.dynamic("int8")
    codes, scale = symmetric(x, 1)
    values, step = weights_of(small)
    owner = np.repeat(np.arange(3), np.asarray(sizes))
    sums = np.einsum("ti,tio->to", codes, values[owner])
    assert np.array_equal(small(x, sizes), sums.astype(F) * (scale * step[owner, 0]))


def test_a_bias_is_added_to_the_integers():
    program = mc.trace(dense, {"w": W, "b": B}, X)
    small = program >> mc.quantize.static("int8", batches=[X])
    values, step = weights_of(small)
    scale = np.asarray(small.variables["w"]["input_scale"])
    codes = np.clip(np.round(np.asarray(X) * (F(1) / scale)), -127, 127).astype(
        np.int32
    )
    both = scale * step
    sums = codes @ values + np.round(np.asarray(B)[None] * (F(1) / both)).astype(
        np.int32
    )
    assert np.array_equal(small(X), sums.astype(F) * both)


def test_what_lies_outside_the_range_that_was_measured_is_cut_off():
    program = mc.trace(lambda v, x: x @ v["w"], {"w": W}, X)
    small = program >> mc.quantize.static("int8", batches=[X])
    scale = np.asarray(small.variables["w"]["input_scale"])
    values, step = weights_of(small)
    codes = np.clip(np.round(np.asarray(100 * X) * (F(1) / scale)), -127, 127).astype(
        np.int32
    )
    assert np.array_equal(small(100 * X), (codes @ values).astype(F) * (scale * step))


@pytest.mark.parametrize("mode", ["token", "tensor"])
def test_gradients_are_those_of_the_weights_the_codes_stand_for(mode):
    program = mc.trace(lambda v, x: jnp.tanh(x @ v["w"]), {"w": W}, X)
    small = program >> mc.quantize.dynamic("int8", per=mode)
    values, step = weights_of(small)
    got = jax.grad(lambda x: small.function(small.variables, x).sum())(X)
    w = jnp.asarray(values * step, jnp.float32)
    expected = (1 - small(X) ** 2) @ w.T
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


def test_no_gradient_comes_from_what_was_cut_off():
    program = mc.trace(lambda v, x: x @ v["w"], {"w": W}, X)
    small = program >> mc.quantize.static("int8", batches=[X])
    outside = X.at[0, 0].set(100.0)
    got = jax.grad(lambda x: small.function(small.variables, x).sum())(outside)
    assert got[0, 0] == 0
    assert np.all(np.asarray(got[1:]) != 0)


def test_activations_that_are_all_zero_give_zero():
    program = mc.trace(lambda v, x: x @ v["w"], {"w": W}, X)
    for symmetric in (True, False):
        small = program >> mc.quantize.dynamic("int8", symmetric=symmetric)
        assert np.array_equal(small(jnp.zeros_like(X)), np.zeros((5, 12)))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"dtype": "int7"}, "expected a dtype of .*got 'int7'"),
        ({"per": "row"}, "expected per .*got 'row'"),
        ({"dtype": "float8_e4m3", "symmetric": False}, "has no zero point"),
    ],
)
def test_activations_of_another_kind_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Activations(**fields)
