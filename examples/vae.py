"""Inventing digits: a variational autoencoder on real scans, drawn from and walked in.

Ends with status 0 only if every figure it promises is reached.
"""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split

import mapping as mp
from mapping.models import ELBO, VAE

OUT = Path("out")


def train(vae, x, epochs=150):
    """Adam on a cosine schedule; the target is the input."""
    steps = epochs * (len(x) // 64)
    return mp.train.fit(
        vae, (x, x), loss=ELBO(), epochs=epochs, batch_size=64,
        optimizer=optax.adam(optax.cosine_decay_schedule(3e-3, steps)),
    ).variables  # fmt: skip


def apart(images, real):
    """Mean distance of each image to the nearest real one."""
    squares = ((images[:, None] - real[None]) ** 2).sum(-1)
    return float(np.sqrt(squares.min(1)).mean())


def draw(images, path):
    """Saves fifty images, ten in a row."""
    path.parent.mkdir(exist_ok=True)
    page = images[:50].reshape(5, 10, 8, 8).transpose(0, 2, 1, 3).reshape(40, 80)
    figure = Figure(figsize=(10, 5))
    figure.add_axes((0, 0, 1, 1)).imshow(page, cmap="gray_r", vmin=0, vmax=1)
    figure.savefig(path)
    return path


def main():
    """Trains, draws from the prior, walks between digits, and checks each promise."""
    x, y = load_digits(return_X_y=True)
    x = (x / 16).astype(np.float32)
    x, test, y, _ = train_test_split(x, y, test_size=0.25, stratify=y, random_state=0)
    vae = VAE.dense((64,), latent=8, features=(256,))
    variables = train(vae, x)

    many = jnp.repeat(test, 16, axis=0)
    drawing = mp.Context(key=jax.random.key(1), train=True)
    bound = float(ELBO()({}, vae.apply(variables, many, ctx=drawing)[0], many))
    mean = x.mean(0).clip(1e-3, 1 - 1e-3)
    alone = -(test * np.log(mean) + (1 - test) * np.log(1 - mean)).sum(1).mean()

    invented = np.asarray(jax.nn.sigmoid(vae.sample(variables, jax.random.key(2), 500)))
    classes = LogisticRegression(max_iter=2000).fit(x, y).predict(invented)
    moments = np.random.default_rng(0).multivariate_normal(x.mean(0), np.cov(x.T), 500)

    ends = test[:200], test[200:400]
    codes = [mp.Flow(vae, "encode")(variables.params, end)[0] for end in ends]
    between = mp.Flow(vae, "decode")(variables.params, sum(codes) / 2)
    walked = apart(np.asarray(jax.nn.sigmoid(between)), test)
    mixed = apart(sum(ends) / 2, test)

    rare = np.bincount(classes, minlength=10).min() / len(invented)
    near, noise = apart(invented, test), apart(moments.clip(0, 1), test)
    promises = {
        f"codes are worth 2.5 nats ({bound:.2f}, {alone:.2f} without)":
            bound < alone - 2.5,
        f"samples are nearer to digits than noise like them ({near:.2f}, {noise:.2f})":
            near < 0.8 * noise,
        f"every class is invented (the rarest {rare:.1%})": rare > 0.02,
        f"between two codes lies a digit more than between two images "
        f"({walked:.2f}, {mixed:.2f})": walked < 0.9 * mixed,
    }  # fmt: skip
    print(f"samples: {draw(invented, OUT / 'vae.svg')}")
    for promise, kept in promises.items():
        print(("kept    " if kept else "MISSED  ") + promise)
    return 0 if all(promises.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
