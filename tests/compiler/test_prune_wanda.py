"""Zeros chosen by what weights are multiplied with, against numpy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from adapters import conv, ragged, scanned
from zoo import normal

import compiler as mc
from compiler.errors import CalibrationError
from compiler.passes.prune.masks import magnitude, sparsegpt, sparsity, wanda
from compiler.passes.prune.masks.surgeon import Choice
from compiler.passes.prune.masks.surgeon import sparsegpt as surgeon
from compiler.passes.quantize.calibrate import calibrate
from mapping import from_config, to_config


def together(tokens, rows, seed=0):
    """Inputs whose features go together, some of them larger."""
    mixed = normal(tokens, rows, seed=seed) @ normal(rows, rows, seed=seed + 1)
    return mixed * jnp.exp(normal(1, rows, seed=seed + 2))


def by_output(scores, density):
    """The mask of the largest scores of every column."""
    kept = int(density * scores.shape[0] + 0.5)
    threshold = np.sort(scores, axis=0)[scores.shape[0] - kept]
    return scores >= threshold[None]


def patches(x, extent):
    """What a kernel meets as `conv` pads it, `[tokens, high, wide, features]`."""
    x = np.pad(np.asarray(x), ((0, 0), (1, 1), (2, 1), (0, 0)))
    high, wide = (x.shape[axis] - extent + 1 for axis in (1, 2))
    rows = [
        x[:, i : i + extent, j : j + extent] for i in range(high) for j in range(wide)
    ]
    return np.concatenate(rows)


X, IMAGE = together(64, 32), together(72, 8).reshape(2, 6, 6, 8)


def dense(v, x):
    return x @ v["w"]


def fired(program):
    return {event.path: event.what for event in program.history[-1].events.fired}


def error(small, program, x):
    return float(((small(x) - program(x)) ** 2).mean())


def test_norms_times_magnitudes_choose_for_every_output():
    w = normal(32, 6)
    program = mc.trace(dense, {"w": w}, X)
    scores = np.abs(w) * np.linalg.norm(X, axis=0)[:, None]
    small = program >> wanda(0.6, [X[:24], X[24:]])
    expected = np.where(by_output(scores, 0.4), w, 0)
    np.testing.assert_array_equal(small.variables["w"], expected)
    assert sparsity(small)["w"].zeros == 6 * (32 - 13)
    found = calibrate(program, [X])
    neighbours = program >> wanda(batches=found, pattern="2:4")
    groups = scores.T.reshape(6, 8, 4)
    mask = (groups >= np.sort(groups, axis=-1)[..., 2:3]).reshape(6, 32).T
    np.testing.assert_array_equal(neighbours.variables["w"], np.where(mask, w, 0))
    assert wanda(0.6, found)(small).graph is small.graph
    assert not fired(small >> wanda(0.6, found))


@pytest.mark.parametrize("groups", [1, 2])
def test_a_kernel_meets_patches_and_those_of_its_group(groups):
    w, each = normal(3, 3, 8 // groups, 4), 8 // groups
    program = mc.trace(
        lambda v, x: conv(v["w"], x, feature_group_count=groups), {"w": w}, IMAGE
    )
    small = program >> wanda(0.5, [IMAGE])
    met = np.linalg.norm(patches(IMAGE, 3), axis=0).reshape(9, groups, each)
    norms = np.repeat(met, 4 // groups, axis=1)  # of each output channel
    sizes = np.abs(w).reshape(9, each, 4)
    scores = (sizes * norms.swapaxes(1, 2)).reshape(9 * each, 4)
    expected = np.where(by_output(scores, 0.5).reshape(w.shape), w, 0)
    np.testing.assert_array_equal(small.variables["w"], expected)


def test_layers_of_a_scan_see_their_own_inputs():
    w = normal(3, 8, 8)
    program = mc.trace(lambda v, x: scanned(v["w"], x), {"w": w}, X[:, :8])
    small = program >> wanda(0.5, [X[:, :8]])
    h = np.asarray(X[:, :8], np.float64)
    for layer, new in zip(w, small.variables["w"], strict=True):
        scores = np.abs(layer) * np.linalg.norm(h, axis=0)[:, None]
        expected = np.where(by_output(scores, 0.5), layer, 0)
        np.testing.assert_array_equal(new, expected)
        h = np.tanh(h @ np.asarray(layer, np.float64))


def test_what_was_not_measured_is_pruned_by_magnitude():
    w = normal(2, 8, 5)
    program = mc.trace(lambda v, x: ragged(v["w"], x), {"w": w}, X[:4, :8])
    plain = program >> magnitude(0.5)
    for step in (wanda(0.5, [X[:4, :8]]), sparsegpt(0.5, [X[:4, :8]])):
        small = program >> step
        assert "by magnitude: which rows an expert meets" in fired(small)["w"]
        np.testing.assert_array_equal(small.variables["w"], plain.variables["w"])

    def branch(v, x, flag):
        return jax.lax.cond(flag, lambda: x @ v["w"], lambda: x[:, :5] * 2.0)

    never = mc.trace(branch, {"w": w[0]}, X[:, :8], False)
    small = never >> wanda(0.5, [(X[:, :8], False)])
    assert "by magnitude: its product never ran" in fired(small)["w"]


def reference(weight, hessian, density, groups, block, damping):
    """SparseGPT in float64, by the inverse of the Hessian, row by row.

    Args:
        weight: `[rows, columns]`.
        hessian: `[rows, rows]`.
        density: the share kept of a block of rows; None with groups.
        groups: rows that choose together, and how many of them each column keeps.
        block: how many rows choose together without groups.
        damping: the share of the mean diagonal that is added to it.
    """
    left = np.array(weight, np.float64)
    rows, columns = left.shape
    hessian = np.array(hessian, np.float64)
    hessian += damping * np.trace(hessian) / rows * np.eye(rows)
    upper = np.linalg.cholesky(np.linalg.inv(hessian)).T
    kept = np.zeros(left.shape, bool)
    for row in range(rows):
        if density is not None and row % block == 0:
            own = np.arange(row, min(row + block, rows))
            scores = (left[own] / np.diag(upper)[own, None]) ** 2
            count = int(density * scores.size + 0.5)
            best = np.argsort(-scores.ravel(), kind="stable")[:count]
            kept[own[best // columns], best % columns] = True
        for own, n in groups:
            if own[0] == row:
                scores = (left[own] / np.diag(upper)[own, None]) ** 2
                best = np.argsort(-scores, axis=0)[:n]
                kept[np.asarray(own)[best], np.arange(columns)[None]] = True
        lost = np.where(kept[row], 0, left[row]) / upper[row, row]
        left[row:] -= upper[row, row:, None] * lost[None]
        left[row] = np.where(kept[row], left[row], 0)
    return left, kept


def neighbours(outer, features, n, m):
    """Groups of n:m of rows `[outer, features]`."""
    rows = np.arange(outer * features).reshape(outer, features)
    return [
        (row[i : i + m], min(n, len(row[i : i + m])))
        for row in rows
        for i in range(0, features, m)
    ]


@pytest.mark.parametrize(
    ("outer", "features", "choice"),
    [
        (1, 30, Choice(0.3, block=8, damping=0.05)),
        (3, 10, Choice(0.5, (2, 4), block=6)),
    ],
    ids=["blocks", "2:4"],
)
def test_rows_are_zeroed_and_made_up_for_as_the_paper_says(outer, features, choice):
    rows = outer * features
    x = np.asarray(together(3 * rows, rows), np.float64)
    hessian, weight = x.T @ x / len(x), np.asarray(normal(rows, 6))
    groups = neighbours(outer, features, *choice.pair) if choice.pair else []
    density = None if choice.pair else choice.density
    given = weight, hessian, density, groups, choice.block, choice.damping
    expected, mask = reference(*given)
    new, kept = surgeon(
        jnp.asarray(weight).reshape(1, outer, features, 6),
        jnp.asarray(hessian, jnp.float32)[None],
        choice,
    )
    np.testing.assert_array_equal(np.asarray(kept).reshape(rows, 6), mask)
    got = np.asarray(new).reshape(rows, 6)
    np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-3)
    moved = [np.sum((weight - w) * (hessian @ (weight - w))) for w in (got, expected)]
    assert moved[0] == pytest.approx(moved[1], rel=1e-3)


def test_the_kernel_of_each_group_is_a_matrix_of_its_own():
    w, numbers = normal(3, 3, 4, 6), ("NHWC", "OIHW", "NHWC")
    program = mc.trace(
        lambda v, x: conv(v["w"], x, numbers=numbers, feature_group_count=2),
        {"w": w.transpose(3, 2, 0, 1)},
        IMAGE,
    )
    small = program >> sparsegpt(batches=[IMAGE], pattern="2:4")
    new = small.variables["w"].transpose(2, 3, 1, 0)
    met = patches(IMAGE, 3).reshape(-1, 9, 8).astype(np.float64)
    for group in range(2):
        x = met[:, :, 4 * group : 4 * group + 4].reshape(-1, 36)
        own = np.asarray(w)[..., 3 * group : 3 * group + 3].reshape(36, 3)
        hessian = x.T @ x / len(x)
        expected, _ = reference(own, hessian, None, neighbours(9, 4, 2, 4), 1, 0.01)
        got = new[..., 3 * group : 3 * group + 3].reshape(36, 3)
        np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-3)


USES = {
    "experts": (
        lambda v, x: jnp.einsum("etd,edf->etf", x.reshape(2, 32, 32), v["w"]),
        normal(2, 32, 6),
        X,
    ),
    "layers": (
        lambda v, x: scanned(v["w"], x),
        normal(3, 16, 16) / 4,
        together(64, 16) / 4,
    ),
}


@pytest.mark.parametrize(("name", "pattern"), [("experts", "2:4"), ("layers", None)])
def test_the_more_is_known_of_the_inputs_the_less_outputs_move(name, pattern):
    function, w, x = USES[name]
    program = mc.trace(function, {"w": w}, x)
    found = calibrate(program, [x], hessians=True)
    share = None if pattern else 0.5
    steps = [
        magnitude(share, pattern=pattern),
        wanda(share, found, pattern=pattern),
        sparsegpt(share, found, pattern=pattern),
    ]
    small = [program >> step for step in steps]
    errors = [error(one, program, x) for one in small]
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 0.5 * errors[0]
    assert all(sparsity(one)["w"].share == 0.5 for one in small)
    assert "squared error of outputs" in fired(small[2])["w"]
    twice = small[2] >> sparsegpt(share, [x], pattern=pattern)
    assert not fired(twice)
    np.testing.assert_array_equal(twice.variables["w"], small[2].variables["w"])


def test_zeros_stay_where_they_are_and_go_on():
    program = mc.trace(dense, {"w": normal(32, 6)}, X)
    half = program >> sparsegpt(0.5, [X])
    more = half >> sparsegpt(0.75, [X], block=8)
    groups = half >> sparsegpt(batches=[X], pattern="2:4")
    old, new, own = (
        np.asarray(one.variables["w"]) == 0 for one in (half, more, groups)
    )
    assert new[old].all()
    assert own[old].all()
    assert (own.T.reshape(-1, 4).sum(1) >= 2).all()
    assert new.mean() == 0.75


def test_what_meets_only_zeros_goes_first():
    x = X.at[:, 16:].set(0.0)
    program = mc.trace(dense, {"w": normal(32, 6) + 5.0}, x)
    small = program >> wanda(0.5, [x])
    left = np.asarray(small.variables["w"])
    assert not left[16:].any()
    assert left[:16].all()
    np.testing.assert_array_equal(small(x), program(x))


def test_products_that_share_a_weight_count_together():
    def both(v, x):
        return x[:, :16] @ v["w"] + 10.0 * x[:, 16:] @ v["w"]

    w = normal(16, 6)
    program = mc.trace(both, {"w": w}, X)
    squares = (np.asarray(X) ** 2).sum(0)
    norms = np.sqrt(squares[:16] + 100 * squares[16:])
    expected = np.where(by_output(np.abs(w) * norms[:, None], 0.5), w, 0)
    small = program >> wanda(0.5, [X])
    np.testing.assert_array_equal(small.variables["w"], expected)


@pytest.mark.parametrize("make", [wanda, sparsegpt])
def test_the_recipe_serves_other_weights_and_shapes(make):
    program = mc.trace(dense, {"w": normal(32, 6)}, X)
    small = program >> make(0.5, [X])
    assert small(X[:3]).shape == (3, 6)
    (step,) = small.recipe
    assert from_config(to_config(step)) == make(0.5) == step
    other = mc.trace(dense, {"w": normal(32, 6, seed=9)}, X)
    moved, anew = other >> step, other >> make(0.5, [X])
    np.testing.assert_array_equal(moved.variables["w"], anew.variables["w"])
    trained = program >> make(0.5, [X], train=True)
    np.testing.assert_allclose(trained(X), small(X), rtol=1e-6)
    assert trained.graph.paths == ["params/w", "state/w/mask"]


def test_what_was_measured_has_to_fit():
    program = mc.trace(dense, {"w": normal(32, 6)}, X)
    with pytest.raises(CalibrationError, match=r"prune\.wanda\(batches=\.\.\.\)"):
        program >> wanda(0.5)
    with pytest.raises(CalibrationError, match=r"prune\.sparsegpt: expected a cal"):
        program >> sparsegpt(0.5, calibrate(program, [X]))
    other = mc.trace(dense, {"w": normal(16, 6)}, X[:, :16])
    found = calibrate(other, [X[:, :16]])
    with pytest.raises(CalibrationError, match="statistics of 32 rows, got 16"):
        program >> wanda(0.5, found)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"pattern": (2, 2)}, "Blocks are for"),
        ({"block": 0}, "a block of at least 1, got 0"),
        ({"damping": 0.0}, r"a positive damping, got 0\.0"),
        ({"distribution": "global"}, r"distribution of \('uniform', 'erk'\)"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, match):
    with pytest.raises(ValueError, match=match):
        sparsegpt(0.5, [X], **options)
