"""Foreign modules become mappings: state, randomness, mode, names, errors."""

import copy
import functools
import pickle
import subprocess
import sys

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.example_libraries import stax

import mapping as mp
from mapping import Built, Context, Lift, Serial, Variables, interop, leaf_paths
from mapping.combinators import Repeat
from mapping.context import fold_name
from mapping.errors import (
    FieldError,
    MissingDependencyError,
    MissingKeyError,
    MissingVariablesError,
    NameCollisionError,
    NotAMappingError,
    ProtocolError,
    ShapeMismatchError,
    UnknownNameError,
)
from mapping.foreign import lenient_promotion
from mapping.interop import Equinox, Haiku, Linen, Nnx, Pair, adapt
from mapping.interop.from_haiku import flat, nested
from mapping.interop.trees import Values, nest
from mapping.testing import check

KEY = jax.random.key(0)
TRAIN = Context(jax.random.key(1), train=True)
X = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)


def same(actual, expected):
    """The same operations, compiled or not."""
    np.testing.assert_allclose(actual, expected, rtol=1e-6, atol=1e-6)


def paths(tree):
    return sorted(leaf_paths(tree))


def moved(old, new):
    assert paths(old) == paths(new)
    new = leaf_paths(new)
    return sorted(p for p, leaf in leaf_paths(old).items() if (leaf != new[p]).any())


# The models


class NnxNet(nnx.Module):
    def __init__(self, width, *, rngs):
        self.layers = nnx.List([nnx.Linear(width, width, rngs=rngs) for _ in range(2)])
        self.norm = nnx.BatchNorm(width, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.offset = nnx.data(jnp.ones((width,)))

    def __call__(self, x):
        for layer in self.layers:
            x = nnx.relu(layer(x))
        return self.dropout(self.norm(x)) + self.offset


class Bare(nnx.Module):
    def __init__(self):
        self.offset = jnp.ones((3,))

    def __call__(self, x):
        return x + self.offset


class EqxNet(eqx.Module):
    layers: list
    norm: eqx.nn.BatchNorm
    dropout: eqx.nn.Dropout
    steps: jax.Array

    def __init__(self, width, *, key):
        self.layers = [
            eqx.nn.Linear(width, width, key=k) for k in jax.random.split(key)
        ]
        self.norm = eqx.nn.BatchNorm(width, "batch", mode="batch")
        self.dropout = eqx.nn.Dropout(0.5)
        self.steps = jnp.arange(3)

    def __call__(self, x, state, *, key=None):
        for layer in self.layers:
            x = jax.nn.relu(layer(x))
        x, state = self.norm(x, state)
        return self.dropout(x, key=key), state


def haiku_net(x, is_training):
    x = jax.nn.relu(hk.nets.MLP([3, 3])(x))
    x = hk.BatchNorm(True, True, 0.9)(x, is_training)
    return hk.dropout(hk.next_rng_key(), 0.5, x) if is_training else x


def pair_init(key, x):
    return {"w": jax.random.normal(key, (x.shape[-1], 3))}, {"count": jnp.zeros(())}


def pair_apply(params, state, x, *, key=None, train=False):
    y = x @ params["w"]
    if train:
        y = y * jax.random.bernoulli(key, 0.5, y.shape).astype(y.dtype)
    return y, {"count": state["count"] + 1}


MODELS = {
    "nnx": Nnx(Built.of(NnxNet, 3)),
    "equinox": Equinox(Built.of(EqxNet, 3), batch_axis="batch"),
    "haiku": Haiku(haiku_net),
    "pair": Pair(pair_init, pair_apply),
}
every_model = pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)


@functools.cache
def made(model):
    return model.init(KEY, X)


# What holds of every adapter


@every_model
def test_state_moves_in_training_only(model):
    variables = made(model)
    assert variables.state
    _, after = model.apply(variables, X, ctx=Context())
    assert moved(variables.state, after) == []
    _, after = model.apply(variables, X, ctx=TRAIN)
    assert moved(variables.state, after) != []


@every_model
def test_randomness_follows_the_context(model):
    variables = made(model)
    first, _ = model.apply(variables, X, ctx=TRAIN)
    again, _ = model.apply(variables, X, ctx=TRAIN)
    other, _ = model.apply(variables, X, ctx=TRAIN.child("elsewhere"))
    assert (first == again).all()
    assert (first != other).any()


@every_model
def test_a_missing_key_is_named_by_path(model):
    with pytest.raises(MissingKeyError, match=r"^net/body \(\w+\): needs a random key"):
        model.apply(made(model), X, ctx=Context(train=True).child("net").child("body"))


@every_model
def test_missing_variables_are_named_by_path(model):
    with pytest.raises(MissingVariablesError, match=r"net \(\w+\): expects variables"):
        model.apply(Variables(), X, ctx=Context().child("net"))


@every_model
def test_params_are_nested_plain_dicts_of_arrays(model):
    def visit(tree):
        assert type(tree) is dict
        for name, value in tree.items():
            assert type(name) is str
            if not isinstance(value, jax.Array):
                visit(value)

    visit(made(model).params)
    visit(made(model).state)


@every_model
def test_an_adapted_model_composes_and_keeps_its_names(model):
    net = Serial(body=model, head=mp.layers.Dense(2))
    variables = net.init(KEY, X)
    assert {f"body/{p}" for p in paths(made(model).params)} < set(
        paths(variables.params)
    )
    assert net(variables.params, X, state=variables.state).shape == (4, 2)


@every_model
def test_an_adapted_model_is_a_value(model):
    again = copy.deepcopy(model)
    assert again == model
    assert hash(again) == hash(model)
    made(model)
    assert pickle.loads(pickle.dumps(model)) == model


def test_a_module_that_exists_is_a_value_too():
    for model in (
        Nnx(NnxNet(3, rngs=nnx.Rngs(0))),
        Equinox(EqxNet(3, key=KEY), batch_axis="batch"),
    ):
        for again in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert again == model
            assert hash(again) == hash(model)
        assert (
            jax.jit(model.init)(KEY, X).params.keys()
            == model.init(KEY, X).params.keys()
        )


def test_a_module_with_values_that_have_no_hash_equals_itself():
    class Listed(eqx.Module):
        names: set

        def __call__(self, x):
            return x

    mapping, other = Equinox(Listed({"a"})), Equinox(Listed({"a"}))
    assert mapping == mapping
    assert hash(mapping) == hash(mapping)
    assert mapping != other
    assert (mapping({}, X) == X).all()


@pytest.mark.parametrize(
    "model",
    [
        Nnx(Built.of(nnx.Linear, 3, 2)),
        Equinox(Built.of(eqx.nn.Linear, 3, 2), batch_axis="batch"),
        Haiku(haiku_net),
        Pair(pair_init, pair_apply),
    ],
    ids=MODELS,
)
def test_adapters_keep_what_is_promised_of_every_mapping(model):
    check(model, X, batched=False, value=False)


@pytest.mark.parametrize("name", ["nnx", "equinox"])
def test_adapted_layers_repeat_in_a_loop(name):
    deep = Repeat(MODELS[name], 2)
    variables = deep.init(KEY, X)
    assert {leaf.shape[0] for leaf in jax.tree.leaves(variables)} == {2}
    y, state = jax.jit(lambda v: deep.apply(v, X, ctx=TRAIN))(variables)
    assert y.shape == X.shape
    assert moved(variables.state, state) != []


# nnx


def test_nnx_names_and_kinds_of_variables():
    variables = made(MODELS["nnx"])
    assert paths(variables.params) == [
        "layers/0/bias",
        "layers/0/kernel",
        "layers/1/bias",
        "layers/1/kernel",
        "norm/bias",
        "norm/scale",
    ]
    assert paths(variables.state) == ["norm/mean", "norm/var", "offset"]


def test_nnx_from_a_key_is_the_module_made_with_that_key():
    mapping, variables = Nnx.of(NnxNet(3, rngs=nnx.Rngs(KEY)))
    same_values = made(MODELS["nnx"])
    for path, leaf in leaf_paths(variables).items():
        same(leaf, leaf_paths(same_values)[path])
    module = NnxNet(3, rngs=nnx.Rngs(KEY))
    module.eval()
    with lenient_promotion():
        same(mapping(variables.params, X, state=variables.state), module(X))


def test_an_nnx_module_adapted_twice_is_one_value_and_starts_from_its_own_arrays():
    one, two, other = (Nnx.of(NnxNet(3, rngs=nnx.Rngs(seed)))[0] for seed in (0, 0, 1))
    assert one == two
    assert hash(one) == hash(two)
    assert one != other
    _, variables = Nnx.of(NnxNet(3, rngs=nnx.Rngs(0)))
    again = Serial(body=one).init(jax.random.key(99), X)
    assert moved(variables.params, again.params["body"]) == []
    assert "NnxNet" in repr(one)
    assert len(repr(one)) < 200


def test_a_bare_array_of_an_nnx_module_that_exists_is_state():
    mapping, variables = Nnx.of(Bare())
    assert paths(variables.state) == ["offset"]
    same(mapping({}, X, state=variables.state), X + 1)
    traced = jax.eval_shape(mapping.init, KEY, X)
    assert paths(traced.state) == ["offset"]


def test_nnx_streams_have_keys_of_their_own_by_path():
    class Two(nnx.Module):
        def __init__(self, *, rngs):
            self.first = nnx.Dropout(0.5, rngs=rngs)
            self.second = nnx.Dropout(0.5, rngs=rngs)

        def __call__(self, x):
            return self.first(x), self.second(x)

    x = jnp.ones((64,))
    (first, second), _ = Nnx(Two).apply(Variables(), x, ctx=TRAIN)
    assert (first != second).any()
    key = jax.random.fold_in(fold_name(TRAIN.rng(), "first/rngs"), jnp.uint32(0))
    assert ((first != 0) == jax.random.bernoulli(key, 0.5, (64,))).all()


def test_nnx_takes_streams_and_flags_by_its_call_too():
    class Asks(nnx.Module):
        def __call__(self, x, *, rngs, train):
            return x + jax.random.uniform(rngs.noise(), x.shape) if train else x

    drawn, _ = Nnx(Asks).apply(Variables(), X, ctx=TRAIN)
    assert ((drawn - X) > 0).all()
    assert (Nnx(Asks)({}, X) == X).all()
    with pytest.raises(MissingKeyError):
        Nnx(Asks).apply(Variables(), X, ctx=Context(train=True))


def test_an_nnx_cache_moves_in_inference_too():
    class Counts(nnx.Module):
        def __init__(self):
            self.seen = nnx.Cache(jnp.zeros(()))
            self.trained = nnx.BatchStat(jnp.zeros(()))

        def __call__(self, x):
            self.seen[...] += 1.0
            self.trained[...] += 1.0
            return x

    mapping = Nnx(Counts)
    variables = mapping.init(KEY, X)
    _, state = mapping.apply(variables, X, ctx=Context())
    assert (float(state["seen"]), float(state["trained"])) == (1.0, 0.0)


def test_stacked_nnx_layers_have_stacked_streams():
    class Layer(nnx.Module):
        def __init__(self, *, rngs):
            self.linear = nnx.Linear(3, 3, rngs=rngs)
            self.dropout = nnx.Dropout(0.5, rngs=rngs)

        def __call__(self, x):
            return self.dropout(self.linear(x))

    class Deep(nnx.Module):
        def __init__(self, *, rngs):
            @nnx.split_rngs(splits=2)
            @nnx.vmap
            def make(rngs):
                return Layer(rngs=rngs)

            self.layers = make(rngs)

        def __call__(self, x):
            @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
            def run(x, layer):
                return layer(x)

            return run(x, self.layers)

    mapping = Nnx(Deep)
    variables = mapping.init(KEY, X)
    assert variables.params["layers"]["linear"]["kernel"].shape == (2, 3, 3)
    assert (mapping.apply(variables, X, ctx=TRAIN)[0] == 0).any()
    assert (mapping(variables.params, X) != 0).all()
    with pytest.raises(MissingKeyError):
        mapping.apply(variables, X, ctx=Context(train=True))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: Nnx(3), r"expected a flax\.nnx module, or a class of modules, got 3"),
        (
            lambda: Nnx(Bare).init(KEY, X),
            r"^offset \(Bare\): .* self\.offset = nnx\.data",
        ),
        (lambda: Nnx(dict).init(KEY, X), r"expected a factory of flax\.nnx modules"),
        (
            lambda: Nnx.of(nnx.eval_shape(lambda: nnx.BatchNorm(2, rngs=nnx.Rngs(0)))),
            r"got ShapeDtypeStruct\..*outside of jit",
        ),
        (
            lambda: jax.jit(lambda k: Nnx.of(nnx.Linear(2, 3, rngs=nnx.Rngs(k)))[1])(
                KEY
            ),
            r"outside of jit",
        ),
    ],
)
def test_what_is_no_nnx_module_is_refused(wrong, message):
    with pytest.raises(FieldError, match=f"(?i){message}"):
        wrong()


# equinox


def test_equinox_names_and_kinds_of_variables():
    variables = made(MODELS["equinox"])
    assert paths(variables.params) == [
        "layers/0/bias",
        "layers/0/weight",
        "layers/1/bias",
        "layers/1/weight",
        "norm/bias",
        "norm/weight",
    ]
    assert paths(variables.state) == [
        "norm/batch_counter",
        "norm/batch_state_index/0",
        "norm/batch_state_index/1",
        "steps",
    ]


def test_equinox_infers_as_equinox_does():
    model, state = eqx.nn.make_with_state(EqxNet)(3, key=KEY)
    whole = eqx.nn.inference_mode(model)
    expected = jax.vmap(whole, in_axes=(0, None), out_axes=(0, None))(X, state)[0]
    for mapping, variables in (
        (MODELS["equinox"], made(MODELS["equinox"])),
        Equinox.of(model, state, batch_axis="batch"),
        Equinox.of(EqxNet(3, key=KEY), batch_axis="batch"),
    ):
        same(mapping(variables.params, X, state=variables.state), expected)


def test_an_equinox_module_without_batch_axis_is_given_what_it_gets():
    mapping, variables = Equinox.of(eqx.nn.MLP(3, 2, 8, 1, key=KEY))
    assert mapping(variables.params, X[0]).shape == (2,)
    assert paths(variables.params)[0] == "layers/0/bias"
    one, two = (Equinox.of(eqx.nn.Linear(3, 2, key=KEY))[0] for _ in range(2))
    assert one == two
    assert hash(one) == hash(two)
    assert one != Equinox.of(eqx.nn.Linear(3, 2, key=jax.random.key(5)))[0]


def test_each_example_of_an_equinox_batch_draws_its_own():
    mapping = Equinox(Built.of(eqx.nn.Dropout, 0.5), batch_axis="batch")
    y, _ = mapping.apply(Variables(), jnp.ones((8, 16)), ctx=TRAIN)
    assert len({tuple(row) for row in y.tolist()}) > 1


class Unreduced(eqx.Module):
    last: eqx.nn.StateIndex

    def __init__(self):
        self.last = eqx.nn.StateIndex(jnp.zeros(3))

    def __call__(self, x, state):
        return x, state.set(self.last, x)


class Forgets(eqx.Module):
    last: eqx.nn.StateIndex

    def __init__(self):
        self.last = eqx.nn.StateIndex(jnp.zeros(3))

    def __call__(self, x, state):
        return x


def test_broken_equinox_modules_are_told_what_to_do():
    unreduced = Equinox(Unreduced, batch_axis="batch")
    with pytest.raises(
        ProtocolError, match=r"\(Unreduced\): expected one new state.*pm"
    ):
        unreduced.apply(unreduced.init(KEY, X), X, ctx=TRAIN)
    forgets = Equinox(Forgets)
    with pytest.raises(
        ProtocolError, match=r"\(Forgets\): a module with state.*`return y, state"
    ):
        forgets.apply(forgets.init(KEY, X), X[0], ctx=TRAIN)
    whole = MODELS["equinox"]
    with pytest.raises(ShapeMismatchError, match=r"inputs with one first axis, the b"):
        whole.apply(made(whole), jnp.ones(()), ctx=TRAIN)
    single = Equinox(Built.of(EqxNet, 3))
    with pytest.raises(ProtocolError, match=r"named batch axis.*batch_axis="):
        single.apply(single.init(KEY, X), X[0], ctx=TRAIN)


def test_what_is_no_equinox_module_is_refused():
    with pytest.raises(
        FieldError, match=r"Equinox\.factory: expected an equinox mod.* 3"
    ):
        Equinox(3)
    with pytest.raises(FieldError, match="expected a factory of equinox modules"):
        Equinox(dict).init(KEY, X)
    model, _ = eqx.nn.make_with_state(EqxNet)(3, key=KEY)
    with pytest.raises(MissingVariablesError, match=r"Equinox\.of\(module, state\)"):
        Equinox(model)


# haiku


def test_haiku_infers_as_haiku_does():
    pair = hk.transform_with_state(haiku_net)
    with lenient_promotion():
        params, state = pair.init(KEY, X, True)
        expected, _ = pair.apply(params, state, None, X, False)
    mapping, variables = MODELS["haiku"], made(MODELS["haiku"])
    assert flat(variables.params).keys() == params.keys()
    same(mapping(variables.params, X, state=variables.state), expected)
    assert "mlp/~/linear_0/w" in paths(variables.params)


@pytest.mark.parametrize(
    "transformed",
    [
        hk.transform(lambda x: hk.Linear(2)(x)),
        hk.without_apply_rng(hk.transform(lambda x: hk.Linear(2)(x))),
        hk.transform_with_state(lambda x: hk.Linear(2)(x)),
    ],
    ids=["transform", "without rng", "with state"],
)
def test_every_kind_of_haiku_transform_is_adapted(transformed):
    mapping = Haiku(transformed)
    assert mapping == Haiku(transformed)
    variables = mapping.init(KEY, X)
    assert paths(variables.params) == ["linear/b", "linear/w"]
    same(mapping(variables.params, X), X @ variables.params["linear"]["w"])
    same(mapping.apply(variables, X, ctx=TRAIN)[0], mapping(variables.params, X))


@pytest.mark.parametrize(
    "tree",
    [
        {"a": {"w": 1}, "a/b": {"w": 2}, "a/~/c": {"w": 3}},
        {"a": {"b": 1}, "a/b": {"w": 2}},
        {"a/b": {"w": 2}, "a": {"b": 1}, "a/b/c": {"w": 3}},
        {"~": {"w": 1}},
        {},
    ],
)
def test_haiku_names_come_back(tree):
    assert flat(nested(tree)) == tree


def test_haiku_state_that_hides_its_names_is_refused():
    def hides(x):
        hk.set_state("slots", {"a": x})
        return x

    with pytest.raises(NameCollisionError, match=r"\(hides\): expected arrays.*own"):
        Haiku(hides).init(KEY, X)


def test_what_is_no_haiku_transform_is_refused():
    with pytest.raises(FieldError, match=r"Haiku\.function.*transform_with_state"):
        Haiku(3)


# pairs


def test_stax_networks_are_adapted():
    init, apply = stax.serial(stax.Dense(5), stax.Relu, stax.Dropout(0.5))
    mapping = Pair(init, apply)
    assert mapping.style == "stax"
    variables = mapping.init(KEY, X)
    assert paths(variables.params) == ["0/0", "0/1"]
    _, params = init(KEY, X.shape)
    key = Context(KEY).rng()
    with lenient_promotion():
        expected = apply(params, X, rng=key)
    same(mapping.apply(variables, X, ctx=Context(KEY))[0], expected)
    with pytest.raises(MissingKeyError, match="needs a random key"):
        mapping(variables.params, X)


def test_pairs_are_called_as_their_arguments_say():
    def tutorial_init(key):
        return [(jnp.ones((3, 2)), jnp.zeros(2))]

    def tutorial(params, x):
        (w, b), *_ = params
        return x @ w + b[None]

    mapping = Pair(tutorial_init, tutorial)
    variables = mapping.init(KEY, X)
    assert paths(variables.params) == ["0/0", "0/1"]
    same(mapping(variables.params, X), X.sum(1, keepdims=True).repeat(2, 1))

    def noisy(params, rng, x, is_training):
        return x + jax.random.normal(rng, x.shape) if is_training else x

    mapping = Pair(lambda_free_init, noisy)
    drawn, _ = mapping.apply(Variables(), X, ctx=TRAIN)
    same(drawn, X + jax.random.normal(TRAIN.rng(), X.shape))
    same(mapping({}, X), X)


def lambda_free_init(key, x):
    return {}


def test_pairs_that_break_their_style_are_told():
    def init(key, x):
        return {}

    def apply(params, state, x):
        return x

    with pytest.raises(ProtocolError, match=r"expected init to return \(params, state"):
        Pair(init, apply).init(KEY, X)
    with pytest.raises(ProtocolError, match=r"net \(apply\): expected apply to return"):
        Pair(pair_init, apply).apply(
            made(MODELS["pair"]), X, ctx=Context().child("net")
        )
    with pytest.raises(FieldError, match=r"Pair\.style: expected one of params"):
        Pair(init, apply, style="torch")
    with pytest.raises(FieldError, match="expected two functions"):
        Pair(init, 3)


# One door


@pytest.mark.parametrize(
    ("thing", "kind"),
    [
        (mp.layers.Dense(2), mp.layers.Dense),
        (nn.Dense(2), Linen),
        (Built.of(nnx.Linear, 3, 2), Nnx),
        (nnx.Linear(3, 2, rngs=nnx.Rngs(0)), Nnx),
        (Built.of(eqx.nn.Linear, 3, 2), Equinox),
        (eqx.nn.Linear(3, 2, key=KEY), Equinox),
        (hk.transform(haiku_net), Haiku),
        (hk.transform_with_state(haiku_net), Haiku),
        ((pair_init, pair_apply), Pair),
        (stax.Dense(2), Pair),
        (jax.nn.relu, Lift),
    ],
)
def test_adapt_recognises(thing, kind):
    assert type(adapt(thing)) is kind


def test_adapt_passes_options_on():
    module = eqx.nn.Linear(3, 2, key=KEY)
    mapping = adapt(module, batch_axis="batch")
    same(mapping(mapping.init(KEY, X).params, X), jax.vmap(module)(X))


def test_adapt_refuses_options_that_nothing_takes():
    for thing, name in ((nn.Dense(2), "Linen"), (stax.Dense(2), "Pair")):
        with pytest.raises(UnknownNameError, match=f"{name}: has no option 'batch_axi"):
            adapt(thing, batch_axis="batch")
    with pytest.raises(UnknownNameError, match="has no option 'batch_axi"):
        adapt(mp.layers.Dense(2), batch_axis="batch")


@pytest.mark.parametrize(
    ("thing", "advice"),
    [
        (optax.adam(1e-3), r"GradientTransformation.*optimizer="),
        (nn.Dense, r"Call the class: adapt\(Dense\(\.\.\.\)\)"),
        (3, "expected a mapping or a function, got int"),
        ((1, 2), "expected a mapping or a function, got tuple"),
    ],
)
def test_adapt_says_what_to_do_with_the_rest(thing, advice):
    with pytest.raises(NotAMappingError, match=advice):
        adapt(thing)


@pytest.mark.torch
def test_adapt_says_what_to_do_with_a_torch_module():
    torch = pytest.importorskip("torch")
    with pytest.raises(NotAMappingError, match=r"interop\.load_torch"):
        adapt(torch.nn.Linear(2, 3))


def test_a_missing_library_is_named_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "haiku", None)
    monkeypatch.delitem(sys.modules, "mapping.interop.from_haiku")
    with pytest.raises(
        MissingDependencyError, match=r'pip install "mapping\[interop\]"'
    ):
        _ = interop.Haiku
    with pytest.raises(AttributeError, match="no attribute 'Torch'"):
        _ = interop.Torch
    assert "to_equinox" in dir(interop)


def test_importing_interop_imports_no_other_library():
    code = (
        "import sys, mapping.interop; "
        "sys.exit(bool({'equinox', 'haiku', 'torch', 'flax.nnx'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


# Trees


def test_arrays_as_values_hold_keys_and_every_dtype():
    arrays = [KEY, jnp.ones(2, jnp.bfloat16), np.arange(3), jnp.zeros(())]
    back = Values(arrays).restore()
    assert jnp.array_equal(jax.random.key_data(back[0]), jax.random.key_data(KEY))
    assert [x.dtype for x in back[1:]] == [jnp.bfloat16, jnp.int32, jnp.float32]
    assert Values(arrays) == Values(back[:2] + arrays[2:])
    assert Values(arrays) != Values(arrays[:2])
    assert Values(arrays) != 3


def test_two_arrays_with_one_path_are_refused():
    with pytest.raises(NameCollisionError, match=r"^a/b: expected a path for each"):
        nest([(("a", "b"), 1), (("a", "b"), 2)])
    with pytest.raises(NameCollisionError, match=r"^a/b: "):
        nest([(("a",), 1), (("a", "b"), 2)])
