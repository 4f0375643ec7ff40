"""Numbers in few bits: the nearest of them is found, and bytes give codes back."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compiler.passes.quantize.storage import packing
from compiler.passes.quantize.storage.formats import FORMATS, power, unknown

FLOATS = {
    "float8_e4m3": ml_dtypes.float8_e4m3fn,
    "float8_e5m2": ml_dtypes.float8_e5m2,
    "fp4": ml_dtypes.float4_e2m1fn,
}


def inputs(peak):
    """Numbers of all sizes, and what lies beyond, in between and next to that."""
    rng = np.random.default_rng(0)
    spread = rng.normal(size=4000) * 10.0 ** rng.uniform(-8, 2, 4000) * peak
    near = np.array([0, -0.0, peak, -peak, 1.5 * peak, -3e38, 3e38])
    return np.concatenate([spread, near]).astype(np.float32)


def table(name):
    """Every number of a format, in order."""
    codes = np.arange(256).astype(np.uint8)
    if name in ("nf4", "fp4"):
        return np.unique(np.asarray(FORMATS[name].value(jnp.asarray(codes[:16]))))
    values = codes.view(FLOATS[name]).astype(np.float32)
    return np.unique(values[np.isfinite(values)])


@pytest.mark.parametrize("name", FLOATS)
@pytest.mark.parametrize("how", [jax.jit, lambda f: f], ids=["jit", "eager"])
def test_small_floats_round_as_ml_dtypes_does_and_saturate(name, how):
    form = FORMATS[name]
    x = inputs(form.peak)
    inside = np.clip(x, -form.peak, form.peak)
    expected = inside.astype(FLOATS[name]).astype(np.float32)
    codes = how(form.nearest)(x)
    np.testing.assert_array_equal(np.asarray(form.value(codes), np.float32), expected)


@pytest.mark.parametrize("name", FLOATS)
def test_every_number_of_a_small_float_and_every_tie_is_rounded_right(name):
    numbers = table(name)
    middles = (numbers[1:] + numbers[:-1]) / np.float32(2)
    x = np.concatenate([numbers, middles, np.nextafter(middles, np.float32(0))])
    expected = x.astype(FLOATS[name]).astype(np.float32)
    form = FORMATS[name]
    found = jax.jit(lambda x: form.value(form.nearest(x)))(x)
    np.testing.assert_array_equal(np.asarray(found, np.float32), expected)


def test_nf4_takes_the_nearest_quantile_of_the_normal_distribution():
    """The table as QLoRA's appendix prints it, four digits of each number."""
    printed = """-1.0 -0.6962 -0.5251 -0.3949 -0.2844 -0.1848 -0.0911 0.0
        0.0796 0.1609 0.2461 0.3379 0.4407 0.5626 0.7230 1.0"""
    numbers = table("nf4")
    expected = np.array(printed.split(), np.float32)
    np.testing.assert_allclose(numbers, expected, atol=5.1e-5)
    x = inputs(1)
    nearest = numbers[np.abs(np.clip(x, -1, 1)[:, None] - numbers).argmin(1)]
    form = FORMATS["nf4"]
    found = jax.jit(lambda x: form.value(form.nearest(x)))(x)
    np.testing.assert_array_equal(found, nearest)


def test_fp4_codes_are_the_bits_of_the_type():
    x = table("fp4")
    bits = x.astype(ml_dtypes.float4_e2m1fn).view(np.uint8) & 15
    bits[x == 0] = 0
    np.testing.assert_array_equal(FORMATS["fp4"].nearest(jnp.asarray(x)), bits)


def test_integers_round_half_to_even():
    x = jnp.array([0.5, 1.5, 2.5, -0.5, -1.5, 99.0, -99.0])
    assert FORMATS["int4"].nearest(x).tolist() == [0, 2, 2, 0, -2, 7, -7]
    assert FORMATS["ternary"].nearest(x).tolist() == [0, 1, 1, 0, -1, 1, -1]


@pytest.mark.parametrize("name", ["int8", "int4", "int2"])
def test_levels_take_the_lowest_code_only_where_zero_may_move(name):
    bits = FORMATS[name].bits
    assert FORMATS[name].levels() == (-(2 ** (bits - 1)) + 1, 2 ** (bits - 1) - 1)
    assert FORMATS[name].levels(False) == (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


def test_floats_have_no_levels():
    with pytest.raises(ValueError, match="nf4: expected an integer format"):
        FORMATS["nf4"].levels()


def test_an_unknown_format_is_told_the_near_ones():
    with pytest.raises(ValueError, match="Did you mean 'int4'"):
        raise unknown("in4", FORMATS)
    assert "Did you mean" not in str(unknown("zzzzzz", FORMATS))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_power_is_the_largest_power_of_two_not_above(dtype):
    x = np.abs(inputs(1))
    kind = jnp.finfo(dtype)
    x = x[(x >= float(kind.tiny)) & (x <= float(kind.max))].astype(jnp.dtype(dtype))
    expected = 2.0 ** np.floor(np.log2(x.astype(np.float64)))
    np.testing.assert_array_equal(np.asarray(power(jnp.asarray(x)), float), expected)


@settings(max_examples=12, deadline=None)
@given(
    st.lists(st.integers(1, 7), min_size=1, max_size=3),
    st.sampled_from([2, 4]),
    st.booleans(),
    st.data(),
)
def test_bytes_give_codes_back(shape, bits, signed, data):
    axis = data.draw(st.integers(0, len(shape) - 1))
    low = -(2 ** (bits - 1)) if signed else 0
    rng = np.random.default_rng(data.draw(st.integers(0, 9)))
    codes = rng.integers(low, low + 2**bits, shape)
    codes = codes.astype(np.int8 if signed else np.uint8)

    @jax.jit
    def there_and_back(codes):
        packed = packing.pack(codes, bits, axis)
        return packed, packing.unpack(packed, bits, axis, shape[axis], signed)

    packed, back = there_and_back(codes)
    assert packed.dtype == jnp.uint8
    assert packed.shape[axis] == -(-shape[axis] * bits // 8)
    np.testing.assert_array_equal(back, codes)
    assert back.dtype == codes.dtype


def test_planes_are_contiguous_parts_of_the_axis():
    codes = jnp.arange(-8, 6, dtype=jnp.int8)
    low, high = packing.planes(packing.pack(codes, 4, 0), 4)
    assert low.tolist() == [-8, -7, -6, -5, -4, -3, -2]
    assert high.tolist() == [-1, 0, 1, 2, 3, 4, 5]


def test_nothing_is_packed_into_nothing():
    empty = packing.pack(jnp.zeros((0, 3), jnp.int8), 4, 0)
    assert empty.shape == (0, 3)
    assert packing.unpack(empty, 4, 0, 0).shape == (0, 3)
