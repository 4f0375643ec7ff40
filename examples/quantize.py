"""A character GPT in fewer bits: what each way of quantizing it costs, and saves.

Trained on the standard library's own source; perplexity on held-out text. Ends with
status 0 only if every figure it promises is reached.
"""

import argparse
import ast
import inspect
import sys
import tarfile

import jax
import jax.numpy as jnp
import numpy as np
import optax

import compiler as mc
import mapping as mp
from mapping.models import GPT

CONTEXT, BATCH, EPOCHS = 64, 16, 4
texts = [inspect.getsource(module) for module in (tarfile, ast, argparse)]
alphabet = sorted(set("".join(texts)))


def windows(parts):
    """Inputs and the characters that follow, (count, CONTEXT) each."""
    codes = np.array([alphabet.index(c) for c in "".join(parts)], np.int32)
    starts = np.arange(0, len(codes) - CONTEXT - 1, CONTEXT)
    cut = codes[starts[:, None] + np.arange(CONTEXT + 1)]
    return cut[:, :-1], cut[:, 1:]


training = windows(text[: len(text) * 9 // 10] for text in texts)
tokens, following = windows(text[len(text) * 9 // 10 :] for text in texts)
model = GPT(len(alphabet), CONTEXT, features=64, heads=4, layers=2)
steps = EPOCHS * (len(training[0]) // BATCH)
rate = optax.warmup_cosine_decay_schedule(0, 5e-3, 40, steps)
fitted = mp.train.fit(
    model, training, loss=mp.losses.CrossEntropy(), optimizer=optax.adamw(rate),
    epochs=EPOCHS, batch_size=BATCH,
)  # fmt: skip
program = mc.trace(model, fitted.variables, tokens[:2]) >> mc.fold()


def perplexity(small):
    """How many characters it hesitates between, on average."""
    logits = jax.nn.log_softmax(small(tokens))
    picked = jnp.take_along_axis(logits, jnp.asarray(following)[..., None], -1)
    return float(jnp.exp(-picked.mean()))


batches = [training[0][i : i + 32] for i in range(0, 256, 32)]
quantize, four = mc.quantize, mc.quantize.Scheme("int4", group=32)
recipes = {
    "int8 weights": (quantize.weights("int8"), 1.005),
    "int8 products, scales measured at each call": (quantize.dynamic("int8"), 1.01),
    "int8 products, calibrated": (quantize.static("int8", batches=batches), 1.05),
    "int4 weights, groups of 32, largest weight": (quantize.weights(four), None),
    "int4 weights, groups of 32, least error": (quantize.weights("int4"), 1.05),
    "int4 weights, groups of 32, GPTQ": (quantize.gptq(batches, "int4"), 1.05),
    "nf4 weights, groups of 32": (quantize.weights("nf4"), 1.06),
}
float_perplexity, kept = perplexity(program), []
print(f"{'float32':45}{program.bytes:>9,} bytes  perplexity {float_perplexity:.3f}")
ratios = {}
for name, (recipe, promised) in recipes.items():
    small = program >> recipe
    ratios[name] = ratio = perplexity(small) / float_perplexity
    kept.append(promised is None or ratio <= promised)
    mark = "" if kept[-1] else f"  (promised {promised})"
    print(f"{name:45}{small.bytes:>9,} bytes  perplexity x {ratio:.4f}{mark}")
nearest, gptq = (
    next(v for k, v in ratios.items() if w in k) for w in ("least", "GPTQ")
)
print(quantize.coverage(program >> quantize.weights("int8", min_coverage=0.95)))
sys.exit(0 if all(kept) and gptq < nearest else 1)
