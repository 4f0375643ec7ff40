"""Every use of a weight is found, with what its axes are for."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from zoo import normal

import compiler as mc
from compiler.sites import regroup, sites_by_leaf, weight_sites

X = normal(4, 16)
IMAGE = normal(2, 6, 6, 8)


def conv(w, x, **options):
    numbers, padding = ("NHWC", "HWIO", "NHWC"), ((1, 1), (1, 1))
    return jax.lax.conv_general_dilated(
        x, w, (1, 1), padding, dimension_numbers=numbers, **options
    )


def heads(v, x):
    return jnp.einsum("bi,iho->bho", x, v.reshape(16, 4, 8))


def merged(v, x):
    return x @ v.transpose(1, 0, 2).reshape(16, 8)


def scanned(v, x):
    return jax.lax.scan(lambda c, w: (jnp.tanh(c @ w), None), x, v)[0]


def picked(v, x):
    return jax.lax.fori_loop(0, 3, lambda i, x: x @ v[i], x)


def experts(v, x):
    return jax.vmap(lambda w, x: x @ w)(v, jnp.stack([x, -x, x]))


def ragged(v, x):
    return jax.lax.ragged_dot(x, v, jnp.array([1, 3], jnp.int32))


# function, weight, input -> kind, contracted axes, batched axes
SITES = {
    "x @ w": (lambda v, x: x @ v, normal(16, 8), X, "dot", {0}, set()),
    "x @ w.T": (lambda v, x: x @ v.T, normal(8, 16), X, "dot", {1}, set()),
    "w on the left": (lambda v, x: v @ x.T, normal(8, 16), X, "dot", {1}, set()),
    "split into heads": (heads, normal(16, 32), X, "dot", {0}, set()),
    "merged from heads": (merged, normal(2, 8, 8), X, "dot", {0, 1}, set()),
    "scanned": (scanned, normal(3, 16, 16), X, "dot", {1}, {0}),
    "picked in a loop": (picked, normal(3, 16, 16), X, "dot", {1}, {0}),
    "experts": (experts, normal(3, 16, 8), X, "dot", {1}, {0}),
    "ragged": (ragged, normal(2, 16, 8), X, "ragged", {1}, {0}),
    "convolution": (conv, normal(3, 3, 8, 4), IMAGE, "conv", {0, 1, 2}, set()),
    "look-up": (lambda v, x: v[x], normal(9, 4), jnp.arange(3), "lookup", {1}, set()),
    "branch": (
        lambda v, x: jax.lax.cond(x.sum() > 0, lambda x: x @ v, lambda x: x, x),
        normal(16, 16),
        X,
        "dot",
        {0},
        set(),
    ),
    "remat": (
        lambda v, x: jax.checkpoint(lambda w: x @ w)(v),
        normal(16, 8),
        X,
        "dot",
        {0},
        set(),
    ),
}


@pytest.mark.parametrize("name", SITES, ids=lambda name: name.replace(" ", "-"))
def test_the_axes_of_a_weight_are_told_apart(name):
    function, weight, x, kind, contracted, batched = SITES[name]
    program = mc.trace(function, weight, x)
    (site,) = weight_sites(program.graph)
    assert (site.kind, site.contracted, site.batched) == (kind, contracted, batched)
    assert not site.derived
    assert "test_sites.py" in site.source


def test_the_operand_and_its_axes_are_those_of_the_equation():
    program = mc.trace(lambda v, x: v["w"].T @ x.T, {"w": normal(16, 8)}, X)
    (site,) = weight_sites(program.graph)
    assert site.operand == 0
    assert site.axes == ((1,), (0,))
    assert site.equation.invars[0].aval.shape == (8, 16)


def test_a_loop_counts_how_often_a_weight_is_used():
    program = mc.trace(scanned, normal(3, 16, 16), X)
    assert weight_sites(program.graph)[0].times == 3


def test_arithmetic_on_a_weight_is_told():
    def function(v, x):
        return x @ (v["g"] * v["w"]) + v["b"]

    weights = {"w": normal(16, 8), "g": normal(1, 8), "b": normal(1, 8)}
    program = mc.trace(function, weights, X)
    (site,) = weight_sites(program.graph)
    assert program.graph.paths[site.leaf] == "w"
    assert site.derived


def test_weights_that_are_concatenated_are_all_found():
    def function(v, x):
        return x @ jnp.concatenate([v["a"], v["b"]], 1)

    program = mc.trace(function, {"a": normal(16, 4), "b": normal(16, 8)}, X)
    found = sites_by_leaf(program.graph)
    assert sorted(found) == [0, 1]
    assert found[0][0].contracted == {0}


def test_an_embedding_added_to_activations_is_no_weight_of_what_follows():
    def function(v, x):
        return (x + v["position"]) @ v["w"]

    weights = {"position": normal(4, 16), "w": normal(16, 8)}
    program = mc.trace(function, weights, X)
    assert [program.graph.paths[s.leaf] for s in weight_sites(program.graph)] == ["w"]


def test_a_tied_weight_has_a_site_for_each_use():
    def function(v, tokens):
        return v[tokens] @ v.T

    program = mc.trace(function, normal(50, 16), jnp.arange(4))
    kinds = [site.kind for site in weight_sites(program.graph)]
    assert kinds == ["lookup", "dot"]


def test_a_grouped_convolution_tells_its_groups():
    def function(v, x):
        return conv(v, x, feature_group_count=4)

    program = mc.trace(function, normal(3, 3, 2, 8), IMAGE)
    assert weight_sites(program.graph)[0].groups == 4


def test_operations_have_their_paths():
    module = nn.MultiHeadDotProductAttention(num_heads=4)
    x = normal(2, 8, 16)
    shapes = jax.eval_shape(module.init, jax.random.key(0), x)
    program = mc.trace(module.apply, shapes, x)
    found = {program.graph.paths[s.leaf]: s for s in weight_sites(program.graph)}
    assert len(found) == 4
    for name in ("query", "key", "value", "out"):
        site = found[f"params/{name}/kernel"]
        assert site.path.endswith(name)
    assert found["params/out/kernel"].contracted == {0, 1}
    assert found["params/query/kernel"].contracted == {0}


@pytest.mark.parametrize(
    ("before", "after", "want"),
    [
        ((768,), (12, 64), [((0,), (0, 1))]),
        ((3, 12, 64), (3, 768), [((0,), (0,)), ((1, 2), (1,))]),
        ((2, 1, 3), (6,), [((0, 2), (0,))]),
        ((4, 6), (6, 4), [((0, 1), (0, 1))]),
        ((1,), (), []),
        ((0, 3), (3, 0), None),
    ],
)
def test_a_reshape_falls_into_independent_ones(before, after, want):
    assert regroup(before, after) == want
