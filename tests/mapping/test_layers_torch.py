"""Stock layers give torch's numbers, given torch's weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mapping import Context, Variables
from mapping.layers import (
    Activation,
    AvgPool,
    BatchNorm,
    Bilinear,
    Conv,
    ConvTranspose,
    Dense,
    DepthwiseConv,
    Embed,
    GlobalAvgPool,
    GlobalMaxPool,
    GroupNorm,
    InstanceNorm,
    LayerNorm,
    MaxPool,
    PReLU,
    RMSNorm,
    SpectralNorm,
    WeightNorm,
)

torch = pytest.importorskip("torch")
nn, F = torch.nn, torch.nn.functional
pytestmark = pytest.mark.torch

TRAIN = Context(jax.random.key(1), train=True)
SIDES = (7, 6, 5)


def random(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def close(actual, expected, tolerance=1e-5):
    """Sums of up to 100 products of order one, in float32 both."""
    expected = expected.detach().numpy() if torch.is_tensor(expected) else expected
    np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance)


def first(x):
    """Channels to the front, as torch has them."""
    return torch.from_numpy(np.moveaxis(np.asarray(x), -1, 1).copy())


def last(x):
    """Channels to the end, as here."""
    return np.moveaxis(x.detach().numpy(), 1, -1)


def filled(module, seed=5):
    """A torch module with generic weights."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)
    return module


def kernel_of(weight):
    """(out, in, *space) to (*space, in, out)."""
    return np.moveaxis(weight.detach().numpy(), (0, 1), (-1, -2))


# Convolutions


CONVOLUTIONS = [
    {"axes": 1},
    {"axes": 1, "stride": 2, "padding": 1, "dilation": 2},
    {"axes": 2, "stride": 2, "padding": 1},
    {"axes": 2, "stride": (1, 2), "padding": (2, 0), "dilation": (1, 2), "groups": 2},
    {"axes": 1, "padding": "same", "dilation": 2},
    {"axes": 2, "bias": False, "groups": 4},
    {"axes": 3, "stride": (2, 1, 2), "padding": 1},
]


@pytest.mark.parametrize("options", CONVOLUTIONS, ids=str)
def test_conv_is_that_of_torch(options):
    options = dict(options)
    axes = options.pop("axes")
    x, size = random(2, *SIDES[:axes], 4), (3, 2, 3)[:axes]
    kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[axes - 1]
    reference = filled(kind(4, 8, size, **options))
    padding = options.get("padding", 0)
    conv = Conv(
        8,
        size,
        strides=options.get("stride", 1),
        padding=padding.upper() if padding == "same" else padding,
        dilation=options.get("dilation", 1),
        groups=options.get("groups", 1),
        use_bias=options.get("bias", True),
    )
    params = {"kernel": kernel_of(reference.weight)}
    if conv.use_bias:
        params["bias"] = reference.bias.detach().numpy()
    close(jax.jit(conv)(params, x), last(reference(first(x))))


TRANSPOSED = [
    {"axes": 1},
    {"axes": 1, "stride": 2, "padding": 1, "output_padding": 1},
    {"axes": 2, "stride": 2},
    {"axes": 2, "stride": 3, "padding": 1, "output_padding": (2, 1)},
    {"axes": 2, "stride": 2, "padding": 2, "dilation": 2},
    {"axes": 3, "stride": 2, "padding": 1},
]


@pytest.mark.parametrize("options", TRANSPOSED, ids=str)
def test_transposed_conv_is_that_of_torch_with_its_kernel_flipped(options):
    options = dict(options)
    axes = options.pop("axes")
    x, size = random(2, *SIDES[:axes], 3), (3, 2, 3)[:axes]
    kind = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)[axes - 1]
    reference = filled(kind(3, 4, size, **options))

    def each(name, default):
        value = options.get(name, default)
        return value if isinstance(value, tuple) else (value,) * axes

    pads = tuple(
        (d * (k - 1) - p, d * (k - 1) - p + extra)
        for k, d, p, extra in zip(
            size,
            each("dilation", 1),
            each("padding", 0),
            each("output_padding", 0),
            strict=True,
        )
    )
    conv = ConvTranspose(
        4,
        size,
        strides=options.get("stride", 1),
        padding=pads,
        dilation=options.get("dilation", 1),
    )
    kernel = np.moveaxis(reference.weight.detach().numpy(), (0, 1), (-2, -1))
    params = {
        "kernel": np.flip(kernel, tuple(range(axes))),
        "bias": reference.bias.detach().numpy(),
    }
    close(jax.jit(conv)(params, x), last(reference(first(x))))


def test_an_unpadded_transposed_conv_is_valid():
    x, reference = random(2, 5, 4, 3), filled(nn.ConvTranspose2d(3, 2, 3, stride=2))
    kernel = np.moveaxis(reference.weight.detach().numpy(), (0, 1), (-2, -1))
    params = {"kernel": kernel[::-1, ::-1], "bias": reference.bias.detach().numpy()}
    conv = ConvTranspose(2, (3, 3), strides=2, padding="VALID")
    close(jax.jit(conv)(params, x), last(reference(first(x))))


@pytest.mark.parametrize("multiplier", [1, 3])
def test_depthwise_conv_is_torch_s_of_as_many_groups_as_channels(multiplier):
    x = random(2, 7, 6, 4)
    reference = filled(
        nn.Conv2d(4, 4 * multiplier, (3, 2), stride=2, padding=1, groups=4)
    )
    conv = DepthwiseConv((3, 2), multiplier, strides=2, padding=1)
    params = {
        "kernel": kernel_of(reference.weight),
        "bias": reference.bias.detach().numpy(),
    }
    close(jax.jit(conv)(params, x), last(reference(first(x))))


# Pooling


@pytest.mark.parametrize("axes", [1, 2, 3])
@pytest.mark.parametrize(
    ("stride", "padding"), [(None, 0), (1, 1), ((2, 1, 2), (1, 0, 1))], ids=str
)
def test_pools_are_those_of_torch(axes, stride, padding):
    x, window = random(2, *SIDES[:axes], 3), (3, 2, 2)[:axes]
    stride = stride[:axes] if isinstance(stride, tuple) else stride
    padding = padding if isinstance(padding, tuple) else (padding,) * 3
    pads = tuple((p, p) for p in padding[:axes])
    most = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[axes - 1]
    mean = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[axes - 1]
    given = (first(x), window, stride, padding[:axes])
    close(MaxPool(window, stride, pads)({}, x), last(most(*given)), 0)
    for counted in (True, False):
        own = AvgPool(window, stride, pads, count_padding=counted)
        expected = mean(*given, count_include_pad=counted)
        close(own({}, x), last(expected), 1e-6)


def test_global_pools_are_torch_s_adaptive_pools_to_one():
    x = random(2, 7, 6, 3)
    mean = last(F.adaptive_avg_pool2d(first(x), 1))
    most = last(F.adaptive_max_pool2d(first(x), 1))
    close(GlobalAvgPool()({}, x), mean[:, 0, 0], 1e-6)
    close(GlobalMaxPool(keep_axes=True)({}, x), most, 0)


# Norms


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_batch_norm_is_that_of_torch_step_by_step(axes):
    kind = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[axes - 1]
    reference = filled(kind(3, momentum=0.2))
    norm = BatchNorm(momentum=0.8)
    params = {
        "scale": reference.weight.detach().numpy(),
        "bias": reference.bias.detach().numpy(),
    }
    state = norm.init(jax.random.key(0), random(4, 3)).state
    train = jax.jit(lambda state, x: norm.apply(Variables(params, state), x, ctx=TRAIN))
    for step in range(3):
        x = 2 * random(4, *SIDES[:axes], 3, seed=step) + 1
        y, state = train(state, x)
        close(y, last(reference(first(x))))
        close(state["mean"], reference.running_mean)
        # torch gathers n / (n - 1) times the variance it divides by; both start at 1.
        n, start = x.size // 3, 0.8 ** (step + 1)
        gathered = (reference.running_var - start) * (n - 1) / n
        close(state["var"], start + gathered)
    reference.eval()
    reference.running_var = torch.from_numpy(np.array(state["var"]))
    close(norm(params, x, state=state), last(reference(first(x))))


@pytest.mark.parametrize("axes", [1, 2])
@pytest.mark.parametrize("affine", [True, False])
def test_layer_norm_is_that_of_torch(axes, affine):
    x = 3 * random(2, 5, 4) + 2
    reference = filled(nn.LayerNorm(x.shape[-axes:], elementwise_affine=affine))
    norm = LayerNorm(tuple(range(-axes, 0)), use_bias=affine, use_scale=affine)
    params = {}
    if affine:
        params = {
            "scale": reference.weight.detach().numpy(),
            "bias": reference.bias.detach().numpy(),
        }
    if affine and axes == 1:
        made = norm.init(jax.random.key(0), x).params
        assert {k: v.shape for k, v in made.items()} == {
            k: v.shape for k, v in params.items()
        }
    close(jax.jit(norm)(params, x), reference(torch.from_numpy(x)))


def test_rms_norm_is_that_of_torch():
    x, reference = random(2, 5, 4), filled(nn.RMSNorm(4, eps=1e-5))
    params = {"scale": reference.weight.detach().numpy()}
    close(jax.jit(RMSNorm())(params, x), reference(torch.from_numpy(x)))


@pytest.mark.parametrize("shape", [(2, 6), (2, 5, 6), (2, 3, 4, 6)], ids=str)
def test_group_norm_is_that_of_torch(shape):
    x, reference = 3 * random(*shape) + 2, filled(nn.GroupNorm(3, 6))
    params = {
        "scale": reference.weight.detach().numpy(),
        "bias": reference.bias.detach().numpy(),
    }
    close(jax.jit(GroupNorm(3))(params, x), last(reference(first(x))))


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_instance_norm_is_that_of_torch(axes):
    kind = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)[axes - 1]
    x = 3 * random(2, *SIDES[:axes], 4) + 2
    reference = filled(kind(4, affine=True))
    params = {
        "scale": reference.weight.detach().numpy(),
        "bias": reference.bias.detach().numpy(),
    }
    close(jax.jit(InstanceNorm())(params, x), last(reference(first(x))))


# Kernels computed from others


def gradients(mapping, variables, x):
    """Of the outputs' sum of squares in training, with the outputs and the state."""

    def total(params):
        y, state = mapping.apply(Variables(params, variables.state), x, ctx=TRAIN)
        return jnp.sum(jnp.square(y)), (y, state)

    return jax.jit(jax.grad(total, has_aux=True))(variables.params)


def test_weight_norm_and_its_gradients_are_those_of_torch():
    x = random(5, 4)
    reference = nn.utils.parametrizations.weight_norm(filled(nn.Linear(4, 3)))
    length, direction = (
        getattr(reference.parametrizations.weight, name)
        for name in ("original0", "original1")
    )
    length.data = length.data * torch.tensor([[2.0], [0.5], [1.0]])
    layer = WeightNorm(Dense(3))
    params = {
        "inner": {
            "kernel": direction.detach().numpy().T,
            "bias": reference.bias.detach().numpy(),
        },
        "scale": {"kernel": length.detach().numpy()[:, 0]},
    }
    y = reference(torch.from_numpy(x))
    (y**2).sum().backward()
    got, (own, _) = gradients(layer, Variables(params, {}), x)
    close(own, y)
    close(got["scale"]["kernel"], length.grad[:, 0], 1e-4)
    close(got["inner"]["kernel"], direction.grad.T, 1e-4)


def test_weight_norm_of_a_conv_is_that_of_torch():
    x = random(2, 7, 6, 3)
    reference = nn.utils.parametrizations.weight_norm(filled(nn.Conv2d(3, 4, 3)))
    own = reference.parametrizations.weight
    layer = WeightNorm(Conv(4, (3, 3), padding="VALID"))
    params = {
        "inner": {
            "kernel": kernel_of(own.original1),
            "bias": reference.bias.detach().numpy(),
        },
        "scale": {"kernel": own.original0.detach().numpy().ravel()},
    }
    close(jax.jit(layer)(params, x), last(reference(first(x))))


def spectral_state(own):
    return {
        "u": {"kernel": own._u.numpy().copy()},
        "v": {"kernel": own._v.numpy().copy()},
    }


@pytest.mark.parametrize("steps", [1, 3])
def test_spectral_norm_goes_the_way_of_torch_step_by_step(steps):
    x = random(5, 4)
    torch.manual_seed(0)
    reference = nn.utils.parametrizations.spectral_norm(
        filled(nn.Linear(4, 3)), n_power_iterations=steps
    )
    own = reference.parametrizations.weight[0]
    weight = reference.parametrizations.weight.original
    # Vectors that have converged would hide a step left out.
    own._u.copy_(F.normalize(torch.tensor([1.0, -2.0, 0.5]), dim=0))
    own._v.copy_(F.normalize(torch.tensor([0.1, 1.0, -1.0, 3.0]), dim=0))
    layer = SpectralNorm(Dense(3), steps=steps)
    params = {
        "inner": {
            "kernel": weight.detach().numpy().T.copy(),
            "bias": reference.bias.detach().numpy(),
        }
    }
    variables = Variables(params, spectral_state(own))
    for _ in range(3):
        reference.zero_grad()
        y = reference(torch.from_numpy(x))
        (y**2).sum().backward()
        got, (mine, state) = gradients(layer, variables, x)
        variables = Variables(params, state)
        close(mine, y)
        close(got["inner"]["kernel"], weight.grad.T, 1e-4)
        close(state["u"]["kernel"], own._u)
        close(state["v"]["kernel"], own._v)
    reference.eval()
    close(layer(params, x, state=state), reference(torch.from_numpy(x)))


def test_spectral_norm_of_a_conv_is_that_of_torch():
    x = random(2, 7, 6, 3)
    torch.manual_seed(0)
    reference = nn.utils.parametrizations.spectral_norm(filled(nn.Conv2d(3, 4, 3)))
    own = reference.parametrizations.weight
    # The rest of the kernel lies (in, *space) there and (*space, in) here.
    v = own[0]._v.numpy().reshape(3, 3, 3).transpose(1, 2, 0).ravel()
    layer = SpectralNorm(Conv(4, (3, 3), padding="VALID"))
    params = {
        "inner": {
            "kernel": kernel_of(own.original),
            "bias": reference.bias.detach().numpy(),
        }
    }
    state = {"u": {"kernel": own[0]._u.numpy()}, "v": {"kernel": v}}
    reference.eval()
    close(jax.jit(layer)(params, x, state=state), last(reference(first(x))))


# The rest


def test_embed_looks_up_as_torch_does():
    numbers = np.array([[4, 0], [2, 2]])
    reference = filled(nn.Embedding(5, 3))
    params = {"embedding": reference.weight.detach().numpy()}
    close(Embed(5, 3)(params, numbers), reference(torch.from_numpy(numbers)), 0)


def test_bilinear_is_that_of_torch():
    a, b, reference = random(2, 5, 3), random(2, 5, 4, seed=1), nn.Bilinear(3, 4, 6)
    filled(reference)
    params = {
        "kernel": reference.weight.detach().numpy().transpose(1, 2, 0),
        "bias": reference.bias.detach().numpy(),
    }
    expected = reference(torch.from_numpy(a), torch.from_numpy(b))
    close(jax.jit(Bilinear(6))(params, a, b), expected)


ACTIVATIONS = {
    "celu": F.celu,
    "elu": F.elu,
    "gelu": lambda x: F.gelu(x, approximate="tanh"),
    "gelu_exact": F.gelu,
    "glu": F.glu,
    "hard_sigmoid": F.hardsigmoid,
    "hard_silu": F.hardswish,
    "hard_swish": F.hardswish,
    "hard_tanh": F.hardtanh,
    "identity": lambda x: x,
    "leaky_relu": F.leaky_relu,
    "log_sigmoid": F.logsigmoid,
    "log_softmax": lambda x: F.log_softmax(x, -1),
    "mish": F.mish,
    "relu": F.relu,
    "relu6": F.relu6,
    "selu": F.selu,
    "sigmoid": F.sigmoid,
    "silu": F.silu,
    "soft_sign": F.softsign,
    "softmax": lambda x: F.softmax(x, -1),
    "softplus": F.softplus,
    "swish": F.silu,
    "tanh": F.tanh,
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_are_those_of_torch(name):
    x = 4 * random(5, 8)
    close(Activation(name)({}, x), ACTIVATIONS[name](torch.from_numpy(x)), 2e-6)


def test_every_activation_has_its_reference_here():
    from mapping.layers.activation import FUNCTIONS

    assert set(FUNCTIONS) == set(ACTIVATIONS)


def test_prelu_is_that_of_torch():
    x, reference = random(5, 4), nn.PReLU()
    params = PReLU().init(jax.random.key(0), x).params
    assert params["negative_slope"] == reference.weight.detach().numpy()
    close(PReLU()(params, x), reference(torch.from_numpy(x)), 0)
