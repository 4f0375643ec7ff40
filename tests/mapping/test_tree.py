"""Trees are addressed by path; a wrong path is answered with the nearest ones."""

import dataclasses
import fnmatch
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

import mapping as mp
from mapping.config import from_config, to_config
from mapping.errors import (
    LoadError,
    MergeError,
    NotAMappingError,
    SelectorError,
    UnknownPathError,
)
from mapping.layers import Dense, Dropout
from mapping.losses import Combine, Huber, MeanSquaredError
from mapping.tree import diff, load, matches, merge, nearest, select

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


# By type, dtype and predicate

MIXED = {
    "count": np.int32(3),
    "half": jnp.ones(2, jnp.bfloat16),
    "key": jax.random.key(0),
    "kernel": jnp.ones((2, 3)),
    "rate": 0.5,
    "table": np.arange(4, dtype=np.int8),
}


@pytest.mark.parametrize(
    ("selector", "chosen"),
    [
        (jnp.floating, {"half", "kernel", "rate"}),
        (jnp.inexact, {"half", "kernel", "rate"}),
        (jnp.integer, {"count", "table"}),
        (jnp.float32, {"kernel", "rate"}),
        (np.int8, {"table"}),
        (np.dtype("int8"), {"table"}),
        (jnp.dtype("bfloat16"), {"half"}),
        (jax.dtypes.prng_key, {"key"}),
        (jax.Array, {"half", "kernel", "key"}),
        (np.ndarray, {"table"}),
        (float, {"rate"}),
        (float | np.ndarray, {"rate", "table"}),
        (lambda leaf: np.ndim(leaf) == 2, {"kernel"}),
        (lambda path, leaf: path > "k" and np.ndim(leaf) == 1, {"table"}),
        (lambda path, leaf, least=2: np.ndim(leaf) == least, {"kernel"}),
        (np.isscalar, {"count", "rate"}),
    ],
)
def test_leaves_are_selected_by_type_dtype_and_predicate(selector, chosen):
    assert set(select(MIXED).at(selector).paths) == chosen
    assert set(select(MIXED).without(selector).paths) == MIXED.keys() - chosen


def test_selectors_of_several_kinds_add_up_and_narrow():
    both = select(MIXED).at("k*", float)
    assert set(both.paths) == {"key", "kernel", "rate"}
    assert both.at(jnp.floating).without("rate").paths == ("kernel",)


def test_a_type_or_a_predicate_may_select_nothing():
    assert select(MIXED).at(complex).count() == 0
    assert select(MIXED).at(lambda leaf: False).set(0) == MIXED


@pytest.mark.parametrize(
    ("selector", "message"),
    [
        (3, "expected a glob, a type, a dtype or a predicate, got 3"),
        (None, "expected a glob"),
        (Dense(2), "expected a glob"),
        (lambda: True, "got one of 0 arguments"),
        (lambda a, b, c: True, "got one of 3 arguments"),
        (lambda leaf: leaf > 0, r"kernel: .* one bool, got bool\[2, 3\]"),
    ],
    ids=["number", "None", "mapping", "no argument", "three arguments", "array"],
)
def test_what_selects_nothing_that_could_be_is_refused(selector, message):
    with pytest.raises(SelectorError, match=message):
        select({"kernel": jnp.ones((2, 3))}).at(selector)


def test_a_glob_without_a_match_is_refused_in_without_too():
    with pytest.raises(UnknownPathError, match="names none"):
        select(TREE).without("heed/*")


# Partition and merge


@given(trees, names)
def test_merging_the_parts_gives_the_whole_back(tree, name):
    selection = select(tree).at(lambda path, leaf: name in path)
    chosen, rest = selection.partition()
    assert mp.leaf_paths(chosen) == selection.leaves()
    assert len(jax.tree.leaves(rest)) == select(tree).count() - selection.count()
    for parts in ((chosen, rest), (rest, chosen), (chosen, rest, None)):
        assert mp.leaf_paths(merge(*parts)) == mp.leaf_paths(tree)


def test_parts_of_any_pytree_merge():
    state = optax.adam(0.1).init({"a": jnp.ones(2), "b": jnp.zeros(3)})
    tree = mp.Variables({"layers": [1, (2, None)]}, {"opt": state})
    for glob in ("params/*", "*/mu/*", "*/a"):
        joined = merge(*select(tree).at(glob).partition())
        assert jax.tree.structure(joined) == jax.tree.structure(tree)
        jax.tree.map(np.testing.assert_array_equal, joined, tree)


def test_a_gradient_is_taken_of_the_selected_leaves_alone():
    params = {"body": jnp.float32(2.0), "head": jnp.float32(3.0)}
    chosen, rest = select(params).at("head").partition()

    def objective(chosen):
        whole = merge(chosen, rest)
        return whole["body"] * whole["head"] ** 2

    assert jax.grad(objective)(chosen) == {"body": None, "head": 12.0}
    moments = optax.adam(0.1).init(chosen)
    assert set(mp.leaf_paths(moments)) == {"0/count", "0/mu/head", "0/nu/head"}


def test_trees_of_different_branches_merge_and_none_stands_for_a_whole_branch():
    assert merge({"a": {"x": 1}}, {"b": 2}, {"a": {"y": 3}}) == {
        "a": {"x": 1, "y": 3},
        "b": 2,
    }
    assert merge({"a": None, "b": (1, None)}, {"a": {"x": 1}, "b": (None, 2)}) == {
        "a": {"x": 1},
        "b": (1, 2),
    }
    assert merge(None, None) is None


@pytest.mark.parametrize(
    ("trees", "message"),
    [
        (({"a": {"b": 1}}, {"a": {"b": 2}}), r"^a/b: expected one tree .* got 2\."),
        ((1, 1), r"^\(root\): expected one tree"),
        (({"a": {"b": 1}}, {"a": 2}), "^a: expected one tree"),
        (({"a": (1, None)}, {"a": (None, 1, None)}), "^a: expected one kind of node"),
        (({"a": (1,)}, {"a": [None]}), "^a: expected one kind of node"),
    ],
    ids=["same leaf", "leaves", "leaf and branch", "lengths", "kinds"],
)
def test_trees_that_hold_the_same_do_not_merge(trees, message):
    with pytest.raises(MergeError, match=message):
        merge(*trees)


# Diff


@given(trees)
def test_a_tree_does_not_differ_from_itself(tree):
    arrays = jax.tree.map(lambda x: np.full(3, float(x)), tree)
    assert not diff(tree, tree)
    assert not diff(arrays, jax.tree.map(np.copy, arrays))
    assert diff(arrays, arrays).total == len(jax.tree.leaves(tree))


@given(trees, trees)
def test_a_diff_counts_what_one_of_two_trees_has(one, other):
    found = diff(one, other)
    first, second = mp.leaf_paths(one), mp.leaf_paths(other)
    assert set(found.added) == second.keys() - first.keys()
    assert set(found.removed) == first.keys() - second.keys()
    both = first.keys() & second.keys()
    assert found.moved == {
        path: pytest.approx(abs(first[path] - second[path]), rel=1e-15)
        for path in both
        if first[path] != second[path]
    }
    assert found.changed == ()


@pytest.mark.parametrize(
    ("before", "after", "moved"),
    [
        (np.float32([1, 2]), np.float32([1.5, -1]), 3.0),
        (jnp.ones(2, jnp.bfloat16), jnp.full(2, 1.5, jnp.bfloat16), 0.5),
        (np.int8([-128]), np.int8([127]), 255.0),
        (np.uint8([0]), np.uint8([1]), 1.0),
        (np.int64([2**53]), np.int64([2**53 + 1]), 1.0),
        (2**80, 2**80 + 1, 1.0),
        (np.array([True]), np.array([False]), 1.0),
        (np.complex64([3j]), np.complex64([4]), 5.0),
        (np.float32([np.inf]), np.float32([0]), np.inf),
        (np.float32([np.nan, 1]), np.float32([np.nan, 1]), None),
        (np.float32([np.inf]), np.float32([np.inf]), None),
        (np.zeros((0, 3)), np.zeros((0, 3)), None),
        (1.0, 1.25, 0.25),
        ("a", "a", None),
    ],
    ids=str,
)
def test_the_distance_of_two_leaves_is_their_largest_difference(before, after, moved):
    expected = {} if moved is None else {"x": moved}
    assert diff({"x": before}, {"x": after}).moved == expected
    assert bool(diff({"x": before}, {"x": after})) == (moved is not None)


def test_nan_where_there_was_a_number_is_a_difference():
    (distance,) = diff(np.float32([1]), np.float32([np.nan])).moved.values()
    assert np.isnan(distance)


def test_keys_are_compared_by_their_bits():
    key = jax.random.key(0)
    assert not diff({"key": key}, {"key": jax.random.key(0)})
    assert diff({"key": key}, {"key": jax.random.key(1)}).moved == {"key": 1.0}


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (np.zeros(2), np.zeros(3)),
        (np.zeros(2), np.zeros(2, np.float32)),
        (1, 1.0),
        (1, np.ones(())),
        ("a", "b"),
        (jax.ShapeDtypeStruct((2,), "float32"), np.zeros(2)),
    ],
    ids=["shape", "dtype", "types", "array", "strings", "spec"],
)
def test_another_shape_dtype_or_type_is_a_change(before, after):
    assert diff({"x": before}, {"x": after}).changed == ("x",)


def test_specs_are_compared_by_shape_and_dtype_alone():
    params = {"a": np.ones(2, np.float32)}
    spec = {"a": jax.ShapeDtypeStruct((2,), np.float32)}
    assert not diff(params, spec)
    assert not diff(spec, params)


def test_a_diff_prints_as_a_table():
    before = {"kernel": np.zeros((2, 3), np.float32), "bias": np.zeros(3), "same": 1}
    after = {"kernel": np.full((2, 3), 0.5, np.float32), "bias": np.zeros(4), "same": 1}
    after["extra"] = 2
    assert str(diff(before, after)) == (
        "   path    before         after          distance\n"
        "~  bias    float64[3]     float64[4]\n"
        "+  extra                  int\n"
        "~  kernel  float32[2, 3]  float32[2, 3]  0.5\n"
        "3 of 4 leaves differ."
    )
    assert str(diff(before, before)) == "No difference in 3 leaves."
    assert diff(before, after).table(1).splitlines()[-2:] == [
        "... and 2 more.",
        "3 of 4 leaves differ.",
    ]


# Load

PARAMS = {
    "body": {"kernel": jnp.zeros((2, 3)), "bias": jnp.zeros(3)},
    "head": {"kernel": jnp.zeros((3, 1))},
}
VALUES = {
    "body/kernel": np.full((2, 3), 1, np.float32),
    "body/bias": np.full(3, 2, np.float32),
    "head/kernel": np.full((3, 1), 3, np.float32),
}


def numbers(tree):
    return {path: float(np.mean(leaf)) for path, leaf in mp.leaf_paths(tree).items()}


FULL = {"body/bias": 2.0, "body/kernel": 1.0, "head/kernel": 3.0}


@given(trees)
def test_a_tree_loads_from_its_own_leaves(tree):
    arrays = jax.tree.map(lambda x: np.full(2, x % 97, np.int32), tree)
    empty = jax.tree.map(jnp.zeros_like, arrays)
    for values in (arrays, mp.leaf_paths(arrays)):
        loaded, found = load(empty, values)
        assert not found
        assert not diff(loaded, arrays)


def test_values_load_into_specs_variables_and_optimizer_states():
    specs = jax.eval_shape(lambda: PARAMS)
    assert numbers(load(specs, VALUES).tree) == FULL
    variables = mp.Variables(PARAMS, {"count": jnp.zeros((), jnp.int32)})
    given = {f"params/{path}": value for path, value in VALUES.items()}
    given["state/count"] = np.int32(7)
    loaded = load(variables, given).tree
    assert isinstance(loaded, mp.Variables)
    assert numbers(loaded.params) == FULL
    assert loaded.state["count"] == 7
    optimizer = optax.adam(0.1)
    state = optimizer.init(PARAMS)
    moved = jax.tree.map(lambda x: x + 1, state)
    again = load(state, mp.leaf_paths(moved)).tree
    assert jax.tree.structure(again) == jax.tree.structure(state)
    assert not diff(again, moved)


def test_loaded_values_are_arrays_as_stood_there_and_the_tree_is_not_changed():
    loaded = load(PARAMS, VALUES).tree
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(loaded))
    assert set(numbers(PARAMS).values()) == {0.0}
    kept = load({"a": np.zeros(2)}, {"a": np.ones(2)}).tree["a"]
    assert isinstance(kept, np.ndarray)
    assert kept.dtype == np.float64


MISFITS = {
    "body/kernel": np.ones((3, 2), np.float32),
    "body/bais": np.ones(3, np.float32),
    "head/kernel": np.ones((3, 1), np.float64),
    "other": np.ones(3, np.float32),
}


def test_a_strict_load_refuses_and_shows_all_that_does_not_fit():
    with pytest.raises(LoadError) as error:
        load(PARAMS, MISFITS)
    lines = [" ".join(line.split()) for line in str(error.value).splitlines()]
    assert lines == [
        "load: expected a value that fits for each of 3 leaves, and no other:",
        "path wanted given distance",
        "+ body/bais float32[3] nearest: body/bias",
        "- body/bias float32[3] nearest: body/bais",
        "~ body/kernel float32[2, 3] float32[3, 2] another shape",
        "~ head/kernel float32[3, 1] float64[3, 1] another dtype: "
        "cast=True converts it",
        "+ other float32[3]",
        "5 of 5 leaves differ.",
        "Rename values (rename=...), convert them (cast=True), or load what fits "
        "(strict=False).",
    ]


def test_a_load_that_is_not_strict_takes_what_fits_and_tells_the_rest():
    loaded, found = load(
        PARAMS, {**MISFITS, "body/bias": VALUES["body/bias"]}, strict=False
    )
    assert numbers(loaded) == {"body/bias": 2.0, "body/kernel": 0.0, "head/kernel": 0.0}
    assert loaded["body"]["kernel"] is PARAMS["body"]["kernel"]
    assert found.added == ("body/bais", "other")
    assert found.changed == ("body/kernel", "head/kernel")
    assert found.removed == ()


@pytest.mark.parametrize(
    "rename",
    [
        {"enc": "body", "fc": "head"},
        {
            "enc/kernel": "body/kernel",
            "enc/bias": "body/bias",
            "fc": "head",
        },
        lambda path: path.replace("enc", "body").replace("fc", "head"),
    ],
    ids=["beginnings", "paths", "function"],
)
def test_values_are_renamed(rename):
    given = {
        "enc/kernel": VALUES["body/kernel"],
        "enc/bias": VALUES["body/bias"],
        "fc/kernel": VALUES["head/kernel"],
    }
    assert numbers(load(PARAMS, given, rename=rename).tree) == FULL


def test_the_longest_name_renames_and_none_drops_a_value():
    given = {f"model/{path}": value for path, value in VALUES.items()}
    given["model/head/bias"] = np.ones(1, np.float32)
    given["step"] = np.ones((), np.int32)
    rename = {"model": "", "model/head/bias": None, "step": None}
    assert numbers(load(PARAMS, given, rename=rename).tree) == FULL


def test_two_values_under_one_name_are_refused():
    with pytest.raises(LoadError, match=r"^body/bias: .* got b and body/bias under"):
        load(PARAMS, {**VALUES, "b": np.ones(3)}, rename={"b": "body/bias"})


@pytest.mark.parametrize(
    ("wanted", "given", "fits"),
    [
        (jnp.zeros(2, jnp.bfloat16), np.float32([1, 2]), True),
        (jnp.zeros(2), jnp.ones(2, jnp.bfloat16), True),
        (jnp.zeros(2), np.float64([1, 2]), True),
        (jnp.zeros(2), np.int64([1, 2]), True),
        (jnp.zeros(2, jnp.int8), np.int64([1, 2]), True),
        (jnp.zeros(2, jnp.int8), np.int64([1, 200]), False),
        (jnp.zeros(2, jnp.int32), np.float32([1, 2.5]), False),
        (jnp.zeros(2, jnp.uint32), jax.random.split(jax.random.key(0)), False),
    ],
    ids=str,
)
def test_dtypes_are_cast_only_if_asked_and_integers_never_change(wanted, given, fits):
    with pytest.raises(LoadError, match="another dtype"):
        load({"x": wanted}, {"x": given})
    if not fits:
        with pytest.raises(LoadError, match=r"would change|cannot be converted"):
            load({"x": wanted}, {"x": given}, cast=True)
        return
    loaded = load({"x": wanted}, {"x": given}, cast=True).tree["x"]
    assert loaded.dtype == wanted.dtype
    np.testing.assert_array_equal(
        np.asarray(loaded, np.float64), np.asarray(given, np.float64)
    )


# Mappings inside mappings

NET = mp.Serial(
    body=Dense(8) >> Dropout(0.5) >> jax.nn.relu >> Dropout(0.1), head=Dense(2)
)


@dataclasses.dataclass(frozen=True)
class Holder(mp.Mapping):
    """Holds mappings in every way a field can."""

    one: mp.Mapping
    many: tuple[mp.Mapping, ...] = ()
    named: tuple[tuple[str, mp.Mapping], ...] = ()
    weighted: tuple[tuple[float, mp.Mapping], ...] = ()
    size: int = 3
    made: Any = dataclasses.field(init=False)

    def __post_init__(self):
        object.__setattr__(self, "made", Dense(self.size))


HOLDER = Holder(
    Dense(1),
    (Dense(2), Dropout(0.2)),
    (("a", Dense(3)), ("b", Dropout(0.3))),
    ((0.5, Dense(4)),),
)


def test_the_mappings_in_a_mapping_have_the_paths_of_their_params():
    assert select(NET).paths == (
        "body",
        "body/dense",
        "body/dropout",
        "body/relu",
        "body/dropout_2",
        "head",
    )
    v = NET.init(jax.random.key(0), jnp.ones((1, 3)))
    for path in select(v.params).at("*/kernel").paths:
        assert isinstance(select(NET).leaves()[path.removesuffix("/kernel")], Dense)


def test_mappings_in_fields_are_found_however_they_are_held():
    assert {path: type(m).__name__ for path, m in select(HOLDER).leaves().items()} == {
        "one": "Dense",
        "many/0": "Dense",
        "many/1": "Dropout",
        "named/a": "Dense",
        "named/b": "Dropout",
        "weighted/0/1": "Dense",
    }


def test_mappings_are_selected_by_glob_type_and_predicate():
    assert select(NET).at(Dropout).paths == ("body/dropout", "body/dropout_2")
    assert select(NET).at("body/*").count() == 4
    assert select(NET).at(lambda m: getattr(m, "features", 0) == 2).paths == ("head",)
    assert select(NET).without("body*").paths == ("head",)
    with pytest.raises(UnknownPathError, match="names none of 6 nested mappings"):
        select(NET).at("tail")


def test_exchanged_mappings_give_the_mapping_one_would_have_written():
    still = select(NET).at(Dropout).set(Dropout(0.0))
    assert still == mp.Serial(
        body=Dense(8) >> Dropout(0.0) >> jax.nn.relu >> Dropout(0.0), head=Dense(2)
    )
    assert hash(still) == hash(from_config(to_config(still)))
    assert NET.steps[0][1].steps[1][1] == Dropout(0.5)
    wide = select(HOLDER).at(Dense).apply(lambda d: dataclasses.replace(d, features=9))
    assert wide == Holder(
        Dense(9),
        (Dense(9), Dropout(0.2)),
        (("a", Dense(9)), ("b", Dropout(0.3))),
        ((0.5, Dense(9)),),
    )


def test_what_is_not_touched_stays_the_very_same():
    changed = select(NET).at("head").set(Dense(3))
    assert changed.steps[0][1] is NET.steps[0][1]
    assert select(NET).at(mp.Lift).apply(lambda m: m) is NET


def test_a_step_keeps_its_name_whatever_it_becomes():
    net = Dense(4) >> Dense(4) >> Dense(2)
    changed = select(net).at("dense").set(jnp.tanh)
    assert changed.names == net.names == ("dense", "dense_2", "dense_3")
    x = jnp.ones((1, 4))
    params = dict(net.init(jax.random.key(0), x).params)
    del params["dense"]
    assert changed(params, x).shape == (1, 2)


def test_inner_mappings_are_exchanged_before_the_outer_one_sees_them():
    seen = []

    def note(mapping):
        seen.append(mapping)
        return Dropout(0.0) if isinstance(mapping, Dropout) else mapping

    select(NET).at("body*").apply(note)
    assert seen[-1] == Dense(8) >> Dropout(0.0) >> jax.nn.relu >> Dropout(0.0)


def test_every_combinator_can_be_operated_on():
    inner = Dense(4) >> Dropout(0.5)
    for net, count in (
        (mp.Residual(inner), 1),
        (mp.Repeat(inner, 2), 1),
        (mp.Branch(inner, inner, join="concat"), 2),
        (mp.Ensemble(inner, size=3), 1),
        (mp.Frozen(inner), 1),
        (Combine((1.0, MeanSquaredError()), (0.5, Huber())), 0),
    ):
        assert select(net).at(Dropout).count() == count
        changed = select(net).at(Dropout).set(Dropout(0.1))
        assert select(changed).at(lambda m: m == Dropout(0.1)).count() == count
        back = select(changed).at(Dropout).set(Dropout(0.5))
        assert back == net
    losses = select(Combine((1.0, Huber()))).at(Huber).set(Huber(2.0))
    assert losses == Combine((1.0, Huber(2.0)))


def test_only_mappings_and_functions_take_a_mapping_s_place():
    with pytest.raises(NotAMappingError):
        select(NET).at("head").set(3)


def test_a_mapping_has_no_mask():
    for ask in (select(NET).mask, select(NET).partition):
        with pytest.raises(SelectorError, match="Select among its params"):
            ask()
