"""Masks, patterns, distributions and schedules against loops in plain Python."""

import math

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mapping import sparse
from mapping.config import from_config, to_config
from mapping.errors import (
    FieldError,
    NotTrainableError,
    ShapeMismatchError,
    UnknownPathError,
)
from mapping.sparse import blocks, n_of_m, sparse_leaves, top_k
from mapping.sparse.contest import Contest
from mapping.sparse.largest import largest
from mapping.sparse.masks import count

DTYPES = ["float32", "bfloat16", "int8", "uint8", "bool"]


def scores_of(dtype, shape=(5, 6), seed=0):
    """Few distinct values, so that there are ties, with both zeros among them."""
    draw = np.random.default_rng(seed).integers(-3, 4, shape)
    scores = jnp.asarray(np.where(draw == 0, -0.0, draw), "float32")
    return np.asarray(scores.astype(dtype))


def ranked(scores):
    """Positions, the best first; of equal ones the earlier; NaN last."""
    values = [-math.inf if value != value else float(value) for value in scores]
    return sorted(range(len(values)), key=lambda place: (-values[place], place))


def first(scores, kept):
    """The loop that a mask is compared with."""
    mask = np.zeros(len(scores), bool)
    mask[ranked(scores)[:kept]] = True
    return mask


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_largest_are_kept_and_exactly_so_many(dtype):
    scores = scores_of(dtype)
    compiled = jax.jit(top_k)
    for density in (0.0, 0.01, 0.3, 0.5, 0.99, 1.0):
        wanted = first(scores.reshape(-1), count(30, density)).reshape(5, 6)
        np.testing.assert_array_equal(top_k(scores, density), wanted)
        traced = compiled(jnp.asarray(scores), jnp.float32(density))
        assert traced.dtype == bool
        np.testing.assert_array_equal(traced, wanted)


@pytest.mark.parametrize("dtype", ["float32", "int8", "uint8"])
def test_the_largest_of_many_are_found_bit_by_bit(dtype):
    scores = scores_of(dtype, (20, 30))
    for kept in (0, 1, 77, 599, 600):
        wanted = first(scores.reshape(-1), kept).reshape(20, 30)
        got = LARGEST(jnp.asarray(scores), jnp.int32(kept))
        np.testing.assert_array_equal(got, wanted)
    draw = np.random.default_rng(0).normal(size=600).astype(np.float32)
    draw[:4] = [np.nan, np.inf, -np.inf, -0.0]
    got = LARGEST(jnp.asarray(draw), jnp.int32(300))
    np.testing.assert_array_equal(got, first(draw, 300))


@hypothesis.given(
    st.lists(st.floats(width=32), min_size=7, max_size=7), st.integers(0, 7)
)
@hypothesis.settings(deadline=None, max_examples=25)
def test_every_float_has_its_place(values, kept):
    scores = np.array(values, np.float32)
    wanted = first(scores, kept)
    np.testing.assert_array_equal(largest(scores, kept), wanted)
    got = LARGEST(jnp.asarray(scores), jnp.int32(kept))
    # XLA on CPU takes numbers below the normal ones for zero.
    tiny = (np.abs(scores) < np.finfo(np.float32).tiny) & (scores != 0)
    if not tiny.any():
        np.testing.assert_array_equal(got, wanted)
    assert int(got.sum()) == kept


LARGEST = jax.jit(largest)


def test_numbers_of_64_bits_are_ordered_by_all_of_them():
    with jax.enable_x64(True):
        scores = jnp.asarray([1.0, 1.0 + 1e-12, 1.0 - 1e-12, -1e-300], jnp.float64)
        assert top_k(scores, 0.25).tolist() == [False, True, False, False]
        whole = jnp.asarray([2**40, 2**40 + 1, -(2**50)], jnp.int64)
        assert top_k(whole, 0.33).tolist() == [False, True, False]


def test_nothing_and_one_number_have_masks():
    assert top_k(jnp.zeros((0, 3)), 0.5).shape == (0, 3)
    assert top_k(np.zeros((0, 3)), 0.5).shape == (0, 3)
    assert bool(top_k(jnp.float32(-2.0), 0.5)) is True
    assert n_of_m(jnp.zeros((0, 3)), 2, 4).shape == (0, 3)
    assert blocks(np.zeros((0, 3)), 0.5, (2, 2)).shape == (0, 3)


@pytest.mark.parametrize(("n", "m", "axis"), [(2, 4, 1), (1, 3, -1), (1, 1, 0)])
def test_n_of_every_m_neighbours_are_kept(n, m, axis):
    scores = scores_of("float32", (5, 6, 7))
    lines = np.moveaxis(scores, axis, -1)
    wanted = np.zeros(lines.shape, bool)
    for place in np.ndindex(lines.shape[:-1]):
        for start in range(0, lines.shape[-1], m):
            group = lines[place][start : start + m]
            wanted[(*place, slice(start, start + m))] = first(group, min(n, len(group)))
    wanted = np.moveaxis(wanted, -1, axis)
    np.testing.assert_array_equal(n_of_m(scores, n, m, axis), wanted)
    np.testing.assert_array_equal(n_of_m(jnp.asarray(scores), n, m, axis), wanted)


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_whole_blocks_are_kept_by_their_sums(dtype):
    scores = scores_of(dtype, (2, 5, 6))
    places = [(i, r, c) for i in range(2) for r in (0, 2, 4) for c in (0, 4)]
    tiles = [(i, slice(r, r + 2), slice(c, c + 4)) for i, r, c in places]
    sums = [scores[tile].astype(float).sum() for tile in tiles]
    wanted = np.zeros(scores.shape, bool)
    for number in ranked(sums)[: round(0.4 * len(tiles))]:
        wanted[tiles[number]] = True
    np.testing.assert_array_equal(blocks(scores, 0.4, (2, 4)), wanted)
    np.testing.assert_array_equal(blocks(jnp.asarray(scores), 0.4, (2, 4)), wanted)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: top_k(np.ones(3), 1.5), FieldError, r"^density: .*0 to 1, got 1\.5"),
        (lambda: top_k(np.ones(3), float("nan")), FieldError, "^density: .*nan"),
        (lambda: top_k(np.ones(3), True), FieldError, "^density: .*True"),
        (lambda: top_k(np.ones(3, complex), 0.5), FieldError, "Take their magnitude"),
        (lambda: n_of_m(np.ones(4), 4, 2), FieldError, r"got 4 of 2\. Swap them"),
        (lambda: n_of_m(np.ones(4), 0, 2), FieldError, r"n_of_m\.n: "),
        (lambda: n_of_m(np.ones(4), 1, 2, 1), ShapeMismatchError, "axis 1, got "),
        (lambda: blocks(np.ones(4), 0.5, (2, 2)), ShapeMismatchError, "rank 2 or more"),
        (lambda: blocks(np.ones((4, 4)), 0.5, 2), FieldError, r"\(rows, columns\)"),
        (lambda: sparse.Block(0, 2), FieldError, r"^Block\.block: "),
        (lambda: sparse.NOfM(3, 2), FieldError, r"^NOfM: .*n <= m"),
        (lambda: sparse.by_path({}), FieldError, r"^by_path: "),
        (lambda: sparse.by_path({"*": 2.0}), FieldError, r"^by_path\['\*'\]: "),
        (lambda: sparse.one_shot(1.1), FieldError, r"^one_shot\.sparsity: "),
        (lambda: sparse.one_shot(0.5, -1), FieldError, r"^one_shot\.step: .*>= 0"),
        (lambda: sparse.polynomial(0.5, 3, 3), FieldError, "after the step 3, got 3"),
        (lambda: sparse.polynomial(0.5, 0, 9, every=0), FieldError, r"\.every: "),
        (lambda: sparse.polynomial(0.5, 0, 9, power=0), FieldError, r"\.power: "),
        (lambda: sparse.cyclic(0.5, 1, 2), FieldError, r"^cyclic\.length: "),
        (lambda: sparse.cyclic(0.5, 5, 0), FieldError, r"^cyclic\.cycles: "),
        (
            lambda: Contest({}, sparse.global_(), sparse.NOfM()),
            FieldError,
            r"compete across leaves for Global\(\), got NOfM",
        ),
    ],
)
def test_what_makes_no_mask_is_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()


# Which leaves


PARAMS = {
    "embed": {"embedding": np.ones((7, 4), np.float32)},
    "block": {
        "kernel": np.ones((3, 3, 4, 8), np.float32),
        "bias": np.ones((2, 8), np.float32),
        "norm": {"weight": np.ones((2, 8), np.float32)},
    },
    "head": {"kernel": np.ones((8, 2), np.float32), "bias": np.ones(2, np.float32)},
    "table": np.ones((2, 2), np.int32),
}


def test_kernels_are_made_sparse_and_nothing_else():
    assert [*sparse_leaves(PARAMS)] == ["block/kernel", "head/kernel"]
    assert [*sparse_leaves(PARAMS, but=("head/*",))] == ["block/kernel"]
    assert [*sparse_leaves(PARAMS, ("embed/*", "*/bias"), ("head/*",))] == [
        "block/bias",
        "embed/embedding",
    ]


@pytest.mark.parametrize(
    ("at", "but", "error", "message"),
    [
        (("heed/*",), (), UnknownPathError, r"^sparse: 'heed/\*' .*Nearest: head/"),
        ((), ("*/kernl",), UnknownPathError, r"'\*/kernl' names none of 7 params"),
        ((), ("*",), UnknownPathError, r"expected a kernel at least among 7"),
        (("table",), (), NotTrainableError, r"^table: expected real .*int32\[2, 2\]"),
    ],
)
def test_globs_that_name_nothing_are_refused(at, but, error, message):
    with pytest.raises(error, match=message):
        sparse_leaves(PARAMS, at, but)


# Distributions


SHAPES = {"a": (3, 3, 16, 32), "b": (1, 1, 32, 8), "c": (256, 10), "d": (10, 3)}


def iterated(shapes, density):
    """RigL's own loop: whatever overflows becomes dense, and all begin again."""
    raw = {p: sum(s) / math.prod(s) for p, s in shapes.items()}
    size = {p: math.prod(s) for p, s in shapes.items()}
    dense = set()
    while True:
        room = density * sum(size.values()) - sum(size[p] for p in dense)
        weight = sum(raw[p] * size[p] for p in shapes if p not in dense)
        scale = room / weight if weight else 0.0
        over = [p for p in shapes if p not in dense and scale * raw[p] > 1]
        if not over:
            return {p: 1.0 if p in dense else scale * raw[p] for p in shapes}
        dense |= {p for p in over if raw[p] == max(raw[q] for q in over)}


@pytest.mark.parametrize("density", [0.001, 0.05, 0.1, 0.3, 0.7, 0.99])
def test_erk_is_the_iteration_of_the_paper_and_keeps_the_total(density):
    wanted = iterated(SHAPES, density)
    got = sparse.erk().densities(SHAPES, density)
    traced = jax.jit(lambda d: sparse.erk().densities(SHAPES, d))(jnp.float32(density))
    for path, share in wanted.items():
        assert got[path] == pytest.approx(share, rel=1e-9)
        assert float(traced[path]) == pytest.approx(share, rel=1e-5)
    sizes = {path: math.prod(shape) for path, shape in SHAPES.items()}
    kept = sum(got[path] * sizes[path] for path in SHAPES)
    assert kept == pytest.approx(density * sum(sizes.values()))


@pytest.mark.parametrize("density", [0.0, 1.0])
def test_erk_keeps_nothing_of_nothing_and_all_of_all(density):
    got = sparse.erk().densities(SHAPES, density)
    assert [*got.values()] == [density] * 4


def test_a_global_threshold_is_one_sort_of_all_weights():
    draw = np.random.default_rng(0)
    params = {p: draw.normal(size=s).astype(np.float32) for p, s in SHAPES.items()}
    flat = np.concatenate([abs(params[path]).reshape(-1) for path in params])
    threshold = np.sort(flat)[::-1][round(0.1 * flat.size) - 1]
    masks = sparse.choose(params, 0.9, distribution=sparse.global_())
    for path, mask in masks.items():
        np.testing.assert_array_equal(mask, abs(params[path]) >= threshold)


def test_scores_and_rules_of_ones_own_choose_masks():
    params = {"a": np.array([[1.0, 5.0, 3.0, 4.0]]), "b": np.array([[9.0, 8.0]])}
    scores = jax.tree.map(np.negative, params)
    rules = sparse.by_path({"b": 0.0, "*": 1.0})
    masks = sparse.choose(params, 0.5, scores=scores, distribution=rules)
    assert masks["a"].tolist() == [[True, False, True, False]]
    assert masks["b"].tolist() == [[True, True]]
    with pytest.raises(UnknownPathError, match=r"the rule 'c' is|the rule 'c' names"):
        sparse.choose(params, 0.5, distribution=sparse.by_path({"c": 0.5, "*": 1.0}))


# Schedules


def test_the_polynomial_is_zhu_and_gupta_s():
    ramp = sparse.polynomial(0.9, 10, 50, every=8, initial=0.2)
    compiled = jax.jit(lambda step: (ramp(step), ramp.updates(step)))
    for step in range(60):
        held = 50 if step >= 50 else step - (step - 10) % 8
        wanted = 0.9 + (0.2 - 0.9) * (1 - (held - 10) / 40) ** 3 if step >= 10 else 0
        value, due = compiled(jnp.int32(step))
        assert float(value) == pytest.approx(wanted, abs=1e-6)
        assert bool(due) == ((10 <= step <= 50 and (step - 10) % 8 == 0) or step == 50)
    assert float(ramp(10**9)) == np.float32(0.9)


def test_a_cycle_is_a_polynomial_and_the_last_one_stays():
    waves = sparse.cyclic(0.8, 6, 2, begin=4, every=2)
    ramp = sparse.polynomial(0.8, 0, 5, every=2)
    for step in range(20):
        inside = step - 4 if step < 10 else step - 10 if step < 16 else 5
        assert float(waves(step)) == pytest.approx(float(ramp(inside)), abs=1e-6)
        assert bool(waves.updates(step)) == (
            4 <= step < 16 and bool(ramp.updates(inside))
        )


def test_one_shot_prunes_once():
    shot = sparse.one_shot(0.5, 3)
    assert [float(shot(step)) for step in (0, 2, 3, 99)] == [0, 0, 0.5, 0.5]
    assert [bool(shot.updates(step)) for step in (2, 3, 4)] == [False, True, False]


@pytest.mark.parametrize(
    "value",
    [
        sparse.one_shot(0.5, 2),
        sparse.polynomial(0.9, 0, 10, every=2),
        sparse.cyclic(0.9, 10, 2),
        sparse.uniform(),
        sparse.erk(),
        sparse.global_(),
        sparse.by_path({"a/*": 0.5, "*": 1.0}),
        sparse.Single(),
        sparse.NOfM(1, 4),
        sparse.Block(4, 2),
        sparse.magnitude(),
        sparse.movement(threshold=0.1),
        sparse.set_(10),
        sparse.rigl(10, 75),
    ],
    ids=lambda value: type(value).__name__,
)
def test_descriptions_are_values(value):
    assert from_config(to_config(value)) == value
    assert hash(from_config(to_config(value))) == hash(value)
