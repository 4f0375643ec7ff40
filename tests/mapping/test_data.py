"""Batches: every example in its place, in an order fixed by (seed, epoch)."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mapping.data import batches
from mapping.errors import DataError

counts = st.integers(1, 40)
seeds = st.integers(0, 2**32)


def numbered(count):
    """Inputs and targets that tell which example they belong to."""
    x = np.arange(count)
    return x[:, None] * np.ones((1, 3)), x


def collect(*args, **options):
    return [tuple(part.tolist() for part in b) for b in batches(*args, **options)]


@given(counts, counts)
def test_unshuffled_batches_are_all_examples_in_their_order(count, size):
    parts = list(batches(numbered(count), size))
    np.testing.assert_array_equal(np.concatenate([y for _, y in parts]), range(count))
    assert all(len(y) == min(size, count) for _, y in parts[:-1])
    assert 1 <= len(parts[-1][1]) <= size


@given(counts, counts, seeds, st.integers(0, 1000))
def test_shuffled_batches_are_of_one_size_and_show_no_example_twice(
    count, size, seed, epoch
):
    parts = list(batches(numbered(count), size, seed=seed, epoch=epoch))
    shown = [i for _, y in parts for i in y.tolist()]
    assert {len(y) for _, y in parts} == {min(size, count)}
    assert len(shown) == len(set(shown)) == count - count % min(size, count)
    assert set(shown) <= set(range(count))


@given(counts, counts, st.none() | seeds)
def test_the_parts_of_an_example_stay_together(count, size, seed):
    for x, y in batches(numbered(count), size, seed=seed):
        assert x.shape == (len(y), 3)
        assert (x == y[:, None]).all()


@given(counts, counts, seeds, st.integers(0, 1000))
def test_the_order_is_a_function_of_seed_and_epoch(count, size, seed, epoch):
    one, two = (
        collect(numbered(count), size, seed=seed, epoch=epoch) for _ in range(2)
    )
    assert one == two


def test_every_epoch_and_every_seed_has_an_order_of_its_own():
    orders = [
        str(collect([np.arange(50)], 50, seed=seed, epoch=epoch))
        for seed in range(5)
        for epoch in range(5)
    ]
    assert len(set(orders)) == 25


def test_what_one_epoch_leaves_out_another_brings_in():
    shown = {
        i
        for epoch in range(20)
        for (batch,) in collect([np.arange(5)], 2, seed=0, epoch=epoch)
        for i in batch
    }
    assert shown == set(range(5))


def test_each_example_is_equally_likely_to_come_first():
    first = [
        next(batches([np.arange(4)], 1, seed=0, epoch=epoch))[0][0]
        for epoch in range(2000)
    ]
    # Binomial(2000, 1/4): 500 each, sigma 19.4.
    assert (np.abs(np.bincount(first) - 500) < 4 * 19.4).all()


def test_a_size_larger_than_the_data_gives_one_batch_of_all():
    assert collect([np.arange(3)], 100) == [([0, 1, 2],)]
    ((only,),) = collect([np.arange(3)], 100, seed=0)
    assert sorted(only) == [0, 1, 2]


def test_a_single_example_is_a_batch():
    assert collect([[7.0], [3]], 8) == [([7.0], [3])]


@pytest.mark.parametrize("dtype", ["uint8", "float16", "bool", "int64"])
def test_a_batch_keeps_the_dtype(dtype):
    ((x,),) = batches([np.ones((2, 3), dtype)], 2)
    assert x.dtype == dtype


def test_lists_and_jax_arrays_are_data_too():
    assert collect([[1, 2, 3], jnp.arange(3)], 2) == [([1, 2], [0, 1]), ([3], [2])]


@pytest.mark.parametrize(
    ("arrays", "got"),
    [
        ([np.ones((3, 2)), np.ones(2)], r"float64\[3, 2\], float64\[2\]"),
        ([np.ones((0, 2)), np.ones(0)], r"float64\[0, 2\], float64\[0\]"),
        ([np.ones(3), np.ones(())], r"float64\[3\], float64\[\]"),
        ([], "got "),
    ],
    ids=["unequal", "empty", "a scalar", "nothing"],
)
def test_arrays_that_do_not_fit_together_are_refused(arrays, got):
    with pytest.raises(DataError, match=f"one leading axis of equal.*{got}"):
        next(batches(arrays, 2))


@pytest.mark.parametrize(
    "value",
    [None, ["a", "b"], [object()] * 2, {"x": [1, 2]}, np.zeros(2, "M8[s]")],
    ids=["None", "strings", "objects", "a dict", "dates"],
)
def test_what_holds_no_numbers_is_refused(value):
    with pytest.raises(DataError, match=r"expected numbers, got .* Encode them first"):
        next(batches([[1, 2], value], 2))


@pytest.mark.parametrize("size", [0, -1])
def test_a_size_below_one_is_refused(size):
    with pytest.raises(DataError, match=f"at least 1 example in a batch, got {size}"):
        next(batches([np.arange(3)], size))


def test_one_array_in_place_of_a_sequence_of_them_is_refused():
    with pytest.raises(DataError):
        next(batches(np.ones((4, 3)), 2))


@pytest.mark.parametrize(
    ("arrays", "size", "seed"),
    [([[[1, 2], [3]]], 2, None), ([[1, 2]], 1.5, None), ([[1, 2]], 1, -1)],
    ids=["ragged", "a fraction of an example", "a negative seed"],
)
def test_no_bad_argument_ends_in_an_error_from_inside_numpy(arrays, size, seed):
    with pytest.raises(DataError):
        next(batches(arrays, size, seed=seed))
