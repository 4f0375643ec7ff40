"""Torch's weights compute here what they compute in torch, and find the way back."""

import dataclasses
import re

import equinox
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from mapping import Built, Serial, outline
from mapping.combinators import Repeat
from mapping.errors import (
    FieldError,
    LoadError,
    ShapeMismatchError,
    UnknownPathError,
)
from mapping.interop import Equinox, Linen, load_torch, to_torch
from mapping.interop.weights.fused import fuse, unfuse
from mapping.layers import (
    Attention,
    BatchNorm,
    Bidirectional,
    Bilinear,
    Conv,
    ConvTranspose,
    Dense,
    DepthwiseConv,
    Embed,
    Flatten,
    GroupNorm,
    GRUCell,
    LayerNorm,
    LSTMCell,
    PReLU,
    Recurrent,
    RMSNorm,
    SimpleCell,
)
from mapping.model import Model

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch
RNG = np.random.default_rng(0)


def random(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def randomised(module):
    """Every weight and statistic away from where it starts."""
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            if tensor.is_floating_point():
                tensor.copy_(torch.randn(tensor.shape) * 0.3)
                if name.endswith("running_var"):
                    tensor.copy_(torch.rand(tensor.shape) + 0.5)
    return module.eval()


def of_torch(module, *inputs):
    with torch.no_grad():
        return module(*map(torch.from_numpy, inputs))


def channels_last(x):
    return np.moveaxis(np.asarray(x), 1, -1)


def close(actual, expected):
    """Float32; sums of up to a few hundred products of order one."""
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


def assert_goes_back(module, mapping, loaded, **options):
    """Written out, the weights are those of the torch module again."""
    back = to_torch(mapping, loaded.variables, **options)
    tensors = {name: torch.from_numpy(array) for name, array in back.items()}
    other = type(module)(*module.made) if hasattr(module, "made") else module
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    other.load_state_dict(tensors, strict=True)
    for name, tensor in other.state_dict().items():
        if "bias_" not in name and "num_batches" not in name:  # two biases are one
            assert torch.equal(tensor, before[name]), name


# Every layer alone


def image_case(module, mapping, *shape):
    return module, mapping, shape


T = torch.nn
IMAGES = {
    "conv 1d": (T.Conv1d(4, 4, 3, padding=1), Conv(4, (3,), padding=1), (2, 4, 6)),
    "conv 2d": (
        T.Conv2d(3, 3, (3, 2), stride=2, dilation=(1, 2)),
        Conv(3, (3, 2), strides=2, dilation=(1, 2), padding="VALID"),
        (2, 3, 7, 8),
    ),
    "conv 3d": (
        T.Conv3d(2, 3, 2, bias=False),
        Conv(3, (2, 2, 2), padding="VALID", use_bias=False),
        (1, 2, 3, 4, 5),
    ),
    "grouped conv": (
        T.Conv2d(4, 6, 3, groups=2, padding=1),
        Conv(6, (3, 3), groups=2, padding=1),
        (2, 4, 5, 5),
    ),
    "depthwise conv": (
        T.Conv2d(3, 6, 3, groups=3, padding=1),
        DepthwiseConv((3, 3), 2, padding=1),
        (2, 3, 5, 5),
    ),
    "transposed conv 1d": (
        T.ConvTranspose1d(3, 3, 3, stride=2),
        ConvTranspose(3, (3,), strides=2, padding="VALID"),
        (2, 3, 5),
    ),
    "transposed conv 2d": (
        T.ConvTranspose2d(4, 4, 3, stride=2, padding=1, output_padding=1),
        ConvTranspose(4, (3, 3), strides=2, padding=((1, 2), (1, 2))),
        (2, 4, 5, 4),
    ),
    "transposed conv of linen's other kind": (
        T.ConvTranspose2d(4, 4, (3, 2)),
        Linen(nn.ConvTranspose(4, (3, 2), padding="VALID", transpose_kernel=True)),
        (2, 4, 5, 4),
    ),
    "batch norm": (T.BatchNorm2d(3), BatchNorm(), (2, 3, 4, 4)),
    "group norm": (T.GroupNorm(2, 4), GroupNorm(2, epsilon=1e-5), (2, 4, 3, 3)),
    "prelu": (T.PReLU(), PReLU(), (2, 3, 4)),
}


@pytest.mark.parametrize("name", IMAGES)
def test_a_layer_with_channels_computes_as_in_torch(name):
    module, mapping, shape = IMAGES[name]
    x = random(*shape)
    expected = channels_last(of_torch(randomised(module), x))
    x = channels_last(x)
    loaded = load_torch(module.state_dict(), mapping, outline(mapping, x)[0])
    variables = loaded.variables
    close(mapping(variables.params, x, state=variables.state), expected)
    assert_goes_back(module, mapping, loaded)


TOKENS = np.array([[1, 4, 0], [2, 2, 3]])
OTHERS = {
    "dense": (T.Linear(4, 4), Dense(4), (random(3, 4),)),
    "layer norm": (T.LayerNorm(4), LayerNorm(epsilon=1e-5), (random(3, 4),)),
    "layer norm of two axes": (
        T.LayerNorm((3, 4)),
        LayerNorm((-2, -1), epsilon=1e-5),
        (random(2, 3, 4),),
    ),
    "rms norm": (T.RMSNorm(4, eps=1e-5), RMSNorm(epsilon=1e-5), (random(3, 4),)),
    "embedding": (T.Embedding(5, 5), Embed(5, 5), (TOKENS,)),
    "bilinear": (T.Bilinear(3, 3, 3), Bilinear(3), (random(2, 3), random(2, 3))),
}


@pytest.mark.parametrize("name", OTHERS)
def test_a_layer_of_features_computes_as_in_torch(name):
    module, mapping, inputs = OTHERS[name]
    expected = of_torch(randomised(module), *inputs)
    into = outline(mapping, *map(jnp.asarray, inputs))[0]
    loaded = load_torch(module.state_dict(), mapping, into)
    close(mapping(loaded.variables.params, *map(jnp.asarray, inputs)), expected)
    assert_goes_back(module, mapping, loaded)


# Models


class CNN(T.Module):
    def __init__(self):
        super().__init__()
        self.features = T.Sequential(
            T.Conv2d(3, 4, 3, padding=1, bias=False),
            T.BatchNorm2d(4),
            T.ReLU(),
            T.Conv2d(4, 4, 3, padding=1, groups=4),
            T.ConvTranspose2d(4, 4, 2, stride=2),
        )
        self.classifier = T.Linear(4 * 8 * 6, 5)

    def forward(self, x):
        return self.classifier(self.features(x).flatten(1))


NET = Serial(
    conv=Conv(4, use_bias=False),
    norm=BatchNorm(),
    act=jax.nn.relu,
    depthwise=DepthwiseConv(),
    up=ConvTranspose(4, (2, 2), strides=2, padding="VALID"),
    flat=Flatten(),
    head=Dense(5),
)
NAMES = {
    "features.0": "conv",
    "features.1": "norm",
    "features.3": "depthwise",
    "features.4": "up",
    "classifier": "head",
}
SMALL = random(2, 3, 4, 3)


def into(mapping, *inputs):
    return outline(mapping, *map(jnp.asarray, inputs))[0]


def test_a_cnn_computes_as_in_torch():
    module = randomised(CNN())
    x = channels_last(SMALL)
    loaded = load_torch(
        module.state_dict(),
        NET,
        into(NET, x),
        names=NAMES,
        flattened={"head": (4, 8, 6)},
    )
    variables = loaded.variables
    close(NET(variables.params, x, state=variables.state), of_torch(module, SMALL))
    assert loaded.matched["features.1.running_var"] == "state/norm/var"
    assert (loaded.missing, loaded.unexpected) == ((), ())
    unordered = load_torch(module.state_dict(), NET, into(NET, x), names=NAMES)
    wrong = NET(unordered.variables.params, x, state=variables.state)
    assert abs(wrong - of_torch(module, SMALL).numpy()).max() > 0.1
    back = {path: name for name, path in NAMES.items()}
    assert_goes_back(module, NET, loaded, names=back, flattened={"head": (4, 8, 6)})


def test_a_lifted_linen_cnn_computes_as_in_torch():
    class LinenCNN(nn.Module):
        @nn.compact
        def __call__(self, x, train=False):
            x = nn.Conv(4, (3, 3), use_bias=False)(x)
            x = nn.relu(nn.BatchNorm(use_running_average=not train)(x))
            x = nn.Conv(4, (3, 3), feature_group_count=4)(x)
            x = nn.ConvTranspose(4, (2, 2), (2, 2), "VALID")(x)
            return nn.Dense(5, name="classifier")(x.reshape(len(x), -1))

    module, x = randomised(CNN()), channels_last(SMALL)
    mapping = Linen(LinenCNN())
    names = {
        "features.0": "Conv_0",
        "features.1": "BatchNorm_0",
        "features.3": "Conv_1",
        "features.4": "ConvTranspose_0",
    }
    loaded = load_torch(
        module.state_dict(),
        mapping,
        into(mapping, x),
        names=names,
        flattened={"classifier": (4, 8, 6)},
    )
    variables = loaded.variables
    close(mapping(variables.params, x, state=variables.state), of_torch(module, SMALL))
    assert loaded.matched["features.1.running_mean"] == (
        "state/batch_stats/BatchNorm_0/mean"
    )


class Classifier(T.Module):
    def __init__(self, kind, bias=True):
        super().__init__()
        self.embed = T.Embedding(6, 4)
        self.rnn = kind(
            4, 3, num_layers=2, bidirectional=True, batch_first=True, bias=bias
        )
        self.head = T.Linear(6, 2)

    def forward(self, tokens):
        outputs, _ = self.rnn(self.embed(tokens))
        return self.head(outputs)


RNN_NAMES = {
    "rnn.l0": "first/forward/cell",
    "rnn.l0_reverse": "first/backward/cell",
    "rnn.l1": "second/forward/cell",
    "rnn.l1_reverse": "second/backward/cell",
}


@pytest.mark.parametrize(
    ("kind", "cell", "bias"),
    [
        (T.LSTM, LSTMCell(3), True),
        (T.GRU, GRUCell(3), True),
        (T.GRU, GRUCell(3), False),
        (T.RNN, SimpleCell(3), True),
    ],
    ids=["lstm", "gru", "gru without biases", "rnn"],
)
def test_a_recurrent_classifier_computes_as_in_torch(kind, cell, bias):
    module = randomised(Classifier(kind, bias))
    layer = Bidirectional(Recurrent(cell))
    net = Serial(embed=Embed(6, 4), first=layer, second=layer, head=Dense(2))
    tokens = np.array([[1, 4, 0, 5], [2, 2, 3, 1]])
    loaded = load_torch(module.state_dict(), net, into(net, tokens), names=RNN_NAMES)
    actual = jax.jit(net)(loaded.variables.params, jnp.asarray(tokens))
    close(actual, of_torch(module, tokens))
    if bias:
        back = {path: name for name, path in RNN_NAMES.items()}
        before = of_torch(module, tokens)
        assert_goes_back(module, net, loaded, names=back)
        close(of_torch(module, tokens), before)


def test_a_linen_cell_computes_as_in_torch():
    module, cell = randomised(T.LSTMCell(4, 4)), Linen(nn.OptimizedLSTMCell(4))
    x, (h, c) = random(2, 4), random(2, 2, 4)
    loaded = load_torch(module.state_dict(), cell, into(cell, (c, h), x))
    carry, _ = cell(loaded.variables.params, (c, h), x)
    expected = module(torch.from_numpy(x), (torch.from_numpy(h), torch.from_numpy(c)))
    close(np.stack(carry[::-1]), torch.stack(expected).detach())


@dataclasses.dataclass(frozen=True)
class EncoderLayer(Model):
    pre_norm: bool

    def parts(self):
        return {
            "attention": Attention(2),
            "up": Dense(16),
            "down": Dense(8),
            "norm1": LayerNorm(epsilon=1e-5),
            "norm2": LayerNorm(epsilon=1e-5),
        }

    def forward(self, run, x):
        def feed(x):
            return run.down(jax.nn.relu(run.up(x)))

        if self.pre_norm:
            x = x + run.attention(run.norm1(x))
            return x + feed(run.norm2(x))
        x = run.norm1(x + run.attention(x))
        return run.norm2(x + feed(x))


@pytest.mark.parametrize("pre_norm", [True, False], ids=["pre-norm", "post-norm"])
def test_a_transformer_encoder_layer_computes_as_in_torch(pre_norm):
    module = randomised(
        T.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=pre_norm)
    )
    block = EncoderLayer(pre_norm)
    names = {"self_attn": "attention", "linear1": "up", "linear2": "down"}
    x = random(2, 5, 8)
    loaded = load_torch(module.state_dict(), block, into(block, x), names=names)
    close(block(loaded.variables.params, x), of_torch(module, x))
    back = {path: name for name, path in names.items()}
    assert_goes_back(module, block, loaded, names=back)


def test_a_matrix_that_is_not_transposed_is_said_to_be_one():
    given = {"fc.weight": random(3, 3), "fc.bias": random(3)}
    net = Serial(fc=Dense(3))
    loaded = load_torch(given, net, into(net, X), kinds={"fc": "matrix"})
    close(net(loaded.variables.params, X), X @ given["fc.weight"] + given["fc.bias"])
    back = to_torch(net, loaded.variables, kinds={"fc": "matrix"})
    assert (back["fc.weight"] == given["fc.weight"]).all()


def test_a_leaf_that_no_rule_is_for_is_copied_only_where_it_is_named():
    mapping = Equinox(Built.of(equinox.nn.Linear, 3, 2), batch_axis="batch")
    given = {f"fc.{leaf}": random(*shape) for leaf, shape in LINEAR_SHAPES.items()}
    target = into(mapping, X)
    with pytest.raises(LoadError, match=r"unexpected: fc\.weight"):
        load_torch(given, mapping, target, names={"fc": ""})
    names = {"fc.weight": "weight", "fc": ""}
    loaded = load_torch(given, mapping, target, names=names)
    expected = X @ given["fc.weight"].T + given["fc.bias"]
    close(mapping(loaded.variables.params, X), expected)


def test_loaded_weights_are_copies():
    module = T.Linear(3, 3)
    loaded = load_torch(module.state_dict(), Dense(3), into(Dense(3), X)).variables
    before = np.array(loaded.params["bias"])
    with torch.no_grad():
        module.bias += 1
    assert (loaded.params["bias"] == before).all()


@pytest.mark.parametrize("own", [{}, {"kdim": 6, "vdim": 4}], ids=["one", "three"])
def test_attention_with_heads_as_axes_computes_as_in_torch(own):
    module = randomised(T.MultiheadAttention(8, 2, batch_first=True, **own))
    mapping = Linen(nn.MultiHeadDotProductAttention(2))
    q, k, v = (
        random(2, 3, 8),
        random(2, 5, own.get("kdim", 8)),
        random(2, 5, own.get("vdim", 8)),
    )
    loaded = load_torch(module.state_dict(), mapping, into(mapping, q, k, v))
    assert loaded.variables.params["query"]["kernel"].shape == (8, 2, 4)
    close(mapping(loaded.variables.params, q, k, v), of_torch(module, q, k, v)[0])
    assert_goes_back(module, mapping, loaded)


def test_repeated_layers_are_stacked():
    module = randomised(
        T.ModuleDict({"blocks": T.Sequential(*(T.Linear(4, 4) for _ in range(3)))})
    )
    net = Serial(deep=Repeat(Dense(4) >> jnp.tanh, 3))
    names, x = {"blocks.*": "deep[*]/dense"}, random(2, 4)
    loaded = load_torch(module.state_dict(), net, into(net, x), names=names)
    expected = x
    for layer in module["blocks"]:
        expected = torch.tanh(layer(torch.as_tensor(expected)))
    close(net(loaded.variables.params, x), expected.detach())
    with pytest.raises(LoadError, match=r"deep/dense/kernel: expected a kernel whose"):
        to_torch(net, loaded.variables)
    convs = Serial(deep=Repeat(Conv(3), 2))
    stacked = convs.init(jax.random.key(0), random(1, 4, 4, 3))
    with pytest.raises(LoadError, match=r"the 4 axes of one layer, got 5: .* copies"):
        to_torch(convs, stacked)
    with pytest.raises(
        LoadError, match=r"params/deep/dense/kernel: expected a tensor for e.* 3 copies"
    ):
        load_torch(
            dict(list(module.state_dict().items())[:4]), net, into(net, x), names=names
        )


# Names


DENSE = Serial(body=Serial(layer_0=Dense(3), layer_1=Dense(3)), head=Dense(2))
PAIR = {
    "layer.0.weight": random(3, 3),
    "layer.0.bias": random(3),
    "layer.1.weight": random(3, 3),
    "layer.1.bias": random(3),
    "fc.weight": random(2, 3),
    "fc.bias": random(2),
}
X = random(2, 3)
LINEAR_SHAPES = {"weight": (2, 3), "bias": (2,)}


def by_hand():
    first, second, head = (
        PAIR[f"{name}.weight"] for name in ("layer.0", "layer.1", "fc")
    )
    hidden = (X @ first.T + PAIR["layer.0.bias"]) @ second.T + PAIR["layer.1.bias"]
    return hidden @ head.T + PAIR["fc.bias"]


@pytest.mark.parametrize(
    "names",
    [
        {"layer": "body/layer", "fc": "head"},
        {"layer.*": "body/layer_*", "fc": "head"},
        {re.compile(r"layer\.(\d)"): r"body/layer_\1", "fc": "head"},
        {"layer.0.weight": "body/layer_0/kernel", "layer": "body/layer", "fc": "head"},
        lambda name: "head" if name == "fc" else f"body/{name}",
    ],
    ids=["prefix", "glob", "pattern", "one array", "function"],
)
def test_names_are_changed_in_several_ways(names):
    loaded = load_torch(PAIR, DENSE, into(DENSE, X), names=names)
    close(DENSE(loaded.variables.params, X), by_hand())


def test_names_that_differ_in_separators_find_each_other():
    given = {
        re.sub("^layer", "body.layer", k).replace("fc", "head"): v
        for k, v in PAIR.items()
    }
    loaded = load_torch(given, DENSE, into(DENSE, X))
    close(DENSE(loaded.variables.params, X), by_hand())
    assert (
        str(loaded).splitlines()[0]
        == "body.layer.0.weight -> params/body/layer_0/kernel"
    )


def test_an_empty_name_is_the_root():
    given = {f"model.{name}": tensor for name, tensor in PAIR.items()}
    names = {"model.fc": "head", "model.layer": "body/layer", "model": ""}
    with pytest.raises(UnknownPathError, match=r"names\['model'\]: fits no array"):
        load_torch(given, DENSE, into(DENSE, X), names=names)
    del names["model"]
    assert load_torch(given, DENSE, into(DENSE, X), names=names).unexpected == ()
    inner = {f"m.{name}": PAIR[f"fc.{name}"] for name in ("weight", "bias")}
    assert load_torch(inner, Dense(2), into(Dense(2), X), names={"m": ""}).missing == ()


def test_what_is_left_out_and_left_over_is_said():
    names = {"layer": "body/layer", "fc": None}
    loaded = load_torch(
        PAIR | {"extra.weight": random(2)},
        DENSE,
        DENSE.init(jax.random.key(0), X),
        names=names,
        strict=False,
    )
    assert loaded.unexpected == ("extra.weight",)
    assert loaded.missing == ("params/head/bias", "params/head/kernel")
    assert loaded.variables.params["head"]["kernel"].shape == (3, 2)
    assert str(loaded).splitlines()[-2:] == [
        "(missing) -> params/head/kernel",
        "extra.weight -> (unexpected)",
    ]
    with pytest.raises(
        LoadError, match=r"1 unexpected and 2 missing(.|\n)*extra\.weight"
    ) as error:
        load_torch(
            PAIR | {"extra.weight": random(2)}, DENSE, into(DENSE, X), names=names
        )
    assert "missing: params/head/kernel" in str(error.value)


# Sources


def test_a_safetensors_file_is_read(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file(PAIR, path)
    names = {"layer": "body/layer", "fc": "head"}
    for source in (path, str(path)):
        loaded = load_torch(source, DENSE, into(DENSE, X), names=names)
        close(DENSE(loaded.variables.params, X), by_hand())
    back = {"body/layer_0": "layer.0", "body/layer_1": "layer.1", "head": "fc"}
    save_file(to_torch(DENSE, loaded.variables, names=back), path)
    again = load_torch(path, DENSE, into(DENSE, X), names=names)
    close(DENSE(again.variables.params, X), by_hand())


def test_bfloat16_is_read_exactly_and_dtypes_stay_those_of_the_mapping(tmp_path):
    module = T.Linear(3, 2).to(torch.bfloat16)
    exact = module.weight.detach().float().numpy().T
    loaded = load_torch(module.state_dict(), Dense(2), into(Dense(2), X))
    kernel = loaded.variables.params["kernel"]
    assert kernel.dtype == jnp.float32
    assert (kernel == exact).all()
    half = jax.tree.map(
        lambda s: jax.ShapeDtypeStruct(s.shape, jnp.bfloat16), into(Dense(2), X)
    )
    low = load_torch(module.state_dict(), Dense(2), half).variables
    assert low.params["kernel"].dtype == jnp.bfloat16
    assert (low.params["kernel"].astype(jnp.float32) == exact).all()
    from safetensors.torch import save_file as save

    save(module.state_dict(), tmp_path / "low.safetensors")
    file = load_torch(tmp_path / "low.safetensors", Dense(2), half).variables
    assert (file.params["kernel"] == low.params["kernel"]).all()
    assert to_torch(Dense(2), low)["weight"].dtype == np.float32


# Refusals


SQUARE = into(Conv(3), random(1, 4, 4, 3))
WEIGHT = {"weight": random(3, 3, 3, 3), "bias": random(3)}


class Opaque(nn.Module):
    """Nobody can see what is inside."""


def test_a_kernel_whose_layer_is_unknown_is_never_guessed():
    opaque = Linen(Opaque())
    named = {"conv": SQUARE.params}
    target = type(SQUARE)(named)
    given = {f"conv.{k}": v for k, v in WEIGHT.items()}
    with pytest.raises(
        LoadError, match=r"conv\.weight.*conv or conv_transpose.*kinds="
    ):
        load_torch(given, opaque, target)
    kernels = {
        kind: load_torch(given, opaque, target, kinds={"*": kind}).variables
        for kind in ("conv", "conv_transpose")
    }
    plain = load_torch(WEIGHT, Conv(3), SQUARE).variables.params["kernel"]
    assert (kernels["conv"].params["conv"]["kernel"] == plain).all()
    assert (kernels["conv_transpose"].params["conv"]["kernel"] != plain).any()
    with pytest.raises(LoadError, match=r"conv/kernel: expected a kernel whose layout"):
        to_torch(opaque, kernels["conv"])
    back = to_torch(opaque, kernels["conv"], kinds={"conv": "conv"})
    assert (back["conv.weight"] == WEIGHT["weight"]).all()


def test_a_kernel_of_unknown_layer_that_fits_in_one_way_only_is_taken():
    opaque, x = Linen(Opaque()), random(1, 4, 4, 2)
    target = type(SQUARE)({"c": into(Conv(3), x).params})
    given = {"c.weight": random(3, 2, 3, 3), "c.bias": random(3)}
    loaded = load_torch(given, opaque, target).variables.params["c"]
    plain = load_torch(given, Serial(c=Conv(3)), target).variables.params["c"]
    assert (loaded["kernel"] == plain["kernel"]).all()


def dense_into(features=2, given=3):
    return into(Dense(features), random(1, given))


LINEAR = {"weight": random(2, 3), "bias": random(2)}
CELL = Recurrent(LSTMCell(3))


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        (
            lambda: load_torch(3, Dense(2), dense_into()),
            LoadError,
            r"int: expected a dict of tensors.*state_dict\(\)",
        ),
        (
            lambda: load_torch({"weight": 3}, Dense(2), dense_into()),
            LoadError,
            r"dict: expected a dict of tensors",
        ),
        (
            lambda: load_torch("model.pt", Dense(2), dense_into()),
            LoadError,
            r"model\.pt: expected a \.safetensors file.*weights_only=True",
        ),
        (
            lambda: load_torch(LINEAR, Dense(3), dense_into(3)),
            ShapeMismatchError,
            r"weight -> params/kernel: expected what fits \[3, 3\], got \[3, 2\]",
        ),
        (
            lambda: load_torch(LINEAR, Conv(2), SQUARE),
            ShapeMismatchError,
            r"weight -> params/kernel \(conv\): expected what fits",
        ),
        (
            lambda: load_torch(WEIGHT, Dense(2), dense_into()),
            ShapeMismatchError,
            r"weight -> params/kernel",
        ),
        (
            lambda: load_torch(LINEAR, Dense(2), dense_into(), names={"fc": "head"}),
            UnknownPathError,
            r"names\['fc'\]: fits no array\. Nearest:",
        ),
        (
            lambda: load_torch(LINEAR, Dense(2), dense_into(), names=3),
            FieldError,
            r"names: expected a dict or a function, got int",
        ),
        (
            lambda: load_torch(LINEAR, Dense(2), dense_into(), kinds={"": "linear"}),
            FieldError,
            r"kinds\[''\]: expected one of dense, matrix, conv",
        ),
        (
            lambda: load_torch(LINEAR, Dense(2), dense_into(), kinds={"fc": "dense"}),
            UnknownPathError,
            r"kinds\['fc'\]: names no layer with a kernel",
        ),
        (
            lambda: load_torch(
                LINEAR, Dense(2), dense_into(), flattened={"fc": (3, 1, 1)}
            ),
            UnknownPathError,
            r"flattened\['fc'\]: names no dense layer",
        ),
        (
            lambda: load_torch(LINEAR, Dense(2), dense_into(), flattened={"": (2, 2)}),
            ShapeMismatchError,
            r"weight: expected a matrix with 2 \* 2 columns, got \[2, 3\]",
        ),
        (
            lambda: load_torch(
                LINEAR | {"fc.bias": random(2)},
                Dense(2),
                dense_into(),
                names={"fc": ""},
            ),
            LoadError,
            r"params/bias: expected one tensor, got bias and fc\.bias",
        ),
        (
            lambda: load_torch(
                {"a.b.weight": random(2, 3)},
                Dense(2),
                type(SQUARE)(
                    {"a_b": dense_into().params, "a": {"b": dense_into().params}}
                ),
                names={"a.b": "a.b"},
            ),
            LoadError,
            r"a\.b\.weight: expected one layer of this name, got a/b and a_b",
        ),
        (
            lambda: load_torch(
                {"weight": random(2)},
                Dense(2),
                type(SQUARE)({"kernel": random(2, 3), "scale": random(2)}),
            ),
            LoadError,
            r"weight: expected one leaf that torch calls weight, got kernel, scale",
        ),
        (
            lambda: load_torch(
                T.LSTM(3, 4, proj_size=3).state_dict(),
                CELL,
                into(CELL, random(1, 2, 3)),
            ),
            LoadError,
            r"weight_hr_l0: expected an LSTM without projection",
        ),
        (
            lambda: load_torch(
                {"weight_ih_l0": random(6, 3), "weight_hh_l0": random(6, 3)},
                CELL,
                into(CELL, random(1, 2, 3)),
            ),
            LoadError,
            r"weight_hh_l0: expected the gates of an RNN, a GRU or an LSTM",
        ),
        (
            lambda: load_torch(
                {"weight_ih_l0": random(4, 3)}, CELL, into(CELL, random(1, 2, 3))
            ),
            LoadError,
            r"weight_ih_l0: expected weight_hh_l0 beside it",
        ),
        (
            lambda: to_torch(
                DENSE,
                DENSE.init(jax.random.key(0), X),
                names={"body/*": "fc", "head": "fc"},
            ),
            LoadError,
            r"fc\.bias: expected one array of this name, got another at body/layer_1",
        ),
    ],
)
def test_what_cannot_be_loaded_is_refused(wrong, error, message):
    with pytest.raises(error, match=message):
        wrong()


def test_fusing_undoes_unfusing():
    for module in (
        T.LSTM(2, 3, num_layers=2, bidirectional=True),
        T.GRU(2, 3),
        T.RNN(2, 3),
        T.MultiheadAttention(4, 2),
        T.MultiheadAttention(4, 2, kdim=3, bias=False),
    ):
        tensors = {k: v.numpy() for k, v in randomised(module).state_dict().items()}
        again = fuse(unfuse(tensors))
        assert again.keys() == tensors.keys()
        assert all((again[k] == tensors[k]).all() for k in tensors if "bias_" not in k)
