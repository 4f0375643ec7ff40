"""Losses against scikit-learn, scipy and their formulas in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from jax.test_util import check_grads
from scipy.special import log_softmax, softmax
from sklearn.metrics import log_loss, mean_squared_error

from mapping import Context, Lift, Serial, Variables
from mapping.core import call
from mapping.errors import FieldError, MappingError, ShapeMismatchError
from mapping.losses import CrossEntropy, MeanSquaredError

LAWS = settings(deadline=None, max_examples=30, database=None)
LOSSES = [CrossEntropy(), CrossEntropy(0.1), MeanSquaredError()]


def random(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def classes(*shape, seed=0, count=5):
    return np.random.default_rng(seed).integers(0, count, shape).astype(np.int32)


def one_hot(classes, count=5):
    return np.eye(count, dtype=np.float32)[classes]


def by_definition(logits, target):
    terms = target.astype(np.float64) * log_softmax(logits.astype(np.float64), -1)
    return -terms.sum(-1).mean()


# Cross-entropy


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int32", "uint32", "int64"])
def test_cross_entropy_of_class_numbers_is_scikit_learn_s_log_loss(dtype):
    logits, target = 3 * random(64, 5), classes(64).astype(dtype)
    expected = log_loss(target, softmax(logits.astype(np.float64), -1), labels=range(5))
    assert CrossEntropy()({}, logits, target) == pytest.approx(expected, rel=1e-6)


def test_cross_entropy_of_one_hot_targets_is_that_of_the_class_numbers():
    logits, target = random(8, 5), classes(8)
    np.testing.assert_array_equal(
        CrossEntropy()({}, logits, one_hot(target)), CrossEntropy()({}, logits, target)
    )


@LAWS
@given(hnp.arrays(np.float32, (4, 3), elements=st.floats(-80, 80, width=32)))
def test_cross_entropy_of_a_distribution_is_its_formula(logits):
    target = softmax(random(4, 3).astype(np.float64), -1).astype(np.float32)
    expected = by_definition(logits, target)
    # A term is at most 160, its float32 rounding 1e-5.
    assert CrossEntropy()({}, logits, target) == pytest.approx(expected, 1e-6, 3e-5)


@pytest.mark.parametrize("smoothing", [0.1, 0.5, 0.99])
@pytest.mark.parametrize("encode", [lambda t: t, one_hot], ids=["classes", "one-hot"])
def test_label_smoothing_spreads_its_share_over_all_classes(smoothing, encode):
    logits, target = random(8, 5), classes(8)
    smooth = (1 - smoothing) * one_hot(target) + smoothing / 5
    loss = CrossEntropy(smoothing)({}, logits, encode(target))
    assert loss == pytest.approx(by_definition(logits, smooth), rel=1e-6)


def test_cross_entropy_averages_over_every_leading_axis():
    logits, target = random(2, 3, 4, 5), classes(2, 3, 4)
    loss = CrossEntropy()({}, logits, target)
    flat = CrossEntropy()({}, logits.reshape(24, 5), target.reshape(24))
    assert loss.shape == ()
    assert loss == pytest.approx(float(flat), rel=1e-6)


def test_cross_entropy_takes_one_example_without_a_batch():
    logits = random(5)
    loss = CrossEntropy()({}, logits, np.int32(2))
    assert loss == pytest.approx(-log_softmax(logits)[2], rel=1e-6)


def test_cross_entropy_is_finite_for_extreme_logits():
    logits = np.array([[1e4, 0.0], [0.0, 1e4]], np.float32)
    assert CrossEntropy()({}, logits, np.array([0, 1])) == 0
    assert CrossEntropy()({}, logits, np.array([1, 0])) == 1e4


def test_the_gradient_of_cross_entropy_is_the_error_of_the_probabilities():
    logits, target = random(8, 5), classes(8)
    gradient = jax.grad(lambda z: CrossEntropy()({}, z, target))(logits)
    expected = (softmax(logits.astype(np.float64), -1) - one_hot(target)) / 8
    np.testing.assert_allclose(gradient, expected, atol=1e-7)


@pytest.mark.parametrize("share", [-0.1, 1.0, 2.0, float("nan")])
def test_a_smoothing_that_is_no_share_is_refused(share):
    with pytest.raises(FieldError, match=r"^CrossEntropy\.label_smoothing: .*\[0, 1\)"):
        CrossEntropy(share)


@pytest.mark.parametrize("wrong", [-1, 3])
def test_a_class_number_out_of_range_never_looks_like_a_perfect_prediction(wrong):
    loss = CrossEntropy()({}, np.zeros((2, 3), np.float32), np.array([wrong, wrong]))
    assert loss != 0


# Mean squared error


@pytest.mark.parametrize("shape", [(10,), (10, 3), (2, 3, 4)], ids=str)
def test_mean_squared_error_is_scikit_learn_s(shape):
    y, target = random(*shape), random(*shape, seed=1)
    expected = mean_squared_error(target.ravel(), y.ravel())
    assert MeanSquaredError()({}, y, target) == pytest.approx(expected, rel=1e-6)


@LAWS
@given(hnp.arrays(np.float32, 5, elements=st.floats(-100, 100, width=32)))
def test_mean_squared_error_is_symmetric_never_negative_and_zero_for_equals(y):
    other = np.arange(5, dtype=np.float32)
    there, back = (MeanSquaredError()({}, *p) for p in ((y, other), (other, y)))
    assert there == back >= 0
    assert MeanSquaredError()({}, y, y) == 0


def test_mean_squared_error_takes_integer_targets_as_a_user_has_them():
    with jax.numpy_dtype_promotion("standard"):
        loss = MeanSquaredError()({}, np.ones(3, np.float32), np.array([0, 1, 2]))
    assert loss == pytest.approx(2 / 3)


# Both


@pytest.mark.parametrize("loss", LOSSES, ids=str)
def test_a_loss_is_a_mapping_without_params_or_state(loss):
    logits, target = random(4, 5), one_hot(classes(4))
    assert loss.init(jax.random.key(0), logits, target) == Variables()
    state = {"kept": 1}
    value, new = loss.apply(Variables({}, state), logits, target, ctx=Context())
    assert value.shape == ()
    assert value.dtype == np.float32
    assert new == state


@pytest.mark.parametrize("loss", LOSSES, ids=str)
def test_a_compiled_loss_equals_the_eager_one(loss):
    logits, target = random(4, 5), one_hot(classes(4))
    compiled = jax.jit(lambda z, t: loss({}, z, t))(logits, target)
    assert compiled == pytest.approx(float(loss({}, logits, target)), rel=1e-6)


@pytest.mark.parametrize("loss", LOSSES, ids=str)
def test_the_gradients_of_a_loss_agree_with_numerical_ones(loss):
    with jax.enable_x64(True):
        logits, target = random(4, 5).astype(np.float64), np.eye(5)[classes(4)]
        check_grads(lambda z: loss({}, z, target), (logits,), 1, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(
    ("loss", "shape", "target", "expected"),
    [
        (CrossEntropy(), (4, 5), classes(3), "class numbers"),
        (CrossEntropy(), (4, 5), classes(4, 1), "class numbers"),
        (CrossEntropy(), (4, 5), classes(4, 5), "class numbers"),
        (CrossEntropy(), (4, 5), classes(1), "class numbers"),
        (CrossEntropy(), (4, 5), random(4, 4), "a distribution"),
        (CrossEntropy(), (4, 5), random(1, 5), "a distribution"),
        (CrossEntropy(), (4, 5), random(5), "a distribution"),
        (MeanSquaredError(), (4,), random(4, 1), "a target"),
        (MeanSquaredError(), (4, 1), random(4), "a target"),
        (MeanSquaredError(), (4, 2), random(4, 1), "a target"),
        (MeanSquaredError(), (4,), np.float32(1), "a target"),
    ],
    ids=lambda value: value if isinstance(value, str) else str(np.shape(value)),
)
def test_shapes_that_do_not_fit_are_refused_and_never_broadcast(
    loss, shape, target, expected
):
    pair = (random(*shape), target)
    with pytest.raises(ShapeMismatchError, match="a loss never broadcasts") as caught:
        call("objective", loss, Variables(), *pair, ctx=Context())
    message = str(caught.value)
    assert message.startswith("objective (loss): expected ")
    assert expected in message
    assert f"float32{list(shape)}" in message
    assert f"got {target.dtype}{list(target.shape)}" in message


def test_class_numbers_that_are_floats_are_refused_with_the_right_fix():
    with pytest.raises(ShapeMismatchError, match="integer"):
        CrossEntropy()({}, random(4, 5), classes(4).astype(np.float32))


@pytest.mark.parametrize(
    ("loss", "target"),
    [(CrossEntropy(), [0, 1]), (MeanSquaredError(), [[0.0, 1.0], [1.0, 0.0]])],
    ids=["cross-entropy", "mean squared error"],
)
def test_a_list_as_target_is_taken_or_refused_by_name(loss, target):
    logits = np.eye(2, dtype=np.float32)
    try:
        value = loss({}, logits, target)
    except MappingError:
        return
    assert value == loss({}, logits, np.asarray(target, np.asarray(target).dtype))


def test_any_function_of_prediction_and_target_lifts_to_a_loss():
    loss = Lift(jnp.subtract) >> jnp.abs >> jnp.mean
    assert loss({}, np.float32([1, 3]), np.float32([2, 5])) == 1.5
    assert loss == Serial(jnp.subtract, jnp.abs, jnp.mean)
