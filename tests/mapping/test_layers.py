"""Layers do what their formulas say, by references that share no code with them."""

import functools
import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from scipy import signal

from mapping import Context, Serial, Variables, leaf_paths
from mapping.errors import (
    FieldError,
    MappingError,
    MissingKeyError,
    MissingVariablesError,
    ShapeMismatchError,
)
from mapping.layers import (
    AvgPool,
    BatchNorm,
    Conv,
    Dense,
    Dropout,
    Flatten,
    Linen,
    MaxPool,
)

KEY = jax.random.key(0)
TRAIN = Context(jax.random.key(1), train=True)
INFER = Context()


def random(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def spec(*shape, dtype="float32"):
    return jax.ShapeDtypeStruct(shape, dtype)


@functools.cache
def made(layer, *shape):
    return layer.init(KEY, spec(*shape))


@functools.cache
def sample(layer, *shape):
    """Variables that fit, positive as variances are, made without compiling init."""
    abstract = jax.eval_shape(layer.init, KEY, spec(*shape))
    return jax.tree.map(lambda x: np.abs(random(*x.shape, seed=1)), abstract)


def bits(tree):
    return {path: np.asarray(x).tolist() for path, x in leaf_paths(tree).items()}


def close(actual, expected, tolerance=1e-5):
    """Sums of up to 100 products of order one, in float32 against float64."""
    np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance)


# Every layer

UNIFORM = jax.nn.initializers.uniform()  # compiles in a fifth of the default's time
LAYERS = {
    "dense": (Dense(3, kernel_init=UNIFORM), (4, 2)),
    "dense without bias": (Dense(3, use_bias=False, kernel_init=UNIFORM), (4, 2)),
    "conv 1d": (Conv(3, (3,), kernel_init=UNIFORM), (2, 5, 2)),
    "conv 2d": (
        Conv(4, (3, 3), strides=2, groups=2, kernel_init=UNIFORM),
        (2, 5, 4, 2),
    ),
    "batch norm": (BatchNorm(), (6, 3)),
    "dropout": (Dropout(0.4), (4, 5)),
    "max pool": (MaxPool((2, 2)), (2, 4, 4, 2)),
    "avg pool": (AvgPool((2,)), (2, 4, 3)),
    "flatten": (Flatten(), (2, 3, 4)),
    "linen": (Linen(nn.Dense(3, kernel_init=UNIFORM)), (4, 2)),
    "serial": (
        Serial(
            a=Dense(3, kernel_init=UNIFORM),
            n=BatchNorm(),
            d=Dropout(),
            b=Dense(2, kernel_init=UNIFORM),
        ),
        (6, 2),
    ),
}
every_layer = pytest.mark.parametrize(
    ("layer", "shape"), LAYERS.values(), ids=LAYERS.keys()
)
every_case = pytest.mark.parametrize(
    ("layer", "shape", "ctx"),
    [
        pytest.param(*LAYERS[name], ctx, id=f"{name}, train={ctx.train}")
        for name, ctx in [
            *((name, TRAIN) for name in LAYERS),
            *((name, INFER) for name in ("batch norm", "dropout", "serial")),
        ]
    ],
)
both_modes = pytest.mark.parametrize("ctx", [TRAIN, INFER], ids=["train", "inference"])


@every_layer
def test_init_agrees_with_its_abstract_evaluation(layer, shape):
    abstract = jax.eval_shape(layer.init, KEY, spec(*shape))
    concrete = made(layer, *shape)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), concrete) == jax.tree.map(
        lambda x: (x.shape, x.dtype), abstract
    )


@every_layer
def test_init_from_a_spec_equals_init_from_an_example(layer, shape):
    assert bits(made(layer, *shape)) == bits(layer.init(KEY, random(*shape)))


@every_layer
def test_init_is_a_function_of_the_key(layer, shape):
    one, same = made(layer, *shape), layer.init(KEY, spec(*shape))
    other = layer.init(jax.random.key(5), spec(*shape))
    assert bits(one) == bits(same)
    kernels = [path for path in leaf_paths(one.params) if path.endswith("kernel")]
    for path in kernels:
        mine, theirs = leaf_paths(one.params)[path], leaf_paths(other.params)[path]
        assert (mine != theirs).any()


@every_case
def test_compiled_equals_eager(layer, shape, ctx):
    x, variables = random(*shape), sample(layer, *shape)
    eager = layer.apply(variables, x, ctx=ctx)
    compiled = jax.jit(layer.apply)(variables, x, ctx=ctx)
    jax.tree.map(functools.partial(close, tolerance=1e-6), compiled, eager)


@every_case
def test_the_new_state_is_like_the_old_one(layer, shape, ctx):
    x, variables = random(*shape), sample(layer, *shape)
    _, state = layer.apply(variables, x, ctx=ctx)

    def like(tree):
        return jax.tree.map(lambda x: (x.shape, x.dtype), tree)

    assert like(state) == like(variables.state)


@every_layer
def test_inference_needs_no_key_and_moves_no_state(layer, shape):
    x, variables = random(*shape), sample(layer, *shape)
    _, state = layer.apply(variables, x, ctx=INFER)
    assert bits(state) == bits(variables.state)


@every_layer
def test_calling_a_layer_is_its_inference(layer, shape):
    x, v = random(*shape), sample(layer, *shape)
    expected, _ = layer.apply(v, x, ctx=INFER)
    np.testing.assert_array_equal(layer(v.params, x, state=v.state), expected)


@pytest.mark.parametrize(
    ("name", "ctx"),
    [(name, TRAIN) for name in LAYERS if name not in ("dense without bias", "linen")]
    + [("batch norm", INFER)],
    ids=lambda value: value if isinstance(value, str) else f"train={value.train}",
)
def test_gradients_agree_with_numerical_ones(name, ctx):
    layer, shape = LAYERS[name]
    with jax.enable_x64(True):
        v, x = jax.tree.map(np.float64, (sample(layer, *shape), random(*shape)))

        @jax.jit
        def outputs(params, x):
            return layer.apply(Variables(params, v.state), x, ctx=ctx)[0]

        assert outputs(v.params, x).dtype == np.float64
        check_grads(outputs, (v.params, x), 1, ("rev",), atol=1e-6, rtol=1e-6)


# Leading axes: a layer that takes any number of them maps over each

ANY_BATCH = {
    "dense": (Dense(3), (2,)),
    "conv 1d": (Conv(3, (2,)), (5, 2)),
    "conv 2d": (Conv(3, (3, 2), padding="VALID"), (4, 5, 2)),
    "max pool": (MaxPool((2, 2)), (4, 4, 2)),
    "avg pool": (AvgPool((2,), padding="SAME"), (5, 3)),
    "linen": (Linen(nn.Dense(3)), (2,)),
}


@pytest.mark.parametrize(("layer", "shape"), ANY_BATCH.values(), ids=ANY_BATCH.keys())
def test_any_number_of_leading_axes_are_batch_axes(layer, shape):
    x = random(2, 3, *shape)
    params = sample(layer, 1, *shape).params
    two = layer(params, x)
    for i, j in np.ndindex(2, 3):
        close(two[i, j], layer(params, x[i, j]), 1e-6)
        close(two[i], layer(params, x[i]), 1e-6)


# Dense


@pytest.mark.parametrize("batch", [(), (5,), (2, 3)], ids=str)
def test_dense_is_a_matrix_product_plus_a_bias(batch):
    x, kernel, bias = random(*batch, 4), random(4, 3, seed=1), random(3, seed=2)
    expected = np.asarray(x, np.float64) @ kernel.astype(np.float64) + bias
    close(Dense(3)({"kernel": kernel, "bias": bias}, x), expected, 1e-6)


def test_dense_without_bias_has_none():
    params = sample(Dense(3, use_bias=False), 1, 4).params
    assert set(params) == {"kernel"}
    x = random(2, 4)
    close(Dense(3, use_bias=False)(params, x), x @ np.asarray(params["kernel"]), 1e-6)


def test_dense_starts_from_its_initialiser_and_a_bias_of_zero():
    params = Dense(3, kernel_init=jax.nn.initializers.ones).init(KEY, spec(1, 4)).params
    assert params["kernel"].tolist() == [[1.0] * 3] * 4
    assert params["bias"].tolist() == [0.0] * 3


def test_dense_starts_with_lecun_normal_variance_by_default():
    kernel = np.asarray(Dense(400).init(KEY, spec(1, 100)).params["kernel"])
    # 40000 draws: the variance of a truncated normal is known to 1.1 % (5 sigma
    # of 0.6 %, kurtosis < 3).
    assert kernel.var() == pytest.approx(1 / 100, rel=0.03)


# Convolution


def convolve(x, kernel, strides, dilation, padding, groups):
    """The definition, tap by tap: x (batch, *space, in), kernel (*taps, in/g, out)."""
    space, taps = x.shape[1:-1], kernel.shape[:-2]
    extents = [(k - 1) * d + 1 for k, d in zip(taps, dilation, strict=True)]
    if padding == "VALID":
        pads = [(0, 0)] * len(space)
    elif padding == "CAUSAL":
        pads = [(extents[0] - 1, 0)]
    elif padding == "CIRCULAR":
        pads = [((e - 1) // 2, e // 2) for e in extents]
    elif padding == "SAME":
        totals = [
            max((-(-n // s) - 1) * s + e - n, 0)
            for n, s, e in zip(space, strides, extents, strict=True)
        ]
        pads = [(t // 2, t - t // 2) for t in totals]
    else:
        pads = padding
    mode = "wrap" if padding == "CIRCULAR" else "constant"
    x = np.pad(x.astype(np.float64), [(0, 0), *pads, (0, 0)], mode)
    sizes = [
        (n - e) // s + 1
        for n, e, s in zip(x.shape[1:-1], extents, strides, strict=True)
    ]
    inputs, outputs = kernel.shape[-2], kernel.shape[-1] // groups
    y = np.zeros((len(x), *sizes, kernel.shape[-1]))
    for at, tap in itertools.product(np.ndindex(*sizes), np.ndindex(*taps)):
        where = tuple(
            p * s + q * d for p, s, q, d in zip(at, strides, tap, dilation, strict=True)
        )
        for g in range(groups):
            i = slice(g * inputs, (g + 1) * inputs)
            o = slice(g * outputs, (g + 1) * outputs)
            taken = x[(slice(None), *where, i)]
            y[(slice(None), *at, o)] += taken @ kernel[(*tap, slice(None), o)]
    return y


CONVOLUTIONS = {
    "1d same": (Conv(3, (3,)), (7, 2)),
    "1d valid": (Conv(3, (3,), padding="VALID"), (7, 2)),
    "1d causal": (Conv(3, (3,), padding="CAUSAL", dilation=2), (7, 2)),
    "1d circular": (Conv(3, (4,), padding="CIRCULAR"), (7, 2)),
    "1d even kernel": (Conv(3, (4,)), (7, 2)),
    "1d strided": (Conv(3, (3,), strides=3), (8, 2)),
    "2d same": (Conv(3, (3, 3)), (5, 6, 2)),
    "2d valid": (Conv(3, (3, 2), padding="VALID"), (5, 6, 2)),
    "2d oblong strides": (Conv(3, (3, 3), strides=(2, 1)), (5, 6, 2)),
    "2d oblong dilation": (
        Conv(3, (3, 2), dilation=(2, 3), padding="VALID"),
        (6, 7, 2),
    ),
    "2d same, strided, dilated": (Conv(3, (3, 3), strides=2, dilation=2), (6, 7, 2)),
    "2d padded by hand": (Conv(3, (3, 3), padding=((0, 2), (1, 0))), (5, 6, 2)),
    "2d groups": (Conv(6, (3, 3), groups=2), (4, 4, 4)),
    "2d depthwise": (Conv(6, (3, 3), groups=3, strides=2), (5, 5, 3)),
    "3d": (Conv(2, (2, 3, 2), strides=(1, 2, 1)), (3, 4, 3, 2)),
}


@pytest.mark.parametrize(
    ("conv", "shape"), CONVOLUTIONS.values(), ids=CONVOLUTIONS.keys()
)
def test_conv_is_the_convolution_of_its_definition(conv, shape):
    x = random(2, *shape)
    axes = len(conv.kernel_size)
    kernel = random(*conv.kernel_size, shape[-1] // conv.groups, conv.features, seed=1)
    bias = random(conv.features, seed=2)

    def each(value):
        return (value,) * axes if isinstance(value, int) else value

    expected = convolve(
        x, kernel, each(conv.strides), each(conv.dilation), conv.padding, conv.groups
    )
    assert sample(conv, 1, *shape).params["kernel"].shape == kernel.shape
    close(conv({"kernel": kernel, "bias": bias}, x), expected + bias)


@pytest.mark.parametrize("padding", ["SAME", "VALID"])
def test_conv_of_one_channel_is_scipy_s_correlation(padding):
    x, kernel = random(6, 7), random(3, 3, seed=1)
    conv = Conv(1, (3, 3), padding=padding, use_bias=False)
    y = conv({"kernel": kernel[..., None, None]}, x[None, ..., None])
    close(y[0, ..., 0], signal.correlate2d(x, kernel, padding.lower()))


def test_conv_without_bias_has_none():
    assert set(sample(Conv(2, (3,), use_bias=False), 1, 5, 2).params) == {"kernel"}


# Batch normalisation


def normed(x, mean, var, params, epsilon):
    x, scale, bias = (np.asarray(a, np.float64) for a in (x, *params))
    return (x - mean) / np.sqrt(var + epsilon) * scale + bias


NORM = BatchNorm(momentum=0.8, epsilon=1e-3)
PARAMS = {"scale": random(3, seed=1), "bias": random(3, seed=2)}
STATE = {"mean": random(3, seed=3), "var": np.abs(random(3, seed=4))}
norm_shapes = pytest.mark.parametrize(
    "shape", [(8, 3), (4, 5, 3), (2, 3, 4, 3)], ids=str
)


@norm_shapes
def test_batch_norm_standardises_by_the_batch_in_training(shape):
    x = 3 * random(*shape) + 1
    y, _ = NORM.apply(Variables(PARAMS, STATE), x, ctx=Context(train=True))
    axes = tuple(range(x.ndim - 1))
    wide = x.astype(np.float64)
    expected = normed(
        x, wide.mean(axes), wide.var(axes), (PARAMS["scale"], PARAMS["bias"]), 1e-3
    )
    close(y, expected)


@norm_shapes
def test_batch_norm_moves_its_statistics_towards_the_batch_in_training(shape):
    x = 3 * random(*shape) + 1
    _, state = NORM.apply(Variables(PARAMS, STATE), x, ctx=Context(train=True))
    axes = tuple(range(x.ndim - 1))
    wide = x.astype(np.float64)
    close(state["mean"], 0.8 * STATE["mean"] + 0.2 * wide.mean(axes))
    close(state["var"], 0.8 * STATE["var"] + 0.2 * wide.var(axes))


@norm_shapes
def test_batch_norm_standardises_by_its_statistics_in_inference(shape):
    x = random(*shape)
    y, state = NORM.apply(Variables(PARAMS, STATE), x, ctx=INFER)
    expected = normed(
        x, STATE["mean"], STATE["var"], (PARAMS["scale"], PARAMS["bias"]), 1e-3
    )
    close(y, expected)
    assert state == STATE


def test_batch_norm_starts_as_the_identity_of_standard_inputs():
    v = BatchNorm().init(KEY, spec(4, 2))
    assert bits(v.params) == {"bias": [0.0, 0.0], "scale": [1.0, 1.0]}
    assert bits(v.state) == {"mean": [0.0, 0.0], "var": [1.0, 1.0]}


def test_batch_norm_of_one_example_is_its_bias_in_training():
    x = random(1, 3)
    y, _ = NORM.apply(Variables(PARAMS, STATE), x, ctx=Context(train=True))
    np.testing.assert_array_equal(y, PARAMS["bias"][None])


# Pooling


def pool(x, summary, window, strides, pads, fill):
    """The definition, window by window, for two spatial axes."""
    x = np.pad(x, [(0, 0), *pads, (0, 0)], constant_values=fill)
    (h, w), (s, t) = window, strides
    rows = range(0, x.shape[1] - h + 1, s)
    columns = range(0, x.shape[2] - w + 1, t)
    return np.stack(
        [
            np.stack(
                [summary(x[:, i : i + h, j : j + w], axis=(1, 2)) for j in columns], 1
            )
            for i in rows
        ],
        1,
    )


POOLS = [
    ((2, 2), None, "VALID", ((0, 0), (0, 0))),
    ((3, 2), None, "VALID", ((0, 0), (0, 0))),
    ((2, 2), (1, 2), "VALID", ((0, 0), (0, 0))),
    ((3, 3), (1, 1), "SAME", ((1, 1), (1, 1))),
    ((2, 2), None, "SAME", ((0, 1), (0, 0))),
    ((2, 2), (2, 2), ((1, 0), (0, 2)), ((1, 0), (0, 2))),
]
pools = pytest.mark.parametrize(
    ("window", "strides", "padding", "pads"), POOLS, ids=str
)


@pools
def test_max_pool_is_the_largest_of_each_window(window, strides, padding, pads):
    x = random(2, 5, 6, 3)
    y = MaxPool(window, strides, padding)({}, x)
    expected = pool(x, np.max, window, strides or window, pads, -np.inf)
    np.testing.assert_array_equal(y, expected)


@pools
def test_avg_pool_is_the_mean_of_each_window_with_zeros_outside(
    window, strides, padding, pads
):
    x = random(2, 5, 6, 3)
    y = AvgPool(window, strides, padding)({}, x)
    close(y, pool(x, np.mean, window, strides or window, pads, 0.0), 1e-6)


def test_max_pool_summarises_sequences_too():
    x = np.arange(6, dtype=np.float32).reshape(1, 6, 1)
    assert MaxPool((3,))({}, x).ravel().tolist() == [2.0, 5.0]


def test_avg_pool_summarises_sequences_too():
    x = np.arange(6, dtype=np.float32).reshape(1, 6, 1)
    assert AvgPool((3,))({}, x).ravel().tolist() == [1.0, 4.0]


@pytest.mark.parametrize("kind", [MaxPool, AvgPool])
def test_one_stride_serves_every_axis(kind):
    x = random(2, 5, 6, 3)
    expected = kind((3, 2), (2, 2))({}, x)
    np.testing.assert_array_equal(kind((3, 2), 2)({}, x), expected)


@pytest.mark.parametrize("dtype", ["uint8", "int32", "bfloat16", "float16"])
def test_max_pool_keeps_the_dtype(dtype):
    x = jnp.arange(4).astype(dtype).reshape(1, 4, 1)
    y = MaxPool((2,))({}, x)
    assert y.dtype == x.dtype
    assert y.ravel().tolist() == [1, 3]


# Flatten


@pytest.mark.parametrize("start", [0, 1, 2, 3, 4])
def test_flatten_joins_the_axes_from_start_on_in_row_major_order(start):
    x = random(2, 3, 4, 5)
    expected = x.reshape(*x.shape[:start], -1)
    np.testing.assert_array_equal(Flatten(start)({}, x), expected)


def test_flatten_gives_one_feature_to_examples_without_axes():
    assert Flatten()({}, random(3)).shape == (3, 1)


# Dropout


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_dropout_zeroes_its_rate_and_rescales_the_rest(rate):
    x = random(100, 100)
    y = np.asarray(Dropout(rate).apply(Variables(), x, ctx=TRAIN)[0])
    kept = y != 0
    np.testing.assert_allclose(y[kept], x[kept] / (1 - rate), rtol=1e-6)
    sigma = (rate * (1 - rate) / x.size) ** 0.5
    assert abs(kept.mean() - (1 - rate)) < 4 * sigma


def test_dropout_keeps_the_expectation_of_each_unit():
    x = np.linspace(0.5, 2, 8, dtype=np.float32)
    keys = jax.random.split(jax.random.key(0), 4000)

    def drop(key):
        return Dropout(0.5).apply(Variables(), x, ctx=Context(key, train=True))[0]

    mean = np.asarray(jax.vmap(drop)(keys)).mean(0)
    # Each unit is 2x or 0: its standard error over 4000 draws is x / 63.
    assert (np.abs(mean - x) < 4 * x / 4000**0.5).all()


def test_dropout_leaves_no_trace_in_inference():
    x = jnp.ones((2, 3))
    assert Dropout(0.9)({}, x) is x
    jaxpr = jax.make_jaxpr(lambda x: Serial(drop=Dropout(0.9))({}, x))(x)
    assert jaxpr.eqns == []


def test_dropout_of_nothing_needs_no_key():
    x = jnp.ones((2, 3))
    assert Dropout(0.0).apply(Variables(), x, ctx=Context(train=True))[0] is x


@pytest.mark.parametrize("rate", [-0.1, 1.0, 1.5, float("nan")])
def test_dropout_refuses_a_rate_that_is_no_fraction(rate):
    with pytest.raises(FieldError, match=r"^Dropout\.rate: .*\[0, 1\)"):
        Dropout(rate)


def test_dropout_keeps_the_dtype():
    x = jnp.ones((4,), jnp.bfloat16)
    assert Dropout(0.5).apply(Variables(), x, ctx=TRAIN)[0].dtype == jnp.bfloat16


# Lifting flax.linen


class Net(nn.Module):
    """Batch statistics, dropout and params, in flax's own way."""

    @nn.compact
    def __call__(self, x, train: bool):
        x = nn.Dense(8, kernel_init=UNIFORM)(x)
        x = nn.BatchNorm(use_running_average=not train, momentum=0.5)(x)
        x = nn.Dropout(0.5, deterministic=not train)(x)
        return nn.Dense(2, kernel_init=UNIFORM)(x)


class Flagged(nn.Module):
    """Drops in training, whatever its flag is called."""

    @nn.compact
    def drop(self, x, deterministic):
        return nn.Dropout(0.5)(x, deterministic=deterministic)


class Train(Flagged):
    def __call__(self, x, train):
        return self.drop(x, not train)


class Training(Flagged):
    def __call__(self, x, training=False):
        return self.drop(x, not training)


class IsTraining(Flagged):
    def __call__(self, x, *, is_training):
        return self.drop(x, not is_training)


class Deterministic(Flagged):
    def __call__(self, x, deterministic=True):
        return self.drop(x, deterministic)


class Noisy(nn.Module):
    """Needs a key in every mode."""

    def __call__(self, x):
        return x + jax.random.normal(self.make_rng("noise"), x.shape)


def test_a_lifted_model_has_the_variables_of_the_flax_model():
    x = random(4, 3)
    own = jax.jit(Linen(Net()).init)(KEY, x)
    flax = jax.jit(functools.partial(Net().init, train=False))(KEY, x)
    assert bits(own.params) == bits(flax["params"])
    assert bits(own.state) == bits({"batch_stats": flax["batch_stats"]})


def test_a_lifted_model_equals_the_flax_model_in_inference():
    x, v = random(4, 3), sample(Linen(Net()), 4, 3)
    y, state = Linen(Net()).apply(v, x, ctx=INFER)
    expected = Net().apply({"params": v.params, **v.state}, x, train=False)
    np.testing.assert_array_equal(y, expected)
    assert bits(state) == bits(v.state)


def test_a_lifted_model_equals_the_flax_model_in_training():
    x, v = random(4, 3), sample(Linen(Net()), 4, 3)
    y, state = Linen(Net()).apply(v, x, ctx=TRAIN)
    expected, changed = Net().apply(
        {"params": v.params, **v.state},
        x,
        train=True,
        rngs={"dropout": TRAIN.rng()},
        mutable=["batch_stats"],
    )
    np.testing.assert_array_equal(y, expected)
    assert bits(state) == bits(changed)
    assert bits(state) != bits(v.state)


@pytest.mark.parametrize(
    "module",
    [Train(), Training(), IsTraining(), Deterministic(), nn.Dropout(0.5)],
    ids=lambda module: type(module).__name__,
)
def test_the_context_sets_the_flag_whatever_it_is_called(module):
    x = np.ones((4, 16), np.float32)
    layer = Linen(module)
    v = sample(layer, *x.shape)
    np.testing.assert_array_equal(layer.apply(v, x, ctx=INFER)[0], x)
    assert (layer.apply(v, x, ctx=TRAIN)[0] == 0).any()


def test_lifted_modules_are_equal_if_the_modules_are():
    assert Linen(nn.Dense(3)) == Linen(nn.Dense(3))
    assert hash(Linen(nn.Dense(3))) == hash(Linen(nn.Dense(3)))
    assert Linen(nn.Dense(3)) != Linen(nn.Dense(4))


def test_a_lifted_module_is_named_after_its_class():
    assert Serial(Linen(nn.Dense(3)), Linen(Net())).names == ("dense", "net")


def test_a_lifted_module_that_needs_a_key_says_so_by_path():
    net = Serial(encoder=Serial(noise=Linen(Noisy())))
    with pytest.raises(MissingKeyError, match=r"^encoder/noise \(Noisy\): needs a"):
        net({}, random(2, 3))


# Errors


def nested(layer):
    return Serial(encoder=Serial(query=layer))


def at_query(variables):
    return Variables(
        {"encoder": {"query": variables.params}},
        {"encoder": {"query": variables.state}},
    )


MISFITS = {
    "dense": (Dense(2), (4, 3), (4, 5), "expect 3 features", "float32[4, 5]"),
    "dense scalar": (Dense(2), (4, 3), (), "expect 3 features", "float32[]"),
    "conv channels": (
        Conv(2, (3, 3)), (1, 5, 5, 3), (1, 5, 5, 1),
        "expect 3 features", "float32[1, 5, 5, 1]",
    ),
    "conv groups": (
        Conv(4, (3, 3), groups=2), (1, 5, 5, 4), (1, 5, 5, 2),
        "expect 4 features", "float32[1, 5, 5, 2]",
    ),
    "conv axes": (
        Conv(2, (3, 3)), (1, 5, 5, 3), (5, 3), "expects 2 spatial", "float32[5, 3]",
    ),
    "batch norm": (BatchNorm(), (4, 3), (4, 2), "expect 3 features", "float32[4, 2]"),
    "max pool": (
        MaxPool((2, 2)), (1, 4, 4, 1), (4, 1), "expects 2 spatial", "float32[4, 1]",
    ),
    "avg pool": (
        AvgPool((2, 2)), (1, 4, 4, 1), (4, 1), "expects 2 spatial", "float32[4, 1]",
    ),
    "flatten": (Flatten(2), (1, 2, 3), (4,), "expects at least 2 axes", "float32[4]"),
    "linen": (Linen(nn.Dense(2)), (4, 3), (4, 5), "do not fit", "float32[4, 5]"),
}  # fmt: skip
FIXES = ("Re-run init", "Reshape", "Give Flatten")


@both_modes
@pytest.mark.parametrize(
    ("layer", "good", "bad", "expected", "got"), MISFITS.values(), ids=MISFITS.keys()
)
def test_a_wrong_input_is_named_by_path_with_what_was_expected_what_came_and_the_fix(
    layer, good, bad, expected, got, ctx
):
    variables = at_query(sample(layer, *good))
    with pytest.raises(ShapeMismatchError) as caught:
        nested(layer).apply(variables, random(*bad), ctx=ctx)
    message = str(caught.value)
    assert message.startswith(f"encoder/query ({layer.kind}): ")
    assert expected in message
    assert f"got {got}" in message or f"the input {got}" in message
    assert any(fix in message for fix in FIXES)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (Dense(2), ()),
        (Conv(2, (3, 3)), (5, 3)),
        (BatchNorm(), ()),
        (MaxPool((2, 2)), (4, 1)),
        (Flatten(2), (4,)),
    ],
    ids=["dense", "conv", "batch norm", "max pool", "flatten"],
)
def test_init_for_an_input_a_layer_cannot_take_is_named_by_path(layer, shape):
    with pytest.raises(ShapeMismatchError) as caught:
        nested(layer).init(KEY, spec(*shape))
    assert str(caught.value).startswith(f"encoder/query ({layer.kind}): ")
    assert f"float32{list(shape)}" in str(caught.value)


@both_modes
@pytest.mark.parametrize(
    ("layer", "shape", "keep"),
    [
        (Dense(2), (4, 3), ()),
        (Dense(2), (4, 3), ("params/kernel",)),
        (Conv(2, (3,)), (1, 5, 3), ()),
        (BatchNorm(), (4, 3), ()),
        (BatchNorm(), (4, 3), ("params/scale", "params/bias")),
        (BatchNorm(), (4, 3), ("params/scale", "params/bias", "state/mean")),
        (Linen(nn.Dense(2)), (4, 3), ()),
    ],
    ids=str,
)
def test_missing_variables_are_named_by_path_with_those_that_came(
    layer, shape, keep, ctx
):
    whole = sample(layer, *shape)
    kept = Variables(
        {name: x for name, x in whole.params.items() if f"params/{name}" in keep},
        {name: x for name, x in whole.state.items() if f"state/{name}" in keep},
    )
    with pytest.raises(MissingVariablesError) as caught:
        nested(layer).apply(at_query(kept), random(*shape), ctx=ctx)
    message = str(caught.value)
    assert message.startswith(f"encoder/query ({layer.kind}): expects variables")
    assert f"params {sorted(kept.params)} and state {sorted(kept.state)}" in message
    assert "Pass the Variables that init returned" in message


DENSE = sample(Dense(2), 1, 3)
NORMED = sample(BatchNorm(), 2, 3)
IMAGE = random(1, 4, 4, 3)
WRONG_USES = {
    "bias of another length": lambda: Dense(2)(
        {"kernel": np.ones((3, 2), "f"), "bias": np.ones(3, "f")}, random(1, 3)
    ),
    "params of another layer": lambda: Dense(2)(
        sample(Dense(5), 1, 3).params, random(1, 3)
    ),
    "too few kernel axes": lambda: Dense(2)({"kernel": np.ones(3, "f")}, random(1, 3)),
    "statistics of another length": lambda: BatchNorm()(
        NORMED.params, random(2, 3), state={"mean": np.ones(4), "var": np.ones(4)}
    ),
    "a Python number": lambda: Dense(2)(DENSE.params, 1.0),
    "a nested list to init": lambda: Dense(2).init(KEY, [[1.0, 2.0, 3.0]]),
    "a nested list to flatten": lambda: Flatten()({}, [[1.0]]),
    "two inputs to a layer of one": lambda: Dense(2)(DENSE.params, IMAGE, IMAGE),
    "no input": lambda: Dense(2)(DENSE.params),
    "variables in place of params": lambda: nested(Dense(2))(DENSE, random(1, 3)),
    "params in place of variables": lambda: nested(Dense(2)).apply(
        DENSE.params, random(1, 3), ctx=INFER
    ),
    "a negative number of features": lambda: Dense(-1).init(KEY, spec(1, 3)),
    "groups that do not divide": lambda: Conv(4, (3, 3), groups=2).init(KEY, IMAGE),
    "a padding that is none": lambda: Conv(4, (3, 3), padding="FULL")(
        sample(Conv(4, (3, 3)), *IMAGE.shape).params, IMAGE
    ),
    "a kernel size that is no tuple": lambda: Conv(4, 3)({}, IMAGE),
    "a window that is no tuple": lambda: MaxPool(2)({}, IMAGE),
    "integers to dropout": lambda: Dropout().apply(
        Variables(), np.ones(3, np.int32), ctx=TRAIN
    ),
    "a seed in place of a key": lambda: Dense(2).init(0, spec(1, 3)),
    "a seed for a composition": lambda: nested(Dense(2)).init(0, spec(1, 3)),
    "a seed in the context": lambda: Dropout().apply(
        Variables(), IMAGE, ctx=Context(0, train=True)
    ),
    "a linen class": lambda: Linen(nn.Dense),
    "a thing that is no module": lambda: Linen(42),
}


@pytest.mark.parametrize("use", WRONG_USES.values(), ids=WRONG_USES)
def test_no_wrong_use_ends_in_an_error_from_inside_jax_or_flax(use):
    with pytest.raises(MappingError):
        use()


def test_a_nested_list_to_the_init_of_a_lifted_module_is_refused_by_name():
    with pytest.raises(MappingError):
        Linen(nn.Dense(2)).init(KEY, [[1.0]])


# Dtypes


@pytest.mark.parametrize(
    ("layer", "shape", "dtype"),
    [
        *((Dense(2), (4, 3), d) for d in ("int32", "bool", "bfloat16", "float64")),
        (Dense(2), (4, 3), "uint8"),
        (Conv(2, (3,)), (1, 5, 3), "uint8"),
        (BatchNorm(), (4, 3), "uint8"),
    ],
    ids=lambda value: getattr(value, "kind", str(value)),
)
def test_a_layer_takes_inputs_of_any_dtype_as_it_takes_floats(layer, shape, dtype):
    x = np.abs(4 * random(*shape)).astype(dtype)
    v = sample(layer, *shape)
    y = layer(v.params, x, state=v.state)
    assert y.dtype == np.float32
    close(y, layer(v.params, x.astype(np.float32), state=v.state))


@pytest.mark.parametrize("make", [Dense(2), nested(Dense(2))], ids=["alone", "nested"])
def test_init_from_a_float64_example_is_silent(make):
    assert bits(make.init(KEY, np.ones((1, 3)))) == bits(make.init(KEY, spec(1, 3)))
