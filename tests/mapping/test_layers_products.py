"""Layers that are products, against numpy."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mapping import Built
from mapping.errors import FieldError, ShapeMismatchError
from mapping.layers import (
    Attend,
    Bilinear,
    Conv,
    ConvTranspose,
    Dense,
    DenseGeneral,
    DepthwiseConv,
    Einsum,
    NeuralTensor,
    SeparableConv,
    TensorTrainDense,
)

KEY = jax.random.key(0)


def random(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def spec(*shape):
    return jax.ShapeDtypeStruct(shape, "float32")


def close(actual, expected, tolerance=1e-5):
    """Sums of up to 100 products of order one, in float32."""
    np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance)


def generic(layer, *inputs):
    """Params that fit, without zeros."""
    shapes = jax.eval_shape(layer.init, KEY, *inputs).params
    leaves, tree = jax.tree.flatten(shapes)
    made = [random(*leaf.shape, seed=i + 7) for i, leaf in enumerate(leaves)]
    return jax.tree.unflatten(tree, made)


# To several axes and from them


@pytest.mark.parametrize(
    ("features", "axis", "equation"),
    [
        (3, -1, "abcd,de->abce"),
        ((2, 3), -1, "abcd,def->abcef"),
        (3, (-2, -1), "abcd,cde->abe"),
        ((2, 3), (-1, -3), "abcd,bdef->acef"),
        (2, 1, "abcd,be->acde"),
    ],
    ids=str,
)
@pytest.mark.parametrize("use_bias", [True, False])
def test_dense_general_is_a_sum_over_its_axes(features, axis, equation, use_bias):
    x, layer = random(2, 3, 4, 5), DenseGeneral(features, axis, use_bias)
    params = generic(layer, x)
    assert ("bias" in params) == use_bias
    expected = np.einsum(equation, x, params["kernel"])
    if use_bias:
        expected = expected + params["bias"]
    close(jax.jit(layer)(params, x), expected)


def test_dense_general_of_one_axis_is_dense():
    x = random(4, 3)
    a = DenseGeneral(5).init(KEY, x).params
    b = Dense(5).init(KEY, x).params
    np.testing.assert_array_equal(a["kernel"], b["kernel"])
    np.testing.assert_array_equal(DenseGeneral(5)(a, x), Dense(5)(b, x))


def test_dense_general_starts_with_the_variance_of_all_it_sums():
    kernel = DenseGeneral((20, 20), axis=(-2, -1)).init(KEY, spec(1, 10, 10)).params
    # 40000 draws: five standard errors of a variance are 3.5 %.
    assert np.var(kernel["kernel"]) == pytest.approx(1 / 100, rel=0.035)


def test_dense_general_names_the_axes_that_do_not_fit():
    layer = DenseGeneral(3, axis=(-2, -1))
    params = layer.init(KEY, spec(2, 4, 5)).params
    for x in (random(2, 5, 4), random(5)):
        with pytest.raises(
            ShapeMismatchError,
            match=r"\(DenseGeneral\): params expect \(4, 5\) along the axes \(-2, -1\)"
            r".*got float32.*Re-run init",
        ):
            layer(params, x)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DenseGeneral((2, 0)), r"^DenseGeneral\.features: .*>= 1, got 0"),
        (
            lambda: DenseGeneral(2, axis=(-1, -1)),
            r"^DenseGeneral\.axis: .*got \(-1, -1",
        ),
        (lambda: DenseGeneral(2, axis="last"), r"^DenseGeneral\.axis: .*got 'last'"),
        (lambda: Einsum("ab,bc", (2, 3)), r"^Einsum\.equation: .*got 'ab,bc'"),
        (lambda: Einsum("ab->ba", (2,)), r"^Einsum\.equation: .*got 'ab->ba'"),
        (lambda: Einsum("ab,bc->ac", (2,)), r"^Einsum\.shape: .*'bc', got \(2,\)"),
        (lambda: Einsum("a,b->ab", (0,)), r"^Einsum\.shape\[0\]: .*got 0"),
        (lambda: Bilinear(0), r"^Bilinear\.features: .*got 0"),
        (lambda: NeuralTensor(-1), r"^NeuralTensor\.features: .*got -1"),
        (lambda: ConvTranspose(0), r"^ConvTranspose\.features: .*got 0"),
        (lambda: ConvTranspose(2, 3), r"^ConvTranspose\.kernel_size: .*got 3\. Use"),
        (lambda: Conv(2, (3, 0)), r"^Conv\.kernel_size\[1\]: .*got 0"),
        (lambda: Conv(2, groups=0), r"^Conv\.groups: .*got 0"),
        (lambda: DepthwiseConv(3), r"^DepthwiseConv\.kernel_size: .*got 3\. Use"),
        (lambda: DepthwiseConv(multiplier=0), r"^DepthwiseConv\.multiplier: .*got 0"),
        (lambda: SeparableConv(0), r"^SeparableConv\.features: .*got 0"),
        (
            lambda: TensorTrainDense(7, (2, 2), (2, 3), (2,)),
            r"^TensorTrainDense\.out_shape: expected factors of 7 .*\(2, 3\), which "
            r"multiply to 6\. Choose factors of 7",
        ),
        (
            lambda: TensorTrainDense(6, (2, 2, 2), (2, 3), (2,)),
            r"^TensorTrainDense: expected as many factors.*in_shape \(2, 2, 2",
        ),
        (
            lambda: TensorTrainDense(6, (2, 2), (2, 3), (2, 2)),
            r"^TensorTrainDense: expected .*one rank fewer.*ranks \(2, 2\)",
        ),
        (
            lambda: TensorTrainDense(6, (2, 2), (2, 3), 2),
            r"^TensorTrainDense\.ranks: expected a tuple, got 2",
        ),
        (
            lambda: TensorTrainDense(6, (2, 2), (2, 3), (0,)),
            r"^TensorTrainDense\.ranks\[0\]: .*got 0",
        ),
    ],
)
def test_a_field_that_makes_no_layer_is_refused_at_once(make, message):
    with pytest.raises(FieldError, match=message):
        make()


# Einstein's notation


@pytest.mark.parametrize(
    ("equation", "shape", "bias", "along"),
    [
        ("...d,dk->...k", (4, 5), (5,), (5,)),
        ("btd,dhk->bhtk", (4, 2, 3), (2, 3), (2, 1, 3)),
        ("btd, tdk -> btk", (3, 4, 5), (3, 5), (3, 5)),
        ("btd,t->bd", (3,), (), ()),
    ],
)
def test_einsum_is_numpy_s_with_a_bias_where_the_kernel_leaves_axes(
    equation, shape, bias, along
):
    x, layer = random(2, 3, 4), Einsum(equation, shape)
    params = generic(layer, x)
    assert params["bias"].shape == bias
    expected = np.einsum(equation, x, params["kernel"])
    expected = expected + params["bias"].reshape(along)
    close(jax.jit(layer)(params, x), expected)


def test_einsum_starts_with_the_variance_of_what_it_sums():
    def variance(equation, shape, *like):
        params = Einsum(equation, shape).init(KEY, spec(*like)).params
        return np.var(params["kernel"])

    # At least 40000 draws: five standard errors of a variance are 3.5 %.
    back = variance("...hk,hkd->...d", (8, 50, 100), 2, 8, 50)
    assert back == pytest.approx(1 / 400, rel=0.035)
    own = variance("bti,tij->btj", (40, 10, 100), 2, 40, 10)
    assert own == pytest.approx(1 / 10, rel=0.035)


def test_an_input_that_einsum_cannot_take_is_named():
    layer = Einsum("btd,dk->btk", (4, 5))
    params = generic(layer, random(2, 3, 4))
    for x in (random(2, 4), random(2, 3, 5)):
        with pytest.raises(ShapeMismatchError, match=r"\(Einsum\): cannot take float"):
            layer(params, x)


# Two inputs


def test_a_bilinear_layer_is_a_form_for_each_feature():
    a, b = random(2, 5, 3), random(2, 5, 4, seed=1)
    layer = Bilinear(6)
    params = generic(layer, a, b)
    expected = np.stack(
        [
            np.sum((a @ params["kernel"][..., k]) * b, -1) + params["bias"][k]
            for k in range(6)
        ],
        -1,
    )
    close(jax.jit(layer)(params, a, b), expected)
    bare = Bilinear(6, use_bias=False)
    assert set(generic(bare, a, b)) == {"kernel"}
    close(bare({"kernel": params["kernel"]}, a, b), expected - params["bias"])


def test_a_bilinear_layer_starts_with_the_variance_of_all_pairs():
    kernel = Bilinear(80).init(KEY, spec(20), spec(30)).params["kernel"]
    # 48000 draws: five standard errors of a variance are 3.5 %.
    assert np.var(kernel) == pytest.approx(1 / 600, rel=0.035)


def test_a_neural_tensor_layer_is_that_of_the_paper():
    a, b = random(2, 5, 3), random(2, 5, 4, seed=1)
    layer = NeuralTensor(6)
    params = generic(layer, a, b)
    form = np.einsum("...i,ijk,...j->...k", a, params["bilinear"]["kernel"], b)
    both = np.concatenate([a, b], -1) @ params["linear"]["kernel"]
    expected = np.tanh(form + both + params["linear"]["bias"])
    close(jax.jit(layer)(params, a, b), expected)
    straight = NeuralTensor(6, activation=jax.nn.relu)
    close(
        straight(params, a, b),
        np.maximum(form + both + params["linear"]["bias"], 0),
    )


@pytest.mark.parametrize("layer", [Bilinear(2), NeuralTensor(2)], ids=str)
def test_two_inputs_that_do_not_fit_are_named(layer):
    a, b = random(2, 3), random(2, 4)
    params = generic(layer, a, b)
    kind = layer.kind
    with pytest.raises(ShapeMismatchError, match=rf"\({kind}\): expects 2 array"):
        layer(params, a)
    with pytest.raises(ShapeMismatchError, match=rf"\({kind}\): .*but the last are eq"):
        layer(params, a, random(3, 4))
    with pytest.raises(ShapeMismatchError, match="expect 4 features"):
        layer(params, a, random(2, 5))
    with pytest.raises(ShapeMismatchError, match=rf"\({kind}\): .*at least 1 axes"):
        layer.init(KEY, spec(), spec(4))


def test_scores_of_an_embedding_are_products_with_its_rows():
    x, embedding = random(2, 5, 3), random(7, 3, seed=1)
    close(Attend()({}, x, embedding), x @ embedding.T)
    with pytest.raises(ShapeMismatchError, match=r"\(Attend\): .*expect 3 features"):
        Attend()({}, random(2, 4), embedding)
    with pytest.raises(ShapeMismatchError, match=r"\(Attend\): .*Pass the `embedding`"):
        Attend()({}, x, embedding[0])


# Tensor trains


TRAINS = [
    (TensorTrainDense(6, (8,), (6,), ()), 8),
    (TensorTrainDense(6, (2, 4), (3, 2), (3,)), 8),
    (TensorTrainDense(12, (2, 2, 3), (3, 1, 4), (2, 5)), 12),
    (TensorTrainDense(16, (2, 3, 2, 2), (2, 2, 2, 2), (3, 4, 2), use_bias=False), 24),
]


@pytest.mark.parametrize(("layer", "features"), TRAINS, ids=str)
@pytest.mark.parametrize("batch", [(), (5,), (2, 3)], ids=str)
def test_a_tensor_train_is_dense_with_its_whole_kernel(layer, features, batch):
    x = random(*batch, features)
    params = generic(layer, x)
    kernel = np.zeros((features, layer.features))
    for row, i in enumerate(np.ndindex(layer.in_shape)):
        for column, o in enumerate(np.ndindex(layer.out_shape)):
            product = np.eye(1)
            for k, (a, b) in enumerate(zip(i, o, strict=True)):
                product = product @ params[f"core_{k + 1}"][:, a, b]
            kernel[row, column] = product.item()
    dense = Dense(layer.features, layer.use_bias)
    whole = {"kernel": kernel.astype(np.float32)}
    if layer.use_bias:
        whole["bias"] = params["bias"]
    scale = np.abs(kernel).max()
    close(layer.kernel(params) / scale, kernel / scale, 1e-6)
    close(jax.jit(layer)(params, x) / scale, dense(whole, x) / scale)


def test_a_tensor_train_starts_with_the_variance_of_dense():
    layer = TensorTrainDense(256, (16, 16), (16, 16), (9,))
    kernel = layer.kernel(layer.init(KEY, spec(256)).params)
    # Two cores of 2304 draws: each one's variance is known up to 3 %.
    assert np.mean(np.square(kernel)) == pytest.approx(1 / 256, rel=0.2)


def test_a_tensor_train_has_the_params_of_its_cores():
    train = TensorTrainDense(1024, (4, 8, 8, 4), (4, 8, 8, 4), (8, 8, 8))
    params = jax.eval_shape(train.init, KEY, spec(1, 1024)).params
    count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
    assert count == 16 * 8 + 8 * 64 * 8 + 8 * 64 * 8 + 16 * 8 + 1024
    assert count < 1024 * 1024 / 100


def test_factors_that_do_not_multiply_to_the_input_are_named():
    layer = TensorTrainDense(6, (2, 4), (3, 2), (3,))
    message = (
        r"\(TensorTrainDense\): expects in_shape \(2, 4\) to multiply to the features "
        r"in, got 8 for float32\[5, 9\]\. Choose factors of 9"
    )
    with pytest.raises(ShapeMismatchError, match=message):
        layer.init(KEY, spec(5, 9))
    with pytest.raises(ShapeMismatchError, match=message):
        layer(generic(layer, spec(5, 8)), random(5, 9))


# Convolutions


def test_separable_conv_is_a_depthwise_and_a_pointwise_one():
    x, layer = random(2, 6, 5, 3), SeparableConv(4, (3, 2), 2, strides=2)
    params = generic(layer, x)
    middle = DepthwiseConv((3, 2), 2, strides=2, use_bias=False)(params["depthwise"], x)
    expected = np.asarray(middle) @ params["pointwise"]["kernel"][0, 0]
    close(jax.jit(layer)(params, x), expected + params["pointwise"]["bias"])


def test_depthwise_conv_mixes_no_channels():
    x, layer = random(1, 5, 3), DepthwiseConv((3,), 2, padding="VALID", use_bias=False)
    params = generic(layer, x)
    expected = np.zeros((1, 3, 6))
    for c in range(3):
        for j in range(2):
            taps = params["kernel"][:, 0, 2 * c + j]
            expected[0, :, 2 * c + j] = np.correlate(x[0, :, c], taps, "valid")
    close(layer(params, x), expected)


@pytest.mark.parametrize("padding", ["SAME", "VALID", "CIRCULAR"])
@pytest.mark.parametrize("strides", [1, 2, 3])
def test_transposed_conv_enlarges_by_its_strides(padding, strides):
    x, layer = random(1, 5, 2), ConvTranspose(3, (3,), strides, padding)
    size = strides * 4 + 3 if padding == "VALID" else strides * 5
    assert layer(generic(layer, x), x).shape == (1, size, 3)


def test_transposed_conv_spreads_each_input_by_the_flipped_kernel():
    x = random(1, 4, 1)
    layer = ConvTranspose(1, (3,), strides=2, padding="VALID", use_bias=False)
    params = generic(layer, x)
    expected = np.zeros(9)
    for p in range(4):
        for q in range(3):
            expected[2 * p + 2 - q] += params["kernel"][q, 0, 0] * x[0, p, 0]
    close(layer(params, x)[0, :, 0], expected)


@pytest.mark.parametrize(
    "layer", [DepthwiseConv(), ConvTranspose(2), SeparableConv(2)], ids=str
)
def test_convolutions_name_channels_and_axes_that_do_not_fit(layer):
    params = generic(layer, random(1, 5, 5, 3))
    with pytest.raises(ShapeMismatchError, match=r"params expect 3 features in"):
        layer(params, random(1, 5, 5, 4))
    with pytest.raises(ShapeMismatchError, match=rf"\({layer.kind}\): expects 2 spat"):
        layer(params, random(5, 3))
    with pytest.raises(ShapeMismatchError, match=rf"\({layer.kind}\): expects 2 spat"):
        layer.init(KEY, spec(5, 3))


# Initialisers


@pytest.mark.parametrize(
    ("layer", "inputs"),
    [
        (Dense, (spec(2, 3),)),
        (DenseGeneral, (spec(2, 3),)),
        (Conv, (spec(1, 5, 5, 2),)),
        (ConvTranspose, (spec(1, 5, 5, 2),)),
        (SeparableConv, (spec(1, 5, 5, 2),)),
        (Bilinear, (spec(2, 3), spec(2, 4))),
        (NeuralTensor, (spec(2, 3), spec(2, 4))),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_kernels_and_biases_start_as_said(layer, inputs):
    normal = Built.of(jax.nn.initializers.constant, 0.5)
    made = layer(4, kernel_init=normal, bias_init=jax.nn.initializers.ones)
    assert made == layer(
        4,
        kernel_init=Built.of(jax.nn.initializers.constant, 0.5),
        bias_init=jax.nn.initializers.ones,
    )
    leaves = jax.tree_util.tree_flatten_with_path(made.init(KEY, *inputs).params)[0]
    for path, leaf in leaves:
        expected = 1.0 if path[-1].key == "bias" else 0.5
        np.testing.assert_array_equal(leaf, np.full(leaf.shape, expected))
    assert {path[-1].key for path, _ in leaves} == {"kernel", "bias"}
    zeros = layer(4).init(KEY, *inputs).params
    biases = jax.tree_util.tree_flatten_with_path(zeros)[0]
    assert all(not leaf.any() for path, leaf in biases if path[-1].key == "bias")
    assert jnp.issubdtype(leaves[0][1].dtype, jnp.float32)
