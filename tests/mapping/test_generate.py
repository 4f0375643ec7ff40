"""Generation: what a cache may not change, and what may be drawn."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

import mapping as mp
from mapping.errors import GenerationError, MissingKeyError
from mapping.layers import RMSNorm
from mapping.models import GPT, generate, sample_logits, truncate_logits

KEY = jax.random.key(0)
SMALL = {"features": 16, "heads": 4, "layers": 2, "hidden": 24}
GPT2 = GPT(11, 24, **SMALL)
LLAMA = GPT(
    11, 24, positions="rotary", norm=RMSNorm(), kv_heads=2, gated=True, tied=False,
    activation="silu", use_bias=False, scan=True, **SMALL,
)  # fmt: skip
PROMPTS, LENGTH = [[3, 1, 4, 1], [5, 9, 2, 6]], 16
MODELS = pytest.mark.parametrize("model", [GPT2, LLAMA], ids=["gpt2", "llama"])


@functools.cache
def trained(model):
    """Params of some size, so that texts depend on what they follow."""
    specs = mp.outline(model, jax.ShapeDtypeStruct((1, 2), "int32"))[0].params
    rng = np.random.default_rng(0)

    def made(path, spec):
        name = jax.tree_util.keystr(path)
        if "bias" in name:  # one would decide every token
            return jnp.zeros(spec.shape, spec.dtype)
        start, spread = (1.0, 0.1) if "scale" in name else (0.0, 1.0)
        return jnp.asarray(rng.normal(start, spread, spec.shape), spec.dtype)

    return jax.tree_util.tree_map_with_path(made, specs)


def recomputed(model, params, prompt, length):
    """Token by token, the whole text read anew each time; padded behind, one shape."""
    text = list(prompt)
    for _ in range(length):
        padded = np.zeros((1, model.max_length), np.int32)
        padded[0, : len(text)] = text
        logits = np.asarray(jax.jit(model)(params, padded))[0, len(text) - 1]
        text.append(int(logits.argmax()))
    return text[len(prompt) :]


# --- the cache ---------------------------------------------------------------------


@MODELS
def test_greedy_with_a_cache_is_greedy_without(model):
    params = trained(model)
    got = generate(model, params, PROMPTS, LENGTH)
    assert got.shape == (2, LENGTH)
    assert got.dtype == jnp.int32
    for row, prompt in zip(got, PROMPTS, strict=True):
        assert row.tolist() == recomputed(model, params, prompt, LENGTH)
    assert len(set(map(int, got.ravel()))) > 3  # no test of one token for ever


@MODELS
def test_prompts_of_many_lengths_are_what_each_is_alone(model):
    params, prompts = trained(model), [[3, 1, 4, 1, 5], [9], [2, 6]]
    together = generate(model, params, prompts, 8)
    for row, prompt in zip(together, prompts, strict=True):
        assert row.tolist() == recomputed(model, params, prompt, 8)


def test_one_prompt_is_a_batch_of_one():
    params = trained(GPT2)
    alone = generate(GPT2, params, [3, 1, 4], 8)
    assert alone.shape == (8,)
    for batch in ([[3, 1, 4]], np.array([[3, 1, 4]], np.uint8)):
        assert generate(GPT2, params, batch, 8).tolist() == [alone.tolist()]
    inside = jax.jit(lambda tokens: generate(GPT2, params, tokens, 8))
    assert inside(jnp.array([3, 1, 4])).tolist() == alone.tolist()


def test_a_stop_token_that_a_prompt_ends_with_stops_nothing():
    params = trained(GPT2)
    free = generate(GPT2, params, PROMPTS, LENGTH)
    for i, prompt in enumerate(PROMPTS):
        again = generate(GPT2, params, PROMPTS, LENGTH, stop=prompt[-1])
        assert again[i, 0] == free[i, 0]


def test_half_precision_writes_too():
    params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), trained(GPT2))
    text = generate(GPT2, params, PROMPTS, LENGTH)
    assert text.dtype == jnp.int32
    assert int(text.max()) < 11


def test_a_prompt_may_be_read_piece_by_piece():
    cached, params = dataclasses.replace(GPT2, cache_length=9), trained(GPT2)
    tokens = jnp.array([[1, 2, 3, 4, 5, 6]])

    @jax.jit
    def in_pieces(params):
        state, pieces = mp.layers.empty_cache(cached, tokens), []
        for start, end in [(0, 3), (3, 4), (4, 6)]:
            own = mp.Variables(params, state)
            y, state = cached.apply(own, tokens[:, start:end], ctx=mp.Context())
            pieces.append(y)
        return jnp.concatenate(pieces, 1), state["places"]["cache"]["index"]

    got, count = in_pieces(params)
    np.testing.assert_allclose(got, jax.jit(GPT2)(params, tokens), atol=2e-4)
    assert int(count) == 6


def test_padding_at_the_left_changes_nothing_behind_it():
    params, tokens = trained(GPT2), jnp.array([[3, 1, 4]])
    padded = jnp.array([[7, 7, 3, 1, 4]])
    got = jax.jit(GPT2)(params, padded, jnp.array([2]))[:, 2:]
    np.testing.assert_allclose(got, jax.jit(GPT2)(params, tokens), atol=2e-4)


def test_a_text_ends_at_the_stop_token():
    params = trained(GPT2)
    free = generate(GPT2, params, PROMPTS, LENGTH)
    stop = int(free[0, 5])
    ended = np.asarray(generate(GPT2, params, PROMPTS, LENGTH, stop=stop))
    for row, whole in zip(ended, np.asarray(free), strict=True):
        first = np.argmax(whole == stop) if stop in whole else len(whole)
        assert (row[: first + 1] == whole[: first + 1]).all()
        assert (row[first:] == stop).all()


def test_repeated_calls_compile_once():
    traces = []

    @dataclasses.dataclass(frozen=True)
    class Noted(GPT):
        def forward(self, run, tokens, *others):
            traces.append(tokens.shape)
            return super().forward(run, tokens, *others)

    def call(prompt, seed, **numbers):
        model = Noted(11, 24, features=8, heads=2, layers=1)
        return generate(model, params, prompt, 6, key=jax.random.key(seed), **numbers)

    params = trained(Noted(11, 24, features=8, heads=2, layers=1))
    call([1, 2, 3], 0, temperature=0.5, top_k=3, top_p=0.9)
    traces.clear()
    call([4, 5, 6], 1, temperature=1.5, top_k=7, top_p=0.2)
    call(np.array([7, 8, 9]), 2, temperature=0.0, top_k=1, top_p=1.0)
    assert traces == []
    call([7, 8], 2, temperature=1.0, top_k=1, top_p=1.0)
    assert traces  # another length is another program


# --- drawing -----------------------------------------------------------------------


def shaped_by_numpy(logits, temperature, top_k, top_p):
    """The distribution, one token after the other from the likeliest down."""
    logits = logits.astype(np.float64)
    order = sorted(range(len(logits)), key=lambda i: (-logits[i], i))
    order = order[: 1 if temperature == 0 else top_k or len(order)]
    best = logits.max()
    weights = {i: np.exp((logits[i] - best) / (temperature or 1)) for i in order}
    total, sum_, kept = sum(weights.values()), 0.0, {}
    for i in order:
        if top_p is not None and sum_ >= top_p * total and top_p < 1:
            break
        kept[i], sum_ = weights[i], sum_ + weights[i]
    return np.array([kept.get(i, 0.0) / sum_ for i in range(len(logits))])


# Halves make ties; probabilities off a grid make none of rounding at the edge of p.
LOGITS = npst.arrays(np.int32, (6,), elements=st.integers(-6, 6)).map(
    lambda x: (x / 2).astype(np.float32)
)


@settings(max_examples=60, deadline=None)
@given(
    LOGITS,
    st.sampled_from([0.0, 0.1, 0.7, 1.0, 3.0]),
    st.sampled_from([None, 1, 2, 4, 9]),
    st.sampled_from([None, 0.03, 0.4123, 0.8761, 1.0]),
)
def test_the_distribution_is_numpys(logits, temperature, top_k, top_p):
    shaped = truncate_logits(jnp.asarray(logits), temperature, top_k, top_p)
    wanted = shaped_by_numpy(logits, temperature, top_k, top_p)
    np.testing.assert_allclose(jax.nn.softmax(shaped), wanted, atol=2e-6)
    assert ((np.asarray(shaped) > -np.inf) == (wanted > 0)).all() or temperature == 0.1


def test_draws_are_of_that_distribution():
    logits = jnp.array([2.0, 1.0, 0.5, 0.0, -1.0])
    draws = sample_logits(jnp.tile(logits, (20_000, 1)), KEY, 0.8, 4, 0.9)
    wanted = shaped_by_numpy(np.asarray(logits), 0.8, 4, 0.9)
    assert (wanted > 0).sum() == 3  # both the four and the share leave something out
    counts = np.bincount(draws, minlength=5)
    assert counts[wanted == 0].sum() == 0
    errors = np.abs(counts / counts.sum() - wanted)
    assert (errors < 4.5 * np.sqrt(wanted / 20_000) + 1e-9).all()  # 4.5 sigma


def test_a_temperature_near_zero_is_greedy_and_zero_is():
    logits = jax.random.normal(KEY, (200, 11))
    greedy = logits.argmax(-1)
    for temperature in (0.0, 1e-30, 1e-4):
        drawn = sample_logits(logits, jax.random.key(1), temperature)
        assert (drawn == greedy).all()
    assert (sample_logits(logits) == greedy).all()
    assert (sample_logits(logits, jax.random.key(1), top_k=1) == greedy).all()
    assert (sample_logits(logits, jax.random.key(1), top_p=1e-6) == greedy).all()
    agreed = [
        float((sample_logits(logits, jax.random.key(1), t) == greedy).mean())
        for t in (10.0, 1.0, 0.3, 0.05)
    ]
    assert agreed == sorted(agreed)
    assert agreed[0] < 0.3


def test_infinite_logits_are_never_drawn_and_ties_go_to_the_first():
    logits = jnp.array([-jnp.inf, 1.0, 1.0, -jnp.inf])
    assert int(sample_logits(logits)) == 1
    drawn = sample_logits(jnp.tile(logits, (100, 1)), KEY, 5.0, 3, 0.99)
    assert set(drawn.tolist()) == {1, 2}
    assert truncate_logits(logits, 0.0).tolist() == [-jnp.inf, 0.0, -jnp.inf, -jnp.inf]


def test_texts_are_drawn_from_the_support_at_each_step():
    params = trained(GPT2)
    prompts = np.tile([[3, 1, 4]], (40, 1))
    texts = generate(GPT2, params, prompts, 6, key=KEY, temperature=4.0, top_k=3)
    read = jnp.concatenate([prompts.astype(np.int32), texts[:, :-1]], 1)
    logits = jax.jit(GPT2)(params, read)[:, 2:]
    ranks = (logits > jnp.take_along_axis(logits, texts[..., None], -1)).sum(-1)
    assert int(ranks.max()) == 2
    assert len({tuple(row) for row in texts.tolist()}) > 20


def test_one_key_gives_one_text():
    params = trained(GPT2)

    def text(seed, temperature):
        key = jax.random.key(seed)
        return generate(
            GPT2, params, PROMPTS, LENGTH, key=key, temperature=temperature
        ).tolist()

    assert text(0, 4.0) == text(0, 4.0)
    assert text(0, 4.0) != text(1, 4.0)
    assert text(0, 4.0)[0] != text(0, 4.0)[1]
    assert text(1, 0.0) == generate(GPT2, params, PROMPTS, LENGTH).tolist()


def test_it_writes_what_it_was_taught():
    """Counting on in steps: the step is seen from the prompt alone."""
    first, step = np.meshgrid(np.arange(16), np.arange(1, 8), indexing="ij")
    lines = (first[..., None] + step[..., None] * np.arange(9)) % 16
    lines = lines.reshape(-1, 9).astype(np.int32)
    model = GPT(16, 12, features=32, heads=4, layers=2, positions="rotary")
    fitted = mp.train.fit(
        model, (lines[:, :-1], lines[:, 1:]), loss=mp.losses.CrossEntropy(),
        optimizer=optax.adam(optax.cosine_decay_schedule(1e-2, 240)),
        epochs=120, batch_size=56,
    )  # fmt: skip
    written = generate(model, fitted.variables.params, lines[:, :2], 7)
    assert (np.asarray(written) == lines[:, 2:]).all(1).mean() > 0.97


# --- what is refused ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "length", "said"),
    [
        ([1] * 20, 6, r"GPT: expected at most 25 tokens.*prompt of 20 and a text of 6"),
        ([[1] * 26, [2]], 1, r"a prompt of 26"),
        ([], 3, r"prompt: expected whole numbers, at least one"),
        ([[1], []], 3, r"at least one in each prompt"),
        (np.ones((2, 0), np.int32), 3, r"at least one in each prompt"),
        ([0.5, 1.0], 3, r"got float64\[1, 2\]\. Encode the text"),
        (np.ones((1, 2, 3), np.int32), 3, r"got int32\[1, 2, 3\]"),
        ([1, 11], 3, r"tokens in \[0, 11\), got 1 to 11"),
        ([1, -1], 3, r"got -1 to 1"),
        ([1], 0, r"length: expected a whole number >= 1, got 0"),
        ([1], 2.0, r"length: expected a whole number >= 1, got 2\.0"),
    ],
)
def test_a_prompt_that_makes_no_text_is_refused(prompt, length, said):
    with pytest.raises(GenerationError, match=said):
        generate(GPT2, {}, prompt, length)


@pytest.mark.parametrize(
    ("numbers", "said"),
    [
        ({"temperature": -1.0}, r"temperature: expected a number >= 0, got -1\.0"),
        ({"temperature": float("nan")}, r"temperature: expected"),
        ({"top_k": 0}, r"top_k: expected a number that is whole and >= 1, got 0"),
        ({"top_k": 2.5}, r"top_k: expected"),
        ({"top_p": 0.0}, r"top_p: expected a number in \(0, 1\], got 0\.0"),
        ({"top_p": 1.5}, r"top_p: expected"),
    ],
)
def test_numbers_out_of_range_are_refused(numbers, said):
    with pytest.raises(GenerationError, match=said):
        sample_logits(jnp.zeros(3), KEY, **numbers)
    with pytest.raises(GenerationError, match=said):
        generate(GPT2, {}, [1], 2, key=KEY, **numbers)


@pytest.mark.parametrize("numbers", [{"temperature": 0.5}, {"top_k": 2}, {"top_p": 1}])
def test_drawing_needs_a_key(numbers):
    with pytest.raises(MissingKeyError, match=r"sampling: expected a random key"):
        generate(GPT2, {}, [1], 2, **numbers)


def test_other_models_are_told_what_they_lack():
    with pytest.raises(GenerationError, match=r"Dense: expected a model that has"):
        generate(mp.layers.Dense(3), {}, [1], 2)
    with pytest.raises(GenerationError, match=r"logits: expected float"):
        truncate_logits(jnp.zeros(()))


def test_the_longest_text_a_context_holds_is_written():
    params = trained(GPT2)
    text = generate(GPT2, params, [1, 2], 23)
    assert text.tolist()[:22] == recomputed(GPT2, params, [1, 2], 22)
