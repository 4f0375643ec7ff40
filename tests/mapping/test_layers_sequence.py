"""Numbers to vectors and where they stand, against numpy."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mapping import Built, Model, Serial, Shared, Tie
from mapping.errors import FieldError, OutOfRangeError, ShapeMismatchError
from mapping.layers import (
    Attend,
    Dense,
    Embed,
    Parameter,
    PositionEmbedding,
    SinusoidalPosition,
)

KEY = jax.random.key(0)
TABLE = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
EMBED = Embed(5, 3)


def random(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def spec(*shape, dtype="float32"):
    return jax.ShapeDtypeStruct(shape, dtype)


def close(actual, expected, tolerance=1e-6):
    np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance)


# Embedding


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int32", "uint32"])
@pytest.mark.parametrize("shape", [(), (4,), (2, 3)], ids=str)
def test_embed_looks_up_a_row_for_each_number(dtype, shape):
    numbers = np.random.default_rng(1).integers(0, 5, shape).astype(dtype)
    expected = TABLE[numbers.astype(int)]
    np.testing.assert_array_equal(EMBED({"embedding": TABLE}, numbers), expected)
    np.testing.assert_array_equal(
        jax.jit(EMBED)({"embedding": TABLE}, numbers), expected
    )


@pytest.mark.parametrize("numbers", [[5], [0, -1], [[1, 99]]], ids=str)
def test_a_number_without_a_vector_is_refused(numbers):
    net = Serial(encoder=Serial(tokens=EMBED))
    params = {"encoder": {"tokens": {"embedding": TABLE}}}
    bad = [n for n in np.ravel(numbers).tolist() if not 0 <= n < 5]
    with pytest.raises(OutOfRangeError) as caught:
        net(params, jnp.array(numbers))
    message = str(caught.value)
    assert message.startswith("encoder/tokens (Embed): expects numbers in [0, 5), got")
    assert f"got {bad} among int32" in message


@pytest.mark.parametrize("count", [5, 1], ids=["many vectors", "a single one"])
def test_a_number_without_a_vector_is_nan_where_it_is_not_known_yet(count):
    numbers = jnp.array([0, -1, count, 2**31 - 1, -(2**31)])
    params = {"embedding": TABLE[:count]}
    for apply in (jax.jit(Embed(count, 3)), jax.vmap(Embed(count, 3), (None, 0))):
        rows = np.asarray(apply(params, numbers))
        np.testing.assert_array_equal(rows[0], TABLE[0])
        assert np.isnan(rows[1:]).all()


def test_numbers_of_few_bits_are_compared_as_numbers():
    table = random(300, 2)
    numbers = np.array([250, 0], np.uint8)
    np.testing.assert_array_equal(Embed(300, 2)({"embedding": table}, numbers),
                                  table[[250, 0]])  # fmt: skip
    with pytest.raises(OutOfRangeError, match=r"got \[-6\]"):
        Embed(300, 2)({"embedding": table}, numbers.view(np.int8))


def test_gradients_reach_the_rows_that_were_looked_up_and_no_others():
    def total(table, numbers):
        return EMBED({"embedding": table}, numbers).sum()

    grad = jax.jit(jax.grad(total))(TABLE, jnp.array([1, 1, 4]))
    np.testing.assert_array_equal(grad, np.outer([0, 2, 0, 0, 1], np.ones(3)))


@pytest.mark.parametrize("dtype", ["float32", "bool"])
def test_embed_refuses_what_is_no_number_of_a_row(dtype):
    with pytest.raises(ShapeMismatchError, match=r"\(Embed\): expects integers, got"):
        EMBED({"embedding": TABLE}, np.ones(3, dtype))


def test_embed_starts_with_variance_one_over_features_or_as_said():
    numbers = spec(1, dtype="int32")
    table = Embed(1000, 25).init(KEY, numbers).params["embedding"]
    # 25000 draws: five standard errors of a variance are 4.5 %.
    assert np.var(table) == pytest.approx(1 / 25, rel=0.045)
    half = Embed(4, 2, Built.of(jax.nn.initializers.constant, 0.5))
    assert (half.init(KEY, numbers).params["embedding"] == 0.5).all()


# Tied weights


@dataclasses.dataclass(frozen=True)
class Tied(Model):
    def parts(self):
        return {"tokens": EMBED, "scores": Attend()}

    def forward(self, run, numbers):
        return run.scores(run.tokens(numbers), run.params["tokens"]["embedding"])


def test_an_embedding_that_scores_too_is_one_array_with_both_gradients():
    numbers = jnp.array([[1, 4]])
    params = Tied().init(KEY, numbers).params
    assert list(params) == ["tokens"]
    params = {"tokens": {"embedding": TABLE}}
    close(Tied()(params, numbers), TABLE[np.array([[1, 4]])] @ TABLE.T, 1e-5)
    grads = jax.grad(lambda p: Tied()(p, numbers).sum())(params)
    rows = TABLE[[1, 4]].sum(0)
    expected = np.tile(rows, (5, 1))  # as the output layer, for every row
    expected[[1, 4]] += TABLE.sum(0)  # as the input layer, for the rows in use
    close(grads["tokens"]["embedding"], expected, 1e-5)


def test_attend_is_a_dense_layer_tied_to_the_transposed_embedding():
    net = Serial(tokens=EMBED, scores=Dense(5, use_bias=False))
    tie = Tie("scores/kernel", to="tokens/embedding", through=jnp.transpose)
    params = {"tokens": {"embedding": TABLE}}
    numbers = jnp.array([[1, 4]])
    close(Shared(net, tie)(params, numbers), Tied()(params, numbers))


# Positions


def test_a_learned_position_is_added_to_each_vector():
    x, layer = random(2, 4, 3), PositionEmbedding(5)
    expected = x + TABLE[:4]
    close(jax.jit(layer)({"embedding": TABLE}, x), expected, 0)
    close(layer({"embedding": TABLE}, x[0]), expected[0], 0)


@pytest.mark.parametrize("positions", [[2, 3], [[2, 3], [0, 4]]], ids=str)
def test_positions_may_be_given(positions):
    x = random(2, 2, 3)
    layer, given = PositionEmbedding(5), jnp.array(positions)
    expected = x + TABLE[np.array(positions)]
    close(jax.jit(layer)({"embedding": TABLE}, x, given), expected, 0)


def test_a_sequence_beyond_the_last_position_is_refused_even_under_jit():
    layer = Serial(net=Serial(place=PositionEmbedding(5)))
    params = {"net": {"place": {"embedding": TABLE}}}
    message = r"^net/place \(PositionEmbedding\): expects at most 5 positions, got flo"
    for apply in (layer, jax.jit(layer)):
        with pytest.raises(OutOfRangeError, match=message):
            apply(params, random(2, 6, 3))
    with pytest.raises(OutOfRangeError, match=message):
        layer.init(KEY, spec(2, 6, 3))


def test_a_position_beyond_the_last_is_refused_or_nan_under_jit():
    layer, x, positions = PositionEmbedding(5), random(2, 3), jnp.array([4, 5])
    with pytest.raises(OutOfRangeError, match=r"\[0, 5\), got \[5\]"):
        layer({"embedding": TABLE}, x, positions)
    rows = np.asarray(jax.jit(layer)({"embedding": TABLE}, x, positions))
    close(rows[0], x[0] + TABLE[4], 0)
    assert np.isnan(rows[1]).all()


def test_learned_positions_start_small_or_as_said():
    table = PositionEmbedding(500).init(KEY, spec(2, 4, 50)).params["embedding"]
    # 25000 draws: five standard errors of a deviation are 2.3 %.
    assert np.std(table) == pytest.approx(0.02, rel=0.023)
    ones = PositionEmbedding(4, jax.nn.initializers.ones)
    assert (ones.init(KEY, spec(2, 3)).params["embedding"] == 1).all()


def waves(positions, features, base):
    table = np.zeros((len(positions), features))
    for row, t in enumerate(positions):
        for j in range(features):
            angle = t / base ** (2 * (j // 2) / features)
            table[row, j] = np.cos(angle) if j % 2 else np.sin(angle)
    return table


@pytest.mark.parametrize(
    ("length", "features", "base"), [(6, 4, 10000.0), (6, 5, 100.0), (50, 1, 10000.0)]
)
def test_sinusoidal_positions_are_those_of_the_paper(length, features, base):
    x = random(2, length, features)
    y = jax.jit(SinusoidalPosition(base))({}, x)
    close(y, x + waves(range(length), features, base), 1e-5)


def test_sinusoidal_positions_may_be_given_and_need_not_be_whole():
    x, positions = random(2, 3, 4), jnp.array([7.0, 0.5, 40.0])
    expected = x + waves([7.0, 0.5, 40.0], 4, 10000.0)
    close(SinusoidalPosition()({}, x, positions), expected, 1e-5)


@pytest.mark.parametrize("layer", [PositionEmbedding(5), SinusoidalPosition()])
@pytest.mark.parametrize(
    "inputs",
    [
        (random(3),),
        (random(2, 4, 3), jnp.arange(3)),
        (random(4, 3), jnp.zeros((2, 4), jnp.int32)),
        (random(4, 3), jnp.array(1)),
        (random(4, 3), jnp.ones(4, bool)),
        (random(4, 3), jnp.arange(4), jnp.arange(4)),
        (),
    ],
    ids=lambda inputs: str([getattr(x, "shape", x) for x in inputs]) + str(len(inputs)),
)
def test_sequences_and_positions_that_do_not_fit_are_named(layer, inputs):
    with pytest.raises(ShapeMismatchError, match=rf"^\(root\) \({layer.kind}\): expec"):
        layer({"embedding": TABLE}, *inputs)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Embed(0, 3), r"^Embed\.num_embeddings: .*got 0"),
        (lambda: Embed(3, 0), r"^Embed\.features: .*got 0"),
        (lambda: PositionEmbedding(0), r"^PositionEmbedding\.max_length: .*got 0"),
        (lambda: SinusoidalPosition(0.0), r"^SinusoidalPosition\.base: .*> 0, got 0"),
        (lambda: Parameter((-1, 2)), r"^Parameter\.shape: .*>= 0, got \(-1, 2\)"),
        (lambda: Parameter(2), r"^Param\.shape: expected a tuple.*got 2"),
    ],
)
def test_a_field_that_makes_no_layer_is_refused_at_once(make, message):
    with pytest.raises(FieldError, match=message):
        make()


# A learned constant


@dataclasses.dataclass(frozen=True)
class Headed(Model):
    """A class token before the sequence, as a vision transformer has it."""

    def parts(self):
        return {"token": Parameter((1, 3), start=2.0), "dense": Dense(2)}

    def forward(self, run, x):
        token = jnp.broadcast_to(run.token(), (len(x), 1, 3))
        return run.dense(jnp.concatenate([token, x], axis=1))


def test_a_parameter_is_a_part_of_a_model_like_any_other():
    x = random(4, 5, 3)
    v = Headed().init(KEY, x)
    assert v.params["token"]["value"].tolist() == [[2.0, 2.0, 2.0]]
    y = jax.jit(Headed())(v.params, x)
    assert y.shape == (4, 6, 2)
    close(y[:, 0], np.full((4, 3), 2.0) @ np.asarray(v.params["dense"]["kernel"]), 1e-5)
    grads = jax.grad(lambda p: Headed()(p, x).sum())(v.params)
    expected = 4 * np.asarray(v.params["dense"]["kernel"]).sum(1)
    close(grads["token"]["value"][0], expected, 1e-5)


def test_a_parameter_starts_from_an_initialiser_in_its_dtype():
    start = Built.of(jax.nn.initializers.normal, 0.1)
    value = Parameter((50, 20), start, "bfloat16").init(KEY).params["value"]
    assert value.dtype == jnp.bfloat16
    # 1000 draws: five standard errors of a deviation are 11 %.
    assert np.std(np.asarray(value, np.float32)) == pytest.approx(0.1, rel=0.11)


def test_a_parameter_takes_no_inputs():
    params = Parameter((2,)).init(KEY).params
    for use in (lambda: Parameter((2,))(params, 1.0), lambda: Parameter().init(KEY, 1)):
        with pytest.raises(ShapeMismatchError, match=r"\(Parameter\): expects 0 array"):
            use()
