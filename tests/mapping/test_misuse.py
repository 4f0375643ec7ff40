"""What goes wrong in other people's hands ends in an error that says so."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mapping as mp
from mapping.core import Context, Mapping, Variables
from mapping.errors import (
    ConfigError,
    DataError,
    FieldError,
    MissingKeyError,
    MissingVariablesError,
    NameCollisionError,
    NotAMappingError,
    ProtocolError,
    SelectorError,
    ShapeMismatchError,
    UnknownNameError,
)
from mapping.layers import BatchNorm, Dense, Dropout

KEY = jax.random.key(0)
X = jax.random.normal(jax.random.key(1), (5, 4))
TRAIN = Context(key=jax.random.key(2), train=True)


@dataclasses.dataclass(frozen=True)
class Returns(Mapping):
    what: str

    def apply(self, variables, x, *, ctx):
        return {"y": x, "pair": (x, x), "none": (x, None), "list": [x, {}]}[self.what]


@pytest.mark.parametrize("what", ["y", "pair", "none", "list"])
@pytest.mark.parametrize(
    "around", [lambda m: m, mp.Serial, mp.Residual, mp.Vmap, mp.Frozen,
               lambda m: mp.Repeat(m, 2), lambda m: mp.Ensemble(m, size=2)],
    ids=["bare", "serial", "residual", "vmap", "frozen", "repeat", "ensemble"],
)  # fmt: skip
def test_an_apply_that_returns_something_else_is_told_everywhere(around, what):
    with pytest.raises(ProtocolError, match=r"apply should return \(outputs, new st"):
        around(Returns(what))({}, X)


def test_a_subclass_without_its_decorator_is_refused():
    class Width(mp.Model):
        def __init__(self, width):
            self.width = width

    class Rate(Dropout):
        other: float = 0.5

    for forgotten in (lambda: Width(3), lambda: Rate(0.1)):
        with pytest.raises(FieldError, match=r"frozen dataclass.*all be equal"):
            forgotten()


def test_inputs_in_place_of_params_are_told():
    with pytest.raises(MissingVariablesError, match=r"expects a dict of params first"):
        Dense(2)(X, {})


@pytest.mark.parametrize("key", [jax.random.split(KEY), jnp.zeros((2, 2), "uint32")])
def test_several_keys_in_place_of_one_are_told(key):
    with pytest.raises(MissingKeyError, match=r"expected one random key"):
        Dense(2).init(key, X)
    with pytest.raises(MissingKeyError, match=r"one random key"):
        mp.Repeat(Dropout(0.5), 2).apply(
            Variables(), X, ctx=Context(key=key, train=True)
        )


@dataclasses.dataclass(frozen=True)
class Thrice(mp.Model):
    def parts(self):
        return {"drop": Dropout(0.5)}

    def forward(self, run, x):
        return run.drop(run.drop(run.drop(x)))


def test_each_call_of_a_shared_part_draws_anew():
    y, _ = Thrice().apply(Variables(), jnp.ones(8000), ctx=TRAIN)
    assert abs(float((y > 0).mean()) - 0.125) < 0.02
    assert abs(float(y.mean()) - 1) < 0.2


@dataclasses.dataclass(frozen=True)
class Auxiliary(mp.Model):
    def parts(self):
        return {"body": Dense(3), "aux": Dense(2)}

    def forward(self, run, x):
        x = run.body(x)
        return (x, run.aux(x)) if run.train else x


def test_a_part_used_in_training_alone_has_its_params():
    v = Auxiliary().init(KEY, X)
    assert sorted(v.params) == ["aux", "body"]
    assert Auxiliary().apply(v, X, ctx=TRAIN)[0][1].shape == (5, 2)


@dataclasses.dataclass(frozen=True)
class Forgets(mp.Model):
    def parts(self):
        return {"body": Dense(3)}

    def forward(self, run, x):
        run.body(x)


def test_a_forward_that_returns_nothing_is_told():
    v = Forgets().init(KEY, X)
    with pytest.raises(ProtocolError, match=r"Forgets\): forward should return"):
        Forgets()(v.params, X)


@dataclasses.dataclass(frozen=True, init=False, repr=False)
class Halved(mp.Serial):
    def apply(self, variables, *inputs, ctx):
        y, state = super().apply(variables, *inputs, ctx=ctx)
        return y / 2, state


def test_a_serial_of_ones_own_stays_whole_in_a_chain():
    chained = Halved(jnp.abs) >> jnp.negative
    np.testing.assert_allclose(chained({}, X), -jnp.abs(X) / 2)


def test_integers_and_floats_that_python_holds_equal_have_their_own_shapes():
    ints = jax.ShapeDtypeStruct((2,), "int32")
    wide, whole = (mp.Lift.of(jnp.clip, min=a, max=b) for a, b in ((0.0, 1.0), (0, 1)))
    assert wide == whole
    with jax.numpy_dtype_promotion("standard"):
        assert mp.outline(whole, ints)[1].dtype == "int32"
        assert mp.outline(wide, ints)[1].dtype == "float32"


def flipped(x):
    return jnp.where(x > 0, 1.0, 0.0)


def test_a_repeat_does_not_mind_a_weak_dtype():
    net = mp.Repeat(flipped, 2)
    net.init(KEY, X)
    np.testing.assert_array_equal(net({}, X), flipped(flipped(X)))


def test_ensembles_do_not_average_or_count_what_they_cannot():
    with pytest.raises(ShapeMismatchError, match=r"floating answers for a mean.*vote"):
        mp.Ensemble(jnp.sign, jnp.abs)({}, jnp.array([2, -3, 4]))
    with pytest.raises(ShapeMismatchError, match=r"axis of classes to vote on"):
        mp.Ensemble(jnp.sum, jnp.mean, join="vote")({}, X)
    votes = mp.Ensemble(jnp.isnan, jnp.isfinite, jnp.isfinite, join="vote")({}, X)
    assert votes.dtype == bool
    assert votes.all()
    with pytest.raises(FieldError, match=r"Ensemble\.weights"):
        mp.Ensemble(jnp.sin, jnp.cos, weights=(float("nan"), 1.0))


def test_a_step_called_join_does_not_lose_its_variables_to_the_join():
    with pytest.raises(NameCollisionError, match=r"another name than join"):
        mp.Branch.from_fields(steps=(("join", Dense(2)),), join=Dense(2))


def test_params_of_another_shape_do_not_broadcast_in_a_lifted_function():
    layer = mp.Lift.of(jax.nn.leaky_relu, negative_slope=mp.Param((-1,), 0.1))
    with pytest.raises(ShapeMismatchError, match=r"slope expects the shape \(4,\)"):
        layer({"negative_slope": jnp.ones((1,))}, X)


def test_params_at_a_tied_path_are_not_dropped():
    net = Dense(4) >> Dense(4)
    tied = mp.Shared(net, mp.Tie("dense_2/kernel", to="dense/kernel"))
    with pytest.raises(ShapeMismatchError, match=r"no params at dense_2/kernel"):
        tied(net.init(KEY, X).params, X)


def test_what_is_frozen_under_a_vmap_does_not_move_by_a_rounding():
    x = jax.random.normal(KEY, (7, 5, 4))
    net = mp.Vmap(mp.Frozen(Dense(3)))
    v = net.init(KEY, x)
    _, state = net.apply(v, x, ctx=TRAIN)
    jax.tree.map(np.testing.assert_array_equal, state, v.state)


@dataclasses.dataclass(frozen=True)
class Centred(Mapping):
    def apply(self, variables, x, *, ctx):
        return x - jax.lax.pmean(x, "rows"), variables.state


def test_a_named_axis_is_there_in_init_too():
    net = mp.Vmap(Dense(3) >> Centred() >> BatchNorm(), axis_name="rows")
    v = net.init(KEY, X[:, None])
    assert net(v.params, X[:, None], state=v.state).shape == (5, 1, 3)


def test_the_users_own_error_says_where():
    def picky(x):
        raise ValueError("too wet")

    with pytest.raises(ValueError, match="too wet") as caught:
        mp.Serial(body=mp.Serial(act=picky))({}, X)
    assert any("body/act" in note for note in caught.value.__notes__)


@pytest.mark.parametrize("name", ["load", "save", "fromfile", "from_dlpack", "linalg",
                                  "pi", "set_printoptions"])  # fmt: skip
def test_a_configuration_cannot_reach_files_memory_or_settings(name):
    with pytest.raises(UnknownNameError, match=r"no function of arrays alone"):
        mp.from_config({"is": "function", "name": f"jax.numpy.{name}"})


@pytest.mark.parametrize(
    "fields",
    [{"steps": 3}, {"steps": [3]}, {"steps": [["a"]]}, {"steps": [["a", 3]]}],
    ids=json.dumps,
)
def test_malformed_fields_are_an_error_of_the_configuration(fields):
    with pytest.raises((ConfigError, mp.errors.NotAMappingError)):
        mp.from_config({"is": "combinator/serial", **fields})


@dataclasses.dataclass(frozen=True)
class Holds(mp.Model):
    rate: float = 0.5

    def parts(self):
        return {"drop": Dropout(self.rate)}


def test_surgery_does_not_skip_what_a_model_makes():
    net = mp.Serial(a=Holds(), b=Dropout(0.5))
    with pytest.raises(SelectorError, match=r"a \(Holds\) makes its part 'drop'"):
        mp.select(net).at(Dropout)
    changed = mp.select(net).at(Holds).set(Holds(0.0))
    assert changed.steps[0][1] == Holds(0.0)
    assert mp.select(net).at("b").set(Dropout(0.0)).steps[1][1] == Dropout(0.0)


def test_metrics_without_data_to_measure_them_on_are_not_ignored():
    with pytest.raises(DataError, match=r"validation data to measure \['accuracy'\]"):
        mp.train.fit(
            Dense(2), (X, jnp.zeros(5, int)), loss=mp.losses.CrossEntropy(),
            optimizer=mp.optimizers.sgd(0.1), epochs=1,
            metrics={"accuracy": mp.metrics.Accuracy()},
        )  # fmt: skip


def test_a_mapping_with_its_variables_is_not_a_mapping():
    pair = (Dense(2), Dense(2).init(KEY, X))
    with pytest.raises(NotAMappingError, match=r"tuple that begins with a Dense"):
        mp.Serial(pair)


def test_variables_left_out_say_how_each_call_takes_them():
    net = mp.Serial(norm=BatchNorm())
    v = net.init(KEY, X)
    with pytest.raises(MissingVariablesError, match=r"state=variables\.state"):
        net(v.params, X)


def test_a_loss_under_check_is_told_of_the_flag():
    with pytest.raises(mp.errors.ConformanceError, match=r"Pass batched=False"):
        mp.testing.check(mp.losses.MeanSquaredError(), X, X)
