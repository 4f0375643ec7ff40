"""The algebra: composition is a monoid, and names are the paths of everything."""

import copy
import dataclasses
import functools
import pickle
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mapping import Context, Lift, Mapping, Serial, Variables, leaf_paths
from mapping.core import fold_name
from mapping.errors import (
    FieldError,
    MappingError,
    MissingKeyError,
    NameCollisionError,
    NotAMappingError,
)
from mapping.layers import BatchNorm, Dense, Dropout, Flatten

WIDTH = 2
X = np.linspace(-1, 1, 3 * WIDTH, dtype=np.float32).reshape(3, WIDTH)
SPEC = jax.ShapeDtypeStruct(X.shape, X.dtype)

LAWS = settings(deadline=None, max_examples=150, database=None)
RUNS = settings(deadline=None, max_examples=6, database=None)


@dataclasses.dataclass(frozen=True)
class Add(Mapping):
    """Takes two inputs, has no params."""

    def apply(self, variables, x, y, *, ctx):
        return x + y, variables.state


@dataclasses.dataclass(frozen=True)
class Counter(Mapping):
    """Passes its input on and counts in its state how often it ran."""

    def init(self, key, *specs):
        return Variables({}, {"count": jnp.zeros((), jnp.int32)})

    def apply(self, variables, x, *, ctx):
        return x, {"count": variables.state["count"] + 1}


@dataclasses.dataclass(frozen=True)
class Noise(Mapping):
    """Adds noise in [0, 0.4), in every mode."""

    def apply(self, variables, x, *, ctx):
        return x + jax.random.uniform(ctx.rng(), x.shape, maxval=0.4), variables.state


def double(x):
    return 2 * x


def swap(x):
    return x[::-1]


def power(x, *, exponent=1, scale=1.0):
    return scale * x**exponent


def split(x):
    return x, x + 1


def first(pair):
    return pair[0]


def repickle(x):
    return pickle.loads(pickle.dumps(x))


def fail(x):
    raise RuntimeError("no")


def parts(names):
    """Anything that can stand beside `>>`; chosen names come from `names`."""
    bare = st.sampled_from(
        [Dense(WIDTH), Dense(WIDTH, use_bias=False), BatchNorm(), Flatten(), Dropout()]
    )
    functions = st.sampled_from([double, jnp.tanh, Lift.of(power, exponent=2)])
    step = bare | functions

    def serial(inner):
        unnamed = st.lists(inner, max_size=3)
        named = st.dictionaries(st.sampled_from(names), inner, max_size=2)
        return st.builds(lambda u, n: Serial(*u, **n), unnamed, named)

    nested = st.builds(Serial, step) | st.builds(lambda s: Serial(block=s), step)
    return bare | serial(step | nested)


F, G, H = (parts([f"{letter}{i}" for i in range(3)]) for letter in "fgh")
NESTED = Serial(Serial(Dense(WIDTH)))


def outcome(net):
    """What a composition makes of one key and input: variables and output."""
    variables = net.init(jax.random.key(0), SPEC)
    ctx = Context(jax.random.key(1), train=True)
    output, state = net.apply(variables, X, ctx=ctx)
    tree = {"params": variables.params, "output": output, "state": state}
    return {path: np.asarray(leaf).tolist() for path, leaf in leaf_paths(tree).items()}


# Laws


@LAWS
@given(F, G, H)
@example(NESTED, Serial(), double)
def test_composition_is_associative_as_values(f, g, h):
    left, right = (f >> g) >> h, f >> (g >> h)
    assert left == right
    assert hash(left) == hash(right)
    assert getattr(left, "names", ()) == getattr(right, "names", ())


@RUNS
@given(F, G, H)
@example(NESTED, Serial(), double)
def test_composition_is_associative_in_params_state_and_outputs(f, g, h):
    assert outcome((f >> g) >> h) == outcome(f >> (g >> h))


@LAWS
@given(F)
@example(Serial(Dense(WIDTH)))
def test_the_empty_composition_is_the_identity_on_both_sides(f):
    assert Serial() >> f == f
    assert f >> Serial() == f


def test_the_empty_composition_returns_what_it_is_given():
    one, state = Serial().apply(Variables({}, {"s": 1}), X, ctx=Context())
    assert one is X
    assert state == {"s": 1}
    assert Serial()({}, 1, 2) == (1, 2)
    assert Serial() >> Serial() == Serial()


@LAWS
@given(F, G)
@example(Serial(), NESTED)
def test_composition_runs_the_steps_of_both_in_order(f, g):
    def steps(mapping):
        return mapping.steps if isinstance(mapping, Serial) else ((None, mapping),)

    both = f >> g
    assert steps(both) == steps(f) + steps(g)


@LAWS
@given(F)
def test_a_function_lifts_on_either_side(f):
    assert f >> double == f >> Lift(double)
    assert double >> f == Lift(double) >> f
    assert jnp.tanh >> f == Lift(jnp.tanh) >> f


def test_a_numpy_function_on_the_left_is_composed_and_not_broadcast():
    assert np.add >> Dense(WIDTH) == Serial(np.add, Dense(WIDTH))


@pytest.mark.parametrize("order", [(double, swap), (swap, double)])
def test_a_composition_computes_what_the_functions_do_one_after_the_other(order):
    expected = functools.reduce(lambda x, f: f(x), order, X)
    np.testing.assert_array_equal(Serial(*order)({}, X), expected)
    np.testing.assert_array_equal((Lift(order[0]) >> order[1])({}, X), expected)


# Names


@LAWS
@given(st.lists(F, max_size=5), st.dictionaries(st.sampled_from("abc"), G, max_size=3))
def test_names_are_unique_and_the_chosen_ones_stay(unnamed, named):
    names = Serial(*unnamed, **named).names
    assert len(set(names)) == len(names) == len(unnamed) + len(named)
    assert names[len(unnamed) :] == tuple(named)


def test_names_not_chosen_are_derived_from_the_kind_and_numbered():
    net = Dense(2) >> jax.nn.relu >> BatchNorm() >> Dense(3) >> jax.nn.relu >> Dense(4)
    assert net.names == ("dense", "relu", "batch_norm", "dense_2", "relu_2", "dense_3")


def test_a_derived_name_gives_way_to_a_chosen_one():
    assert Serial(Dense(2), dense=Dense(3)).names == ("dense_2", "dense")


def test_the_names_do_not_depend_on_the_bracketing():
    bracketed = Dense(2) >> (jax.nn.relu >> (Dense(2) >> double))
    assert bracketed.names == ("dense", "relu", "dense_2", "double")


def test_the_names_are_the_keys_of_params_and_state_and_only_where_there_are_any():
    net = Serial(a=Dense(3), b=jnp.tanh, c=BatchNorm(), d=Serial(e=Counter()))
    variables = net.init(jax.random.key(0), SPEC)
    assert set(variables.params) == {"a", "c"}
    assert set(leaf_paths(variables.state)) == {"c/mean", "c/var", "d/e/count"}


def test_the_names_are_the_scopes_of_the_traced_equations():
    net = Serial(encoder=Serial(act=jnp.sin), head=jnp.cos)
    jaxpr = jax.make_jaxpr(lambda x: net({}, x))(X)
    scopes = {
        str(eqn.source_info.name_stack) for eqn in jaxpr.eqns if eqn.primitive.name
    }
    assert scopes == {"encoder/act", "head"}


@pytest.mark.parametrize(
    "build",
    [
        lambda: Serial(a=Dense(2)) >> Serial(a=Dense(3)),
        lambda: Serial(a=Dense(2)) >> double >> Serial(a=Dense(2)),
        lambda: Serial.from_fields(steps=(("a", Dense(2)), ("a", Dense(2)))),
    ],
    ids=["side by side", "further on", "from steps"],
)
def test_one_name_chosen_twice_is_an_error_that_says_how_to_keep_both(build):
    with pytest.raises(NameCollisionError, match=r"\['a'\] twice.*Serial\(first="):
        build()


def test_a_name_that_would_be_a_path_is_refused():
    with pytest.raises(MappingError, match="a/b"):
        Serial(**{"a/b": Dense(2)})


# Values


def build_net():
    return Serial(
        hidden=Dense(4), norm=BatchNorm(), act=jnp.tanh, drop=Dropout(0.3)
    ) >> Dense(2)


def test_equal_compositions_rebuilt_are_traced_once():
    traced = []

    @functools.partial(jax.jit, static_argnums=0)
    def run(net, variables, x):
        traced.append(net)
        return net.apply(variables, x, ctx=Context())[0]

    variables = build_net().init(jax.random.key(0), SPEC)
    for _ in range(3):
        run(build_net(), variables, X)
    assert len(traced) == 1


def test_each_step_of_a_composition_is_part_of_its_value():
    assert Serial(a=Dense(2)) != Serial(a=Dense(3))
    assert Serial(a=Dense(2)) != Serial(b=Dense(2))
    assert Serial(Dense(2), double) != Serial(double, Dense(2))
    assert Serial(Dense(2)) != Serial(dense=Dense(2))


@RUNS
@given(F, G)
def test_reading_the_names_changes_no_value(f, g):
    net, untouched = Serial(f, g), Serial(f, g)
    net.names
    assert net == untouched
    assert hash(net) == hash(untouched)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, repickle])
def test_a_composition_survives_copying(duplicate):
    net = Serial(a=Dense(2), b=double, c=Lift.of(power, exponent=2)) >> Dropout(0.1)
    again = duplicate(net)
    assert again == net
    assert hash(again) == hash(net)
    assert again.names == net.names


@pytest.mark.parametrize("duplicate", [copy.deepcopy, repickle])
@pytest.mark.parametrize(
    "function",
    [
        pytest.param(jax.nn.relu, id="relu"),
        pytest.param(jax.nn.silu, id="silu"),
        pytest.param(jnp.tanh, id="tanh"),
        pytest.param(jax.nn.gelu, id="gelu"),
        pytest.param(jax.nn.softmax, id="softmax"),
        pytest.param(np.tanh, id="numpy"),
    ],
)
def test_a_composition_with_a_stock_activation_survives_copying(function, duplicate):
    net = Dense(2) >> function
    assert duplicate(net) == net


# Randomness

ONES = np.ones((4, 64), np.float32)


def mask(net, seed=0):
    ctx = Context(jax.random.key(seed), train=True)
    variables = net.init(jax.random.key(9), ONES)
    return np.asarray(net.apply(variables, ONES, ctx=ctx)[0] == 0)


def test_one_key_and_path_give_one_mask():
    assert (mask(Serial(a=Dropout())) == mask(Serial(a=Dropout()))).all()


def test_another_key_gives_another_mask():
    assert (mask(Serial(a=Dropout())) != mask(Serial(a=Dropout()), 1)).any()


@pytest.mark.parametrize(
    "other", [Serial(b=Dropout()), Serial(a=Serial(a=Dropout())), Dropout()]
)
def test_another_path_gives_another_mask(other):
    assert (mask(Serial(a=Dropout())) != mask(other)).any()


@pytest.mark.parametrize(
    "other",
    [
        Serial(first=jnp.tanh, a=Dropout(), last=jnp.square),
        Serial(first=Flatten(), a=Dropout()),
        Serial(first=Dropout(0.0), a=Dropout()),
        Serial(a=Dropout()) >> Counter() >> double,
    ],
)
def test_inserting_layers_changes_no_other_layer_s_mask(other):
    assert (mask(other) == mask(Serial(a=Dropout()))).all()


def test_two_layers_that_draw_drop_what_each_would_drop_alone():
    both = mask(Serial(new=Dropout(), a=Dropout()))
    alone = mask(Serial(new=Dropout())), mask(Serial(a=Dropout()))
    assert (both == (alone[0] | alone[1])).all()


def test_inserting_a_layer_that_draws_changes_no_other_layer_s_mask():
    net = Serial(a=Dropout(), b=Noise())
    ctx = Context(jax.random.key(0), train=True)
    noisy = net.apply(Variables(), ONES, ctx=ctx)[0]
    dropped = mask(Serial(a=Dropout()))
    assert (np.asarray(noisy < 0.5) == dropped).all()


def test_inserting_a_layer_changes_no_other_layer_s_params():
    short = Serial(a=Dense(3), b=Dense(2))
    long = Serial(a=Dense(3), new=Dense(3), b=Dense(2))
    key = jax.random.key(0)
    one, two = (net.init(key, SPEC).params for net in (short, long))
    np.testing.assert_array_equal(one["a"]["kernel"], two["a"]["kernel"])
    np.testing.assert_array_equal(one["b"]["kernel"], two["b"]["kernel"])


def test_two_layers_of_one_shape_start_from_different_params():
    params = Serial(a=Dense(2), b=Dense(2)).init(jax.random.key(0), SPEC).params
    assert (params["a"]["kernel"] != params["b"]["kernel"]).any()


def test_each_step_is_initialised_with_the_key_of_its_name():
    key = jax.random.key(0)
    params = Serial(a=Serial(b=Dense(2))).init(key, SPEC).params
    alone = Dense(2).init(fold_name(fold_name(key, "a"), "b"), SPEC).params
    np.testing.assert_array_equal(params["a"]["b"]["kernel"], alone["kernel"])


def test_a_missing_key_is_an_error_that_names_the_whole_path():
    net = Serial(encoder=Serial(drop=Dropout(0.5)))
    with pytest.raises(MissingKeyError) as caught:
        net.apply(Variables(), X, ctx=Context(train=True))
    assert str(caught.value).startswith("encoder/drop: needs a random key")


# Steps


def test_the_first_step_takes_every_input_and_the_others_what_came_before():
    net = Serial(add=Add(), split=split, first=first)
    np.testing.assert_array_equal(net({}, X, X), 2 * X)


def test_a_tuple_is_one_value_to_the_next_step():
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'y'"):
        Serial(split=split, add=Add())({}, X)


def test_every_step_s_new_state_is_returned_and_nothing_else_is_lost():
    net = Serial(a=Counter(), b=double, c=Serial(d=Counter()))
    state = {"a": {"count": 1}, "c": {"d": {"count": 5}}, "other": 7}
    output, new = net.apply(Variables({}, state), 2, ctx=Context())
    assert output == 4
    assert new == {"a": {"count": 2}, "c": {"d": {"count": 6}}, "other": 7}
    assert state == {"a": {"count": 1}, "c": {"d": {"count": 5}}, "other": 7}


def test_init_from_specs_equals_init_from_examples():
    net = build_net()
    one, two = (leaf_paths(net.init(jax.random.key(0), x)) for x in (SPEC, X))
    assert {k: v.tolist() for k, v in one.items()} == {
        k: v.tolist() for k, v in two.items()
    }


def test_init_computes_nothing_but_the_variables():
    def loud(x):
        assert isinstance(x, jax.core.Tracer)
        return x

    Serial(a=Dense(3), loud=loud, b=Dense(2)).init(jax.random.key(0), X)


def test_a_step_that_draws_in_every_mode_can_be_initialised():
    net = Serial(a=Dense(3), noise=Noise(), b=Dense(2))
    params = net.init(jax.random.key(0), SPEC).params
    assert params["b"]["kernel"].shape == (3, 2)


# Lifting


def test_options_are_passed_on_whatever_their_order():
    one = Lift.of(power, exponent=2, scale=3.0)
    two = Lift.of(power, scale=3.0, exponent=2)
    assert one == two
    assert hash(one) == hash(two)
    assert one({}, 2.0) == 12.0


def test_a_lifted_function_passes_the_state_on():
    state = {"s": 1}
    assert Lift(double).apply(Variables({}, state), 2, ctx=Context()) == (4, state)


def test_a_lifted_function_is_called_by_its_own_name():
    assert Lift(power).kind == "power"
    assert Serial(jnp.add, Lift.of(power, exponent=2)).names == ("add", "power")


def test_a_lifted_partial_equals_itself_rebuilt():
    def build():
        return Lift(functools.partial(power, exponent=2))

    assert build() == build()


def test_a_partial_with_positional_arguments_is_refused_and_told_what_to_do():
    with pytest.raises(FieldError, match=r"Lift\.of\(function, name=value\)"):
        Dense(2) >> functools.partial(power, 3.0)


def test_a_function_that_fails_keeps_its_error_and_says_where_it_was():
    net = Serial(encoder=Serial(act=fail))
    with pytest.raises(RuntimeError, match="no") as caught:
        net({}, X)
    assert "in encoder/act (fail), given float32[3, 2]" in caught.value.__notes__


def test_a_function_that_fails_in_init_says_the_whole_path_too():
    net = Serial(encoder=Serial(act=fail))
    with pytest.raises(RuntimeError, match="no") as caught:
        net.init(jax.random.key(0), X)
    assert "in encoder/act (fail), given float32[3, 2]" in caught.value.__notes__


# Wrong things composed


COMPOSE = pytest.mark.parametrize(
    "compose",
    [
        lambda x: Dense(2) >> x,
        lambda x: Serial(x),
        lambda x: Serial(step=x),
    ],
    ids=[">>", "position", "keyword"],
)


@COMPOSE
def test_a_class_in_place_of_a_mapping(compose):
    with pytest.raises(NotAMappingError, match=r"Call it: Flatten\(\.\.\.\)"):
        compose(Flatten)


@COMPOSE
@pytest.mark.parametrize("module", [nn.Dense(2), nn.Dense], ids=["it", "its class"])
def test_a_flax_linen_module(compose, module):
    with pytest.raises(NotAMappingError, match=r"mapping\.layers\.Linen\(module\)"):
        compose(module)


@COMPOSE
def test_a_module_that_holds_its_arrays(compose):
    with pytest.raises(MappingError):
        compose(nnx.Linear(2, 2, rngs=nnx.Rngs(0)))


@COMPOSE
@pytest.mark.parametrize("value", [3, "dense", None, [Dense(2)], {"a": Dense(2)}])
def test_what_cannot_be_called(compose, value):
    kind = type(value).__name__
    with pytest.raises(NotAMappingError, match=f"or a function, got {kind}"):
        compose(value)


@COMPOSE
def test_a_lambda(compose):
    with pytest.raises(FieldError, match=r"^Lift\.function: .* got a lambda"):
        compose(lambda x: x)


@pytest.mark.parametrize("value", [3, "dense", None, [Dense(2)]])
def test_what_cannot_be_called_is_refused_on_the_left_too(value: Any):
    with pytest.raises(NotAMappingError, match="a mapping or a function"):
        value >> Dense(2)


@dataclasses.dataclass(frozen=True)
class Forgets(Mapping):
    """Returns its output alone."""

    def apply(self, variables, x, *, ctx):
        return x


@dataclasses.dataclass(frozen=True)
class Bare(Mapping):
    """Makes params without Variables."""

    def init(self, key, x):
        return {"scale": 1.0}


@pytest.mark.parametrize(
    ("step", "said"),
    [(Forgets(), r"encoder/step \(Forgets\): apply should return"),
     (Bare(), r"encoder/step \(Bare\): init should return Variables")],
)  # fmt: skip
def test_a_layer_that_breaks_the_protocol_is_told_by_path(step, said):
    net = Serial(encoder=Serial(step=step))
    with pytest.raises(MappingError, match=said):
        net.init(jax.random.key(0), SPEC)


def test_an_input_in_place_of_the_key_is_told():
    with pytest.raises(MappingError, match=r"expected a random key first, got float32"):
        Dense(2).init(X)


@pytest.mark.parametrize("features", [0, -1, "8", 2.5, True])
def test_features_are_counted_in_whole_numbers(features):
    with pytest.raises(FieldError, match=r"Dense\.features: expected a whole number"):
        Dense(features)
