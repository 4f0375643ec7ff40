"""Eight-bit weights: every weight found, a bounded error, and a reason for the rest."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from zoo import linen, normal, relative_error

import compiler as mc
from compiler.errors import NonFiniteWeightsError, UnknownPathError

W = normal(16, 32)
X = normal(4, 16)


def conv(x, w, **options):
    numbers, padding = ("NHWC", "HWIO", "NHWC"), ((1, 1), (1, 1))
    return jax.lax.conv_general_dilated(
        x, w, (1, 1), padding, dimension_numbers=numbers, **options
    )


IMAGE = normal(2, 6, 6, 8)
SITES = {
    "x @ w": (lambda v, x: x @ v["w"], {"w": W}, X, ["w"]),
    "matmul": (lambda v, x: jnp.matmul(x, v["w"]), {"w": W}, X, ["w"]),
    "einsum": (lambda v, x: jnp.einsum("bi,io->bo", x, v["w"]), {"w": W}, X, ["w"]),
    "tensordot": (lambda v, x: jnp.tensordot(x, v["w"], 1), {"w": W}, X, ["w"]),
    "transposed": (lambda v, x: x @ v["w"].T, {"w": W.T}, X, ["w"]),
    "on the left": (lambda v, x: (v["w"].T @ x.T).T, {"w": W}, X, ["w"]),
    "cast": (
        lambda v, x: x @ v["w"].astype(jnp.float32),
        {"w": W.astype(jnp.bfloat16)},
        X,
        ["w"],
    ),
    "two of one shape": (
        lambda v, x: (x @ v["a"]) @ v["b"],
        {"a": normal(16, 16), "b": normal(16, 16, seed=1)},
        X,
        ["a", "b"],
    ),
    "tied embedding": (
        lambda v, x: v["e"][jnp.arange(4)] @ v["e"].T,
        {"e": normal(50, 16)},
        X,
        ["e"],
    ),
    "experts": (
        lambda v, x: jax.vmap(lambda w: x @ w)(v["w"]),
        {"w": normal(3, 16, 8)},
        X,
        ["w"],
    ),
    "scanned": (
        lambda v, x: jax.lax.scan(lambda c, w: (jnp.tanh(c @ w), None), x, v["w"])[0],
        {"w": 0.2 * normal(3, 16, 16)},
        X,
        ["w"],
    ),
    "in a branch": (
        lambda v, x: jax.lax.cond(x.sum() > 0, lambda x: x @ v["w"], lambda x: x, x),
        {"w": normal(16, 16)},
        X,
        ["w"],
    ),
    "in a loop": (
        lambda v, x: jax.lax.fori_loop(0, 3, lambda i, x: jnp.tanh(x @ v["w"]) / 4, x),
        {"w": normal(16, 16)},
        X,
        ["w"],
    ),
    "convolution": (
        lambda v, x: conv(x, v["w"]), {"w": normal(3, 3, 8, 8)}, IMAGE, ["w"]
    ),
    "grouped convolution": (
        lambda v, x: conv(x, v["w"], feature_group_count=4),
        {"w": normal(3, 3, 2, 8)},
        IMAGE,
        ["w"],
    ),
    "depthwise convolution": (
        lambda v, x: conv(x, v["w"], feature_group_count=8),
        {"w": normal(3, 3, 1, 8)},
        IMAGE,
        ["w"],
    ),
    "transposed convolution": (
        lambda v, x: conv(x, v["w"], lhs_dilation=(2, 2)),
        {"w": normal(3, 3, 8, 8)},
        IMAGE,
        ["w"],
    ),
    "captured": (lambda v, x: x @ W + v["b"], {"b": normal(1, 32)}, X, ["captured/0"]),
}  # fmt: skip


@pytest.mark.parametrize("site", SITES, ids=lambda name: name.replace(" ", "-"))
def test_the_weight_is_found(site):
    function, variables, x, paths = SITES[site]
    program = mc.trace(function, variables, x)
    small = program >> mc.quantize.weights("int8")
    assert [e.path for e in small.history[-1].events.fired] == paths
    assert relative_error(small(x), program(x)) < 0.03
    assert small.bytes < 0.6 * program.bytes


@pytest.mark.parametrize("site", SITES, ids=lambda name: name.replace(" ", "-"))
def test_quantizing_twice_changes_nothing(site):
    function, variables, x, _ = SITES[site]
    once = mc.trace(function, variables, x) >> mc.quantize.weights("int8")
    twice = once >> mc.quantize.weights("int8")
    assert twice.graph is once.graph
    assert not twice.history[-1].events.fired


def test_folding_does_not_undo_it(case):
    function, variables, inputs = case
    program = mc.trace(function, variables, *inputs) >> mc.fold()
    small = program >> mc.quantize.weights("int8")
    again = small >> mc.fold()
    assert again.bytes <= small.bytes
    assert relative_error(again(*inputs), small(*inputs)) < 1e-5


def test_integers_are_those_of_numpy_bit_for_bit():
    small = mc.trace(lambda v, x: x @ v["w"], {"w": W}, X) >> mc.quantize.weights()
    w = np.asarray(W)
    scale = np.asarray(small.variables["w"]["scale"])
    largest = np.abs(w).max(axis=0, keepdims=True)
    np.testing.assert_array_max_ulp(scale, largest / np.float32(127), maxulp=1)
    values = np.clip(np.round(w / scale), -127, 127).astype(np.int8)
    assert np.array_equal(small.variables["w"]["values"], values)


def test_a_convolution_has_a_scale_for_each_output_channel():
    function, variables, x, _ = SITES["grouped convolution"]
    small = mc.trace(function, variables, x) >> mc.quantize.weights()
    assert small.variables["w"]["scale"].shape == (1, 1, 1, 8)


def test_stacked_weights_have_scales_for_each_step():
    function, variables, x, _ = SITES["scanned"]
    small = mc.trace(function, variables, x) >> mc.quantize.weights()
    assert small.variables["w"]["scale"].shape == (3, 1, 16)


def test_a_tied_embedding_has_a_scale_for_each_word():
    function, variables, x, _ = SITES["tied embedding"]
    small = mc.trace(function, variables, x) >> mc.quantize.weights()
    assert small.variables["e"]["scale"].shape == (50, 1)


floats = st.floats(-1e3, 1e3, width=32, allow_subnormal=False)


@settings(max_examples=50, deadline=None)
@given(
    hnp.arrays(np.float32, st.tuples(st.integers(8, 20), st.just(12)), elements=floats)
)
def test_no_weight_moves_by_more_than_half_a_step(w):
    x = np.eye(len(w), dtype=np.float32)
    small = mc.trace(lambda v, x: x @ v["w"], {"w": w}, x) >> mc.quantize.weights()
    scale = np.asarray(small.variables["w"]["scale"])
    got = np.asarray(small.variables["w"]["values"]).astype(np.float32) * scale
    assert np.all(np.abs(got - w) <= scale / 2 * (1 + 1e-5))
    assert np.all(got[:, np.abs(w).max(axis=0) == 0] == 0)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_smallest_weights_stay_finite_and_within_half_a_step(dtype):
    tiny = float(jnp.finfo(dtype).tiny)
    w = jnp.asarray((np.arange(16 * 32).reshape(16, 32) % 7 - 3) * tiny, dtype)
    small = mc.trace(lambda v, x: x @ v["w"], {"w": w}, X.astype(dtype))
    leaves = (small >> mc.quantize.weights()).variables["w"]
    scale = np.asarray(leaves["scale"], np.float64)
    assert np.all(scale >= tiny)
    got = np.asarray(leaves["values"], np.float64) * scale
    assert np.all(np.abs(got - np.asarray(w, np.float64)) <= scale / 2 * (1 + 1e-5))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_weight_that_is_not_finite_is_refused_by_path(bad):
    program = mc.trace(lambda v, x: x @ v["w"], {"w": W.at[3, 4].set(bad)}, X)
    with pytest.raises(NonFiniteWeightsError, match=r"w: expected finite .* got 1"):
        program >> mc.quantize.weights()
    program >> mc.quantize.weights(skip=("w",))


def test_what_is_left_is_left_for_a_reason():
    def function(v, x):
        y = x @ v["skipped"] + x @ v["small"]
        return y * v["gain"] + x @ v["integers"].astype(jnp.float32)

    variables = {
        "gain": normal(1, 4),
        "integers": jnp.ones((16, 4), jnp.int32),
        "skipped": normal(16, 4),
        "small": normal(16, 1),
    }
    program = mc.trace(function, variables, X)
    small = program >> mc.quantize.weights(skip=("skip*",))
    reasons = {e.path: e.what for e in small.history[-1].events.skipped}
    assert reasons["gain"].startswith("reaches no product")
    assert reasons["integers"].startswith("not floating")
    assert reasons["skipped"] == "left out by rule skip*"
    assert [e.path for e in small.history[-1].events.fired] == ["small"]


def test_a_glob_that_names_nothing_is_an_error():
    program = mc.trace(lambda v, x: x @ v["w"], {"w": W}, X)
    with pytest.raises(UnknownPathError, match=r"hed/\*: names no leaf.* w"):
        program >> mc.quantize.weights(skip=("hed/*",))


def test_an_unknown_dtype_is_an_error():
    with pytest.raises(ValueError, match=r"'int7': expected a format of .*int8"):
        mc.quantize.weights("int7")


@pytest.mark.parametrize(
    ("module", "x"),
    [
        (nn.MultiHeadDotProductAttention(num_heads=4), normal(2, 8, 16)),
        (nn.RNN(nn.OptimizedLSTMCell(16)), normal(2, 8, 16)),
        (nn.ConvTranspose(8, (3, 3), strides=(2, 2)), normal(2, 6, 6, 8)),
    ],
    ids=["attention", "lstm", "transposed-conv"],
)
def test_every_kernel_of_a_flax_module_is_found(module, x):
    program = mc.trace(*(lambda f, v, i: (f, v, *i))(*linen(module, x))) >> mc.fold()
    small = program >> mc.quantize.weights()
    found = {e.path for e in small.history[-1].events.fired}
    kernels = {leaf.path for leaf in program.graph.leaves if "kernel" in leaf.path}
    assert kernels
    assert kernels <= found
    assert relative_error(small(x), program(x)) < 0.03
