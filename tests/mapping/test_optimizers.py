"""Optimizers against optax used by hand and against loops in numpy."""

import copy
import dataclasses
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import mapping as mp
from mapping import Built, Context, Mapping, Variables, leaf_paths, optimizers
from mapping.config import from_config, to_config
from mapping.errors import (
    FieldError,
    MissingVariablesError,
    ProtocolError,
    ShapeMismatchError,
    UnknownPathError,
)
from mapping.layers import Dense
from mapping.losses import MeanSquaredError
from mapping.optimizers import (
    Optimizer,
    adam,
    adamw,
    as_transform,
    decay_mask,
    freeze,
    gradual,
    layerwise_decay,
    partition,
    sgd,
)
from mapping.registry import build, entries
from mapping.train import TrainStep, fit

KEY = jax.random.key(0)
TRAIN = Context(train=True)


def random(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


PARAMS = {
    "embed": {"kernel": random(4, 3), "bias": random(3, seed=1)},
    "block": {"kernel": random(3, 3, seed=2), "bias": random(3, seed=3)},
    "head": {"kernel": random(3, 2, seed=4), "bias": random(2, seed=5)},
}
EVERYWHERE = (*leaf_paths(PARAMS),)


def gradients(step):
    return jax.tree.map(lambda p: jnp.cos(3 * p + step).astype(p.dtype), PARAMS)


def update(transform, gradients, state, params):
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        return jax.jit(transform.update)(gradients, state, params)


def trained(optimizer, steps=5, params=PARAMS):
    """The params after each step, and the last state."""
    transform = as_transform(optimizer)
    state, seen = transform.init(params), []
    for step in range(steps):
        updates, state = update(transform, gradients(step), state, params)
        params = optax.apply_updates(params, updates)
        seen.append(leaf_paths(params))
    return seen, state


def assert_same(got, wanted, **tolerance):
    for one, other in zip(got, wanted, strict=True):
        for path, leaf in one.items():
            if tolerance:
                np.testing.assert_allclose(leaf, other[path], **tolerance)
            else:
                np.testing.assert_array_equal(leaf, other[path])


# Descriptions by value


def test_a_described_optimizer_is_what_it_describes():
    schedule = optax.cosine_decay_schedule(0.1, 5)
    described = adamw(
        Built.of(optax.cosine_decay_schedule, 0.1, 5),
        weight_decay=0.1,
        mask=decay_mask("*/kernel"),
    )
    kernels = jax.tree_util.tree_map_with_path(
        lambda path, _: path[-1].key == "kernel", PARAMS
    )
    by_hand = optax.adamw(schedule, weight_decay=0.1, mask=kernels)
    assert_same(trained(described)[0], trained(by_hand)[0])


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (adam(1e-3), Optimizer.of(optax.adam, 1e-3)),
        (adam(1e-3), adam(learning_rate=1e-3)),
        (adam(1e-3, b1=0.8), Optimizer.of(optax.adam, b1=0.8, learning_rate=1e-3)),
        (optimizers.nadam(1e-3), adam(1e-3, nesterov=True)),
        (
            sgd(Built.of(optax.linear_schedule, 1.0, 0.0, 10)),
            sgd(Built.of(optax.linear_schedule, 1.0, 0.0, 10)),
        ),
        (partition({"*": adam(1e-3)}), partition({"*": adam(1e-3)})),
        (freeze(), freeze()),
        (layerwise_decay(sgd(1.0), 0.5, ["*"]), layerwise_decay(sgd(1.0), 0.5, ("*",))),
        (
            gradual(sgd(1.0), {"*": (0, 2)}, steps_per_epoch=3),
            gradual(sgd(1.0), {"*": (0, 2)}, steps_per_epoch=3),
        ),
        (freeze() >> sgd(1.0), freeze() >> sgd(1.0)),
    ],
    ids=[
        "of",
        "by name",
        "by position",
        "partial",
        "schedule",
        "partition",
        "freeze",
        "layerwise",
        "gradual",
        "chain",
    ],
)
def test_equal_descriptions_are_equal_and_survive_every_copy(one, other):
    assert one == other
    assert hash(one) == hash(other)
    assert copy.deepcopy(one) == one
    assert pickle.loads(pickle.dumps(one)) == one
    assert from_config(to_config(one)) == one
    step = TrainStep(Dense(1), MeanSquaredError(), one)
    assert step == TrainStep(Dense(1), MeanSquaredError(), other)


def test_different_descriptions_differ():
    assert adam(1e-3) != adam(1e-2)
    assert adam(1e-3) != adamw(1e-3)
    assert partition({"a": adam(1.0), "*": freeze()}) != partition(
        {"*": freeze(), "a": adam(1.0)}
    )


FACTORIES = {
    entry.name: getattr(optax, entry.name, getattr(optax.contrib, entry.name, None))
    for entry in entries("optimizer")
    if entry.name not in ("chain", "partition")
}
STOCK = sorted(name for name, factory in FACTORIES.items() if factory is not None)


@pytest.mark.parametrize("name", STOCK)
def test_stock_optimizers_are_optax_s_of_that_name(name):
    options = {"momentum": 0.8} if name in ("sgd", "lars", "rmsprop") else {}
    described = build("optimizer", name, learning_rate=0.1, **options)
    assert described == getattr(optimizers, name)(0.1, **options)
    params = {"kernel": random(2, 2)}
    transforms = (described.transform(), FACTORIES[name](0.1, **options))
    states = [t.init(params) for t in transforms]
    for _ in range(2):
        results = [
            update(t, params, state, params)
            for t, state in zip(transforms, states, strict=True)
        ]
        np.testing.assert_array_equal(*(u["kernel"] for u, _ in results))
        states = [state for _, state in results]


def test_the_usual_optimizers_are_there():
    assert {"adam", "adamw", "lamb", "lion", "muon", "rmsprop", "sgd"} < {*STOCK}
    assert len(STOCK) == 16


def test_a_custom_optimizer_is_a_subclass_that_makes_a_transform():
    @dataclasses.dataclass(frozen=True)
    class SignDescent(Optimizer):
        rate: float

        def transform(self):
            return optax.chain(optax.scale_by_sign(), optax.scale(-self.rate))

    assert_same(trained(SignDescent(0.1))[0], trained(optax.sign_sgd(0.1))[0])


def test_chained_optimizers_hand_their_updates_on():
    clip = Optimizer.of(optax.clip_by_global_norm, 0.5)
    by_hand = optax.chain(optax.clip_by_global_norm(0.5), optax.adamw(0.1))
    for chained in (
        clip >> adamw(0.1),
        clip >> optax.adamw(0.1),
        optax.clip_by_global_norm(0.5) >> adamw(0.1),
        Optimizer.of(optax.chain, clip, adamw(0.1)),
    ):
        assert_same(trained(chained)[0], trained(by_hand)[0])
    a, b, c = clip, sgd(1.0), freeze()
    assert (a >> b) >> c == a >> (b >> c)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: adam(learning_rte=1e-3), r"^adam: .*Nearest: learning_rate"),
        (lambda: adam(), r"^adam: missing a required argument: 'learning_rate'"),
        (lambda: adam(1e-3, learning_rate=1e-3), r"^adam: multiple values"),
        (lambda: Optimizer.of(optax.adam(1e-3)), "got what one has made"),
        (lambda: Optimizer.of("adam"), "expected a factory"),
        (lambda: adam(jnp.ones(())), r"Described\.options: .*array"),
        (lambda: adamw(1e-3, mask={"a": True}), r"Described\.options: "),
        (lambda: sgd(lambda step: 0.1), "lambda"),
        (lambda: adam(1e-3) >> optax.adam, r"^Chain\.links\[1\]: expected an optax"),
        (
            lambda: partition({"*": optax.adam}),
            r"^partition\['\*'\]: expected an optax",
        ),
        (lambda: partition({"*": 0.1}), r"^partition\['\*'\]: .*got 0\.1"),
        (lambda: partition({}), r"^partition: expected a rule at least"),
        (lambda: partition({3: freeze()}), r"^partition: expected globs"),
        (lambda: decay_mask(), r"^decay_mask: expected a rule"),
        (lambda: layerwise_decay(sgd(1.0), 0, ["*"]), r"^layerwise_decay\.decay: "),
        (lambda: layerwise_decay(sgd(1.0), 0.5, ["*", "*"]), "each once"),
        (lambda: layerwise_decay(None, 0.5, ["*"]), r"^layerwise_decay\.optimizer: "),
        (
            lambda: gradual(sgd(1.0), {"*": -1}, steps_per_epoch=1),
            r"^gradual\['\*'\]: ",
        ),
        (lambda: gradual(sgd(1.0), {"*": (2, 2)}, steps_per_epoch=1), "from, until"),
        (lambda: gradual(sgd(1.0), {"*": "1"}, steps_per_epoch=1), "an epoch >= 0"),
        (lambda: gradual(sgd(1.0), {"*": 0}, steps_per_epoch=0), "steps_per_epoch: "),
        (
            lambda: gradual(optax.sgd, {"*": 0}, steps_per_epoch=1),
            "optimizer: expected",
        ),
    ],
)
def test_what_describes_no_optimizer_is_refused_by_name(make, message):
    with pytest.raises(FieldError, match=message):
        make()


# As a mapping


def test_an_optimizer_is_a_mapping_whose_state_is_its_moments_by_path():
    optimizer = partition({"head/*": adam(0.1), "*": sgd(0.1, momentum=0.9)})
    v = optimizer.init(KEY, jax.eval_shape(lambda: PARAMS))
    assert v.params == {}
    moments = leaf_paths(v.state)
    assert moments["inner_states/head/*/inner_state/0/mu/head/kernel"].shape == (3, 2)
    assert moments["inner_states/*/inner_state/0/trace/embed/bias"].shape == (3,)
    assert not [path for path in moments if "trace/head" in path or "mu/embed" in path]
    params, seen = PARAMS, []
    for step in range(3):
        updates, state = optimizer.apply(v, gradients(step), params, ctx=TRAIN)
        assert jax.tree.structure(state) == jax.tree.structure(v.state)
        v, params = Variables({}, state), optax.apply_updates(params, updates)
        seen.append(leaf_paths(params))
    # Eager and compiled arithmetic differ in the last bit.
    assert_same(seen, trained(optimizer, 3)[0], rtol=1e-6, atol=1e-7)


def test_an_optimizer_whose_state_is_one_bare_array_is_a_mapping_too():
    count = optax.GradientTransformation(
        lambda params: jnp.zeros(()), lambda u, state, params=None: (u, state + 1)
    )
    optimizer = freeze() >> count
    bare = dataclasses.make_dataclass(
        "Bare",
        [],
        bases=(Optimizer,),
        frozen=True,
        namespace={"transform": lambda _: count},
    )()
    for each in (optimizer, bare):
        v = each.init(KEY, PARAMS)
        _, state = each.apply(v, PARAMS, PARAMS, ctx=TRAIN)
        assert [float(leaf) for leaf in jax.tree.leaves(state)] == [1.0]


def test_gradients_of_other_params_are_refused_by_path():
    optimizer = adam(0.1)
    v = optimizer.init(KEY, PARAMS)
    less = {name: PARAMS[name] for name in ("embed", "block")}
    with pytest.raises(ShapeMismatchError, match=r"got none for head/bias"):
        optimizer.apply(v, less, PARAMS, ctx=TRAIN)
    with pytest.raises(ShapeMismatchError, match=r"one too many for head/bias"):
        optimizer.apply(v, PARAMS, less, ctx=TRAIN)
    other = mp.select(PARAMS).at("head/bias").set(jnp.ones(7))
    with pytest.raises(ShapeMismatchError, match=r"\[2\] for head/bias, got .*7"):
        optimizer.apply(v, other, PARAMS, ctx=TRAIN)
    with pytest.raises(MissingVariablesError, match=r"expected the moment 0/count"):
        optimizer.apply(Variables(), PARAMS, PARAMS, ctx=TRAIN)


@dataclasses.dataclass(frozen=True)
class HeavyBall(Mapping):
    """Momentum, as a mapping of one's own."""

    rate: float
    share: float = 0.9

    def init(self, key, params):
        return Variables({}, {"velocity": jax.tree.map(jnp.zeros_like, params)})

    def apply(self, variables, gradients, params, *, ctx):
        velocity = jax.tree.map(
            lambda v, g: self.share * v + g, variables.state["velocity"], gradients
        )
        updates = jax.tree.map(lambda v: -self.rate * v, velocity)
        return updates, {"velocity": velocity}


@dataclasses.dataclass(frozen=True)
class Langevin(Mapping):
    """Noise instead of gradients."""

    def apply(self, variables, gradients, params, *, ctx):
        noise = jax.tree.map(lambda g: jax.random.normal(ctx.rng(), g.shape), gradients)
        return noise, variables.state


@dataclasses.dataclass(frozen=True)
class Forgetful(Mapping):
    """Returns one thing where two are asked for."""

    def apply(self, variables, gradients, params, *, ctx):
        return gradients


def test_a_mapping_from_gradients_to_updates_is_an_optimizer():
    wanted = trained(optax.sgd(0.1, momentum=0.9))[0]
    assert_same(trained(HeavyBall(0.1))[0], wanted, rtol=1e-6)
    halves = partition({"head/*": HeavyBall(0.1), "*": sgd(0.1, momentum=0.9)})
    assert_same(trained(halves)[0], wanted, rtol=1e-6)


def test_the_randomness_of_a_mapping_that_optimizes_is_that_of_the_step():
    step = TrainStep(Dense(1), MeanSquaredError(), Langevin())
    batch = (jnp.ones((2, 3)), jnp.ones((2, 1)))
    own = step.init(KEY, batch)
    results = []
    for _ in range(2):
        _, state = step.apply(own, batch, ctx=TRAIN)
        results.append(np.asarray(state["params"]["kernel"]))
    _, later = step.apply(Variables({}, state), batch, ctx=TRAIN)
    np.testing.assert_array_equal(*results)
    first = results[0] - own.state["params"]["kernel"]
    second = later["params"]["kernel"] - results[0]
    assert not np.allclose(first, second)


def test_a_mapping_that_breaks_the_protocol_is_named():
    step = TrainStep(Dense(1), MeanSquaredError(), Forgetful())
    batch = (jnp.ones((2, 3)), jnp.ones((2, 1)))
    own = step.init(KEY, batch)
    with pytest.raises(ProtocolError, match=r"^optimizer \(Forgetful\): apply should"):
        step.apply(own, batch, ctx=TRAIN)


# Partition


@pytest.mark.parametrize("optimizer", [adamw(0.1), sgd(0.1, momentum=0.9)], ids=str)
def test_a_partition_of_one_rule_is_that_rule(optimizer):
    assert_same(trained(partition({"*": optimizer}))[0], trained(optimizer)[0])


def test_each_group_is_trained_as_if_it_were_alone():
    rules = {"head/*": adamw(0.1), "*/bias": sgd(0.5), "*": adamw(0.01)}
    together = trained(partition(rules))[0][-1]
    alone = {path: trained(rule)[0][-1] for path, rule in rules.items()}
    for path, leaf in together.items():
        glob = next(g for g in rules if mp.tree.matches(g, path))
        np.testing.assert_array_equal(leaf, alone[glob][path])
    assert {"head/bias", "head/kernel"} < together.keys()


def test_what_is_frozen_stays_bit_for_bit_and_has_no_moments():
    optimizer = partition({"head/*": adamw(0.1, weight_decay=0.5), "*": freeze()})
    seen, state = trained(optimizer)
    start = leaf_paths(PARAMS)
    for path in EVERYWHERE:
        frozen = not path.startswith("head/")
        same = np.asarray(seen[-1][path]).tobytes() == np.asarray(start[path]).tobytes()
        assert same == frozen, path
    moments = [leaf for leaf in jax.tree.leaves(state) if jnp.ndim(leaf)]
    size = sum(leaf.size for leaf in jax.tree.leaves(PARAMS["head"]))
    assert sum(leaf.size for leaf in moments) == 2 * size


def test_the_first_rule_wins():
    first = trained(
        partition({"head/bias": freeze(), "head/*": sgd(1.0), "*": freeze()})
    )
    moved = {p for p in EVERYWHERE if (first[0][-1][p] != leaf_paths(PARAMS)[p]).any()}
    assert moved == {"head/kernel"}


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        (
            {"head/*": freeze(), "embed/kernel": freeze()},
            r"^partition: expected a rule for each of 6 params, got none for "
            r"block/bias, block/kernel, embed/bias\. Add one, last '\*'",
        ),
        (
            {"heed/*": freeze(), "*": freeze()},
            r"the rule 'heed/\*' names none of 6 params\. Nearest: head/",
        ),
        (
            {"*": freeze(), "head/*": sgd(1.0)},
            r"'head/\*' is never reached: head/bias falls under '\*', which comes",
        ),
    ],
    ids=["a param without a rule", "a rule without a param", "a rule too late"],
)
def test_rules_that_do_not_fit_the_params_are_refused(rules, message):
    for optimizer in (
        partition(rules),
        gradual(sgd(1.0), dict.fromkeys(rules, 1), steps_per_epoch=1),
        layerwise_decay(sgd(1.0), 0.5, list(rules)),
    ):
        kind = type(optimizer).__name__.lower().replace("layerwised", "layerwise_d")
        with pytest.raises(UnknownPathError, match=message.replace("partition", kind)):
            as_transform(optimizer).init(PARAMS)


def test_many_params_without_a_rule_are_counted():
    params = {f"layer_{i}": jnp.ones(1) for i in range(9)}
    with pytest.raises(UnknownPathError, match=r"layer_1, .*layer_5 and 3 more\."):
        as_transform({"layer_0": freeze()}).init(params)


def test_partitions_nest():
    inner = partition({"*/bias": sgd(1.0), "*": sgd(0.5)})
    nested = partition({"head/*": inner, "*": freeze()})
    flat = partition({"head/bias": sgd(1.0), "head/*": sgd(0.5), "*": freeze()})
    assert_same(trained(nested)[0], trained(flat)[0])


# Weight decay by path


def test_a_decay_mask_says_by_path_what_decays():
    assert leaf_paths(decay_mask("*/kernel")(PARAMS)) == {
        path: path.endswith("kernel") for path in EVERYWHERE
    }
    assert leaf_paths(decay_mask("*", but=("*/bias", "head/*"))(PARAMS)) == {
        path: path in ("embed/kernel", "block/kernel") for path in EVERYWHERE
    }
    with pytest.raises(UnknownPathError, match=r"kernels: names none of 6 leaves"):
        as_transform(adamw(0.1, mask=decay_mask("*/kernels"))).init(PARAMS)


def test_a_decay_mask_works_inside_a_partition():
    masked = adamw(0.1, weight_decay=0.5, mask=decay_mask("*/kernel"))
    split = partition({"head/*": masked, "*": masked})
    assert_same(trained(split)[0], trained(masked)[0])
    plain = trained(adamw(0.1, weight_decay=0.0))[0][-1]
    decayed = trained(masked)[0][-1]
    for path in EVERYWHERE:
        same = bool((plain[path] == decayed[path]).all())
        assert same == path.endswith("bias")


# Layer-wise decay

ORDER = ("embed/*", "block/*", "head/*")


@pytest.mark.parametrize("factory", [sgd, adamw], ids=["sgd", "adamw"])
def test_layerwise_decay_is_a_learning_rate_for_each_layer(factory):
    decayed = trained(layerwise_decay(factory(0.1), 0.7, ORDER))[0]
    rates = dict(zip(ORDER, (0.1 * 0.7**2, 0.1 * 0.7, 0.1), strict=True))
    by_hand = partition({glob: factory(rate) for glob, rate in rates.items()})
    assert_same(decayed, trained(by_hand)[0], rtol=1e-6, atol=1e-7)


def test_layerwise_decay_in_numpy():
    params = {name: np.asarray(x["bias"], np.float64) for name, x in PARAMS.items()}
    for step in range(5):
        for depth, name in enumerate(("head", "block", "embed")):
            slope = np.asarray(gradients(step)[name]["bias"], np.float64)
            params[name] = params[name] - 0.1 * 0.7**depth * slope
    last = trained(layerwise_decay(sgd(0.1), 0.7, ORDER))[0][-1]
    for name, wanted in params.items():
        np.testing.assert_allclose(last[f"{name}/bias"], wanted, rtol=1e-5, atol=1e-6)


def test_updates_in_half_precision_stay_so():
    params = jax.tree.map(lambda p: p.astype(jnp.bfloat16), PARAMS)
    transform = as_transform(layerwise_decay(sgd(0.1), 0.7, ORDER))
    updates, _ = transform.update(params, transform.init(params), params)
    assert {leaf.dtype for leaf in jax.tree.leaves(updates)} == {jnp.dtype("bfloat16")}


X = np.asarray(random(32, 3))
Y = (X @ np.float32([[1], [-2], [3]])).astype(np.float32)
NET = mp.Serial(
    hidden=Dense(8, kernel_init=jax.nn.initializers.uniform(1.0)),
    head=Dense(1, kernel_init=jax.nn.initializers.uniform(1.0)),
)
BATCH = (X[:8], Y[:8])
WAIT = {"head/*": 0, "*": (1, 3)}


# Gradual unfreezing

WINDOWS = {"head/*": 0, "block/*": (1, 3), "embed/kernel": 2, "embed/bias": None}
MOVES = {
    "head/kernel": [0, 1, 2, 3],
    "head/bias": [0, 1, 2, 3],
    "block/kernel": [1, 2],
    "block/bias": [1, 2],
    "embed/kernel": [2, 3],
    "embed/bias": [],
}


@pytest.mark.parametrize(
    "optimizer",
    [
        sgd(0.1, momentum=0.9),
        adamw(0.1, weight_decay=0.3),
        optimizers.lion(0.1),
        optimizers.rmsprop(0.1),
        optimizers.lamb(0.1),
        optimizers.adafactor(0.1),
    ],
    ids=lambda value: value.kind,
)
def test_params_move_in_the_epochs_of_their_window_and_in_no_other(optimizer):
    seen, _ = trained(gradual(optimizer, WINDOWS, steps_per_epoch=2), steps=8)
    before = [leaf_paths(PARAMS), *seen]
    for path in EVERYWHERE:
        moved = [
            step // 2
            for step in range(8)
            if (before[step][path] != before[step + 1][path]).any()
        ]
        assert moved == [epoch for epoch in MOVES[path] for _ in range(2)], path


def test_the_moments_of_what_is_frozen_stay_and_start_as_new():
    optimizer = gradual(adam(0.1), {"head/*": 2, "*": (0, 1)}, steps_per_epoch=1)
    transform = as_transform(optimizer)
    states = [transform.init(PARAMS)]
    for step in range(4):
        states.append(update(transform, gradients(step), states[-1], PARAMS)[1])
    groups = [state.inner_states for state in states]

    def same(glob, one, other):
        inner = [groups[i][glob].inner_state.inner_state for i in (one, other)]
        leaves = [[np.asarray(x).tobytes() for x in jax.tree.leaves(i)] for i in inner]
        return leaves[0] == leaves[1]

    assert same("head/*", 0, 2)
    assert not same("head/*", 2, 3)
    assert not same("*", 0, 1)
    assert same("*", 1, 4)
    # Unfrozen at epoch 2, adam's bias correction starts from one there.
    late, _ = update(transform, gradients(2), states[2], PARAMS)
    fresh = as_transform(adam(0.1))
    first, _ = update(fresh, gradients(2), fresh.init(PARAMS), PARAMS)
    np.testing.assert_array_equal(late["head"]["kernel"], first["head"]["kernel"])


def test_params_that_never_train_have_no_moments():
    never = gradual(adam(0.1), {"head/*": 0, "*": None}, steps_per_epoch=1)
    moments = jax.tree.leaves(as_transform(never).init(PARAMS))
    assert sum(leaf.size for leaf in moments if leaf.ndim) == 2 * (3 * 2 + 2)


def test_no_epoch_is_traced_anew():
    step = TrainStep(
        NET, MeanSquaredError(), gradual(adam(0.1), WAIT, steps_per_epoch=1)
    )
    own, traces = step.init(KEY, BATCH), []

    @jax.jit
    def run(own):
        traces.append(1)
        return step.apply(own, BATCH, ctx=TRAIN)[1]

    for _ in range(4):
        own = Variables({}, run(own))
    assert traces == [1]


def test_a_gradual_optimizer_without_waiting_is_the_optimizer():
    assert_same(
        trained(gradual(adamw(0.1), {"*": 0}, steps_per_epoch=3))[0],
        trained(adamw(0.1))[0],
    )


# Training with each form

FORMS = {
    "optax": lambda: optax.adam(0.03),
    "described": lambda: adam(0.03),
    "built": lambda: Built.of(optax.adam, 0.03),
    "dict": lambda: {"head/*": adam(0.03), "*": optax.adam(0.03)},
    "multi-steps": lambda: optax.MultiSteps(optax.adam(0.03), 1),
    "chain": lambda: Optimizer.of(optax.clip_by_global_norm, 1e9) >> adam(0.03),
    "gradual": lambda: gradual(adam(0.03), {"*": 0}, steps_per_epoch=4),
}


def run(optimizer, epochs=3):
    return fit(
        NET,
        (X, Y),
        loss=MeanSquaredError(),
        optimizer=optimizer,
        epochs=epochs,
        batch_size=8,
    )


@pytest.fixture(scope="module")
def reference():
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        return run(optax.adam(0.03))


@pytest.mark.parametrize("form", FORMS)
def test_fit_trains_with_every_form_alike(form, reference):
    fitted = run(FORMS[form]())
    assert fitted.history.column("loss")[-1] < fitted.history.column("loss")[0]
    assert_same(
        [leaf_paths(fitted.variables.params)],
        [leaf_paths(reference.variables.params)],
        rtol=1e-5,
        atol=1e-6,
    )


def test_fit_trains_with_a_mapping_and_freezes_by_path():
    fitted = run({"head/*": HeavyBall(0.01), "*": freeze()})
    losses = fitted.history.column("loss")
    assert losses[-1] < losses[0]
    start = TrainStep(NET, MeanSquaredError(), sgd(1.0)).init(jax.random.key(0), BATCH)
    hidden, begun = (
        leaf_paths(tree["hidden"])
        for tree in (fitted.variables.params, start.state["params"])
    )
    assert_same([hidden], [begun])


@pytest.mark.parametrize("wrong", [optax.adam, adam, 0.1, None, "adam"], ids=range(5))
def test_fit_refuses_what_is_no_optimizer(wrong):
    said = (
        r"^TrainStep\.optimizer: expected an optax transform, got .* Call it, such as"
    )
    with pytest.raises(FieldError, match=said):
        run(wrong)


def test_equal_training_steps_are_traced_once():
    traces = []

    def update(step, state, batch):
        traces.append(step)
        return step.apply(Variables({}, state), batch, ctx=TRAIN)

    compiled = jax.jit(update, static_argnums=0)
    for _ in range(2):
        rules = {"head/*": adamw(0.1, mask=decay_mask("*/kernel")), "*": freeze()}
        step = TrainStep(NET, MeanSquaredError(), rules)
        compiled(step, step.init(KEY, BATCH).state, BATCH)
    assert len(traces) == 1
