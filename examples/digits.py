"""Handwritten digits: train a small CNN, fold it, store it in int8, ship it.

Real scans (scikit-learn's 1,797 digits of 8x8 pixels), a fixed split. Ends with
status 0 only if every figure it promises is reached.
"""

import dataclasses
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import compiler as mc
import mapping as mp

OUT = Path("out")

LOAD_AND_RUN = """
import sys, numpy as np, compiler as mc
program = mc.load(sys.argv[1])
np.save(sys.argv[3], program(np.load(sys.argv[2])))
foreign = {"flax.linen", "digits", "__mp_main__"} & set(sys.modules)
sys.exit(f"the model's code was imported: {foreign}" if foreign else 0)
"""


@dataclasses.dataclass(frozen=True)
class ChannelGate(mp.Mapping):
    """A custom layer: each channel is scaled by what all channels hold on average.

    y = x * sigmoid(mean(x) W + 1)
    """

    def init(self, key, x):
        """One square kernel, small, so that the gate starts near sigmoid(1)."""
        channels = x.shape[-1]
        kernel = 0.1 * jax.random.normal(key, (channels, channels))
        return mp.Variables({"kernel": kernel})

    def apply(self, variables, x, *, ctx):
        """Gates the channels of images (batch, height, width, channels)."""
        pooled = x.mean(axis=(1, 2)) @ variables.params["kernel"]
        return x * jax.nn.sigmoid(pooled + 1)[:, None, None, :], variables.state


def model():
    """The network: shifted images, three convolutions, a gate, dropout, a head."""
    layers = mp.layers
    return mp.Serial(
        shift=mp.augment.RandomShift(1),
        conv1=layers.Conv(24, (3, 3)), norm1=layers.BatchNorm(), act1=jax.nn.relu,
        conv2=layers.Conv(48, (3, 3)), norm2=layers.BatchNorm(), act2=jax.nn.relu,
        pool=layers.MaxPool((2, 2)), gate=ChannelGate(),
        conv3=layers.Conv(64, (3, 3)), norm3=layers.BatchNorm(), act3=jax.nn.relu,
        flatten=layers.Flatten(), drop=layers.Dropout(0.4), head=layers.Dense(10),
    )  # fmt: skip


def data():
    """Train, validation and test parts: 60, 20 and 20 per cent of every class."""
    x, y = load_digits(return_X_y=True)
    x = (x / 16.0).astype(np.float32).reshape(-1, 8, 8, 1)
    x, x_test, y, y_test = train_test_split(
        x, y, test_size=0.2, stratify=y, random_state=0
    )
    x, x_val, y, y_val = train_test_split(
        x, y, test_size=0.25, stratify=y, random_state=0
    )
    return (x, y), (x_val, y_val), (x_test, y_test)


def train(net, training, validation):
    """Seventy epochs of Adam on a cosine schedule."""
    batch, epochs = 64, 70
    steps = epochs * (len(training[0]) // batch)
    return mp.train.fit(
        net, training,
        loss=mp.losses.CrossEntropy(label_smoothing=0.05),
        optimizer=optax.adamw(optax.cosine_decay_schedule(3e-3, steps)),
        epochs=epochs, batch_size=batch, validation=validation,
        metrics={"accuracy": mp.metrics.Accuracy()},
        log=lambda row: print(
            f"epoch {row['epoch']:2}  loss {row['loss']:.4f}  "
            f"validation accuracy {row['accuracy']:.4f}"
        ),
    )  # fmt: skip


def in_fresh_process(path, x):
    """Loads the saved program in a new process and returns what it computes there."""
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "x.npy"), Path(folder, "y.npy")
        np.save(source, x)
        command = [sys.executable, "-c", LOAD_AND_RUN, path, source, target]
        subprocess.run(list(map(str, command)), check=True)  # noqa: S603
        return np.load(target)


def main():
    """Runs the whole path and checks each promise."""
    training, validation, (x, y) = data()
    net = model()
    began = time.perf_counter()
    fitted = train(net, training, validation)
    seconds = time.perf_counter() - began

    before = mc.trace(net, fitted.variables, jax.ShapeDtypeStruct((1, 8, 8, 1), "f4"))
    folded = mc.fold()(before)
    after = mc.quantize.weights("int8")(folded)

    def accuracy(logits):
        return float(np.mean(np.argmax(logits, -1) == y))

    report = mc.report(before, after, x, metrics={"test accuracy": accuracy})
    saved = after.save(OUT / "digits.mapping")
    here, there = np.asarray(after(x)), in_fresh_process(saved, x)
    curve = fitted.history.plot(OUT / "training.svg")
    graph = mc.show(before, after, path=OUT / "graph.html")

    exact, folded_out = before(jnp.asarray(x)), folded(jnp.asarray(x))
    kinds = {e.primitive.name for e in folded.graph.jaxpr.eqns}
    test = report["test accuracy"]
    promises = {
        f"trained in under a minute ({seconds:.1f} s)": seconds < 60,
        f"at least 98% test accuracy ({test.before:.2%})": test.before >= 0.98,
        "batch norm is gone from the folded graph": not kinds & {"rsqrt", "sub"},
        "folding changes no output by 1e-4": np.allclose(exact, folded_out, atol=1e-4),
        f"int8 loses at most half a per cent ({test.after:.2%})":
            test.after >= test.before - 0.005,
        "int8 shrinks the weights by more than 3.5":
            report["bytes in memory"].after * 3.5 < report["bytes in memory"].before,
        "a fresh process predicts the same": np.array_equal(
            here.argmax(-1), there.argmax(-1)) and np.allclose(here, there, atol=1e-5),
    }  # fmt: skip
    print(f"\n{report}\n")
    print(f"training curve:  {curve}\nbefore and after: {graph}\nprogram: {saved}\n")
    for promise, kept in promises.items():
        print(("kept    " if kept else "MISSED  ") + promise)
    return 0 if all(promises.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
