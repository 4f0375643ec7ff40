"""The laws of labels: what unify, merge and split promise, whatever came before."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from compiler.passes.prune.structure.atoms import Atoms
from compiler.passes.prune.structure.labels import Labels

sizes = st.integers(2, 4)


def rows(labels, vector):
    """The label of each index as a set of atoms that stand for themselves."""
    if vector is None:
        return None
    return [frozenset(row[row > 0].tolist()) for row in labels.atoms.resolve(vector)]


@given(st.lists(sizes, min_size=2, max_size=3))
def test_what_is_merged_and_split_again_is_what_it_was(extents):
    labels = Labels()
    axes = [labels.fresh(n) for n in extents]
    before = [rows(labels, axis) for axis in axes]
    again = labels.split(labels.merge(axes, extents), extents)
    assert [rows(labels, axis) for axis in again] == before


@given(st.lists(sizes, min_size=2, max_size=3))
def test_an_axis_that_is_split_is_the_product_of_its_parts(extents):
    labels = Labels()
    whole = labels.fresh(int(np.prod(extents)))
    parts = labels.split(whole, extents)
    assert rows(labels, labels.merge(parts, extents)) == rows(labels, whole)
    for part, extent in zip(parts, extents, strict=True):
        assert len(set(rows(labels, part))) == extent


def test_an_axis_split_in_two_ways_is_a_product_of_the_common_parts():
    labels = Labels()
    whole = labels.fresh(12)
    four, three = labels.split(whole, [4, 3])
    two, six = labels.split(whole, [2, 6])
    assert len(set(rows(labels, two))) == 2
    assert len(set(rows(labels, four))) == 4
    assert rows(labels, labels.merge([four, three], [4, 3])) == rows(labels, whole)
    assert rows(labels, labels.merge([two, six], [2, 6])) == rows(labels, whole)


@given(st.data())
def test_axes_that_are_made_one_have_equal_labels(data):
    labels = Labels()
    axes = [labels.fresh(6) for _ in range(3)]
    axes.append(labels.merge([labels.fresh(2), labels.fresh(3)], [2, 3]))
    axes.append(np.concatenate([labels.fresh(2), labels.fresh(4)]))
    order = data.draw(st.permutations(range(6)))
    axes.append(axes[0][np.asarray(order)])
    pairs = st.tuples(st.integers(0, 5), st.integers(0, 5))
    made = []
    for one, other in data.draw(st.lists(pairs, min_size=1, max_size=5)):
        labels.unify(axes[one], axes[other])
        made.append((one, other))
        for left, right in made:  # what was made one before stays one
            assert rows(labels, axes[left]) == rows(labels, axes[right])


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), max_size=12))
def test_atoms_are_one_if_a_chain_of_unions_leads_from_one_to_the_other(pairs):
    atoms = Atoms()
    atoms.fresh(9)
    for one, other in pairs:
        atoms.union(np.array([one]), np.array([other]))
    reached = np.eye(10, dtype=bool)
    for one, other in pairs:
        reached[one, other] = reached[other, one] = True
    for _ in range(10):
        reached = reached @ reached
    found = atoms.find(np.arange(10))
    assert np.array_equal(found[:, None] == found[None], reached)


def test_unions_given_at_once_are_those_given_one_by_one():
    rng = np.random.default_rng(0)
    together, apart = Atoms(), Atoms()
    together.fresh(200)
    apart.fresh(200)
    left, right = rng.integers(1, 200, (2, 150))
    together.union(left, right)
    for one, other in zip(left, right, strict=True):
        apart.union(np.array([one]), np.array([other]))
    everyone = np.arange(200)
    one, other = together.find(everyone), apart.find(everyone)
    assert np.array_equal(one[:, None] == one[None], other[:, None] == other[None])


def test_what_meets_an_axis_that_stays_stays():
    labels = Labels()
    axis = labels.fresh(4)
    labels.unify(axis, None)
    assert not labels.is_live(axis)


def test_a_factor_that_meets_nothing_stays_and_the_other_does_not():
    labels = Labels()
    heads, size = labels.fresh(2), labels.fresh(3)
    both = labels.merge([heads, size], [2, 3])
    labels.unify(both, np.repeat(heads, 3, axis=0))
    assert labels.is_live(heads)
    assert not labels.is_live(size)


def test_an_axis_of_extent_one_or_a_symbol_stays():
    labels = Labels()
    assert labels.fresh(1) is None
    assert labels.fresh("b") is None


@settings(max_examples=30)
@given(st.integers(2, 5), st.integers(2, 5))
def test_channel_shuffle_keeps_groups_and_what_is_within_apart(groups, each):
    labels = Labels()
    channels = labels.fresh(groups * each)
    one, within = labels.split(channels, [groups, each])
    shuffled = labels.merge([within, one], [each, groups])
    back = labels.split(shuffled, [each, groups])
    assert rows(labels, back[0]) == rows(labels, within)
    assert rows(labels, back[1]) == rows(labels, one)


def test_a_circle_of_products_ends():
    labels = Labels()
    one, other = labels.fresh(4), labels.fresh(4)
    half = labels.split(one, [2, 2])
    crossed = labels.merge([half[1], half[0]], [2, 2])
    labels.unify(labels.merge([half[0], other[:2]], [2, 2]), crossed)
    labels.unify(one, crossed)
    assert rows(labels, one) == rows(labels, crossed)
