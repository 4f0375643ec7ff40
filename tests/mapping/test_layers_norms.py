"""Norms, and kernels computed from others, against numpy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mapping import Context, Serial, Variables, leaf_paths
from mapping.errors import (
    FieldError,
    MissingVariablesError,
    ShapeMismatchError,
    UnknownPathError,
)
from mapping.layers import (
    BatchNorm,
    Conv,
    Dense,
    Dropout,
    Embed,
    Flatten,
    GroupNorm,
    InstanceNorm,
    LayerNorm,
    RMSNorm,
    SpectralNorm,
    WeightNorm,
)

KEY = jax.random.key(0)
UNIFORM = jax.nn.initializers.uniform()  # compiles in a fifth of the default's time
TRAIN = Context(jax.random.key(1), train=True)
NORMS = {
    "batch": BatchNorm(),
    "layer": LayerNorm(),
    "rms": RMSNorm(),
    "group": GroupNorm(2),
    "instance": InstanceNorm(),
}
every_norm = pytest.mark.parametrize("norm", NORMS.values(), ids=NORMS)
WITH_MEAN = [name for name in NORMS if name != "rms"]


def random(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def spec(*shape):
    return jax.ShapeDtypeStruct(shape, "float32")


def close(actual, expected, tolerance=1e-5):
    """Values of order one, in float32."""
    np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance)


AXES = {
    "batch": (0, 1, 2),
    "layer": (3,),
    "rms": (3,),
    "group": (1, 2, 4),
    "instance": (1, 2),
}


@pytest.mark.parametrize("name", NORMS)
def test_a_norm_standardises_over_its_axes(name):
    x = 3 * random(2, 3, 4, 6) + 2
    wide = x.astype(np.float64)
    wide = wide.reshape(2, 3, 4, 2, 3) if name == "group" else wide
    mean = 0.0 if name == "rms" else wide.mean(AXES[name], keepdims=True)
    square = np.mean((wide - mean) ** 2, AXES[name], keepdims=True)
    expected = ((wide - mean) / np.sqrt(square + 1e-5)).reshape(x.shape)
    params = {"scale": random(6, seed=1), "bias": random(6, seed=2)}
    if name == "rms":
        params.pop("bias")
    state = NORMS[name].init(KEY, x).state
    y, _ = NORMS[name].apply(Variables(params, state), x, ctx=TRAIN)
    close(y, expected * params["scale"] + params.get("bias", 0.0))


@pytest.mark.parametrize("name", WITH_MEAN)
def test_a_norm_does_not_lose_a_variance_beside_a_large_mean(name):
    # One unit in 1e5 is 64 steps of float32; the mean of squares would lose it all.
    x = (1e5 + 5 * random(4, 50, 6)).astype(np.float32)
    wide = x.astype(np.float64) - 1e5
    axes = {"batch": (0, 1), "layer": (2,), "group": (1, 3), "instance": (1,)}[name]
    wide = wide.reshape(4, 50, 2, 3) if name == "group" else wide
    wide = wide - wide.mean(axes, keepdims=True)
    expected = (wide / wide.std(axes, keepdims=True)).reshape(x.shape)
    v = NORMS[name].init(KEY, x)
    y, _ = NORMS[name].apply(v, x, ctx=TRAIN)
    close(y, expected, 5e-3)


@pytest.mark.parametrize(
    ("norm", "shape"),
    [
        (LayerNorm(), (6,)),
        (RMSNorm(), (6,)),
        (GroupNorm(2, spatial=2), (3, 4, 6)),
        (GroupNorm(2, spatial=1), (4, 6)),
        (InstanceNorm(spatial=2), (3, 4, 6)),
    ],
    ids=str,
)
@pytest.mark.parametrize("batch", [(), (2,), (2, 3)], ids=str)
def test_a_norm_of_each_example_takes_any_number_of_batch_axes(norm, shape, batch):
    x = random(*batch, *shape)
    params = norm.init(KEY, spec(*shape)).params
    y = norm(params, x)
    for i in np.ndindex(*batch):
        close(y[i], norm(params, x[i]), 1e-6)


@every_norm
def test_a_norm_s_params_start_as_nothing_and_can_be_left_out(norm):
    x = random(4, 3, 6)
    params = norm.init(KEY, x).params
    np.testing.assert_array_equal(params["scale"], np.ones(6))
    assert not np.any(params.get("bias", 0))
    bare = {"use_scale": False}
    if "bias" in params:
        bare["use_bias"] = False
    plain = type(norm)(**({"groups": 2} if norm.kind == "GroupNorm" else {}), **bare)
    made = plain.init(KEY, x)
    assert made.params == {}
    close(plain({}, x, state=made.state), norm(params, x, state=made.state), 1e-6)


@every_norm
def test_a_norm_s_params_start_as_said(norm):
    fields = {"scale_init": jax.nn.initializers.zeros}
    if norm.kind != "RMSNorm":
        fields["bias_init"] = jax.nn.initializers.ones
    if norm.kind == "GroupNorm":
        fields["groups"] = 2
    params = type(norm)(**fields).init(KEY, spec(4, 3, 6)).params
    np.testing.assert_array_equal(params["scale"], np.zeros(6))
    np.testing.assert_array_equal(params.get("bias", np.ones(6)), np.ones(6))


@every_norm
def test_a_norm_names_features_that_do_not_fit(norm):
    v = norm.init(KEY, spec(4, 3, 6))
    with pytest.raises(
        ShapeMismatchError, match=r"params expect 6 features in.*Re-run"
    ):
        norm(v.params, random(4, 3, 8), state=v.state)


def test_a_batch_norm_without_params_still_knows_its_features():
    norm = BatchNorm(use_bias=False, use_scale=False)
    state = norm.init(KEY, spec(4, 3)).state
    with pytest.raises(ShapeMismatchError, match="params expect 3 features"):
        norm({}, random(4, 2), state=state)


@pytest.mark.parametrize(
    ("norm", "x", "message"),
    [
        (GroupNorm(4), random(2, 3, 6), r"4 groups divide|Number of groups \(4\)"),
        (GroupNorm(2, spatial=2), random(3, 6), "at least 3 axes"),
        (InstanceNorm(), random(3, 6), r"at least 3 axes \(batch, space, channels\)"),
        (InstanceNorm(spatial=2), random(3, 6), r"at least 3 axes \(space, channels\)"),
        (LayerNorm((-2, -1)), random(6), r"\(LayerNorm\): cannot take float32\[6\]"),
    ],
    ids=str,
)
def test_a_norm_names_an_input_that_it_cannot_take(norm, x, message):
    with pytest.raises(ShapeMismatchError, match=rf"^net/norm \({norm.kind}\).*"):
        Serial(net=Serial(norm=norm)).init(KEY, x)
    params = {"scale": jnp.ones(6), "bias": jnp.zeros(6)}
    with pytest.raises(ShapeMismatchError, match=message):
        norm(params, x)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: BatchNorm(1.0), r"^BatchNorm\.momentum: .*\[0, 1\), got 1\.0"),
        (lambda: GroupNorm(0), r"^GroupNorm\.groups: .*got 0"),
        (lambda: GroupNorm(2, spatial=0), r"^GroupNorm\.spatial: .*>= 1, got 0"),
        (lambda: InstanceNorm(spatial=1.0), r"^InstanceNorm\.spatial: .*got 1\.0"),
        (lambda: SpectralNorm(Dense(2), steps=0), r"^SpectralNorm\.steps: .*got 0"),
    ],
)
def test_a_field_that_makes_no_norm_is_refused_at_once(make, message):
    with pytest.raises(FieldError, match=message):
        make()


# Batch statistics over a named axis


def test_batch_norm_over_an_axis_is_that_of_the_whole_batch():
    x = 2 * random(4, 5, 3) + 1
    norm = BatchNorm(axis_name="devices")
    v = norm.init(KEY, spec(5, 3))
    apply = functools.partial(norm.apply, v, ctx=TRAIN)
    parts, states = jax.vmap(apply, axis_name="devices")(x)
    whole, state = BatchNorm().apply(v, x.reshape(20, 3), ctx=TRAIN)
    close(parts.reshape(20, 3), whole)
    for name in ("mean", "var"):
        for one in states[name]:
            close(one, state[name])
    alone, _ = jax.vmap(functools.partial(BatchNorm().apply, v, ctx=TRAIN))(x)
    assert not np.allclose(alone, parts)


def test_batch_norm_outside_of_its_axis_says_so():
    norm = BatchNorm(axis_name="devices")
    v = norm.init(KEY, spec(5, 3))
    with pytest.raises(
        FieldError, match=r"\(BatchNorm\): expected axis_name.*got 'devices'"
    ):
        norm.apply(v, random(5, 3), ctx=TRAIN)
    norm(v.params, random(5, 3), state=v.state)  # inference averages nothing


# Weight norm


def test_weight_norm_starts_as_the_mapping_it_is_around():
    x = random(2, 6, 5, 3)
    conv, head = Conv(4, (3, 3), kernel_init=UNIFORM), Dense(2, kernel_init=UNIFORM)
    net = conv >> jax.nn.relu >> Flatten() >> head
    inner, outer = net.init(KEY, x), WeightNorm(net).init(KEY, x)
    assert sorted(leaf_paths(outer.params["scale"])) == ["conv/kernel", "dense/kernel"]
    close(WeightNorm(net)(outer.params, x), net(inner.params, x))


@pytest.mark.parametrize("axis", [-1, 0, None])
def test_weight_norm_gives_kernels_of_the_learned_length(axis):
    x, layer = (
        np.eye(3, dtype=np.float32),
        WeightNorm(Dense(4, False, UNIFORM), axis=axis),
    )
    params = layer.init(KEY, x).params
    lengths = np.abs(random(*params["scale"]["kernel"].shape)) + 0.5
    effective = np.asarray(layer({**params, "scale": {"kernel": lengths}}, x))
    others = {-1: 0, 0: 1, None: None}[axis]
    close(np.linalg.norm(effective, axis=others), lengths)
    direction = np.asarray(params["inner"]["kernel"])
    close(
        effective / np.linalg.norm(effective, axis=others, keepdims=True),
        direction / np.linalg.norm(direction, axis=others, keepdims=True),
    )


def test_weight_norm_does_not_feel_the_length_of_its_direction():
    x, layer = random(2, 3), WeightNorm(Dense(4))
    params = layer.init(KEY, x).params
    longer = {**params, "inner": jax.tree.map(lambda v: 7 * v, params["inner"])}
    close(layer(longer, x), layer(params, x))  # the bias is zero


def test_weight_norm_of_a_kernel_of_zeros_is_finite():
    x, layer = random(2, 3), WeightNorm(Dense(4, kernel_init=jax.nn.initializers.zeros))
    params = layer.init(KEY, x).params
    grads = jax.grad(lambda p: layer(p, x).sum())(params)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))
    assert not np.asarray(layer(params, x)).any()


def test_weight_norm_takes_other_leaves_by_name_and_by_path():
    layer = WeightNorm(Embed(5, 3, UNIFORM), leaf="embedding", axis=0)
    params = layer.init(KEY, jnp.array([0])).params
    assert params["scale"]["embedding"].shape == (5,)
    net = WeightNorm(
        Dense(4, kernel_init=UNIFORM) >> Dense(2, kernel_init=UNIFORM), leaf="dense_2/*"
    )
    own = net.init(KEY, spec(1, 3)).params["scale"]
    assert sorted(leaf_paths(own)) == ["dense_2/bias", "dense_2/kernel"]


@pytest.mark.parametrize(
    "layer", [WeightNorm(Dense(4, kernel_init=UNIFORM)), SpectralNorm(Dense(4))]
)
def test_a_norm_of_kernels_passes_state_randomness_and_mode_on(layer):
    inner = Serial(
        dense=Dense(4, kernel_init=UNIFORM), norm=BatchNorm(), drop=Dropout(0.5)
    )
    outer = type(layer)(inner, leaf="kernel")
    x = random(8, 3)
    v = outer.init(KEY, x)
    y, state = outer.apply(v, x, ctx=TRAIN)
    assert (np.asarray(y) == 0).any()
    assert state["inner"]["norm"]["mean"].any()
    assert not v.state["inner"]["norm"]["mean"].any()
    z, still = outer.apply(v, x, ctx=Context())
    assert (np.asarray(z) != 0).all()
    jax.tree.map(np.testing.assert_array_equal, still, v.state)


@pytest.mark.parametrize("kind", [WeightNorm, SpectralNorm])
def test_a_norm_of_kernels_says_if_there_are_none(kind):
    net = Serial(net=kind(Dense(4, kernel_init=UNIFORM) >> jax.nn.relu, leaf="weight"))
    with pytest.raises(
        UnknownPathError,
        match=rf"^net \({kind.__name__}\): expected a param called 'weight' in Serial, "
        r"got \['dense/bias', 'dense/kernel'\]\. Say which",
    ):
        net.init(KEY, spec(1, 3))


def test_a_norm_of_kernels_says_if_its_variables_are_missing():
    layer, x = WeightNorm(Dense(4, kernel_init=UNIFORM)), random(2, 3)
    params = layer.init(KEY, x).params
    with pytest.raises(MissingVariablesError, match=r"\(WeightNorm\): expects var"):
        layer({"inner": params["inner"]}, x)
    with pytest.raises(MissingVariablesError, match=r"for \['kernel'\], got those for"):
        layer({**params, "scale": {}}, x)
    spectral = SpectralNorm(Dense(4))
    with pytest.raises(MissingVariablesError, match=r"\(SpectralNorm\): expects var"):
        spectral(spectral.init(KEY, x).params, x)


# Spectral norm


def largest(kernel):
    matrix = np.asarray(kernel, np.float64).reshape(-1, kernel.shape[-1])
    return np.linalg.svd(matrix, compute_uv=False)[0]


@pytest.mark.parametrize(
    ("inner", "shape"),
    [
        (Dense(5, kernel_init=UNIFORM), (2, 7)),
        (Conv(4, (3, 2), kernel_init=UNIFORM), (1, 5, 5, 3)),
        (Conv(1, (3,), kernel_init=UNIFORM), (1, 5, 2)),
    ],
)
def test_spectral_norm_divides_by_the_largest_singular_value(inner, shape):
    layer = SpectralNorm(inner, steps=200)
    x = random(*shape)
    v = layer.init(KEY, x)
    y, state = layer.apply(v, x, ctx=TRAIN)
    kernel = v.params["inner"]["kernel"]
    divided = {**v.params["inner"], "kernel": kernel / largest(kernel)}
    close(y, inner(divided, x), 1e-4)
    close(layer(v.params, x, state=state), y, 1e-6)


def test_spectral_norm_iterates_in_training_only():
    layer, x = SpectralNorm(Dense(5, kernel_init=UNIFORM)), random(2, 7)
    v = layer.init(KEY, x)
    skewed = {"kernel": jnp.array([1.0, 0, 0, 0, 0])}
    v = Variables(v.params, {**v.state, "u": skewed})
    _, still = layer.apply(v, x, ctx=Context())
    jax.tree.map(np.testing.assert_array_equal, still, v.state)
    _, moved = layer.apply(v, x, ctx=TRAIN)
    kernel = np.asarray(v.params["inner"]["kernel"], np.float64)
    u = kernel.T @ np.asarray(v.state["v"]["kernel"], np.float64)
    u /= np.linalg.norm(u)
    close(moved["u"]["kernel"], u)
    w = kernel @ u
    close(moved["v"]["kernel"], w / np.linalg.norm(w))


def test_spectral_norm_follows_a_kernel_that_grows():
    layer, x = SpectralNorm(Dense(5, False, UNIFORM)), random(2, 7)
    v = layer.init(KEY, x)
    tripled = jax.tree.map(lambda kernel: 3 * kernel, v.params)
    close(layer(tripled, x, state=v.state), layer(v.params, x, state=v.state))


def test_spectral_norm_of_a_kernel_of_zeros_is_finite():
    layer = SpectralNorm(Dense(4, kernel_init=jax.nn.initializers.zeros))
    x = random(2, 3)
    v = layer.init(KEY, x)

    def total(params):
        return layer.apply(Variables(params, v.state), x, ctx=TRAIN)[0].sum()

    grads = jax.grad(total)(v.params)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))


def test_spectral_norm_of_a_number_is_refused():
    layer = SpectralNorm(jax.nn.relu >> Dense(2), leaf="*")
    layer.init(KEY, spec(1, 3))
    from mapping.layers import PReLU

    with pytest.raises(FieldError, match=r"\(SpectralNorm\): .*leaves of one axis"):
        SpectralNorm(PReLU(), leaf="negative_slope").init(KEY, spec(1, 3))
