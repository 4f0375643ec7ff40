"""Rules, coverage, and programs that are quantized in more than one step."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from zoo import normal, relative_error

import compiler as mc
import mapping as mp
from compiler.errors import CalibrationError, CoverageError
from compiler.passes.quantize import Activations, Rule, Scheme
from compiler.passes.quantize.shared import shared

X, W = normal(4, 16), normal(16, 16)
WEIGHTS = {
    "embed": {"table": normal(20, 16)},
    "first": {"kernel": normal(16, 32), "bias": normal(1, 32)},
    "second": {"kernel": normal(32, 16, seed=1)},
    "head": {"kernel": normal(16, 8, seed=2)},
}


def net(v, x):
    x = x + v["embed"]["table"][jnp.arange(4)]
    x = jax.nn.relu(x @ v["first"]["kernel"] + v["first"]["bias"])
    x = x @ v["second"]["kernel"]
    return (x @ x.T) @ x @ v["head"]["kernel"]


def program():
    return mc.trace(net, WEIGHTS, X)


def schemes(small):
    """By path, what was told of each weight."""
    events = small.history[-1].events.fired
    return {e.path: e.what.split(" -> ")[1].split(",")[0] for e in events}


def test_the_first_rule_that_matches_counts():
    rules = {"head/*": None, "second": "int4", "second/kernel": "int8", "*": "nf4"}
    assert schemes(program() >> mc.quantize.weights(rules=rules)) == {
        "embed/table": "nf4 group 32",
        "first/kernel": "nf4 group 32",
        "second/kernel": "int4 group 32 mse",
    }


def test_rules_by_kind_of_product():
    rules = [Rule("*", "lookup", Scheme("int4", group=8)), Rule("*", "conv", "nf4")]
    small = program() >> mc.quantize.weights(rules=rules)
    assert schemes(small)["embed/table"] == "int4 group 8"
    assert schemes(small)["head/kernel"] == "int8"
    unused = [e for e in small.history[-1].events.skipped if "matched" in e.what]
    assert [str(e) for e in unused] == ["* (conv) -> nf4 group 32: matched nothing"]


def test_a_rule_may_leave_activations_as_they_are():
    rules = [Rule("head", scheme="int8", activations=None)]
    rules += [Rule("first", scheme="int8", activations=Activations(per="tensor"))]
    small = program() >> mc.quantize.dynamic(rules=rules)
    how = {row.leaf: row.how for row in mc.quantize.coverage(small).rows if row.leaf}
    assert how["head/kernel"] == "weight only"
    assert how["first/kernel"] == how["second/kernel"] == "integer"


def test_coverage_counts_bytes_and_flops():
    small = program() >> mc.quantize.dynamic(skip="head/*")
    found = mc.quantize.coverage(small)
    bytes_of = {leaf.path: leaf.bytes for leaf in program().graph.leaves}
    done = sum(bytes_of[p] for p in ("embed/table", "first/kernel", "second/kernel"))
    assert found.share == pytest.approx(done / sum(bytes_of.values()))
    flops = {
        "first": 2 * 4 * 16 * 32,
        "second": 2 * 4 * 32 * 16,
        "head": 2 * 4 * 16 * 8,
    }
    both = flops["first"] + flops["second"]
    everything = sum(flops.values()) + 2 * (2 * 4 * 16 * 4)
    assert found.flops == found.integer_flops == pytest.approx(both / everything)


def test_coverage_gives_one_reason_for_each_product_that_is_left():
    found = mc.quantize.coverage(program() >> mc.quantize.weights(skip="head/*"))
    left = {(row.leaf or row.path, row.kind): row.why for row in found.rows if row.why}
    assert left["head/kernel", "dot"] == "left out by rule head/*"
    assert left["first/bias", ""].startswith("reaches no product")
    lone = [row for row in found.rows if row.kind == "dot" and not row.leaf]
    assert len(lone) == 2
    assert all("no weight" in row.why and "test_quantize" in row.source for row in lone)
    assert "bytes quantized" in str(found)


def test_too_little_coverage_is_an_error():
    with pytest.raises(CoverageError, match=r"at least 99.*got 6.*first/kernel: left"):
        program() >> mc.quantize.weights(skip="first/*", min_coverage=0.99)
    program() >> mc.quantize.weights(min_coverage=0.95)
    with pytest.raises(ValueError, match="a share from 0 to 1"):
        mc.quantize.weights(min_coverage=95)


def test_a_program_that_was_not_quantized_has_no_coverage():
    with pytest.raises(LookupError, match=r"Apply quantize\.weights"):
        mc.quantize.coverage(program())


def test_two_schemes_in_two_steps_are_two_rules_in_one():
    one = program() >> mc.quantize.weights("nf4", skip="head/*")
    two = one >> mc.quantize.dynamic("int8")
    rules = [Rule("head/*", scheme="int8", activations=Activations())]
    together = program() >> mc.quantize.weights("nf4", rules=rules)
    assert two.graph.paths == together.graph.paths
    assert schemes(two) == {"head/kernel": "int8"}
    assert relative_error(two(X), program()(X)) < 0.3
    reasons = {e.path: e.what for e in two.history[-1].events.skipped}
    assert reasons["first/kernel"] == "is quantized already"
    assert two.bytes == together.bytes


def test_after_another_pass_what_is_quantized_stays():
    once = program() >> mc.quantize.weights("float8_e4m3", skip="head/*")
    again = once >> mc.simplify() >> mc.quantize.weights("int8")
    assert schemes(again) == {"head/kernel": "int8"}
    reasons = {e.path: e.what for e in again.history[-1].events.skipped}
    assert (
        reasons["first/kernel/values"]
        == "belongs to a weight that is quantized already"
    )


@pytest.mark.parametrize("mode", ["weights", "dynamic", "static"])
def test_the_same_for_other_batch_sizes_and_under_every_transformation(mode):
    def rows(v, x):
        return jax.nn.relu(x @ v["a"]) @ v["b"]

    v = {"a": normal(16, 32), "b": normal(32, 8)}
    before = mc.trace(rows, v, X)
    step = {
        "weights": mc.quantize.weights("int4"),
        "dynamic": mc.quantize.dynamic(),
        "static": mc.quantize.static(batches=[X]),
    }[mode]
    small = before >> step
    y = small(X)
    np.testing.assert_allclose(small(X[:1]), y[:1], rtol=1e-6, atol=1e-6)
    run = small.function
    mapped = jax.vmap(lambda x: run(small.variables, x[None])[0])(X)
    np.testing.assert_allclose(mapped, y, rtol=1e-6, atol=1e-6)
    _, moved = jax.jvp(lambda x: run(small.variables, x), (X,), (jnp.ones_like(X),))
    _, pull = jax.vjp(lambda x: run(small.variables, x), X)
    ones = jnp.ones_like(moved)
    (pulled,) = pull(ones)
    np.testing.assert_allclose((moved * ones).sum(), pulled.sum(), rtol=1e-4)


@pytest.mark.parametrize("mode", ["weights", "dynamic", "static"])
def test_a_recipe_is_data(mode):
    rules = [Rule("head", "dot", "int4", None), Rule("embed", scheme=None)]
    step = {
        "weights": mc.quantize.weights("nf4", rules=rules, min_coverage=0.1),
        "dynamic": mc.quantize.dynamic(per="tensor", symmetric=False, rules=rules),
        "static": mc.quantize.static(batches=[X], rules=rules),
    }[mode]
    small = program() >> step
    (decided,) = small.recipe
    again = mp.from_config(mp.to_config(decided))
    assert again == decided
    assert np.array_equal((program() >> again)(X), small(X))


@pytest.mark.parametrize("mode", ["weights", "dynamic", "static"])
def test_saved_and_loaded_it_computes_the_same(mode, tmp_path):
    def rows(v, x):
        return jax.nn.relu(x @ v["a"]) @ v["b"]

    v, x = {"a": normal(64, 32), "b": normal(32, 8)}, normal(4, 64)
    step = {
        "weights": mc.quantize.weights("mxfp8"),
        "dynamic": mc.quantize.dynamic(),
        "static": mc.quantize.static(batches=[x]),
    }[mode]
    small = mc.trace(rows, v, x) >> step
    loaded = mc.load(small.save(tmp_path / mode))
    np.testing.assert_allclose(loaded(x), small(x), rtol=1e-6)
    np.testing.assert_allclose(loaded(x[:3]), small(x[:3]), rtol=1e-6)


@pytest.mark.parametrize(
    ("dtype", "bits"),
    [
        ("int8", 8),
        ("int4", 4),
        ("nf4", 4),
        ("float8_e4m3", 8),
        ("mxfp4", 4),
        ("int2", 2),
    ],
)
def test_an_artifact_is_as_large_as_the_arithmetic_says(dtype, bits, tmp_path):
    v = {"a": normal(256, 512), "b": normal(512, 256, seed=1), "bias": normal(1, 256)}
    before = mc.trace(lambda v, x: x @ v["a"] @ v["b"] + v["bias"], v, normal(2, 256))
    small = before >> mc.quantize.weights(dtype)
    scales = [leaf.bytes for leaf in small.graph.leaves if leaf.path.endswith("scale")]
    counted = 2 * 256 * 512 * bits / 8 + 4 * 256 + sum(scales)
    folder = small.save(tmp_path / "small.mapping")
    size = (folder / "variables.safetensors").stat().st_size
    assert size == pytest.approx(counted, rel=0.03)


@pytest.mark.parametrize("mode", ["weights", "dynamic", "static"])
def test_a_stack_is_used_in_a_loop_and_outside_of_it(mode):
    def function(v, x):
        x = jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, v["w"])[0]
        return x @ v["w"][1]

    before = mc.trace(function, {"w": 0.3 * normal(3, 16, 16)}, X)
    step = {
        "weights": mc.quantize.weights(),
        "dynamic": mc.quantize.dynamic(),
        "static": mc.quantize.static(batches=[X]),
    }[mode]
    assert relative_error((before >> step)(X), before(X)) < 0.05


@pytest.mark.parametrize("fill", [None, 0.0, 7.0])
@pytest.mark.parametrize("mode", ["fill", "clip"])
def test_an_index_out_of_bounds_gives_what_it_gave(mode, fill):
    def function(v, i):
        return v["table"].at[i].get(mode=mode, fill_value=fill)

    index = jnp.array([0, 19, 20, -21, 50])
    before = mc.trace(function, {"table": normal(20, 16)}, index)
    small = before >> mc.quantize.weights("int8")
    np.testing.assert_allclose(small(index), before(index), atol=0.02)


def test_no_batches_is_an_error():
    with pytest.raises(CalibrationError, match="expected batches"):
        program() >> mc.quantize.static()


def test_tokens_are_not_known_beforehand():
    with pytest.raises(ValueError, match="per tensor"):
        mc.quantize.static(activations=Activations(per="token"))


def test_what_is_concatenated_or_added_shares_a_scale():
    def function(v, x, y):
        joined = jnp.concatenate([x, 3 * y], 1) @ v["joined"]
        branch = jnp.tanh(y)
        residual = jax.nn.relu(x + branch)
        return joined, x @ v["x"], residual @ v["r"], branch @ v["y"]

    v = {"joined": normal(32, 8), **{k: normal(16, 8) for k in "xry"}}
    before = mc.trace(function, v, X, X)
    assert shared(before.graph) == [("joined", "x", "y")]
    small = before >> mc.quantize.static(batches=[(X, X)])
    scale = {k: float(small.variables[k]["input_scale"]) for k in v}
    assert scale["joined"] == scale["x"] == scale["y"] != scale["r"]
    assert scale["joined"] == pytest.approx(float(jnp.abs(3 * X).max()) / 127)


def test_calls_of_one_function_have_scales_of_their_own():
    @jax.jit
    def layer(w, x):
        return jnp.tanh(x @ w)

    before = mc.trace(lambda v, x: layer(v["w"], layer(v["w"], x)), {"w": W}, 9 * X)
    small = before >> mc.quantize.static(batches=[9 * X])
    first, second = (
        float(small.variables["w"][name]) for name in ("input_scale", "input_scale_1")
    )
    assert first == pytest.approx(float(jnp.abs(9 * X).max()) / 127)
    assert second == pytest.approx(float(jnp.abs(jnp.tanh(9 * X @ W)).max()) / 127)


def test_steps_of_a_loop_have_scales_of_their_own():
    def function(v, x):
        return jax.lax.scan(lambda x, w: (2 * jnp.tanh(x @ w), None), x, v["w"])[0]

    before = mc.trace(function, {"w": 0.2 * normal(3, 16, 16)}, 5 * X)
    small = before >> mc.quantize.static(batches=[5 * X])
    scale = np.asarray(small.variables["w"]["input_scale"])
    assert scale.shape == (3,)
    assert scale[0] > 1.2 * scale[1]

    def unrolled(v, x):
        for step in "012":
            x = 2 * jnp.tanh(x @ v[step])
        return x

    steps = dict(zip("012", 0.2 * normal(3, 16, 16), strict=True))
    one_by_one = mc.trace(unrolled, steps, 5 * X) >> mc.quantize.static(batches=[5 * X])
    np.testing.assert_allclose(small(5 * X), one_by_one(5 * X), rtol=1e-6, atol=1e-6)
