"""Scores of units against numpy on groups that are written down by hand."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import compiler as mc
from compiler.errors import (
    CalibrationError,
    NonFiniteWeightsError,
    VariablesMismatchError,
)
from compiler.passes.prune import importance as imp
from compiler.passes.prune.importance import units
from compiler.passes.prune.importance.normalize import normalized
from compiler.passes.prune.importance.reduce import REDUCTIONS, reduced
from compiler.passes.prune.importance.roles import roles
from mapping import from_config, to_config

CHANNELS, FEATURES, HEADS, SIZE = 4, 5, 2, 3


@dataclasses.dataclass(frozen=True, eq=False)
class Slot:
    leaf: int
    axis: int
    unit: np.ndarray
    index: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Group:
    name: str
    kind: str
    size: int
    slots: tuple


@dataclasses.dataclass(frozen=True, eq=False)
class Structure:
    graph: object
    groups: tuple


def group(graph, kind, size, *slots):
    """A group from (path, axis) or (path, axis, unit of each index)."""
    made = []
    for path, axis, *unit in slots:
        unit = np.array(unit[0] if unit else np.arange(size))
        made.append(Slot(graph.paths.index(path), axis, unit, np.arange(len(unit))))
    return Group(f"{slots[0][0]}:{slots[0][1]}", kind, size, tuple(made))


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def cnn(v, x):
    """A convolution, a batch norm, a convolution, a flattening dense layer."""
    dims = ("NHWC", "HWIO", "NHWC")
    x = (
        jax.lax.conv_general_dilated(
            x, v["a"]["kernel"], (1, 1), "VALID", (1, 1), (1, 1), dims
        )
        + v["a"]["bias"]
    )
    mul = jax.lax.rsqrt(v["norm"]["var"] + 1e-5) * v["norm"]["gain"]
    x = jax.nn.relu((x - v["norm"]["mean"]) * mul + v["norm"]["shift"])
    x = jax.nn.relu(
        jax.lax.conv_general_dilated(
            x, v["b"]["kernel"], (1, 1), "VALID", (1, 1), (1, 1), dims
        )
    )
    return x.reshape(x.shape[0], -1) @ v["c"]["kernel"]


@pytest.fixture(scope="module")
def net():
    v = {
        "a": {"kernel": normal(0, 2, 2, 2, CHANNELS), "bias": normal(1, CHANNELS)},
        "norm": {
            "gain": normal(2, CHANNELS),
            "shift": normal(3, CHANNELS),
            "mean": normal(4, CHANNELS),
            "var": normal(5, CHANNELS) ** 2,
        },
        "b": {"kernel": normal(6, 2, 2, CHANNELS, FEATURES)},
        "c": {"kernel": normal(7, 4 * FEATURES, 3)},
    }
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        program = mc.trace(cnn, v, normal(8, 2, 4, 4, 2))
    first = group(
        program.graph,
        "channels",
        CHANNELS,
        ("a/kernel", 3),
        ("a/bias", 0),
        ("norm/gain", 0),
        ("norm/shift", 0),
        ("norm/mean", 0),
        ("norm/var", 0),
        ("b/kernel", 2),
    )
    second = group(
        program.graph,
        "channels",
        FEATURES,
        ("b/kernel", 3),
        ("c/kernel", 0, np.tile(np.arange(FEATURES), 4)),
    )
    return program, v, Structure(program.graph, (first, second))


FIRST, SECOND = "a/kernel:3", "b/kernel:3"


def pieces(v, field):
    """What each counted slice of each unit sums up to, in numpy."""
    w = jax.tree.map(lambda w: field(w.astype(np.float64)), v)
    first = [
        w["a"]["kernel"].sum((0, 1, 2)),
        w["norm"]["gain"],
        w["b"]["kernel"].sum((0, 1, 3)),
    ]
    second = [
        w["b"]["kernel"].sum((0, 1, 2)),
        w["c"]["kernel"].reshape(4, FEATURES, 3).sum((0, 2)),
    ]
    return {FIRST: first, SECOND: second}


REDUCED = {
    "mean": lambda p: np.mean(p, 0),
    "sum": lambda p: np.sum(p, 0),
    "max": lambda p: np.max(p, 0),
    "prod": lambda p: np.prod(p, 0),
    "first": lambda p: p[0],
    "gate": lambda p: p[-1],
}


def test_roles_are_told_from_what_is_done_with_a_leaf(net):
    program, _, _ = net
    found = dict(zip(program.graph.paths, roles(program.graph), strict=True))
    assert found == {
        "a/bias": "shift", "a/kernel": "weight", "b/kernel": "weight",
        "c/kernel": "weight", "norm/gain": "scale", "norm/mean": "other",
        "norm/shift": "shift", "norm/var": "other",
    }  # fmt: skip


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_magnitudes_are_reduced_as_in_numpy(net, reduction):
    program, v, structure = net
    made = imp.l2(reduction=reduction, normalization="none").scores(program, structure)
    for name, parts in pieces(v, np.square).items():
        np.testing.assert_allclose(made[name], REDUCED[reduction](parts), rtol=2e-6)


def test_the_first_slice_makes_the_units_and_the_last_reads_them():
    def mlp(v, x):  # its leaves stand the other way round
        return jax.nn.relu((x @ v["z"]) * v["m"][None]) @ v["a"]

    v = {"z": normal(0, 3, 4), "m": normal(1, 4), "a": normal(2, 4, 2)}
    program = mc.trace(mlp, v, normal(3, 1, 3))
    one = group(program.graph, "channels", 4, ("a", 0), ("m", 0), ("z", 1))
    structure = Structure(program.graph, (one,))
    for reduction, want in (
        ("first", abs(v["z"]).sum(0)),
        ("gate", abs(v["a"]).sum(1)),
    ):
        made = imp.l1(reduction=reduction, normalization="none")
        np.testing.assert_allclose(
            made.scores(program, structure)["a:0"], want, rtol=2e-6
        )


def test_l1_sums_magnitudes_and_divides_by_the_mean_of_the_group(net):
    program, v, structure = net
    made = imp.l1().scores(program, structure)
    for name, parts in pieces(v, np.abs).items():
        want = np.mean(parts, 0)
        np.testing.assert_allclose(made[name], want / want.mean(), rtol=2e-6)
        assert made[name].dtype == np.float64


def test_weights_elsewhere_are_summed_where_they_are(net, monkeypatch):
    program, _, structure = net
    here = imp.l1().scores(program, structure)
    monkeypatch.setattr(units, "is_here", lambda value: False)
    there = imp.l1().scores(program, structure)
    for name, score in here.items():
        np.testing.assert_allclose(there[name], score, rtol=2e-6)


def test_biases_count_if_asked(net):
    program, v, structure = net
    made = imp.l1(reduction="sum", normalization="none", bias=True)
    got = made.scores(program, structure)[FIRST]
    want = np.sum(pieces(v, np.abs)[FIRST], 0)
    want = want + abs(v["a"]["bias"]) + abs(v["norm"]["shift"])
    np.testing.assert_allclose(got, want, rtol=2e-6)


def test_batch_norm_scale_scores_only_groups_with_a_gain(net):
    program, v, structure = net
    made = imp.batch_norm_scale().scores(program, structure)
    assert list(made) == [FIRST]
    np.testing.assert_allclose(made[FIRST], abs(v["norm"]["gain"]), rtol=1e-6)


def test_geometric_median_is_the_sum_of_distances(net):
    program, v, structure = net
    made = imp.geometric_median(reduction="first", normalization="none")
    got = made.scores(program, structure)
    for name, kernel in ((FIRST, v["a"]["kernel"]), (SECOND, v["b"]["kernel"])):
        rows = kernel.reshape(-1, kernel.shape[-1]).T
        want = [sum(np.linalg.norm(a - b) for b in rows) for a in rows]
        np.testing.assert_allclose(got[name], want, rtol=1e-6)


def test_geometric_median_gathers_the_slices_of_a_unit(net):
    program, v, structure = net
    made = imp.geometric_median(reduction="gate", normalization="none")
    rows = v["c"]["kernel"].reshape(4, FEATURES, 3).swapaxes(0, 1).reshape(FEATURES, -1)
    want = [sum(np.linalg.norm(a - b) for b in rows) for a in rows]
    got = made.scores(program, structure)[SECOND]
    np.testing.assert_allclose(got, want, rtol=1e-6)


def test_random_is_the_same_for_a_seed_and_needs_no_arrays(net):
    program, _, structure = net
    first, again, other = (
        imp.random(seed).scores(program, structure) for seed in (3, 3, 4)
    )
    for name in (FIRST, SECOND):
        assert (first[name] == again[name]).all()
        assert (first[name] != other[name]).all()
    assert not set(first[FIRST]) & set(first[SECOND])


def squared(y, target):
    return ((y - target) ** 2).mean()


def loss_of(v, x, target):
    with jax.numpy_rank_promotion("allow"):
        return squared(cnn(v, x), target)


gradients = jax.jit(jax.grad(loss_of))


def batches(count=2):
    return [(normal(10 + i, 2, 4, 4, 2), normal(20 + i, 2, 3)) for i in range(count)]


FORMS = {
    "abs": (np.abs, lambda s: s),
    "signed": (lambda t: t, np.abs),
    "squared": (lambda t: t, np.square),
}


@pytest.mark.parametrize("form", FORMS)
def test_taylor_is_weight_times_gradient_averaged_over_batches(net, form):
    program, v, structure = net
    made = imp.taylor(squared, batches(), form=form, normalization="none")
    got = made.scores(program, structure)
    inner, outer = FORMS[form]
    want = {FIRST: 0.0, SECOND: 0.0}
    for x, target in batches():
        terms = jax.tree.map(lambda w, g: w * np.asarray(g), v, gradients(v, x, target))
        for name, parts in pieces(terms, inner).items():
            want[name] = want[name] + np.mean(outer(np.array(parts)), 0) / 2
    for name in want:
        np.testing.assert_allclose(got[name], want[name], rtol=2e-4)


def test_fisher_is_half_the_squared_gradient_times_the_squared_weight(net):
    program, v, structure = net
    made = imp.fisher(squared, batches(), reduction="sum", normalization="none")
    got = made.scores(program, structure)
    want = 0.0
    for x, target in batches():
        terms = jax.tree.map(lambda w, g: w * np.asarray(g), v, gradients(v, x, target))
        want = want + np.sum(pieces(terms, lambda t: 0.5 * t * t)[FIRST], 0) / 2
    np.testing.assert_allclose(got[FIRST], want, rtol=2e-4)


def test_a_loss_of_the_variables_alone_needs_no_batches(net):
    program, v, structure = net

    def loss(variables):
        return (variables["b"]["kernel"] ** 2).sum()

    made = imp.taylor(loss, reduction="first", normalization="none")
    got = made.scores(program, structure)
    assert (got[FIRST] == 0).all()  # nothing of its first slice is in the loss
    want = 2 * np.square(v["b"]["kernel"].astype(np.float64)).sum((0, 1, 2))
    np.testing.assert_allclose(got[SECOND], want, rtol=2e-6)


def inputs_of_products(v, x):
    """What the second convolution and the dense layer are given."""
    seen = []

    def conv(x, k):
        return np.asarray(
            jax.lax.conv_general_dilated(
                jnp.asarray(x),
                k,
                (1, 1),
                "VALID",
                (1, 1),
                (1, 1),
                ("NHWC", "HWIO", "NHWC"),
            )
        )

    x = conv(x, v["a"]["kernel"]) + v["a"]["bias"]
    n = v["norm"]
    x = (x - n["mean"]) / np.sqrt(n["var"] + 1e-5) * n["gain"] + n["shift"]
    seen.append(np.maximum(x, 0))
    seen.append(np.maximum(conv(seen[0], v["b"]["kernel"]), 0))
    return seen


@pytest.mark.parametrize("statistic", ["mean", "active"])
def test_activations_are_measured_where_they_are_read(net, statistic):
    program, v, structure = net
    field = np.abs if statistic == "mean" else (lambda x: (x != 0).astype(np.float64))
    given = [x for x, _ in batches()]
    made = imp.activation(given, statistic=statistic, normalization="none")
    got = made.scores(program, structure)
    read = [inputs_of_products(v, x) for x in given]
    # A kernel of 2 x 2 meets the inner positions of 3 x 3 more often than the edges.
    often = np.array([[1, 2, 1], [2, 4, 2], [1, 2, 1]]) / 16
    first = np.mean(
        [(field(a) * often[:, :, None]).sum((1, 2)) for a, _ in read], (0, 1)
    )
    second = np.mean([field(b) for _, b in read], (0, 1, 2, 3))
    np.testing.assert_allclose(got[FIRST], first, rtol=1e-5)
    np.testing.assert_allclose(got[SECOND], second, rtol=1e-5)


def attention(v, x):
    """Two heads on one axis of the projections."""
    q, k = (x @ v[name] for name in ("q", "k"))
    q, k = (a.reshape(-1, HEADS, SIZE) for a in (q, k))
    mixed = jax.nn.softmax(jnp.einsum("thd,shd->hts", q, k), axis=-1)
    return jnp.einsum("hts,shd->thd", mixed, k).reshape(-1, HEADS * SIZE) @ v["o"]


def test_a_head_scores_its_whole_slice_of_an_axis():
    v = {n: normal(i, HEADS * SIZE, HEADS * SIZE) for i, n in enumerate("qko")}
    program = mc.trace(attention, v, normal(9, 4, HEADS * SIZE))
    heads, inside = np.repeat(np.arange(HEADS), SIZE), np.tile(np.arange(SIZE), HEADS)
    sides = (("q", 1), ("k", 1), ("o", 0))
    groups = (
        group(program.graph, "heads", HEADS, *((*side, heads) for side in sides)),
        group(program.graph, "head_dim", SIZE, *((*side, inside) for side in sides)),
    )
    groups = groups[0], dataclasses.replace(groups[1], name="inside")
    made = imp.l2(reduction="sum", normalization="none")
    got = made.scores(program, Structure(program.graph, groups))
    w = {n: (v[n].astype(np.float64) if n != "o" else v[n].T) ** 2 for n in v}
    split = sum(w[n].reshape(-1, HEADS, SIZE).sum(0) for n in "qko")
    np.testing.assert_allclose(got["q:1"], split.sum(1), rtol=2e-6)
    np.testing.assert_allclose(got["inside"], split.sum(0), rtol=2e-6)


def test_slices_stacked_for_a_scan_count_together():
    def stack(v, x):
        def layer(x, v):
            return jnp.tanh(x @ v["up"] * v["gain"][None]) @ v["down"], None

        return jax.lax.scan(layer, x, v)[0]

    v = {"up": normal(0, 3, 2, 4), "gain": normal(1, 3, 4), "down": normal(2, 3, 4, 2)}
    program = mc.trace(stack, v, normal(3, 5, 2))
    assert roles(program.graph) == ("weight", "scale", "weight")
    one = group(program.graph, "channels", 4, ("up", 2), ("gain", 1), ("down", 1))
    structure = Structure(program.graph, (one,))
    scores = imp.l2(reduction="sum", normalization="none").scores(program, structure)
    want = sum(
        (
            np.square(v[n]).sum(a)
            for n, a in (("up", (0, 1)), ("gain", 0), ("down", (0, 2)))
        )
    )
    np.testing.assert_allclose(scores["up:2"], want, rtol=2e-6)
    read = imp.activation([normal(3, 5, 2)], normalization="none")
    x, want = normal(3, 5, 2), 0.0
    for up, gain, down in zip(v["up"], v["gain"], v["down"], strict=True):
        x = np.tanh(x @ up * gain)
        want = want + np.abs(x).mean(0) / 3
        x = x @ down
    got = read.scores(program, structure)["up:2"]
    np.testing.assert_allclose(got, want, rtol=1e-5)


def lamp(s):
    return [x / sum(y for y in s if y >= x) for x in s]


NORMALIZED = {
    "none": lambda s: s,
    "mean": lambda s: s / s.mean(),
    "sum": lambda s: s / s.sum(),
    "max": lambda s: s / s.max(),
    "gaussian": lambda s: (s - s.mean()) / s.std(ddof=1),
    "lamp": lamp,
    "sentinel": lambda s: s / sorted(s)[len(s) // 2],
    "sentinel_0.25": lambda s: s / sorted(s)[len(s) // 4],
}


@pytest.mark.parametrize("name", NORMALIZED)
def test_normalizations_are_those_of_the_papers(name):
    s = np.abs(normal(3, 9).astype(np.float64))
    np.testing.assert_allclose(normalized(s, name), NORMALIZED[name](s), rtol=1e-6)
    for same in (np.zeros(4), np.ones(1)):
        assert np.isfinite(normalized(same, name)).all()


def test_slices_that_have_nothing_of_a_unit_do_not_count():
    parts = [np.ma.masked_equal([1.0, 0, 2.0], 0), np.ma.masked_equal([3.0, 4.0, 0], 0)]
    want = {
        "mean": [2, 4, 2], "sum": [4, 4, 2], "max": [3, 4, 2], "prod": [3, 4, 2],
        "first": [1, 4, 2], "gate": [3, 4, 2],
    }  # fmt: skip
    assert {name: reduced(parts, name).tolist() for name in REDUCTIONS} == want


def test_statistics_that_a_function_carries_never_count():
    def step(v, x):
        mean = 0.9 * v["state"]["mean"] + 0.1 * x.mean(0)
        return (x - mean[None]) @ v["params"]["w"], mean

    v = {"params": {"w": normal(0, 3, 2)}, "state": {"mean": normal(1, 3)}}
    program = mc.trace(step, v, normal(2, 4, 3))
    assert roles(program.graph) == ("weight", "other")


def test_weights_that_do_not_train_count():
    def dense(v, x):
        return x @ v["params"]["kernel"] + v["params"]["bias"][None]

    v = {"params": {"kernel": normal(0, 8, 8), "bias": normal(1, 8)}}
    program = mc.trace(dense, v, normal(2, 4, 8)) >> mc.lora(2)
    found = dict(zip(program.graph.paths, roles(program.graph), strict=True))
    assert found.pop("state/params/bias") == "shift"
    assert "state/params/kernel" in found
    assert set(found.values()) == {"weight"}


def test_importances_are_values():
    made = (
        imp.l1(), imp.l2(reduction="max"), imp.random(3), imp.batch_norm_scale(),
        imp.geometric_median(), imp.Magnitude(p=1.5),
    )  # fmt: skip
    for one in made:
        assert from_config(to_config(one)) == one
    assert all(a != b for a, b in itertools.combinations(made, 2))


def test_wrong_names_are_refused():
    with pytest.raises(
        ValueError, match=r"reduction: expected one of mean, .*'median'"
    ):
        imp.l1(reduction="median")
    for name in ("softmax", "sentinel_2", "sentinel_x", "sentinels"):
        with pytest.raises(ValueError, match=f"normalization: .* got '{name}'"):
            imp.l2(normalization=name)
    with pytest.raises(ValueError, match="expected p > 0, got 0"):
        imp.Magnitude(p=0)
    with pytest.raises(ValueError, match="a form of abs, signed, squared"):
        imp.taylor(squared, [], form="cubed")
    with pytest.raises(ValueError, match="a statistic of mean, active"):
        imp.activation([], statistic="apoz")


def test_what_cannot_be_scored_is_refused(net):
    program, v, structure = net
    with pytest.raises(CalibrationError, match="taylor: expected at least one batch"):
        imp.taylor(squared, iter([])).scores(program, structure)
    with pytest.raises(CalibrationError, match="activation: expected at least one"):
        imp.activation([]).scores(program, structure)
    with pytest.raises(CalibrationError, match="activation: expected batches"):
        imp.Activation().scores(program, structure)
    with pytest.raises(CalibrationError, match="fisher: expected a loss"):
        imp.Fisher(batches=batches(1)).scores(program, structure)
    with pytest.raises(CalibrationError, match=r"batch 0: .*floating scalar"):
        imp.taylor(lambda y, t: y - t, batches(1)).scores(program, structure)
    far = [(batches(1)[0][0], np.full((2, 3), np.inf, np.float32))]
    with pytest.raises(CalibrationError, match="batch 0: expected a finite loss"):
        imp.taylor(squared, far).scores(program, structure)
    bad = v | {"c": {"kernel": np.full_like(v["c"]["kernel"], np.nan)}}
    with pytest.raises(NonFiniteWeightsError, match=r"b/kernel:3: .* nan for unit 0"):
        imp.l1().scores(program.with_variables(bad), structure)
    specs = jax.tree.map(lambda w: jax.ShapeDtypeStruct(w.shape, w.dtype), v)
    abstract = dataclasses.replace(program, values=tuple(jax.tree.leaves(specs)))
    with pytest.raises(
        VariablesMismatchError, match=r"prune.Magnitude: .* shapes alone"
    ):
        imp.l1().scores(abstract, structure)
