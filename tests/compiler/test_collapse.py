"""Affine maps merge into the products before and after them, or the report says why."""

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from zoo import disturbed, normal, relative_error

import compiler as mc
from compiler import jaxprs
from compiler.cost import cost

TOLERANCE = 1e-6
LAYOUT = ("NHWC", "HWIO", "NHWC")


def gains(*shape, seed=3):
    """Scales between 0.1 and 10 of either sign, one of them zero."""
    random = np.random.default_rng(seed)
    values = 10 ** random.uniform(-1, 1, shape) * random.choice([-1, 1], shape)
    values.flat[0] = 0
    return jnp.asarray(values, jnp.float32)


def conv(x, kernel, padding="VALID", **options):
    strides = options.pop("strides", (1, 1))
    return jax.lax.conv_general_dilated(
        x, kernel, strides, padding, dimension_numbers=LAYOUT, **options
    )


def pooled(y, size=2, padding="VALID"):
    """Average pooling that counts the padding."""
    window, strides = (1, size, size, 1), (1, 2, 2, 1)
    total = jax.lax.reduce_window(y, 0.0, jax.lax.add, window, strides, padding)
    return total / float(size**2)


def names(program):
    """The primitives at every depth."""
    return [e.primitive.name for e, _ in jaxprs.nested(program.graph.jaxpr)]


def fold(function, variables, *inputs):
    """The folded program, after checking that it is what it should be in any case."""
    program = mc.trace(function, variables, *inputs)
    folded = program >> mc.fold()
    want = function(variables, *inputs)
    assert relative_error(folded(*inputs), want) < TOLERANCE
    assert folded.bytes <= program.bytes
    assert cost(folded.graph).flops <= cost(program.graph).flops
    again = folded >> mc.fold()
    assert not again.history[-1].events.fired
    assert str(again.graph) == str(folded.graph)
    return folded


def skipped(program):
    return [event.what for event in program.history[-1].events.skipped]


AFFINE = {"s": gains(6), "t": normal(6, seed=5)}
"""Gain and shift of six features."""


def affine(v, x):
    shape = (1,) * (x.ndim - 1) + (6,)
    return jnp.sin(x) * v["s"].reshape(shape) + v["t"].reshape(shape)


BEFORE = {
    "dense": lambda v, y: y @ v["w"] + v["b"][None],
    "dense on the other side": lambda v, y: v["w"].T @ y.T + v["b"][:, None],
    "dense of a transpose": lambda v, y: jnp.einsum("bi,io->ob", y, v["w"]) * 0.5,
}


@pytest.mark.parametrize("case", BEFORE)
def test_an_affine_map_before_a_dense_layer_is_gone(case):
    v = AFFINE | {"w": normal(6, 4), "b": normal(4)}
    folded = fold(lambda v, x: BEFORE[case](v, affine(v, x)), v, normal(3, 6))
    assert "mul" not in names(folded)
    assert names(folded).count("add") <= 1
    assert not {"s", "t"} <= set(folded.graph.paths)


GROUPS = [(1, 4), (2, 4), (3, 6), (6, 12)]


@pytest.mark.parametrize(("groups", "features"), GROUPS)
def test_an_affine_map_before_a_grouped_convolution_is_gone(groups, features):
    v = AFFINE | {"w": normal(3, 2, 6 // groups, features), "b": normal(features)}

    def function(v, x):
        y = conv(affine(v, x), v["w"], feature_group_count=groups, strides=(2, 1))
        return y + v["b"].reshape(1, 1, 1, -1)

    folded = fold(function, v, normal(2, 7, 5, 6))
    assert names(folded) == ["sin", "conv_general_dilated", "add"]


def test_a_scale_before_a_padded_or_transposed_convolution_is_gone():
    v = {"s": gains(6), "w": normal(3, 3, 6, 4), "u": normal(2, 2, 6, 5)}

    def function(v, x):
        y = jnp.sin(x) * v["s"].reshape(1, 1, 1, 6)
        z = jnp.cos(x) * v["s"].reshape(1, 1, 1, 6)
        up = jax.lax.conv_transpose(z, v["u"], (2, 2), "SAME", dimension_numbers=LAYOUT)
        return conv(y, v["w"], "SAME"), up

    folded = fold(function, v, normal(2, 5, 5, 6))
    assert "mul" not in names(folded)


def test_a_scale_before_a_padding_with_zeros_is_gone():
    v = {"s": gains(6), "w": normal(3, 3, 6, 4)}

    def function(v, x):
        y = jnp.sin(x) * v["s"].reshape(1, 1, 1, 6)
        return conv(jnp.pad(y, ((0, 0), (1, 1), (1, 1), (0, 0))), v["w"])

    folded = fold(function, v, normal(2, 5, 5, 6))
    assert "mul" not in names(folded)


def test_a_shift_before_a_padded_convolution_stays_and_the_report_says_why():
    v = AFFINE | {"w": normal(3, 3, 6, 4)}
    folded = fold(
        lambda v, x: conv(affine(v, x), v["w"], "SAME"), v, normal(2, 5, 5, 6)
    )
    assert {"mul", "add"} <= set(names(folded))
    assert any("padding" in why for why in skipped(folded))


def test_several_products_absorb_one_affine_map_together():
    v = AFFINE | {"q": normal(6, 4), "k": normal(6, 4), "b": normal(1, 4)}

    def function(v, x):
        y = affine(v, x)
        return (y @ v["q"] + v["b"]) * (y @ v["k"] - v["b"])

    folded = fold(function, v, normal(3, 6))
    assert names(folded).count("mul") == 1
    assert names(folded).count("dot_general") == 2
    assert not {"s", "t"} & set(folded.graph.paths) or len(folded.graph.paths) == 4


def test_an_affine_map_that_is_needed_elsewhere_stays_where_it_was():
    v = AFFINE | {"w": normal(6, 6), "b": normal(1, 6)}

    def function(v, x):
        y = affine(v, x)
        return jnp.tanh(y) + y @ v["w"] + v["b"]

    program = mc.trace(function, v, normal(3, 6))
    assert str(fold(function, v, normal(3, 6)).graph) == str(program.graph)


def test_one_user_that_cannot_absorb_keeps_all_others_from_it():
    v = AFFINE | {"w": normal(3, 3, 6, 4), "u": normal(1, 1, 6, 4)}
    v |= {"b": normal(1, 1, 1, 4)}

    def function(v, x):
        y = affine(v, x)
        return conv(y, v["w"], "SAME") + conv(y, v["u"]) + v["b"]

    folded = fold(function, v, normal(2, 5, 5, 6))
    assert {"s", "t", "u", "w"} <= set(folded.graph.paths)
    assert any("used elsewhere" in why for why in skipped(folded))


def test_a_bias_that_would_cost_more_than_it_saves_is_not_made():
    v = {"t": normal(1, 6), "w": normal(6, 24)}
    folded = fold(lambda v, x: (jnp.sin(x) + v["t"]) @ v["w"], v, normal(3, 6))
    assert folded.graph.paths == ["t", "w"]


def test_a_norm_is_not_traded_for_a_bias_with_more_arithmetic():
    v = {"m": normal(1, 6), "v": gains(1, 6) ** 2 + 0.1, "g": gains(1, 6)}
    v |= {"b": normal(1, 6), "w": normal(6, 24)}

    def function(v, x):
        y = (jnp.sin(x) - v["m"]) * (v["g"] * jax.lax.rsqrt(v["v"])) + v["b"]
        return y @ v["w"]

    folded = fold(function, v, normal(3, 6))
    assert names(folded)[-1] == "dot_general"


def test_what_can_not_absorb_does_not_keep_a_scale_after_it_from_merging():
    v = AFFINE | {"q": normal(6, 16), "k": normal(6, 16), "b": normal(1, 16)}

    def function(v, x):
        y = affine(v, x)
        return ((y @ v["q"] + v["b"]) / 2.0) @ (y @ v["k"]).T

    folded = fold(function, v, normal(3, 6))
    assert {"s", "t"} <= set(folded.graph.paths)
    assert "div" not in names(folded)


def test_a_number_before_a_product_moves_into_its_kernel():
    folded = fold(
        lambda v, x: (x * 0.125) @ v["w"] / 2.0, {"w": normal(6, 4)}, normal(2, 6)
    )
    assert names(folded) == ["dot_general"]


def test_a_shared_kernel_is_not_scaled_by_what_is_before_it():
    v = {"e": normal(9, 6), "s": gains(1, 6)}
    tokens = jnp.arange(4)
    folded = fold(lambda v, t: (jnp.sin(v["e"][t]) * v["s"]) @ v["e"].T, v, tokens)
    assert folded.graph.paths == ["e", "s"]
    assert any("used elsewhere" in why for why in skipped(folded))


def test_a_map_before_a_flattening_moves_into_the_dense_layer_after_it():
    v = AFFINE | {"w": normal(3 * 2 * 6, 4), "b": normal(1, 4)}

    def function(v, x):
        y = affine(v, x)
        return y.reshape(y.shape[0], -1) @ v["w"] + v["b"]

    folded = fold(function, v, normal(2, 3, 2, 6))
    assert len(folded.graph.paths) == 2


def test_means_and_average_pooling_do_not_stop_a_map():
    v = AFFINE | {"w": normal(6, 4), "b": normal(1, 4)}

    def function(v, x):
        y = pooled(affine(v, x)).mean((1, 2))
        return y @ v["w"] + v["b"]

    folded = fold(function, v, normal(2, 4, 6, 6))
    assert len(folded.graph.paths) == 2
    assert not {"mul", "div"} & set(names(folded))


BETWEEN = {
    "average pooling": lambda y: pooled(y),
    "reverse": lambda y: jnp.flip(y, 1),
    "slice": lambda y: y[:, 1:3],
    "upsampling": lambda y: jnp.repeat(y[:, :, None], 2, 2).reshape(
        y.shape[0], -1, *y.shape[2:]
    ),
    "negation": lambda y: -y,
    "reflection": lambda y: 2.0 - y,
}


@pytest.mark.parametrize("case", BETWEEN)
def test_a_map_after_what_is_linear_moves_into_the_convolution_before(case):
    v = AFFINE | {"w": normal(3, 3, 2, 6), "b": normal(6)}

    def function(v, x):
        y = BETWEEN[case](conv(x, v["w"]) + v["b"].reshape(1, 1, 1, 6))
        return y * v["s"].reshape(1, 1, 1, 6) + v["t"].reshape(1, 1, 1, 6)

    folded = fold(function, v, normal(2, 6, 6, 2))
    assert len(folded.graph.paths) == 2
    assert "mul" not in names(folded)


def test_a_bias_before_a_padded_pooling_stays_there():
    v = AFFINE | {"w": normal(3, 3, 2, 6), "b": normal(6)}

    def function(v, x):
        y = pooled(conv(x, v["w"]) + v["b"].reshape(1, 1, 1, 6), 3, "SAME")
        return y * v["s"].reshape(1, 1, 1, 6) + v["t"].reshape(1, 1, 1, 6)

    folded = fold(function, v, normal(2, 6, 6, 2))
    assert len(folded.graph.paths) == 3
    assert not {"mul", "div"} & set(names(folded))


def test_a_map_after_a_maximum_stays_and_the_report_says_why():
    v = AFFINE | {"w": normal(3, 3, 2, 6)}

    def function(v, x):
        y = nn.max_pool(conv(x, v["w"]), (2, 2), (2, 2))
        return y * v["s"].reshape(1, 1, 1, 6)

    folded = fold(function, v, normal(2, 6, 6, 2))
    assert "mul" in names(folded)
    assert any("positive" in why for why in skipped(folded))


def test_a_map_after_a_concatenation_is_split_over_the_products():
    v = {"a": normal(5, 2), "b": normal(5, 4), "c": normal(2)} | AFFINE

    def function(v, x):
        y = jnp.concatenate([x @ v["a"] + v["c"][None], x @ v["b"]], -1)
        return y * v["s"][None] + v["t"][None]

    folded = fold(function, v, normal(3, 5))
    assert names(folded) == ["dot_general", "dot_general", "concatenate", "add"]
    assert len(folded.graph.paths) == 3


def test_a_map_after_a_sum_of_products_moves_into_both():
    v = {"a": normal(5, 6), "b": normal(3, 6), "c": normal(1, 6), "d": normal(1, 6)}

    def function(v, x, h):
        y = (x @ v["a"] + v["c"]) - (h @ v["b"] + v["d"])
        return y * v["s"][None] + v["t"][None]

    folded = fold(function, v | AFFINE, normal(4, 5), normal(4, 3))
    assert sorted(names(folded)) == ["add", "dot_general", "dot_general", "sub"]
    assert len(folded.graph.paths) == 3


def test_a_sum_with_something_else_does_not_take_a_scale():
    v = {"a": normal(6, 6), "s": gains(1, 6)}
    folded = fold(lambda v, x: (x @ v["a"] + jnp.sin(x)) * v["s"], v, normal(4, 6))
    assert folded.graph.paths == ["a", "s"]


def test_a_bias_between_two_products_moves_into_the_second():
    v = {"a": normal(5, 6), "b": normal(1, 6), "c": normal(6, 3), "d": normal(1, 3)}
    folded = fold(lambda v, x: (x @ v["a"] + v["b"]) @ v["c"] + v["d"], v, normal(4, 5))
    assert names(folded) == ["dot_general", "dot_general", "add"]
    assert len(folded.graph.paths) == 3


def test_a_scale_after_heads_are_split_moves_into_the_kernel():
    v = {"w": normal(6, 8), "s": gains(4)}

    def function(v, x):
        heads = (x @ v["w"]).reshape(x.shape[0], 2, 4)
        return heads * v["s"][None, None] / 2.0

    folded = fold(function, v, normal(3, 6))
    assert names(folded) == ["dot_general", "reshape"]


def test_a_chain_of_maps_with_no_product_near_becomes_one():
    v = {
        "m": normal(1, 6),
        "r": gains(1, 6),
        "g": gains(1, 6, seed=8),
        "b": normal(1, 6),
    }

    def function(v, x):
        return jax.nn.relu((jnp.sin(x) - v["m"]) * v["r"] * v["g"] + v["b"])

    folded = fold(function, v, normal(3, 6))
    assert names(folded)[:3] == ["sin", "mul", "add"]
    assert len(folded.graph.paths) == 2


def test_a_chain_that_is_used_twice_becomes_one():
    v = {"m": normal(1, 6), "g": gains(1, 6), "b": normal(1, 6)}

    def function(v, x):
        y = (jnp.sin(x) - v["m"]) * v["g"] + v["b"]
        return jnp.tanh(y) * jnp.cos(y)

    folded = fold(function, v, normal(3, 6))
    assert names(folded) == ["sin", "mul", "add", "tanh", "cos", "mul"]


def test_of_two_scales_the_kernel_takes_the_one_it_can():
    v = {"row": gains(1, 6), "column": gains(8, 1), "w": normal(6, 4)}
    folded = fold(
        lambda v, x: (jnp.sin(x) * v["column"] * v["row"]) @ v["w"], v, normal(8, 6)
    )
    assert folded.graph.paths == ["column", "w"]


def test_maps_whose_constants_would_grow_together_stay_apart():
    v = {"row": normal(1, 6), "column": normal(8, 1)}
    folded = fold(lambda v, x: (jnp.sin(x) + v["row"]) + v["column"], v, normal(8, 6))
    assert folded.graph.paths == ["column", "row"]


def test_half_precision_takes_no_scale():
    v = {"w": normal(6, 4).astype("float16"), "s": gains(1, 4).astype("float16")}
    x = normal(2, 6).astype("float16")
    folded = mc.trace(lambda v, x: (x @ v["w"]) * v["s"], v, x) >> mc.fold()
    assert folded.graph.paths == ["s", "w"]
    assert any("float16" in why for why in skipped(folded))


def test_a_product_in_another_precision_than_its_input_is_left():
    v = {"w": normal(6, 4).astype("bfloat16"), "s": gains(1, 6)}

    def function(v, x):
        y = (jnp.sin(x) * v["s"]).astype("bfloat16")
        return jnp.dot(y, v["w"], preferred_element_type=jnp.float32)

    program = mc.trace(function, v, normal(2, 6))
    assert str((program >> mc.fold()).graph) == str(program.graph)


def test_division_by_a_number_that_is_zero_is_left():
    folded = (
        mc.trace(lambda v, x: (x / 0.0) @ v, normal(6, 4), normal(2, 6)) >> mc.fold()
    )
    assert "div" in names(folded)


def test_gradients_of_a_folded_program_reach_its_leaves():
    v = AFFINE | {"w": normal(6, 4), "b": normal(1, 4)}
    folded = fold(lambda v, x: affine(v, x) @ v["w"] + v["b"], v, normal(3, 6))
    x = normal(3, 6)
    got = jax.grad(lambda p: jnp.sum(folded.function(p, x)))(folded.variables)
    want = jnp.broadcast_to(jnp.sin(x).sum(0)[:, None], (6, 4))
    assert relative_error(got["w"], want) < TOLERANCE


def test_scales_of_every_slice_of_stacked_weights_move():
    v = {
        "w": normal(3, 6, 6),
        "s": gains(3, 1, 6),
        "t": normal(3, 1, 6),
        "b": normal(3, 1, 6),
    }

    def function(v, x):
        def layer(x, p):
            return jnp.tanh((jnp.sin(x) * p["s"] + p["t"]) @ p["w"] + p["b"]), None

        return jax.lax.scan(layer, x, v)[0]

    folded = fold(function, v, normal(2, 6))
    assert folded.graph.paths == ["b", "w"]
    assert "mul" not in names(folded)


class Attention(nn.Module):
    """Attention after a norm, and a gated layer after another."""

    norm: type = nn.LayerNorm

    @nn.compact
    def __call__(self, x):
        y = self.norm()(x)
        x = x + nn.MultiHeadDotProductAttention(2)(y, y)
        y = self.norm()(x)
        return x + nn.Dense(6)(nn.silu(nn.Dense(8)(y)) * nn.Dense(8)(y))


@pytest.mark.parametrize("norm", [nn.LayerNorm, nn.RMSNorm])
def test_what_a_norm_does_last_moves_into_queries_keys_and_values(norm):
    module, x = Attention(norm), normal(2, 5, 6)
    variables = disturbed(jax.jit(module.init)(jax.random.key(0), x))
    folded = fold(module.apply, variables, x)
    kernels = [p for p in folded.graph.paths if p.endswith("kernel")]
    assert len(kernels) == 7
    assert not any(p.endswith("scale") for p in folded.graph.paths)
    assert len(folded.graph.paths) == 14


def test_equinox_layers_under_vmap_absorb_their_norm():
    class Net(eqx.Module):
        norm: eqx.nn.LayerNorm
        first: eqx.nn.Linear

        def __call__(self, x):
            return jnp.tanh(self.first(self.norm(x)))

    net = disturbed(
        Net(eqx.nn.LayerNorm(6), eqx.nn.Linear(6, 4, key=jax.random.key(0)))
    )
    folded = fold(lambda m, x: jax.vmap(jax.vmap(m))(x), net, normal(2, 3, 6))
    assert len(folded.graph.paths) == 2


def test_nnx_and_haiku_layers_absorb_their_norm():
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.norm = nnx.RMSNorm(6, rngs=rngs)
            self.gate = nnx.Linear(6, 8, rngs=rngs)
            self.up = nnx.Linear(6, 8, use_bias=False, rngs=rngs)

        def __call__(self, x):
            y = self.norm(x)
            return nnx.silu(self.gate(y)) * self.up(y)

    graph, state = nnx.split(Net(nnx.Rngs(0)))
    folded = fold(lambda s, x: nnx.merge(graph, s)(x), disturbed(state), normal(2, 6))
    assert names(folded).count("mul") == 3
    assert not any("norm" in path for path in folded.graph.paths)

    def forward(x):
        return hk.Linear(8)(hk.LayerNorm(-1, True, True)(x))

    model = hk.without_apply_rng(hk.transform(forward))
    variables = disturbed(model.init(jax.random.key(0), normal(2, 6)))
    folded = fold(model.apply, variables, normal(2, 6))
    assert len(folded.graph.paths) == 2


class PreActivation(nn.Module):
    """A residual block whose norms come first, and a transition of a dense block."""

    @nn.compact
    def __call__(self, x):
        norm = lambda: nn.BatchNorm(use_running_average=True)  # noqa: E731
        y = nn.Conv(4, (3, 3), use_bias=False)(nn.relu(norm()(x)))
        y = nn.Conv(3, (3, 3), use_bias=False)(nn.relu(norm()(y)))
        y = jnp.concatenate([x + y, x], -1)
        y = nn.Conv(4, (1, 1), use_bias=False)(nn.relu(norm()(y)))
        return nn.relu(norm()(pooled(y)))


def test_norms_before_activations_keep_two_leaves_and_the_others_one():
    module, x = PreActivation(), normal(2, 4, 4, 3)
    variables = disturbed(jax.jit(module.init)(jax.random.key(0), x))
    folded = fold(module.apply, variables, x)
    assert len(folded.graph.paths) == 3 + 2 + 1 + 2 + 1
    assert names(folded).count("mul") == 2


def test_other_batch_sizes_absorb_the_same():
    v = AFFINE | {"w": normal(18, 4), "b": normal(1, 4)}

    def function(v, x):
        return affine(v, x).reshape(x.shape[0], -1) @ v["w"] + v["b"]

    folded = fold(function, v, normal(1, 3, 6))
    for batch in (2, 5):
        x = normal(batch, 3, 6, seed=batch)
        assert relative_error(folded(x), function(v, x)) < TOLERANCE


KINDS = ("scale", "shift", "flip", "halve", "dense", "bias", "fork", "join")
KINDS += ("split", "mean", "sin", "twice")
STEPS = st.lists(
    st.sampled_from(KINDS),
    min_size=2,
    max_size=8,
)


@settings(max_examples=25, deadline=None)
@given(STEPS)
def test_any_arrangement_keeps_its_value_and_never_grows(steps):
    def function(v, x):
        y = x
        for i, step in enumerate(steps):
            y = {
                "scale": lambda y, i: y * v["s"][i],
                "shift": lambda y, i: v["t"][i] + y,
                "flip": lambda y, i: v["t"][i] - y,
                "halve": lambda y, i: y / 2.0,
                "dense": lambda y, i: y @ v["w"][i],
                "bias": lambda y, i: y @ v["w"][i] + v["t"][i],
                "fork": lambda y, i: y @ v["w"][i] + y @ v["u"][i],
                "join": lambda y, i: jnp.concatenate(
                    [y @ v["w"][i][:, :1], y @ v["u"][i][:, 1:]], -1
                ),
                "split": lambda y, i: (
                    y.reshape(-1, 2, 2).swapaxes(1, 2).reshape(y.shape)
                ),
                "mean": lambda y, i: jnp.stack([y, y @ v["u"][i]]).mean(0),
                "sin": lambda y, i: jnp.sin(y),
                "twice": lambda y, i: y + y * v["s"][i],
            }[step](y, i)
        return y

    count = len(steps)
    v = {
        "s": [gains(1, 4, seed=i) / 2 for i in range(count)],
        "t": [normal(1, 4, seed=20 + i) for i in range(count)],
        "w": [normal(4, 4, seed=40 + i) / 2 for i in range(count)],
        "u": [normal(4, 4, seed=60 + i) / 2 for i in range(count)],
    }
    x = normal(3, 4, seed=9)
    program = mc.trace(function, v, x)
    folded = program >> mc.fold()
    (got,) = folded.graph.evaluate(folded.values, [x])
    assert relative_error(got, function(v, x)) < 1e-5
    assert folded.bytes <= program.bytes
    assert cost(folded.graph).flops <= cost(program.graph).flops
    assert str((folded >> mc.fold()).graph) == str(folded.graph)
