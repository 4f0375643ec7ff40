"""What a mapping is: a value that is compared, hashed, pickled and traced once."""

import dataclasses
import functools
import hashlib
import pathlib
import pickle
import subprocess
import sys
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import mapping as mp
from mapping.core import Context, Mapping, Variables, call, describe, fold_name
from mapping.errors import (
    DataError,
    FieldError,
    MappingError,
    MissingKeyError,
    MissingVariablesError,
    NameCollisionError,
    NotAMappingError,
    ShapeMismatchError,
    UnknownPathError,
)
from mapping.layers import Dropout, Linen

ERRORS = (
    DataError,
    FieldError,
    MissingKeyError,
    MissingVariablesError,
    NameCollisionError,
    NotAMappingError,
    ShapeMismatchError,
    UnknownPathError,
)


@dataclasses.dataclass(frozen=True)
class Scale(Mapping):
    """A mapping with params, and a field that fits any value."""

    start: Any = 1.0

    def init(self, key, x):
        return Variables({"scale": jnp.full(x.shape[-1:], self.start)})

    def apply(self, variables, x, *, ctx):
        return x * variables.params["scale"], variables.state


@dataclasses.dataclass(frozen=True)
class Shift(Mapping):
    """Has the same field as `Scale` and is another thing."""

    start: Any = 1.0

    def apply(self, variables, x, *, ctx):
        return x + self.start, variables.state


@dataclasses.dataclass(frozen=True)
class Validated(Mapping):
    """Has a `__post_init__` of its own that never calls its parent's."""

    start: Any = 1.0

    def __post_init__(self):
        object.__setattr__(self, "seen", True)


@dataclasses.dataclass(frozen=True)
class Grandchild(Validated):
    """Validates once more, two classes below `Mapping`."""

    more: Any = ()

    def __post_init__(self):
        super().__post_init__()


@dataclasses.dataclass(frozen=True)
class Counted(Mapping):
    """Counts in its state, and tells mode and path through its output."""

    def init(self, key, *specs):
        return Variables({}, {"count": jnp.zeros((), jnp.int32)})

    def apply(self, variables, *inputs, ctx):
        state = {"count": variables.state["count"] + 1}
        return (ctx.train, ctx.where, variables.params), state


def key_bits(key):
    return jax.random.key_data(key).tolist()


def double(x):
    return 2 * x


# Keys


def test_fold_name_folds_in_the_first_four_bytes_of_the_sha256_of_the_name():
    number = int(hashlib.sha256(b"encoder/dropout").hexdigest()[:8], 16)
    expected = jax.random.fold_in(jax.random.key(7), np.uint32(number))
    assert fold_name(jax.random.key(7), "encoder/dropout") == expected


def test_fold_name_gives_the_same_bits_in_every_process_and_release():
    # sha256("encoder/dropout") starts af7f4882; the bits are those of threefry2x32.
    key = jax.random.key(7, impl="threefry2x32")
    assert key_bits(fold_name(key, "encoder/dropout")) == [3547668907, 876725311]


@given(
    st.lists(
        st.text("abc_", min_size=1, max_size=3), min_size=1, max_size=3, unique=True
    ),
    st.lists(
        st.text("abc_", min_size=1, max_size=3), min_size=1, max_size=3, unique=True
    ),
    st.sampled_from(["", "mask", "a"]),
    st.sampled_from(["", "mask", "a"]),
)
@settings(deadline=None, max_examples=50, database=None)
def test_two_draws_share_a_key_only_if_they_share_path_and_name(p, q, m, n):
    key = jax.random.key(0)
    first = Context(key, path=tuple(p)).rng(m)
    second = Context(key, path=tuple(q)).rng(n)
    assert bool(first == second) == ((p, m) == (q, n))


def test_a_draw_depends_on_the_root_key():
    one, two = (Context(jax.random.key(seed)).rng() for seed in (0, 1))
    assert one != two


@pytest.mark.parametrize(
    ("path", "where"), [((), "(root)"), (("encoder", "drop"), "encoder/drop")]
)
def test_a_missing_key_is_an_error_that_names_the_path(path, where):
    with pytest.raises(MissingKeyError, match="needs a random key, got none") as caught:
        Context(path=path).rng()
    assert str(caught.value).startswith(f"{where}: ")


# Context and Variables


def test_a_context_grows_its_path_and_keeps_all_else():
    context = Context(jax.random.key(0), train=True)
    child = context.child("encoder").child("query")
    assert (child.path, child.where) == (("encoder", "query"), "encoder/query")
    assert child.train
    assert child.key is context.key
    assert context.where == "(root)"


def test_only_the_key_of_a_context_is_traced():
    context = Context(jax.random.key(0), train=True, path=("a",))
    assert jax.tree.leaves(context) == [context.key]


def test_a_new_key_does_not_retrace_and_another_mode_does():
    traced = []

    @jax.jit
    def run(ctx):
        traced.append(ctx.train)
        return jax.random.bits(ctx.key)

    for seed, train in ((0, False), (1, False), (2, True), (3, True)):
        run(Context(jax.random.key(seed), train=train))
    assert traced == [False, True]


def test_variables_survive_flattening():
    variables = Variables({"a": {"w": 1.0}}, {"b": {"m": 2.0}})
    leaves, structure = jax.tree.flatten(variables)
    assert leaves == [1.0, 2.0]
    assert jax.tree.unflatten(structure, leaves) == variables


def test_the_child_of_variables_holds_what_is_under_its_name_and_else_nothing():
    variables = Variables({"a": {"w": 1.0}}, {"b": {"m": 2.0}})
    assert variables.child("a") == Variables({"w": 1.0}, {})
    assert variables.child("b") == Variables({}, {"m": 2.0})
    assert variables.child("c") == Variables({}, {})


TREES = st.recursive(
    st.integers(),
    lambda inner: st.dictionaries(
        st.text("abc", min_size=1, max_size=3), inner, max_size=3
    ),
    max_leaves=8,
).filter(lambda tree: isinstance(tree, dict))


def walk(tree, path=()):
    if not isinstance(tree, dict):
        return {"/".join(path): tree}
    found = {}
    for name in sorted(tree):
        found |= walk(tree[name], (*path, name))
    return found


@given(TREES)
def test_leaf_paths_are_the_names_from_the_root_in_the_order_of_the_leaves(tree):
    paths = mp.leaf_paths(tree)
    assert paths == walk(tree)
    assert list(paths.values()) == jax.tree.leaves(tree)


def test_leaf_paths_go_through_variables_lists_and_tuples():
    variables = Variables({"a": [1, (2, 3)]}, {"b": 4})
    assert mp.leaf_paths(variables) == {
        "params/a/0": 1,
        "params/a/1/0": 2,
        "params/a/1/1": 3,
        "state/b": 4,
    }


def test_describe_writes_dtype_and_shape_of_every_leaf():
    spec = jax.ShapeDtypeStruct((2, 3), "bfloat16")
    assert describe(spec) == "bfloat16[2, 3]"
    assert describe((np.zeros((), np.uint8), 1.5)) == "(uint8[], float)"
    assert describe(()) == "()"


# Values


def test_mappings_of_one_class_are_equal_exactly_if_their_fields_are():
    assert Scale(2.0) == Scale(2.0)
    assert hash(Scale(2.0)) == hash(Scale(2.0))
    assert Scale(2.0) != Scale(3.0)


def test_mappings_of_two_classes_are_never_equal():
    assert Scale(2.0) != Shift(2.0)
    assert len({Scale(2.0), Shift(2.0), Scale(2.0)}) == 2


def test_a_mapping_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Scale(2.0).start = 3.0


def test_a_mapping_survives_pickling():
    mapping = Scale((2.0, "a", Shift(1)))
    copy = pickle.loads(pickle.dumps(mapping))
    assert copy == mapping
    assert hash(copy) == hash(mapping)


def test_equal_mappings_rebuilt_are_traced_once():
    traced = []

    @functools.partial(jax.jit, static_argnums=0)
    def run(mapping, params, x):
        traced.append(mapping.start)
        return mapping(params, x)

    x = jnp.ones(3)
    for start in (2.0, 2.0, 2.0, 3.0):
        run(Scale(start), Scale(start).init(jax.random.key(0), x).params, x)
    assert traced == [2.0, 3.0]


# Fields

ARRAYS = {
    "numpy": np.ones(2),
    "numpy scalar": np.array(1.0),
    "jax": jnp.ones(2),
    "in a tuple": (1, np.ones(2)),
}
UNHASHABLE = {"list": [1], "dict": {"a": 1}, "set": {1}, "list in a tuple": (1, [2])}
LAMBDAS = {"lambda": lambda x: x, "lambda in a tuple": (1, lambda x: x)}
MADE_OF = {"an array": ARRAYS, "a lambda": LAMBDAS, "Use a tuple": UNHASHABLE}
BAD = [
    pytest.param(value, reason, id=name)
    for reason, values in MADE_OF.items()
    for name, value in values.items()
]


@pytest.mark.parametrize("kind", [Scale, Validated, Grandchild])
@pytest.mark.parametrize(("value", "reason"), BAD)
def test_a_field_without_a_value_is_refused_by_class_and_field(kind, value, reason):
    with pytest.raises(FieldError, match=reason) as caught:
        kind(start=value)
    assert str(caught.value).startswith(f"{kind.__name__}.start: ")


def test_the_field_that_is_named_is_the_bad_one():
    with pytest.raises(FieldError, match=r"^Grandchild\.more: "):
        Grandchild(start=1, more=[2])


@pytest.mark.parametrize(
    "value", [(("a", np.ones(2)),), (("a", lambda x: x),), (("a", [1]),)]
)
def test_a_bad_field_is_found_however_deep_in_tuples_it_lies(value):
    with pytest.raises(FieldError, match=r"^Scale\.start: "):
        Scale(value)


@pytest.mark.parametrize(
    "value",
    [functools.partial(jnp.add, np.ones(2)), functools.partial(lambda x: x)],
    ids=["array", "lambda"],
)
def test_a_partial_of_something_without_a_value_is_refused(value):
    with pytest.raises(FieldError, match=r"^Scale\.start: "):
        Scale(value)


@pytest.mark.parametrize(
    "build",
    [
        lambda: Scale(bytearray(b"a")),
        lambda: Linen(nn.Sequential([nn.Dense(2), nn.relu])),
    ],
    ids=["bytearray", "linen module with a list"],
)
def test_what_cannot_be_hashed_is_refused_when_the_mapping_is_made(build):
    with pytest.raises(FieldError, match="hashable"):
        build()


@pytest.mark.parametrize(
    "kind",
    [
        Dropout,
        mp.losses.CrossEntropy,
        mp.augment.RandomShift,
    ],
)
@pytest.mark.parametrize("value", [np.ones(2), [1], lambda: 1])
def test_a_stock_mapping_that_validates_its_field_refuses_it_the_same_way(kind, value):
    field = dataclasses.fields(kind)[0].name
    with pytest.raises(FieldError, match=rf"^{kind.__name__}\.{field}: "):
        kind(value)


@pytest.mark.parametrize(
    "value", [1, "a", None, (1, ("b", 2.0)), double, jax.nn.relu, Shift(1), np.int64(3)]
)
def test_a_field_may_hold_anything_with_a_value(value):
    assert Scale(value).start is value
    assert Scale(value) == Scale(value)


@dataclasses.dataclass(frozen=True)
class Derived(Mapping):
    """Makes one of its fields itself."""

    size: int = 3
    table: Any = dataclasses.field(init=False)

    def __post_init__(self):
        made = tuple(range(self.size)) if self.size else np.zeros(0)
        object.__setattr__(self, "table", made)


def test_a_mapping_may_make_a_field_itself():
    assert Derived().table == (0, 1, 2)
    assert Derived() == Derived()


def test_a_field_a_mapping_makes_itself_is_checked_too():
    with pytest.raises(FieldError, match=r"^Derived\.table: .* got an array"):
        Derived(0)


@dataclasses.dataclass(frozen=True, eq=False)
class Held(Mapping, by_identity=True):
    """Holds an array, as `compiler.Program` does."""

    array: Any

    def __post_init__(self):
        pass

    def apply(self, variables, x, *, ctx):
        return jnp.broadcast_to(self.array, x.shape), variables.state


def test_a_mapping_by_identity_may_hold_arrays():
    assert Held(np.ones(2)).array.tolist() == [1, 1]


def test_a_mapping_by_identity_equals_itself_only():
    one, two = Held(np.ones(2)), Held(np.ones(2))
    assert one == one
    assert one != two


def test_predict_runs_the_mapping_it_is_given_and_not_another_by_identity():
    x = np.zeros((1, 2), np.float32)
    for number in (1.0, 2.0):
        held = Held(np.full(2, number, np.float32))
        assert mp.train.predict(held, Variables(), x).tolist() == [[number, number]]


# The protocol


def test_a_mapping_without_apply_says_what_to_define():
    with pytest.raises(TypeError, match="Validated: expected a method `apply"):
        Validated()({}, 1.0)


def test_a_mapping_without_init_has_no_variables():
    assert Shift().init(jax.random.key(0), jnp.ones(2)) == Variables({}, {})


def test_calling_a_mapping_is_inference_with_the_given_params_and_state():
    (train, where, params), state = Counted().apply(
        Variables({"w": 1}, {"count": 3}), ctx=Context(train=True, path=("a",))
    )
    assert (train, where, params, state) == (True, "a", {"w": 1}, {"count": 4})
    assert Counted()({"w": 1}, state={"count": 3}) == (False, "(root)", {"w": 1})


def test_a_child_is_given_its_own_variables_path_and_key():
    @dataclasses.dataclass(frozen=True)
    class Probe(Mapping):
        def apply(self, variables, x, *, ctx):
            return (x, ctx.where, ctx.rng() == expected), {"given": variables}

    key = jax.random.key(3)
    expected = fold_name(key, "net/child/")
    variables = Variables({"child": {"w": 1}, "other": 2}, {"child": {"m": 3}})
    seen, given = call("child", Probe(), variables, 5, ctx=Context(key, path=("net",)))
    assert seen == (5, "net/child", True)
    assert given == {"given": Variables({"w": 1}, {"m": 3})}


# Errors


@pytest.mark.parametrize("kind", ERRORS)
def test_every_error_is_a_mapping_error_and_a_built_in_one(kind):
    built_in = (ValueError, TypeError, LookupError)
    assert issubclass(kind, MappingError)
    assert issubclass(kind, built_in)


# The package


def test_importing_the_package_imports_no_layers():
    source = "import sys, mapping; sys.exit('flax' in sys.modules)"
    folder = pathlib.Path(mp.__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", source], cwd=folder, check=False)
    assert done.returncode == 0


@pytest.mark.parametrize(
    "name", ["augment", "data", "errors", "layers", "losses", "metrics", "train"]
)
def test_a_submodule_is_there_when_asked_for(name):
    assert getattr(mp, name).__name__ == f"mapping.{name}"
    assert name in dir(mp)


def test_a_name_the_package_has_not_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        mp.nonsense
