"""Models of sequences: equal to torch's, trained on real data, and their errors."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn.datasets import load_digits

import mapping as mp
from mapping.core import Context, Variables, leaf_paths
from mapping.errors import (
    FieldError,
    GenerationError,
    OutOfRangeError,
    ShapeMismatchError,
)
from mapping.layers import Attention, Dense, GRUCell, RMSNorm
from mapping.models import (
    GPT,
    FeedForward,
    Places,
    RecurrentClassifier,
    Seq2Seq,
    Stack,
    TransformerBlock,
    TransformerEncoder,
    ViT,
    translate,
)

KEY = jax.random.key(0)
BOTH = pytest.mark.parametrize("pre_norm", [True, False], ids=["pre", "post"])
TOKENS = jnp.array([[1, 4, 2, 8, 5], [7, 1, 4, 2, 8]])
REAL = jnp.array([[True, True, True, False, False], [True] * 5])


def generic(model, *inputs):
    """Params of no special values, in which mistakes would show; none is compiled."""
    rng = np.random.default_rng(0)

    def made(path, spec):
        start = 1.0 if "scale" in jax.tree_util.keystr(path) else 0.0
        return jnp.asarray(rng.normal(start, 0.4, spec.shape), spec.dtype)

    return jax.tree_util.tree_map_with_path(made, mp.outline(model, *inputs)[0].params)


def run(model, params, *inputs):
    """Compiled: a compilation of each operation on its own takes longer."""
    return jax.jit(model)(params, *inputs)


def close(got, wanted, tolerance=2e-5):
    wanted = getattr(wanted, "detach", lambda: wanted)()
    np.testing.assert_allclose(got, np.asarray(wanted), rtol=0, atol=tolerance)


def count(model, *specs):
    params = mp.outline(model, *specs)[0].params
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


# --- torch -------------------------------------------------------------------------


def put(linear, *ours):
    """Gives a torch layer the kernels of ours, transposed, one below the other."""
    torch = pytest.importorskip("torch")
    weights = [np.asarray(each["kernel"]).T for each in ours]
    with torch.no_grad():
        linear[0].copy_(torch.tensor(np.concatenate(weights)))
        linear[1].copy_(torch.tensor(np.concatenate([e["bias"] for e in ours])))


def put_norm(norm, ours):
    torch = pytest.importorskip("torch")
    with torch.no_grad():
        norm.weight.copy_(torch.tensor(np.asarray(ours["scale"])))
        norm.bias.copy_(torch.tensor(np.asarray(ours["bias"])))


def put_attention(attention, ours):
    joined = (attention.in_proj_weight, attention.in_proj_bias)
    put(joined, ours["query"], ours["key"], ours["value"])
    put((attention.out_proj.weight, attention.out_proj.bias), ours["out"])


def put_block(layer, ours):
    """A TransformerEncoderLayer's, or a TransformerDecoderLayer's."""
    put_attention(layer.self_attn, ours["attention"])
    norms = ["attention_norm", "mlp_norm"]
    if "cross" in ours:
        put_attention(layer.multihead_attn, ours["cross"])
        norms.insert(1, "cross_norm")
    put((layer.linear1.weight, layer.linear1.bias), ours["mlp"]["up"])
    put((layer.linear2.weight, layer.linear2.bias), ours["mlp"]["down"])
    for i, name in enumerate(norms, 1):
        put_norm(getattr(layer, f"norm{i}"), ours[name])
    return layer.eval()


def tensor(x):
    return pytest.importorskip("torch").tensor(np.asarray(x))


def hidden(real, heads, queries):
    """torch's mask: True where a key is hidden, (batch heads, queries, keys)."""
    return tensor(~real)[:, None].repeat_interleave(heads, 0).expand(-1, queries, -1)


@pytest.mark.torch
@BOTH
@pytest.mark.parametrize("activation", ["gelu", "relu"])
def test_a_block_is_torchs_encoder_layer(pre_norm, activation):
    nn = pytest.importorskip("torch").nn
    ours = {"gelu": "gelu_exact"}.get(activation, activation)
    block = TransformerBlock(Attention(2), FeedForward(8, 12, ours), pre_norm=pre_norm)
    x = jax.random.normal(KEY, (2, 5, 8))
    params = generic(block, x)
    layer = nn.TransformerEncoderLayer(
        8, 2, 12, 0.0, activation, batch_first=True, norm_first=pre_norm
    )
    put_block(layer, params)
    close(run(block, params, x), layer(tensor(x)))
    masked = layer(tensor(x), src_mask=hidden(REAL, heads=2, queries=5))
    got = run(block, params, x, REAL[:, None, None, :])
    real = np.asarray(REAL)
    close(got[real], masked.detach().numpy()[real])


@pytest.mark.torch
@BOTH
def test_a_block_with_a_context_is_torchs_decoder_layer(pre_norm):
    nn = pytest.importorskip("torch").nn
    block = TransformerBlock(
        Attention(2, causal=True), FeedForward(8, 12, "relu"), cross=Attention(2),
        pre_norm=pre_norm,
    )  # fmt: skip
    x, memory = jax.random.normal(KEY, (2, 4, 8)), jax.random.normal(KEY, (2, 5, 8))
    params = generic(block, x, None, memory)
    layer = nn.TransformerDecoderLayer(
        8, 2, 12, 0.0, batch_first=True, norm_first=pre_norm
    )
    put_block(layer, params)
    wanted = layer(
        tensor(x), tensor(memory),
        tgt_mask=nn.Transformer.generate_square_subsequent_mask(4), tgt_is_causal=True,
        memory_mask=hidden(REAL, heads=2, queries=4),
    )  # fmt: skip
    close(run(block, params, x, None, memory, REAL[:, None, None, :]), wanted)


@pytest.mark.torch
def test_a_vit_is_what_torch_makes_of_its_parts():
    torch = pytest.importorskip("torch")
    nn = torch.nn
    model = ViT(3, (6, 4), 2, features=8, heads=2, layers=2, activation="gelu_exact")
    x = jax.random.normal(KEY, (2, 6, 4, 3))
    params = generic(model, x)
    conv, head, norm = nn.Conv2d(3, 8, 2, 2), nn.Linear(8, 3), nn.LayerNorm(8)
    layer = nn.TransformerEncoderLayer(
        8, 2, 32, 0.0, "gelu", batch_first=True, norm_first=True
    )
    encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    for i, each in enumerate(encoder.layers):
        put_block(each, params["blocks"][str(i)])
    put((head.weight, head.bias), params["head"])
    put_norm(norm, params["norm"])
    with torch.no_grad():
        kernel = np.asarray(params["patches"]["kernel"]).transpose(3, 2, 0, 1)
        conv.weight.copy_(torch.tensor(kernel))
        conv.bias.copy_(tensor(params["patches"]["bias"]))
    patches = conv(tensor(x).permute(0, 3, 1, 2)).flatten(2).transpose(1, 2)
    token = tensor(params["token"]["value"]).expand(2, 1, 8)
    h = torch.cat([token, patches], 1) + tensor(params["positions"]["embedding"])
    close(run(model, params, x), head(norm(encoder(h)[:, 0])))


@pytest.mark.torch
def test_gpt2_is_what_torch_makes_of_its_parts():
    torch = pytest.importorskip("torch")
    f = torch.nn.functional
    model = GPT(9, 6, features=8, heads=2, layers=2)
    params = generic(model, TOKENS)
    p = jax.tree.map(tensor, params)

    def dense(x, own):
        return x @ own["kernel"] + own["bias"]

    def norm(x, own):
        return f.layer_norm(x, (8,), own["scale"], own["bias"])

    x = p["tokens"]["embedding"][tensor(TOKENS).long()]
    x = x + p["positions"]["embedding"][:5]
    for own in p["blocks"].values():
        h, attention = norm(x, own["attention_norm"]), own["attention"]
        q, k, v = (
            dense(h, attention[name]).reshape(2, 5, 2, 4).transpose(1, 2)
            for name in ("query", "key", "value")
        )
        mixed = f.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + dense(mixed.transpose(1, 2).reshape(2, 5, 8), attention["out"])
        h = dense(norm(x, own["mlp_norm"]), own["mlp"]["up"])
        x = x + dense(f.gelu(h, approximate="tanh"), own["mlp"]["down"])
    close(
        run(model, params, TOKENS),
        norm(x, p["norm"]) @ p["tokens"]["embedding"].T,
        1e-4,
    )


def test_a_llama_is_what_numpy_makes_of_its_parts():
    model = GPT(
        9, 6, features=8, heads=4, kv_heads=2, layers=2, positions="rotary", tied=False,
        norm=RMSNorm(), activation="silu", gated=True, use_bias=False, hidden=12,
    )  # fmt: skip
    params = generic(model, TOKENS)
    assert not [path for path in leaf_paths(params) if "bias" in path]
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), params)

    def norm(x, own):
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * own["scale"]

    def heads(x, own):
        h = (x @ own["kernel"]).reshape(2, 5, -1, 2).transpose(0, 2, 1, 3)
        return h if h.shape[1] == 4 else h.repeat(2, axis=1)

    def turn(x):  # two features a head: one complex number, one radian a place
        z = (x[..., 0] + 1j * x[..., 1]) * np.exp(1j * np.arange(5))
        return np.stack([z.real, z.imag], -1)

    x = p["tokens"]["embedding"][np.asarray(TOKENS)]
    for own in p["blocks"].values():
        h, attention = norm(x, own["attention_norm"]), own["attention"]
        q, k = (turn(heads(h, attention[name])) for name in ("query", "key"))
        scores = q @ k.swapaxes(-1, -2) / np.sqrt(2)
        scores = np.where(np.tri(5, dtype=bool), scores, -np.inf)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        mixed = (weights @ heads(h, attention["value"])).transpose(0, 2, 1, 3)
        x = x + mixed.reshape(2, 5, 8) @ attention["out"]["kernel"]
        h, mlp = norm(x, own["mlp_norm"]), own["mlp"]
        gate = h @ mlp["gate"]["kernel"]
        h = gate / (1 + np.exp(-gate)) * (h @ mlp["up"]["kernel"])
        x = x + h @ mlp["down"]["kernel"]
    close(run(model, params, TOKENS), norm(x, p["norm"]) @ p["head"]["kernel"], 5e-5)


# In torch's order.
GATES = {
    "lstm": (["ii", "if", "ig", "io"], ["hi", "hf", "hg", "ho"]),
    "gru": (["ir", "iz", "in"], ["hr", "hz", "hn"]),
}


@pytest.mark.torch
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_a_recurrent_classifier_is_torchs_layers_and_a_linear_one(cell):
    torch = pytest.importorskip("torch")
    model = RecurrentClassifier(3, 4, cell=cell, depth=2, bidirectional=True)
    x, lengths = jax.random.normal(KEY, (2, 5, 6)), jnp.array([3, 5])
    params = generic(model, x, lengths)
    kind = {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU}[cell]
    layers = kind(6, 4, 2, batch_first=True, bidirectional=True)
    zero = {"bias": np.zeros(4, np.float32)}
    for i in range(2):
        for way, end in (("forward", ""), ("backward", "_reverse")):
            own = params[f"layer_{i}"][way]["cell"]
            for half, names in zip(("ih", "hh"), GATES[cell], strict=True):
                pair = [getattr(layers, f"{w}_{half}_l{i}{end}") for w in ("weight",
                        "bias")]  # fmt: skip
                put(pair, *(zero | own[name] for name in names))
    packed = torch.nn.utils.rnn.pack_padded_sequence(
        tensor(x), [3, 5], batch_first=True, enforce_sorted=False
    )
    last = layers(packed)[1]
    h = (last[0] if cell == "lstm" else last)[-2:]
    head = jax.tree.map(tensor, params["head"])
    wanted = torch.cat([h[0], h[1]], -1) @ head["kernel"] + head["bias"]
    close(run(model, params, x, lengths), wanted)


# --- what is promised of each ------------------------------------------------------


def test_published_sizes_have_their_published_counts():
    tokens = jax.ShapeDtypeStruct((1, 4), "int32")
    image = jax.ShapeDtypeStruct((1, 224, 224, 3), "float32")
    assert count(GPT.gpt2(), tokens) == 124_439_808
    assert count(GPT.gpt2("xl", scan=True), tokens) == 1_557_611_200
    assert count(ViT.b16(), image) == 86_567_656
    with pytest.raises(FieldError, match=r"GPT\.gpt2.*'smal'\. Nearest: small"):
        GPT.gpt2("smal")


def test_blocks_in_a_loop_are_blocks_written_out():
    options = {"features": 8, "heads": 2, "layers": 2}
    written, looped = GPT(9, 6, **options), GPT(9, 6, scan=True, remat=True, **options)
    params = generic(written, TOKENS)
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *params["blocks"].values())
    other = {**params, "blocks": stacked}
    assert jax.tree.structure(mp.outline(looped, TOKENS)[0].params) == (
        jax.tree.structure(other)
    )

    def loss(model, params):
        y = model(params, TOKENS)
        return jnp.mean(y**2), y

    descend = jax.jit(
        jax.value_and_grad(loss, argnums=1, has_aux=True), static_argnums=0
    )
    (_, y), ours = descend(looped, other)
    (_, wanted), theirs = descend(written, params)
    close(y, wanted)
    for i, own in theirs["blocks"].items():
        for path, leaf in leaf_paths(own).items():
            close(leaf_paths(ours["blocks"])[path][int(i)], leaf)


def test_what_adds_to_the_sum_of_blocks_starts_small():
    wide = {"features": 64, "heads": 2, "layers": 8}
    params = GPT.gpt2(vocabulary=9, **wide).init(KEY, TOKENS).params["blocks"]["3"]
    spread = {path: float(x.std()) for path, x in leaf_paths(params).items()}
    assert spread["attention/query/kernel"] == pytest.approx(0.02, rel=0.05)
    for path in ("attention/out/kernel", "mlp/down/kernel"):
        assert spread[path] == pytest.approx(0.02 / 4, rel=0.05)


def test_a_text_is_read_from_left_to_right():
    model = GPT(9, 6, features=8, heads=2, layers=2)
    params = generic(model, TOKENS)
    changed = TOKENS.at[:, 3].set(0)
    before, after = run(model, params, TOKENS), run(model, params, changed)
    close(before[:, :3], after[:, :3], 1e-6)
    assert float(jnp.abs(before - after)[:, 3:].min(-1).max()) > 1e-3


@pytest.mark.parametrize(
    ("positions", "pre_norm"),
    [("learned", True), ("sinusoidal", False), ("rotary", True)],
)
def test_padding_changes_nothing_and_order_does(positions, pre_norm):
    model = TransformerEncoder(
        9, 3, features=8, heads=2, layers=1, max_length=5, positions=positions,
        pre_norm=pre_norm,
    )  # fmt: skip
    params = generic(model, TOKENS, REAL)
    y = run(model, params, TOKENS, REAL)
    close(run(model, params, jnp.where(REAL, TOKENS, 3), REAL), y, 1e-6)
    close(run(model, params, TOKENS[:1, :3]), y[:1])
    swapped = TOKENS[:, jnp.array([1, 0, 2, 3, 4])]
    assert float(jnp.abs(run(model, params, swapped, REAL) - y).max()) > 1e-4
    nothing = run(model, params, TOKENS, jnp.zeros((2, 5), bool))
    assert bool(jnp.isfinite(nothing).all())


@pytest.mark.parametrize("pooling", ["mean", "first", "none"])
def test_pooling_is_what_it_says(pooling):
    options = {"features": 8, "heads": 2, "layers": 1, "max_length": 5}
    model = TransformerEncoder(9, 3, pooling=pooling, **options)
    params = generic(model, TOKENS)
    plain = {name: own for name, own in params.items() if name != "head"}
    h = run(TransformerEncoder(9, **options), plain, TOKENS, REAL)
    rows = {"mean": jnp.stack([h[0, :3].mean(0), h[1].mean(0)]), "first": h[:, 0],
            "none": h}[pooling]  # fmt: skip
    close(run(model, params, TOKENS, REAL), Dense(3)(params["head"], rows))


def ones(x, *others):
    return jnp.ones_like(x)


def test_each_half_of_a_block_drops_its_own_and_none_in_inference():
    block, x = TransformerBlock(Once(), mp.Lift(ones), rate=0.5), jnp.ones((1, 400, 4))
    v = block.init(KEY, x)
    y, _ = block.apply(v, x, ctx=Context(key=KEY, train=True))
    # Each adds nothing, or twice the ones it says; one mask for both makes no 3.
    assert set(np.unique(np.asarray(y)).tolist()) == {1.0, 3.0, 5.0}
    np.testing.assert_array_equal(block(v.params, x), 3 * x)


@dataclasses.dataclass(frozen=True)
class Once(Attention):
    """An attention that says one, whatever it sees."""

    heads: int = 1

    def init(self, key, x, *others):
        return Variables()

    def apply(self, variables, x, *others, ctx):
        return jnp.ones_like(x), variables.state


def test_every_cell_can_be_asked_for():
    x = jax.random.normal(KEY, (2, 4, 3))
    named = RecurrentClassifier(2, 5, cell="gru")
    given = RecurrentClassifier(2, cell=GRUCell(5))
    params = generic(named, x)
    close(run(given, params, x), run(named, params, x), 0)
    simple = RecurrentClassifier(2, 5, cell="simple", depth=3)
    assert sorted(generic(simple, x)) == ["head", "layer_0", "layer_1", "layer_2"]


def test_places_go_on_in_inference_and_rest_in_training():
    places, tokens = Places(9, cached=True), jnp.zeros((2, 3), jnp.int32)
    v = places.init(KEY, tokens)
    first, state = places.apply(v, tokens, ctx=Context())
    again, state = places.apply(Variables({}, state), tokens, ctx=Context())
    assert (first.tolist(), again.tolist()) == ([0, 1, 2], [3, 4, 5])
    still, kept = places.apply(Variables({}, state), tokens, ctx=Context(train=True))
    assert still.tolist() == [0, 1, 2]
    assert int(kept["cache"]["index"]) == 6


# --- trained -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def digits():
    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(x))
    x = (x[order] / 16).astype(np.float32).reshape(-1, 8, 8)
    y = y[order].astype(np.int32)
    return (x[:1400], y[:1400]), (x[1400:], y[1400:])


MODELS = {
    "lstm": (RecurrentClassifier(10, 48), 5e-3, 20),
    "gru": (RecurrentClassifier(10, 32, cell="gru", bidirectional=True), 1e-2, 15),
    "encoder": (
        TransformerEncoder(None, 10, features=32, heads=4, layers=2, hidden=64,
                           max_length=8), 6e-3, 15,
    ),
    "vit": (ViT(10, (8, 8), 2, features=32, heads=4, layers=2, hidden=64), 6e-3, 15),
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_handwritten_digits_are_read(name, digits):
    model, rate, epochs = MODELS[name]
    (x, y), (x_test, y_test) = digits
    if name == "vit":  # an image; to the others, a sequence of eight rows
        x, x_test = x[..., None], x_test[..., None]
    steps = epochs * (len(x) // 64)
    fitted = mp.train.fit(
        model, (x, y), loss=mp.losses.CrossEntropy(), epochs=epochs, batch_size=64,
        optimizer=optax.adam(optax.cosine_decay_schedule(rate, steps)),
    )  # fmt: skip
    metrics = {"accuracy": mp.metrics.Accuracy()}
    got = mp.train.evaluate(model, fitted.variables, (x_test, y_test), metrics)
    assert got["accuracy"] > 0.93


SPELT = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen "
    "fourteen fifteen sixteen seventeen eighteen nineteen twenty thirty forty fifty "
    "sixty seventy eighty ninety start stop hundred thousand and"
)
WORDS = SPELT.split()


def in_words(n):
    if n >= 1000:
        rest = in_words(n % 1000) if n % 1000 else []
        return [WORDS[n // 1000], "thousand", *rest]
    if n >= 100:
        rest = ["and", *in_words(n % 100)] if n % 100 else []
        return [WORDS[n // 100], "hundred", *rest]
    if n < 20:
        return [WORDS[n]]
    return [WORDS[18 + n // 10], *([WORDS[n % 10]] if n % 10 else [])]


def test_numbers_are_said_in_words():
    numbers, longest = np.random.default_rng(0).permutation(10_000), 8
    figures = [[int(c) if c != " " else 10 for c in f"{n:<4}"] for n in numbers]
    texts = [["start", *in_words(n), *["stop"] * longest] for n in numbers]
    target = np.array([[WORDS.index(w) for w in t[: longest + 1]] for t in texts])
    source, target = np.array(figures, np.int32), target.astype(np.int32)
    real, split, start, stop = (
        source < 10,
        8000,
        WORDS.index("start"),
        WORDS.index("stop"),
    )
    model = Seq2Seq(11, len(WORDS), longest, features=32, heads=4, layers=1, hidden=64)
    epochs = 6
    fitted = mp.train.fit(
        model,
        (source[:split], target[:split, :-1], real[:split], target[:split, 1:]),
        loss=mp.losses.CrossEntropy(), epochs=epochs, batch_size=100,
        optimizer=optax.adam(optax.cosine_decay_schedule(5e-3, epochs * split // 100)),
    )  # fmt: skip
    params, held_out = fitted.variables.params, slice(split, None)
    said = translate(
        model, params, source[held_out], longest, start=start, stop=stop,
        mask=real[held_out],
    )  # fmt: skip
    exact = (np.asarray(said) == target[held_out, 1:]).all(1)
    assert exact.mean() > 0.95
    # The cache changes nothing: read again at once, each word is the likeliest.
    read = jnp.concatenate([jnp.full_like(said[:, :1], start), said[:, :-1]], 1)
    logits = run(model, params, source[held_out], read, real[held_out])
    before_stop = jnp.cumsum(read == stop, 1) == 0
    assert bool(((logits.argmax(-1) == said) | ~before_stop).all())


# --- what is refused ---------------------------------------------------------------

SIZE = {"features": 8, "heads": 2, "layers": 1}


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (
            lambda: GPT(9, 6, features=8, heads=3, layers=1),
            r"GPT\.heads: expected a di",
        ),
        (lambda: GPT(9, 6, kv_heads=3, **SIZE), r"kv_heads: expected a divisor of hea"),
        (
            lambda: GPT(9, 6, positions="absolute", **SIZE),
            r"GPT\.positions.*learned, s",
        ),
        (lambda: GPT(9, 6, remat=True, **SIZE), r"GPT\.remat: expected scan=True"),
        (lambda: GPT(9, 6, cache_length=7, **SIZE), r"at most max_length = 6, got 7"),
        (lambda: GPT(0, 6, **SIZE), r"GPT\.vocabulary"),
        (lambda: GPT(9, 6, rate=1.0, **SIZE), r"rate: expected a fraction"),
        (lambda: TransformerEncoder(9, pooling="max", **SIZE), r"pooling.*mean, first"),
        (lambda: TransformerEncoder(9, 0, **SIZE), r"TransformerEncoder\.classes"),
        (lambda: ViT(3, (8, 6), 4, **SIZE), r"ViT\.patch: expected a divisor of heig"),
        (lambda: ViT(3, (8, 8, 8), 4, **SIZE), r"ViT\.patch"),
        (lambda: Seq2Seq(9, 0, 4, **SIZE), r"GPT\.vocabulary: expected a whole"),
        (lambda: RecurrentClassifier(3, cell="lstn"), r"got 'lstn'\. Nearest: lstm"),
        (lambda: RecurrentClassifier(3, cell=Dense(3)), r"Recurrent\.cell"),
        (lambda: RecurrentClassifier(3, depth=0), r"RecurrentClassifier\.depth"),
        (lambda: FeedForward(8, hidden=0), r"FeedForward\.hidden"),
        (lambda: Stack(Dense(4), 0), r"Stack\.times"),
        (lambda: Stack(jnp.tanh, 2), r"Stack\.block: expected a mapping"),
    ],
)
def test_fields_that_make_no_model_are_refused(make, said):
    with pytest.raises((FieldError, LookupError), match=said):
        make()


def test_inputs_that_do_not_fit_are_refused_by_path():
    gpt = mp.Serial(gpt=GPT(9, 6, **SIZE))
    with pytest.raises(OutOfRangeError, match=r"gpt/places.*at most 6, got int32"):
        gpt.init(KEY, jnp.zeros((2, 7), jnp.int32))
    with pytest.raises(ShapeMismatchError, match=r"gpt \(GPT\): expected padding int"):
        gpt.init(KEY, TOKENS, jnp.zeros(3, jnp.int32))
    with pytest.raises(OutOfRangeError, match=r"gpt/tokens.*numbers in \[0, 9\)"):
        gpt(gpt.init(KEY, TOKENS).params, TOKENS + 3)
    net = mp.Serial(net=TransformerEncoder(9, 2, max_length=5, **SIZE))
    with pytest.raises(ShapeMismatchError, match=r"net.*expected a mask bool\[2, 5\]"):
        net.init(KEY, TOKENS, REAL[0])
    with pytest.raises(ShapeMismatchError, match=r"net.*got int32\[2, 5\]"):
        net.init(KEY, TOKENS, TOKENS)
    vit = mp.Serial(vit=ViT(3, (8, 8), 4, **SIZE))
    with pytest.raises(
        ShapeMismatchError, match=r"vit \(ViT\): expected images .*8, 8"
    ):
        vit.init(KEY, jnp.ones((2, 8, 4, 3)))
    block = TransformerBlock(Attention(2), FeedForward(8), cross=Attention(2))
    with pytest.raises(ShapeMismatchError, match=r"a context for cross-attention"):
        block.init(KEY, jnp.ones((2, 3, 8)))
    block = dataclasses.replace(block, cross=None)
    with pytest.raises(ShapeMismatchError, match=r"no context, having no cross"):
        block.init(KEY, jnp.ones((2, 3, 8)), None, jnp.ones((2, 3, 8)))


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ({"source": [[1, 9]]}, r"source: expected tokens in \[0, 9\), got 1 to 9"),
        (
            {"source": [1, 2]},
            r"source: expected tokens \(batch, length\).*got int32\[2",
        ),
        ({"mask": jnp.ones((1, 2), bool)}, r"and a mask of that shape.*bool\[1, 2\]"),
        ({"start": 7}, r"start: expected tokens in \[0, 7\), got 7 to 7"),
        ({"length": 5}, r"Seq2Seq: expected at most 5 tokens.*prompt of 1 and a text"),
        ({"top_p": 2.0, "key": KEY}, r"top_p: expected a number in"),
    ],
)
def test_a_source_that_has_no_translation_is_refused(inputs, said):
    asked = {"source": [[1, 2, 3]], "length": 4, "start": 0} | inputs
    with pytest.raises(GenerationError, match=said):
        translate(Seq2Seq(9, 7, 4, **SIZE), {}, **asked)
