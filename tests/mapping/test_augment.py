"""Augmentations: random in training, nothing at all in inference."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads

from mapping import Context, Serial, Variables
from mapping.augment import RandomShift
from mapping.errors import FieldError, MissingKeyError, ShapeMismatchError


def images(*shape):
    return np.arange(1.0, np.prod(shape) + 1, dtype=np.float32).reshape(shape)


def shifted(image, a, b):
    """y[i, j] = x[i + a, j + b], and zero where that is outside."""
    result = np.zeros_like(image)
    height, width = image.shape[:2]
    for i, j in itertools.product(range(height), range(width)):
        if 0 <= i + a < height and 0 <= j + b < width:
            result[i, j] = image[i + a, j + b]
    return result


def augment(reach, x, seed=0):
    ctx = Context(jax.random.key(seed), train=True)
    return np.asarray(RandomShift(reach).apply(Variables(), x, ctx=ctx)[0])


def moves(reach, x, y):
    """By how much each image was moved, which is unique for distinct pixels."""
    steps = range(-reach, reach + 1)
    return [
        next(
            move
            for move in itertools.product(steps, steps)
            if (shifted(before, *move) == after).all()
        )
        for before, after in zip(x, y, strict=True)
    ]


@given(st.integers(1, 2), st.integers(0, 2**31 - 1))
@settings(deadline=None, max_examples=10, database=None)
def test_each_image_is_moved_by_up_to_reach_and_padded_with_zeros(reach, seed):
    x = images(4, 5, 4, 2)
    assert len(moves(reach, x, augment(reach, x, seed))) == 4


def test_all_moves_are_equally_likely_and_independent_along_the_axes():
    x = images(1800, 3, 3, 1)
    counts = np.zeros((3, 3))
    for a, b in moves(1, x, augment(1, x)):
        counts[a + 1, b + 1] += 1
    # Binomial(1800, 1/9): 200 each, sigma 13.3.
    assert (np.abs(counts - 200) < 4 * 13.3).all()


def test_the_images_of_a_batch_move_independently():
    x = np.broadcast_to(images(1, 3, 3, 1), (1800, 3, 3, 1))
    assert len(set(moves(1, x, augment(1, x)))) == 9


def test_one_key_and_path_give_one_augmentation():
    x = images(8, 4, 4, 1)
    np.testing.assert_array_equal(augment(1, x), augment(1, x))
    assert (augment(1, x) != augment(1, x, seed=1)).any()


def test_inference_leaves_no_trace():
    x = jnp.asarray(images(2, 4, 4, 1))
    assert RandomShift(2)({}, x) is x
    assert jax.make_jaxpr(lambda x: RandomShift(2)({}, x))(x).eqns == []


def test_a_reach_of_zero_is_the_identity_and_needs_no_key():
    x = jnp.asarray(images(2, 4, 4, 1))
    assert RandomShift(0).apply(Variables(), x, ctx=Context(train=True))[0] is x


@pytest.mark.parametrize("dtype", ["uint8", "bfloat16"])
def test_the_dtype_and_the_shape_stay(dtype):
    x = jnp.ones((2, 4, 5, 3), dtype)
    ctx = Context(jax.random.key(0), train=True)
    y, _ = RandomShift(1).apply(Variables(), x, ctx=ctx)
    assert (y.shape, y.dtype) == (x.shape, x.dtype)


def test_the_state_passes_through():
    ctx = Context(jax.random.key(0), train=True)
    given = Variables({}, {"kept": 1})
    assert RandomShift(1).apply(given, images(8, 4, 4, 1), ctx=ctx)[1] == {"kept": 1}


def test_compiled_equals_eager():
    x, ctx = images(8, 4, 4, 1), Context(jax.random.key(0), train=True)
    compiled, _ = jax.jit(RandomShift(1).apply)(Variables(), x, ctx=ctx)
    np.testing.assert_array_equal(compiled, augment(1, x))


def test_the_gradient_agrees_with_the_numerical_one():
    with jax.enable_x64(True):
        x, ctx = images(2, 3, 3, 1) / 20, Context(jax.random.key(0), train=True)

        def run(x):
            return RandomShift(1).apply(Variables(), x, ctx=ctx)[0]

        check_grads(run, (x.astype(np.float64),), order=1, rtol=1e-6, atol=1e-6)


def test_a_missing_key_in_training_is_named_by_path():
    net = Serial(prepare=Serial(shift=RandomShift(1)))
    with pytest.raises(MissingKeyError, match=r"^prepare/shift: needs a random key"):
        net.apply(Variables(), images(1, 2, 2, 1), ctx=Context(train=True))


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("shape", [(4, 4), (2, 4, 4), (1, 2, 4, 4, 1)], ids=str)
def test_what_is_no_batch_of_images_is_refused_by_path(shape, train):
    net = Serial(prepare=Serial(shift=RandomShift(1)))
    ctx = Context(jax.random.key(0), train=train)
    with pytest.raises(ShapeMismatchError) as caught:
        net.apply(Variables(), images(*shape), ctx=ctx)
    message = str(caught.value)
    assert message.startswith("prepare/shift (RandomShift): expects images (batch, h")
    assert f"got float32{list(shape)}. Reshape" in message


def test_a_negative_reach_is_refused():
    with pytest.raises(FieldError, match=r"^RandomShift\.reach: .* >= 0, got -1"):
        RandomShift(-1)


@pytest.mark.parametrize("reach", [1.5, float("nan"), "1"])
def test_a_reach_that_is_no_number_of_pixels_is_refused(reach):
    with pytest.raises(FieldError, match=r"^RandomShift\.reach: "):
        RandomShift(reach)
