"""Attention agrees with torch, hides what it says, and decodes what it would say."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mapping import Context, Model, Serial, Variables, leaf_paths
from mapping.combinators import Repeat
from mapping.errors import (
    FieldError,
    MissingKeyError,
    MissingVariablesError,
    ShapeMismatchError,
)
from mapping.layers import Attention, BatchNorm, Dense, Rotary, empty_cache
from mapping.layers.rotary import rotary
from mapping.layers.scores import Weights

KEY = jax.random.key(0)
TRAIN = Context(jax.random.key(1), train=True)
INFER = Context()


def random(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def spec(*shape, dtype="float32"):
    return jax.ShapeDtypeStruct(shape, dtype)


@functools.partial(jax.jit, static_argnums=0)
def apply(mapping, variables, *inputs, ctx=INFER):
    return mapping.apply(variables, *inputs, ctx=ctx)


def params_of(layer, *specs):
    """Params that fit, of size one over the root of what they sum, biases not zero."""
    abstract = jax.eval_shape(layer.init, KEY, *specs).params

    def fill(leaf):
        values = random(*leaf.shape, seed=sum(leaf.shape))
        return jnp.asarray(values / np.sqrt(leaf.shape[0])).astype(leaf.dtype)

    return jax.tree.map(fill, abstract)


def output(layer, params, *inputs):
    return apply(layer, Variables(params), *inputs)[0]


def close(actual, expected, tolerance=1e-5):
    np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance)


# torch


def torch_attention(params, x, context, heads, **options):
    """`torch.nn.MultiheadAttention` with these params."""
    torch = pytest.importorskip("torch")
    features, width = x.shape[-1], context.shape[-1]
    module = torch.nn.MultiheadAttention(
        features, heads, batch_first=True, kdim=width, vdim=width
    )
    weights = {n: torch.tensor(np.array(params[n]["kernel"]).T) for n in params}
    biases = [
        torch.tensor(np.array(params[n]["bias"])) for n in ("query", "key", "value")
    ]
    with torch.no_grad():
        if width == features:
            joined = torch.cat([weights[n] for n in ("query", "key", "value")])
            module.in_proj_weight.copy_(joined)
        else:
            module.q_proj_weight.copy_(weights["query"])
            module.k_proj_weight.copy_(weights["key"])
            module.v_proj_weight.copy_(weights["value"])
        module.in_proj_bias.copy_(torch.cat(biases))
        module.out_proj.weight.copy_(weights["out"])
        module.out_proj.bias.copy_(torch.tensor(np.array(params["out"]["bias"])))
        options = {
            name: torch.tensor(np.array(value)) for name, value in options.items()
        }
        c = torch.tensor(context)
        return module(torch.tensor(x), c, c, need_weights=False, **options)[0].numpy()


def torch_grouped(params, x, heads, kv_heads, turn=lambda a: a, **options):
    """`scaled_dot_product_attention` with grouped heads, between linear maps."""
    torch = pytest.importorskip("torch")

    def heads_of(name, count):
        y = x @ np.array(params[name]["kernel"]) + np.array(params[name]["bias"])
        return y.reshape(*x.shape[:-1], count, -1)

    query, key = turn(heads_of("query", heads)), turn(heads_of("key", kv_heads))
    value = heads_of("value", kv_heads)
    given = [torch.tensor(a.swapaxes(1, 2)) for a in (query, key, value)]
    y = torch.nn.functional.scaled_dot_product_attention(
        *given, enable_gqa=True, **options
    )
    y = y.numpy().swapaxes(1, 2).reshape(*x.shape[:-1], -1)
    return y @ np.array(params["out"]["kernel"]) + np.array(params["out"]["bias"])


@pytest.mark.torch
def test_self_attention_is_torchs_padding_and_all():
    layer, x = Attention(4), random(3, 5, 8)
    params = params_of(layer, spec(3, 5, 8))
    close(output(layer, params, x), torch_attention(params, x, x, 4))
    real = np.arange(5) < np.array([5, 3, 1])[:, None]
    hidden = np.broadcast_to(~real[:, None, None], (3, 4, 5, 5)).reshape(12, 5, 5)
    expected = torch_attention(params, x, x, 4, attn_mask=hidden)
    close(output(layer, params, x, None, real[:, None, None]), expected)


@pytest.mark.torch
def test_cross_attention_is_torchs():
    layer, x, context = Attention(2), random(3, 4, 8), random(3, 6, 5, seed=1)
    params = params_of(layer, x, context)
    expected = torch_attention(params, x, context, 2)
    close(output(layer, params, x, context), expected)
    mask = random(3, 2, 4, 6, seed=2) > 0
    mask[..., 0] = True  # torch's module makes nan where all is hidden
    expected = torch_attention(params, x, context, 2, attn_mask=~mask.reshape(6, 4, 6))
    close(output(layer, params, x, context, mask), expected)


@pytest.mark.torch
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_grouped_query_attention_is_torchs(kv_heads):
    layer, x = Attention(4, kv_heads=kv_heads, causal=True), random(2, 7, 16)
    params = params_of(layer, x)
    assert params["key"]["kernel"].shape == (16, 4 * kv_heads)
    expected = torch_grouped(params, x, 4, kv_heads, is_causal=True)
    close(output(layer, params, x), expected)


@pytest.mark.torch
@pytest.mark.parametrize("causal", [True, False])
def test_a_window_shows_the_places_less_than_that_far(causal):
    torch = pytest.importorskip("torch")
    layer, x = Attention(2, causal=causal, window=3), random(2, 8, 8)
    near = [
        [abs(i - j) < 3 and (j <= i or not causal) for j in range(8)] for i in range(8)
    ]
    params = params_of(layer, x)
    expected = torch_grouped(params, x, 2, 2, attn_mask=torch.tensor(near))
    close(output(layer, params, x), expected)


@pytest.mark.torch
def test_rotary_attention_is_torchs_of_queries_and_keys_turned_by_complex_numbers():
    layer = Attention(4, kv_heads=2, causal=True, rotary=Rotary(base=100.0))
    x = random(2, 6, 16)
    params = params_of(layer, x)
    turn = functools.partial(turned, positions=np.arange(6), base=100.0)
    expected = torch_grouped(params, x, 4, 2, turn=turn, is_causal=True)
    close(output(layer, params, x), expected)


@pytest.mark.torch
def test_where_all_is_hidden_the_output_is_the_bias_as_in_torchs_function():
    torch = pytest.importorskip("torch")
    layer, x = Attention(2, kv_heads=1), random(2, 4, 8)
    params = params_of(layer, x)
    mask = np.ones((2, 1, 4, 4), bool)
    mask[1, :, 2] = False
    expected = torch_grouped(params, x, 2, 1, attn_mask=torch.tensor(mask))
    close(output(layer, params, x, None, mask), expected)
    np.testing.assert_array_equal(expected[1, 2], params["out"]["bias"])


# Positions


def turned(x, positions, base=10_000.0, interleaved=False):
    """Rotary embedding in numpy, by complex numbers, in float64."""
    d = x.shape[-1]
    pairs = (x[..., 0::2], x[..., 1::2]) if interleaved else np.split(x, 2, -1)
    angle = np.asarray(positions)[..., None, None] / base ** (np.arange(0, d, 2) / d)
    z = (pairs[0] + 1j * pairs[1]) * np.exp(1j * angle)
    if interleaved:
        return np.stack([z.real, z.imag], -1).reshape(x.shape).astype(x.dtype)
    return np.concatenate([z.real, z.imag], -1).astype(x.dtype)


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("positions", [np.arange(5), np.array([[3, 1, 4, 1, 5]] * 2)])
def test_rotary_is_a_product_of_complex_numbers(interleaved, positions):
    x = random(2, 5, 3, 8)
    layer = Rotary(base=50.0, interleaved=interleaved)
    expected = turned(x, positions, 50.0, interleaved)
    close(layer({}, x, positions), expected)
    close(rotary(x, positions, base=50.0, interleaved=interleaved), expected)


def test_rotary_counts_from_zero():
    x = random(2, 5, 3, 8)
    np.testing.assert_array_equal(Rotary()({}, x), Rotary()({}, x, jnp.arange(5)))


def test_rotary_products_depend_on_the_distance_alone():
    q, k = random(2, 1, 1, 16)

    def product(i, j):
        at = [rotary(a[None, None], jnp.array([p])) for a, p in ((q[0], i), (k[0], j))]
        return float(jnp.sum(at[0] * at[1]))

    assert product(7, 3) == pytest.approx(product(104, 100), abs=1e-4)
    assert product(7, 3) != pytest.approx(product(7, 4), abs=1e-2)


def test_rotary_turns_bfloat16_by_exact_angles():
    x = jnp.asarray(random(1, 1, 2, 8), jnp.bfloat16)
    far = np.array([1001])  # not a bfloat16
    got = rotary(x, far)
    assert got.dtype == jnp.bfloat16
    expected = turned(np.asarray(x, np.float32), far)
    np.testing.assert_allclose(np.asarray(got, np.float32), expected, atol=0.02)


def test_rotary_refuses_what_cannot_be_turned():
    with pytest.raises(FieldError, match=r"Rotary.base: expected a number > 0, got 0"):
        Rotary(base=0)
    with pytest.raises(ShapeMismatchError, match=r"d even, got float32\[1, 2, 1, 3\]"):
        Rotary()({}, random(1, 2, 1, 3))
    with pytest.raises(ShapeMismatchError, match=r"heads, d\] .*got float32\[2, 4\]"):
        Rotary()({}, random(2, 4))
    with pytest.raises(
        ShapeMismatchError, match=r"int\[2\] or int\[1, 2\].*int32\[3\]"
    ):
        Rotary()({}, random(1, 2, 1, 4), jnp.arange(3))


# What is hidden


def test_no_early_output_depends_on_a_late_input():
    layer, x = Attention(2, causal=True, rotary=Rotary()), random(1, 6, 8)
    params = params_of(layer, x)

    def early(x):
        return output(layer, params, x)[:, :3].sum()

    gradient = np.asarray(jax.grad(early)(x))
    assert not gradient[:, 3:].any()
    assert gradient[:, :3].all()


def test_padding_in_front_hides_every_key_from_the_first_queries_and_none_leaks():
    layer, x = Attention(2, causal=True), random(1, 5, 8)
    params = params_of(layer, x)
    real = np.array([False, False, True, True, True])[None, None, None]
    y = output(layer, params, x, None, real)
    bias = np.broadcast_to(params["out"]["bias"], (2, 8))
    np.testing.assert_array_equal(y[0, :2], bias)
    close(y[:, 2:], output(layer, params, x[:, 2:]))


def test_what_is_hidden_has_no_gradient_and_makes_no_nan():
    layer, x = Attention(2), random(2, 4, 8)
    params = params_of(layer, x)
    mask = np.ones((2, 1, 4, 4), bool)
    mask[1] = False

    def total(params, x):
        return (output(layer, params, x, None, mask) ** 2).sum()

    of_params, of_x = jax.grad(total, argnums=(0, 1))(params, x)
    assert not np.asarray(of_x[1]).any()
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((of_params, of_x)))
    with jax.debug_nans(True):
        layer(params, x, None, mask)


def test_what_padding_holds_never_matters():
    layer, x = Attention(2), random(2, 4, 8)
    params = params_of(layer, x)
    mask = np.arange(4)[None, None, None] < np.array([4, 2])[:, None, None, None]
    other = x.copy()
    other[1, 2:] = 100.0
    first, second = (output(layer, params, a, None, mask) for a in (x, other))
    np.testing.assert_array_equal(first[0], second[0])
    np.testing.assert_array_equal(first[1, :2], second[1, :2])


# Shapes and dtypes


def test_leading_axes_are_batch():
    layer, x, context = Attention(2, features=5), random(3, 2, 4, 8), random(3, 2, 6, 7)
    params = params_of(layer, x, context)
    mask = random(3, 2, 2, 4, 6, seed=3) > 0
    got = output(layer, params, x, context, mask)
    assert got.shape == (3, 2, 4, 5)
    flat = [a.reshape(6, *a.shape[2:]) for a in (x, context, mask)]
    close(got.reshape(6, 4, 5), output(layer, params, *flat))
    close(output(layer, params, x[0, 0], context[0, 0], mask[0, 0]), got[0, 0])


def test_scores_and_softmax_of_bfloat16_are_taken_in_float32():
    q = jnp.asarray(random(1, 2, 4, 64) * 4, jnp.bfloat16)
    k = jnp.asarray(random(1, 2, 512, 64, seed=1), jnp.bfloat16)
    got, _ = Weights().apply(Variables(), q, k, ctx=INFER)
    assert got.dtype == jnp.bfloat16
    wide = [np.asarray(a, np.float64) for a in (q, k)]
    scores = wide[0] @ wide[1].swapaxes(-1, -2) / 8
    exact = np.exp(scores - scores.max(-1, keepdims=True))
    exact /= exact.sum(-1, keepdims=True)
    np.testing.assert_allclose(np.asarray(got, np.float64), exact, rtol=2**-8)


def test_float64_stays_exact():
    layer = Attention(2, kv_heads=1, causal=True, rotary=Rotary())
    x = np.random.default_rng(0).normal(size=(1, 3, 8))
    with jax.enable_x64(True):
        params = jax.tree.map(
            lambda a: a.astype("float64"), params_of(layer, spec(1, 3, 8))
        )
        got = output(layer, params, jnp.asarray(x))
        assert got.dtype == jnp.float64
    k = {n: np.asarray(p["kernel"], np.float64) for n, p in params.items()}
    b = {n: np.asarray(p["bias"], np.float64) for n, p in params.items()}
    q, key, value = (
        (x[0] @ k[n] + b[n]).reshape(3, -1, 4) for n in ("query", "key", "value")
    )
    q, key = (turned(a, np.arange(3)) for a in (q, key))
    scores = np.einsum("qhd,sd->hqs", q, key[:, 0]) / 2
    scores[:, np.triu(np.ones((3, 3), bool), 1)] = -np.inf
    weights = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    mixed = np.einsum("hqs,sd->qhd", weights, value[:, 0]).reshape(3, 8)
    expected = mixed @ k["out"] + b["out"]
    np.testing.assert_allclose(got[0], expected, rtol=1e-12, atol=1e-12)


def test_heads_may_have_any_size_and_biases_may_go():
    layer = Attention(3, head_features=5, features=7, use_bias=False)
    shapes = {
        p: a.shape for p, a in leaf_paths(params_of(layer, spec(2, 4, 8))).items()
    }
    assert shapes == {
        "key/kernel": (8, 15),
        "out/kernel": (15, 7),
        "query/kernel": (8, 15),
        "value/kernel": (8, 15),
    }


# Randomness and capture


def weights_of(layer, params, x, ctx):
    ctx = dataclasses.replace(ctx, capture=("weights",))
    _, state = apply(layer, Variables(params), x, ctx=ctx)
    return np.asarray(state["weights"][""])


def test_weights_can_be_captured_and_sum_to_one():
    layer, x = Attention(4, kv_heads=2, causal=True), random(2, 5, 8)
    weights = weights_of(layer, params_of(layer, x), x, INFER)
    assert weights.shape == (2, 4, 5, 5)
    close(weights.sum(-1), np.ones((2, 4, 5)))
    assert not weights[..., np.triu(np.ones((5, 5), bool), 1)].any()


def test_dropout_drops_weights_of_each_head_and_example_by_itself():
    layer, x = Attention(4, rate=0.25), random(8, 16, 8)
    params = params_of(layer, x)
    kept, dropped = (weights_of(layer, params, x, ctx) for ctx in (INFER, TRAIN))
    zero = dropped == 0
    assert abs(zero.mean() - 0.25) < 0.02  # 8192 draws: four standard deviations
    close(dropped[~zero], kept[~zero] / 0.75)
    assert len({zero[b, h].tobytes() for b in range(8) for h in range(4)}) == 32


def test_dropout_needs_a_key_in_training_only():
    layer, x = Serial(attention=Attention(2, rate=0.5)), random(1, 3, 4)
    variables = layer.init(KEY, x)
    layer.apply(variables, x, ctx=INFER)
    with pytest.raises(MissingKeyError, match="attention/weights: needs a random key"):
        layer.apply(variables, x, ctx=Context(train=True))


# Errors


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"heads": 0}, "Attention.heads: expected a whole number >= 1, got 0"),
        ({"heads": 4, "kv_heads": 3}, "expected a divisor of heads = 4, got 3"),
        ({"heads": 4, "window": 0}, "Attention.window: expected a whole number"),
        ({"heads": 4, "cache_length": 8}, "cache_length: expected causal=True"),
        ({"heads": 4, "rate": 1.0}, r"expected a fraction dropped in \[0, 1\), got 1"),
    ],
)
def test_fields_that_do_not_fit_are_refused(fields, message):
    with pytest.raises(FieldError, match=message):
        Attention(**fields)


X, CONTEXT = spec(2, 3, 8), spec(2, 5, 8)
MISFITS = {
    "heads": (Attention(3), (X,), r"net: .*features that 3 heads divide"),
    "axes": (
        Attention(2),
        (spec(8),),
        r"\[\*batch, places, features\], got float32\[8\]",
    ),
    "batch": (Attention(2), (X, spec(1, 5, 8)), r"x and context of the same batch"),
    "mask second": (
        Attention(2),
        (X, spec(2, 1, 1, 3, dtype=bool)),
        r"A mask is third",
    ),
    "causal": (Attention(2, causal=True), (X, CONTEXT), r"as many keys as queries"),
    "window": (Attention(2, window=2), (X, CONTEXT), r"as many keys as queries"),
    "cache": (
        Attention(2, causal=True, cache_length=5),
        (X, X),
        r"x alone, having a cache",
    ),
    "odd": (Attention(8, rotary=Rotary()), (X,), r"even number .* to turn, not 1"),
}


@pytest.mark.parametrize(("layer", "specs", "said"), MISFITS.values(), ids=MISFITS)
def test_inputs_that_do_not_fit_are_told_by_path(layer, specs, said):
    said = said if said.startswith("net") else rf"net \(Attention\): .*{said}"
    with pytest.raises(ShapeMismatchError, match=said.replace("net: ", "net .*")):
        Serial(net=layer).init(KEY, *specs)


@pytest.mark.parametrize(
    ("mask", "got"),
    [
        (np.ones((3, 3), bool), r"bool\[3, 3\]"),
        (np.ones((2, 1, 3, 4), bool), r"bool\[2, 1, 3, 4\]"),
        (np.ones((2, 2, 3, 3), np.float32), r"float32\[2, 2, 3, 3\]"),
    ],
)
def test_a_mask_has_every_axis_and_is_boolean(mask, got):
    layer, x = Attention(2), random(2, 3, 8)
    with pytest.raises(ShapeMismatchError, match=r"mask bool\[2, 2, 3, 3\].*" + got):
        layer(params_of(layer, x), x, None, mask)


def test_features_that_the_params_do_not_fit_are_told_by_path():
    layer = Serial(net=Attention(2, head_features=4))
    params = params_of(layer, spec(2, 3, 8), spec(2, 5, 6))
    with pytest.raises(ShapeMismatchError, match=r"net/key .Dense.: params expect 6"):
        layer(params, random(2, 3, 8), random(2, 5, 7))
    with pytest.raises(ShapeMismatchError, match=r"net/query .Dense.: params expect 8"):
        layer(params, random(2, 3, 9), random(2, 5, 6))
    with pytest.raises(MissingVariablesError, match="net/query"):
        layer({}, random(2, 3, 8))


# Decoding


def decode(layer, variables, x, parts):
    """The outputs of x given in parts, one after the other."""
    outputs, start = [], 0
    for size in parts:
        y, state = apply(layer, variables, x[:, start : start + size])
        variables, start = Variables(variables.params, state), start + size
        outputs.append(y)
    return np.concatenate(outputs, 1), variables.state


DECODERS = {
    "plain": Attention(2, causal=True),
    "grouped and rotary": Attention(4, kv_heads=2, causal=True, rotary=Rotary()),
    "window": Attention(4, kv_heads=1, causal=True, window=3, rotary=Rotary()),
}
every_decoder = pytest.mark.parametrize("layer", DECODERS.values(), ids=DECODERS)


@every_decoder
def test_a_prompt_and_then_one_token_at_a_time_say_what_one_pass_says(layer):
    x = random(2, 9, 8)
    params = params_of(layer, x)
    whole = output(layer, params, x)
    decoder = dataclasses.replace(layer, cache_length=12)
    state = empty_cache(decoder, x[:, :1])
    got, state = decode(decoder, Variables(params, state), x, (4, 1, 1, 2, 1))
    close(got, whole)
    assert int(state["cache"]["index"]) == 9


def test_a_cache_changes_no_param_and_rests_in_training():
    layer, x = DECODERS["grouped and rotary"], random(2, 5, 8)
    decoder = dataclasses.replace(layer, cache_length=8)
    plain, cached = (each.init(KEY, x) for each in (layer, decoder))
    jax.tree.map(np.testing.assert_array_equal, plain.params, cached.params)
    assert plain.state == {}
    shapes = {path: a.shape for path, a in leaf_paths(cached.state).items()}
    assert shapes == {
        "cache/index": (),
        "cache/key": (2, 2, 8, 2),
        "cache/value": (2, 2, 8, 2),
    }
    y, state = decoder.apply(cached, x, ctx=TRAIN)
    assert state is not None
    assert int(state["cache"]["index"]) == 0
    close(y, output(layer, plain.params, x))


def test_left_padded_prompts_decode_as_if_they_were_alone():
    layer = Attention(2, causal=True, rotary=Rotary())
    x = random(1, 5, 8)
    params = params_of(layer, x)
    decoder = dataclasses.replace(layer, cache_length=8)
    padded = np.concatenate([100 * random(1, 3, 8, seed=5), x], 1)
    mask = np.arange(8)[None, None, None] >= 3
    variables = Variables(params, empty_cache(decoder, x))
    first, state = apply(decoder, variables, padded[:, :6], None, mask)
    second, _ = apply(decoder, Variables(params, state), padded[:, 6:], None, mask)
    got = np.concatenate([first, second], 1)[:, 3:]
    close(got, output(layer, params, x), 2e-5)  # the angles are three places further


@dataclasses.dataclass(frozen=True)
class Decoder(Model):
    """Two copies of a residual block, a norm with statistics, and logits."""

    cache_length: int | None = None

    def parts(self):
        block = _Block(self.cache_length)
        return {"blocks": Repeat(block, 2), "norm": BatchNorm(), "head": Dense(8)}

    def forward(self, run, x):
        return run.head(run.norm(run.blocks(x)))


@dataclasses.dataclass(frozen=True)
class _Block(Model):
    cache_length: int | None = None

    def parts(self):
        attention = Attention(
            4,
            kv_heads=2,
            causal=True,
            rotary=Rotary(),
            cache_length=self.cache_length,
        )
        return {"attention": attention}

    def forward(self, run, x):
        return x + run.attention(x)


def test_generation_in_a_scan_with_stacked_layers_is_generation_without_a_cache():
    whole, decoder = Decoder(), Decoder(cache_length=10)
    prompt = random(2, 4, 8)
    params = params_of(whole, prompt)
    norm = {"mean": jnp.full(8, 0.5), "var": jnp.full(8, 2.0)}
    variables = Variables(params, {"norm": norm})
    state = empty_cache(decoder, prompt, state=variables.state)
    assert state["blocks"]["attention"]["cache"]["key"].shape == (2, 2, 2, 10, 2)

    def one(before, _):
        x, state = before
        y, state = decoder.apply(Variables(params, state), x, ctx=INFER)
        y = jnp.tanh(y[:, -1:])
        return (y, state), y[:, 0]

    @functools.partial(jax.jit, donate_argnums=1)
    def generate(prompt, state):
        first, y = one((prompt, state), None)
        (_, state), rest = jax.lax.scan(one, first, None, length=5)
        return jnp.concatenate([y[:, None], rest.swapaxes(0, 1)], 1), state

    got, state = generate(jnp.asarray(prompt), state)
    tokens = np.concatenate([prompt, got[:, :-1]], 1)
    expected, _ = apply(whole, variables, tokens)
    close(got, np.tanh(expected[:, 3:]))
    assert state["blocks"]["attention"]["cache"]["index"].tolist() == [9, 9]
    np.testing.assert_array_equal(state["norm"]["var"], norm["var"])


def test_one_token_too_many_is_an_error_and_nan_where_it_cannot_be_seen():
    decoder, x = Attention(2, causal=True, cache_length=4), random(1, 3, 8)
    params = params_of(decoder, x)
    fresh = Variables(params, empty_cache(decoder, x))
    y, state = decoder.apply(fresh, x, ctx=INFER)
    assert np.isfinite(y).all()
    used = Variables(params, state)
    said = r"at most 4 tokens in the cache, got 2 more than the 3 there"
    with pytest.raises(ShapeMismatchError, match=said):
        decoder.apply(used, x[:, :2], ctx=INFER)
    assert np.isnan(apply(decoder, used, x[:, :2])[0]).all()
    last, state = apply(decoder, used, x[:, :1])
    assert np.isfinite(last).all()
    after, state = apply(decoder, Variables(params, state), x[:, :1])
    assert np.isnan(after).all()
    assert np.isnan(apply(decoder, Variables(params, state), x[:, :1])[0]).all()
    with pytest.raises(ShapeMismatchError, match="at most 4 tokens"):
        apply(decoder, fresh, random(1, 5, 8))


def test_a_cache_fits_its_batch_and_keeps_its_dtype():
    decoder, x = Attention(2, causal=True, cache_length=4), random(2, 3, 8)
    params = params_of(decoder, x)
    state = empty_cache(decoder, x)
    said = r"fit the cache float32\[2, 2, 4, 4\], got float32\[3, 2, 1, 4\]"
    with pytest.raises(ShapeMismatchError, match=said):
        decoder.apply(Variables(params, state), random(3, 1, 8), ctx=INFER)
    with pytest.raises(MissingVariablesError, match=r"expected a cache .* got none"):
        decoder.apply(Variables(params), x, ctx=INFER)
    half = jax.tree.map(
        lambda a: a.astype("bfloat16") if a.ndim else a, dict(state["cache"])
    )
    y, new = decoder.apply(Variables(params, {"cache": half}), x, ctx=INFER)
    assert (y.dtype, new["cache"]["key"].dtype) == (jnp.float32, jnp.bfloat16)
    exact = output(dataclasses.replace(decoder, cache_length=None), params, x)
    np.testing.assert_allclose(y, exact, atol=0.03)


def test_empty_cache_takes_other_state_as_it_is_and_says_what_it_lacks():
    decoder, x = Decoder(cache_length=4), spec(2, 1, 8)
    with pytest.raises(MissingVariablesError, match="norm/mean: expected the state"):
        empty_cache(decoder, x)
    said = re.escape("Attention: expected a mapping with a cache, got one without")
    with pytest.raises(MissingVariablesError, match=said):
        empty_cache(Attention(2), x)
    state = empty_cache(
        Attention(2, causal=True, cache_length=4), spec(3, 1, 8, dtype="bfloat16")
    )
    assert state["cache"]["key"].shape == (3, 2, 4, 4)
