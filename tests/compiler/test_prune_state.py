"""A plan carried out on whole training states: training goes on where it was."""

import functools
import os
import subprocess
import sys

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.training.train_state import TrainState
from jax.sharding import AbstractMesh, AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import mapping as mp
from compiler.errors import PlanError
from compiler.events import Events
from compiler.passes.prune.plan import Plan
from compiler.passes.prune.plan.state import cut, scatter
from mapping.core import leaf_paths
from mapping.train import TrainStep
from tests.compiler.zoo import normal

WIDTH, GONE = 6, (0, 2, 5)
PARAMS = {
    "first": {"kernel": normal(4, WIDTH), "bias": normal(WIDTH, seed=1)},
    "second": {"kernel": normal(WIDTH, 3, seed=2), "bias": normal(3, seed=3)},
}
SHAPES = {
    "first/kernel": (4, WIDTH),
    "first/bias": (WIDTH,),
    "second/kernel": (WIDTH, 3),
    "second/bias": (3,),
}
PLAN = Plan.of(
    {
        "first/kernel": {1: GONE},
        "first/bias": {0: GONE},
        "second/kernel": {0: GONE},
    },
    SHAPES,
)
X, Y = normal(8, 4, seed=4), normal(8, 3, seed=5)


def mlp(params, x):
    """Of whatever width its parameters have; a unit without weights is none."""
    hidden = jax.nn.relu(x @ params["first"]["kernel"] + params["first"]["bias"][None])
    return hidden @ params["second"]["kernel"] + params["second"]["bias"][None]


def loss(params):
    return ((mlp(params, X) - Y) ** 2).mean()


LABELS = {"first": {"kernel": "a", "bias": "b"}, "second": {"kernel": "b", "bias": "a"}}
OPTIMIZERS = {
    "sgd": optax.sgd(0.1),
    "momentum": optax.sgd(0.1, momentum=0.9, nesterov=True),
    "adam": optax.adam(0.01),
    "adamw masked": optax.adamw(
        0.01, weight_decay=0.1, mask=lambda p: jax.tree.map(lambda x: x.ndim > 1, p)
    ),
    "lion": optax.lion(0.01),
    "lamb": optax.lamb(0.01),
    "chain": optax.chain(
        optax.clip_by_global_norm(0.5), optax.adam(0.01), optax.ema(0.9)
    ),
    "scheduled": optax.inject_hyperparams(optax.adam)(
        optax.linear_schedule(0.1, 0.01, 9)
    ),
    "partition": optax.partition(
        {"a": optax.adam(0.01), "b": optax.sgd(0.1, 0.9)}, LABELS
    ),
    "if finite": optax.apply_if_finite(optax.adam(0.01), 3),
    "accumulated": optax.MultiSteps(optax.adam(0.01), 2).gradient_transformation(),
    "schedule free": optax.contrib.schedule_free_adamw(0.01),
    "factored": optax.chain(optax.scale_by_factored_rms(), optax.scale(-0.01)),
    "sm3": optax.sm3(0.01),
}


@functools.partial(
    jax.jit,
    compiler_options={
        "xla_backend_optimization_level": 0,
        "xla_llvm_disable_expensive_passes": True,
    },
)
def train(runs):
    """Three steps of every optimizer, in one compilation."""

    def step(_, runs):
        moved = {}
        for name, (params, state) in runs.items():
            gradient = jax.grad(loss)(params)
            updates, state = OPTIMIZERS[name].update(gradient, state, params)
            moved[name] = optax.apply_updates(params, updates), state
        return moved

    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        return jax.lax.fori_loop(0, 3, step, runs)


@pytest.fixture(scope="module")
def runs():
    """Big after three steps, cut then, both after three more."""
    big = train({name: (PARAMS, o.init(PARAMS)) for name, o in OPTIMIZERS.items()})
    small = {name: cut(run, PLAN) for name, run in big.items()}
    zeroed = {name: scatter(run, PLAN) for name, run in small.items()}
    return big, small, zeroed, train(small), train(zeroed)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_training_goes_on_as_the_zeroed_big_run_does(name, runs):
    big, small, zeroed, wanted, found = (each[name] for each in runs)
    assert jax.tree.map(jnp.shape, zeroed) == jax.tree.map(jnp.shape, big)
    fresh = jax.eval_shape(OPTIMIZERS[name].init, small[0])
    assert jax.tree.map(jnp.shape, small[1]) == jax.tree.map(jnp.shape, fresh)
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6),
        wanted,
        cut(found, PLAN),
    )


def shapes(tree):
    return {path: np.shape(leaf) for path, leaf in leaf_paths(tree).items()}


def renamed(name, plan=PLAN):
    """The plan for leaves that are called otherwise."""
    removed = sorted((name(path), axis, held) for path, axis, held in plan.removed)
    known = sorted((name(path), shape) for path, shape in plan.shapes)
    return Plan(tuple(removed), tuple(known))


class Mlp(nn.Module):
    width: int = WIDTH

    @nn.compact
    def __call__(self, x):
        return nn.Dense(3, name="second")(
            nn.relu(nn.Dense(self.width, name="first")(x))
        )


class Averaged(TrainState):
    average: dict


@pytest.mark.parametrize(
    ("trained", "plan"),
    [
        (PARAMS, PLAN),
        (PARAMS, renamed("params/{}".format)),
        ({"params": PARAMS}, renamed("params/{}".format)),
        (PARAMS, renamed("0/{}".format)),
        (PARAMS, renamed("weights/{}".format).below("weights")),
    ],
    ids=["params", "variables", "variables inside", "tuple", "below"],
)
def test_a_train_state_goes_on_whatever_the_program_calls_its_params(trained, plan):
    def step(state):
        def loss(params):
            own = params.get("params", params)
            return ((state.apply_fn({"params": own}, X) - Y) ** 2).mean()

        moved = state.apply_gradients(grads=jax.grad(loss)(state.params))
        average = optax.incremental_update(moved.params, state.average, 0.1)
        return moved.replace(average=average)

    big = Averaged.create(
        apply_fn=Mlp().apply, params=trained, tx=OPTIMIZERS["momentum"], average=trained
    )
    small = cut(big, plan)
    zeroed = scatter(small, plan)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        found = step(small.replace(apply_fn=Mlp(3).apply))
        wanted = cut(step(zeroed), plan)
    assert shapes(found) == shapes(wanted)
    for own, other in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(own, other, rtol=1e-5, atol=1e-6)


class Net(nnx.Module):
    def __init__(self, width):
        rngs = nnx.Rngs(0)
        self.first = nnx.Linear(4, width, rngs=rngs)
        self.second = nnx.Linear(width, 3, rngs=rngs)


@pytest.mark.parametrize("value", ["", "/value"], ids=["bare", "value"])
def test_states_of_nnx_are_cut_with_their_optimizer(value):
    plan = renamed(lambda path: path + value)
    big, small = (
        nnx.eval_shape(
            lambda width=width: nnx.Optimizer(
                Net(width), optax.adam(0.1), wrt=nnx.Param
            )
        )
        for width in (WIDTH, 3)
    )
    for state in (nnx.state, lambda module: nnx.to_pure_dict(nnx.state(module))):
        assert shapes(cut(state(big), plan)) == shapes(state(small))


def array_of(module):
    return eqx.filter(module, lambda leaf: hasattr(leaf, "shape"))


class Layers(eqx.Module):
    layers: list
    activation: object = jax.nn.relu

    def __init__(self, width):
        key = jax.random.key(0)
        self.layers = [
            eqx.nn.Linear(4, width, key=key),
            eqx.nn.Linear(width, 3, key=key),
        ]


def test_modules_of_equinox_are_cut_by_their_attributes():
    big, small = (eqx.filter_eval_shape(Layers, width) for width in (WIDTH, 3))
    big, small = ((one, optax.adam(0.1).init(array_of(one))) for one in (big, small))
    plan = Plan.of(
        {
            "layers/0/weight": {0: GONE},
            "layers/0/bias": {0: GONE},
            "layers/1/weight": {1: GONE},
        },
        shapes(array_of(big[0])),
    )
    found = cut(big, plan)
    assert found[0].activation is jax.nn.relu
    assert shapes(array_of(found[0])) == shapes(array_of(small[0]))
    assert shapes(found[1]) == shapes(small[1])


def test_names_of_haiku_hold_slashes():
    tree = {
        "mlp/~/linear_0": {"w": jnp.ones((4, 6))},
        "mlp/~/linear_1": {"w": X[:4, :1]},
    }
    plan = Plan.of({"mlp/~/linear_0/w": {1: GONE}}, shapes(tree))
    small, state = cut((tree, optax.adam(0.1).init(tree)), plan)
    assert small["mlp/~/linear_0"]["w"].shape == (4, 3)
    assert state[0].nu["mlp/~/linear_0"]["w"].shape == (4, 3)
    assert state[0].nu["mlp/~/linear_1"]["w"].shape == (4, 1)


def test_a_training_step_of_a_mapping_goes_on():
    def step(width):
        model = mp.layers.Dense(width) >> jax.nn.relu >> mp.layers.Dense(3)
        return TrainStep(model, mp.losses.MeanSquaredError(), optax.adam(0.1))

    big, small = (
        jax.eval_shape(step(width).init, jax.random.key(0), (X, Y))
        for width in (WIDTH, 3)
    )
    names = {"first": "params/dense", "second": "params/dense_2"}
    plan = renamed(lambda path: names[path.split("/")[0]] + "/" + path.split("/")[1])
    assert shapes(cut(big, plan)) == shapes(small)


def test_arrays_of_numpy_and_shapes_stay_what_they_are():
    run = PARAMS, OPTIMIZERS["adamw masked"].init(PARAMS)
    wanted = cut(run, PLAN)
    host = cut(jax.tree.map(np.asarray, run), PLAN)
    abstract = cut(jax.eval_shape(lambda: run), PLAN)
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(host))
    jax.tree.map(np.testing.assert_array_equal, host, wanted)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), abstract) == jax.tree.map(
        lambda x: (x.shape, x.dtype), wanted
    )
    traced = jax.jit(lambda run: cut(run, PLAN))(run)
    jax.tree.map(np.testing.assert_array_equal, traced, wanted)


def test_memory_in_front_of_the_axes_stays():
    state = optax.lbfgs(memory_size=5).init(PARAMS)
    small = cut(state, PLAN)
    assert shapes(small) == shapes(optax.lbfgs(memory_size=5).init(cut(PARAMS, PLAN)))
    assert shapes(small)["0/diff_params_memory/first/kernel"] == (5, 4, 3)


def test_fast_and_slow_params_are_cut():
    params = optax.LookaheadParams.init_synced(PARAMS)
    optimizer = optax.lookahead(optax.adam(0.1), 5, 0.5)
    small = cut((params, optimizer.init(params)), PLAN)
    assert shapes(small[0].slow) == shapes(small[0].fast) == shapes(cut(PARAMS, PLAN))
    assert shapes(small[1]) == shapes(optimizer.init(small[0]))


def test_scatter_fills_what_was_removed_from_another_tree():
    ones = jax.tree.map(jnp.ones_like, PARAMS)
    found = scatter(cut(PARAMS, PLAN), PLAN, like=ones)["first"]["bias"]
    wanted = np.where(np.isin(np.arange(WIDTH), GONE), 1.0, PARAMS["first"]["bias"])
    np.testing.assert_array_equal(found, wanted)
    with pytest.raises(PlanError, match=r"misses .*second/kernel"):
        scatter(cut(PARAMS, PLAN), PLAN, like={"first": ones["first"]})


@pytest.mark.parametrize(
    ("host", "shape", "gone"),
    [
        (True, (8, 12), {1: (0, 5)}),
        (False, (8, 12), {0: (1, 2), 1: (0,)}),
        (True, (8, 12), {1: (0, 1, 2, 3, 4, 5)}),  # the first axis is the largest now
        (False, (8, 12), {1: range(9)}),  # too short to be factored
        (True, (3, 8, 12), {0: (1,), 1: (0,), 2: (4,)}),
        (True, (9, 8, 12), {2: (4, 5, 6, 7, 8)}),  # other axes are averaged now
    ],
)
def test_the_moments_that_factors_stand_for_stay(host, shape, gone):
    optimizer = optax.scale_by_factored_rms(min_dim_size_to_factor=5)
    plan = Plan.of({"w": gone}, {"w": shape})
    # of rank one, so that other axes can be averaged without a loss
    v = functools.reduce(
        np.multiply.outer, [np.linspace(1, n, n, dtype=np.float32) for n in shape]
    )

    def state(v):
        made = jax.eval_shape(optimizer.init, {"w": v})
        order = np.argsort(v.shape)
        if made.v["w"].shape == v.shape:
            none = np.zeros(1, np.float32)
            return optax.FactoredState(np.int32(1), {"w": none}, {"w": none}, {"w": v})
        row, col = v.mean(order[-1]), v.mean(order[-2])
        return optax.FactoredState(
            np.int32(1), {"w": row}, {"w": col}, {"w": np.zeros(1, np.float32)}
        )

    before, wanted = state(v), state(plan.cut(v, "w"))
    before = before if host else jax.tree.map(jnp.asarray, before)
    found = cut(before, plan, like=jax.eval_shape(lambda: wanted))
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-5), found, wanted
    )
    assert (
        all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(found)[1:]) == host
    )


def test_whether_adafactor_still_factors_has_to_be_told():
    optimizer = optax.scale_by_factored_rms(min_dim_size_to_factor=5)
    params = {"w": jnp.ones((8, 12)), "v": jnp.ones((12, 8))}
    plan = Plan.of({"w": {0: (1, 2)}}, shapes(params))
    state = optimizer.init(params)
    with pytest.raises(
        PlanError, match=r"v_row/w: .* still factors the shape \(6, 12\)"
    ):
        cut(state, plan)
    wanted = jax.eval_shape(optimizer.init, cut(params, plan))
    assert shapes(cut(state, plan, like=wanted)) == shapes(wanted)
    assert shapes(cut(jax.eval_shape(lambda: state), plan, like=wanted)) == shapes(
        wanted
    )
    longest = Plan.of({"w": {1: range(6)}}, shapes(params))
    wanted = jax.eval_shape(optimizer.init, cut(params, longest))
    small = cut(state, longest, like=wanted)
    with pytest.raises(PlanError, match="v_row/w: expected means over the same axes"):
        scatter(small, longest)


MESH = AbstractMesh((2, 4), ("x", "y"), (AxisType.Auto,) * 2)
WIDE = Plan.of(
    {"w": {0: range(8), 1: range(2)}}, {"w": (16, 8), "stays": (16,)}
)  # of 8 rows and 6 columns: 4 does not divide the columns


def test_shardings_stay_where_they_divide_and_are_reported_where_not():
    specs = {
        "w": P("x", "y"),
        "mu": {"w": P(("x", "y"), None)},
        "nu": {"w": P(P.UNCONSTRAINED, "x")},
        "stays": P("y"),
    }
    wanted = {**specs, "w": P("x", None)}
    events = Events()
    assert cut(specs, WIDE, mesh=MESH, events=events) == wanted
    assert [str(event) for event in events.skipped] == [
        "w: axis 1 has 6 positions left, which the mesh does not divide: it is in one "
        "piece now"
    ]
    named = jax.tree.map(lambda spec: NamedSharding(MESH, spec), specs)
    assert cut(named, WIDE) == jax.tree.map(lambda p: NamedSharding(MESH, p), wanted)
    abstract = {"w": jax.ShapeDtypeStruct((16, 8), "int8", sharding=named["w"])}
    small = cut(abstract, WIDE)["w"]
    assert (small.shape, small.sharding.spec) == ((8, 6), P("x", None))
    with pytest.raises(PlanError, match=r"w: axis 1 has 6 .* Keep a multiple"):
        cut(named, WIDE, strict=True)


def test_without_a_mesh_specs_stay_and_a_mesh_in_use_is_seen():
    specs = {"w": P("x", "y")}
    assert cut(specs, WIDE) == specs
    with jax.sharding.use_abstract_mesh(MESH):
        assert cut(specs, WIDE) == {"w": P("x", None)}


ON_FOUR = """
import jax, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from compiler.passes.prune.plan import Plan
from compiler.passes.prune.plan.state import cut, scatter
array = np.arange(64.0).reshape(8, 8)
for kind in (AxisType.Auto, AxisType.Explicit):
    mesh = jax.make_mesh((4,), ("x",), (kind,))
    for gone, spec, left in (
        ((1, 3, 5, 7), P("x", None), P("x", None)),
        ((0, 1, 2, 3), P(None, "x"), P(None, "x")),
        ((2,), P("x", None), P(None, None)),
    ):
        plan = Plan.of({"w": {0: gone}}, {"w": (8, 8)})
        tree = {"w": jax.device_put(array, NamedSharding(mesh, spec))}
        small = cut(tree, plan)
        assert small["w"].sharding.spec == left, (kind, gone, small["w"].sharding)
        np.testing.assert_array_equal(small["w"], np.delete(array, gone, 0))
        traced = jax.jit(lambda tree: cut(tree, plan))(tree)["w"]
        np.testing.assert_array_equal(traced, small["w"])
        back = scatter(small, plan)["w"]
        np.testing.assert_array_equal(back, plan.zeroed(array, "w"))
print("kept")
"""


def test_arrays_on_a_mesh_of_four_stay_on_it():
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
    done = subprocess.run(
        [sys.executable, "-c", ON_FOUR],
        env={**os.environ, **flags, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    assert done.stdout == "kept\n", done.stderr


def test_leaves_of_nothing_stay_and_are_told():
    events = Events()
    tree = {
        "params": PARAMS,
        "history": jnp.ones(WIDTH),
        "step": jnp.int32(3),
        "n": "a",
    }
    found = cut(tree, PLAN, events=events)
    assert found["history"] is tree["history"]
    assert found["n"] == "a"
    assert [str(e) for e in events.skipped] == [
        "history: belongs to no leaf of the plan"
    ]
    assert str(events.fired[1]) == (
        "params/first/kernel: (4, 6) -> (4, 3), as first/kernel"
    )
    assert cut(tree, Plan()) == tree


def test_a_leaf_with_a_longer_path_of_its_own_is_not_cut():
    shapes = {"w": (WIDTH,), "block/w": (WIDTH,)}
    plan = Plan.of({"w": {0: GONE}}, shapes)
    params = {"w": jnp.ones(WIDTH), "block": {"w": jnp.ones(WIDTH)}}
    found = cut((params, optax.adam(0.1).init(params)), plan)
    assert [x.shape for x in jax.tree.leaves(found)] == [
        (6,),
        (3,),
        (),
        *[(6,), (3,)] * 2,
    ]


def test_a_parameter_that_is_the_whole_tree_is_cut():
    plan = Plan.of({"variables": {0: GONE}}, {"variables": (WIDTH, 4)})
    params = normal(WIDTH, 4)
    small, state = cut((params, optax.adam(0.1).init(params)), plan)
    assert small.shape == state[0].mu.shape == (3, 4)
    assert cut({"other": jnp.ones(2), "w": params}, plan)["other"].shape == (2,)


@pytest.mark.parametrize(
    ("tree", "plan", "message"),
    [
        (
            {"first": {"kernel": np.ones((4, 5)), "bias": np.ones(5)}},
            PLAN,
            r"first/bias: expected the shape \(6,\) of first/bias, or one without some "
            r"of its axes, got \(5,\)\. Give the state of the parameters[^$]*"
            r"first/kernel: expected the shape \(4, 6\)",
        ),
        ({"first": {"bias": np.ones(3)}}, PLAN, r"got \(3,\)\. It is cut already\."),
        (
            {"norm": np.ones(4)},
            Plan.of({"norm": {0: [1]}}, {"norm": (4, 4)}),
            r"norm: expected a shape that tells which axes of norm, \(4, 4\), it has",
        ),
        (
            {"mu": {"w": np.ones(4)}},
            Plan.of({"0/w": {0: [1]}}, {"0/w": (4,), "1/w": (4,)}),
            "mu/w: expected to belong to one leaf of the plan, can be of 0/w or of 1/w",
        ),
        (
            {"kernel": np.ones(4)},
            PLAN,
            r"kernel: expected leaves of the plan .* got none\. The plan's are first",
        ),
    ],
)
def test_leaves_that_cannot_be_told_are_refused(tree, plan, message):
    with pytest.raises(PlanError, match=message):
        cut(tree, plan)


def test_what_does_not_come_out_like_it_should_is_refused():
    flat = optax.flatten(optax.adam(0.1))  # its moments know no parameters
    run = PARAMS, flat.init(PARAMS)
    small = cut(PARAMS, PLAN)
    with pytest.raises(PlanError, match=r"1/0/mu: expected \(27,\), got \(51,\)"):
        cut(run, PLAN, like=jax.eval_shape(lambda: (small, flat.init(small))))
    with pytest.raises(PlanError, match="like: expected the same leaves"):
        cut(run, PLAN, like=small)
    assert shapes(cut(PARAMS, PLAN, like=small)) == shapes(small)


def test_a_layer_that_the_plan_does_not_know_is_not_its_neighbour():
    plan = Plan.of({"0/w": {0: GONE}}, {"0/w": (WIDTH,)})
    found = cut({"mu": [{"w": np.ones(WIDTH)}, {"w": np.ones(WIDTH)}]}, plan)
    assert shapes(found) == {"mu/0/w": (3,), "mu/1/w": (WIDTH,)}


def test_of_two_with_one_path_the_shape_tells_which():
    plan = Plan.of({"0/w": {0: [1]}, "1/w": {0: [1, 2]}}, {"0/w": (4,), "1/w": (5,)})
    assert shapes(cut({"mu": {"w": np.ones(5)}}, plan)) == {"mu/w": (3,)}
