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
texts = [inspect.getsource(module) for module in MODULES]
alphabet = sorted(set("".join(texts)))


def encode(text):
    """Characters as numbers."""
    return np.array([alphabet.index(c) for c in text], np.int32)


def windows(codes):
    """Inputs and the characters that follow, (count, CONTEXT) each."""
    starts = np.arange(0, len(codes) - CONTEXT - 1, CONTEXT)
    cut = codes[starts[:, None] + np.arange(CONTEXT + 1)]
    return cut[:, :-1], cut[:, 1:]


def bits_by_counting(training, held_out):
    """Bits per character by how often single ones came, and pairs; smoothed."""
    single, pairs = np.full(len(alphabet), 0.1), np.full((len(alphabet),) * 2, 0.1)
    np.add.at(single, training, 1)
    np.add.at(pairs, (training[:-1], training[1:]), 1)
    likely = (pairs / pairs.sum(1, keepdims=True))[held_out[:-1], held_out[1:]]
    by_one = (single / single.sum())[held_out[1:]]
    return -np.log2(by_one).mean(), -np.log2(likely).mean()


began, cuts = time.perf_counter(), [len(text) * 9 // 10 for text in texts]
training = encode("".join(text[:cut] for text, cut in zip(texts, cuts, strict=True)))
held_out = encode("".join(text[cut:] for text, cut in zip(texts, cuts, strict=True)))
by_one, by_pairs = bits_by_counting(training, held_out)

model = GPT(len(alphabet), CONTEXT, features=96, heads=4, layers=2, positions="rotary",
            norm=mp.layers.RMSNorm())  # fmt: skip
data, loss = windows(training), mp.losses.CrossEntropy()
rate = optax.warmup_cosine_decay_schedule(0, 4e-3, 50, EPOCHS * len(data[0]) // BATCH)
fitted = mp.train.fit(
    model, data, loss=loss, epochs=EPOCHS, batch_size=BATCH,
    optimizer=optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(rate)),
    log=lambda row: print(f"epoch {row['epoch']}  loss {row['loss']:.3f} nats"),
)  # fmt: skip
nats = mp.train.evaluate(model, fitted.variables, windows(held_out), {"loss": loss})
bits, params = nats["loss"] / np.log(2), fitted.variables.params

prompt = "    def __init__(self"
start, key = encode(prompt), jax.random.key(0)
text = generate(model, params, start, 75, key=key, temperature=0.7, top_p=0.95)
print("\n" + prompt + "".join(alphabet[i] for i in text))
greedy = generate(model, params, start, 40)
again = model(params, jnp.concatenate([start, greedy])[None])[0, len(start) - 1 : -1]
print(f"\nbits per character: {by_one:.2f} by counting, {by_pairs:.2f} by counting")
print(f"pairs, {bits:.2f} by this GPT; {time.perf_counter() - began:.0f} s")
sys.exit(0 if bits < by_pairs - 1 and (again.argmax(-1) == greedy).all() else 1)
