"""Depth pruning: what is left is the model built without the layer."""

import functools
import itertools
import json

import equinox as eqx
import flax.linen as nn
import flax.nnx as nnx
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from zoo import normal, relative_error

import compiler as mc
import mapping as mp
from compiler.errors import (
    CalibrationError,
    PlanError,
    UnknownPathError,
    VariablesMismatchError,
)
from compiler.jaxprs import nested
from compiler.passes.prune.depth import blocks, carry, layers

X = normal(4, 6, 8)
TOKENS = jnp.asarray(np.random.default_rng(2).integers(0, 11, (2, 5)), jnp.int32)


def events(program):
    return [str(event) for event in program.history[-1].events.fired]


def value(program, *inputs):
    """What a program gives, one operation at a time, each compiled once for all."""
    outputs = program.graph.evaluate(program.values, inputs)
    return jax.tree.unflatten(program.graph.out_tree, outputs)


def skipped(program):
    return {e.path: e.what for e in program.history[-1].events.skipped}


def norm(x):
    return x / jnp.sqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-3)


def mlp(p, x):
    return jnp.tanh(x @ p["w"]) @ p["v"]


def post_norm(p, x):
    return norm(x + mlp(p, x)) * p["scale"]


def parallel(p, x):
    n = norm(x) * p["scale"]
    return x + n @ p["w"] + mlp({"w": p["u"], "v": p["v"]}, n)


def scaled(p, x):
    return 0.8 * x + mlp(p, x)


def mixed(p, x):
    y = mlp(jax.tree.map(lambda a: a.astype(jnp.bfloat16), p), x.astype(jnp.bfloat16))
    return x.astype(jnp.float32) + y.astype(jnp.float32)


def rotated(p, x):
    inside = jnp.swapaxes(x, 1, 2)
    return jnp.swapaxes(inside + jnp.swapaxes(mlp(p, x), 1, 2), 1, 2)


def random(p, x):
    kept = jax.random.bernoulli(jax.random.key(3), 0.5, x.shape)
    return x + jnp.where(kept, mlp(p, x) / 0.5, 0.0)


def one_of_two(p, x):
    return jax.lax.cond(x.sum() > -1e9, lambda x: x + mlp(p, x), lambda x: x, x)


BLOCKS = {
    "pre-norm": lambda p, x: x + mlp(p, norm(x) * p["scale"]),
    "gain": lambda p, x: x + p["scale"] * mlp(p, x),
    "the other way round": lambda p, x: mlp(p, x) + x,
    "parallel": parallel,
    "scaled shortcut": scaled,
    "divided after": lambda p, x: (x + mlp(p, x)) / 1.5,
    "mixed precision": mixed,
    "another layout": rotated,
    "dropout": random,
    "stochastic depth": one_of_two,
    "remat": jax.checkpoint(lambda p, x: x + mlp(p, norm(x))),
    "jit": jax.jit(lambda p, x: x + mlp(p, norm(x))),
    "vmap": jax.vmap(lambda p, x: x + mlp(p, norm(x)), (None, 0)),
}


READS = {
    "pre-norm": "scale w v",
    "gain": "scale w v",
    "parallel": "scale w u v",
}
"""The leaves of a layer, if not the two of `mlp`."""


def stack(block):
    """A function of layers by name, in the order of the names."""

    def run(variables, x):
        for name in sorted(variables["layers"]):
            x = block(variables["layers"][name], x)
        return x @ variables["head"]

    return run


def weights(names="abc"):
    random = np.random.default_rng(5)

    def draw(*shape):
        return jnp.asarray(random.normal(size=shape) / 3, jnp.float32)

    return {
        "layers": {
            name: {"w": draw(8, 8), "u": draw(8, 8), "v": draw(8, 8), "scale": draw()}
            for name in names
        },
        "head": draw(8, 3),
    }


def without(variables, name):
    kept = {k: v for k, v in variables["layers"].items() if k != name}
    return {**variables, "layers": kept}


def equations(program):
    """What a program does, with names of variables by their order alone."""
    return str((program >> mc.simplify(("calls",))).graph.jaxpr)


@pytest.mark.parametrize("name", BLOCKS)
def test_a_layer_is_gone_as_if_it_had_never_been_there(name):
    function, variables = stack(BLOCKS[name]), weights()
    read = READS.get(name, "w v").split()
    own = {k: {leaf: p[leaf] for leaf in read} for k, p in variables["layers"].items()}
    program = mc.trace(function, {**variables, "layers": own}, X)
    shorter = program >> layers(paths="layers/b")
    small = without({**variables, "layers": own}, "b")
    instead = AFTER.get(name)
    reference = functools.partial(_by_hand, instead, BLOCKS[name])
    want = mc.trace(reference if instead else function, small, X)
    assert equations(shorter) == equations(want)
    assert len(equations(program)) > len(equations(want))
    gone = set(program.graph.paths) - set(shorter.graph.paths)
    assert gone == {f"layers/b/{leaf}" for leaf in read}
    again = shorter >> shorter.recipe[0]
    assert again.graph is shorter.graph
    assert not events(again)
    assert "no such block" in next(iter(skipped(again).values()))


AFTER = {
    "scaled shortcut": lambda x: 0.8 * x,
    "divided after": lambda x: x / 1.5,
    "another layout": lambda x: jnp.swapaxes(jnp.swapaxes(x, 1, 2), 1, 2),
}
"""What remains of a layer that does something to the shortcut or to the sum."""


def _by_hand(instead, block, variables, x):
    x = block(variables["layers"]["a"], x)
    return block(variables["layers"]["c"], instead(x)) @ variables["head"]


def test_other_batch_sizes_gradients_and_maps_of_the_shorter_program():
    function, variables = stack(BLOCKS["pre-norm"]), weights()
    shorter = mc.trace(function, variables, X) >> layers(paths="layers/b")
    small = without(variables, "b")
    run = jax.jit(function)
    assert relative_error(shorter(X[:3]), run(small, X[:3])) < 1e-6
    gradient = jax.jit(jax.grad(lambda v: shorter.function(v, X).sum()))
    gradient = gradient(shorter.variables)
    want = jax.jit(jax.grad(lambda v: function(v, X).sum()))(small)
    for path in ("w", "v", "scale"):
        got = gradient["layers"]["c"][path]
        assert relative_error(got, want["layers"]["c"][path]) < 1e-5
    mapped = jax.jit(jax.vmap(shorter.function, (None, 0)))(shorter.variables, X[None])
    assert relative_error(mapped[0], run(small, X)) < 1e-6


def test_a_branch_of_two_summed_in_parallel_goes_alone():
    function, variables = stack(parallel), weights()
    program = mc.trace(function, variables, X)
    keys = [block.key for block in blocks(program)]
    assert keys[2:4] == ["layers/b/w", "layers/b/u+v"]
    shorter = program >> layers(paths="layers/b/u")
    gone = set(program.graph.paths) - set(shorter.graph.paths)
    assert gone == {"layers/b/u", "layers/b/v"}
    blank = jax.tree.map(lambda a: a, variables)
    blank["layers"]["b"]["v"] = jnp.zeros((8, 8))
    assert relative_error(value(shorter, X), function(blank, X)) < 1e-6


def neox(p, x):
    return mlp(p, norm(x)) + norm(x) @ p["u"] + x


@pytest.mark.parametrize("which", ["u", "w", "uw"])
def test_branches_that_are_summed_before_the_shortcut_is_added(which):
    function, variables = stack(neox), weights()
    program = mc.trace(function, variables, X)
    assert [b.key for b in blocks(program)][:2] == ["layers/a/w+v", "layers/a/u"]
    globs = [f"layers/b/{name}" for name in which]
    shorter = program >> layers(paths=globs)
    blank = jax.tree.map(lambda a: a, variables)
    for name in which:
        blank["layers"]["b"][name] = jnp.zeros((8, 8))
    assert relative_error(value(shorter, X), function(blank, X)) < 1e-6
    gone = {p[-1] for p in set(program.graph.paths) - set(shorter.graph.paths)}
    assert gone == set(which) | ({"v"} if "w" in which else set())


def test_shared_leaves_stay_and_uses_are_counted():
    def function(v, x):
        for _ in range(3):
            x = x + mlp(v, x)
        return x

    variables = {"w": normal(8, 8), "v": normal(8, 8, seed=1)}
    program = mc.trace(function, variables, X)
    assert [b.key for b in blocks(program)] == ["w+v#1/3", "w+v#2/3", "w+v#3/3"]
    shorter = program >> layers(paths="w+v#2/3")
    assert shorter.graph.leaves == program.graph.leaves
    two = X + mlp(variables, X)
    assert relative_error(value(shorter, X), two + mlp(variables, two)) < 1e-6
    assert skipped(shorter)["w"].startswith("stays: w+v#2/3 is not all that reads it")
    again = shorter >> shorter.recipe[0]
    assert again.graph is shorter.graph


def test_nested_blocks_go_together_or_one_by_one():
    def function(v, x):
        y = x
        for name in ("a", "b"):
            y = y + mlp(v[name], y)
        return x + y @ v["out"]

    variables = {**weights("ab")["layers"], "out": normal(8, 8) / 3}
    program = mc.trace(function, variables, X)
    assert len(blocks(program)) == 3
    inner = program >> layers(paths="a")
    want = X + (X + mlp(variables["b"], X)) @ variables["out"]
    assert relative_error(value(inner, X), want) < 1e-6
    outer = program >> layers(paths="out")
    assert np.array_equal(value(outer, X), X)
    assert all(p.endswith(("scale", "u")) for p in outer.graph.paths)  # never read


def test_sums_that_are_no_blocks_say_why():
    def function(v, x):
        y = x @ v["a"] + x @ v["b"]
        y = y + jnp.sin(y)
        h = jnp.tanh(y @ v["c"])
        return y + h, h

    program = mc.trace(function, {k: normal(8, 8) for k in "abc"}, X)
    found = blocks(program)
    assert not found
    assert [event.what for event in found.refused] == [
        "neither operand is what the other was made from",
        "no weights in what is added",
        "what is added is used elsewhere too: c would stay",
    ]
    assert "test_prune_layers.py" in found.refused[0].source
    assert "no block: add: what is added" in str(found)


def test_a_function_with_its_gradient_inside_is_left_alone():
    function = stack(BLOCKS["pre-norm"])
    gradient = jax.grad(lambda v, x: function(v, x).sum())
    found = blocks(mc.trace(gradient, weights(), X))
    assert not found
    assert "differentiate it then" in found.refused[0].what


def test_statistics_that_training_returns_keep_their_block():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            for _ in range(2):
                y = nn.BatchNorm(use_running_average=False)(nn.Dense(8)(x))
                x = x + nn.relu(y)
            return x

    model = Net()
    variables = jax.eval_shape(model.init, jax.random.key(0), X)
    train = lambda v, x: model.apply(v, x, mutable=["batch_stats"])  # noqa: E731
    found = blocks(mc.trace(train, variables, X))
    assert not found
    assert "params/Dense_0/kernel" in found.refused[0].what


class Block(nn.Module):
    @nn.compact
    def __call__(self, x):
        h = nn.LayerNorm()(x)
        x = x + nn.MultiHeadDotProductAttention(num_heads=2, name="attn")(h, h)
        return x + nn.Dense(8)(nn.gelu(nn.Dense(16)(nn.LayerNorm()(x))))


class Gpt(nn.Module):
    numbers: tuple[int, ...] = (0, 1, 2)

    @nn.compact
    def __call__(self, tokens):
        embed = nn.Embed(11, 8)
        x = embed(tokens) + self.param("pos", nn.initializers.normal(), (1, 5, 8))
        for number in self.numbers:
            x = Block(name=f"h_{number}")(x)
        return embed.attend(nn.LayerNorm()(x))


class Bottleneck(nn.Module):
    @nn.compact
    def __call__(self, x):
        y = nn.relu(nn.BatchNorm(use_running_average=True)(nn.Conv(4, (3, 3))(x)))
        y = nn.BatchNorm(use_running_average=True)(nn.Conv(8, (3, 3))(y))
        return nn.relu(x + y)


class ResNet(nn.Module):
    numbers: tuple[int, ...] = (0, 1, 2)

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(8, (3, 3))(x)
        for number in self.numbers:
            x = Bottleneck(name=f"block_{number}")(x)
        return nn.Dense(3)(x.mean((1, 2)))


class Vit(nnx.Module):
    def __init__(self, depth, rngs):
        self.blocks = nnx.List([VitBlock(rngs) for _ in range(depth)])
        self.head = nnx.Linear(8, 3, rngs=rngs)

    def __call__(self, x):
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean(1))


class VitBlock(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.LayerNorm(8, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(2, 8, decode=False, rngs=rngs)
        self.second = nnx.LayerNorm(8, rngs=rngs)
        self.up = nnx.Linear(8, 16, rngs=rngs)
        self.down = nnx.Linear(16, 8, rngs=rngs)

    def __call__(self, x):
        x = x + self.attention(self.first(x))
        return x + self.down(nnx.gelu(self.up(self.second(x))))


class Eqx(eqx.Module):
    blocks: list
    head: eqx.nn.Linear

    def __call__(self, x):
        for block in self.blocks:
            h = jax.vmap(block["norm"])(x)
            x = x + block["attention"](h, h, h)
            x = x + jax.vmap(block["mlp"])(x)
        return self.head(x.mean(0))


def eqx_block(key):
    return {
        "norm": eqx.nn.LayerNorm(8),
        "attention": eqx.nn.MultiheadAttention(2, 8, key=key),
        "mlp": eqx.nn.MLP(8, 8, 16, 1, key=key),
    }


def haiku_net(numbers):
    def forward(x):
        for number in numbers:
            with hk.experimental.name_scope(f"layer_{number}"):
                y = hk.LayerNorm(-1, True, True, name="norm")(x)
                y = hk.nets.MLP([16, 8], name="mlp")(y)
            x = x + y
        return hk.Linear(3)(x)

    return hk.without_apply_rng(hk.transform(forward))


def drawn(shapes, seed=4):
    """Arrays of some shapes, positive so that variances are too; nothing compiles."""
    random = np.random.default_rng(seed)

    def draw(leaf):
        if not hasattr(leaf, "dtype"):
            return leaf
        return jnp.asarray(random.uniform(-0.1, 0.5, leaf.shape) ** 2, leaf.dtype)

    return jax.tree.map(draw, shapes)


def linen_case(module, short, x, gone):
    variables = drawn(jax.eval_shape(module.init, jax.random.key(0), x))
    return module.apply, variables, x, gone, short.apply


def nnx_case():
    def split(depth):
        shell, state = nnx.split(nnx.eval_shape(lambda: Vit(depth, nnx.Rngs(0))))
        return shell, state

    def call(shell, like, pure, x):
        own = jax.tree.map(lambda a: a, like)
        nnx.replace_by_pure_dict(own, pure)
        return nnx.merge(shell, own)(x)

    def rebuilt(small, x):
        kept = {0: small["blocks"]["0"], 1: small["blocks"]["2"]}
        return call(*split(2), {**small, "blocks": kept}, x)

    shell, like = split(3)
    function = functools.partial(call, shell, like)
    return function, drawn(nnx.to_pure_dict(like)), X, "blocks/1", rebuilt


def equinox_case():
    def build(key):
        keys = jax.random.split(key, 4)
        return Eqx([eqx_block(k) for k in keys[:3]], eqx.nn.Linear(8, 3, key=keys[3]))

    model = drawn(eqx.filter_eval_shape(build, jax.random.key(0)))

    short = eqx.tree_at(lambda m: m.blocks, model, [model.blocks[0], model.blocks[2]])

    def function(m, x):
        return jax.vmap(m)(x)

    return function, model, X, "blocks/1", lambda small, x: function(short, x)


def haiku_case():
    model, short = haiku_net((0, 1, 2)), haiku_net((0, 2))
    variables = drawn(jax.eval_shape(model.init, jax.random.key(0), X))

    def rebuilt(small, x):
        return short.apply(_flat(small), x)

    return model.apply, variables, X, "*layer_1*", rebuilt


def _flat(nested):
    """Haiku's params: by module, whose names hold slashes."""
    found = {}
    for path, leaf in mp.core.leaf_paths(nested).items():
        module, _, name = path.rpartition("/")
        found.setdefault(module, {})[name] = leaf
    return found


IMAGES = normal(2, 6, 6, 3)
MODELS = {
    "linen gpt": lambda: linen_case(Gpt(), Gpt((0, 2)), TOKENS, "h_1"),
    "linen resnet": lambda: linen_case(ResNet(), ResNet((0, 2)), IMAGES, "block_1"),
    "nnx": nnx_case,
    "equinox": equinox_case,
    "haiku": haiku_case,
}


@pytest.mark.parametrize("name", MODELS)
def test_a_model_is_the_one_built_without_the_layer(name):
    function, variables, x, gone, rebuilt = MODELS[name]()
    program = mc.trace(function, variables, x)
    shorter = program >> layers(paths=gone)
    # Equinox's leaves come in another order than a dict's; a ResNet does relu twice.
    if name in ("equinox", "linen resnet"):
        want = jax.jit(rebuilt)(shorter.variables, x)
        assert relative_error(shorter(x), want) < 1e-6
    else:
        want = mc.trace(rebuilt, shorter.variables, x)
        assert equations(shorter) == equations(want)
        assert all(map(np.array_equal, shorter.values, want.values))
    assert not any(gone.strip("*") in path for path in shorter.graph.paths)
    assert 0.6 < shorter.size / program.size < 0.8


SIZES = {"a": 1.0, "b": 0.01, "c": 0.5, "d": 0.02}


def uneven():
    variables = weights(SIZES)
    for name, size in SIZES.items():
        for leaf in ("w", "v"):
            variables["layers"][name][leaf] *= size**0.5
    return mc.trace(stack(BLOCKS["gain"]), variables, X)


def distances(x, y):
    """Angles between tokens, by numpy."""
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    cosine = (x * y).sum(-1) / np.linalg.norm(x, axis=-1) / np.linalg.norm(y, axis=-1)
    return np.arccos(np.clip(cosine, -1, 1))


def stream():
    """What flows between the layers of `uneven`, by numpy."""
    x, found = np.asarray(X, np.float64), []
    own = jax.tree.map(np.asarray, uneven().variables["layers"])
    for name in SIZES:
        found.append(x)
        p = own[name]
        x = x + p["scale"] * (np.tanh(x @ p["w"]) @ p["v"])
    return [*found, x]


def test_the_least_important_go_by_magnitude_influence_angle_and_loss():
    program, seen = uneven(), stream()
    by = {}
    turn = [1 - np.cos(distances(a, b)).mean() for a, b in itertools.pairwise(seen)]
    by["influence"] = {"abcd"[i] for i in np.argsort(turn)[:2]}
    angle = [distances(seen[i], seen[i + 2]).mean() for i in range(3)]
    start = int(np.argmin(angle))
    by["angular"] = set("abcd"[start : start + 2])
    by["magnitude"] = {"b", "d"}
    assert by["influence"] != by["angular"]
    for importance, want in by.items():
        step = layers(count=2, importance=importance, batches=[X[:2], (X[2:],)])
        got = step.decide(program)
        assert {key.split("/")[1] for key in got.removed} == want, importance
        assert got.batches is None


def squared(outputs, wanted):
    return jnp.mean((outputs - wanted) ** 2)


def test_by_loss_goes_what_the_loss_misses_least():
    variables = uneven().variables
    function = stack(BLOCKS["gain"])
    program = mc.trace(function, variables, X)
    wanted = function(without(variables, "c"), X)
    step = layers(count=1, importance=squared, batches=[(X, wanted)])
    (key,) = step.decide(program).removed
    assert key == "layers/c/scale+w+v" or key.startswith("layers/c/")


def test_what_belongs_to_one_layer_goes_together():
    two = lambda p, x: mlp(p, norm(x)) + norm(x) @ p["u"] + x  # noqa: E731
    found = blocks(mc.trace(stack(two), weights(), X))
    assert [b.layer for b in found] == [f"layers/{name}" for name in "aabbcc"]
    found = blocks(mc.trace(Gpt().apply, MODELS["linen gpt"]()[1], TOKENS))
    assert [b.layer for b in found] == ["h_0", "h_0", "h_1", "h_1", "h_2", "h_2"]
    same = {"one": {k: {"w": normal(8, 8), "v": normal(8, 8)} for k in "ab"}}

    def twins(v, x):  # two of a kind at one place are two layers
        for p in v["one"].values():
            x = x + mlp(p, x)
        return x

    found = blocks(mc.trace(twins, same, X))
    assert [b.layer for b in found] == ["one/a", "one/b"]


def test_parts_of_a_layer_and_stages_of_several_are_not_chosen():
    def mixed(p, x):  # a layer with a sum inside it
        y = x @ p["u"]
        y = y * p["scale"] + jnp.tanh(y @ p["w"])
        return x + y @ p["v"]

    inner = mc.trace(stack(mixed), weights(), X)
    assert len(blocks(inner)) == 6
    assert len(layers(0.9).decide(inner).removed) == 3

    def staged(v, x):
        return x + stack(BLOCKS["pre-norm"])(v, x) @ v["out"]

    outer = mc.trace(staged, {**weights(), "out": normal(3, 8)}, X)
    assert len(blocks(outer)) == 4
    assert len(layers(0.9).decide(outer).removed) == 3
    with pytest.raises(ValueError, match="at most the 3 layers there are"):
        layers(count=4).decide(outer)


def test_a_straight_through_estimator_is_no_block():
    def quantized(v, x):
        near = jnp.argmin(((x[..., None, :] - v[None, None]) ** 2).sum(-1), -1)
        return x + jax.lax.stop_gradient(v[near] - x)

    found = blocks(mc.trace(quantized, normal(5, 8), X))
    assert [event.what for event in found.refused] == [
        "the shortcut is subtracted again"
    ]


def test_half_of_the_layers_go_and_some_are_spared():
    program = uneven()
    half = program >> layers(0.5)
    assert len(half.recipe[0].removed) == 2
    spared = program >> layers(count=1, skip="layers/b")
    assert spared.recipe[0].removed[0].startswith("layers/d/")
    branch = mc.trace(stack(parallel), weights(), X) >> layers(count=1, unit="branch")
    assert len(branch.recipe[0].removed) == 1


def test_the_decided_pass_is_data():
    decided = (uneven() >> layers(count=1)).recipe[0]
    config = json.loads(json.dumps(mp.to_config(decided)))
    again = mp.from_config(config)
    assert again == decided
    assert set((uneven() >> again).graph.paths) == set(
        (uneven() >> decided).graph.paths
    )


def test_leaves_of_a_stack_go_with_a_branch_of_every_step():
    def function(v, x):
        step = lambda x, p: (x + mlp(p, x), None)  # noqa: E731
        return jax.lax.scan(step, x, v)[0]

    stacked = {"w": normal(3, 8, 8), "v": normal(3, 8, 8)}
    program = mc.trace(function, stacked, X)
    (block,) = blocks(program)
    assert block.is_looped
    assert [step.key for step in blocks(program).steps] == [
        f"layers@{i}/3" for i in range(3)
    ]
    chosen = (program >> layers(0.9)).recipe[0].removed
    assert len(chosen) == 2  # one turn stays
    assert all(key.startswith("layers@") for key in chosen)
    bare = program >> layers(paths=block.key)
    assert np.array_equal(value(bare, X), X)
    assert not bare.graph.leaves


class ScannedBlock(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        y = nn.Dense(16, name="up")(nn.LayerNorm(name="norm")(x))
        return x + nn.Dense(8, name="down")(nn.gelu(y)), None


class Scanned(nn.Module):
    length: int = 4

    @nn.compact
    def __call__(self, x):
        blocks = nn.scan(
            nn.remat(ScannedBlock),
            variable_axes={"params": 0},
            split_rngs={"params": True},
            length=self.length,
        )
        return nn.Dense(3, name="head")(blocks(name="h")(x, None)[0])


def test_steps_of_a_scan_are_layers_with_their_part_of_every_leaf():
    variables = drawn(jax.eval_shape(Scanned().init, jax.random.key(0), X))
    program = mc.trace(Scanned().apply, variables, X)
    found = blocks(program)
    assert [step.key for step in found.steps] == [f"h@{i}/4" for i in range(4)]
    assert "h@2/4: 296 parameters in 6 leaves" in str(found)
    shorter = program >> layers(paths=("h@1", "h@3/4"))
    rows = jnp.array([0, 2])
    stack = jax.tree.map(lambda leaf: leaf[rows], variables["params"]["h"])
    want = {"params": {**variables["params"], "h": stack}}
    got = shorter.variables["params"]
    assert jax.tree.all(jax.tree.map(np.array_equal, got, want["params"]))
    for x in (X, X[:2]):
        short = mc.trace(Scanned(2).apply, want, x).graph
        own = shorter.specialise([jax.ShapeDtypeStruct(x.shape, x.dtype)])
        names = [[e.primitive.name for e, _ in nested(g.jaxpr)] for g in (short, own)]
        assert names[0] == names[1]
    assert relative_error(value(shorter, X), Scanned(2).apply(want, X)) < 1e-6
    again = shorter >> shorter.recipe[0]
    assert again.graph is shorter.graph
    assert skipped(again) == {
        "h@1/4": "there is no such block (any more)",
        "h@3/4": "there is no such block (any more)",
    }


def scan_stack(variables, x, reverse=False):
    step = lambda x, p: (x + p["scale"] * mlp(p, x), None)  # noqa: E731
    x = jax.lax.scan(step, x, variables["layers"], reverse=reverse)[0]
    return x @ variables["head"]


@pytest.mark.parametrize("reverse", [False, True])
def test_steps_are_measured_as_layers_are(reverse):
    plain = uneven().variables
    own = list(plain["layers"].values())
    own = own[::-1] if reverse else own
    stacked = {**plain, "layers": jax.tree.map(lambda *xs: jnp.stack(xs), *own)}
    function = functools.partial(scan_stack, reverse=reverse)
    program = mc.trace(function, stacked, X)
    unrolled = uneven()
    for importance in ("angular",) if reverse else ("magnitude", "influence", squared):
        batch = [(X, jnp.zeros((4, 6, 3)))] if importance is squared else [X]
        step = layers(count=2, importance=importance, batches=batch)
        want = [key[7] for key in step.decide(unrolled).removed]
        got = [key[7] for key in step.decide(program).removed]
        names = "dcba" if reverse else "abcd"
        assert sorted(names[int(i)] for i in got) == sorted(want), importance


def test_a_loop_keeps_one_turn():
    plain = uneven().variables
    stacked = {
        **plain,
        "layers": jax.tree.map(lambda *xs: jnp.stack(xs), *plain["layers"].values()),
    }
    program = mc.trace(scan_stack, stacked, X)
    bare = program >> layers(paths="layers@*")
    assert bare.graph.leaves[1].spec.shape[0] == 1
    assert "stays: a loop has one turn at least" in skipped(bare).values()


def test_a_training_run_goes_on_with_its_moments():
    def function(v, x):
        for layer in v["list"]:
            x = x + mlp(layer, x)
        step = lambda x, p: (x + mlp(p, x), None)  # noqa: E731
        return jax.lax.scan(step, x, v["stack"])[0] @ v["head"]

    own = list(weights()["layers"].values())
    own = [{"w": p["w"], "v": p["v"]} for p in own]
    stack = jax.tree.map(lambda *xs: jnp.stack(xs), *own)
    params = {"list": own, "stack": stack, "head": normal(8, 3)}
    program = mc.trace(function, params, X)
    optimizer = optax.adam(0.1)
    state = {"params": params, "moments": optimizer.init(params), "step": 3}
    shorter = program >> layers(paths=("list/1", "stack@0"))
    moved = carry(state, program, shorter)
    assert moved["step"] == 3
    same = jax.tree.map(np.array_equal, moved["params"], shorter.variables)
    assert jax.tree.all(same)
    want = jax.eval_shape(optimizer.init, shorter.variables)
    assert jax.tree.map(jnp.shape, moved["moments"]) == jax.tree.map(jnp.shape, want)
    with pytest.raises(PlanError, match="like the variables of the program, found"):
        carry({"step": 3}, program, shorter)


def test_blocks_and_steps_go_in_one_pass_and_other_passes_follow():
    variables = {"own": weights("ab")["layers"], "head": normal(8, 3)}
    variables["layers"] = jax.tree.map(
        lambda *xs: jnp.stack(xs), *weights()["layers"].values()
    )

    def function(v, x):
        for name in sorted(v["own"]):
            x = x + mlp(v["own"][name], x)
        return scan_stack(v, x)

    program = mc.trace(function, variables, X)
    shorter = program >> mc.fold() >> layers(paths=("own/a", "layers@2")) >> mc.fold()
    rows = jnp.array([0, 1])
    small = {
        "own": {"b": variables["own"]["b"]},
        "head": variables["head"],
        "layers": jax.tree.map(lambda leaf: leaf[rows], variables["layers"]),
    }
    assert relative_error(value(shorter, X), function(small, X)) < 1e-6


def test_wrong_wishes_are_refused():
    program = uneven()
    with pytest.raises(ValueError, match="expected one of a ratio, a count and paths"):
        layers()
    with pytest.raises(ValueError, match="ratio: expected more than 0 and less than 1"):
        layers(1.0)
    with pytest.raises(ValueError, match="count: expected 1 or more, got 0"):
        layers(count=0)
    with pytest.raises(ValueError, match="unit: expected one of layer, branch"):
        layers(0.5, unit="step")
    with pytest.raises(ValueError, match="importance: expected one of magnitude"):
        layers(0.5, importance="taylor")
    with pytest.raises(ValueError, match="at most the 4 layers there are"):
        program >> layers(count=5)
    with pytest.raises(UnknownPathError, match="nearest there are: layers/b/w"):
        program >> layers(paths="layer/b")
    with pytest.raises(CalibrationError, match="expected batches to measure on"):
        program >> layers(count=1, importance="influence")
    with pytest.raises(CalibrationError, match="one finite number"):
        program >> layers(count=1, importance=lambda y: y, batches=[X])
    shapes = jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), program.variables
    )
    abstract = mc.trace(stack(BLOCKS["gain"]), shapes, X)
    with pytest.raises(VariablesMismatchError, match="traced on shapes alone"):
        abstract >> layers(count=1)
    assert len((abstract >> layers(paths="layers/b")).graph.leaves) == 14
