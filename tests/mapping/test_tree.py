"""Trees are addressed by path; a wrong path is answered with the nearest ones."""

import fnmatch

import jax
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

import mapping as mp
from mapping.errors import UnknownPathError
from mapping.tree import matches, nearest, select

TREE = {
    "encoder": {
        "query": {"kernel": 1.0, "bias": 2.0},
        "key": {"kernel": 3.0, "bias": 4.0},
    },
    "head": {"kernel": 5.0},
}
PATHS = (
    "encoder/key/bias",
    "encoder/key/kernel",
    "encoder/query/bias",
    "encoder/query/kernel",
    "head/kernel",
)
names = st.text("abc_0", min_size=1, max_size=4)
trees = st.dictionaries(
    names,
    st.recursive(
        st.integers(),
        lambda inner: st.dictionaries(names, inner, min_size=1, max_size=3),
        max_leaves=6,
    ),
    min_size=1,
    max_size=3,
)


@pytest.mark.parametrize(
    ("glob", "chosen"),
    [
        ("*", PATHS),
        ("head/kernel", PATHS[4:]),
        ("*/kernel", (PATHS[1], PATHS[3], PATHS[4])),
        ("encoder/*", PATHS[:4]),
        ("encoder/*/bias", (PATHS[0], PATHS[2])),
        ("encoder/???/*", PATHS[:2]),
        ("*/[kq]*/bias", (PATHS[0], PATHS[2])),
    ],
)
def test_a_glob_selects_the_paths_it_matches_in_the_tree_s_order(glob, chosen):
    assert select(TREE).at(glob).paths == chosen


def test_a_glob_matches_whole_paths_and_the_case_counts():
    assert not matches("kernel", "head/kernel")
    assert not matches("HEAD/kernel", "head/kernel")


def test_several_globs_select_what_any_of_them_names_once():
    assert select(TREE).at("head/*", "*/kernel", "*/bias").paths == PATHS


def test_a_selection_narrows_step_by_step():
    narrowed = select(TREE).at("encoder/*").at("*/bias")
    assert narrowed == select(TREE).at("encoder/*/bias")
    with pytest.raises(UnknownPathError, match="none of 4 leaves"):
        select(TREE).at("encoder/*").at("head/kernel")


@given(trees)
def test_every_leaf_is_selected_by_its_own_path_alone(tree):
    for path, leaf in mp.leaf_paths(tree).items():
        assert select(tree).at(path).leaves() == {path: leaf}


@given(trees)
def test_everything_is_selected_at_first(tree):
    assert select(tree).leaves() == mp.leaf_paths(tree)
    assert select(tree).count() == len(jax.tree.leaves(tree))
    assert select(tree).at("*") == select(tree)


@given(trees, names)
def test_apply_changes_the_selected_leaves_and_no_other(tree, name):
    glob = f"*{name}*"
    expected = {
        path: -leaf if fnmatch.fnmatchcase(path, glob) else leaf
        for path, leaf in mp.leaf_paths(tree).items()
    }
    try:
        changed = select(tree).at(glob).apply(lambda x: -x)
    except UnknownPathError:
        changed = tree
    assert mp.leaf_paths(changed) == expected
    assert jax.tree.structure(changed) == jax.tree.structure(tree)


def test_the_tree_itself_is_never_changed():
    tree = {"a": {"b": 1}, "c": 2}
    assert select(tree).at("a/b").set(5) == {"a": {"b": 5}, "c": 2}
    assert tree == {"a": {"b": 1}, "c": 2}


def test_a_mask_is_true_where_selected_and_optax_takes_it():
    params = jax.tree.map(np.float32, TREE)
    mask = select(params).at("head/*").mask()
    assert {p for p, chosen in mp.leaf_paths(mask).items() if chosen} == {"head/kernel"}
    frozen = optax.masked(optax.set_to_zero(), mask)
    updates, _ = frozen.update(params, frozen.init(params))
    assert mp.leaf_paths(updates) == mp.leaf_paths(select(params).at("head/*").set(0.0))


def test_lists_tuples_and_variables_have_paths_too():
    tree = mp.Variables({"layers": [1, (2, 3)]}, {"count": 4})
    assert select(tree).at("params/layers/1/*").leaves() == {
        "params/layers/1/0": 2,
        "params/layers/1/1": 3,
    }
    assert select(tree).at("state/*").set(0).state == {"count": 0}


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("head/kernle", "head/kernel"),
        ("encoder/quary/bias", "encoder/query/bias"),
        ("encoder/key/Kernel", "encoder/key/kernel"),
        ("key/bias", "encoder/key/bias"),
    ],
)
def test_an_unknown_path_is_answered_with_the_nearest_one_first(wrong, right):
    with pytest.raises(UnknownPathError) as caught:
        select(TREE).at(wrong)
    said = f"{wrong}: names none of 5 leaves. Nearest: {right}"
    assert str(caught.value).startswith(said)


def test_one_good_glob_does_not_excuse_a_bad_one():
    with pytest.raises(UnknownPathError, match=r"^heed/\*: "):
        select(TREE).at("encoder/*", "heed/*")


def test_nearest_lists_three_at_most_whatever_is_asked():
    assert nearest("zzz", PATHS) == ", ".join(PATHS[:3])
    assert nearest("zzz", []) == "(none)"


def test_an_empty_tree_has_no_path_to_suggest():
    with pytest.raises(UnknownPathError, match=r"none of 0 leaves\. Nearest: \(none\)"):
        select({}).at("*")
