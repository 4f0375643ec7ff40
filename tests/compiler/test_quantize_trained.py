"""What quantization costs models that were trained on real data.

A convolution net on scikit-learn's digits, and a character GPT on the standard
library's own source; both small enough to be trained here.
"""

import argparse
import inspect
import tarfile

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import compiler as mc
import mapping as mp
from mapping.models import GPT

CONTEXT = 64


@pytest.fixture(scope="module")
def digits():
    """A folded CNN, what it was trained on, and a test set of 540 images."""
    x, y = load_digits(return_X_y=True)
    x = (x / 16.0).astype(np.float32).reshape(-1, 8, 8, 1)
    x, x_test, y, y_test = train_test_split(
        x, y, test_size=0.3, stratify=y, random_state=0
    )
    net = mp.Serial(
        conv1=mp.layers.Conv(16, (3, 3)), norm1=mp.layers.BatchNorm(), act1=jax.nn.relu,
        conv2=mp.layers.Conv(32, (3, 3)), norm2=mp.layers.BatchNorm(), act2=jax.nn.relu,
        pool=mp.layers.MaxPool((2, 2)), flatten=mp.layers.Flatten(),
        hidden=mp.layers.Dense(64), act3=jax.nn.relu, head=mp.layers.Dense(10),
    )  # fmt: skip
    fitted = mp.train.fit(
        net, (x, y), loss=mp.losses.CrossEntropy(),
        optimizer=optax.adamw(optax.cosine_decay_schedule(4e-3, 12 * (len(x) // 64))),
        epochs=12, batch_size=64,
    )  # fmt: skip
    program = mc.trace(net, fitted.variables, x_test[:1]) >> mc.fold()
    return program, (x, y), (x_test, y_test)


@pytest.fixture(scope="module")
def gpt():
    """A character GPT, windows it was trained on, and windows held out."""
    texts = [inspect.getsource(module) for module in (tarfile, argparse)]
    alphabet = sorted(set("".join(texts)))
    codes = {c: i for i, c in enumerate(alphabet)}

    def windows(parts):
        text = np.array([codes[c] for c in "".join(parts)], np.int32)
        starts = np.arange(0, len(text) - CONTEXT - 1, CONTEXT)
        cut = text[starts[:, None] + np.arange(CONTEXT + 1)]
        return cut[:, :-1], cut[:, 1:]

    training = windows(text[: len(text) * 9 // 10] for text in texts)
    held_out = windows(text[len(text) * 9 // 10 :] for text in texts)
    net = GPT(len(alphabet), CONTEXT, features=64, heads=4, layers=1)
    steps = 4 * (len(training[0]) // 16)
    fitted = mp.train.fit(
        net, training, loss=mp.losses.CrossEntropy(), epochs=4, batch_size=16,
        optimizer=optax.adamw(optax.warmup_cosine_decay_schedule(0, 5e-3, 40, steps)),
    )  # fmt: skip
    program = mc.trace(net, fitted.variables, held_out[0][:2]) >> mc.fold()
    return program, training[0], held_out


def accuracy(program, held_out):
    x, y = held_out
    return float(np.mean(np.argmax(program(x), -1) == y))


def perplexity(program, held_out):
    tokens, following = held_out
    logits = jax.nn.log_softmax(program(tokens))
    picked = jnp.take_along_axis(logits, jnp.asarray(following)[..., None], -1)
    return float(jnp.exp(-picked.mean()))


def test_the_digits_net_was_trained(digits):
    program, _, held_out = digits
    assert accuracy(program, held_out) > 0.97


def test_integers_with_measured_ranges_lose_half_a_per_cent_at_most(digits):
    program, _, held_out = digits
    small = program >> mc.quantize.dynamic("int8")
    assert mc.quantize.coverage(small).integer_flops == 1.0
    assert accuracy(small, held_out) >= accuracy(program, held_out) - 0.005


@pytest.mark.parametrize("observer", ["minmax", "moving_average", "percentile", "mse"])
def test_integers_with_calibrated_ranges_lose_half_a_per_cent_at_most(digits, observer):
    program, (x, _), held_out = digits
    batches = [x[i : i + 64] for i in range(0, 256, 64)]
    small = program >> mc.quantize.static("int8", batches=batches, observer=observer)
    assert mc.quantize.coverage(small).integer_flops == 1.0
    assert accuracy(small, held_out) >= accuracy(program, held_out) - 0.005


def test_four_bits_by_groups_lose_a_per_cent_at_most(digits):
    program, _, held_out = digits
    small = program >> mc.quantize.weights("int4", group=32)
    assert accuracy(small, held_out) >= accuracy(program, held_out) - 0.01
    assert small.bytes < 0.2 * program.bytes


def test_four_bits_trained_through_are_at_least_as_good_as_rounded(digits):
    program, training, held_out = digits
    rounded = program >> mc.quantize.weights("int4", group=32)
    through = program >> mc.quantize.train("int4", group=32)
    fitted = mp.train.fit(
        through, training, loss=mp.losses.CrossEntropy(),
        optimizer=optax.adam(5e-4), epochs=3, batch_size=64,
    )  # fmt: skip
    simulated = through.with_variables(fitted.variables)
    small = simulated >> mc.quantize.convert()
    assert small.bytes == rounded.bytes
    assert np.array_equal(small(held_out[0]), simulated(held_out[0]))
    assert accuracy(small, held_out) >= accuracy(rounded, held_out)


def test_the_gpt_was_trained(gpt):
    program, _, held_out = gpt
    assert perplexity(program, held_out) < 8


def test_eight_bits_keep_perplexity_within_half_a_per_cent(gpt):
    program, _, held_out = gpt
    small = program >> mc.quantize.weights("int8", min_coverage=0.9)
    assert perplexity(small, held_out) <= 1.005 * perplexity(program, held_out)


def test_four_bits_by_groups_keep_perplexity_within_five_per_cent(gpt):
    program, _, held_out = gpt
    small = program >> mc.quantize.weights("int4", group=32, min_coverage=0.9)
    assert perplexity(small, held_out) <= 1.05 * perplexity(program, held_out)
    assert small.bytes < 0.25 * program.bytes


def test_rounding_by_what_comes_is_better_than_rounding_to_nearest(gpt):
    program, x, held_out = gpt
    batches = [x[i : i + 32] for i in range(0, 256, 32)]
    nearest = program >> mc.quantize.weights("int4", group=32)
    better = program >> mc.quantize.gptq(batches, "int4", group=32)
    assert better.bytes == nearest.bytes
    assert perplexity(better, held_out) < perplexity(nearest, held_out)
