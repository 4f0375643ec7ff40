"""Models of images: the published sizes, torch's numbers, and trained for real."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn.datasets import load_digits, load_wine
from sklearn.model_selection import train_test_split

from mapping import Context, Serial, leaf_paths, outline
from mapping.errors import FieldError, ShapeMismatchError
from mapping.layers import BatchNorm, GroupNorm
from mapping.losses import BinaryCrossEntropy, CrossEntropy
from mapping.metrics import Accuracy
from mapping.models import CNN, MLP, MobileNet, ResNet, UNet
from mapping.train import evaluate, fit, predict

KEY = jax.random.key(0)
TRAIN = Context(key=KEY, train=True)
torched = pytest.mark.torch


def spec(*shape):
    return jax.ShapeDtypeStruct(shape, "float32")


def size(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


# --- sizes ---------------------------------------------------------------------------

PUBLISHED = [
    (CNN.lenet5(), (32, 32, 1), 61_706),
    (ResNet.resnet18(), (224, 224, 3), 11_689_512),
    (ResNet.resnet34(), (224, 224, 3), 21_797_672),
    (ResNet.resnet50(), (224, 224, 3), 25_557_032),
    (MobileNet(1000), (224, 224, 3), 3_504_872),
    (UNet(1, (64, 128, 256, 512, 1024)), (256, 256, 1), 31_030_593),
]


@pytest.mark.parametrize(("net", "image", "count"), PUBLISHED)
def test_a_published_network_has_its_published_number_of_params(net, image, count):
    variables, _ = outline(net, spec(1, *image))
    assert size(variables.params) == count


def test_resolution_falls_as_published():
    stages = {}
    x = spec(1, 224, 224, 3)
    net = ResNet.resnet50()
    for name, part in net.parts().items():
        _, x = outline(part, x)
        stages[name] = x.shape[1:]
    assert stages == {
        "stem": (56, 56, 64), "stage1": (56, 56, 256), "stage2": (28, 28, 512),
        "stage3": (14, 14, 1024), "stage4": (7, 7, 2048), "pool": (2048,),
        "head": (1000,),
    }  # fmt: skip
    small = dataclasses.replace(net, stem="cifar", widths=(16, 32, 64, 128))
    _, y = outline(small.parts()["stem"], spec(1, 32, 32, 3))
    assert y.shape == (1, 32, 32, 16)


def test_scaled_features_are_multiples_of_eight_and_the_last_are_not_fewer():
    variables, _ = outline(MobileNet(1000, width=0.5), spec(1, 32, 32, 3))
    assert size(variables.params) == 1_968_680  # as published
    kernels = {
        path: leaf.shape[-1]
        for path, leaf in leaf_paths(variables.params).items()
        if path.endswith("kernel") and "project" in path
    }
    assert sorted(set(kernels.values())) == [8, 16, 32, 48, 80, 160]
    assert variables.params["last"]["conv"]["kernel"].shape[-1] == 1280


def test_every_part_has_the_path_that_is_documented():
    net = MLP(3, (4,), norm=BatchNorm(), rate=0.1)
    assert list(leaf_paths(outline(net, spec(2, 5))[0].params)) == [
        "head/bias", "head/kernel", "hidden1/dense/bias", "hidden1/dense/kernel",
        "hidden1/norm/bias", "hidden1/norm/scale",
    ]  # fmt: skip
    net = ResNet(3, (1, 1), (4, 8), stem="cifar")
    params = outline(net, spec(1, 8, 8, 1))[0].params
    assert set(params) == {"stem", "stage1", "stage2", "head"}
    assert set(params["stage1"]["block1"]) == {"conv1", "norm1", "conv2", "norm2"}
    assert set(params["stage2"]["block1"]["shortcut"]) == {"conv", "norm"}


# --- torch's numbers -----------------------------------------------------------------


def torch_layers():
    """The layers of torch, in our words; `block` and the like follow."""
    nn = pytest.importorskip("torch").nn

    def conv(i, o, k, s=1, groups=1):
        return nn.Conv2d(i, o, k, s, k // 2, groups=groups, bias=False)

    def unit(i, o, k, s=1, groups=1, act=None):
        parts = {"conv": conv(i, o, k, s, groups), "norm": nn.BatchNorm2d(o)}
        if act is not None:
            parts["act"] = act
        return named(**parts)

    def named(**parts):
        made = nn.Sequential()
        for name, part in parts.items():
            made.add_module(name, part)
        return made

    return nn, conv, unit, named


def torch_block(i, width, stride, bottleneck):
    nn, conv, unit, _ = torch_layers()
    out = 4 * width if bottleneck else width

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            if bottleneck:
                convs = [conv(i, width, 1), conv(width, width, 3, stride),
                         conv(width, out, 1)]  # fmt: skip
            else:
                convs = [conv(i, width, 3, stride), conv(width, width, 3)]
            self.count = len(convs)
            for number, each in enumerate(convs, 1):
                self.add_module(f"conv{number}", each)
                self.add_module(f"norm{number}", nn.BatchNorm2d(each.out_channels))
            if stride > 1 or i != out:
                self.shortcut = unit(i, out, 1, stride)

        def forward(self, x):
            y = x
            for number in range(1, self.count + 1):
                y = getattr(self, f"norm{number}")(getattr(self, f"conv{number}")(y))
                y = y.relu() if number < self.count else y
            return ((self.shortcut(x) if hasattr(self, "shortcut") else x) + y).relu()

    return Block(), out


def torch_resnet(depths, widths, bottleneck, channels):
    nn, _, _, named = torch_layers()
    stem = named(conv=nn.Conv2d(channels, widths[0], 7, 2, 3, bias=False),
                 norm=nn.BatchNorm2d(widths[0]), act=nn.ReLU(),
                 pool=nn.MaxPool2d(3, 2, 1))  # fmt: skip
    i, stages = widths[0], {}
    for index, (depth, width) in enumerate(zip(depths, widths, strict=True)):
        blocks = {}
        for number in range(depth):
            stride = 2 if index and not number else 1
            blocks[f"block{number + 1}"], i = torch_block(i, width, stride, bottleneck)
        stages[f"stage{index + 1}"] = named(**blocks)
    return named(stem=stem, **stages, pool=nn.AdaptiveAvgPool2d(1),
                 flat=nn.Flatten(), head=nn.Linear(i, 3))  # fmt: skip


def torch_mobilenet(settings, stem, last):
    nn, _, unit, named = torch_layers()

    class Inverted(nn.Module):
        def __init__(self, i, o, expansion, stride):
            super().__init__()
            wide = i * expansion
            if expansion > 1:
                self.expand = unit(i, wide, 1, act=nn.ReLU6())
            self.depthwise = unit(wide, wide, 3, stride, groups=wide, act=nn.ReLU6())
            self.project = unit(wide, o, 1)
            self.round = stride == 1 and i == o

        def forward(self, x):
            y = self.expand(x) if hasattr(self, "expand") else x
            y = self.project(self.depthwise(y))
            return x + y if self.round else y

    i, stages = stem, {}
    for index, (expansion, o, count, stride) in enumerate(settings, 1):
        blocks = {}
        for number in range(count):
            s = 1 if number else stride
            blocks[f"block{number + 1}"] = Inverted(i, o, expansion, s)
            i = o
        stages[f"stage{index}"] = named(**blocks)
    return named(stem=unit(2, stem, 3, 2, act=nn.ReLU6()), **stages,
                 last=unit(i, last, 1, act=nn.ReLU6()), pool=nn.AdaptiveAvgPool2d(1),
                 flat=nn.Flatten(), head=nn.Linear(last, 3))  # fmt: skip


def torch_unet(channels, outputs, i):
    nn, _, _, named = torch_layers()
    import torch

    def convs(i, o):
        return named(conv1=nn.Conv2d(i, o, 3, padding=1), act1=nn.ReLU(),
                     conv2=nn.Conv2d(o, o, 3, padding=1), act2=nn.ReLU())  # fmt: skip

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            before = i
            for level, width in enumerate(channels[:-1], 1):
                above = channels[level]
                self.add_module(f"down{level}", convs(before, width))
                self.add_module(f"up{level}", convs(2 * width, width))
                self.add_module(
                    f"enlarge{level}", nn.ConvTranspose2d(above, width, 2, 2)
                )
                before = width
            self.bottom = convs(before, channels[-1])
            self.head = nn.Conv2d(channels[0], outputs, 1)

        def forward(self, x):
            seen = []
            for level in range(1, len(channels)):
                seen.append(getattr(self, f"down{level}")(x))
                x = nn.functional.max_pool2d(seen[-1], 2)
            x = self.bottom(x)
            for level in range(len(channels) - 1, 0, -1):
                x = getattr(self, f"enlarge{level}")(x)
                x = torch.cat([x, seen[level - 1]], 1)
                x = getattr(self, f"up{level}")(x)
            return self.head(x)

    return Net()


def torch_lenet():
    nn, _, _, named = torch_layers()

    class ToOurs(nn.Module):
        def forward(self, x):
            return x.permute(0, 2, 3, 1)

    def block(i, o):
        return named(conv=nn.Conv2d(i, o, 5), act=nn.Tanh(), pool=nn.AvgPool2d(2))

    def hidden(i, o):
        return named(dense=nn.Linear(i, o), act=nn.Tanh())

    classifier = named(hidden1=hidden(400, 120), hidden2=hidden(120, 84),
                       head=nn.Linear(84, 10))  # fmt: skip
    return named(block1=block(1, 6), block2=block(6, 16), ours=ToOurs(),
                 flatten=nn.Flatten(), classifier=classifier)  # fmt: skip


def pour(variables, net):
    """Puts our variables into torch's modules of the same paths."""
    torch = pytest.importorskip("torch")
    modules = dict(net.named_modules())
    poured = 0
    for path, leaf in leaf_paths((variables.params, variables.state)).items():
        _, *names, kind = path.split("/")
        module, value = modules[".".join(names)], np.asarray(leaf)
        if isinstance(module, torch.nn.ConvTranspose2d) and kind == "kernel":
            value = value[::-1, ::-1].transpose(2, 3, 0, 1)
        elif kind == "kernel":
            value = value.transpose(3, 2, 0, 1) if value.ndim == 4 else value.T
        name = {"kernel": "weight", "scale": "weight", "mean": "running_mean",
                "var": "running_var"}.get(kind, kind)  # fmt: skip
        target = getattr(module, name)
        assert tuple(target.shape) == value.shape, path
        target.data = torch.from_numpy(value.copy())
        poured += value.size
    wanted = {**dict(net.named_parameters()), **dict(net.named_buffers())}
    assert poured == sum(t.numel() for n, t in wanted.items() if "tracked" not in n)


def filled(net, *specs):
    """Variables that no scale, shift or mean of is trivial; nothing is compiled."""
    rng = np.random.default_rng(1)

    def fill(path, leaf):
        kind = path[-1].key
        if kind in ("scale", "var"):
            value = rng.uniform(0.5, 1.5, leaf.shape)
        else:
            fan_in = math.prod(leaf.shape[:-1]) if kind == "kernel" else 10
            value = rng.normal(0, 1 / np.sqrt(fan_in), leaf.shape)
        return jnp.asarray(value, leaf.dtype)

    return jax.tree_util.tree_map_with_path(fill, outline(net, *specs)[0])


SETTINGS = ((1, 4, 1, 1), (3, 6, 2, 2))
PAIRS = {
    "basic": (
        ResNet(3, (2, 1), (4, 6)),
        lambda: torch_resnet((2, 1), (4, 6), False, 2), (3, 24, 32, 2),
    ),
    "bottleneck": (
        ResNet(3, (1, 2), (4, 6), "bottleneck"),
        lambda: torch_resnet((1, 2), (4, 6), True, 2), (3, 32, 32, 2),
    ),
    "mobilenet": (
        MobileNet(3, settings=SETTINGS, stem=4, last=8, rate=0.0),
        lambda: torch_mobilenet(SETTINGS, 4, 8), (3, 16, 16, 2),
    ),
    "unet": (
        UNet(3, (4, 5, 6)), lambda: torch_unet((4, 5, 6), 3, 2), (3, 8, 12, 2),
    ),
    "lenet": (CNN.lenet5(), torch_lenet, (3, 32, 32, 1)),
}  # fmt: skip


@torched
@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("name", PAIRS)
def test_a_network_computes_what_torchs_of_the_same_weights_computes(name, train):
    torch = pytest.importorskip("torch")
    net, make, shape = PAIRS[name]
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    variables = filled(net, x)
    theirs = make()
    pour(variables, theirs)
    theirs.train(train)
    with torch.no_grad():
        wanted = theirs(torch.from_numpy(x).permute(0, 3, 1, 2))
    wanted = wanted.permute(0, 2, 3, 1) if wanted.ndim == 4 else wanted
    ctx = Context(key=KEY, train=train)
    got, state = jax.jit(functools.partial(net.apply, ctx=ctx))(variables, x)
    scale = float(wanted.abs().max())
    np.testing.assert_allclose(got, wanted, atol=2e-4 * scale, rtol=0)
    if train:
        buffers = dict(theirs.named_buffers())
        for path, mean in leaf_paths(state).items():
            if path.endswith("/mean"):
                name = path.replace("/", ".").removesuffix("mean") + "running_mean"
                np.testing.assert_allclose(mean, buffers[name], atol=1e-4)


# --- what the fields do --------------------------------------------------------------


@pytest.mark.parametrize("block", ["basic", "bottleneck"])
def test_a_block_whose_last_scale_is_zero_starts_as_its_shortcut(block):
    net = ResNet(2, (2,), (4,), block, stem="cifar", zero_last=True)
    x = jnp.abs(jax.random.normal(KEY, (2, 4, 4, 16 if block == "bottleneck" else 4)))
    second = dict(net.parts()["stage1"].children)["block2"]
    v = second.init(KEY, x)
    last = "norm3" if block == "bottleneck" else "norm2"
    assert not v.params[last]["scale"].any()
    assert v.params["norm1"]["scale"].all()
    np.testing.assert_array_equal(second(v.params, x, state=v.state), x)


def test_dropout_and_norm_stand_where_they_are_said_to():
    x = jnp.ones((64, 8))
    net = MLP(4, (256,), rate=0.5)
    v = net.init(KEY, x)
    plain = net(v.params, x)
    dropped, _ = net.apply(v, x, ctx=TRAIN)
    assert float(jnp.abs(dropped - plain).max()) > 0.1
    net = MLP(4, (16, 16), norm=BatchNorm(momentum=0.0))
    v = net.init(KEY, x)
    x = jax.random.normal(KEY, (64, 8))
    _, state = net.apply(v, x, ctx=TRAIN)
    before = x @ v.params["hidden1"]["dense"]["kernel"]
    np.testing.assert_allclose(
        state["hidden1"]["norm"]["mean"], before.mean(0), atol=1e-5
    )


def test_a_unet_works_on_any_number_of_axes_and_either_way_up():
    for axes, up in ((1, "transpose"), (3, "resize")):
        net = UNet(2, (2, 3, 4), up=up, kernel_size=(3,) * axes)
        x = spec(1, *(8,) * axes, 1)
        assert outline(net, x)[1].shape == (*x.shape[:-1], 2)
    assert UNet(2, (4,)).parts().keys() == {"bottom", "head"}


def test_a_norm_of_ones_own_choice_is_used_everywhere():
    net = ResNet(2, (1,), (4,), stem="cifar", norm=GroupNorm(2))
    variables, _ = outline(net, spec(1, 4, 4, 1))
    assert not variables.state
    assert set(variables.params["stage1"]["block1"]["norm2"]) == {"scale", "bias"}


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: MLP(0), r"MLP\.outputs: expected a whole number >= 1"),
        (lambda: MLP(2, 64), r"MLP\.features: expected a tuple .*got 64"),
        (lambda: MLP(2, (3, 0)), r"MLP\.features\[1\]"),
        (lambda: MLP(2, rate=1.0), r"rate: expected a fraction"),
        (lambda: CNN(2, ()), r"CNN\.channels: expected a tuple of 1 or more"),
        (lambda: CNN(2, pool="mean"), r"CNN\.pool: expected one of max, avg"),
        (lambda: ResNet(2, (1, 1)), r"a width for each of 2 depths"),
        (lambda: ResNet(2, block="big"), r"ResNet\.block: .*basic, bottleneck"),
        (lambda: ResNet(2, stem="mnist"), r"ResNet\.stem"),
        (lambda: ResNet(2, norm=jnp.tanh, zero_last=True), r"norm with scale_init"),
        (lambda: MobileNet(2, width=0.0), r"MobileNet\.width: expected a factor > 0"),
        (lambda: MobileNet(2, settings=((1, 2, 3),)), r"settings\[0\]: .* 4 or more"),
        (lambda: UNet(2, up="nearest"), r"UNet\.up: expected one of transpose, resize"),
    ],
)
def test_fields_that_make_no_network_are_refused(make, said):
    with pytest.raises(FieldError, match=said):
        make()


def test_images_that_do_not_fit_are_refused_by_path():
    net = Serial(body=UNet(1, (2, 3, 4)))
    said = r"^body \(UNet\): expects 2 axes of space that 4 divides.*\[1, 6, 8, 1\]"
    with pytest.raises(ShapeMismatchError, match=said):
        net.init(KEY, spec(1, 6, 8, 1))
    v = filled(net, spec(1, 8, 8, 1))
    with pytest.raises(ShapeMismatchError, match=said):
        net(v.params, jnp.ones((1, 6, 8, 1)))
    net = Serial(net=ResNet(2, (1,), (4,), stem="cifar"))
    v = filled(net, spec(1, 4, 4, 1))
    with pytest.raises(ShapeMismatchError, match=r"net/stem/conv \(Conv\): params"):
        net(v.params, jnp.ones((1, 4, 4, 3)), state=v.state)


# --- trained for real ----------------------------------------------------------------


def split(x, y, share):
    return train_test_split(x, y, test_size=share, stratify=y, random_state=0)


@functools.cache
def digits():
    x, y = load_digits(return_X_y=True)
    x = (x / 16).astype(np.float32).reshape(-1, 8, 8, 1)
    x, x_test, y, y_test = split(x, y, 0.25)
    return (x, y), (x_test, y_test)


def accuracy(net, training, test, rate, epochs, batch_size=64):
    steps = epochs * (len(training[0]) // batch_size)
    fitted = fit(
        net, training, loss=CrossEntropy(), epochs=epochs, batch_size=batch_size,
        optimizer=optax.adam(optax.cosine_decay_schedule(rate, steps)),
    )  # fmt: skip
    return evaluate(net, fitted.variables, test, {"accuracy": Accuracy()})["accuracy"]


def test_an_mlp_tells_wines_apart():
    x, y = load_wine(return_X_y=True)
    x, x_test, y, y_test = split(x, y, 0.4)
    mean, spread = x.mean(0), x.std(0)
    scaled = [((z - mean) / spread).astype(np.float32) for z in (x, x_test)]
    net = MLP(3, (32,), rate=0.2)
    score = accuracy(net, (scaled[0], y), (scaled[1], y_test), 1e-2, 30, 16)
    assert score >= 0.95


# A linear model reaches 0.969 on this split.
@pytest.mark.parametrize(
    ("net", "rate", "epochs", "least"),
    [
        (CNN(10, (16, 32), (64,), norm=BatchNorm()), 4e-3, 6, 0.975),
        (ResNet(10, (1, 1), (16, 32), stem="cifar", zero_last=True), 1e-2, 8, 0.98),
        (
            MobileNet(10, settings=((1, 8, 1, 1), (4, 16, 1, 2)), stem=8,
                      stem_strides=1, last=64, rate=0.0),
            1e-2, 6, 0.92,
        ),
    ],
    ids=["cnn", "resnet", "mobilenet"],
)  # fmt: skip
def test_a_convolutional_network_reads_digits(net, rate, epochs, least):
    assert accuracy(net, *digits(), rate, epochs) >= least


def shapes(count, seed):
    """A disc and a square of one brightness in noise; what is asked is the disc."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:16, :16]
    masks = []
    for kind in ("disc", "square"):
        size = rng.uniform(2.5, 4.0, (count, 1, 1))
        place = rng.uniform(3, 13, (2, count, 1, 1))
        apart = np.abs(rows - place[0]), np.abs(columns - place[1])
        far = np.hypot(*apart) if kind == "disc" else np.maximum(*apart) * 1.13
        masks.append(far < size)
    disc, square = masks
    image = (disc | square) + rng.normal(0, 0.2, disc.shape)
    return image[..., None].astype(np.float32), disc[..., None].astype(np.float32)


def test_a_unet_finds_the_disc_and_not_the_square():
    training, (x, disc) = shapes(1024, seed=0), shapes(256, seed=1)
    net = UNet(1, (8, 16), norm=BatchNorm())
    fitted = fit(
        net, training, loss=BinaryCrossEntropy(), epochs=6, batch_size=32,
        optimizer=optax.adam(optax.cosine_decay_schedule(1e-2, 192)),
    )  # fmt: skip

    def overlap(found):
        return (found & (disc > 0)).sum() / (found | (disc > 0)).sum()

    assert overlap(x > 0.5) < 0.6  # all that is bright
    assert overlap(predict(net, fitted.variables, x) > 0) > 0.75
