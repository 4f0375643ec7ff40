"""Names and configurations: what is built by name, written as JSON and read again."""

import dataclasses
import importlib.metadata
import json
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
import pytest

import mapping as mp
from mapping import registry
from mapping.core import Mapping
from mapping.errors import ConfigError, RegistrationError, UnknownNameError
from mapping.layers import BatchNorm, Conv, Dense, Dropout, Flatten, MaxPool
from mapping.registry import build, entries, lookup, register


def again(value):
    return mp.from_config(json.loads(json.dumps(mp.to_config(value), allow_nan=False)))


@register("function", "test_cube")
def cube(x):
    return x**3


NETS = [
    Conv(8, (3, 3), padding=((1, 2), (0, 1)))
    >> BatchNorm()
    >> jax.nn.relu
    >> MaxPool(),
    mp.Serial(body=Flatten() >> Dense(3), drop=Dropout(0.25), head=cube),
    Dense(4, kernel_init=mp.Built.of(jax.nn.initializers.normal, 0.02)),
    mp.Lift.of(jax.nn.gelu, approximate=False),
    mp.Lift.of(cube) >> jnp.tanh,
    mp.Branch(jnp.sin, Dense(2), join="concat"),
    mp.Branch(jnp.sin, jnp.cos, join=jnp.add),
    mp.Ensemble(Dense(2), Dense(3), weights=(1.0, 2.0), join="vote"),
    mp.Residual(Dense(3), shortcut=Dense(3)),
    mp.Repeat(mp.Residual(Dense(3) >> jax.nn.gelu), 4, remat="dots_saveable"),
    mp.Capture(mp.Frozen(mp.Vmap(Dense(2), in_axes=(0, None))), "a/*", "b"),
    mp.Shared(Dense(2) >> Dense(2), mp.Tie("dense_2/kernel", "dense/kernel")),
    mp.Parallel(a=Dense(1), b=mp.Serial()),
]


@pytest.mark.parametrize("net", NETS)
def test_a_configuration_is_json_and_rebuilds_an_equal_mapping(net):
    assert again(net) == net
    assert hash(again(net)) == hash(net)


VALUES = [
    None, True, 3, -0.5, "same", (), (1, (2.0, None)), math.inf, -math.inf, 2j,
    jnp.dtype("bfloat16"), jnp.float32, jax.nn.relu, optax.squared_error, nn.max_pool,
    frozenset({"b", "a"}),
    mp.Built.of(optax.cosine_decay_schedule, 1e-3, decay_steps=10),
]  # fmt: skip


@pytest.mark.parametrize("value", VALUES)
def test_what_a_field_may_hold_survives(value):
    made = again(value)
    assert made == value
    assert type(made) is type(value)


def test_nan_survives():
    assert math.isnan(again(math.nan))


def test_a_partial_keeps_its_parts():
    import functools

    made = again(functools.partial(jax.nn.leaky_relu, negative_slope=0.2))
    assert made.func is jax.nn.leaky_relu
    assert made.keywords == {"negative_slope": 0.2}


@pytest.mark.parametrize(
    ("config", "error", "said"),
    [
        ({"is": "layer/dens", "features": 1}, UnknownNameError, r"Nearest: dense"),
        ({"is": "layr/dense"}, UnknownNameError, r"layer/"),
        ({"is": "layer/dense", "featurs": 1}, UnknownNameError,
         r"layer/dense: has no field 'featurs'\. Nearest: features"),
        ({"is": "layer/dense"}, RegistrationError,
         r"missing a required argument: 'features'"),
        ({"is": "combinator/serial", "stpes": []}, UnknownNameError, r"steps"),
        ({"is": "combinator/serial"}, RegistrationError, r"'steps'"),
        ({"steps": []}, ConfigError, r"\(root\): expected a value.*Name what it is"),
        ({"is": "combinator/serial", "steps": [["a", {}]]}, ConfigError,
         r"steps\[0\]\[1\]"),
        ({"is": "function", "name": "os.system"}, UnknownNameError, r"'os\.system'"),
        ({"is": "function", "name": "jax.nn.rellu"}, UnknownNameError, r"relu"),
        ({"is": "function", "name": "jax.nn.__loader__"}, UnknownNameError, "neither"),
        ({"is": "function", "name": "function/nope"}, UnknownNameError, "nope"),
        ({"is": "dtype", "name": "floot"}, ConfigError, "dtype"),
        ({"is": "float"}, ConfigError, "float"),
        ({"is": "partial", "function": 3}, ConfigError, "partial"),
        (object(), ConfigError, r"\(root\)"),
    ],
)  # fmt: skip
def test_a_bad_configuration_says_where_and_what_is_near(config, error, said):
    with pytest.raises(error, match=said):
        mp.from_config(config)


def test_what_cannot_be_written_names_its_field():
    with pytest.raises(ConfigError, match=r"Serial.*hidden.*not_registered|neither"):
        mp.to_config(mp.Serial(hidden=not_registered))


def not_registered(x):
    return x


def test_a_mapping_that_is_not_registered_is_told_how():
    @dataclasses.dataclass(frozen=True)
    class Own(Mapping):
        pass

    with pytest.raises(ConfigError, match=r'Own is not registered.*register\("layer"'):
        mp.to_config(mp.Serial(own=Own()))


def test_all_kinds_can_be_registered_and_built():
    for kind in ("layer", "model", "loss", "optimizer", "pass"):
        register(kind, "test_of_kinds")(Holder)
        assert build(kind, "test_of_kinds", 3) == Holder(3)
        assert "test_of_kinds" in [entry.name for entry in entries(kind)]


@dataclasses.dataclass(frozen=True)
class Holder:
    value: int


def test_a_taken_name_is_refused_but_the_same_class_may_come_again():
    register("layer", "test_taken")(Holder)
    register("layer", "test_taken")(Holder)
    with pytest.raises(RegistrationError, match=r"layer/test_taken: expected a free"):
        register("layer", "test_taken")(cube)


def test_an_unknown_kind_lists_the_kinds():
    with pytest.raises(RegistrationError, match=r"'lawyer'.*layer, model, loss"):
        register("lawyer", "x")
    with pytest.raises(RegistrationError, match=r"'lawyer'"):
        lookup("lawyer", "x")


def test_a_package_announces_its_own_by_entry_points(monkeypatch):
    point = importlib.metadata.EntryPoint(
        "test_from_afar", "fractions:Fraction", "mapping.layer"
    )

    def entry_points(group):
        return [point] if group == point.group else []

    monkeypatch.setattr(registry.importlib.metadata, "entry_points", entry_points)
    assert "test_from_afar" in [entry.name for entry in entries("layer")]
    assert build("layer", "test_from_afar", 1, 2) == 0.5
    with pytest.raises(UnknownNameError, match="test_from_near"):
        build("layer", "test_from_near")


def test_built_makes_one_thing_of_equal_descriptions():
    schedule = mp.Built.of(optax.linear_schedule, 1.0, 0.0, transition_steps=4)
    assert (
        schedule.make()
        is mp.Built.of(optax.linear_schedule, 1.0, 0.0, transition_steps=4).make()
    )
    assert float(schedule(1)) == 0.75


def test_built_refuses_a_lambda():
    with pytest.raises(mp.errors.FieldError, match=r"Built\.function.*lambda"):
        mp.Built.of(lambda: 1)
