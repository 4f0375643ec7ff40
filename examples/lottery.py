"""Lottery tickets: a tenth of a network's weights that train as well as all of them.

Real scans (scikit-learn's 1,797 digits of 8x8 pixels), three seeds. The same number of
weights, picked at random in every layer, does worse. Ends with status 0 only if every
figure it promises is reached.
"""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import mapping as mp
from mapping import sparse

x, y = load_digits(return_X_y=True)
split = train_test_split(
    (x / 16).astype(np.float32), y.astype(np.int32), test_size=0.25, stratify=y,
    random_state=0,
)  # fmt: skip
training, held_out = (split[0], split[2]), (split[1], split[3])
STEPS, BATCH, DENSITY = 1200, 64, 0.1
net = mp.models.MLP(10, (64, 32))
optimizer = sparse.hold(optax.adam(3e-3)).transform()  # what is pruned stays at zero


def loss(params, x, y):
    """How far the predictions are from the classes."""
    return optax.softmax_cross_entropy_with_integer_labels(net(params, x), y).mean()


@jax.jit
def train(params, masks, key):
    """All steps of a run, compiled once for all rounds and seeds."""

    def step(carry, key):
        params, state = carry
        rows = jax.random.choice(key, len(training[0]), (BATCH,))
        slopes = jax.grad(loss)(params, *(jnp.asarray(part)[rows] for part in training))
        updates, state = optimizer.update(slopes, state, params)
        return (optax.apply_updates(params, updates), state), None

    start = (params, optimizer.init(params))
    return jax.lax.scan(step, start, jax.random.split(key, STEPS))[0][0]


@jax.jit
def accuracy(params):
    """The share of scans that it reads rightly, of those it has not seen."""
    return (net(params, held_out[0]).argmax(-1) == held_out[1]).mean()


dense, ticket, random = [], [], []
for seed in range(3):
    spec = jax.ShapeDtypeStruct((1, 64), "float32")
    params = net.init(jax.random.key(seed), spec).params
    found = sparse.lottery(
        train, params, evaluate=accuracy, density=DENSITY, rounds=6, seed=seed
    )
    print(f"seed {seed}\n{found}\n")
    dense.append(found.rounds[0].score)
    ticket.append(found.rounds[-1].score)
    random.append(found.rounds[-1].control)

kept = sparse.sparsity(found.ticket(params, 6))
print(f"the last ticket:\n{kept}\n")
dense, ticket, random = (float(np.mean(each)) for each in (dense, ticket, random))
promises = {
    f"a tenth of the weights ({ticket:.2%}) is within 1% of all ({dense:.2%})":
        ticket >= dense - 0.01,
    f"and better than random ones of the same number ({random:.2%})":
        ticket > random + 0.01,
}  # fmt: skip
for promise, reached in promises.items():
    print(("kept    " if reached else "MISSED  ") + promise)
sys.exit(0 if all(promises.values()) else 1)
