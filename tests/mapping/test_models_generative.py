"""Models that encode and invent: their mathematics, and trained on real digits."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.integrate
import scipy.special
import scipy.stats
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split

from mapping import Context, Flow, Model, Serial, Variables, leaf_paths
from mapping.core import fold_name
from mapping.errors import (
    FieldError,
    MissingKeyError,
    MissingVariablesError,
    ShapeMismatchError,
    UnknownNameError,
)
from mapping.layers import BatchNorm, Dense
from mapping.losses import MeanSquaredError
from mapping.models import ELBO, VAE, Autoencoder, Gan
from mapping.models.gan_step import GanStep
from mapping.registry import Example
from mapping.testing import CLAIMS
from mapping.testing.probe import Probe
from mapping.train import fit, predict

KEY = jax.random.key(0)
TRAIN = Context(key=KEY, train=True)
rng = np.random.default_rng(0)
X = jnp.asarray(rng.normal(size=(5, 3)), jnp.float32)


@functools.cache
def digits(share=0.25):
    x, y = load_digits(return_X_y=True)
    x = (x / 16).astype(np.float32)
    return train_test_split(x, y, test_size=share, stratify=y, random_state=0)


def cosine(rate, steps):
    return optax.adam(optax.cosine_decay_schedule(rate, steps))


# --- Flow ----------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Pair(Model):
    """Two parts with state and another way through them."""

    def parts(self):
        return {"first": Dense(3), "norm": BatchNorm(momentum=0.0), "last": Dense(2)}

    def forward(self, run, x):
        return run.last(self.body(run, x))

    def body(self, run, x):
        return run.norm(run.first(x))

    def helper(self, x):
        return x


def test_a_flow_uses_the_variables_of_the_whole_and_returns_its_state_whole():
    v = Pair().init(KEY, X)
    body = Flow(Pair(), "body")
    first = Serial(first=Dense(3), norm=BatchNorm(momentum=0.0))
    wanted, state = first.apply(v, X, ctx=TRAIN)
    got, moved = body.apply(v, X, ctx=TRAIN)
    np.testing.assert_array_equal(got, wanted)
    assert list(moved) == list(v.state)
    np.testing.assert_array_equal(moved["norm"]["mean"], state["norm"]["mean"])
    np.testing.assert_array_equal(
        Flow(Pair(), "forward")(v.params, X, state=v.state),
        Pair()(v.params, X, state=v.state),
    )


def test_a_flow_alone_initialises_what_it_needs_as_the_whole_would():
    whole, part = Pair().init(KEY, X), Flow(Pair(), "body").init(KEY, X)
    assert sorted(part.params) == ["first", "norm"]
    for path, leaf in leaf_paths(part.params).items():
        np.testing.assert_array_equal(leaf, leaf_paths(whole.params)[path])


def test_a_flow_of_nothing_is_refused():
    with pytest.raises(UnknownNameError, match=r"no method 'bodies'. Nearest: body"):
        Flow(Pair(), "bodies")
    for no_flow in ("helper", "parts", "init", "__call__"):
        with pytest.raises(UnknownNameError, match=no_flow):
            Flow(Pair(), no_flow)
    with pytest.raises(FieldError, match=r"Flow\.model: expected a Model"):
        Flow(Dense(3), "forward")


# --- Autoencoder ---------------------------------------------------------------------


def test_an_autoencoder_is_its_halves():
    coder = Autoencoder.conv((8, 8, 2), 3, channels=(2, 4))
    x = jnp.asarray(rng.normal(size=(2, 8, 8, 2)), jnp.float32)
    v = jax.jit(coder.init)(KEY, x)
    assert sorted(v.params) == ["decoder", "encoder"]
    code = Flow(coder, "encode")(v.params, x)
    assert code.shape == (2, 3)
    both = Flow(coder, "decode")(v.params, code)
    np.testing.assert_allclose(both, coder(v.params, x), atol=1e-6)
    np.testing.assert_allclose(code, coder.encoder(v.params["encoder"], x), atol=1e-6)
    decoder = coder.decoder.names
    assert [name for name in decoder if "conv" in name] == ["conv2", "conv1"]


def test_shapes_that_cannot_be_coded_are_refused():
    with pytest.raises(FieldError, match=r"extents that 4 divides, to be halved 2"):
        Autoencoder.conv((8, 6, 1), 3)
    with pytest.raises(FieldError, match=r"shape: expected a tuple of 2 or more"):
        Autoencoder.conv((8,), 3)


def test_an_autoencoder_keeps_more_of_digits_than_principal_components():
    x, x_test, _, _ = digits()
    linear = PCA(8).fit(x)
    straight = linear.inverse_transform(linear.transform(x_test))
    fitted = fit(
        Autoencoder.dense((64,), latent=8), (x, x), loss=MeanSquaredError(),
        optimizer=cosine(3e-3, 40 * 21), epochs=40, batch_size=64,
    )  # fmt: skip
    net = Autoencoder.dense((64,), latent=8)
    curved = predict(net, fitted.variables, x_test)
    error, bound = (np.mean((y - x_test) ** 2) for y in (curved, straight))
    assert error < 0.8 * bound


# --- VAE -----------------------------------------------------------------------------

LINEAR = VAE(2, Dense(4), Dense(3))


def test_codes_are_drawn_in_training_and_are_the_mean_in_inference():
    v = LINEAR.init(KEY, X)
    guess, mean, log_variance = LINEAR(v.params, X)
    encoded = Dense(4)(v.params["encoder"], X)
    np.testing.assert_array_equal(mean, encoded[:, :2])
    np.testing.assert_array_equal(log_variance, encoded[:, 2:])
    decoder = functools.partial(Flow(LINEAR, "decode"), v.params)
    np.testing.assert_array_equal(guess, decoder(mean))
    many = jnp.broadcast_to(X[:1], (20_000, 3))
    (drawn, _, _), _ = LINEAR.apply(v, many, ctx=TRAIN)
    codes = jnp.linalg.lstsq(v.params["decoder"]["kernel"].T, drawn.T)[0].T
    np.testing.assert_allclose(codes.mean(0), mean[0], atol=0.05)
    np.testing.assert_allclose(jnp.log(codes.var(0)), log_variance[0], atol=0.05)
    with pytest.raises(MissingKeyError, match=r"vae: needs a random key"):
        Serial(vae=LINEAR).apply(
            Variables({"vae": v.params}), X, ctx=Context(train=True)
        )


def test_samples_are_decoded_draws_from_the_prior():
    v = LINEAR.init(KEY, X)
    draw = jax.jit(LINEAR.sample, static_argnums=2)
    codes = jax.random.normal(KEY, (4, 2))
    np.testing.assert_allclose(
        draw(v, KEY, 4), Dense(3)(v.params["decoder"], codes), atol=1e-6
    )


def test_an_encoder_of_the_wrong_size_is_refused_by_path():
    said = r"net \(VAE\): expected 4 numbers from the encoder.*\[5, 3\].*Dense\(4\)"
    with pytest.raises(ShapeMismatchError, match=said):
        Serial(net=VAE(2, Dense(3), Dense(3))).init(KEY, X)


def test_the_bound_is_what_integrals_say():
    guess, target = rng.normal(size=(2, 4, 3))
    mean, log_variance = rng.normal(size=(2, 4, 2))

    def divergence(m, s):
        own, prior = scipy.stats.norm(m, s), scipy.stats.norm()

        def density(z):
            return own.pdf(z) * (own.logpdf(z) - prior.logpdf(z))

        return scipy.integrate.quad(density, m - 12 * s, m + 12 * s)[0]

    spread = np.exp(log_variance / 2)
    kl = np.vectorize(divergence)(mean, spread).sum(1)
    given = tuple(np.float32(a) for a in (guess, mean, log_variance))
    wanted = 0.5 * kl - scipy.stats.norm(guess, 0.3).logpdf(target).sum(1)
    got = ELBO("gaussian", 0.5, 0.3, "none")({}, given, np.float32(target))
    np.testing.assert_allclose(got, wanted, rtol=1e-4)
    share = np.float32(scipy.special.expit(target))
    p = scipy.special.expit(guess)
    wanted = kl - (share * np.log(p) + (1 - share) * np.log(1 - p)).sum(1)
    np.testing.assert_allclose(ELBO()({}, given, share), wanted.mean(), rtol=1e-4)
    assert np.isnan(ELBO()({}, given, share + 1))


@pytest.mark.parametrize(
    ("shapes", "said"),
    [
        (((4, 3), (4, 2), (4, 2), (4, 2)), r"expected a target that fits"),
        (((4, 3), (4, 2), (4, 3), (4, 3)), r"a log variance like the mean"),
        (((4, 3), (5, 2), (5, 2), (4, 3)), r"one code for each example"),
        (((4, 3), (4, 2), (4, 3)), r"expected 4 inputs, or 5 with weights"),
    ],
)
def test_a_bound_of_what_does_not_fit_is_refused(shapes, said):
    with pytest.raises(ShapeMismatchError, match=said):
        ELBO()({}, *map(jnp.zeros, shapes))


def test_bounds_that_are_none_are_refused():
    for fields, said in (
        ({"likelihood": "normal"}, r"ELBO\.likelihood"),
        ({"beta": -1.0}, r"ELBO\.beta"),
        ({"scale": 0.0}, r"ELBO\.scale"),
    ):
        with pytest.raises(FieldError, match=said):
            ELBO(**fields)


def test_a_vae_finds_a_better_bound_than_a_model_without_codes():
    x, x_test, _, _ = digits()
    vae = VAE.dense((64,), latent=6)
    fitted = fit(
        vae, (x, x), loss=ELBO(), optimizer=cosine(3e-3, 60 * 21), epochs=60,
        batch_size=64,
    )  # fmt: skip
    v = fitted.variables
    outputs, _ = vae.apply(v, jnp.asarray(x_test), ctx=TRAIN)
    bound = float(ELBO()({}, outputs, x_test))
    # With the code ignored, the best there is are the pixels' own means.
    mean = x.mean(0).clip(1e-3, 1 - 1e-3)
    alone = -(x_test * np.log(mean) + (1 - x_test) * np.log(1 - mean)).sum(1).mean()
    assert bound < alone - 2
    invented = jax.nn.sigmoid(vae.sample(v, KEY, 500))
    assert_like_digits(np.asarray(invented), least=0.02)


# --- GAN -----------------------------------------------------------------------------


def assert_like_digits(invented, least):
    """Nearer to digits than a Gaussian of the same moments, and of every class."""
    x, x_test, _, y_test = digits(0.5)

    def apart(samples):
        squares = ((samples[:, None] - x_test[None]) ** 2).sum(-1)
        return np.sqrt(squares.min(1)).mean()

    moments = np.random.default_rng(0).multivariate_normal(
        x.mean(0), np.cov(x.T), len(invented)
    )
    assert apart(invented) < 0.92 * apart(moments.clip(0, 1).astype(np.float32))
    seen = LogisticRegression(max_iter=2000).fit(x_test, y_test).predict(invented)
    assert (np.bincount(seen, minlength=10) / len(invented)).min() > least


PAIR = Gan(2, Dense(3), Dense(1))
STEP = GanStep(PAIR, optax.sgd(0.1), optax.sgd(0.2))


def test_the_flows_of_a_pair_are_its_networks():
    z = jnp.asarray(rng.normal(size=(5, 2)), jnp.float32)
    v = PAIR.init(KEY, X, z)
    invented = Dense(3)(v.params["generator"], z)
    scores = [Dense(1)(v.params["discriminator"], x) for x in (X, invented)]
    jax.tree.map(np.testing.assert_array_equal, list(PAIR(v.params, X, z)), scores)
    for name, given, wanted in (
        ("generate", z, invented), ("judge", X, scores[0]), ("fool", z, scores[1]),
    ):  # fmt: skip
        np.testing.assert_array_equal(Flow(PAIR, name)(v.params, given), wanted)


def test_a_step_is_a_turn_of_each_and_the_second_sees_what_the_first_learnt():
    v = STEP.init(KEY, X)
    now = v.state
    root = jax.random.fold_in(now["key"], 0)

    def noise(side):
        return jax.random.normal(fold_name(fold_name(root, side), "noise"), (5, 2))

    def affine(params, x):
        return x @ params["kernel"] + params["bias"][None]

    def judging(judge, maker):
        seen = affine(judge, X)
        invented = affine(judge, affine(maker, noise("discriminator")))
        return jnp.mean(jnp.log1p(jnp.exp(-seen)) + jnp.log1p(jnp.exp(invented)))

    def deceiving(maker, judge):
        score = affine(judge, affine(maker, noise("generator")))
        return jnp.mean(jnp.log1p(jnp.exp(-score)))

    maker, judge = now["params"]["generator"], now["params"]["discriminator"]
    first, slope = jax.value_and_grad(judging)(judge, maker)
    judge = jax.tree.map(lambda p, g: p - 0.2 * g, judge, slope)
    second, slope = jax.value_and_grad(deceiving)(maker, judge)
    maker = jax.tree.map(lambda p, g: p - 0.1 * g, maker, slope)
    logs, state = STEP.apply(v, X, ctx=Context(train=True))
    np.testing.assert_allclose(logs["discriminator"], first, rtol=1e-5)
    np.testing.assert_allclose(logs["generator"], second, rtol=1e-5)
    wanted = {"generator": maker, "discriminator": judge}
    for path, leaf in leaf_paths(state["params"]).items():
        np.testing.assert_allclose(leaf, leaf_paths(wanted)[path], atol=1e-6)
    assert int(state["step"]) == 1


def test_in_inference_a_step_measures_and_moves_nothing():
    v = STEP.init(KEY, X)
    logs, state = STEP.apply(v, X, ctx=Context())
    jax.tree.map(np.testing.assert_array_equal, state["params"], v.state["params"])
    assert int(state["step"]) == 0
    z = jax.random.normal(
        fold_name(
            fold_name(jax.random.fold_in(v.state["key"], 0), "generator"), "noise"
        ),
        (5, 2),
    )
    score = Flow(PAIR, "fool")(v.state["params"], z)
    wanted = jnp.log1p(jnp.exp(-score)).mean()
    np.testing.assert_allclose(logs["generator"], wanted, rtol=1e-5)


@pytest.mark.parametrize(
    "claim",
    [
        "jit_equals_eager", "vmap_equals_a_loop", "bfloat16_stays_bfloat16",
        "equal_ones_are_traced_once", "state_moves_only_in_training",
        "randomness_needs_a_key",
    ],
)  # fmt: skip
def test_a_step_keeps_the_claims_of_a_mapping(claim):
    example = Example(STEP, (X,), batched=False, differentiable=False, value=False)
    CLAIMS[claim](Probe.of(example))


def test_a_step_of_what_cannot_be_trained_is_refused():
    with pytest.raises(FieldError, match=r"GanStep\.discriminator: expected an optax"):
        GanStep(PAIR, optax.sgd(0.1), optax.adam)
    with pytest.raises(FieldError, match=r"GanStep\.gan: expected a Gan"):
        GanStep(Dense(2), optax.sgd(0.1), optax.sgd(0.1))
    v = STEP.init(KEY, X)
    with pytest.raises(MissingVariablesError, match=r"GanStep\).*state that its init"):
        STEP.apply(Variables(v.state["params"]), X, ctx=Context(train=True))
    with pytest.raises(ShapeMismatchError, match=r"GanStep\): expects 1 array"):
        STEP.apply(v, X, X, ctx=Context(train=True))


def test_a_pair_learns_to_write_digits():
    x = jnp.asarray(digits(0.5)[0])
    gan = Gan.dense((64,), latent=16)
    step = GanStep(gan, optax.adam(1e-3, b1=0.5), optax.adam(1e-3, b1=0.5))

    @jax.jit
    def train(key, order):
        def one(state, chosen):
            own = Variables({}, state)
            return step.apply(own, x[chosen], ctx=Context(train=True))[::-1]

        return jax.lax.scan(one, step.init(key, x[:64]).state, order)

    order = np.random.default_rng(0).integers(0, len(x), (2000, 64))
    state, logs = train(KEY, order)
    assert jnp.isfinite(logs["generator"]).all()
    v = Variables(state["params"], state["state"])
    assert_like_digits(np.asarray(gan.sample(v, KEY, 500)), least=0.02)
