"""Losses against torch, scikit-learn, scipy and their formulas in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from jax.test_util import check_grads
from scipy.special import log_softmax, softmax
from sklearn.metrics import hinge_loss, log_loss, mean_squared_error

from mapping import Context, Lift, Serial, Variables
from mapping.core import call
from mapping.errors import FieldError, MappingError, ShapeMismatchError
from mapping.layers import Dense
from mapping.losses import (
    CTC,
    BinaryCrossEntropy,
    BinaryFocal,
    Combine,
    Contrastive,
    CosineDistance,
    CrossEntropy,
    Focal,
    Hinge,
    Huber,
    KLDivergence,
    MeanAbsoluteError,
    MeanSquaredError,
    NTXent,
    Triplet,
)
from mapping.train import TrainStep

LAWS = settings(deadline=None, max_examples=30, database=None)
LOSSES = [CrossEntropy(), CrossEntropy(0.1), MeanSquaredError()]


def random(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def classes(*shape, seed=0, count=5):
    return np.random.default_rng(seed).integers(0, count, shape).astype(np.int32)


def one_hot(classes, count=5):
    return np.eye(count, dtype=np.float32)[classes]


def run(loss, *inputs):
    """The loss, compiled as a whole: call by call, its operations take seconds."""
    return jax.jit(lambda *xs: loss({}, *xs))(*inputs)


def slope(loss, first, *others):
    """The (summed) loss and its gradient in the prediction."""
    return jax.jit(jax.value_and_grad(lambda x, *xs: loss({}, x, *xs).sum()))(
        first, *others
    )


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


# Against torch: values and gradients

WEIGHTS = (0.5, 2.0, 0.0, 1.0, 3.0)
SHARES = softmax(random(6, 5, seed=3).astype(np.float64), -1).astype(np.float32)


def functional(name, **options):
    def reference(torch, prediction, target, reduction):
        function = getattr(torch.nn.functional, name)
        given = {
            key: torch.tensor(value) if isinstance(value, tuple) else value
            for key, value in options.items()
        }
        return function(prediction, target, reduction=reduction, **given)

    return reference


def kl(torch, prediction, target, reduction):
    log = torch.log_softmax(prediction, -1)
    each = torch.nn.functional.kl_div(log, target, reduction="none").sum(-1)
    return {"mean": each.mean(), "sum": each.sum(), "none": each}[reduction]


def kl_of_logits(torch, prediction, target, reduction):
    return kl(torch, prediction, torch.softmax(target, -1), reduction)


def cosine(torch, prediction, target, reduction):
    each = 1 - torch.nn.functional.cosine_similarity(prediction, target, dim=-1)
    return {"mean": each.mean(), "sum": each.sum(), "none": each}[reduction]


TORCH = {
    "mse": (MeanSquaredError, {}, functional("mse_loss"), random(6, 5, seed=1)),
    "mae": (MeanAbsoluteError, {}, functional("l1_loss"), random(6, 5, seed=1)),
    "huber": (
        Huber,
        {"delta": 0.7},
        functional("huber_loss", delta=0.7),
        random(6, 5, seed=1),
    ),
    "classes": (CrossEntropy, {}, functional("cross_entropy"), classes(6)),
    "smoothed": (
        CrossEntropy,
        {"label_smoothing": 0.2},
        functional("cross_entropy", label_smoothing=0.2),
        classes(6),
    ),
    "weighted classes": (
        CrossEntropy,
        {"class_weights": WEIGHTS, "label_smoothing": 0.2},
        functional("cross_entropy", weight=WEIGHTS, label_smoothing=0.2),
        classes(6),
    ),
    "ignored": (
        CrossEntropy,
        {"ignore": 3, "class_weights": WEIGHTS},
        functional("cross_entropy", ignore_index=3, weight=WEIGHTS),
        classes(6),
    ),
    "distribution": (CrossEntropy, {}, functional("cross_entropy"), SHARES),
    "binary": (
        BinaryCrossEntropy,
        {},
        functional("binary_cross_entropy_with_logits"),
        SHARES,
    ),
    "positive weight": (
        BinaryCrossEntropy,
        {"positive_weight": WEIGHTS},
        functional("binary_cross_entropy_with_logits", pos_weight=WEIGHTS),
        SHARES,
    ),
    "kl": (KLDivergence, {}, kl, SHARES),
    "kl of logits": (
        KLDivergence,
        {"target_logits": True},
        kl_of_logits,
        random(6, 5, seed=1),
    ),
    "cosine": (CosineDistance, {}, cosine, random(6, 5, seed=1)),
}


@pytest.mark.torch
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("name", TORCH)
def test_values_and_gradients_are_torch_s(name, reduction):
    torch = pytest.importorskip("torch")
    kind, options, reference, target = TORCH[name]
    loss = kind(**options, reduction=reduction)
    prediction = 2 * random(6, 5)
    tensor = torch.tensor(prediction, requires_grad=True)
    numbered = torch.tensor(target.astype(np.int64) if target.ndim == 1 else target)
    expected = reference(torch, tensor, numbered, reduction)
    expected.sum().backward()
    got, gradient = loss({}, prediction, target), slope(loss, prediction, target)[1]
    np.testing.assert_allclose(got, expected.detach(), rtol=2e-6, atol=1e-6)
    np.testing.assert_allclose(gradient, tensor.grad, rtol=1e-5, atol=1e-6)


@pytest.mark.torch
@pytest.mark.parametrize("margin", [0.3, 2.0])
def test_triplet_loss_is_torch_s(margin):
    torch = pytest.importorskip("torch")
    inputs = [random(6, 5, seed=seed) for seed in range(3)]
    tensors = [torch.tensor(x, requires_grad=True) for x in inputs]
    expected = torch.nn.functional.triplet_margin_loss(*tensors, margin=margin)
    expected.backward()
    value, gradients = jax.value_and_grad(
        lambda xs: Triplet(margin)({}, *xs), argnums=0
    )(inputs)
    # Both keep the root off zero by 1e-6: torch inside the norm, optax under it.
    assert value == pytest.approx(expected.item(), abs=3e-6)
    for gradient, tensor in zip(gradients, tensors, strict=True):
        np.testing.assert_allclose(gradient, tensor.grad, atol=2e-6)


CTC_LABELS = np.array([[1, 1, 2], [3, 0, 0], [2, 3, 3], [0, 0, 0]], np.int32)
CTC_COUNTS = np.array([3, 1, 3, 0], np.int32)
CTC_FRAMES = np.array([7, 2, 5, 4], np.int32)


def torch_ctc(torch, logits, labels, frames, counts, blank=0, reduction="none"):
    tensor = torch.tensor(logits, requires_grad=True)
    losses = torch.nn.functional.ctc_loss(
        torch.log_softmax(tensor, -1).transpose(0, 1),
        *(torch.tensor(x.astype(np.int64)) for x in (labels, frames, counts)),
        blank=blank,
        reduction=reduction,
    )
    losses[torch.isfinite(losses)].sum().backward()
    return losses.detach().numpy(), tensor.grad.numpy()


@pytest.mark.torch
@pytest.mark.parametrize("scale", [1, 1e4, 1e5])
def test_ctc_is_torch_s(scale):
    torch = pytest.importorskip("torch")
    logits = scale * random(4, 7, 4)
    lengths = (CTC_LABELS, CTC_FRAMES, CTC_COUNTS)
    expected, gradient = torch_ctc(torch, logits.astype(np.float64), *lengths)
    inputs = (CTC_FRAMES, CTC_LABELS, CTC_COUNTS)
    loss = CTC(reduction="none")
    np.testing.assert_allclose(
        run(loss, logits, *inputs), expected, rtol=3e-6, atol=1e-5
    )
    np.testing.assert_allclose(slope(loss, logits, *inputs)[1], gradient, atol=2e-5)


@pytest.mark.torch
def test_labels_without_an_alignment_cost_infinity_as_in_torch_and_pull_at_nothing():
    torch = pytest.importorskip("torch")
    logits = random(2, 3, 4)
    labels = np.array([[1, 1, 0], [1, 2, 3]], np.int32)  # the first needs a blank
    counts, frames = np.array([2, 3], np.int32), np.array([2, 3], np.int32)
    expected, _ = torch_ctc(torch, logits, labels, frames, counts)
    inputs = (frames, labels, counts)
    got = run(CTC(reduction="none"), logits, *inputs)
    assert np.isinf(expected).tolist() == [True, False]
    np.testing.assert_allclose(got, expected, rtol=1e-6)
    gradient = np.asarray(slope(CTC(reduction="none"), logits, *inputs)[1])
    assert np.isfinite(gradient).all()
    assert (gradient[0] == 0).all()


@pytest.mark.torch
def test_the_blank_of_ctc_may_be_any_class():
    torch = pytest.importorskip("torch")
    logits = random(1, 5, 4)
    labels = np.array([[0, 2]], np.int32)
    lengths = (np.array([5], np.int32), np.array([2], np.int32))
    expected, _ = torch_ctc(torch, logits, labels, *lengths, blank=3)
    assert run(CTC(3), logits, labels) == pytest.approx(expected[0], rel=1e-6)


# Against their definitions


def test_negative_labels_are_the_padding_of_ctc():
    logits = random(4, 7, 4)
    labels = np.where(np.arange(3) < CTC_COUNTS[:, None], CTC_LABELS, -1)
    full = np.full(4, 7, np.int32)
    expected = float(run(CTC(), logits, full, CTC_LABELS, CTC_COUNTS))
    assert run(CTC(), logits, labels) == pytest.approx(expected, rel=1e-6)
    masked = run(CTC(), logits, labels, np.ones(4, bool))
    assert masked == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("labels", "frames", "counts"),
    [([1, 4], 5, 2), ([1, 0], 5, 2), ([-1, 1], 5, 2), ([1, 2], 6, 2), ([1, 2], 5, 3)],
    ids=["no such class", "blank", "negative", "too many frames", "too many labels"],
)
def test_what_ctc_cannot_mean_is_nan(labels, frames, counts):
    inputs = (np.array([x], np.int32) for x in (frames, labels, counts))
    assert np.isnan(run(CTC(), random(1, 5, 4), *inputs))


def test_hinge_loss_is_scikit_learn_s():
    scores, side = 2 * random(9), 2 * classes(9, count=2) - 1
    expected = hinge_loss(side, scores)
    assert Hinge()({}, scores, side) == pytest.approx(expected, rel=1e-6)


def focal_by_definition(probability, gamma):
    return -((1 - probability) ** gamma) * np.log(probability)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_focal_loss_is_its_formula(gamma):
    logits, target = 2 * random(6, 5), classes(6)
    p = softmax(logits.astype(np.float64), -1)[np.arange(6), target]
    expected = np.array(WEIGHTS)[target] * focal_by_definition(p, gamma)
    got = Focal(gamma, WEIGHTS, "none")({}, logits, target)
    np.testing.assert_allclose(got, expected, rtol=3e-6)


def test_focal_loss_without_focus_is_cross_entropy():
    logits, target = random(6, 5), classes(6)
    expected = CrossEntropy()({}, logits, target)
    assert Focal(0)({}, logits, target) == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("alpha", [None, 0.25])
def test_binary_focal_loss_is_its_formula(gamma, alpha):
    logits, target = 2 * random(6, 5), classes(6, 5, count=2)
    yes = 1 / (1 + np.exp(-logits.astype(np.float64)))
    p = np.where(target == 1, yes, 1 - yes)
    weight = 1.0 if alpha is None else np.where(target == 1, alpha, 1 - alpha)
    got = BinaryFocal(gamma, alpha, "none")({}, logits, target)
    np.testing.assert_allclose(got, weight * focal_by_definition(p, gamma), rtol=3e-6)


def test_binary_label_smoothing_moves_its_share_to_one_half():
    logits, target = random(6), classes(6, count=2)
    smooth = (0.8 * target + 0.1).astype(np.float32)
    expected = BinaryCrossEntropy()({}, logits, smooth)
    got = BinaryCrossEntropy(0.2)({}, logits, target)
    assert got == pytest.approx(float(expected), rel=1e-6)


def test_contrastive_loss_is_its_formula():
    a, b, similar = random(6, 3), random(6, 3, seed=1), classes(6, count=2)
    d = np.linalg.norm(a.astype(np.float64) - b, axis=-1)
    expected = np.where(similar == 1, d**2, np.maximum(0, 1.5 - d) ** 2)
    got = Contrastive(1.5, "none")({}, a, b, similar)
    np.testing.assert_allclose(got, expected, rtol=2e-6)
    again = Contrastive(1.5, "none")({}, a, b, similar == 1)
    np.testing.assert_array_equal(again, got)


def pairs_by_definition(z, labels, temperature):
    """NT-Xent with two loops."""
    unit = z / np.linalg.norm(z, axis=-1, keepdims=True)
    s = unit @ unit.T / temperature
    losses = []
    for i in range(len(z)):
        strangers = np.exp(s[i][labels != labels[i]]).sum()
        for j in range(len(z)):
            if j != i and labels[j] == labels[i]:
                losses.append(-np.log(np.exp(s[i, j]) / (np.exp(s[i, j]) + strangers)))
    return losses


LABELS = np.array([0, 1, 0, 2, 1, 0, 3])


@pytest.mark.parametrize("temperature", [0.07, 0.5])
def test_nt_xent_is_its_formula_and_optax_s(temperature):
    z = random(7, 4)
    pairs = pairs_by_definition(z.astype(np.float64), LABELS, temperature)
    got = run(NTXent(temperature), z, LABELS)
    assert got == pytest.approx(np.mean(pairs), rel=1e-5)
    total = run(NTXent(temperature, "sum"), z, LABELS)
    assert total == pytest.approx(np.sum(pairs), rel=1e-5)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        theirs = jax.jit(optax.ntxent)(z, LABELS, temperature)
    assert got == pytest.approx(float(theirs), 1e-5)


def test_nt_xent_is_finite_at_temperatures_where_optax_s_is_not():
    z = np.float32([[1, 0], [1, 0.01], [-1, 0], [0, 1]])
    labels = np.array([0, 0, 0, 1])
    value, gradient = slope(NTXent(0.005), z, labels)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        assert not np.isfinite(jax.jit(optax.ntxent)(z, labels, 0.005))
    expected = pairs_by_definition(z.astype(np.float64), labels, 0.005)
    assert value == pytest.approx(np.mean(expected), rel=1e-5)
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("labels", [[0, 1, 2], [0, 0, 0]], ids=["alone", "together"])
def test_nt_xent_without_pairs_or_without_strangers_is_zero(labels):
    z = random(3, 4)
    value, gradient = slope(NTXent(), z, np.array(labels))
    assert value == 0
    assert (np.asarray(gradient) == 0).all()


# Weights and masks, of any loss

MEANS = {
    "mse": (MeanSquaredError, (random(6, 5), random(6, 5, seed=1))),
    "mae": (MeanAbsoluteError, (random(6, 5), random(6, 5, seed=1))),
    "huber": (Huber, (random(6, 5), random(6, 5, seed=1))),
    "cross-entropy": (CrossEntropy, (random(6, 5), classes(6))),
    "distribution": (CrossEntropy, (random(6, 5), SHARES)),
    "class weights": (
        functools.partial(CrossEntropy, class_weights=WEIGHTS, ignore=1),
        (random(6, 5), classes(6)),
    ),
    "binary": (BinaryCrossEntropy, (random(6, 5), SHARES)),
    "focal": (Focal, (random(6, 5), classes(6))),
    "binary focal": (BinaryFocal, (random(6, 5), classes(6, 5, count=2))),
    "kl": (KLDivergence, (random(6, 5), SHARES)),
    "hinge": (Hinge, (random(6, 5), 2 * classes(6, 5, count=2) - 1)),
    "cosine": (CosineDistance, (random(6, 5), random(6, 5, seed=1))),
    "triplet": (Triplet, tuple(random(6, 5, seed=seed) for seed in range(3))),
    "contrastive": (
        Contrastive,
        (random(6, 5), random(6, 5, seed=1), classes(6, count=2)),
    ),
    "ctc": (CTC, (random(6, 7, 5), classes(6, 2, count=4) + 1)),
}
MASK = np.array([1, 0, 1, 1, 0, 1], bool)


@pytest.mark.parametrize("name", MEANS)
def test_a_masked_mean_is_that_of_what_the_mask_leaves(name):
    kind, inputs = MEANS[name]
    kept = run(kind(), *(x[MASK] for x in inputs))
    for mask in (MASK, 3 * MASK.astype(np.int32)):
        masked = run(kind(), *inputs, mask)
        assert masked == pytest.approx(float(kept), rel=2e-6)


@pytest.mark.parametrize("name", MEANS)
def test_a_weight_counts_for_all_that_its_example_holds(name):
    kind, inputs = MEANS[name]
    weights = np.arange(6, dtype=np.float32)
    each = np.asarray(kind(reduction="none")({}, *inputs))
    spread = weights.reshape(6, *(1,) * (each.ndim - 1)) * np.ones_like(each)
    weighted = kind(reduction="none")({}, *inputs, weights)
    np.testing.assert_allclose(weighted, spread * each, rtol=1e-6)
    total = kind(reduction="sum")({}, *inputs, weights)
    assert total == pytest.approx((spread * each).sum(), rel=2e-6)
    if name != "class weights":
        mean = kind()({}, *inputs, weights)
        assert mean == pytest.approx((spread * each).sum() / spread.sum(), rel=2e-6)


def test_a_weighted_mean_of_squares_is_scikit_learn_s():
    y, t, weights = random(6, 5), random(6, 5, seed=1), np.arange(6, dtype=np.float32)
    expected = mean_squared_error(t, y, sample_weight=weights)
    assert MeanSquaredError()({}, y, t, weights) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("name", MEANS)
def test_the_mean_of_nothing_is_zero_with_gradient_zero(name):
    kind, (first, *others) = MEANS[name]
    nothing = np.zeros(6, bool)
    value, gradient = slope(kind(), first, *others, nothing)
    assert value == 0
    assert (np.asarray(gradient) == 0).all()


def test_what_is_masked_may_hold_anything():
    target = np.where(MASK, classes(6), -100)
    logits = random(6, 5)
    value, gradient = slope(CrossEntropy(), logits, target, MASK)
    expected = CrossEntropy()({}, logits[MASK], target[MASK])
    assert value == pytest.approx(float(expected), rel=1e-6)
    assert (np.asarray(gradient)[~MASK] == 0).all()
    ignoring = CrossEntropy(ignore=-100)({}, logits, target)
    assert ignoring == pytest.approx(float(expected), rel=1e-6)
    y, t = random(6), np.where(MASK, random(6, seed=1), np.nan).astype(np.float32)
    assert np.isfinite(MeanSquaredError()({}, y, t, MASK))


def test_ignoring_a_class_number_that_the_dtype_cannot_hold_ignores_nothing():
    logits, target = random(6, 5), classes(6).astype(np.uint8)
    expected = CrossEntropy()({}, logits, target)
    assert CrossEntropy(ignore=-100)({}, logits, target) == expected


@pytest.mark.parametrize("shape", [(5,), (6, 1), (1, 5), (6, 5, 1)], ids=str)
def test_weights_that_do_not_fit_are_refused(shape):
    weights = np.ones(shape, np.float32)
    inputs = (random(6, 5), random(6, 5), weights)
    with pytest.raises(ShapeMismatchError, match="never broadcasts") as error:
        call("head", MeanSquaredError(), Variables(), *inputs, ctx=Context())
    assert str(error.value).startswith("head (MeanSquaredError): expected weights of")
    assert f"got float32{list(shape)}" in str(error.value)


def test_weights_may_come_with_the_target_so_that_a_step_can_train_on_them():
    x, y = random(6, 3), random(6, 1)
    step = TrainStep(Dense(1), MeanSquaredError(), optax.sgd(0.1))
    kept, whole = (x[MASK], y[MASK]), (x, (y, MASK))
    variables = step.init(jax.random.key(0), kept)
    train = Context(train=True)
    logs, state = step.apply(variables, whole, ctx=train)
    expected_logs, expected = step.apply(variables, kept, ctx=train)
    assert logs["loss"] == pytest.approx(float(expected_logs["loss"]), rel=1e-5)
    for got, wanted in zip(
        *map(jax.tree.leaves, (state["params"], expected["params"])), strict=True
    ):
        np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-6)


# Extremes

EXTREME = np.float32([[1e4, -1e4, 0], [-1e4, 1e4, 1e4], [0, -1e4, 1e4]])
EXTREMES = [
    (CrossEntropy(), np.array([1, 0, 2])),
    (CrossEntropy(0.1, (1.0, 2.0, 3.0)), np.array([1, 0, 2])),
    (CrossEntropy(), np.eye(3, dtype=np.float32)),
    (Focal(), np.array([1, 0, 2])),
    (Focal(0.5), np.array([1, 0, 2])),
    (BinaryCrossEntropy(), np.array([[0, 1, 1], [1, 0, 1], [0, 0, 1]])),
    (BinaryCrossEntropy(0.1, 3.0), np.array([[0, 1, 1], [1, 0, 1], [0, 0, 1]])),
    (BinaryFocal(), np.array([[0, 1, 1], [1, 0, 1], [0, 0, 1]])),
    (BinaryFocal(0.5, 0.25), np.array([[0, 1, 1], [1, 0, 1], [0, 0, 1]])),
    (KLDivergence(), np.eye(3, dtype=np.float32)),
    (KLDivergence(target_logits=True), -EXTREME),
    (Hinge(), np.ones((3, 3), np.int32)),
    (MeanSquaredError(), -EXTREME),
    (Huber(), -EXTREME),
    (CosineDistance(), EXTREME * 0),
]


@pytest.mark.parametrize(("loss", "target"), EXTREMES, ids=lambda v: str(v)[:60])
def test_extreme_predictions_have_finite_losses_and_gradients(loss, target):
    value, gradient = slope(loss, EXTREME, target)
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("loss", [CrossEntropy(), KLDivergence()], ids=str)
def test_a_class_ruled_out_by_an_infinite_logit_costs_nothing_if_it_is_not_meant(loss):
    logits = np.float32([[0, 1, -np.inf]])
    target = np.float32([[0.25, 0.75, 0]])
    value, gradient = slope(loss, logits, target)
    expected = loss({}, logits[:, :2], target[:, :2])
    assert value == pytest.approx(float(expected), rel=1e-6)
    assert np.isfinite(gradient).all()


def test_equal_embeddings_have_finite_gradients():
    z = np.ones((2, 3), np.float32)
    for loss, rest in (
        (Contrastive(), (z, np.array([0, 1]))),
        (Triplet(), (z, z)),
        (CosineDistance(), (z,)),
    ):
        assert np.isfinite(slope(loss, z, *rest)[1]).all()


@pytest.mark.parametrize(
    ("loss", "prediction", "target"),
    [
        (CrossEntropy(), (2, 3), [1, 3]),
        (CrossEntropy(ignore=1), (2, 3), [1, -2]),
        (Focal(), (2, 3), [1, 3]),
        (Focal(), (2, 3), [-1, 2]),
        (BinaryCrossEntropy(), (2,), [0, 2]),
        (BinaryCrossEntropy(), (2,), [0.0, -0.1]),
        (BinaryFocal(), (2,), [1.5, 0.5]),
        (Hinge(), (2,), [0, 1]),
    ],
    ids=str,
)
def test_a_target_that_means_nothing_makes_the_loss_nan(loss, prediction, target):
    target = np.array(target, np.int32 if type(target[0]) is int else np.float32)
    assert np.isnan(run(loss, random(*prediction), target))


@pytest.mark.parametrize("name", MEANS)
def test_half_precision_is_computed_in_float32(name):
    kind, inputs = MEANS[name]
    half = [
        jnp.asarray(x, jnp.bfloat16) if x.dtype == np.float32 else x for x in inputs
    ]
    again = [x.astype(jnp.float32) if x.dtype == jnp.bfloat16 else x for x in half]
    value = kind()({}, *half)
    assert value.dtype == jnp.bfloat16
    assert value == kind()({}, *again).astype(jnp.bfloat16)


# Fields


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MeanSquaredError("average"), "MeanSquaredError.reduction: .*'none'"),
        (lambda: MeanSquaredError(None), "MeanSquaredError.reduction: "),
        (lambda: Huber(0), r"Huber.delta: expected a number in \(0, inf\), got 0"),
        (lambda: Huber("1"), "Huber.delta: "),
        (lambda: CrossEntropy(class_weights=[1.0]), "CrossEntropy.class_weights: "),
        (lambda: CrossEntropy(class_weights=(1.0, -1.0)), r"class_weights\[1\]: "),
        (lambda: CrossEntropy(ignore=1.5), "CrossEntropy.ignore: "),
        (lambda: BinaryCrossEntropy(1.0), "BinaryCrossEntropy.label_smoothing: "),
        (lambda: BinaryCrossEntropy(0.0, -1.0), "BinaryCrossEntropy.positive_weight: "),
        (lambda: Focal(-1), "Focal.gamma: "),
        (lambda: BinaryFocal(alpha=1.0), r"BinaryFocal.alpha: .*\(0, 1\)"),
        (lambda: Contrastive(0), "Contrastive.margin: "),
        (lambda: Triplet(-0.1), "Triplet.margin: "),
        (lambda: NTXent(0.0), "NTXent.temperature: "),
        (lambda: CTC(-1), "CTC.blank: "),
        (lambda: CTC(0.5), "CTC.blank: expected a class number"),
        (lambda: Combine(), "Combine.terms: expected a loss at least"),
        (lambda: Combine(MeanSquaredError()), "Combine.terms: expected pairs"),
        (lambda: Combine((-1, MeanSquaredError())), r"Combine.terms\[0\]: "),
    ],
)
def test_a_field_that_makes_no_loss_is_refused(make, message):
    with pytest.raises(FieldError, match=message):
        make()


@pytest.mark.parametrize(
    ("loss", "shapes", "message"),
    [
        (MeanSquaredError(), [(3,)], "expected 2 inputs, or 3 with weights, got 1"),
        (MeanSquaredError(), [(3,)] * 4, "expected 2 inputs, or 3 with weights, got 4"),
        (Triplet(), [(3, 2), (3, 2)], "expected 3 inputs, or 4 with weights, got 2"),
        (CTC(), [(2, 3, 4)], "expected .logits, labels. or"),
        (CrossEntropy(class_weights=(1.0, 2.0)), [(3, 4), (3, 4)], "of 2 classes"),
        (BinaryCrossEntropy(0.0, (1.0, 2.0)), [(3, 4), (3, 4)], "with 2 entries"),
        (KLDivergence(), [(3, 4), (3,)], "a floating distribution"),
        (Focal(), [(3, 4), (3, 4)], "integer class numbers"),
        (Triplet(), [(3, 2), (3, 2), (2, 2)], "negatives"),
        (Contrastive(), [(3, 2), (3, 2), (3, 2)], "one `similar` a pair"),
        (Contrastive(), [(3, 2), (3, 1), (3,)], "a second embedding"),
        (NTXent(), [(3, 2), (3,)], "one integer label"),
        (CosineDistance(), [(), ()], "vectors"),
        (CTC(), [(3, 4), (3, 2)], r"\(n, frames, classes\)"),
        (CTC(4), [(2, 3, 4), (2, 2)], "more than 4 classes"),
        (CTC(), [(2, 3, 4), (2, 2)], "integer labels"),
    ],
    ids=str,
)
def test_inputs_that_do_not_fit_are_refused_by_name_and_shape(loss, shapes, message):
    inputs = [np.zeros(shape, np.float32) for shape in shapes]
    with pytest.raises(ShapeMismatchError, match=message) as error:
        call("objective", loss, Variables(), *inputs, ctx=Context())
    assert str(error.value).startswith("objective (")
    assert type(loss).__name__ in str(error.value)


@pytest.mark.parametrize(
    ("target", "got"),
    [
        (None, "expected arrays.*got NoneType"),
        ({"y": np.ones(3)}, "expected arrays.*got dict"),
        (np.ones(3, np.complex64), r"expected real numbers, got complex64\[3\]"),
    ],
    ids=["None", "dict", "complex"],
)
def test_what_is_no_real_array_is_refused(target, got):
    with pytest.raises(ShapeMismatchError, match=got):
        MeanSquaredError()({}, np.ones(3, np.float32), target)


# Combinations


def test_a_combination_is_the_weighted_sum_of_its_losses():
    y, t = random(6, 5), random(6, 5, seed=1)
    losses = [MeanSquaredError(), Huber(0.5), MeanSquaredError()]
    combined = Combine((1.0, losses[0]), (0.25, losses[1]), (2, losses[2]))
    expected = sum(
        w * float(loss({}, y, t)) for w, loss in zip((1, 0.25, 2), losses, strict=True)
    )
    assert combined({}, y, t) == pytest.approx(expected, rel=1e-6)
    masked = combined({}, y, t, MASK)
    assert masked == pytest.approx(float(combined({}, y[MASK], t[MASK])), rel=1e-6)


def test_a_combination_takes_functions_and_names_the_loss_that_fails():
    combined = Combine((1.0, MeanSquaredError()), (1.0, jnp.vdot))
    assert combined({}, jnp.ones(3), jnp.ones(3)) == 3
    with pytest.raises(ShapeMismatchError, match=r"^mean_squared_error "):
        combined({}, jnp.ones(3), jnp.ones(2))
    unequal = Combine((1.0, MeanSquaredError()), (1.0, Huber(reduction="none")))
    with pytest.raises(ShapeMismatchError, match=r"of one shape, got .*float32\[3\]"):
        unequal({}, jnp.ones(3), jnp.ones(3))
