"""From functions to programs: what is fixed, what is several, what is a whole step."""

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import compiler as mc
import mapping as mp
from compiler.errors import InputMismatchError, TraceError, VerifyError
from compiler.paths import flatten, matches, operations
from mapping.train import TrainStep
from tests.compiler.zoo import normal


def paths_of(program):
    return [
        (o.path, o.equation.primitive.name) for o in flatten(operations(program.graph))
    ]


def close(found, wanted):
    """Equal to rounding: a millionth of the largest value."""
    assert float(jnp.abs(found - wanted).max()) <= 1e-6 * float(jnp.abs(wanted).max())


class Mlp(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Dropout(0.5, deterministic=not train)(nn.Dense(4, name="hidden")(x))
        return nn.Dense(2, name="head")(nn.relu(x))


def test_keyword_arguments_are_fixed():
    x = normal(3, 5)
    variables = Mlp().init(jax.random.key(0), x)
    program = mc.trace(Mlp().apply, variables, x, train=False)
    np.testing.assert_array_equal(program(x), jax.jit(Mlp().apply)(variables, x))


def test_static_inputs_are_built_in_at_their_places():
    def f(w, x, power, y, name):
        return (w * x) ** power + (y if name == "plus" else -y)

    x, y = normal(3), normal(3, seed=1)
    program = mc.trace(f, 2.0, x, 3, y, "minus", static_argnums=(1, 3))
    np.testing.assert_allclose(program(x, y), (2 * x) ** 3 - y, rtol=1e-6)


def test_a_static_place_that_is_none_is_refused():
    with pytest.raises(TraceError, match="among the 1 inputs, from 0, got 1"):
        mc.trace(lambda w, x: w * x, 1.0, jnp.ones(2), static_argnums=1)


def encode(w, x):
    return jnp.tanh(x @ w["kernel"] * w["scale"])


def decode(w, z):
    return z @ w["back"] * w["gain"]


PAIR = {
    "kernel": normal(5, 3),
    "scale": normal(1, 3, seed=1),
    "back": normal(3, 5, seed=2),
    "gain": normal(1, 5, seed=3),
}


def test_functions_traced_together_are_rewritten_for_one_tree_of_variables():
    x, z = normal(2, 5), normal(4, 3)
    both = mc.trace(
        {"encode": encode, "decode": decode}, PAIR, {"encode": x, "decode": (z,)}
    )
    folded = both >> mc.fold()
    assert folded.graph.paths == ["back", "kernel"]
    encoder, decoder = folded.member("encode"), folded.member("decode")
    assert encoder.graph.leaves == decoder.graph.leaves == folded.graph.leaves
    close(encoder(x), encode(PAIR, x))
    close(decoder(z[:1]), decode(PAIR, z[:1]))
    names = [o.equation.primitive.name for o in operations(encoder.graph)]
    assert names == ["dot_general", "tanh"]


def test_a_member_takes_other_batch_sizes_and_is_saved(tmp_path):
    x, z = normal(2, 5), normal(4, 3)
    both = mc.trace(
        {"encode": encode, "decode": decode}, PAIR, {"encode": x, "decode": z}
    )
    encoder = (both >> mc.fold()).member("encode")
    wanted = encode(PAIR, normal(7, 5))
    close(encoder(normal(7, 5)), wanted)
    loaded = mc.load(encoder.save(tmp_path / "encoder"))
    close(loaded(normal(7, 5)), wanted)


def test_effects_of_one_function_do_not_run_in_another(capfd):
    def loud(w, x):
        jax.debug.print("loud {}", x.sum())
        return w * x

    both = mc.trace(
        {"loud": loud, "still": lambda w, x: w + x},
        2.0,
        {"loud": jnp.ones(2), "still": jnp.ones(2)},
    )
    both.member("still")(jnp.ones(2))
    jax.effects_barrier()
    assert "loud" not in capfd.readouterr().out
    both.member("loud")(jnp.ones(2))
    jax.effects_barrier()
    assert "loud 2.0" in capfd.readouterr().out


def test_unknown_members_and_missing_inputs_are_named():
    both = {"encode": encode, "decode": decode}
    with pytest.raises(TraceError, match=r"\['decode', 'encode'\], got \['encode'\]"):
        mc.trace(both, PAIR, {"encode": normal(2, 5)})
    with pytest.raises(TraceError, match="got none"):
        mc.trace(both, PAIR, normal(2, 5))
    program = mc.trace(both, PAIR, {"encode": normal(2, 5), "decode": normal(2, 3)})
    with pytest.raises(TraceError, match=r"train: expected .*\['decode', 'encode'\]"):
        program.member("train")
    with pytest.raises(TraceError, match="one only"):
        mc.trace(encode, PAIR, normal(2, 5)).member("encode")


def sgd_step(variables, x, y):
    def loss(params):
        return ((encode(params, x) - y) ** 2).mean()

    value, gradient = jax.value_and_grad(loss)(variables["params"])
    optimizer = optax.sgd(0.1, momentum=0.9)
    updates, moments = optimizer.update(gradient, variables["moments"])
    params = optax.apply_updates(variables["params"], updates)
    return {"params": params, "moments": moments}, value


def start():
    return {"params": PAIR, "moments": optax.sgd(0.1, momentum=0.9).init(PAIR)}


@pytest.mark.parametrize("steps", [mc.fold()], ids=["fold"])
def test_a_whole_step_is_rewritten_and_still_takes_its_own_result(steps):
    x, y = normal(4, 5), normal(4, 3, seed=5)
    program = mc.trace(sgd_step, start(), x, y) >> steps
    assert program.graph.carried == set(program.graph.paths)
    ours, theirs = start(), start()
    run = jax.jit(program.function)
    for _ in range(3):
        ours, loss = run(ours, x, y)
        theirs, wanted = jax.jit(sgd_step)(theirs, x, y)
        np.testing.assert_allclose(loss, wanted, rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), ours, theirs)


def test_predict_and_step_of_one_state_are_traced_together():
    x, y = normal(4, 5), normal(4, 3, seed=5)
    program = mc.trace(
        {"predict": lambda s, x: encode(s["params"], x), "step": sgd_step},
        start(),
        {"predict": x, "step": (x, y)},
    )
    folded = program >> mc.fold()
    assert folded.graph.paths == program.graph.paths
    reasons = [event.what for event in folded.history[-1].events.skipped]
    assert "8 leaves are returned, moved: they stay" in reasons
    state, _ = folded.member("step").function(start(), x, y)
    np.testing.assert_allclose(
        folded.member("predict").function(state, x),
        encode(sgd_step(start(), x, y)[0]["params"], x),
        rtol=1e-5,
    )


def test_statistics_that_are_returned_stay_and_the_rest_folds():
    def model(variables, x):
        y = x @ (variables["params"]["w"] * 2.0)
        mean = 0.9 * variables["stats"]["mean"] + 0.1 * y.mean(0)
        return y, {"stats": {"mean": mean}}

    variables = {"params": {"w": normal(5, 3)}, "stats": {"mean": normal(3)}}
    program = mc.trace(model, variables, normal(4, 5)) >> mc.fold()
    assert program.graph.carried == {"stats/mean"}
    values = dict(zip(program.graph.paths, program.values, strict=True))
    np.testing.assert_array_equal(values["stats/mean"], variables["stats"]["mean"])
    np.testing.assert_array_equal(values["params/w"], 2 * variables["params"]["w"])


def test_a_mapping_is_traced_in_training_by_its_context():
    batch = (normal(4, 5), normal(4, 1))
    step = TrainStep(mp.layers.Dense(1), mp.losses.MeanSquaredError(), optax.adam(0.1))
    variables = step.init(jax.random.key(0), batch)
    ctx = mp.Context(train=True)
    program = mc.trace(step, variables, batch, ctx=ctx) >> mc.fold()
    logs, state = program.apply(variables, batch)
    wanted, wanted_state = step.apply(variables, batch, ctx=ctx)
    np.testing.assert_allclose(logs["loss"], wanted["loss"], rtol=1e-6)
    assert jax.tree.structure(state) == jax.tree.structure(wanted_state)
    logs, state = program.apply(mp.Variables({}, state), batch)
    assert int(state["step"]) == 2


def test_extents_may_be_symbols():
    rows = jax.ShapeDtypeStruct(jax.export.symbolic_shape("rows, 5"), "float32")
    program = mc.trace(encode, PAIR, rows) >> mc.fold()
    assert program.graph.paths == ["kernel"]
    x = normal(6, 5)
    close(program(x), encode(PAIR, x))


def test_control_flow_on_values_names_the_line_and_the_remedy():
    def choose(w, x):
        return x if x.sum() > 0 else w * x

    with pytest.raises(TraceError, match=r"test_trace.py:\d+ \(choose\).*jax.lax.cond"):
        mc.trace(choose, 1.0, jnp.ones(2))


def test_a_sample_measures_every_pass_and_a_tolerance_stops_it():
    x = normal(8, 16)
    program = mc.trace(
        lambda w, x: x @ w["k"] * w["s"], {"k": normal(16, 16), "s": 3.0}, x
    )
    recipe = mc.fold() >> mc.quantize.weights("int8")
    small = recipe(program, sample=(x,), tolerance=0.05)
    folded, rounded = (applied.difference for applied in small.history)
    assert folded.relative < 1e-6 < rounded.relative < 0.05
    assert rounded.absolute == pytest.approx(
        float(abs(small(x) - (program >> mc.fold())(x)).max())
    )
    with pytest.raises(
        VerifyError, match=r"at most 1e-05 after QuantizeWeights, got 0\.0"
    ):
        recipe(program, sample=(x,), tolerance=1e-5)


@pytest.mark.parametrize(
    ("a", "b", "relative"),
    [
        ([1.0, np.nan], [1.0, np.nan], 0.0),
        ([1.0, np.nan], [1.0, 2.0], np.inf),
        ([np.inf, 4.0], [np.inf, 3.0], 0.25),
        ([0.0], [1.0], np.inf),
        ([], [], 0.0),
        ([1 + 1j], [1 + 2j], 1 / np.sqrt(2)),
    ],
)
def test_differences_are_told_apart_from_what_is_not_a_number(a, b, relative):
    first, second = np.array(a), np.array(b)
    found = mc.difference(lambda: first, lambda: second)
    assert found.relative == pytest.approx(relative)


def test_programs_of_other_outputs_do_not_compare():
    with pytest.raises(VerifyError, match="expected shape"):
        mc.difference(jnp.zeros, jnp.ones, 3) and mc.difference(
            lambda: jnp.ones(2), lambda: jnp.ones(3)
        )


def test_operations_have_paths_in_every_framework():
    x = normal(2, 5)
    program = mc.trace(Mlp().apply, Mlp().init(jax.random.key(0), x), x)
    assert ("hidden", "dot_general") in paths_of(program)
    assert ("head", "add") in paths_of(program)

    model = eqx.nn.MLP(5, 2, 4, 1, key=jax.random.key(0))
    program = mc.trace(lambda m, x: jax.vmap(m)(x), model, x)
    assert [p for p, name in paths_of(program) if name == "dot_general"] == [
        "layers/0",
        "layers/1",
    ]
    assert ("layers/0", "max") in paths_of(program)

    net = nnx.Sequential(nnx.Linear(5, 4, rngs=nnx.Rngs(0)), nnx.relu)
    definition, state = nnx.split(net)
    program = mc.trace(lambda s, x: nnx.merge(definition, s)(x), state, x)
    assert ("layers/0", "dot_general") in paths_of(program)

    model = hk.without_apply_rng(hk.transform(lambda x: hk.nets.MLP([4, 2])(x)))
    program = mc.trace(model.apply, model.init(jax.random.key(0), x), x)
    assert "mlp/linear_1" in {path for path, _ in paths_of(program)}

    net = mp.Serial(hidden=mp.layers.Dense(4), act=jax.nn.relu)
    program = mc.trace(net, net.init(jax.random.key(0), x), x)
    assert ("hidden", "dot_general") in paths_of(program)
    assert "act" in {path for path, _ in paths_of(program)}


def test_paths_survive_differentiation_and_loops():
    def loss(v, x):
        def block(h, layer):
            with jax.named_scope("block"):
                return jnp.tanh(h @ layer), None

        return jax.lax.scan(block, x, v["layers"])[0].sum()

    variables = {"layers": normal(3, 4, 4)}
    program = mc.trace(jax.grad(loss), variables, normal(2, 4))
    found = [o for o in flatten(operations(program.graph)) if o.path == "block"]
    products = [o for o in found if o.equation.primitive.name == "dot_general"]
    assert len(products) == 3  # forward, and both gradients
    assert {o.times for o in products} == {3}


@pytest.mark.parametrize(
    ("glob", "path", "named"),
    [
        ("a", "a", True),
        ("a", "a/b", True),
        ("a", "ab", False),
        ("a/*", "a", False),
        ("*/q", "x/y/q/dot", True),
        ("*", "", True),
    ],
)
def test_a_glob_names_a_path_and_what_is_inside(glob, path, named):
    assert matches(glob, path) is named


def test_inputs_of_another_dtype_are_refused():
    program = mc.trace(encode, PAIR, normal(2, 5))
    with pytest.raises(InputMismatchError, match="int32"):
        program(jnp.ones((2, 5), jnp.int32))


def test_a_state_in_another_container_is_still_a_state():
    def step(state, x):
        params, count = state
        count = count + 1
        loss, slope = jax.value_and_grad(lambda p: ((x @ p["w"]) ** 2).mean())(params)
        moved = jax.tree.map(
            lambda p, d: p - 0.1 / count.astype(jnp.float32) * d, params, slope
        )
        return moved, count, loss

    x, state = normal(4, 3), ({"w": normal(3)}, jnp.int32(0))
    program = mc.trace(step, state, x) >> mc.fold()
    ours, theirs = state, state
    for _ in range(3):
        ours, theirs = program.function(ours, x)[:2], step(theirs, x)[:2]
    assert int(ours[1]) == 3
    np.testing.assert_allclose(ours[0]["w"], theirs[0]["w"], rtol=1e-5)


def test_what_is_returned_under_another_name_can_be_told():
    def step(v, x):
        return {"moved": v["w"] * 0.9, "y": x @ (v["w"] * 0.9)}

    program = mc.trace(step, {"w": normal(3)}, normal(2, 3), carried="w") >> mc.fold()
    np.testing.assert_array_equal(program.variables["w"], normal(3))


def test_numbers_keep_their_weak_types():
    w = jnp.ones(3, jnp.bfloat16)
    program = mc.trace(lambda w, x: w * x, w, 2.0)
    assert program(2.0).dtype == program(3).dtype == jnp.bfloat16
    halved = mc.trace(lambda w, x: x // 2 + w, jnp.int8(1), jnp.int8(7))
    assert halved(jnp.int8(9)).dtype == jnp.int8


def test_functions_traced_together_take_arrays_alone():
    with pytest.raises(TraceError, match=r"got train.*functools.partial"):
        mc.trace({"f": encode}, PAIR, {"f": normal(2, 5)}, train=True)


def test_what_is_no_array_is_built_in_and_cannot_change():
    program = mc.trace(
        lambda v, x: x * v["w"] * v["rate"], {"w": jnp.ones(2), "rate": 0.5}, 2.0
    )
    assert program.function({"w": jnp.ones(2), "rate": 0.5}, 2.0).tolist() == [1.0, 1.0]
    with pytest.raises(mc.errors.VariablesMismatchError, match=r"rate: expected 0.5"):
        program.function({"w": jnp.ones(2), "rate": 0.7}, 2.0)


def test_variables_that_are_one_array_stay_one():
    folded = mc.trace(lambda w, x: x @ (w * 2.0), jnp.eye(3), normal(2, 3)) >> mc.fold()
    assert folded.variables.shape == (3, 3)
    close(folded.function(folded.variables, normal(2, 3)), 2.0 * normal(2, 3))


def test_a_step_keeps_the_leaves_it_returns_from_every_pass():
    x, y = normal(4, 5), normal(4, 3, seed=5)
    program = mc.trace(sgd_step, start(), x, y)
    for step in (mc.quantize.weights("int8"), mc.lora(2)):
        new = program >> step
        reasons = {event.what for event in new.history[-1].events.skipped}
        assert any("returned by the function, moved" in reason for reason in reasons)
        new.function(new.function(new.variables, x, y)[0], x, y)


def test_a_tolerance_needs_a_sample():
    program = mc.trace(encode, PAIR, normal(2, 5))
    with pytest.raises(TypeError, match="expected a sample"):
        mc.fold()(program, tolerance=1e-6)


def test_a_pass_before_a_program_says_the_right_order():
    with pytest.raises(TypeError, match="program >> pass"):
        mc.fold() >> mc.trace(encode, PAIR, normal(2, 5))


def test_a_dtype_may_be_given_as_jax_writes_it():
    assert mc.cast(jnp.bfloat16, params=jnp.bfloat16) == mc.cast(params="bfloat16")


def test_an_output_that_has_the_shape_of_a_weight_for_another_batch_is_no_state():
    program = mc.trace(lambda w, x: x @ jnp.exp(w), normal(2, 2), normal(1, 2))
    folded = program >> mc.fold()
    assert [event.path for event in folded.history[-1].events.fired]
    close(folded(normal(2, 2, seed=3)), normal(2, 2, seed=3) @ jnp.exp(normal(2, 2)))
