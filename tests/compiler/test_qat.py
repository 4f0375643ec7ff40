"""Training for few bits: what is trained is what is stored, bit for bit."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn.datasets import load_digits
from zoo import linen, normal

import compiler as mc
import mapping as mp
from compiler.errors import CalibrationError, ConversionError, NonFiniteWeightsError
from compiler.passes import quantize
from compiler.passes.quantize import Activations
from compiler.passes.quantize.storage.scheme import Scheme

X = normal(4, 16)


def mlp(v, x):
    return jnp.tanh(x @ v["a"] + v["bias"][None]) @ v["b"] * 2.0 + x


MLP = {"a": normal(16, 32), "bias": normal(32, seed=1), "b": normal(32, 16, seed=2)}


def lstm(v, x):
    def cell(carry, now):
        h, c = carry
        gates = now @ v["inputs"] + h @ v["hidden"] + v["bias"]
        i, f, g, o = jnp.split(gates, 4, -1)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        h = jax.nn.sigmoid(o) * jnp.tanh(c)
        return (h, c), h

    start = jnp.zeros((x.shape[0], 8), x.dtype)
    return jax.lax.scan(cell, (start, start), jnp.moveaxis(x, 1, 0))[1]


def conv(v, x):
    numbers = ("NHWC", "HWIO", "NHWC")
    y = jax.lax.conv_general_dilated(
        x, v["w"], (1, 1), "SAME", dimension_numbers=numbers
    )
    return jax.nn.relu(y + v["bias"])


def heads(v, x):
    return jnp.einsum("bhk,hkd->bd", jnp.einsum("bd,dhk->bhk", x, v["q"]), v["o"])


def layers(v, x):
    def step(h, layer):
        return h + jnp.tanh(h @ layer[0] + layer[1]), None

    return jax.lax.scan(step, x, (v["w"], v["bias"]))[0]


def tied(v, x):
    return jnp.tanh(v["e"][jnp.arange(4)] + x) @ v["e"].T


def looped(v, x):
    return jax.lax.fori_loop(0, 3, lambda i, h: jnp.tanh(h @ v["w"]) + x, x)


def normed(v, x):
    """Uses the whole weight outside of products too, in sums of its elements."""
    scaled = v["w"] / jnp.linalg.norm(v["w"], axis=0, keepdims=True)
    return x @ scaled + (v["w"] - v["w"].mean())[:1]


FUNCTIONS = {
    "mlp": (mlp, MLP, X),
    "heads": (heads, {"q": normal(16, 4, 8), "o": normal(4, 8, 16)}, X),
    "conv": (
        conv,
        {"w": normal(3, 3, 8, 8), "bias": normal(1, 1, 1, 8)},
        normal(2, 6, 6, 8),
    ),
    "layers": (
        layers, {"w": 0.2 * normal(3, 16, 16), "bias": normal(3, 1, 16)}, X
    ),
    "tied": (tied, {"e": normal(50, 16)}, X),
    "lstm": (
        lstm,
        {"inputs": normal(16, 32), "hidden": normal(8, 32), "bias": normal(1, 32)},
        normal(4, 5, 16),
    ),
    "looped": (looped, {"w": normal(16, 16)}, X),
    "normed": (normed, {"w": normal(16, 32)}, X),
}  # fmt: skip
INT4 = Scheme("int4", group=8, clip="max")
MODES = {
    "int8": {"dtype": "int8"},
    "int4": {"dtype": INT4},
    "int4 with zeros": {"dtype": INT4, "symmetric": False},
    "nf4": {"dtype": "nf4", "group": 16},
    "float8": {"dtype": "float8_e4m3"},
    "mxfp4": {"dtype": "mxfp4"},
    "int4 not learned": {"dtype": "int4", "group": "tensor", "learned": False},
    "dynamic": {"dtype": "int8", "activations": "int8"},
    "dynamic int4": {"dtype": INT4, "mode": "dynamic"},
    "static": {"dtype": "int8", "mode": "static"},
    "static with zeros": {
        "dtype": "int4",
        "group": "channel",
        "mode": "static",
        "activations": Activations(per="tensor", symmetric=False),
    },
}
CASES = [
    ("normed", "int8", "float32"),
    ("normed", "int4 not learned", "bfloat16"),
    ("mlp", "static", "bfloat16"),
    ("mlp", "dynamic int4", "float32"),
    ("heads", "int4", "float32"),
    ("conv", "static with zeros", "float32"),
    ("conv", "float8", "float32"),
    ("looped", "int8", "float32"),
    ("layers", "int4 with zeros", "bfloat16"),
    ("layers", "static", "float32"),
    ("tied", "nf4", "float32"),
    ("tied", "mxfp4", "bfloat16"),
    ("lstm", "dynamic", "float32"),
]


def moved(program, seed=7):
    """The program as some training leaves it: every leaf is another."""
    rng = np.random.default_rng(seed)

    def move(leaf):
        by = 1 + 0.1 * rng.normal(size=leaf.shape)
        return jnp.asarray(np.asarray(leaf, np.float32) * by, leaf.dtype)

    return program.with_variables(jax.tree.map(move, program.variables))


def bits(array):
    return np.asarray(array).tobytes()


class Doubled(mc.Pass):
    """A pass that makes other leaves."""

    def rewrite(self, graph):
        return mc.Rewrite(graph, lambda leaves: [2 * leaf for leaf in leaves])


@pytest.mark.parametrize(("name", "mode", "dtype"), CASES)
def test_the_converted_program_computes_what_was_trained_bit_for_bit(name, mode, dtype):
    function, variables, x = FUNCTIONS[name]
    variables, x = jax.tree.map(lambda a: a.astype(dtype), (variables, x))
    options = dict(MODES[mode])
    if options.get("mode") == "static":
        options["batches"] = [x]
    program = mc.trace(function, variables, x)
    trained = moved(program >> quantize.train(**options))
    small = trained >> quantize.convert()
    assert small.bytes < program.bytes
    assert bits(small(x)) == bits(trained(x))
    assert np.isfinite(np.asarray(trained(x), np.float32)).all()


@pytest.mark.parametrize(
    ("step", "options"),
    [
        (quantize.weights, {"dtype": INT4}),
        (quantize.static, {"dtype": "int8", "batches": [X]}),
    ],
)
def test_training_begins_as_what_quantizing_after_training_gives(step, options):
    program = mc.trace(mlp, MLP, X)
    mode = step.__name__
    begun = quantize.train(**options, mode=mode)(program)
    assert bits(begun(X)) == bits(step(**options)(program)(X))


def numpy_steps(w, scale, group):
    """What numpy has to say of learned steps of int4: codes, range, gradients."""
    full = np.repeat(scale, group, 0)
    ratio = w / full
    return full, ratio, np.clip(np.round(ratio), -7, 7), np.abs(ratio) <= 7


def test_gradients_pass_straight_through_inside_the_range_and_are_zero_outside():
    w, x, target = normal(16, 8), normal(32, 16, seed=1), normal(32, 8, seed=2)
    program = mc.trace(lambda v, x: x @ v["w"], {"w": w}, x)
    training = quantize.train(INT4)(program)
    scale = 0.6 * training.variables["w/step"]
    given = {"w": w, "w/step": scale}

    def loss(v):
        return jnp.square(training.function(v, x) - target).sum()

    got = jax.jit(jax.grad(loss))(given)
    w, x, scale = (np.asarray(a, np.float64) for a in (w, x, scale))
    full, ratio, codes, inside = numpy_steps(w, scale, 8)
    straight = x.T @ (2 * (x @ (codes * full) - np.asarray(target)))
    assert 0.1 < 1 - inside.mean() < 0.5
    np.testing.assert_allclose(got["w"], straight * inside, rtol=2e-5, atol=1e-4)
    slope = np.where(inside, codes - ratio, np.sign(ratio) * 7)
    lsq = (straight * slope).reshape(2, 8, 8).sum(1) / np.sqrt(8 * 7)
    np.testing.assert_allclose(got["w/step"], lsq, rtol=1e-4, atol=1e-3)


def test_nothing_is_clipped_where_steps_are_those_of_the_largest_weight():
    w, x = normal(16, 8), normal(4, 16)
    program = mc.trace(lambda v, x: x @ v["w"], {"w": w}, x)
    training = quantize.train(Scheme("int4", group=8, clip="max"))(program)
    grad = jax.jit(jax.grad(lambda v: training.function(v, x).sum()))(
        training.variables
    )
    want = jax.jit(jax.grad(lambda v: (x @ v["w"]).sum()))({"w": w})
    assert bits(grad["w"]) == bits(want["w"])


def test_scales_of_activations_are_learned_as_the_paper_says():
    w, x, target = normal(16, 8), normal(32, 16, seed=1), normal(32, 8, seed=2)
    program = mc.trace(lambda v, x: x @ v["w"], {"w": w}, x)
    training = quantize.train("int8", batches=[x])(program)
    given = dict(training.variables)
    given["w/input_scale"] = 0.5 * given["w/input_scale"]

    def loss(v, x):
        return jnp.square(training.function(v, x) - target).sum()

    got, moved = jax.jit(jax.grad(loss, (0, 1)))(given, x)
    x, scale = np.asarray(x, np.float64), float(given["w/input_scale"])
    step = np.asarray(given["w/step"], np.float64)
    weight = np.round(np.asarray(w, np.float64) / step) * step
    ratio = x / scale
    codes, inside = np.clip(np.round(ratio), -127, 127), np.abs(ratio) <= 127
    error = 2 * (codes * scale @ weight - np.asarray(target)) @ weight.T
    assert 0.01 < 1 - inside.mean() < 0.5
    slope = np.where(inside, codes - ratio, np.sign(ratio) * 127)
    want = (error * slope).sum() / np.sqrt(16 * 127)
    np.testing.assert_allclose(got["w/input_scale"], want, rtol=1e-4)
    np.testing.assert_allclose(moved, error * inside, rtol=1e-4, atol=1e-3)


def test_a_tied_table_gets_the_gradients_of_its_look_up_and_of_its_product():
    e, scheme = normal(50, 16), Scheme("int8", clip="max")
    program = mc.trace(tied, {"e": e}, X)
    training = quantize.train(scheme)(program)
    got = jax.jit(jax.grad(lambda v: training.function(v, X).sum()))(training.variables)
    step = np.asarray(training.variables["e/step"])
    rounded = {"e": jnp.asarray(np.round(np.asarray(e) / step) * step)}
    want = jax.jit(jax.grad(lambda v: tied(v, X).sum()))(rounded)
    np.testing.assert_allclose(got["e"], want["e"], rtol=1e-5, atol=1e-5)


def test_leaves_keep_their_paths_and_steps_stand_beside_them():
    program = mc.trace(mlp, MLP, X)
    training = quantize.train(INT4, batches=[X], skip=("b",))(program)
    assert training.graph.paths == ["a", "a/step", "a/input_scale", "b", "bias"]
    assert training.variables["a/step"].shape == (2, 32)
    fixed = quantize.train(INT4, learned=False)(program)
    assert fixed.graph.paths == program.graph.paths
    assert bits(fixed.variables["a"]) == bits(MLP["a"])
    assert "float32 -> int4 group 8" in training.history[-1].events.fired[0].what
    assert quantize.coverage(training).share < quantize.coverage(fixed).share


def test_steps_of_bfloat16_weights_are_trained_in_float32():
    v, x = jax.tree.map(lambda a: a.astype(jnp.bfloat16), (MLP, X))
    training = quantize.train(INT4)(mc.trace(mlp, v, x))
    assert training.variables["a/step"].dtype == jnp.float32
    assert quantize.convert()(training).variables["a"]["scale"].dtype == jnp.bfloat16


def test_steps_that_are_no_steps_any_more_give_no_nan():
    program = mc.trace(mlp, MLP, X)
    training = quantize.train(INT4)(program)
    given = dict(training.variables)
    bad = jnp.asarray([0.0, -0.0, -0.25, 1e-42], jnp.float32)
    given["a/step"] = given["a/step"].at[:, :4].set(bad)
    trained = training.with_variables(given)
    small = trained >> quantize.convert()
    assert bits(small(X)) == bits(trained(X))
    grads = jax.jit(jax.grad(lambda v: training.function(v, X).sum()))(given)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((small(X), grads)))


def test_weights_that_are_not_finite_show_and_are_not_converted():
    training = quantize.train(INT4)(mc.trace(mlp, MLP, X))
    given = dict(training.variables)
    given["a"] = given["a"].at[0, 0].set(jnp.nan)
    trained = training.with_variables(given)
    assert np.isnan(trained(X)).all()
    with pytest.raises(NonFiniteWeightsError, match=r"a: expected finite weights"):
        quantize.convert()(trained)


def test_conversion_and_training_twice_change_nothing():
    step = quantize.train(INT4)
    training = step(mc.trace(mlp, MLP, X))
    again = step(training)
    assert again.graph is training.graph
    assert not again.history[-1].events.fired
    small = quantize.convert()(training)
    twice = quantize.convert()(small)
    assert twice.graph is small.graph
    assert not twice.history[-1].events.fired
    assert [e.path for e in small.history[-1].events.fired] == ["a", "b"]


def test_other_batch_sizes_are_trained_and_converted_alike():
    training = quantize.train(INT4, batches=[X])(mc.trace(mlp, MLP, X))
    trained = moved(training)
    small, x = quantize.convert()(trained), normal(7, 16, seed=3)
    assert bits(small(x)) == bits(trained(x))


def test_weights_stored_already_and_weights_in_training_go_together():
    program = mc.trace(mlp, MLP, X)
    before = program >> quantize.weights("int8", skip=("b",))
    mixed = before >> quantize.train(INT4)
    assert mixed.graph.paths == ["a/scale", "a/values", "b", "b/step", "bias"]
    after = program >> quantize.train(INT4, skip=("b",))
    trained = moved(after) >> quantize.weights("int8")
    assert trained.graph.paths == ["a", "a/step", "b/scale", "b/values", "bias"]
    for each in (mixed, trained):
        small = each >> quantize.convert()
        assert set(small.graph.paths) >= {"a/scale", "a/values", "b/scale", "bias"}
        assert bits(small(X)) == bits(each(X))


def test_passes_that_leave_the_leaves_alone_may_come_between():
    training = quantize.train(INT4)(mc.trace(mlp, MLP, X))
    simpler = moved(training) >> mc.simplify()
    small = simpler >> quantize.convert()
    assert "applied again: Simplify" in small.history[-1].events.fired[-1].what
    np.testing.assert_allclose(small(X), simpler(X), rtol=1e-5, atol=1e-5)


def test_what_is_not_in_training_is_refused_with_the_fix():
    program = mc.trace(mlp, MLP, X)
    with pytest.raises(ConversionError, match=r"trace\(\) alone. Apply quantize.train"):
        program >> quantize.convert()
    with pytest.raises(ConversionError, match=r"made by QuantizeWeights"):
        program >> quantize.weights("int8") >> quantize.convert()
    training = program >> quantize.train(INT4)
    with pytest.raises(ConversionError, match=r"others, of Doubled.*Convert first"):
        training >> Doubled() >> quantize.convert()
    with pytest.raises(ConversionError, match=r"rewritten since"):
        training >> mc.simplify() >> quantize.train("int8")
    with pytest.raises(ValueError, match=r"expected none with mode='weights'"):
        quantize.train("int8", mode="weights", activations="int8")
    with pytest.raises(ValueError, match=r"mode: expected one of"):
        quantize.train("int8", mode="float")
    with pytest.raises(ValueError, match=r"activations per tensor"):
        quantize.train("int8", batches=[X], activations=Activations(per="token"))
    with pytest.raises(CalibrationError, match=r"expected batches"):
        program >> quantize.train("int8", mode="static")


def test_the_passes_are_values():
    training = quantize.train(INT4, batches=[X])(mc.trace(mlp, MLP, X))
    for step in (*training.recipe, quantize.convert()):
        assert mp.from_config(mp.to_config(step)) == step
        assert type(step).__name__ in str(step)


def test_a_program_trains_in_a_scan_and_runs_under_vmap():
    program = mc.trace(
        lambda v, x: jnp.tanh(x @ v["w"]), {"w": MLP["b"]}, normal(4, 32)
    )
    training = quantize.train(INT4, mode="dynamic")(program)

    def update(v, x):
        loss, grads = jax.value_and_grad(
            lambda v: jnp.square(training.function(v, x) - 0.5).mean()
        )(v)
        return jax.tree.map(lambda a, g: a - 0.3 * g, v, grads), loss

    batches = jnp.broadcast_to(normal(4, 32), (10, 4, 32))
    v, losses = jax.jit(lambda v: jax.lax.scan(update, v, batches))(training.variables)
    assert losses[-1] < 0.9 * losses[0]
    for name, value in training.variables.items():
        assert (np.asarray(v[name]) != np.asarray(value)).any()
    many = {n: jnp.stack([v[n], training.variables[n]]) for n in v}
    both = jax.jit(jax.vmap(training.function, (0, None)))(many, batches[0])
    alone = training(batches[0])
    np.testing.assert_allclose(both[1], alone, rtol=1e-5, atol=1e-5)


def test_a_linen_module_is_trained_and_converted():
    import flax.linen as nn

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(8)(x)

    apply, variables, _ = linen(Net(), X)
    program = mc.trace(apply, variables, X)
    trained = moved(program >> quantize.train(INT4))
    assert "params/Dense_0/kernel/step" in trained.graph.paths
    small = trained >> quantize.convert()
    assert bits(small(X)) == bits(trained(X))


@pytest.fixture(scope="module")
def digits():
    """A small net trained in floating point, and the digits."""
    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(x))
    x, y = (x / 16.0).astype(np.float32)[order], y[order]
    net = mp.Serial(
        hidden=mp.layers.Dense(48), act=jax.nn.relu, head=mp.layers.Dense(10)
    )
    data, test = (x[:1257], y[:1257]), (x[1257:], y[1257:])
    fitted = fit(net, data, epochs=12, rate=5e-3)
    return mc.trace(net, fitted.variables, x[:64]), data, test


def fit(model, data, epochs, rate):
    loss = mp.losses.CrossEntropy()
    return mp.train.fit(
        model, data, loss=loss, optimizer=optax.adam(rate), epochs=epochs,
        batch_size=64,
    )  # fmt: skip


@pytest.mark.parametrize(("dtype", "gain"), [("int4", 0.0), ("ternary", 0.02)])
def test_training_for_few_bits_beats_rounding_on_digits(digits, dtype, gain):
    program, data, (x, y) = digits
    scheme = Scheme(dtype, group="tensor", clip="max")
    rounded = program >> quantize.weights(scheme)
    training = program >> quantize.train(scheme)
    fitted = fit(training, data, epochs=6, rate=2e-3)
    trained = training.with_variables(fitted.variables)
    small = trained >> quantize.convert()
    assert small.bytes == rounded.bytes
    assert bits(small(x)) == bits(trained(x))

    def measured(program):
        logits = np.asarray(program(x), np.float64)
        chances = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        right = chances[np.arange(len(y)), y]
        return np.mean(np.argmax(logits, -1) == y), -np.mean(right)

    (accuracy, loss), (before, loss_before) = measured(small), measured(rounded)
    assert accuracy >= before + gain
    assert loss < loss_before
    assert accuracy > 0.9
