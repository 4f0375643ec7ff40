"""Recommending: pixels to half-drawn digits, by a model of two towers.

Each scan is a user, the pixels it lights are the items it chose. A third of them is
hidden; the model has to find them for scans it was never trained on. Ends with status
0 only if every figure it promises is reached.
"""

import sys

import jax
import numpy as np
import optax
from sklearn.datasets import load_digits

import mapping as mp
from mapping.models import MLP, InBatchSoftmax, Tower, TwoTower

COUNT = 5


def data():
    """What each scan lights, what of it is hidden, and which scans are new."""
    lit = load_digits().data >= 8
    order = np.where(lit, np.random.default_rng(0).random(lit.shape), 2)
    hidden = lit & (order.argsort(1).argsort(1) < lit.sum(1, keepdims=True) // 3)
    return lit, hidden, np.arange(len(lit)) % 4 == 0


def train(lit, known):
    """Users are known by their history, items by their number, row and column."""
    scans, pixels = lit.nonzero()
    often = np.bincount(pixels, minlength=64)
    net = TwoTower(MLP(16, (64,)), Tower(16, (64, 8, 8), 16, ()), count=COUNT)
    fitted = mp.train.fit(
        net, (known[scans], places()[pixels], often[pixels]), loss=InBatchSoftmax(0.2),
        optimizer=optax.adam(3e-3), epochs=20, batch_size=256,
    )  # fmt: skip
    return net, fitted.variables.params, often


def places():
    """The features of every pixel."""
    pixels = np.arange(64)
    return np.stack([pixels, pixels // 8, pixels % 8], axis=1)


def show(known, hidden, best):
    """A scan: what is known, what was found and what was recommended wrongly."""
    marks = np.where(known, "#", np.where(hidden, "o", "."))
    marks[best] = np.where(hidden[best], "@", "x")
    return ["".join(row) for row in marks.reshape(8, 8)]


def main():
    """Trains, recommends to new scans, and compares with simpler ways."""
    lit, hidden, new = data()
    known = (lit & ~hidden).astype(np.float32)
    net, params, often = train(lit[~new], known[~new])
    items = np.flatnonzero(often)  # of a pixel that nobody chose nothing is known
    users, asked = known[new], hidden[new]
    recommend = jax.jit(mp.Flow(net, "recommend").__call__)
    seen = users[:, items] > 0
    best = items[np.asarray(recommend(params, users, places()[items], seen)[1])]

    def recall(best):
        hits = np.take_along_axis(asked, best, axis=1).sum(1)
        return float(np.mean(hits / np.minimum(asked.sum(1), COUNT)))

    def top(scores):
        return np.where(users > 0, -1, scores).argsort(1)[:, ::-1][:, :COUNT]

    together = lit[~new].T.astype(float) @ lit[~new]
    cosine = together / np.sqrt(np.outer(often, often)).clip(1)
    popular, neighbours = recall(top(often)), recall(top(users @ cosine))
    found = recall(best)

    pictures = [show(*each) for each in zip(users[:6] > 0, asked, best, strict=False)]
    print("\n".join("   ".join(row) for row in zip(*pictures, strict=True)))
    print("# known  @ hidden and found  o hidden  x recommended in vain\n")
    promises = {
        f"two towers find more of what is hidden ({found:.1%}) "
        f"than what is popular ({popular:.1%})": found > popular + 0.15,
        f"and than what is chosen together ({neighbours:.1%})":
            found > neighbours + 0.08,
    }  # fmt: skip
    for promise, kept in promises.items():
        print(("kept    " if kept else "MISSED  ") + promise)
    return 0 if all(promises.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
