"""Handwritten digits at a quarter of the FLOPs: prune a flax CNN and train on.

Channels disappear from the network, its batch statistics and the optimizer's moments by
one plan, so that training goes on where it was. Ends with status 0 only if every figure
it promises is reached.
"""

import functools
import sys

import flax.linen as nn
import jax
import numpy as np
import optax
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import compiler as mc

BATCH, EPOCHS, AGAIN = 64, 30, 15
prune, seed = mc.prune, int(sys.argv[1]) if len(sys.argv) > 1 else 0


class CNN(nn.Module):
    """Three convolutions with batch norm, dropout, a dense layer."""

    @nn.compact
    def __call__(self, x, train=False):
        """Logits of images (batch, 8, 8, 1)."""
        for features in (32, 64, 64):
            x = nn.Conv(features, (3, 3), use_bias=False)(x)
            x = nn.relu(nn.BatchNorm(not train, momentum=0.9)(x))
            x = nn.max_pool(x, (2, 2), (2, 2)) if features == 32 else x
        x = nn.Dropout(0.4, deterministic=not train)(x.reshape(x.shape[0], -1))
        return nn.Dense(10)(x)


x, y = load_digits(return_X_y=True)
x = (x / 16).astype(np.float32).reshape(-1, 8, 8, 1)
x, x_test, y, y_test = train_test_split(x, y, stratify=y, random_state=0)
net, steps = CNN(), len(x) // BATCH
cosine = [optax.cosine_decay_schedule(3e-3, n * steps) for n in (EPOCHS, AGAIN)]
optimizer = optax.adamw(optax.join_schedules(cosine, [EPOCHS * steps]))


def loss_of(logits, labels):
    """The cross-entropy."""
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def training(variables, x, key):
    """The network as it is trained: with dropout, and new batch statistics."""
    rngs = {"dropout": key}
    return net.apply(variables, x, train=True, rngs=rngs, mutable=["batch_stats"])


def fit(program, variables, moments, epochs):
    """Trains the whole network, or what is left of it: only the program differs."""

    @jax.jit
    def step(variables, moments, x, y, key):
        def loss(params):
            logits, state = program.function(variables | {"params": params}, x, key)
            return loss_of(logits, y), state

        slopes, state = jax.grad(loss, has_aux=True)(variables["params"])
        updates, moments = optimizer.update(slopes, moments, variables["params"])
        params = optax.apply_updates(variables["params"], updates)
        return {"params": params, **state}, moments

    random, keys = np.random.default_rng(seed), jax.random.key(seed)
    for _ in range(epochs):
        order = random.permutation(len(x))[: steps * BATCH]
        for rows in np.split(order, steps):
            keys, key = jax.random.split(keys)
            variables, moments = step(variables, moments, x[rows], y[rows], key)
    return variables, moments


def accuracy(program):
    """The share of the test images that is recognised."""
    return float(np.mean(np.argmax(program(x_test), -1) == y_test))


variables = net.init(jax.random.key(seed), x[:1])
trained_as = mc.trace(training, variables, x[:BATCH], jax.random.key(0))
variables, moments = fit(
    trained_as, variables, optimizer.init(variables["params"]), EPOCHS
)
whole = mc.trace(net.apply, variables, x[:1])

parts = [slice(i, i + BATCH) for i in range(0, 512, BATCH)]
quarter = prune.structured(
    importance=prune.taylor(loss_of, [(x[part], y[part]) for part in parts]),
    budget=prune.budget(flops=0.25),
    round_to=8,
)
plan = quarter.decide(whole).plan
cut = whole >> prune.apply(plan)
state = prune.cut((variables, moments), plan)  # the optimizer's moments as well
tuned = cut.with_variables(fit(trained_as >> prune.apply(plan), *state, AGAIN)[0])

print(plan)
before, at_once, after = map(accuracy, (whole, cut, tuned))
share = mc.cost(tuned).flops / mc.cost(whole).flops
saved = [p.save(f"out/digits-{p.size}.mapping") for p in (whole, tuned)]
sizes = [sum(f.stat().st_size for f in s.rglob("*") if f.is_file()) for s in saved]
runs = [functools.partial(jax.jit(p.function), p.variables) for p in (whole, tuned)]
times = mc.latency({"whole": lambda: runs[0](x_test), "tuned": lambda: runs[1](x_test)})
faster = times["whole"] / times["tuned"]
promises = {
    f"trained: at least 98% of the test images ({before:.2%})": before >= 0.98,
    f"at most a quarter of the FLOPs ({share:.1%})": share <= 0.25,
    f"tuned: within 1% of that ({at_once:.2%} at once, then {after:.2%})":
        after >= before - 0.01,
    f"saved in a third of the bytes ({sizes[1]:,} of {sizes[0]:,})":
        3 * sizes[1] < sizes[0],
    f"at least 1.2 times as fast, small as it is ({faster:.1f}x)": faster >= 1.2,
}  # fmt: skip
for promise, kept in promises.items():
    print(("kept    " if kept else "MISSED  ") + promise)
sys.exit(0 if all(promises.values()) else 1)
