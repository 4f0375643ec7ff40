"""The cases of `prune_rivals.py`: what goes in, and who judges."""

import numpy as np

IMAGE, TOKENS, WORDS = "image", "tokens", "words"
"""Images 8x8 of 3 channels, 6 rows of 16 features, 6 numbers of words; two of each."""

CASES = {
    "convolutions and batch norm": IMAGE,
    "residual connection": IMAGE,
    "concatenation of branches": IMAGE,
    "squeeze and excite": IMAGE,
    "SwiGLU of two projections": TOKENS,
    "depthwise convolution": IMAGE,
    "grouped convolution": IMAGE,
    "flattened image into a dense layer": IMAGE,
    "transposed convolution": IMAGE,
    "channels last through dense layers": IMAGE,
    "attention, heads by a view": TOKENS,
    "attention from one fused projection": TOKENS,
    "a layer used twice": TOKENS,
    "windows over rolled tokens": TOKENS,
    "group norm": IMAGE,
    "layer norm before a residual branch": TOKENS,
    "weight norm": TOKENS,
    "channel shuffle": IMAGE,
    "GLU by chunk of one projection": TOKENS,
    "pixel shuffle": IMAGE,
    "depthwise convolution with multiplier 2": IMAGE,
    "dense layer viewed as an image": TOKENS,
    "grouped-query attention by expand": TOKENS,
    "rotary positions, halves rotated": TOKENS,
    "einsum over weights": TOKENS,
    "one matrix used as it is and transposed": TOKENS,
    "embedding tied to the logits": WORDS,
    "slices of channels": IMAGE,
    "split at written sizes": IMAGE,
    "mean and maximum over channels": IMAGE,
    "product of features with features": TOKENS,
    "LSTM between dense layers": TOKENS,
    "patches merged by strided slices": IMAGE,
    "low rank as a product of two weights": TOKENS,
}

EASY = 16
"""So many of them, from the first, are of the usual kinds."""

NARROW = (
    "group norm",
    "layer norm before a residual branch",
    "mean and maximum over channels",
    "weight norm",
)
"""Where zeros are no removal: the norm or mean of fewer numbers is another."""

TOLERANCE = 1e-5
"""The largest error, relative to the largest number of the output."""


SEEDS = (0, 1, 2)
"""Of the weights, which decide what goes; what is told is the worst that happens."""


def batch(name):
    """The input of a case; images have their channels last."""
    random = np.random.default_rng(1)
    if CASES[name] == WORDS:
        return random.integers(0, 11, (2, 6))
    shape = (2, 8, 8, 3) if CASES[name] == IMAGE else (2, 6, 16)
    return random.normal(size=shape).astype(np.float32)


def filled(shape, name, random):
    """Weights of which no two are the same; variances are positive."""
    size = int(np.prod(shape))
    made = (random.permutation(size) + 0.5) / size - 0.5
    return (made + 1.5 if "var" in name else made).reshape(shape).astype(np.float32)


def verdict(got, want):
    """What is said of the pruned model's output next to the judge's."""
    got, want = np.asarray(got), np.asarray(want)
    if got.shape != want.shape:
        return f"WRONG: its shape is {got.shape}"
    error = float(np.abs(got - want).max() / np.abs(want).max())
    return "equal" if error <= TOLERANCE else f"WRONG by {error:.0%}"


def worst(outcomes):
    """Of (share of numbers left, verdict) for several weights, the worst."""
    order = ("equal", "not", "no end", "", "BROKEN", "WRONG")

    def badness(outcome):
        return max(i for i, word in enumerate(order) if outcome[1].startswith(word))

    return max(outcomes, key=badness)
