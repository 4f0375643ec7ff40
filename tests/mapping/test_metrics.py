"""Accuracy against scikit-learn, and the merge law of its accumulator."""

import functools
import operator

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score

from mapping import Context, Variables
from mapping.core import call
from mapping.errors import MappingError, ShapeMismatchError
from mapping.metrics import Accuracy

METRIC = Accuracy()
NOTHING = METRIC.init(jax.random.key(0))
LAWS = settings(deadline=None, max_examples=50, database=None)

counts = st.integers(0, 1000)
seen = st.builds(
    lambda hits, misses: {"correct": hits, "count": hits + misses}, counts, counts
)


def random(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def classes(*shape, seed=0, count=5):
    return np.random.default_rng(seed).integers(0, count, shape).astype(np.int32)


def measure(logits, target, start=NOTHING):
    return METRIC.apply(start, logits, target, ctx=Context())


def bits(state):
    return jax.tree.map(int, state)


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int32", "int64"])
def test_accuracy_is_scikit_learn_s_for_every_integer_dtype(dtype):
    logits, target = random(50, 5), classes(50).astype(dtype)
    with jax.numpy_dtype_promotion("standard"):
        value, _ = measure(logits, target)
    assert value == pytest.approx(accuracy_score(target, logits.argmax(-1)), rel=1e-6)


def test_accuracy_counts_over_every_leading_axis():
    logits, target = random(2, 3, 4, 5), classes(2, 3, 4)
    value, state = measure(logits, target)
    flat, _ = measure(logits.reshape(-1, 5), target.ravel())
    assert value == flat
    assert int(state["count"]) == 24


def test_a_tie_goes_to_the_first_class():
    ties = np.zeros((2, 3), np.float32)
    assert measure(ties, np.array([0, 1], np.int32))[0] == 0.5


@LAWS
@given(st.lists(st.sampled_from([0, 4, 8, 12]), max_size=4), st.randoms())
def test_merging_any_split_in_any_order_equals_seeing_all_at_once(cuts, shuffle):
    logits, target = random(12, 5), classes(12)
    cuts = sorted(cuts)
    states = [
        measure(*part)[1]
        for part in zip(np.split(logits, cuts), np.split(target, cuts), strict=True)
    ]
    shuffle.shuffle(states)
    merged = functools.reduce(METRIC.merge, states)
    assert bits(merged) == bits(measure(logits, target)[1])


@LAWS
@given(seen, seen, seen)
def test_merge_is_associative_and_commutative_with_nothing_as_identity(a, b, c):
    merge = METRIC.merge
    assert merge(merge(a, b), c) == merge(a, merge(b, c))
    assert merge(a, b) == merge(b, a)
    assert merge(a, NOTHING.state) == a == merge(NOTHING.state, a)


def test_applying_to_batch_after_batch_gives_the_value_of_all_so_far():
    logits, target = random(10, 5), classes(10)
    _, state = measure(logits[:4], target[:4])
    value, state = measure(logits[4:], target[4:], Variables({}, state))
    assert value == measure(logits, target)[0]
    assert bits(state) == bits(measure(logits, target)[1])


@LAWS
@given(seen.filter(operator.itemgetter("count")))
def test_the_value_is_a_share(state):
    value = METRIC.value(jax.tree.map(np.int32, state))
    assert value == pytest.approx(state["correct"] / state["count"], rel=1e-6)
    assert 0 <= value <= 1


def test_the_value_of_nothing_seen_is_not_a_number():
    assert np.isnan(METRIC.value(NOTHING.state))


def test_the_state_starts_at_zero_keeps_its_dtype_and_is_there_without_params():
    _, state = measure(random(3, 5), classes(3))
    assert NOTHING.params == {}
    assert bits(NOTHING.state) == {"correct": 0, "count": 0}
    for tree in (NOTHING.state, state):
        assert {name: x.dtype for name, x in tree.items()} == {
            "correct": np.int32,
            "count": np.int32,
        }


def test_compiled_equals_eager():
    logits, target = random(7, 5), classes(7)
    value, state = jax.jit(METRIC.apply)(NOTHING, logits, target, ctx=Context())
    assert value == measure(logits, target)[0]
    assert bits(state) == bits(measure(logits, target)[1])


@pytest.mark.parametrize("shape", [(4, 5), (4, 1), (3,), (1,), ()], ids=str)
def test_classes_that_do_not_fit_the_logits_are_refused_by_path(shape):
    with pytest.raises(ShapeMismatchError, match="Drop the last axis") as caught:
        call("top1", METRIC, NOTHING, random(4, 5), classes(*shape), ctx=Context())
    message = str(caught.value)
    assert message.startswith("top1 (Accuracy): expected class numbers")
    assert f"float32[4, 5], got int32{list(shape)}" in message


def test_classes_of_a_narrow_dtype_are_taken_under_strict_promotion():
    assert measure(np.eye(2, dtype=np.float32), np.array([0, 1], np.uint8))[0] == 1


def test_calling_the_metric_without_a_state_starts_from_nothing_or_says_what_lacks():
    try:
        value = METRIC({}, np.eye(2, dtype=np.float32), np.array([0, 1], np.int32))
    except MappingError:
        return
    assert value == 1


def test_a_list_of_classes_is_taken_or_refused_by_name():
    try:
        value, _ = measure(np.eye(2, dtype=np.float32), [0, 1])
    except MappingError:
        return
    assert value == 1
