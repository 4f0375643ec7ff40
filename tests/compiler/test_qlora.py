"""Adapters of quantized weights: what is stored stays, and merging is exact."""

import functools

import equinox as eqx
import flax.linen as nn
import flax.nnx as nnx
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from adapters import SITES, W, X, disturbed, events, primitives, skipped
from zoo import normal, relative_error

import compiler as mc
import mapping as mp
from compiler import jaxprs
from compiler.errors import CompilerError
from compiler.passes import quantize
from compiler.passes.adapt import lora, merge
from compiler.passes.quantize.physical import encoded
from mapping.core import Variables, leaf_paths
from mapping.train import fit

USED = ("x @ w.T", "heads", "scanned", "conv", "grouped", "tied")
ALONE = ("x @ w.T", "heads", "conv")
"""Sites whose result is one product of the weight, which is not multiplied out."""

TRAINED = ("heads", "scanned", "conv", "tied")
SEQUENCE = normal(2, 8, 16)
WEIGHTS = {name: SITES[name][1] for name in USED}
INPUTS = {name: SITES[name][2] for name in USED}


def everywhere(v, x):
    """Every use of a weight, one beside the other."""
    return {name: SITES[name][0](v[name], x[name]) for name in USED}


STEPS = {"weights": quantize.weights("int8"), "dynamic": quantize.dynamic("int8")}
FOUR_BITS = quantize.weights("nf4", group=8)


class Case:
    """One program quantized, adapted, disturbed, and run."""

    def __init__(self, name):
        self.program = mc.trace(everywhere, WEIGHTS, INPUTS)
        self.quantized = self.program >> STEPS[name]
        self.adapted = self.quantized >> lora(4, alpha=6.0, lookups=True)
        self.moved = disturbed(self.adapted)
        run = jax.jit(self.adapted.function)
        self.before = self.quantized(INPUTS)
        self.first = run(self.adapted.variables, INPUTS)
        self.outputs = run(self.moved.variables, INPUTS)


case = functools.cache(Case)


def decoded(program):
    """The floating weights a quantized program stands for, by path."""
    found = encoded(program.graph)
    values = dict(zip(program.graph.paths, program.values, strict=True))
    return {
        path: encoding.decode({n: values[f"{path}/{n}"] for n in encoding.names})
        for path, encoding in found.stored.encodings.items()
    }


def update(name, params):
    """What an adapter adds to its weight."""
    a, b = params[name]["lora_a"], params[name]["lora_b"]
    return 1.5 * jnp.einsum(SITES[name][3], a, b)


@pytest.mark.parametrize("name", STEPS)
def test_it_begins_as_the_quantized_program(name):
    here = case(name)
    assert set(events(here.adapted)) == set(USED)
    for site in USED:
        assert np.array_equal(here.first[site], here.before[site]), site


def test_the_program_is_that_of_the_decoded_weight_plus_a_b():
    here = case("weights")
    stored, params = decoded(here.quantized), here.moved.variables.params
    weights = {site: stored[site] + update(site, params) for site in USED}
    want = jax.jit(everywhere)(weights, INPUTS)
    for site in USED:
        assert relative_error(here.outputs[site], want[site]) < 1e-5, site
        assert relative_error(here.outputs[site], here.first[site]) > 1e-2, site


def test_products_of_integers_stay_and_the_adapter_is_added():
    here = case("dynamic")
    params = here.moved.variables.params
    added = jax.jit(everywhere)({site: update(site, params) for site in USED}, INPUTS)
    for site in ALONE:
        want = here.before[site] + added[site]
        assert relative_error(here.outputs[site], want) < 1e-5, site
    sums = [
        e.outvars[0].aval.dtype
        for e, _ in jaxprs.nested(here.adapted.graph.jaxpr)
        if e.primitive.name in ("dot_general", "conv_general_dilated")
    ]
    assert sums.count(jnp.int32) >= len(ALONE)


def test_merging_gives_floating_weights_and_the_same_function():
    here = case("weights")
    merged = here.moved >> merge()
    assert merged.graph.leaves == here.program.graph.leaves
    assert merged.graph.packing == here.program.graph.packing
    assert primitives(merged) == primitives(here.program)
    got = merged(INPUTS)
    for site in USED:
        assert relative_error(got[site], here.outputs[site]) < 1e-5, site
    again = merged >> merge()
    assert again.graph is merged.graph
    assert skipped(again) == {"(program)": "has no adapters"}
    stored, params = decoded(here.quantized), here.moved.variables.params
    for site in USED:
        want = np.asarray(stored[site], np.float64) + update(site, params)
        assert relative_error(merged.variables[site], want) < 1e-6, site


def test_merging_products_of_integers_moves_no_more_than_activations_were_rounded():
    moved = disturbed(mc.trace(lambda v, x: x @ v, W, X) >> STEPS["dynamic"] >> lora(4))
    merged = moved >> merge()
    (stored,) = decoded(moved).values()
    step = np.abs(X).max(1, keepdims=True) / 127
    bound = step / 2 * np.abs(stored).sum(0) * (1 + 1e-4)
    error = np.abs(merged(X) - moved(X))
    assert np.all(error <= bound)
    assert error.max() > 0


def test_the_sum_can_be_stored_as_the_weight_was():
    here = case("weights")
    merged = here.moved >> merge()
    small = here.moved >> merge(requantize=True)
    assert small.graph.leaves == here.quantized.graph.leaves
    told = events(small)["state/heads"]
    assert told == "its adapter merged into it, int8 -> int8"
    for site, got in decoded(small).items():
        want = np.asarray(merged.variables[site], np.float64)
        step = np.asarray(small.variables[site]["scale"], np.float64)
        assert np.all(np.abs(np.asarray(got) - want) <= step * 0.5 * (1 + 1e-5)), site
    anew = merged >> STEPS["weights"]
    assert anew.graph.leaves == small.graph.leaves


def test_what_is_not_merged_stays_as_it_is_stored():
    program = mc.trace(lambda v, x: x @ v["a"] @ v["b"], {"a": W, "b": W.T}, X)
    small = program >> quantize.weights("nf4")
    moved = disturbed(small >> lora(2, path="a"))
    merged = moved >> merge()
    assert merged.graph.paths == ["a", "b/scale", "b/values"]
    for name in ("scale", "values"):
        assert np.array_equal(merged.variables["b"][name], small.variables["b"][name])
    again = merged >> quantize.weights("int8")
    assert list(events(again)) == ["a"]


def test_two_adaptations_and_two_schemes_are_merged_together():
    program = mc.trace(lambda v, x: x @ v["a"] @ v["b"], {"a": W, "b": W.T}, X)
    first = program >> quantize.weights("int8", skip="b") >> lora(2, path="a")
    both = first >> quantize.weights("nf4", skip="params/*") >> lora(3, path="b")
    assert jax.tree.map(jnp.shape, both.variables.params) == {
        "a": {"lora_a": (24, 2), "lora_b": (2, 32)},
        "b": {"lora_a": (32, 3), "lora_b": (3, 24)},
    }
    moved = disturbed(both)
    merged = moved >> merge()
    assert merged.graph.leaves == program.graph.leaves
    assert relative_error(merged(X), moved(X)) < 1e-5


def test_gradients_are_those_of_the_floating_model_and_reach_adapters_only():
    here = case("weights")
    own, stored = here.moved.variables, decoded(here.quantized)

    def loss(outputs):
        return sum(jnp.sum(jnp.sin(outputs[site] / 4)) for site in TRAINED)

    def low(params):
        return loss(here.adapted.function(Variables(params, own.state), INPUTS))

    def dense(params):
        weights = {site: stored[site] + update(site, params) for site in USED}
        return loss(everywhere(weights, INPUTS))

    got, want = jax.jit(jax.grad(low))(own.params), jax.jit(jax.grad(dense))(own.params)
    assert all("/lora_" in path for path in leaf_paths(got))
    for site in TRAINED:
        assert relative_error(got[site], want[site]) < 1e-5, site


def test_only_what_the_adapter_needs_is_added_to_the_equations():
    weight = jax.ShapeDtypeStruct((2048, 2048), jnp.float32)
    x = jax.ShapeDtypeStruct((2, 2048), jnp.float32)
    small = mc.trace(lambda v, x: x @ v, weight, x) >> quantize.weights("int8")
    adapted = small >> lora(8)
    more = primitives(adapted) - primitives(small)
    assert more == {"dot_general": 2, "mul": 1, "add": 1}
    assert not primitives(small) - primitives(adapted)
    whole = [
        v
        for e in jaxprs.equations(adapted.graph.jaxpr)
        for v in e.outvars
        if v.aval.size >= 2048 * 2048 and jnp.issubdtype(v.aval.dtype, jnp.floating)
    ]
    assert not whole
    assert adapted.bytes == small.bytes + 4 * 2 * 8 * 2048


def test_a_model_in_four_bits_is_trained_by_its_adapters_alone():
    model = mp.layers.Dense(32) >> jax.nn.relu >> mp.layers.Dense(4)
    variables = model.init(jax.random.key(0), X)
    program = mc.trace(model, variables, X)
    adapted = program >> FOUR_BITS >> lora(2, train="*/bias")
    paths = list(leaf_paths(adapted.variables.params))
    assert sum("/lora_" in path for path in paths) == 4
    assert sum(path.endswith("/bias") for path in paths) == 2
    fitted = fit(
        adapted,
        (normal(64, 24, seed=2), normal(64, 4, seed=3)),
        loss=mp.losses.MeanSquaredError(),
        optimizer=optax.adamw(1e-2, weight_decay=0.1),
        epochs=5,
    )
    losses = [row["loss"] for row in fitted.history.rows]
    assert losses[-1] < 0.9 * losses[0]
    for a, b in zip(
        jax.tree.leaves(fitted.variables.state),
        jax.tree.leaves(adapted.variables.state),
        strict=True,
    ):
        assert np.array_equal(a, b)
    trained = adapted.with_variables(fitted.variables)
    merged = trained >> merge()
    assert merged.graph.paths == program.graph.paths
    assert relative_error(model(merged.variables.params, X), trained(X)) < 1e-5


def filled(shapes):
    """Variables of these shapes; drawing them as frameworks do compiles for long."""
    leaves, tree = jax.tree.flatten(shapes)
    made = [normal(*leaf.shape, seed=i) / 4 for i, leaf in enumerate(leaves)]
    return jax.tree.unflatten(tree, made)


def linen_lstm():
    module = nn.RNN(nn.OptimizedLSTMCell(16))
    shapes = jax.eval_shape(module.init, jax.random.key(0), SEQUENCE)
    return module.apply, filled(shapes)


def equinox_network():
    shapes = eqx.filter_eval_shape(eqx.nn.MLP, 16, 8, 32, 1, key=jax.random.key(0))
    arrays, rest = eqx.partition(shapes, lambda leaf: hasattr(leaf, "dtype"))
    model = eqx.combine(filled(arrays), rest)
    return (lambda m, x: jax.vmap(jax.vmap(m))(x)), model


def haiku_gru():
    def forward(x):
        core = hk.GRU(16)
        return hk.dynamic_unroll(core, x, core.initial_state(x.shape[1]))[0]

    model = hk.without_apply_rng(hk.transform(forward))
    shapes = jax.eval_shape(model.init, jax.random.key(0), SEQUENCE)
    return model.apply, filled(shapes)


def plain_experts():
    def forward(v, x):
        return jax.vmap(lambda w, s, x: (x @ w) * s)(v["w"], v["s"], x)

    return forward, {"w": normal(2, 16, 16), "s": normal(2, 1, 16)}


MODELS = [linen_lstm, equinox_network, haiku_gru, plain_experts]


@pytest.mark.parametrize("build", MODELS)
def test_functions_of_other_frameworks_make_the_round_trip(build):
    function, variables = build()
    program = mc.trace(function, variables, SEQUENCE)
    small = program >> STEPS["weights"]
    adapted = small >> lora(2)
    assert events(adapted)
    moved = disturbed(adapted)
    merged = moved >> merge()
    got = moved(SEQUENCE)
    assert relative_error(got, program.function(merged.variables, SEQUENCE)) < 1e-5
    assert relative_error(got, small(SEQUENCE)) > 1e-3


def test_an_nnx_model_is_adapted_by_the_paths_of_its_leaves():
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.first = nnx.Linear(24, 32, rngs=rngs)
            self.second = nnx.Linear(32, 8, rngs=rngs)

        def __call__(self, x):
            return self.second(nnx.relu(self.first(x)))

    graph, state = nnx.split(Net(nnx.Rngs(0)))
    program = mc.trace(lambda s, x: nnx.merge(graph, s)(x), state, X)
    adapted = program >> quantize.dynamic("int8") >> lora(2, path="second")
    (path,) = events(adapted)
    assert path.startswith("second/kernel")
    assert "state/first/kernel/value/values" in adapted.graph.paths
    merged = disturbed(adapted) >> merge()
    assert "second/kernel/value" in merged.graph.paths
    assert "first/kernel/value/values" in merged.graph.paths


def test_calibrated_scales_stay_with_their_products():
    def function(v, x):
        return jnp.tanh(x @ v["a"]) @ v["b"] @ v["b"].T

    program = mc.trace(function, {"a": normal(24, 32), "b": normal(32, 16)}, X)
    small = program >> quantize.static("int8", batches=[X])
    adapted = small >> lora(2)
    assert np.array_equal(adapted(X), small(X))
    paths = set(adapted.graph.paths)
    assert {"state/b/input_scale", "state/b/input_scale_1"} <= paths
    back = adapted >> merge(requantize=True)
    assert back.graph.leaves == small.graph.leaves
    assert relative_error(back(X), small(X)) < 1e-6  # B is zero
    assert (adapted >> merge()).graph.paths == ["a", "b"]


def test_adapting_twice_changes_nothing():
    once = case("weights").adapted
    twice = once >> lora(4)
    assert twice.graph is once.graph
    assert not events(twice)
    assert skipped(twice)["state/heads"] == "has an adapter already"


def test_other_batch_sizes_have_the_same_adapters():
    program = mc.trace(lambda v, x: jnp.tanh(x @ v), W, X)
    moved = disturbed(program >> quantize.dynamic("int8") >> lora(3))
    more = normal(7, 24, seed=9)
    each = jnp.concatenate([moved(row[None]) for row in more])
    assert relative_error(moved(more), each) < 1e-5
    assert moved.graph.inputs[0].shape == (4, 24)


def test_it_is_saved_and_loaded(tmp_path):
    moved = disturbed(mc.trace(lambda v, x: x @ v, W, X) >> FOUR_BITS >> lora(4))
    loaded = mc.load(moved.save(tmp_path / "adapted"))
    assert relative_error(loaded(X), moved(X)) == 0
    assert jax.tree.structure(loaded.variables) == jax.tree.structure(moved.variables)


def test_it_is_written_as_configuration_and_read_back():
    adapted = mc.trace(lambda v, x: x @ v, W, X) >> FOUR_BITS >> lora(4)
    for program in (adapted, adapted >> merge(requantize=True)):
        step = program.recipe[-1]
        back = mp.from_config(mp.to_config(step))
        assert back == step
        assert vars(back) == vars(step)
    assert merge(requantize=True) != merge()


def test_shapes_are_enough():
    spec = jax.ShapeDtypeStruct((24, 32), "bfloat16")
    x = jax.ShapeDtypeStruct((4, 24), "bfloat16")
    small = mc.trace(lambda v, x: x @ v, spec, x) >> quantize.weights("int8")
    adapted = small >> lora(4)
    assert adapted.variables.params["variables"]["lora_a"].dtype == jnp.bfloat16
    assert (adapted >> merge()).graph.paths == ["variables"]


def test_a_program_that_was_adapted_and_then_quantized_is_merged():
    program = mc.trace(lambda v, x: x @ v, W, X)
    first = program >> lora(4, init="pissa")
    for skip in ("params/*", ()):
        small = first >> quantize.weights("int8", skip=skip)
        merged = small >> merge()
        assert merged.graph.leaves == program.graph.leaves
        assert relative_error(merged(X), small(X)) < 1e-5
        assert relative_error(merged.variables, W) < 1e-2


def test_a_program_that_trains_its_weights_is_converted_first():
    program = mc.trace(lambda v, x: x @ v["w"], {"w": W}, X)
    training = program >> quantize.train("int8")
    refused = training >> lora(2)
    assert refused.graph is training.graph
    why = "is of a program that trains its weights in few bits; convert it first"
    assert skipped(refused) == {"w": why}
    assert events(training >> quantize.convert() >> lora(2))
    both = program >> lora(2) >> quantize.train("int8", skip="params/*")
    kept = both >> merge()
    assert kept.graph is both.graph
    assert skipped(kept) == {
        "state/w": "the program trains its weights in few bits. Convert it first"
    }
    merged = both >> quantize.convert() >> merge()
    assert merged.graph.leaves == program.graph.leaves


def test_what_is_not_adapted_says_why():
    program = mc.trace(lambda v, x: x @ v["w"] + v["b"], {"w": W, "b": W[:1]}, X)
    small = program >> quantize.weights("nf4")
    refused = small >> lora(2, init="pissa")
    assert refused.graph is small.graph
    assert skipped(refused)["w"].startswith("is stored in nf4 group 32: what pissa")
    trained = small >> lora(2, train="*")
    assert "params/b" in trained.graph.paths
    assert skipped(trained)["w"] == (
        "is stored in nf4 group 32 and cannot be trained itself"
    )


@pytest.mark.parametrize("dtype", ["int8", "nf4", "float8_e4m3"])
def test_a_program_that_was_rewritten_since_is_left(dtype):
    def function(v, x):
        return jnp.tanh(x @ v["w"] + 0.0)

    small = mc.trace(function, {"w": W}, X) >> quantize.weights(dtype)
    changed = small >> mc.simplify()
    assert encoded(changed.graph) is None
    late = changed >> lora(2)
    assert late.graph is changed.graph
    why = "quantized and rewritten since; put lora right after the quantizing pass"
    assert skipped(late) == {"w/scale": why, "w/values": why}
    moved = disturbed(small >> lora(2)) >> mc.simplify()
    kept = moved >> merge()
    assert kept.graph is moved.graph
    assert skipped(kept)["state/w"] == (
        "state/w is quantized and was rewritten since. Merge before that"
    )


def test_a_glob_that_names_nothing_is_an_error():
    small = mc.trace(lambda v, x: x @ v, W, X) >> FOUR_BITS
    with pytest.raises(CompilerError, match=r"attention: names no leaf"):
        small >> lora(2, path="attention")
