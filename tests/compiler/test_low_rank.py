"""Factorised weights: the best of their rank, used one factor at a time."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from zoo import normal, relative_error

import compiler as mc
import mapping as mp
from compiler import jaxprs
from compiler.errors import (
    NonFiniteWeightsError,
    UnknownPathError,
    VariablesMismatchError,
)
from compiler.passes.factorize import low_rank
from compiler.passes.factorize.matrix import Matrix
from compiler.passes.factorize.ranks import energy
from compiler.passes.factorize.rewriting import factorise

W = normal(24, 32)
X = normal(4, 24)
IMAGE = normal(2, 8, 8, 12)


def fired(program):
    return [event.path for event in program.history[-1].events.fired]


def skipped(program):
    return {e.path: e.what for e in program.history[-1].events.skipped}


def truncated(w, rank, rows):
    """The best approximation of a rank, by numpy, of an array whose first `rows`
    axes are its rows."""
    w = np.asarray(w, np.float64)
    matrix = w.reshape(int(np.prod(w.shape[:rows])), -1)
    u, s, v = np.linalg.svd(matrix, full_matrices=False)
    return ((u[:, :rank] * s[:rank]) @ v[:rank]).reshape(w.shape).astype(np.float32)


def conv(x, w, strides=(1, 1), numbers=("NHWC", "HWIO", "NHWC"), **options):
    padding = options.pop("padding", ((1, 1), (2, 1)))
    return jax.lax.conv_general_dilated(
        x, w, strides, padding, dimension_numbers=numbers, **options
    )


def oihw(w, x):
    x = jnp.transpose(x, (0, 3, 1, 2))
    return conv(x, w, numbers=("NCHW", "OIHW", "NCHW"))


KERNEL = normal(3, 3, 12, 16)
# function, weight, input, how many of its axes are rows once moved first
SITES = {
    "x @ w": (lambda v, x: x @ v, W, X, 1),
    "on the left": (lambda v, x: (v @ x.T).T, W, normal(4, 32), 1),
    "heads": (
        lambda v, x: jnp.einsum("bi,iho->bho", x, v),
        W.reshape(24, 4, 8),
        X,
        1,
    ),
    "reshaped": (lambda v, x: x @ v.reshape(24, 4, 8).reshape(24, 32), W, X, 1),
    "extents of one": (
        lambda v, x: x @ v.reshape(24, 1, 32)[:, 0],
        W[None],
        X,
        2,
    ),
    "half of it": (lambda v, x: x @ jnp.split(v, 2, axis=1)[1], W, X, 1),
    "cast": (lambda v, x: x @ v.astype(jnp.float32), W, X, 1),
    "conv": (lambda v, x: conv(x, v), KERNEL, IMAGE, 3),
    "strided": (lambda v, x: conv(x, v, (2, 1)), KERNEL, IMAGE, 3),
    "dilated": (lambda v, x: conv(x, v, rhs_dilation=(2, 2)), KERNEL, IMAGE, 3),
    "transposed": (lambda v, x: conv(x, v, lhs_dilation=(2, 2)), KERNEL, IMAGE, 3),
    "look-up": (lambda v, x: v[x], normal(32, 24), jnp.arange(5), 1),
}


@pytest.mark.parametrize("name", SITES, ids=lambda name: name.replace(" ", "-"))
def test_the_program_is_that_of_the_truncated_weight(name):
    function, weight, x, rows = SITES[name]
    program = mc.trace(function, weight, x)
    small = program >> low_rank(5)
    assert fired(small) == ["variables"]
    assert small.size < program.size
    assert relative_error(small(x), function(truncated(weight, 5, rows), x)) < 1e-5
    again = small >> low_rank(5)
    assert again.graph is small.graph
    assert not fired(again)


def test_a_kernel_of_another_layout_is_factorised_too():
    kernel = normal(16, 12, 3, 3)
    small = mc.trace(oihw, kernel, IMAGE) >> low_rank(4)
    assert relative_error(small(IMAGE), oihw(truncated(kernel, 4, 1), IMAGE)) < 1e-5


def test_no_weight_is_multiplied_out():
    for name in ("x @ w", "heads", "conv", "look-up"):
        function, weight, x, _ = SITES[name]
        small = mc.trace(function, weight, x) >> low_rank(5)
        made = [v for e, _ in jaxprs.nested(small.graph.jaxpr) for v in e.outvars]
        assert all(v.aval.shape != weight.shape for v in made), name


def test_a_convolution_becomes_one_to_few_channels_and_one_of_a_single_pixel():
    small = mc.trace(lambda v, x: conv(x, v), KERNEL, IMAGE) >> low_rank(4)
    kernels = [
        e.invars[1].aval.shape
        for e, _ in jaxprs.nested(small.graph.jaxpr)
        if e.primitive.name == "conv_general_dilated"
    ]
    assert kernels == [(3, 3, 12, 4), (1, 1, 4, 16)]


@pytest.mark.parametrize(
    "options",
    [{}, {"strides": (2, 1)}, {"rhs_dilation": (1, 2)}, {"lhs_dilation": (2, 1)}],
    ids=str,
)
def test_a_convolution_can_be_split_along_its_two_axes(options):
    function = lambda v, x: conv(x, v, **options)  # noqa: E731
    small = mc.trace(function, KERNEL, IMAGE) >> low_rank(6, spatial=True)
    kernels = [
        e.invars[1].aval.shape
        for e, _ in jaxprs.nested(small.graph.jaxpr)
        if e.primitive.name == "conv_general_dilated"
    ]
    assert kernels == [(3, 1, 12, 6), (1, 3, 6, 16)]
    turned = np.asarray(KERNEL).transpose(0, 2, 1, 3)  # (kh, in), (kw, out)
    want = truncated(turned, 6, 2).transpose(0, 2, 1, 3)
    assert relative_error(small(IMAGE), function(want, IMAGE)) < 1e-5


def test_stacked_weights_share_a_rank_and_have_their_own_factors():
    stack = normal(3, 24, 24) / 5

    def function(v, x):
        return jax.lax.scan(lambda c, w: (jnp.tanh(c @ w), None), x, v)[0]

    small = mc.trace(function, stack, X) >> low_rank(4)
    assert [leaf.spec.shape for leaf in small.graph.leaves] == [(3, 24, 4), (3, 4, 24)]
    want = jnp.stack([truncated(w, 4, 1) for w in stack])
    assert relative_error(small(X), function(want, X)) < 1e-5


def test_the_spectral_error_is_the_next_singular_value():
    matrix = Matrix("w", W.shape, (), (0,), (1,))
    singular = np.linalg.svd(np.asarray(W, np.float64), compute_uv=False)
    for rank in (1, 7, 20):
        left, right = factorise(matrix, W, rank)
        error = np.linalg.norm(np.asarray(W) - np.asarray(left @ right), 2)
        assert error == pytest.approx(singular[rank], rel=1e-4)


def test_full_rank_is_exact():
    left, right = factorise(Matrix("w", W.shape, (), (0,), (1,)), W, 24)
    assert relative_error(left @ right, W) < 2e-6


def test_energy_chooses_the_smallest_rank_that_keeps_it():
    spectrum = np.array([4.0, 2.0, 1.0, 0.5] + [0.0] * 20)
    q, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(24, 24)))
    w = jnp.asarray(q * spectrum, jnp.float32)
    program = mc.trace(lambda v, x: x @ v, w, X)
    for wanted in (0.7, 0.9, 0.95, 0.999):
        squares = np.cumsum(spectrum**2) / np.sum(spectrum**2)
        rank = int(np.argmax(squares >= wanted)) + 1
        small = program >> low_rank(energy=wanted)
        assert small.variables["variables"]["left"].shape == (24, rank)
        assert f"{squares[rank - 1]:.2%}" in str(small.history[-1].events.fired[0])


def test_a_budget_is_kept_and_spent_where_it_keeps_most():
    rng = np.random.default_rng(0)
    low = jnp.asarray(rng.normal(size=(32, 2)) @ rng.normal(size=(2, 32)), jnp.float32)
    weights = {"full": normal(32, 32), "low": low}
    program = mc.trace(lambda v, x: x @ v["full"] @ v["low"], weights, normal(4, 32))
    small = program >> low_rank(budget=0.5)
    assert small.size <= 0.5 * program.size
    assert small.size > 0.4 * program.size
    ranks = {path: rank for path, rank, _ in small.recipe[-1].ranks}
    assert ranks["low"] == 2 < ranks["full"]


def test_what_would_not_get_smaller_stays_with_a_reason():
    def function(v, x):
        y = conv(x, v["grouped"], feature_group_count=4).reshape(2, -1)
        return (y[:, :24] @ v["small"]) @ (v["normed"] / jnp.sum(v["normed"]))

    weights = {
        "grouped": normal(3, 3, 3, 12),
        "normed": normal(3, 40),
        "small": normal(24, 3),
    }
    program = mc.trace(function, weights, IMAGE)
    small = program >> low_rank(3)
    assert small.graph is program.graph
    why = skipped(small)
    assert why["grouped"] == "is the kernel of a grouped convolution"
    assert why["small"] == (
        "would not get smaller: 24 x 3 needs a rank of at most 2, not 3"
    )
    assert why["normed"].startswith("is needed whole by ")


def test_gradients_are_those_of_the_factors():
    function, weight, x, _ = SITES["conv"]
    small = mc.trace(function, weight, x) >> low_rank(4)
    v = small.variables["variables"]

    def dense(v):
        return jnp.sum(jnp.sin(conv(x, jnp.einsum("hwir,ro->hwio", *v.values()))))

    got = jax.grad(lambda v: jnp.sum(jnp.sin(small.function(v, x))))(small.variables)
    assert relative_error(got["variables"], jax.grad(dense)(v)) < 1e-5


def test_other_batch_sizes_use_the_same_factors():
    function, weight, _, _ = SITES["x @ w"]
    small = mc.trace(function, weight, X) >> low_rank(energy=0.7)
    x = normal(9, 24, seed=4)
    want = x @ small.variables["variables"]["left"]
    want = want @ small.variables["variables"]["right"]
    assert relative_error(small(x), want) < 1e-5


def test_a_program_of_shapes_is_factorised_by_rank_only():
    spec = jax.ShapeDtypeStruct((24, 32), "float32")
    program = mc.trace(lambda v, x: x @ v, spec, X)
    assert (program >> low_rank(4)).size == 4 * (24 + 32)
    with pytest.raises(VariablesMismatchError, match=r"shapes alone. Give rank="):
        program >> low_rank(energy=0.9)


def test_an_equinox_model_is_factorised_by_path():
    model = eqx.nn.MLP(24, 24, 32, 2, key=jax.random.key(0))
    program = mc.trace(lambda m, x: jax.vmap(m)(x), model, X)
    small = program >> low_rank(4, path="layers/1")
    assert fired(small) == ["layers/1/weight"]


def test_bfloat16_weights_keep_their_dtype():
    w, x = W.astype(jnp.bfloat16), X.astype(jnp.bfloat16)
    small = mc.trace(lambda v, x: x @ v, w, x) >> low_rank(8)
    assert {leaf.spec.dtype for leaf in small.graph.leaves} == {jnp.dtype("bfloat16")}
    want = np.asarray(X) @ truncated(w.astype(jnp.float32), 8, 1)
    assert relative_error(small(x), want) < 0.02


def test_it_is_written_as_configuration_and_read_back():
    step = low_rank(energy=0.9, path=("a/*", "b"))
    assert mp.from_config(mp.to_config(step)) == step
    decided = (mc.trace(lambda v, x: x @ v, W, X) >> low_rank(4)).recipe[-1]
    back = mp.from_config(mp.to_config(decided))
    assert back.ranks == decided.ranks


def test_a_matrix_of_zeros_keeps_all_its_energy():
    assert energy(np.zeros((1, 4)), 1) == 1.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r"expected one of rank, energy and budget, got 0"),
        ({"rank": 2, "energy": 0.5}, r"got 2. Give exactly one"),
        ({"rank": 0}, r"expected a rank of at least 1, got 0"),
        ({"energy": 1.5}, r"expected an energy in \(0, 1\], got 1.5"),
        ({"budget": 1.0}, r"expected a budget in \(0, 1\), got 1.0"),
    ],
)
def test_a_choice_that_is_none_is_an_error(options, message):
    with pytest.raises(ValueError, match=message):
        low_rank(**options)


def test_a_budget_that_cannot_be_met_is_an_error():
    program = mc.trace(lambda v, x: x @ v, W, X)
    with pytest.raises(ValueError, match=r"at least 56 numbers .* got 7"):
        program >> low_rank(budget=0.01)


def test_a_glob_that_names_nothing_is_an_error():
    program = mc.trace(lambda v, x: x @ v["w"], {"w": W}, X)
    with pytest.raises(UnknownPathError, match=r"head: names no leaf .* leaves: w"):
        program >> low_rank(2, path="head")


def test_weights_that_are_not_finite_are_an_error():
    program = mc.trace(lambda v, x: x @ v["w"], {"w": W.at[0, 0].set(jnp.nan)}, X)
    with pytest.raises(NonFiniteWeightsError, match=r"w: expected finite weights"):
        program >> low_rank(2)


def test_a_weight_that_is_carried_or_returned_stays_whole():
    def function(v, x):
        def step(carry, _):
            w, y = carry
            return (w * 0.5, jnp.tanh(y @ w)), None

        return jax.lax.scan(step, (v["carried"], x), None, length=2)[0], v["out"]

    weights = {"carried": normal(24, 24), "out": normal(24, 24)}
    program = mc.trace(
        lambda v, x: (function(v, x), x @ v["out"] @ v["carried"]), weights, X
    )
    small = program >> low_rank(2)
    assert skipped(small)["carried"].startswith("is needed whole by scan (")
    assert skipped(small)["out"] == "is needed whole by an output"


def test_the_gradient_of_a_convolution_takes_the_factors_too():
    def function(v, x):
        return jax.grad(lambda x: jnp.sum(conv(x, v, (2, 1)) ** 2))(x)

    small = mc.trace(function, KERNEL, IMAGE) >> low_rank(4)
    assert fired(small) == ["variables"]
    want = function(truncated(KERNEL, 4, 3), IMAGE)
    assert relative_error(small(IMAGE), want) < 1e-5
