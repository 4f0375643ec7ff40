"""Rounding of matrices, against textbook formulas in numpy."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compiler.passes.quantize.rounding.balance import (
    Reader,
    awq_factors,
    mean_shift,
    smooth_factors,
)
from compiler.passes.quantize.rounding.feedback import gptq, nearest
from compiler.passes.quantize.rounding.hessian import inverse_factor, moved
from compiler.passes.quantize.rounding.normal import array_of, matrices, stored
from compiler.passes.quantize.storage.encoding import Encoding
from compiler.passes.quantize.storage.scheme import Scheme

quick = jax.jit(gptq, static_argnames=("scheme", "order", "damping"))
plain = jax.jit(nearest, static_argnames="scheme")


@jax.jit
def awq(inputs, weights, hessian):
    """The factors of weights with the same inputs, rounded to int4 in groups of 16."""
    rows = range(hessian.shape[-1])
    readers = [Reader(w, hessian, Scheme("int4", 16), tuple(rows)) for w in weights]
    return awq_factors(inputs, readers)


def problem(stack, rows, columns, seed=0, samples=None):
    """Weights, and the Hessians of inputs whose features go together."""
    rng = np.random.default_rng(seed)
    samples = samples or 3 * rows
    mixed = rng.normal(size=(rows, rows)) / np.sqrt(rows) + np.eye(rows)
    x = rng.normal(size=(stack, samples, rows)) @ mixed * rng.gamma(1.0, size=rows)
    w = rng.normal(size=(stack, rows, columns))
    hessian = np.swapaxes(x, 1, 2) @ x / samples
    return w.astype(np.float32), hessian.astype(np.float32)


def textbook(w, hessian, group, peak, turn=None, damping=0.01):
    """Optimal brain quantization in a fixed order, with the inverse spelled out."""
    w = w.astype(np.float64).copy()
    hessian = hessian.astype(np.float64)
    rows, whole = len(w), w.copy()
    inverse = np.linalg.inv(hessian + damping * np.trace(hessian) / rows * np.eye(rows))
    result, scale = np.zeros_like(w), None
    turns = range(rows) if turn is None else turn
    for i in turns:
        if turn is not None:
            first = i // group * group
            scale = np.abs(whole[first : first + group]).max(0) / peak
        elif i % group == 0:
            scale = np.abs(w[i : i + group]).max(0) / peak
        result[i] = np.clip(np.round(w[i] / scale), -peak, peak) * scale
        error = (w[i] - result[i]) / inverse[i, i]
        w -= inverse[:, i : i + 1] * error
        inverse = inverse - np.outer(inverse[:, i], inverse[i]) / inverse[i, i]
    return result


def losses(error, hessian):
    return np.einsum("ic,ij,jc->c", error, hessian, error)


def rounded(w, group, peak=7):
    result = np.zeros_like(w)
    for first in range(0, len(w), group):
        rows = w[first : first + group]
        scale = np.abs(rows).max(0) / peak
        result[first : first + group] = np.round(rows / scale) * scale
    return result


@pytest.mark.parametrize(
    ("rows", "group", "order"),
    [(40, 16, False), (40, 16, True), (150, 150, False), (300, 140, False)],
    ids=["remainder", "by-size", "blocks", "blocks-in-groups"],
)
def test_it_is_optimal_brain_quantization_or_the_nearest(rows, group, order):
    w, hessian = (array[0] for array in problem(1, rows, 6, seed=1))
    turn = np.argsort(-np.diag(hessian), kind="stable") if order else None
    made, near = textbook(w, hessian, group, 7, turn), rounded(w, group)
    better = losses(w - made, hessian) < losses(w - near, hessian)
    assert better.sum() >= 4
    expected = np.where(better, made, near)
    got = quick(w[None], hessian[None], Scheme("int4", group), order=order)
    different = np.abs(got.values[0] - expected) > 1e-4
    assert different.mean() < 0.005  # a tie may go either way in float32
    least = losses(w - expected, hessian)
    np.testing.assert_allclose(got.loss[0], least, rtol=1e-3)


def test_the_factor_is_that_of_the_inverse():
    hessian = problem(1, 20, 1)[1][0]
    damped = hessian + 0.05 * np.trace(hessian) / 20 * np.eye(20)
    u = np.asarray(inverse_factor(hessian, 0.05), np.float64)
    assert np.array_equal(u, np.triu(u))
    np.testing.assert_allclose(u.T @ u @ damped, np.eye(20), atol=1e-4)


def test_what_moves_is_the_mean_square_of_outputs():
    rng = np.random.default_rng(1)
    x, error = rng.normal(size=(50, 8)), rng.normal(size=(8, 3))
    got = moved(jnp.asarray(error, jnp.float32), jnp.asarray(x.T @ x / 50, jnp.float32))
    np.testing.assert_allclose(got, ((x @ error) ** 2).mean(0), rtol=1e-5)


@pytest.mark.parametrize("seed", range(5))
def test_no_assignment_of_codes_is_better_than_what_is_best(seed):
    w, hessian = problem(1, 4, 1, seed)
    w, hessian = w[0], hessian[0]
    got = quick(w[None], hessian[None], Scheme("int2", "tensor"))
    near = plain(w[None], hessian[None], Scheme("int2", "tensor"))
    scale = float(got.scale.ravel()[0])
    codes = itertools.product((-1, 0, 1), repeat=4)
    best = min(losses(w - scale * np.array(c)[:, None], hessian)[0] for c in codes)
    assert best * (1 - 1e-5) <= got.loss[0, 0] <= near.loss[0, 0] * (1 + 1e-5)


def test_equal_inputs_share_what_must_be_rounded():
    w = jnp.asarray([[[1.4], [1.4], [1.4], [1.4], [7.0]]])
    hessian = np.zeros((1, 5, 5), np.float32)
    hessian[0, :4, :4] = 1 + 1e-3 * np.eye(4)
    hessian[0, 4, 4] = 1
    got = quick(w, hessian, Scheme("int4", "channel")).values.ravel()
    assert float(got[:4].sum()) == 6.0  # 4 x 1.4 is 5.6; each for itself they make 4
    assert float(got[4]) == 7.0


@settings(max_examples=20, deadline=None)
@given(st.booleans(), st.integers(0, 2**20), st.floats(-30, 30))
def test_it_is_never_worse_than_the_nearest(order, seed, size):
    w, hessian = problem(2, 20, 5, seed, samples=8)
    w = w * np.float32(2.0) ** np.float32(size)
    scheme = Scheme("int2", 8, symmetric=False)
    got = quick(w, hessian, scheme, order=order)
    assert np.all(np.isfinite(got.values))
    assert np.all(got.loss <= plain(w, hessian, scheme).loss * (1 + 1e-5))


@pytest.mark.parametrize("kind", ["ternary", "float8_e4m3", "nf4", "mxfp4"])
def test_every_format_gains_and_is_stored_exactly(kind):
    scheme = Scheme(kind) if kind == "mxfp4" else Scheme(kind, 16)
    w, hessian = problem(2, 40, 12)
    code = Encoding(scheme, w.shape, "float32", rows=(1,), stack=(0,))
    got, near = quick(w, hessian, scheme), plain(w, hessian, scheme)
    assert got.loss.sum() < 0.9 * near.loss.sum()
    assert np.array_equal(code.decode(stored(code, got)), got.values)
    own = code.decode(code.encode(w))
    np.testing.assert_allclose(near.values, own, rtol=1e-6, atol=1e-9)


LAYOUTS = {
    "a-matrix": ((24, 6), (0,), ()),
    "transposed": ((6, 24), (1,), ()),
    "heads": ((3, 24, 2), (1,), ()),
    "rows-apart": ((4, 6, 5), (0, 2), ()),
    "stack-in-the-middle": ((24, 3, 6), (0,), (1,)),
    "convolution": ((3, 3, 4, 6), (0, 1, 2), ()),
    "two-stacks": ((2, 5, 3, 24), (3,), (0, 2)),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    "scheme",
    [Scheme("int4", 8, symmetric=False), Scheme("int8", "tensor")],
    ids=str,
)
def test_what_is_stored_decodes_to_what_was_rounded(layout, scheme):
    shape, rows, stack = LAYOUTS[layout]
    array = jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)
    code = Encoding(scheme, shape, "float32", rows=rows, stack=stack)
    normal = matrices(code, array)
    assert np.array_equal(array_of(code, normal), array)
    hessian = jnp.stack([jnp.eye(normal.shape[1])] * len(normal))
    near = plain(normal, hessian, scheme)
    parts = stored(code, near)
    assert {k: (v.shape, v.dtype) for k, v in parts.items()} == {
        k: (v.shape, v.dtype) for k, v in code.specs.items()
    }
    assert np.array_equal(code.decode(parts), array_of(code, near.values))
    assert np.array_equal(parts["scale"], code.encode(array)["scale"])


def test_narrow_weights_are_stored_as_they_were_rounded():
    w, hessian = problem(1, 32, 8)
    w = jnp.asarray(w, "bfloat16")
    scheme = Scheme("int8", 16, symmetric=False)
    code = Encoding(scheme, w.shape, "bfloat16", rows=(1,), stack=(0,))
    got = quick(w, hessian, scheme)
    parts = stored(code, got)
    assert parts["scale"].dtype == w.dtype
    units = parts["values"].astype(jnp.float32) - jnp.repeat(
        parts["zero"].astype(jnp.float32), 16, 1
    )
    exact = units * jnp.repeat(parts["scale"].astype(jnp.float32), 16, 1)
    assert np.array_equal(exact, got.values)


def degenerate(kind, rows):
    x = np.random.default_rng(3).normal(size=rows).astype(np.float32)
    some = np.outer(x, x)
    if kind == "zero":
        return np.zeros_like(some)
    if kind == "one-sample":
        return some
    if kind == "dead-rows":
        full = problem(1, rows, 1)[1][0]
        full[::3], full[:, ::3] = 0, 0
        return full
    return np.where(np.eye(rows, dtype=bool), np.float32(kind), some)


@pytest.mark.parametrize("order", [False, True], ids=["in-turn", "by-size"])
@pytest.mark.parametrize(
    "kind", ["zero", "one-sample", "dead-rows", "nan", "inf", "1e38", "1e-44"]
)
def test_no_hessian_makes_weights_that_are_not_finite(kind, order):
    w = problem(1, 24, 6)[0]
    hessian = degenerate(kind, 24)[None]
    got = quick(w, hessian, Scheme("int4", 8), order=order)
    assert np.all(np.isfinite(got.values))
    assert np.all(np.abs(got.values) <= 2 * np.abs(w).max())
    if kind in ("zero", "nan"):
        near = plain(w, hessian, Scheme("int4", 8)).values
        np.testing.assert_allclose(got.values, near, rtol=1e-6)


def test_rows_that_nothing_goes_into_are_rounded_to_the_nearest():
    w, hessian = problem(1, 24, 6)[0], degenerate("dead-rows", 24)[None]
    scheme = Scheme("int4", "channel")
    got, near = quick(w, hessian, scheme), plain(w, hessian, scheme)
    assert np.all(got.loss < near.loss)
    np.testing.assert_allclose(got.values[:, ::3], near.values[:, ::3], rtol=1e-6)


def test_columns_of_zeros_stay_zero():
    w, hessian = problem(1, 24, 6)
    w[..., 2] = 0
    for scheme in (
        Scheme("int4", 8),
        Scheme("int2", 8, symmetric=False),
        Scheme("nf4"),
    ):
        got = quick(w, hessian, scheme)
        assert np.all(got.values[..., 2] == 0)
        assert np.all(np.isfinite(got.values))


def test_matrices_of_a_stack_are_rounded_each_for_itself():
    w, hessian = problem(3, 24, 6)
    together = quick(w, hessian, Scheme("int4", 8))
    for i in range(3):
        alone = quick(w[i : i + 1], hessian[i : i + 1], Scheme("int4", 8))
        np.testing.assert_allclose(together.values[i], alone.values[0], rtol=1e-4)


def test_awq_finds_the_best_exponent_of_a_grid():
    w, hessian = problem(1, 32, 12)
    inputs = np.sqrt(np.diagonal(hessian, axis1=1, axis2=2))
    tried = {}
    for alpha in np.linspace(0, 1, 21):
        s = (inputs[0].astype(np.float64) ** alpha)[:, None]
        error = w[0] - rounded(w[0] * s, 16) / s
        tried[alpha] = losses(error, hessian[0]).sum()
    best = min(tried, key=tried.__getitem__)
    factors, alphas = awq(inputs, [w], hessian)
    assert 0 < best < 1
    np.testing.assert_allclose(alphas, [best], rtol=1e-6)
    expected = inputs[0] ** best / np.exp(np.log(inputs[0]).mean() * best)
    np.testing.assert_allclose(factors[0], expected, rtol=1e-5)
    assert tried[best] < 0.9 * tried[0.0]


def test_awq_of_matrices_with_the_same_inputs_agrees_on_one():
    w, hessian = problem(2, 32, 24)
    inputs = np.sqrt(np.diagonal(hessian, axis1=1, axis2=2))
    whole = awq(inputs, [w], hessian)
    parts = awq(inputs, [w[..., :10], w[..., 10:]], hessian)
    np.testing.assert_allclose(whole[0], parts[0], rtol=1e-6)


@pytest.mark.parametrize("kind", ["zero", "one-sample", "dead-rows", "nan", "inf"])
def test_awq_factors_are_finite_whatever_the_inputs(kind):
    w, hessian = problem(1, 24, 6)[0], degenerate(kind, 24)[None]
    inputs = np.sqrt(np.abs(np.diagonal(hessian, axis1=1, axis2=2)))
    factors, alphas = awq(inputs, [w], hessian)
    assert np.all(np.isfinite(factors) & (factors > 0))
    assert np.all((alphas >= 0) & (alphas <= 1))


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.5, 1.0])
def test_smoothing_is_that_of_the_paper_up_to_its_mean(alpha):
    rng = np.random.default_rng(0)
    x, w = rng.gamma(1.0, size=(2, 2, 16)).astype(np.float32)
    expected = x**alpha / w ** (1 - alpha)
    expected /= np.exp(np.log(expected).mean(1, keepdims=True))
    np.testing.assert_allclose(smooth_factors(x, w, alpha), expected, rtol=1e-5)


def test_smoothing_makes_sizes_equal_at_its_ends():
    rng = np.random.default_rng(0)
    x, w = rng.gamma(1.0, size=(2, 1, 16)).astype(np.float32)
    assert np.ptp(x / smooth_factors(x, w, 1.0)) < 1e-5 * x.mean()
    assert np.ptp(w * smooth_factors(x, w, 0.0)) < 1e-5 * w.mean()
    half = smooth_factors(x, w, 0.5)
    ratio = (x / half) / (w * half)
    np.testing.assert_allclose(ratio, np.full_like(ratio, ratio[0, 0]), rtol=1e-5)


@pytest.mark.parametrize("bad", [0.0, np.nan, np.inf])
@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_smoothing_factors_are_finite_whatever_the_inputs(bad, alpha):
    x, w = np.ones((2, 1, 8), np.float32)
    x[0, 3], w[0, 5] = bad, 0.0
    factors = smooth_factors(x, w, alpha)
    assert np.all(np.isfinite(factors) & (factors > 0))
    none = smooth_factors(np.full((1, 8), bad, np.float32), w * 0, alpha)
    np.testing.assert_allclose(none, np.ones((1, 8)), rtol=1e-6)


def test_the_mean_of_outputs_moves_as_the_mean_of_inputs_says():
    rng = np.random.default_rng(0)
    x = rng.normal(1.0, size=(2, 100, 8)).astype(np.float32)
    error = rng.normal(size=(2, 8, 3)).astype(np.float32)
    got = mean_shift(jnp.asarray(x.mean(1)), jnp.asarray(error))
    np.testing.assert_allclose(got, (x @ error).mean(1), rtol=1e-4, atol=1e-5)
