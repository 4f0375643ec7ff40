"""A program is still a pure function, and still a mapping."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from zoo import disturbed, normal, relative_error

import compiler as mc
import mapping as mp
from compiler.errors import (
    InputMismatchError,
    TraceError,
    VariablesMismatchError,
    VerifyError,
)

W = normal(4, 3)
X = normal(2, 4)


def affine(v, x):
    return jnp.tanh(x @ v["w"] + v["b"])


V = {"w": W, "b": normal(1, 3)}


@pytest.fixture
def program():
    return mc.trace(affine, V, X)


@pytest.fixture
def folded():
    scaled = lambda v, x: affine(v, x * 2.0) * v["s"]  # noqa: E731
    return mc.trace(scaled, {**V, "s": normal(1, 3)}, X) >> mc.fold()


@pytest.mark.parametrize("batch", [1, 2, 7])
def test_it_runs_on_any_batch_size(program, batch):
    x = normal(batch, 4, seed=5)
    assert relative_error(program(x), affine(V, x)) < 1e-6


def test_another_batch_size_is_traced_once():
    traces = []

    def counted(v, x):
        traces.append(x.shape)
        return affine(v, x)

    program = mc.trace(counted, V, X)
    before = len(traces)
    for _ in range(3):
        program(normal(9, 4))
    assert len(traces) == before + 1


@pytest.mark.parametrize("transform", ["jit", "grad", "vmap", "jvp", "scan"])
def test_its_function_takes_every_transformation(program, transform):
    f, v = program.function, program.variables
    x = normal(3, 2, 4, seed=2)
    if transform == "jit":
        got, want = jax.jit(f)(v, X), affine(V, X)
    elif transform == "grad":
        got = jax.grad(lambda v: f(v, X).sum())(v)
        want = jax.grad(lambda v: affine(v, X).sum())(V)
    elif transform == "vmap":
        got, want = jax.vmap(f, (None, 0))(v, x), jax.vmap(affine, (None, 0))(V, x)
    elif transform == "jvp":
        got = jax.jvp(lambda x: f(v, x), (X,), (X,))
        want = jax.jvp(lambda x: affine(V, x), (X,), (X,))
    else:
        got = jax.lax.scan(lambda c, x: (c, f(v, x)), 0, x)[1]
        want = jax.lax.map(lambda x: affine(V, x), x)
    assert relative_error(got, want) < 1e-6


def test_donation_and_sharding_pass_through(program):
    device = jax.devices()[0]
    placed = jax.device_put(X, jax.sharding.SingleDeviceSharding(device))
    run = jax.jit(program.function, donate_argnums=1)
    want = affine(V, X)
    with pytest.warns(UserWarning, match="donated buffers were not usable"):
        assert relative_error(run(program.variables, placed), want) < 1e-6


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ((np.ones((2, 4, 1), np.float32),), "expected float32\\[2, 4\\].*got float32"),
        ((np.ones((2, 4), np.int32),), "got int32.*x.astype\\('float32'\\)"),
        (
            (np.ones((2, 5), np.float32),),
            "traced on float32\\[2, 4\\], got .*\\[2, 5\\]",
        ),
        ((X, X), "Call it as it was traced"),
        (({"x": X},), "Call it as it was traced"),
    ],
)
def test_wrong_inputs_are_named(program, inputs, said):
    with pytest.raises(InputMismatchError, match=said):
        program(*inputs)


def test_python_numbers_are_inputs_too():
    program = mc.trace(lambda v, x, t: x @ v * t, W, X, 2.0)
    assert relative_error(program(X, 3.0), X @ W * 3.0) < 1e-6


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"w": W}, r"missing \['b'\]"),
        ({**V, "c": W}, r"not expected \['c'\]"),
        (
            {"w": W[:2], "b": V["b"]},
            r"w: expected float32\[4, 3\], got float32\[2, 3\]",
        ),
    ],
)
def test_wrong_variables_are_named(program, variables, said):
    with pytest.raises(VariablesMismatchError, match=said):
        program.function(variables, X)


def test_a_function_that_does_not_take_the_sample_says_so():
    with pytest.raises(TraceError, match=r"affine: cannot be traced on .*\[2, 5\]"):
        mc.trace(affine, V, normal(2, 5))
    with pytest.raises(TraceError, match="expected a mapping or a function"):
        mc.trace(3, V, X)


def test_a_program_of_shapes_alone_says_that_it_cannot_run():
    program = mc.trace(affine, jax.eval_shape(lambda: V), X)
    with pytest.raises(VariablesMismatchError, match="shapes alone"):
        program(X)
    assert relative_error(program.function(V, X), affine(V, X)) < 1e-6


def test_trained_variables_can_be_put_back(folded):
    doubled = folded.with_variables(jax.tree.map(lambda x: 2 * x, folded.variables))
    assert relative_error(doubled.variables, folded.variables) > 0.5
    assert doubled.graph is folded.graph


def test_it_composes_as_a_mapping_and_trains(folded):
    net = mp.Serial(body=folded, head=mp.layers.Dense(1))
    x = normal(64, 4)
    target = jnp.sin(x[:, :1])
    variables = net.init(jax.random.key(0), x)
    assert relative_error(variables.params["body"], folded.variables) == 0
    fitted = mp.train.fit(
        net, (x, target), loss=mp.losses.MeanSquaredError(),
        optimizer=optax.adam(3e-2), epochs=40, batch_size=64, variables=variables,
    )  # fmt: skip
    losses = fitted.history.column("loss")
    assert losses[-1] < 0.5 * losses[0]
    assert relative_error(fitted.variables.params["body"], folded.variables) > 1e-3


def test_training_eight_bit_weights_is_refused_by_path():
    small = mc.trace(affine, {**V, "w": normal(4, 16), "b": normal(1, 16)}, X)
    small = small >> mc.quantize.weights()
    with pytest.raises(mp.errors.NotTrainableError, match=r"w/values: .* got int8"):
        mp.train.fit(
            small, (X, normal(2, 16)), loss=mp.losses.MeanSquaredError(),
            optimizer=optax.sgd(0.1), epochs=1,
        )  # fmt: skip


def test_pass_and_program_compose_with_the_same_sign(program):
    recipe = mc.fold() >> mc.quantize.weights("int8")
    one, other = recipe(program), program >> mc.fold() >> mc.quantize.weights("int8")
    assert str(one.graph) == str(other.graph)
    assert one.recipe == other.recipe == recipe.passes


def test_recipes_are_values():
    a, b, c = mc.fold(), mc.quantize.weights("int8"), mc.quantize.weights(skip=("x",))
    assert (a >> b) >> c == a >> (b >> c)
    assert hash(a >> b) == hash(mc.fold() >> mc.quantize.weights())
    assert b != c


def test_a_pass_that_breaks_the_outputs_is_caught(program):
    import dataclasses

    @dataclasses.dataclass(frozen=True)
    class Broken(mc.Pass):
        def rewrite(self, graph):
            specs = [leaf.spec for leaf in graph.leaves] + graph.inputs
            wrong = jax.make_jaxpr(
                lambda *xs: [y[0] for y in graph.evaluate(xs[:2], xs[2:])]
            )(*specs)
            return mc.Rewrite(dataclasses.replace(graph, jaxpr=wrong))

    with pytest.raises(
        VerifyError, match=r"Broken: changed the outputs from .*\[2, 3\]"
    ):
        program >> Broken()


def test_arrays_a_function_closes_over_become_leaves():
    program = mc.trace(lambda v, x: x @ W + v["b"], {"b": V["b"]}, X)
    assert sorted(program.graph.paths) == ["b", "captured/0"]
    assert relative_error(program(normal(5, 4)), normal(5, 4) @ W + V["b"]) < 1e-6


def test_leaves_that_are_no_arrays_are_fixed():
    def function(v, x):
        return v["activation"](x @ v["w"]) if v["on"] else x

    program = mc.trace(function, {"w": W, "activation": jnp.tanh, "on": True}, X)
    assert program.graph.paths == ["w"]
    assert relative_error(program(X), jnp.tanh(X @ W)) < 1e-6


def test_an_nnx_model_is_traced_through_split_and_merge():
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.conv = nnx.Conv(3, 4, (3, 3), rngs=rngs)
            self.norm = nnx.BatchNorm(4, use_running_average=True, rngs=rngs)

        def __call__(self, x):
            return nnx.relu(self.norm(self.conv(x)))

    definition, state = nnx.split(Net(nnx.Rngs(0)))
    state = disturbed(state)
    forward = lambda state, x: nnx.merge(definition, state)(x)  # noqa: E731
    x = normal(2, 6, 6, 3)
    program = mc.trace(forward, state, x)
    small = program >> mc.fold() >> mc.quantize.weights()
    assert relative_error((program >> mc.fold())(x), forward(state, x)) < 1e-5
    assert relative_error(small(x), forward(state, x)) < 0.03
    assert small.bytes < 0.5 * program.bytes


def test_paths_with_slashes_of_their_own_are_kept_apart():
    variables = {"a": {"b/c": W}, "a/b": {"c": W * 2.0}}
    with pytest.raises(TraceError, match="a/b/c"):
        mc.trace(lambda v, x: x @ v["a"]["b/c"] + x @ v["a/b"]["c"], variables, X)


def test_dict_outputs_and_several_inputs_keep_their_structure():
    def function(v, x, extra):
        return {"y": x @ v, "also": (extra["a"], None)}

    program = mc.trace(function, W, X, {"a": X})
    got = program(X, {"a": X * 2.0})
    assert got["also"][1] is None
    assert relative_error(got["also"][0], X * 2.0) == 0


def test_a_training_step_can_be_traced_and_folded():
    step = mp.train.TrainStep(
        mp.layers.Dense(3), mp.losses.MeanSquaredError(), optax.sgd(0.1)
    )
    batch = (X, normal(2, 3))
    start = step.init(jax.random.key(0), batch)

    def run(variables, batch):
        return step.apply(variables, batch, ctx=mp.Context(train=True))[1]["params"]

    program = mc.trace(run, start, batch)
    assert relative_error((program >> mc.fold())(batch), run(start, batch)) < 1e-6


def test_the_program_prints_what_it_is(folded):
    assert "float32[2, 4] -> float32[2, 3]" in repr(folded)
    assert "Fold()" in repr(folded)


def test_linen_module_in_training_mode_with_a_key_as_input():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dropout(0.5, deterministic=False)(nn.Dense(8)(x))

    variables = Net().init(
        {"params": jax.random.key(0), "dropout": jax.random.key(1)}, X
    )

    def forward(v, x, key):
        return Net().apply(v, x, rngs={"dropout": key})

    program = mc.trace(forward, variables, X, jax.random.key(2))
    folded = program >> mc.fold()
    for seed in (3, 4):
        key = jax.random.key(seed)
        assert relative_error(folded(X, key), forward(variables, X, key)) < 1e-6


def test_a_pass_that_was_not_called_is_told(program):
    with pytest.raises(TypeError, match=r"Call it: program >> fold\(\)"):
        program >> mc.fold


def test_a_bias_keeps_its_name_through_folding():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.BatchNorm(use_running_average=True)(nn.Conv(8, (3, 3))(x))

    x = normal(2, 6, 6, 3)
    variables = disturbed(Net().init(jax.random.key(0), x))
    folded = mc.trace(Net().apply, variables, x) >> mc.fold()
    assert folded.graph.paths == ["params/Conv_0/bias", "params/Conv_0/kernel"]


def test_a_loaded_program_says_why_nothing_in_it_is_quantized(program, tmp_path):
    loaded = mc.load(program.save(tmp_path / "program")) >> mc.quantize.weights()
    assert {e.what for e in loaded.history[-1].events.skipped} == {
        "belongs to a loaded program, whose inside cannot be seen"
    }
