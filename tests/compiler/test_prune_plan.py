"""Plans: what goes, as data."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import mapping as mp
from compiler.errors import PlanError
from compiler.passes.prune.plan import Plan
from compiler.passes.prune.plan.indices import read_indices, write_indices

SHAPES = {"params/conv/kernel": (3, 3, 3, 64), "params/conv/bias": (64,)}
HALF = Plan.of(
    {
        "params/conv/kernel": {3: np.arange(64) % 2 == 0},
        "params/conv/bias": {0: range(0, 64, 2)},
    },
    SHAPES,
)


@st.composite
def removals(draw, shapes):
    """A plan that leaves something on every axis."""
    gone = {}
    for path, shape in shapes.items():
        for axis, size in enumerate(shape):
            some = st.sets(st.integers(0, size - 1), max_size=size - 1)
            gone.setdefault(path, {})[axis] = draw(some)
    return Plan.of(
        {p: {a: sorted(i) for a, i in g.items()} for p, g in gone.items()}, shapes
    )


def after(plan):
    return {path: plan.shape(path) for path, _ in plan.shapes}


def deleted(array, plan, path):
    """By numpy, one axis after the other."""
    for own, axis, indices in plan.removed:
        if own == path:
            array = np.delete(array, indices, axis)
    return array


@given(st.data())
@settings(deadline=None, max_examples=60)
def test_plans_one_after_the_other_compose_as_the_deletions_do(data):
    shapes = {"w": (5, 7), "b": (6,)}
    first = data.draw(removals(shapes))
    second = data.draw(removals(after(first)))
    third = data.draw(removals(after(second)))
    left, right = first.then(second).then(third), first.then(second.then(third))
    assert left == right
    assert hash(left) == hash(right)
    for path, shape in shapes.items():
        array = np.arange(np.prod(shape)).reshape(shape)
        wanted = array
        for plan in (first, second, third):
            wanted = deleted(wanted, plan, path)
        np.testing.assert_array_equal(deleted(array, left, path), wanted)
        np.testing.assert_array_equal(left.cut(array, path), wanted)
        assert left.shape(path) == wanted.shape
    assert first.then(Plan()) == first
    assert Plan().then(first) == first


@given(st.sets(st.integers(0, 3000), max_size=400))
@settings(deadline=None)
def test_positions_are_read_as_they_were_written(held):
    assert read_indices(write_indices(sorted(held)), 3001) == tuple(sorted(held))


def test_a_plan_is_a_value():
    assert len(HALF) == 2
    assert bool(HALF)
    assert not Plan()
    assert Plan.from_json(HALF.to_json()) == HALF
    assert mp.from_config(json.loads(json.dumps(mp.to_config(HALF)))) == HALF
    assert mp.from_config(mp.to_config(Plan())) == Plan()
    assert {HALF: 1}[Plan.from_json(HALF.to_json())] == 1
    assert HALF.kept_share == 0.5
    assert Plan().kept_share == 1.0


@pytest.mark.parametrize("kind", ["run", "half at random", "every tenth"])
def test_a_vocabulary_of_fifty_thousand_rows_stays_small(kind):
    rows = {
        "run": np.arange(30_000, 50_000),
        "half at random": np.random.default_rng(0).permutation(50_000)[:25_000],
        "every tenth": np.arange(0, 50_000, 10),
    }[kind]
    plan = Plan.of({"embedding": {0: rows}}, {"embedding": (50_000, 768)})
    assert len(plan.to_json()) < 9_000
    assert len(json.dumps(mp.to_config(plan))) < 9_000
    assert Plan.from_json(plan.to_json()) == plan == mp.from_config(mp.to_config(plan))
    assert plan.axes("embedding")[0].tolist() == sorted({*range(50_000)} - {*rows})


def test_its_table_names_leaves_shapes_and_axes():
    assert str(HALF).splitlines() == [
        "params/conv/bias  (64,) -> (32,)  axis 0: 32 of 64",
        "params/conv/kernel  (3, 3, 3, 64) -> (3, 3, 3, 32)  axis 3: 32 of 64",
        "50.0% of 1792 elements stay",
    ]
    assert repr(HALF) == "Plan(2 axes of 2 leaves, 50.0% stay)"


def test_arrays_shapes_and_traced_arrays_are_cut_alike():
    x = np.random.default_rng(0).normal(size=SHAPES["params/conv/kernel"])
    path = "params/conv/kernel"
    wanted = x[..., 1::2]
    np.testing.assert_array_equal(HALF.cut(x, path), wanted)
    assert isinstance(HALF.cut(x, path), np.ndarray)
    traced = jax.jit(lambda v: HALF.cut(v, path))(jnp.asarray(x, "bfloat16"))
    assert traced.dtype == jnp.bfloat16
    assert traced.shape == wanted.shape
    spec = HALF.cut(jax.ShapeDtypeStruct(x.shape, "int8"), path)
    assert (spec.shape, spec.dtype) == ((3, 3, 3, 32), np.dtype("int8"))
    assert HALF.cut(x, "params/other") is x


def test_keys_and_the_gradient_of_a_cut_survive():
    plan = Plan.of({"w": {0: [0, 3]}}, {"w": (4,)})
    keys = jax.random.split(jax.random.key(0), 4)
    assert (plan.cut(keys, "w") == keys[jnp.array([1, 2])]).all()
    found = jax.grad(lambda w: (plan.cut(w, "w") ** 2).sum())(jnp.arange(4.0))
    assert found.tolist() == [0.0, 2.0, 4.0, 0.0]


@pytest.mark.parametrize("array", [np.asarray, jnp.asarray], ids=["numpy", "jax"])
def test_zeroed_keeps_the_shape_and_lets_no_nan_through(array):
    plan = Plan.of({"w": {0: [1], 1: [0]}}, {"w": (2, 3)})
    found = plan.zeroed(array([[1.0, 2.0, 3.0], [np.nan, np.inf, 6.0]]), "w")
    np.testing.assert_array_equal(found, [[0.0, 2.0, 3.0], [0.0, 0.0, 0.0]])


def test_the_part_below_a_path_is_named_from_there():
    part = HALF.below("params")
    assert [path for path, _ in part.shapes] == ["conv/bias", "conv/kernel"]
    assert part.below("conv").shape("bias") == (32,)
    with pytest.raises(
        PlanError, match=r"params/con: expected a path .* Name what holds"
    ):
        HALF.below("params/con")


def test_positions_are_counted_once_and_in_any_order():
    twice = Plan.of({"w": {1: [3, 1, 3], -1: [0]}}, {"w": (2, 5)})
    assert twice.removed == (("w", 1, (0, 1, 3)),)
    assert Plan.of({"w": {0: []}}, {"w": (3,)}).removed == ()


@pytest.mark.parametrize(
    ("gone", "shapes", "message"),
    [
        (
            {"w": {0: [3]}},
            {"w": (3,)},
            "w, axis 0: expected positions from 0 to 2, got 3",
        ),
        ({"w": {0: [-1]}}, {"w": (3,)}, "from 0 to 2, got -1"),
        (
            {"w": {1: [0]}},
            {"w": (3,)},
            r"w: expected an axis of its shape \(3,\), got 1",
        ),
        ({"w": {0: [0]}}, {"v": (3,)}, "w: expected its original shape .* got v"),
        ({"w": {0: [0.5]}}, {"w": (3,)}, r"whole numbers, got float64\[1\]"),
        (
            {"w": {0: [True, False]}},
            {"w": (3,)},
            r"mask of the shape \(3,\).* got \(2,\)",
        ),
    ],
)
def test_positions_that_are_none_are_refused(gone, shapes, message):
    with pytest.raises(PlanError, match=message):
        Plan.of(gone, shapes)


@pytest.mark.parametrize(
    ("removed", "message"),
    [
        ([("w", 0, (2, 1))], "sorted positions, each once, got 2 before 1"),
        ([("w", 0, (1, 1))], "got 1 before 1"),
        ([("w", 0, ())], "expected positions that go, got none"),
        ([("w", 1, (0,)), ("w", 0, (0,))], "removed: expected each once, sorted"),
        ([("w", 0, (0,)), ("w", 0, (1,))], "removed: expected each once, sorted"),
        ([("w", 0, "1-0")], "do not overlap, got '1-0'"),
        ([("w", 0, "0-99999999999")], "positions 0 to 3, got 99999999999"),
        ([("w", 0, "a")], "a run is written 4 or 4-7, got 'a'"),
        ([("w", 0, "bits:*")], "bits are written in base64"),
        ([("w", 0, "bits:////")], "positions from 0 to 3, got 4"),
    ],
)
def test_a_plan_that_is_wrong_in_itself_is_refused(removed, message):
    with pytest.raises(PlanError, match=message):
        Plan(tuple(removed), (("w", (4, 4)),))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2}, "expected version 1, got 2. Read it with the release"),
        ({"format": "other"}, '"format": "mapping.prune", got'),
        ({"leaves": []}, "plan: expected .* got null"),
        ({"leaves": {"w": {"removed": {"0": "1"}}}}, "w: expected .*shape.* got"),
        (
            {"leaves": {"w": {"shape": [4], "removed": [1]}}},
            "w: expected what is removed",
        ),
        (
            {"leaves": {"w": {"shape": [4], "removed": {"1": "1"}}}},
            "w: expected an axis",
        ),
        ({"leaves": {"w": {"shape": [4], "removed": {"0": "2-4"}}}}, "0 to 3, got 4"),
    ],
)
def test_json_of_something_else_is_refused(change, message):
    held = {"format": "mapping.prune", "version": 1, "leaves": {}, **change}
    with pytest.raises(PlanError, match=message):
        Plan.from_json(json.dumps(held))
    with pytest.raises(PlanError, match=r"expected JSON that Plan\.to_json wrote"):
        Plan.from_json(json.dumps(held)[:-1])


def test_arrays_and_plans_of_other_shapes_are_refused():
    plan = Plan.of({"w": {0: [1]}}, {"w": (3,)})
    with pytest.raises(
        PlanError, match=r"w: expected the shape \(3,\).*got \(4,\)\. Cut"
    ):
        plan.cut(jnp.ones(4), "w")
    with pytest.raises(PlanError, match="It is cut already"):
        plan.zeroed(jnp.ones(2), "w")
    with pytest.raises(PlanError, match=r"shape \(2,\) that the earlier one leaves"):
        plan.then(plan)
    with pytest.raises(
        PlanError, match="v: expected a leaf of the plan, which knows w"
    ):
        plan.shape("v")
