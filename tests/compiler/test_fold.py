"""Folding: the same function, never larger, nothing left that could go."""

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from zoo import (
    LinenConvNet,
    disturbed,
    linen,
    normal,
    plain_experts,
    plain_tied_embedding,
    plain_while,
    relative_error,
)

import compiler as mc
import mapping as mp
from compiler.cost import cost

TOLERANCE = 1e-5


def names(program):
    """The primitives at every depth."""
    from compiler import jaxprs

    return [e.primitive.name for e, _ in jaxprs.nested(program.graph.jaxpr)]


PROGRAMS = {}


def both(case):
    """A case as a program, and folded; made once."""
    if id(case) not in PROGRAMS:
        function, variables, inputs = case
        program = mc.trace(function, variables, *inputs)
        PROGRAMS[id(case)] = program, program >> mc.fold()
    return PROGRAMS[id(case)]


def test_folding_keeps_the_function(case):
    function, variables, inputs = case
    program, folded = both(case)
    assert relative_error(program(*inputs), function(variables, *inputs)) < TOLERANCE
    assert relative_error(folded(*inputs), program(*inputs)) < TOLERANCE


def test_folding_never_grows(case):
    program, folded = both(case)
    assert folded.bytes <= program.bytes
    assert cost(folded.graph).flops <= cost(program.graph).flops


def test_folding_twice_changes_nothing(case):
    _, once = both(case)
    twice = once >> mc.fold()
    assert str(twice.graph) == str(once.graph)
    assert not twice.history[-1].events.fired


def test_a_folded_program_is_differentiable_in_its_inputs(case):
    function, variables, inputs = case
    if not jnp.issubdtype(inputs[0].dtype, jnp.floating):
        pytest.skip("token inputs have no gradient")
    program, folded = both(case)
    if "while" in names(program):
        pytest.skip("a while loop has no reverse mode")

    def total(f):
        def weighted(x):
            outputs = jax.tree.leaves(f(x))
            return sum(jnp.sum(y * normal(*y.shape, seed=8)) for y in outputs)

        return weighted

    own = total(lambda x: folded.function(folded.variables, x))
    got = jax.jit(jax.grad(own))(*inputs)
    want = jax.jit(jax.grad(total(lambda x: function(variables, x))))(*inputs)
    assert relative_error(got, want) < 1e-4


def test_other_batch_sizes_are_folded_by_the_same_recipe(case):
    program, folded = both(case)
    for variant in program.variants.values():
        other = [
            normal(*s.shape, seed=5).astype(s.dtype)
            if jnp.issubdtype(s.dtype, jnp.floating)
            else jnp.zeros(s.shape, s.dtype)
            for s in variant.inputs
        ]
        assert relative_error(folded(*other), program(*other)) < TOLERANCE


@pytest.mark.parametrize("batch", [1, 2, 3])
def test_values_broadcast_to_the_batch_do_not_become_leaves(batch):
    def function(v, x):
        wide = jnp.broadcast_to(jnp.sin(v["b"]), x.shape)
        return x * jnp.exp(wide)

    program = mc.trace(function, {"b": normal(1, 4)}, normal(batch, 4)) >> mc.fold()
    assert [leaf.spec.shape for leaf in program.graph.leaves] == [(1, 4)]
    x = normal(5, 4, seed=2)
    assert relative_error(program(x), function({"b": normal(1, 4)}, x)) < TOLERANCE


def test_positions_sliced_to_the_length_stay_whole():
    def function(v, x):
        return x + jnp.sin(v["position"])[: x.shape[1]][None]

    v = {"position": normal(32, 4)}
    folded = mc.trace(function, v, normal(2, 8, 4)) >> mc.fold()
    assert [leaf.spec.shape for leaf in folded.graph.leaves] == [(32, 4)]
    x = normal(2, 20, 4)
    assert relative_error(folded(x), function(v, x)) < TOLERANCE


def test_batch_norm_disappears_into_every_kind_of_convolution():
    program = mc.trace(*flat(linen(LinenConvNet(), normal(4, 16, 16, 3))))
    folded = program >> mc.fold()
    assert names(program).count("rsqrt") == 4
    assert not {"rsqrt", "sub"} & set(names(folded))
    assert "state" not in str(folded.graph.paths)
    assert len(folded.graph.leaves) == 10


def flat(case):
    function, variables, inputs = case
    return function, variables, *inputs


def test_a_mapping_folds_to_params_alone():
    net = mp.Serial(
        conv=mp.layers.Conv(4, (3, 3), use_bias=False),
        norm=mp.layers.BatchNorm(),
        drop=mp.layers.Dropout(0.5),
        head=mp.layers.Dense(2),
    )
    x = normal(2, 6, 6, 1)
    variables = disturbed(net.init(jax.random.key(0), x))
    program = mc.trace(net, variables, x) >> mc.fold()
    assert program.variables.state == {}
    assert sorted(program.variables.params) == ["conv", "head", "norm"]
    assert list(program.variables.params["norm"]) == ["bias"]
    want = net(variables.params, x, state=variables.state)
    assert relative_error(program(x), want) < TOLERANCE


def test_equinox_batch_norm_folds():
    class Net(eqx.Module):
        conv: eqx.nn.Conv2d
        norm: eqx.nn.BatchNorm

        def __call__(self, x, state):
            return self.norm(self.conv(x), state)

    def make(key):
        return Net(
            eqx.nn.Conv2d(3, 4, 3, key=key), eqx.nn.BatchNorm(4, "batch", mode="ema")
        )

    model, state = eqx.nn.make_with_state(make)(jax.random.key(0))
    model = disturbed(eqx.nn.inference_mode(model))
    state = disturbed(state)

    def forward(v, x):
        run = jax.vmap(v[0], in_axes=(0, None), out_axes=(0, None), axis_name="batch")
        return run(x, v[1])[0]

    x = normal(4, 3, 8, 8)
    program = mc.trace(forward, (model, state), x)
    folded = program >> mc.fold()
    assert relative_error(folded(x), forward((model, state), x)) < TOLERANCE
    assert "rsqrt" not in names(folded)
    assert "sqrt" not in names(folded)
    assert folded.bytes < program.bytes


def test_lstm_gates_are_joined_once():
    x = normal(2, 8, 16)
    program = mc.trace(*flat(linen(nn.RNN(nn.OptimizedLSTMCell(16)), x)))
    assert "concatenate" in names(program)
    assert "concatenate" not in names(program >> mc.fold())


def test_weight_normalisation_leaves_a_loop():
    program = mc.trace(*flat(plain_while()))
    folded = program >> mc.fold()
    assert "exp" in names(program)
    assert "exp" not in names(folded)
    assert folded.graph.paths == ["w"]


def test_a_tied_embedding_stays_one_array():
    folded = mc.trace(*flat(plain_tied_embedding())) >> mc.fold()
    assert folded.graph.paths == ["e"]
    assert folded.bytes == 50 * 16 * 4


def test_stacked_experts_take_their_scales():
    folded = mc.trace(*flat(plain_experts())) >> mc.fold()
    assert folded.graph.paths == ["w"]
    assert names(folded) == ["dot_general"]


def test_a_shared_kernel_is_not_stored_twice_and_the_report_says_why():
    def function(v, x):
        return (x @ v["w"]) * v["s"] + x @ v["w"].T

    v = {"w": normal(8, 8), "s": normal(1, 8)}
    folded = mc.trace(function, v, normal(2, 8)) >> mc.fold()
    assert folded.graph.paths == ["s", "w"]
    (skipped,) = folded.history[-1].events.skipped
    assert "used elsewhere" in skipped.what
    assert "test_fold.py" in skipped.source


def test_a_product_used_twice_is_not_computed_twice():
    def function(v, x):
        y = x @ v["w"]
        return y * v["s"] + jnp.sin(y)

    v = {"w": normal(8, 8), "s": normal(1, 8)}
    folded = mc.trace(function, v, normal(2, 8)) >> mc.fold()
    assert names(folded).count("dot_general") == 1


def test_work_on_weights_that_cannot_be_kept_stays_where_it_was():
    def function(v, x):
        grow = lambda x: x @ jnp.outer(v["a"], v["b"])  # noqa: E731
        return jax.lax.cond(x.sum() > 0, grow, lambda x: x * 2.0, x)

    v = {"a": normal(8), "b": normal(8)}
    program = mc.trace(function, v, normal(2, 8))
    folded = program >> mc.fold()
    assert str(folded.graph) == str(program.graph)
    assert not folded.history[-1].events.fired


def test_random_keys_among_the_variables_stay():
    def function(v, x):
        return x @ jnp.sin(v["w"]) + jax.random.normal(v["key"], (1, 8))

    v = {"w": normal(8, 8), "key": jax.random.key(3)}
    folded = mc.trace(function, v, normal(2, 8)) >> mc.fold()
    assert sorted(folded.graph.paths) == ["key", "w"]
    x = normal(3, 8)
    assert relative_error(folded(x), function(v, x)) < TOLERANCE


def test_abstract_programs_fold_without_arrays():
    spec = jax.ShapeDtypeStruct
    v = {"w": spec((8, 8), "float32"), "s": spec((1, 8), "float32")}
    program = mc.trace(lambda v, x: x @ v["w"] * v["s"], v, spec((2, 8), "float32"))
    folded = program >> mc.fold()
    assert folded.graph.paths == ["w"]
    assert folded.variables == {"w": spec((8, 8), "float32")}


ACTIONS = st.lists(
    st.tuples(
        st.sampled_from(["mul", "div", "add", "sub", "rsub", "transpose", "reshape"]),
        st.sampled_from(["scalar", "row", "literal", "full"]),
        st.integers(0, 99),
    ),
    max_size=6,
)


@settings(max_examples=40, deadline=None)
@given(ACTIONS, st.booleans(), st.sampled_from(["left", "right", "conv"]))
def test_any_chain_of_affine_maps_after_a_product_keeps_its_value(
    actions, bias, product
):
    weights = {"w": normal(3, 1, 4, 5) if product == "conv" else normal(4, 5)}

    def function(v, x):
        if product == "conv":
            y = jax.lax.conv_general_dilated(
                x[None, :, None], v["w"], (1, 1), "SAME",
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
            )[0, :, 0]  # fmt: skip
        else:
            y = x @ v["w"] if product == "right" else (v["w"].T @ x.T).T
        if bias:
            y = y + 0.5
        flipped = False
        for i, (name, kind, _) in enumerate(actions):
            if name == "transpose":
                y, flipped = y.T, not flipped
                continue
            if name == "reshape":
                y = y.reshape(y.shape[0], 1, y.shape[1]).reshape(y.shape)
                continue
            other = v.get(f"c{i}", 1.5)
            if flipped and kind in ("row", "full"):
                other = other.T
            y = {
                "mul": lambda y, o: y * o,
                "div": lambda y, o: y / o,
                "add": lambda y, o: y + o,
                "sub": lambda y, o: y - o,
                "rsub": lambda y, o: o - y,
            }[name](y, other)
        return y

    shapes = {"scalar": (), "row": (1, 5), "full": (6, 5)}
    for i, (_, kind, seed) in enumerate(actions):
        if kind != "literal":
            values = np.random.default_rng(seed).uniform(0.5, 1.5, shapes[kind])
            weights[f"c{i}"] = jnp.asarray(values, jnp.float32)
    x = normal(6, 4, seed=4)
    program = mc.trace(function, weights, x)
    folded = program >> mc.fold()
    (got,) = folded.graph.evaluate(folded.values, [x])
    assert relative_error(got, function(weights, x)) < 1e-4
    assert folded.bytes <= program.bytes
    assert str((folded >> mc.fold()).graph) == str(folded.graph)
