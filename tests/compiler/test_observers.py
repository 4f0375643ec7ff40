"""Ranges from histograms, against the numbers themselves."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import stats

from compiler.passes.quantize.calibrate.histogram import (
    BINS,
    RESOLUTION,
    Cells,
    histogram,
)
from compiler.passes.quantize.calibrate.observers import (
    best_cut,
    divergence,
    least_squares,
    parse,
    percentile,
)

SAMPLES = {
    "normal": np.random.default_rng(0).normal(size=20_000),
    "relu": np.maximum(np.random.default_rng(1).normal(size=20_000), 0),
    "heavy tails": np.random.default_rng(2).standard_t(3, size=20_000),
    "shifted": 3 + 0.1 * np.random.default_rng(3).normal(size=20_000),
    "one outlier": np.append(np.random.default_rng(4).normal(size=19_999), 60.0),
    "few": np.array([0.3, -1.5, 2.25]),
    "tiny": 1e-30 * np.random.default_rng(5).normal(size=20_000),
}
SAMPLES = {name: x.astype(np.float32) for name, x in SAMPLES.items()}
TINY = 2.0**-126
"""Below it floats get coarser."""
count = jax.jit(histogram)


def cells(x):
    return Cells.of(np.asarray(count(x)), float(x.min()), float(x.max()))


@pytest.fixture(params=SAMPLES, ids=lambda name: name.replace(" ", "-"))
def sample(request):
    return SAMPLES[request.param]


def rounded(x, low, high, symmetric, bits):
    """Brute force: every number rounded to the grid of a range."""
    x = x.astype(np.float64)
    if symmetric:
        limit = 2 ** (bits - 1) - 1
        return np.clip(np.round(x / (high / limit)), -limit, limit) * (high / limit)
    step = (high - low) / (2**bits - 1)
    first = np.round(low / step)
    return np.clip(np.round(x / step), first, first + 2**bits - 1) * step


def loss(x, low, high, symmetric, bits):
    return ((rounded(x, low, high, symmetric, bits) - x) ** 2).sum()


@given(
    hnp.arrays(
        np.float32,
        30,
        elements=st.floats(width=32, allow_nan=False, allow_infinity=False),
    )
)
@settings(max_examples=60, deadline=None)
def test_every_number_is_in_a_bin_no_wider_than_the_resolution(x):
    counts = np.asarray(count(x))
    assert counts.sum() == x.size
    assert counts.shape == (BINS,)
    found = Cells.of(counts, float(x.min()), float(x.max()))
    assert found.total == x.size
    for value in x.astype(np.float64):
        inside = (found.low <= value) & (value <= found.high)
        assert inside.any()
    least = np.minimum(np.abs(found.low), np.abs(found.high))
    assert (found.high - found.low <= RESOLUTION * np.maximum(least, TINY)).all()


def test_histograms_of_parts_add_up_to_that_of_all(sample):
    half = sample.size // 2
    parts = count(sample[:half]) + count(sample[half:])
    assert np.array_equal(parts, count(sample))


def test_a_histogram_of_few_bits_is_that_of_the_same_numbers():
    x = jnp.asarray(SAMPLES["normal"]).astype(jnp.bfloat16)
    assert np.array_equal(histogram(x), histogram(x.astype(jnp.float32)))


@pytest.mark.parametrize("percent", [99.0, 99.9, 99.99, 100.0])
def test_percentiles_are_numpys_to_the_width_of_a_bin(sample, percent):
    low, high = percentile(cells(sample), percent, False, 8)
    for got, want in (
        (high, np.percentile(sample.astype(np.float64), percent)),
        (low, np.percentile(sample.astype(np.float64), 100 - percent)),
    ):
        near = np.abs(sample[np.argsort(np.abs(sample - want))[:2]]).max()
        assert abs(got - want) <= RESOLUTION * max(near, abs(want), TINY) * 1.01
    _, limit = percentile(cells(sample), percent, True, 8)
    want = np.percentile(np.abs(sample).astype(np.float64), percent)
    ranked = np.sort(np.abs(sample))
    above = ranked[min(np.searchsorted(ranked, want), sample.size - 1)]
    assert abs(limit - want) <= RESOLUTION * above * 1.01


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("symmetric", [True, False])
def test_the_range_of_least_squares_is_the_best_of_all_that_are_tried(
    sample, symmetric, bits
):
    low, high = least_squares(cells(sample), 0, symmetric, bits)
    got = loss(sample, low, high, symmetric, bits)
    shrunk = 2.0 ** (-np.arange(0, 161, 4) / 16)
    if symmetric:
        limits = np.abs(sample).max() * shrunk
        tried = [loss(sample, -t, t, True, bits) for t in limits]
    else:
        lows = min(sample.min(), 0) * shrunk
        highs = max(sample.max(), 0) * shrunk
        tried = [
            loss(sample, a, b, False, bits)
            for a in lows[:24:4]
            for b in highs[::2]
            if b > a
        ]
    # Within a bin numbers count as spread evenly: with few of them that is coarse.
    slack = 1.02 if sample.size > 100 else 1.5
    assert got <= slack * min(tried)


def test_an_outlier_is_cut_off_where_that_pays():
    x = SAMPLES["one outlier"]
    _, four = least_squares(cells(x), 0, True, 4)
    _, eight = least_squares(cells(x), 0, True, 8)
    assert four < 0.3 * np.abs(x).max()
    assert loss(x, -four, four, True, 4) < 0.9 * loss(x, -60, 60, True, 4)
    assert four < eight
    assert divergence(cells(x), 0, True, 8)[1] < 0.3 * np.abs(x).max()


def reference_cut(counts, levels, step):
    """TensorRT's calibrator, bin by bin, with scipy's divergence."""
    found = {}
    for kept in range(max(levels, step), len(counts) + 1, step):
        p = counts[:kept].copy()
        p[-1] += counts[kept:].sum()
        q = np.zeros(kept)
        edges = [-(-level * kept // levels) for level in range(levels + 1)]
        for first, last in itertools.pairwise(edges):
            some = counts[first:last]
            if (some > 0).any():
                mean = some.sum() / (some > 0).sum()
                q[first:last] = np.where(some > 0, mean, 0)
        if q.any():
            q = (1 - 1e-4) * q / q.sum() + 1e-4 / kept
            found[kept] = stats.entropy(p, q)
    return min(found, key=found.get), found


@pytest.mark.parametrize("levels", [128, 8])
def test_the_cut_of_least_divergence_is_tensorrts(sample, levels):
    counts, _ = np.histogram(np.abs(sample[sample != 0]), bins=512)
    counts = counts.astype(float)
    want, found = reference_cut(counts, levels, 16)
    got = best_cut(counts, levels)
    assert got == want or found[got] == pytest.approx(found[want], rel=1e-12)


@pytest.mark.parametrize("name", ["normal", "relu", "heavy tails", "shifted"])
def test_divergence_of_the_histogram_is_that_of_the_numbers(name):
    """The reference counts the numbers themselves in the 2048 bins."""
    x = SAMPLES[name]
    _, limit = divergence(cells(x), 0, True, 8)
    magnitudes = np.abs(x[x != 0])
    counts, edges = np.histogram(magnitudes, 2048, (0, magnitudes.max()))
    want, found = reference_cut(counts.astype(float), 128, 16)
    got = round(limit / edges[1])
    assert got % 16 == 0
    assert found[got] <= 1.1 * found[want] + 0.005


def test_asymmetric_divergence_cuts_either_side_at_one_limit():
    x = SAMPLES["relu"]
    low, high = divergence(cells(x), 0, False, 8)
    assert low == 0
    assert high == divergence(cells(x), 0, True, 8)[1]


@pytest.mark.parametrize(
    "observer", ["maximum", (), ("mse", 1, 2), ("percentile", 40), ("percentile", 101)]
)
def test_an_unknown_observer_is_refused(observer):
    with pytest.raises(ValueError, match="observer: expected"):
        parse(observer)


def test_a_percentage_may_be_given():
    assert parse("percentile") == ("percentile", 99.9)
    assert parse(("percentile", 99.99)) == ("percentile", 99.99)
