"""Arrays in few bits: the same numbers as in numpy, a bounded error, exact bytes."""

import dataclasses

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from few_bits import BLOCKS, F32, INTEGERS, NAMES, arrays, decoded
from hypothesis import given, settings
from hypothesis import strategies as st

import mapping
from compiler.passes.quantize.storage.encoding import Encoding
from compiler.passes.quantize.storage.scheme import Scheme, as_scheme


def schemes():
    found = [Scheme(name) for name in BLOCKS]
    for name in (n for n in NAMES if n not in BLOCKS):
        shifts = [True, False] if name in ("int8", "int4", "int2") else [True]
        found += [Scheme(name, 5, symmetric) for symmetric in shifts]
    return found


LAYOUTS = [
    ((7, 6), (0,), ()),
    ((6, 7), (1,), ()),
    ((3, 3, 2, 6), (0, 1, 2), ()),
    ((2, 5, 3, 4), (1, 3), (0,)),
    ((4, 3, 5, 2), (0, 2), (3,)),
    ((3, 2, 5), (2,), (0, 1)),
    ((9,), (0,), ()),
]


@st.composite
def codings(draw):
    scheme = draw(st.sampled_from(schemes()))
    if not scheme.dtype.startswith("mx"):
        group = draw(st.sampled_from(["channel", "tensor", 1, 2, 4, 64]))
        scheme = dataclasses.replace(scheme, group=group)
    shape, rows, stack = draw(st.sampled_from(LAYOUTS))
    return Encoding(scheme, shape, "float32", rows, stack)


def run(code, w):
    """Everything there is to compute of an array, compiled at once."""

    def everything(w):
        parts = code.encode(w)
        back = code.decode(parts)
        again = code.encode(back, parts["scale"], parts.get("zero"))
        slices = [
            code.sliced(axis).decode(
                {k: jnp.take(v, 1, code.place(axis)) for k, v in parts.items()}
            )
            for axis in code.stack
        ]
        return parts, back, again, slices

    return jax.tree.map(np.asarray, jax.jit(everything)(w))


def through(code, w):
    """The parts of an array and what they decode to, compiled at once."""

    def both(w):
        parts = code.encode(w)
        return parts, code.decode(parts)

    return jax.tree.map(np.asarray, jax.jit(both)(w))


@settings(max_examples=10, deadline=None)
@given(codings(), st.integers(0, 9))
def test_what_is_stored_is_what_the_definitions_say(code, seed):
    w = arrays(code.shape, seed)
    parts, back, again, slices = run(code, w)
    expected, scales = decoded(code, w)
    np.testing.assert_array_equal(back, expected)
    kinds = {name: (x.shape, x.dtype) for name, x in parts.items()}
    assert kinds == {n: (s.shape, s.dtype) for n, s in code.specs.items()}
    assert tuple(kinds) == code.names
    assert code.bytes == sum(x.nbytes for x in parts.values())
    for name, part in parts.items():
        np.testing.assert_array_equal(again[name], part, err_msg=name)
    for axis, part in zip(code.stack, slices, strict=True):
        np.testing.assert_array_equal(part, np.take(back, 1, axis))
    if code.scheme.integer:
        peak = INTEGERS[code.scheme.format.name]
        inside = np.abs(w) <= (peak if code.scheme.symmetric else np.inf) * scales
        bound = (scales / 2 + np.abs(w) * F32(1e-6))[inside]
        assert (np.abs(w - back)[inside] <= bound).all()


@pytest.mark.parametrize("scheme", ["int4", "ternary", "nf4", "mxfp4"])
def test_a_searched_range_is_numpys_and_never_worse(scheme):
    w = np.random.default_rng(0).standard_t(3, (64, 4)).astype(F32)
    searched = dataclasses.replace(Scheme(scheme), clip="mse")
    errors = []
    for found in (Scheme(scheme), searched):
        code = Encoding(found, w.shape, "float32", (0,))
        _, back = through(code, w)
        np.testing.assert_array_equal(back, decoded(code, w)[0])
        errors.append(np.square(np.float64(w) - back).sum(0))
    assert (errors[1] <= errors[0] * (1 + 1e-6)).all()
    assert (errors[1] < errors[0]).any()


def test_a_searched_asymmetric_range_is_numpys_too():
    code = Encoding(Scheme("int4", 5, False, "mse"), (11, 6), "float32", (0,))
    w = arrays(code.shape)
    np.testing.assert_array_equal(through(code, w)[1], decoded(code, w)[0])


def test_uncompiled_and_compiled_encodings_agree():
    code = Encoding(Scheme("ternary", 3), (4, 5), "float32", (0,))
    w = jnp.asarray(arrays(code.shape))
    compiled = jax.jit(code.encode)(w)
    with jax.disable_jit():
        alone = code.encode(w)
    jax.tree.map(np.testing.assert_array_equal, alone, compiled)


@pytest.mark.parametrize(
    ("dtype", "scale_dtype"),
    [
        ("bfloat16", None),
        ("float16", None),
        ("bfloat16", "float32"),
        ("float32", "bfloat16"),
        ("float32", "float16"),
    ],
)
def test_half_a_scale_bounds_the_error_for_every_dtype(dtype, scale_dtype):
    scheme = Scheme("int8", 3, scale_dtype=scale_dtype)
    code = Encoding(scheme, (7, 5), dtype, (0,))
    w = jnp.asarray(arrays(code.shape)).astype(dtype)
    parts, back, again, _ = run(code, w)
    assert parts["scale"].dtype == (scale_dtype or dtype)
    assert back.dtype == dtype
    np.testing.assert_array_equal(again["values"], parts["values"])
    scale = np.repeat(parts["scale"].astype(F32), 3, 0)[:7]
    wide = np.asarray(w, F32)
    rounding = np.abs(wide) * float(jnp.finfo(dtype).eps) / 2
    np.testing.assert_array_less(
        np.abs(wide - back.astype(F32)), scale / 2 + rounding * 1.01 + 1e-30
    )
    np.testing.assert_array_less(np.abs(wide), scale * 127 * (1 + 1e-6) + 1e-30)


def test_a_given_scale_is_rounded_before_codes_are_chosen():
    """XLA may leave out a cast to bfloat16 and back; the codes must not notice."""
    code = Encoding(Scheme(), (99, 2), "bfloat16", (0,))
    w = jnp.asarray(np.linspace(-12, 12, 198), jnp.bfloat16).reshape(99, 2)
    scale = jnp.full((1, 2), 0.1003, jnp.float32)
    parts = jax.jit(lambda w, scale: code.encode(w, scale))(w, scale)
    step = np.asarray(0.1003, ml_dtypes.bfloat16).astype(F32)
    assert (np.asarray(parts["scale"], F32) == step).all()
    expected = np.clip(np.round(np.asarray(w, F32) * (F32(1) / step)), -127, 127)
    np.testing.assert_array_equal(parts["values"], expected)


def test_float64_is_computed_in_float64():
    w = np.random.default_rng(0).normal(size=(6, 4))
    with jax.enable_x64(True):
        code = Encoding(Scheme(), w.shape, "float64", (0,))
        parts = code.encode(w)
        scale = np.abs(w).max(0, keepdims=True) * (1 / 127)
        np.testing.assert_array_equal(parts["scale"], scale)
        np.testing.assert_array_equal(parts["values"], np.round(w / scale))
        assert code.decode(parts).dtype == jnp.float64


@pytest.mark.parametrize("name", ["int8", "ternary", "float8_e4m3", "nf4", *BLOCKS])
def test_degenerate_columns_are_defined(name):
    """All zero, subnormal, tiny, huge, and one large among small ones."""
    tiny = float(np.finfo(F32).tiny)
    columns = [[0.0] * 3, [tiny / 8] * 3, [tiny, -tiny, 0], [3.4e38, -3e38, 1]]
    w = np.array([*columns, [1e-30, 1e30, -1e-3]], F32).T
    code = Encoding(Scheme(name), w.shape, "float32", (0,))
    parts, back = through(code, w)
    assert np.isfinite(back).all()
    assert (back[:, :2] == 0).all()
    scale = np.asarray(code.scales(parts))
    assert (scale >= tiny).all()
    assert np.isfinite(scale).all()
    assert (scale[:, :2] == 1).all()
    np.testing.assert_allclose(back[0, 3], np.finfo(F32).max / 8, rtol=0.34)
    np.testing.assert_allclose(back[1, 4], 1e30, rtol=0.34)


def test_huge_asymmetric_weights_stay_finite():
    w = np.array([[3.4e38, -3.4e38, 1], [3.4e38, 0, 2]], F32).T
    for name in ("int8", "int2"):
        code = Encoding(Scheme(name, symmetric=False), w.shape, "float32", (0,))
        assert np.isfinite(through(code, w)[1]).all()


@pytest.mark.parametrize("name", ["int8", "int2"])
def test_zero_is_exact_where_the_zero_point_moves(name):
    code = Encoding(Scheme(name, symmetric=False), (8, 6), "float32", (0,))
    w = arrays(code.shape) + 3
    w[3] = 0
    assert (through(code, w)[1][3] == 0).all()


@pytest.mark.parametrize("scheme", [Scheme("int8", 4, False), Scheme("ternary", 4)])
def test_padding_has_no_part_in_the_last_group(scheme):
    w = np.abs(arrays((6, 3))) + 1
    code = Encoding(scheme, (6, 3), "float32", (0,))
    alone = Encoding(scheme, (2, 3), "float32", (0,))
    np.testing.assert_array_equal(through(code, w)[1][4:], through(alone, w[4:])[1])


def test_a_scale_for_a_tensor_is_not_shared_by_matrices_of_a_stack():
    code = Encoding(Scheme(group="tensor"), (2, 3, 4), "float32", (1,), (0,))
    w = np.stack([np.full((3, 4), 1, F32), np.full((3, 4), 127, F32)])
    parts = code.encode(w)
    assert parts["scale"].shape == (2, 1, 1)
    np.testing.assert_allclose(parts["scale"].ravel(), [1 / 127, 1], rtol=1e-6)


@pytest.mark.parametrize("shape", [(0, 3), (3, 0)])
@pytest.mark.parametrize("scheme", [Scheme(), Scheme("int4", 2, False, "mse")], ids=str)
def test_nothing_is_stored_as_nothing(shape, scheme):
    code = Encoding(scheme, shape, "float32", (0,))
    parts, back = through(code, np.zeros(shape, F32))
    assert {n: x.shape for n, x in parts.items()} == {
        n: s.shape for n, s in code.specs.items()
    }
    assert back.shape == shape


@pytest.mark.parametrize(
    ("scheme", "size"),
    [
        (Scheme(), 64 * 48 + 48 * 4),
        (Scheme("int4", 32), 64 * 48 // 2 + 2 * 48 * 4),
        (Scheme("int4", 32, False), 64 * 48 // 2 + 2 * 48 * 5),
        (Scheme("ternary", "tensor"), 64 * 48 // 4 + 4),
        (Scheme("nf4", 40, scale_dtype="bfloat16"), 64 * 48 // 2 + 2 * 48 * 2),
        (Scheme("mxfp8"), 64 * 48 + 2 * 48),
        (Scheme("mxfp4"), 64 * 48 // 2 + 2 * 48),
    ],
    ids=str,
)
def test_bytes_are_counts_times_bits_and_scales(scheme, size):
    assert Encoding(scheme, (64, 48), "float32", (0,)).bytes == size


def test_products_see_rows_as_one_axis():
    code = Encoding(Scheme("int4", 4, False), (3, 2, 5, 4), "float32", (1, 3), (0,))
    parts, back = through(code, arrays(code.shape))
    assert (code.merged, code.axis, code.place(0)) == ((3, 8, 5), 1, 0)
    scales, zeros = np.asarray(code.scales(parts)), np.asarray(code.zeros(parts))
    assert scales.shape == zeros.shape == (3, 2, 5)
    codes = np.asarray(code.codes(jax.tree.map(jnp.asarray, parts)), F32)
    merged = (codes - np.repeat(zeros, 4, 1).astype(F32)) * np.repeat(scales, 4, 1)
    expected = np.transpose(back, (0, 1, 3, 2)).reshape(3, 8, 5)
    np.testing.assert_array_equal(merged, expected)


def test_block_formats_store_what_the_specification_says():
    """Blocks of 1 to 32: the shared power is 2 ** (5 - emax), the byte 127 above."""
    w = np.arange(1, 33, dtype=F32)[:, None]
    bytes_ = {"mxfp8": 5 - 8, "mxfp4": 5 - 2, "mxint8": 5}
    for name, exponent in bytes_.items():
        code = Encoding(Scheme(name), w.shape, "float32", (0,))
        parts, back = through(code, w)
        assert parts["scale"].tolist() == [[exponent + 127]], name
    np.testing.assert_array_equal(back, np.round(w * 2) / 2)  # of mxint8


def test_a_given_zero_point_is_kept_and_a_missing_one_chosen():
    code = Encoding(Scheme("int4", symmetric=False), (4, 2), "float32", (0,))
    w = arrays(code.shape)
    parts = code.encode(w)
    same = code.encode(w, parts["scale"])
    jax.tree.map(np.testing.assert_array_equal, same, parts)
    moved = code.encode(w, parts["scale"], parts["zero"] * 0)
    assert (moved["zero"] == 0).all()
    assert code.encode(w, zero=parts["zero"])["values"].dtype == jnp.uint8


WRONG = [
    ({"dtype": "int5"}, "'int5': expected a format of .* Did you mean 'int"),
    ({"group": 0}, "group: expected 'tensor', 'channel' or a number .* got 0"),
    ({"group": "row"}, "got 'row'"),
    ({"group": True}, "got True"),
    ({"group": 2.0}, r"got 2\.0"),
    ({"dtype": "nf4", "symmetric": False}, "nf4: expected symmetric=True"),
    ({"dtype": "ternary", "symmetric": False}, "ternary: expected symmetric=True"),
    ({"clip": "kl"}, "clip: expected one of"),
    ({"scale_dtype": "int8"}, "scale_dtype: expected one of"),
    ({"dtype": "mxfp4", "group": 16}, "mxfp4: expected group=32"),
    ({"dtype": "mxfp4", "scale_dtype": "float32"}, "mxfp4: expected no scale_dtype"),
]


@pytest.mark.parametrize(("fields", "message"), WRONG, ids=lambda x: str(x)[:30])
def test_schemes_that_make_no_sense_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Scheme(**fields)


def test_encodings_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match="expected at least one row"):
        Encoding(Scheme(), (3, 4), "float32", ())
    with pytest.raises(ValueError, match="different axes of an array of 2 axes"):
        Encoding(Scheme(), (3, 4), "float32", (0, 2))
    with pytest.raises(ValueError, match="different axes"):
        Encoding(Scheme(), (3, 4), "float32", (0,), (0,))
    with pytest.raises(ValueError, match="int32: expected a floating dtype"):
        Encoding(Scheme(), (3, 4), "int32", (0,))


def test_arrays_and_parts_that_do_not_fit_are_refused():
    code = Encoding(Scheme("mxfp4"), (3, 4), "float32", (0,))
    w = np.ones((3, 4), F32)
    with pytest.raises(ValueError, match=r"array: expected shape \(3, 4\)"):
        code.encode(w.T)
    with pytest.raises(ValueError, match=r"scale: expected shape \(1, 4\)"):
        code.encode(w, np.ones((4,), np.uint8))
    with pytest.raises(ValueError, match="expected exponents in uint8, got float32"):
        code.encode(w, np.ones((1, 4), F32))
    with pytest.raises(ValueError, match="zero: expected none, for mxfp4 has none"):
        code.encode(w, zero=np.ones((1, 4), np.int8))
    for wrong in (code.sliced, code.place):
        with pytest.raises(ValueError, match="axis 1: expected one of the stack's"):
            wrong(1)


def test_names_become_schemes_with_the_usual_groups():
    groups = {name: as_scheme(name).group for name in NAMES}
    whole = {"int8", "float8_e4m3", "float8_e5m2"}
    assert {n for n, group in groups.items() if group == "channel"} == whole
    assert {groups[n] for n in NAMES if n not in whole} == {32}
    assert as_scheme(Scheme("int4", 7)) == Scheme("int4", 7)
    with pytest.raises(ValueError, match="'float8_e4m3'"):
        as_scheme("fp8")


def test_schemes_and_encodings_are_values():
    scheme = Scheme("int4", 32, False, "mse", "bfloat16")
    code = Encoding(scheme, (3, 64, 8), "float32", (1,), (0,))
    assert str(scheme) == "int4 group 32 asymmetric mse scales bfloat16"
    assert str(code) == f"{scheme} of float32 [3 stacked, 64 rows, 8]"
    for value in (scheme, code, Scheme("mxfp8")):
        assert mapping.from_config(mapping.to_config(value)) == value
        assert hash(value) == hash(dataclasses.replace(value))
