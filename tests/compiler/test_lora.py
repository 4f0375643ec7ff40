"""Adapters: zero at first, trained alone, folded in again."""

import functools

import equinox as eqx
import flax.linen as nn
import flax.nnx as nnx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from adapters import SITES, W, X, disturbed, events, primitives, skipped
from zoo import ZOO, normal, relative_error

import compiler as mc
import mapping as mp
from compiler import jaxprs
from compiler.errors import UnknownPathError
from compiler.passes.adapt import lora, merge
from mapping.core import Variables, leaf_paths
from mapping.train import fit


@functools.cache
def adapted_site(name):
    """The program; adapted, with adapters that are not zero; outputs before and now."""
    function, weight, x, _ = SITES[name]
    program = mc.trace(function, weight, x)
    adapted = program >> lora(4, alpha=6.0)
    moved = disturbed(adapted)
    run = jax.jit(adapted.function)
    return program, moved, run(adapted.variables, x), run(moved.variables, x)


def abstract(name):
    """The program of a site, without arrays: nothing is compiled."""
    function, weight, x, _ = SITES[name]
    spec = jax.ShapeDtypeStruct(weight.shape, weight.dtype)
    return mc.trace(function, spec, x)


@pytest.mark.parametrize("name", SITES, ids=lambda name: name.replace(" ", "-"))
def test_the_program_is_that_of_the_weight_plus_a_b(name):
    function, weight, x, update = SITES[name]
    _, moved, first, got = adapted_site(name)
    assert list(events(moved)) == ["variables"]
    plain = jax.jit(function)
    before = plain(weight, x)
    assert np.array_equal(first, before)  # B is zero
    a, b = moved.variables.params["variables"].values()
    want = plain(weight + 1.5 * jnp.asarray(np.einsum(update, a, b)), x)
    assert relative_error(got, want) < 1e-5
    assert relative_error(got, before) > 1e-2


@pytest.mark.parametrize("name", SITES, ids=lambda name: name.replace(" ", "-"))
def test_merging_gives_the_program_back(name):
    program, moved, _, got = adapted_site(name)
    merged = moved >> merge()
    assert merged.graph.leaves == program.graph.leaves
    assert merged.graph.packing == program.graph.packing
    assert primitives(merged) == primitives(program)
    assert relative_error(merged(SITES[name][2]), got) < 1e-5
    again = merged >> merge()
    assert again.graph is merged.graph
    assert skipped(again) == {"(program)": "has no adapters"}


@pytest.mark.parametrize("name", ["linen scanned", "linen lstm"])
def test_functions_of_other_frameworks_make_the_round_trip(name):
    function, variables, inputs = ZOO[name]()
    program = mc.trace(function, variables, *inputs)
    adapted = program >> lora(2)
    moved = disturbed(adapted)
    merged = moved >> merge()
    assert merged.graph.leaves == program.graph.leaves
    want = function(merged.variables, *inputs)
    assert relative_error(moved(*inputs), want) < 2e-6
    assert jax.tree.structure(merged.variables) == jax.tree.structure(program.variables)


def test_adapting_twice_changes_nothing():
    once = abstract("heads") >> lora(4)
    twice = once >> lora(4)
    assert twice.graph is once.graph
    assert not events(twice)
    assert skipped(twice)["state/variables"] == "has an adapter already"


def test_a_b_is_not_multiplied_out_where_the_weight_is_used_plainly():
    for name in ("x @ w", "heads", "conv", "scanned", "ragged", "tied"):
        weight = SITES[name][1]
        adapted = abstract(name) >> lora(3)
        assert "multiplied out" not in events(adapted)["variables"], name
        products = [
            e.outvars[0].aval.shape
            for e, _ in jaxprs.nested(adapted.graph.jaxpr)
            if e.primitive.name == "dot_general"
        ]
        assert weight.shape[-2:] not in products, name


def test_where_a_b_is_multiplied_out_the_report_says_so():
    def function(v, x):
        step = lambda i, x: jnp.tanh(x @ (v / jnp.sum(v)))  # noqa: E731
        return jax.lax.fori_loop(0, 3, step, x)

    adapted = mc.trace(function, normal(24, 24), X) >> lora(4)
    told = events(adapted)["variables"].split("multiplied out for ")[1]
    assert "div (" in told
    assert "test_lora.py" in told
    inside = [
        e.primitive.name
        for e, times in jaxprs.nested(adapted.graph.jaxpr)
        if times == 3
    ]
    assert inside.count("dot_general") == 1  # A B is computed before the loop


def test_a_mapping_is_trained_by_its_adapters_alone():
    model = mp.layers.Dense(32) >> jax.nn.relu >> mp.layers.Dense(4)
    variables = model.init(jax.random.key(0), X)
    adapted = mc.trace(model, variables, X) >> lora(2, path="*/kernel")
    paths = list(leaf_paths(adapted.variables.params))
    assert len(paths) == 4
    assert all("/lora_" in path for path in paths)
    target = normal(64, 4, seed=3)
    fitted = fit(
        adapted,
        (normal(64, 24, seed=2), target),
        loss=mp.losses.MeanSquaredError(),
        optimizer=optax.adamw(1e-2, weight_decay=0.1),
        epochs=5,
    )
    losses = [row["loss"] for row in fitted.history.rows]
    assert losses[-1] < 0.9 * losses[0]
    same = jax.tree.map(
        lambda a, b: bool(jnp.array_equal(a, b)),
        fitted.variables.state,
        adapted.variables.state,
    )
    assert all(jax.tree.leaves(same))
    merged = adapted.with_variables(fitted.variables) >> merge()
    assert merged.graph.paths == mc.trace(model, variables, X).graph.paths
    tuned = adapted.function(fitted.variables, X)
    assert relative_error(model(merged.variables.params, X), tuned) < 1e-5


def test_the_params_of_a_flax_module_become_state():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(8)(nn.relu(nn.Dense(32, name="body")(x)))

    variables = Net().init(jax.random.key(0), X)
    adapted = mc.trace(Net().apply, variables, X) >> lora(2, path="body", train="*bias")
    assert set(adapted.graph.paths) == {
        "params/Dense_0/bias",
        "params/body/bias",
        "params/body/kernel/lora_a",
        "params/body/kernel/lora_b",
        "state/params/Dense_0/kernel",
        "state/params/body/kernel",
    }
    merged = adapted >> merge()
    assert jax.tree.structure(merged.variables) == jax.tree.structure(variables)


def test_an_nnx_model_is_adapted_by_the_paths_of_its_leaves():
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.first = nnx.Linear(24, 32, rngs=rngs)
            self.second = nnx.Linear(32, 8, rngs=rngs)

        def __call__(self, x):
            return self.second(nnx.relu(self.first(x)))

    graph, state = nnx.split(Net(nnx.Rngs(0)))
    program = mc.trace(lambda s, x: nnx.merge(graph, s)(x), state, X)
    adapted = program >> lora(2, path="second")
    (path,) = events(adapted)
    assert path.startswith("second/kernel")
    merged = disturbed(adapted) >> merge()
    assert jax.tree.structure(merged.variables) == jax.tree.structure(state)


def test_gradients_reach_both_factors():
    model = eqx.nn.MLP(24, 8, 32, 1, key=jax.random.key(0))
    program = mc.trace(lambda m, x: jax.vmap(m)(x), model, X)
    adapted = disturbed(program >> lora(3, path="layers/0/weight"))
    own = adapted.variables

    def dense(params):
        a, b = params["layers"]["0"]["weight"].values()
        new = model.layers[0].weight + 16 / 3 * (a @ b).T
        changed = eqx.tree_at(lambda m: m.layers[0].weight, model, new)
        return jnp.sum(jnp.sin(jax.vmap(changed)(X)))

    def low(params):
        return jnp.sum(jnp.sin(adapted.function(Variables(params, own.state), X)))

    assert relative_error(jax.grad(low)(own.params), jax.grad(dense)(own.params)) < 1e-5


def test_other_batch_sizes_have_the_same_adapters():
    function, weight, x, _ = SITES["conv"]
    moved = disturbed(mc.trace(function, weight, x) >> lora(3))
    more = normal(5, 8, 8, 12, seed=9)
    merged = moved >> merge()
    assert relative_error(moved(more), merged(more)) < 1e-5
    assert moved(more).shape[0] == 5


def test_the_seed_decides_a_and_every_weight_has_its_own():
    def function(v, x):
        return x @ v["a"] @ v["b"]

    program = mc.trace(function, {"a": normal(24, 24), "b": normal(24, 24)}, X)
    first, same, other = (program >> lora(4, seed=s) for s in (0, 0, 1))
    take = lambda p, name: np.asarray(p.variables.params[name]["lora_a"])  # noqa: E731
    assert np.array_equal(take(first, "a"), take(same, "a"))
    assert not np.array_equal(take(first, "a"), take(other, "a"))
    assert not np.array_equal(take(first, "a"), take(first, "b"))


def test_a_is_normal_with_the_variance_of_its_rows():
    program = mc.trace(lambda v, x: x @ v, normal(400, 40), normal(2, 400))
    a = np.asarray((program >> lora(50)).variables.params["variables"]["lora_a"])
    assert a.std() == pytest.approx(1 / 20, rel=0.02)
    assert abs(a.mean()) < 1e-3


def test_pissa_begins_at_the_leading_singular_vectors():
    program = mc.trace(lambda v, x: x @ v, W, X)
    adapted = program >> lora(4, init="pissa")
    assert relative_error(adapted(X), program(X)) < 1e-5
    a, b = adapted.variables.params["variables"].values()
    u, s, v = np.linalg.svd(np.asarray(W), full_matrices=False)
    want = (u[:, :4] * s[:4]) @ v[:4]
    assert relative_error(4.0 * a @ b, want) < 1e-5
    assert relative_error((adapted >> merge()).variables, W) < 1e-5


def test_the_stable_scale_grows_with_the_root_of_the_rank():
    assert lora(16, 32.0).scale == 2.0
    assert lora(16, 32.0, stable=True).scale == 8.0


def test_two_adaptations_of_different_weights_are_merged_together():
    def function(v, x):
        return x @ v["a"] @ v["b"]

    program = mc.trace(function, {"a": normal(24, 24), "b": normal(24, 24)}, X)
    adapted = disturbed(program >> lora(2, path="a") >> lora(3, path="b"))
    assert jax.tree.map(jnp.shape, adapted.variables.params) == {
        "a": {"lora_a": (24, 2), "lora_b": (2, 24)},
        "b": {"lora_a": (24, 3), "lora_b": (3, 24)},
    }
    merged = adapted >> merge()
    assert merged.graph.leaves == program.graph.leaves
    assert primitives(merged) == primitives(program)
    assert relative_error(merged(X), adapted(X)) < 1e-5


def test_folding_does_not_undo_it():
    adapted = disturbed(mc.trace(SITES["heads"][0], SITES["heads"][1], X) >> lora(2))
    folded = adapted >> mc.fold()
    assert folded.bytes <= adapted.bytes
    assert relative_error(folded(X), adapted(X)) < 1e-5


def test_bfloat16_weights_have_bfloat16_adapters():
    w, x = W.astype(jnp.bfloat16), X.astype(jnp.bfloat16)
    program = mc.trace(lambda v, x: x @ v, w, x)
    adapted = program >> lora(4)
    assert {leaf.spec.dtype for leaf in adapted.graph.leaves} == {jnp.dtype("bfloat16")}
    assert np.array_equal(
        np.asarray(adapted(x), np.float32), np.asarray(program(x), np.float32)
    )
    merged = disturbed(adapted) >> merge()
    assert merged.variables.dtype == jnp.bfloat16


def test_shapes_are_enough():
    spec = jax.ShapeDtypeStruct((24, 32), "float32")
    adapted = mc.trace(lambda v, x: x @ v, spec, X) >> lora(4)
    assert adapted.variables.params["variables"]["lora_a"].shape == (24, 4)
    assert (adapted >> merge()).graph.paths == ["variables"]


def test_it_is_saved_and_loaded(tmp_path):
    adapted = disturbed(mc.trace(lambda v, x: x @ v, W, X) >> lora(4))
    loaded = mc.load(adapted.save(tmp_path / "adapted"))
    assert np.array_equal(loaded(X), adapted(X))
    assert jax.tree.structure(loaded.variables) == jax.tree.structure(adapted.variables)


def test_it_is_written_as_configuration_and_read_back():
    adapted = mc.trace(lambda v, x: x @ v, W, X) >> lora(4, path=("*",))
    for program in (adapted, adapted >> merge()):
        step = program.recipe[-1]
        back = mp.from_config(mp.to_config(step))
        assert back == step
        assert vars(back) == vars(step)


def test_what_is_not_adapted_says_why():
    def function(v, tokens):
        x = v["table"][tokens]
        return x * v["gain"] + x @ v["integers"].astype(jnp.float32) + x @ v["vector"]

    weights = {
        "gain": normal(1, 24),
        "integers": jnp.ones((24, 24), jnp.int32),
        "table": normal(9, 24),
        "vector": normal(24, 1),
    }
    program = mc.trace(function, weights, jnp.arange(4))
    adapted = program >> lora(2)
    assert adapted.graph is program.graph
    why = skipped(adapted)
    assert why["gain"].startswith("reaches no product")
    assert why["integers"] == "not floating: int32"
    assert why["table"] == "is looked up only; lookups=True adapts it"
    assert why["vector"] == "is no matrix: 24 rows, 1 columns"
    both = disturbed(program >> lora(2, lookups=True))
    a, b = both.variables.params["table"].values()
    table = weights["table"] + 8 * (a @ b).T
    want = function(weights | {"table": table}, jnp.arange(4))
    assert relative_error(both(jnp.arange(4)), want) < 1e-5


def test_a_weight_that_was_quantized_and_rewritten_since_keeps_its_adapter():
    program = mc.trace(lambda v, x: x @ v["w"], {"w": normal(64, 64)}, normal(4, 64))
    small = program >> lora(2) >> mc.quantize.weights(skip="*/lora_*")
    small = small >> mc.cast("bfloat16")
    merged = small >> merge()
    assert merged.graph is small.graph
    assert "state/w is quantized and was rewritten since" in skipped(merged)["state/w"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0}, r"expected a rank of at least 1, got 0"),
        ({"alpha": -1.0}, r"expected a positive alpha, got -1.0"),
        ({"init": "zeros"}, r"expected an init of .*pissa.*got 'zeros'"),
    ],
)
def test_a_field_out_of_range_is_an_error(options, message):
    with pytest.raises(ValueError, match=message):
        lora(**options)


def test_a_glob_that_names_nothing_is_an_error():
    program = mc.trace(lambda v, x: x @ v["w"], {"w": W}, X)
    with pytest.raises(UnknownPathError, match=r"attention: names no leaf"):
        program >> lora(2, path="attention")
    with pytest.raises(UnknownPathError, match=r"bias: names no leaf"):
        program >> lora(2, train="bias")
