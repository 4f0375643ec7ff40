"""Functions by name, shapes, pools and dropout, against numpy and the formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mapping import Context, Serial, Variables, register
from mapping.errors import FieldError, ShapeMismatchError, UnknownNameError
from mapping.layers import (
    Activation,
    AvgPool,
    Dropout,
    GlobalAvgPool,
    GlobalMaxPool,
    Linen,
    MaxPool,
    Permute,
    PReLU,
    Reshape,
    Swish,
)

KEY = jax.random.key(0)
TRAIN = Context(jax.random.key(1), train=True)


def random(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def close(actual, expected, tolerance=1e-6):
    np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance)


# Activations


def test_an_activation_is_found_by_its_name():
    x = random(3, 4)
    np.testing.assert_array_equal(Activation("relu")({}, x), np.maximum(x, 0))
    assert Activation("relu") == Activation("relu") != Activation("elu")


def test_an_unknown_activation_lists_the_nearest():
    message = r"^Activation\.name: expected .*, got 'swich'\. Nearest: swish"
    with pytest.raises(UnknownNameError, match=message):
        Activation("swich")


@register("function", "cubed_for_a_test")
def cubed(x):
    return x**3


def test_a_registered_function_is_an_activation():
    x = random(3, 4)
    close(Activation("cubed_for_a_test")({}, x), x**3)


@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
def test_a_softmax_of_half_precision_is_exact_to_its_last_bit(name):
    x = jnp.asarray(random(4, 1000), jnp.bfloat16)
    y = Activation(name)({}, x)
    assert y.dtype == jnp.bfloat16
    wide = np.asarray(x, np.float64)
    expected = wide - np.log(np.exp(wide).sum(-1, keepdims=True))
    expected = np.exp(expected) if name == "softmax" else expected
    # Half a unit in the last of eight bits.
    np.testing.assert_allclose(np.asarray(y, np.float64), expected, rtol=2**-8)


@pytest.mark.parametrize("layer", [Activation("elu"), PReLU(), Swish()], ids=str)
def test_integers_are_taken_as_floats(layer):
    x = np.array([-3, 2])
    params = layer.init(KEY, x).params
    y = layer(params, x)
    assert y.dtype == jnp.float32
    close(y, layer(params, x.astype(np.float32)))
    assert y[0] % 1 != 0


def test_swish_is_steep_as_its_beta():
    x, beta = random(5, 3), np.array([0.5, 1.0, 4.0], np.float32)
    layer = Swish(2.0, per_feature=True)
    assert layer.init(KEY, x).params["beta"].tolist() == [2.0, 2.0, 2.0]
    close(layer({"beta": beta}, x), x / (1 + np.exp(-beta * x)))
    close(Swish()(Swish().init(KEY, x).params, x), jax.nn.silu(x))
    with pytest.raises(ShapeMismatchError, match="params expect 3 features"):
        layer({"beta": beta}, random(5, 4))


def test_prelu_bends_by_its_slope():
    x = random(5, 3)
    close(PReLU()({"negative_slope": jnp.array(0.1)}, x), np.where(x > 0, x, 0.1 * x))
    assert PReLU(0.5).init(KEY, x).params["negative_slope"] == 0.5


# Shapes


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((6, 4), (2, 6, 4)),
        ((-1,), (2, 24)),
        ((4, -1, 2), (2, 4, 3, 2)),
        ((24,), (2, 24)),
    ],
)
def test_reshape_keeps_the_batch_and_the_order(shape, expected):
    x = random(2, 2, 3, 4)
    np.testing.assert_array_equal(Reshape(shape)({}, x), x.reshape(expected))


def test_reshape_of_no_examples_has_the_shape_of_some():
    assert Reshape((2, -1))({}, random(0, 6)).shape == (0, 2, 3)


@pytest.mark.parametrize("shape", [(5, -1), (5, 5), (0, -1)], ids=str)
def test_reshape_names_an_input_that_it_cannot_take(shape):
    net = Serial(net=Serial(fold=Reshape(shape)))
    with pytest.raises(
        ShapeMismatchError,
        match=r"^net/fold \(Reshape\): expects \(.*\) after the batch axis, got float32"
        r"\[2, 3, 4\], 12 elements",
    ):
        net({}, random(2, 3, 4))


@pytest.mark.parametrize("axes", [(1, 2, 3), (3, 1, 2), (2, 1, 3)], ids=str)
def test_permute_keeps_the_batch(axes):
    x = random(2, 3, 4, 5)
    np.testing.assert_array_equal(Permute(axes)({}, x), x.transpose(0, *axes))


def test_permute_names_an_input_of_other_axes():
    with pytest.raises(
        ShapeMismatchError, match=r"\(Permute\): .* batch axis and 2 mo"
    ):
        Permute((2, 1))({}, random(2, 3))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Reshape((-1, -1)), r"^Reshape\.shape: .*got \(-1, -1\)"),
        (lambda: Reshape((2, -3)), r"^Reshape\.shape: .*got \(2, -3\)"),
        (lambda: Reshape(6), r"^Reshape\.shape: .*got 6"),
        (lambda: Permute((0, 1)), r"^Permute\.axes: .*got \(0, 1\)"),
        (lambda: Permute((1, 1)), r"^Permute\.axes: .*got \(1, 1\)"),
        (lambda: Permute((1, 3)), r"^Permute\.axes: .*got \(1, 3\)"),
        (lambda: GlobalAvgPool(0), r"^GlobalAvgPool\.spatial: .*got 0"),
        (lambda: GlobalMaxPool(True), r"^GlobalMaxPool\.spatial: .*got True"),
        (lambda: MaxPool(2), r"^MaxPool\.window: expected an extent.*got 2"),
        (lambda: AvgPool((2, 0)), r"^AvgPool\.window\[1\]: .*got 0"),
        (lambda: Linen(nn_class()), r"^Linen\.wrapped: .*Pass an instance"),
    ],
)
def test_a_field_that_makes_no_layer_is_refused_at_once(make, message):
    with pytest.raises(FieldError, match=message):
        make()


def nn_class():
    import flax.linen

    return flax.linen.Dense


# Pools


@pytest.mark.parametrize(
    ("pool", "summary"), [(GlobalAvgPool, np.mean), (GlobalMaxPool, np.max)]
)
def test_a_global_pool_leaves_batch_and_channels(pool, summary):
    x = random(2, 3, 4, 5)
    close(pool()({}, x), summary(x, (1, 2)))
    close(pool(keep_axes=True)({}, x), summary(x, (1, 2), keepdims=True))
    close(pool(spatial=1)({}, x), summary(x, 2))
    close(pool(spatial=2)({}, x[0]), summary(x[0], (0, 1)))
    with pytest.raises(ShapeMismatchError, match=rf"\({pool.__name__}\): .*least 3 ax"):
        pool()({}, x[0, 0])


def test_the_mean_of_half_precision_pixels_is_exact_to_its_last_bit():
    x = jnp.asarray(1 + random(1, 64, 64, 2), jnp.bfloat16)
    expected = np.asarray(x, np.float64).mean((1, 2))
    for y in (GlobalAvgPool()({}, x), AvgPool((64, 64))({}, x)[:, 0, 0]):
        assert y.dtype == jnp.bfloat16
        np.testing.assert_allclose(np.asarray(y, np.float64), expected, rtol=2**-8)


def test_the_mean_without_padding_is_over_what_lies_inside():
    x = random(1, 5, 2)
    pool = AvgPool((3,), 1, "SAME", count_padding=False)
    expected = [x[:, max(i - 1, 0) : i + 2].mean(1) for i in range(5)]
    close(pool({}, x), np.stack(expected, 1))


def test_pools_of_integers_are_the_largest_and_the_mean():
    x = np.arange(8, dtype=np.int32).reshape(1, 4, 2)
    most = GlobalMaxPool()({}, x)
    assert most.dtype == jnp.int32
    assert most.tolist() == [[6, 7]]
    assert GlobalAvgPool()({}, x).tolist() == [[3.0, 4.0]]
    assert AvgPool((4,))({}, x).tolist() == [[[3.0, 4.0]]]


# Dropout


@pytest.mark.parametrize("axes", [(-3, -2), (1,), (0,)], ids=str)
def test_one_draw_holds_along_the_broadcast_axes(axes):
    x = np.ones((16, 5, 6, 16), np.float32)
    layer = Dropout(0.5, broadcast_axes=axes)
    y = np.asarray(layer.apply(Variables(), x, ctx=TRAIN)[0])
    assert set(np.unique(y)) == {0.0, 2.0}
    first = y.take([0], axes[0])
    for axis in axes[1:]:
        first = first.take([0], axis)
    np.testing.assert_array_equal(y, np.broadcast_to(first, y.shape))
    # No axis beside them is shared: at least 16 draws, of which half fall.
    assert 0.1 < (first == 0).mean() < 0.9
    assert layer({}, x) is x


def test_dropout_names_an_axis_that_is_not_there():
    layer = Dropout(0.5, broadcast_axes=(3,))
    with pytest.raises(ShapeMismatchError, match=r"\(Dropout\): cannot take float32"):
        layer.apply(Variables(), random(2, 3), ctx=TRAIN)
    with pytest.raises(ShapeMismatchError, match=r"\(Dropout\): expects 1 array"):
        layer.apply(Variables(), ctx=TRAIN)
