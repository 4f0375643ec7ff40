"""A small GPT that learns to write Python from the standard library's own source.

Ends with status 0 only if it predicts held-out characters well below what counts of
single characters and of pairs can, and writes with a cache what it would without.
"""

import argparse
import ast
import inspect
import subprocess
import sys
import tarfile
import time
import typing

import jax
import jax.numpy as jnp
import numpy as np
import optax

import mapping as mp
from mapping.models import GPT, generate

MODULES = (tarfile, typing, ast, argparse, inspect, subprocess)
CONTEXT, BATCH, EPOCHS = 96, 24, 3


def corpus():
    """The text as numbers, its alphabet; the last tenth of each module is held out."""
    texts = [inspect.getsource(module) for module in MODULES]
    alphabet = sorted(set("".join(texts)))
    codes = [np.array([alphabet.index(c) for c in t], np.int32) for t in texts]
    training = np.concatenate([code[: len(code) * 9 // 10] for code in codes])
    held_out = np.concatenate([code[len(code) * 9 // 10 :] for code in codes])
    return training, held_out, alphabet


def windows(codes, stride):
    """Inputs and the characters that follow, (count, CONTEXT) each."""
    starts = np.arange(0, len(codes) - CONTEXT - 1, stride)
    cut = codes[starts[:, None] + np.arange(CONTEXT + 1)]
    return cut[:, :-1], cut[:, 1:]


def bits_by_counting(training, held_out, size):
    """Bits per character of counted characters, and of counted pairs, smoothed."""
    single = np.bincount(training, minlength=size) + 0.1
    pairs = np.full((size, size), 0.1)
    np.add.at(pairs, (training[:-1], training[1:]), 1)
    pairs = pairs / pairs.sum(1, keepdims=True)
    by_one = -np.log2(single / single.sum())[held_out[1:]].mean()
    return by_one, -np.log2(pairs[held_out[:-1], held_out[1:]]).mean()


def main():
    """Trains, measures, writes."""
    began = time.perf_counter()
    training, held_out, alphabet = corpus()
    by_one, by_pairs = bits_by_counting(training, held_out, len(alphabet))
    model = GPT(len(alphabet), CONTEXT, features=96, heads=4, layers=2,
                          positions="rotary", norm=mp.layers.RMSNorm())  # fmt: skip
    data = windows(training, CONTEXT)
    steps = EPOCHS * (len(data[0]) // BATCH)
    schedule = optax.warmup_cosine_decay_schedule(0, 4e-3, 50, steps)
    loss = mp.losses.CrossEntropy()
    fitted = mp.train.fit(
        model, data, loss=loss, epochs=EPOCHS, batch_size=BATCH,
        optimizer=optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule)),
        log=lambda row: print(f"epoch {row['epoch']}  loss {row['loss']:.3f} nats"),
    )  # fmt: skip
    measured = mp.train.evaluate(
        model, fitted.variables, windows(held_out, CONTEXT), {"nats": loss}
    )
    bits = measured["nats"] / np.log(2)

    params, prompt = fitted.variables.params, "    def __init__(self"
    start = [alphabet.index(c) for c in prompt]
    text = generate(model, params, start, CONTEXT - len(start),
                    key=jax.random.key(0), temperature=0.7, top_p=0.95)  # fmt: skip
    print("\n" + prompt + "".join(alphabet[i] for i in text))
    greedy = generate(model, params, start, 40)
    again = jnp.asarray([*start, *greedy])[None]
    best = model(params, again)[0, len(start) - 1 : -1].argmax(-1)
    seconds = time.perf_counter() - began
    print(f"\nbits per character: {by_one:.2f} by counting, {by_pairs:.2f} by counting "
          f"pairs, {bits:.2f} by this GPT; {seconds:.0f} s")  # fmt: skip
    return 0 if bits < by_pairs - 1 and (best == greedy).all() else 1


if __name__ == "__main__":
    sys.exit(main())
