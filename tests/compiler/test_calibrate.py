"""What products are given, measured from inside, against numpy's own forward pass."""

import functools

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from corpus import CORPUS
from flax import nnx
from jax import lax
from zoo import normal

import compiler as mc
from compiler.errors import (
    CalibrationError,
    InputMismatchError,
    VariablesMismatchError,
)
from compiler.passes.quantize.calibrate import calibrate, observe
from compiler.passes.quantize.calibrate.histogram import RESOLUTION
from compiler.sites import keyed


def numbers(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def check(site, x, y=None, computed=False):
    """A site's statistics against the activation itself, [*stack, tokens, rows].

    What the program computed in float32 is compared as such with float64's.
    """
    x = np.asarray(x, np.float64)
    exact = {"rtol": 1e-5, "atol": 1e-5} if computed else {"rtol": 0, "atol": 0}
    rest = tuple(range(len(site.loops), x.ndim))
    size = np.prod([x.shape[axis] for axis in rest])
    assert np.array_equal(site.count, np.full(site.loops, size))
    np.testing.assert_allclose(site.low, x.min(rest), **exact)
    np.testing.assert_allclose(site.high, x.max(rest), **exact)
    assert np.array_equal(site.histogram.sum(-1), site.count)
    np.testing.assert_array_equal(site.tokens, np.full(site.loops, x.shape[-2]))
    np.testing.assert_allclose(site.absmax, np.abs(x).max(-2), **exact)
    np.testing.assert_allclose(site.mean, x.mean(-2), rtol=1e-5, atol=1e-5)
    if site.hessian is not None:
        want = np.swapaxes(x, -1, -2) @ x
        assert site.hessian.dtype == np.float32
        np.testing.assert_allclose(site.hessian, want, rtol=1e-5, atol=1e-4)
    if y is not None:
        want = np.asarray(y, np.float64).mean(-2)
        np.testing.assert_allclose(site.output_mean, want, rtol=1e-5, atol=1e-5)


def of(function, variables, *inputs):
    """Everything measured of one batch."""
    program = mc.trace(function, variables, *inputs)
    return calibrate(program, [inputs], hessians=True).sites


X = numbers(4, 6, seed=1)
W = numbers(6, 5, seed=2)
SQUARE = 0.5 * numbers(3, 6, 6, seed=3)


def layers(w, x):
    """What each of a stack of layers is given, and gives before its tanh."""
    given, made = [], []
    for kernel in np.asarray(w, np.float64):
        given.append(x)
        made.append(x @ kernel)
        x = np.tanh(made[-1])
    return np.stack(given), np.stack(made)


PRODUCTS = {
    "x @ w": (lambda w, x: x @ w, W),
    "transposed": (lambda w, x: x @ w.T, W.T),
    "on the left": (lambda w, x: w.T @ x.T, W),
    "einsum": (lambda w, x: jnp.einsum("bi,io->ob", x, w), W),
    "cast": (lambda w, x: x @ w.astype(jnp.float32), jnp.asarray(W, jnp.bfloat16)),
    "a slice of columns": (lambda w, x: x @ w[:, :4], W),
    "split columns": (lambda w, x: x @ jnp.split(w, [2], axis=1)[1], W),
    "rematerialised": (lambda w, x: jax.checkpoint(jnp.matmul)(x, w), W),
    "mapped over tokens": (lambda w, x: jax.vmap(lambda x: x @ w)(x), W),
    "in a branch": (
        lambda w, x: lax.cond(x.sum() < 1e9, lambda x: x @ w, lambda x: x[:, :5], x),
        W,
    ),
    "in a loop of one turn": (
        lambda w, x: lax.fori_loop(0, 1, lambda i, h: x @ w, jnp.zeros((4, 5))),
        W,
    ),
    "in a dynamic loop": (
        lambda w, x: lax.fori_loop(
            0, (x[0, 0] < 1e9).astype(int), lambda i, h: x @ w, jnp.zeros((4, 5))
        ),
        W,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PRODUCTS, ids=lambda name: name.replace(" ", "-"))
def test_a_product_is_measured_however_it_is_written(name):
    function, w = PRODUCTS[name]
    (site,) = of(function, w, X).values()
    full = X @ np.asarray(w, np.float32).reshape(6, -1) if w.shape[0] == 6 else X @ w.T
    made = {"a slice of columns": full[:, :4], "split columns": full[:, 2:]}
    y = made.get(name, full)
    check(site, X, y)
    assert (site.kind, site.why, site.shape) == ("dot", "", w.shape)


def test_rows_are_in_the_order_of_the_leaf():
    """Heads split off, transposed and merged again before the product."""
    w = numbers(2, 3, 5)

    def function(w, x):
        return jnp.einsum("bdh,hdo->bo", x, w)

    x = numbers(4, 3, 2, seed=4)
    (site,) = of(function, w, x).values()
    given = np.swapaxes(x, 1, 2).reshape(4, 6)
    check(site, given, given @ w.reshape(6, 5))


@pytest.mark.parametrize("length", [3, 1])
def test_a_scan_over_weights_keeps_its_layers_apart(length):
    def function(w, x):
        return lax.scan(lambda h, w: (jnp.tanh(h @ w), None), x, w)[0]

    (site,) = of(function, SQUARE[:length], X).values()
    assert site.loops == (length,)
    check(site, *layers(SQUARE[:length], X), computed=True)


def test_scanned_layers_are_those_of_the_unrolled_program():
    def scanned(w, x):
        return lax.scan(jax.checkpoint(lambda h, w: (jnp.tanh(h @ w), None)), x, w)[0]

    def unrolled(w, x):
        for kernel in w:
            x = jnp.tanh(x @ kernel)
        return x

    (stack,) = of(scanned, SQUARE, X).values()
    apart = of(unrolled, list(SQUARE), X)
    assert list(apart) == ["0", "1", "2"]
    for i, site in enumerate(apart.values()):
        for name in ("count", "tokens"):
            assert np.array_equal(getattr(stack, name)[i], getattr(site, name)), name
        for name in ("low", "high", "absmax", "mean", "output_mean", "hessian"):
            np.testing.assert_allclose(
                getattr(stack, name)[i], getattr(site, name), rtol=1e-5, atol=1e-5
            )


def test_a_loop_that_reuses_a_weight_merges_its_turns():
    """A recurrent network: the weight is a constant of the scan."""
    w, x = 0.5 * numbers(6, 6), numbers(7, 4, 6, seed=1)

    def function(w, x):
        return lax.scan(lambda h, x: (jnp.tanh(h @ w + x), None), jnp.zeros((4, 6)), x)

    (site,) = of(function, w, x).values()
    h, given = np.zeros((4, 6)), []
    for step in x:
        given.append(h)
        h = np.tanh(h @ w + step)
    given = np.concatenate(given)
    assert site.loops == ()
    check(site, given, given @ w, computed=True)


def test_loops_in_loops_keep_apart_what_they_go_along_alone():
    """Layers outside, time inside; then time outside, layers inside."""
    w, x = 0.5 * numbers(2, 6, 6), numbers(5, 4, 6, seed=1)

    def outside(w, x):
        def layer(x, w):
            run = lambda h, x: (jnp.tanh(h @ w + x),) * 2  # noqa: E731
            return lax.scan(run, jnp.zeros((4, 6)), x)[1], None

        return lax.scan(layer, x, w)[0]

    given, inputs = [], x.astype(np.float64)
    for kernel in w:
        h, seen, made = np.zeros((4, 6)), [], []
        for step in inputs:
            seen.append(h)
            h = np.tanh(h @ kernel + step)
            made.append(h)
        given.append(np.concatenate(seen))
        inputs = np.stack(made)
    (site,) = of(outside, w, x).values()
    assert site.loops == (2,)
    check(site, np.stack(given), computed=True)

    def inside(w, x):
        def step(h, x):
            return lax.scan(lambda h, w: (jnp.tanh(h @ w), None), h + x, w)[0], None

        return lax.scan(step, jnp.zeros((4, 6)), x)[0]

    h, given = np.zeros((4, 6)), [[], []]
    for step in x:
        h = h + step
        for seen, kernel in zip(given, w, strict=True):
            seen.append(h)
            h = np.tanh(h @ kernel)
    (site,) = of(inside, w, x).values()
    assert site.loops == (2,)
    check(site, np.stack([np.concatenate(seen) for seen in given]), computed=True)


def test_two_scans_over_one_weight_have_both_lengths_in_their_order():
    w = 0.5 * numbers(2, 3, 6, 6)

    def function(w, x):
        inner = lambda h, w: (jnp.tanh(h @ w), None)  # noqa: E731
        return lax.scan(lambda h, w: (lax.scan(inner, h, w)[0], None), x, w)[0]

    (site,) = of(function, w, X).values()
    given, made = layers(w.reshape(6, 6, 6), X)
    assert site.loops == (2, 3)
    assert site.hessian.shape == (2, 3, 6, 6)
    check(site, given.reshape(2, 3, 4, 6), made.reshape(2, 3, 4, 6), computed=True)


def test_stacks_are_in_the_order_of_the_leaf_whatever_the_order_of_the_loops():
    """Experts first in the leaf, layers second; the scan goes along the second."""
    w, x = 0.5 * numbers(2, 3, 6, 6), numbers(2, 4, 6, seed=1)

    def function(w, x):
        step = lambda h, w: (jnp.tanh(jnp.einsum("eti,eio->eto", h, w)), None)  # noqa: E731
        return lax.scan(step, x, jnp.swapaxes(w, 0, 1))[0]

    (site,) = of(function, w, x).values()
    given, made = zip(*map(layers, w, x), strict=True)
    assert site.loops == (3,)
    assert site.absmax.shape == (2, 3, 6)
    given, made = np.stack(given), np.stack(made)
    np.testing.assert_allclose(site.absmax, np.abs(given).max(-2), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(site.output_mean, made.mean(-2), rtol=1e-5, atol=1e-5)
    want = np.swapaxes(given, -1, -2) @ given
    np.testing.assert_allclose(site.hessian, want, rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(site.high, given.max((0, 2, 3)), rtol=1e-5)


def test_experts_have_features_of_their_own_and_one_range():
    w, x = numbers(3, 6, 5), numbers(3, 4, 6, seed=1)
    (site,) = of(lambda w, x: jax.vmap(jnp.matmul)(x, w), w, x).values()
    check(site, x, x @ w)


def test_a_loop_that_picks_slices_itself_merges_them():
    def function(w, x):
        return lax.fori_loop(0, 3, lambda i, h: jnp.tanh(h @ w[i]), x)

    (site,) = of(function, SQUARE, X).values()
    given, _ = layers(SQUARE, X)
    assert site.loops == ()
    assert site.hessian.shape == (1, 6, 6)
    check(site, given.reshape(1, 12, 6), computed=True)


def test_joined_weights_are_given_the_same():
    """As in the gates of an LSTM; the output is not that of one of them."""

    def function(v, x):
        return x @ jnp.concatenate([v["a"], v["b"]], axis=1)

    found = of(function, {"a": W, "b": W[:, :2]}, X)
    assert list(found) == ["a", "b"]
    for site in found.values():
        check(site, X)
        assert site.output_mean is None


def test_weights_joined_along_their_rows_have_a_range_alone():
    def function(v, x):
        return x @ jnp.concatenate([v["a"], v["b"]], axis=0)

    found = of(function, {"a": W[:4], "b": W[4:]}, X)
    for site in found.values():
        assert site.hessian is site.mean is None
        assert "part of the rows" in site.why
        assert site.high == X.max()


def patches(x, kernel, stride, padding, dilation=1):
    """im2col by hand, rows by place and then by channel."""
    x = np.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    reach = (kernel - 1) * dilation + 1
    places = range(0, x.shape[1] - reach + 1, stride)
    found = [
        x[n, i : i + reach : dilation, j : j + reach : dilation].reshape(-1)
        for n in range(x.shape[0])
        for i in places
        for j in places
    ]
    return np.stack(found)


IMAGE = numbers(2, 6, 6, 3)


@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "dilation"),
    [(3, 2, 1, 1), (2, 1, 0, 2)],
)
def test_a_convolution_is_measured_over_patches(kernel, stride, padding, dilation):
    w = numbers(kernel, kernel, 3, 4)

    def function(w, x):
        return lax.conv_general_dilated(
            x,
            w,
            (stride, stride),
            [(padding, padding)] * 2,
            rhs_dilation=(dilation, dilation),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )

    (site,) = of(function, w, IMAGE).values()
    given = patches(IMAGE, kernel, stride, padding, dilation)
    assert site.count == IMAGE.size
    assert site.high == IMAGE.max()
    want = given.T @ given
    np.testing.assert_allclose(site.hessian, want, rtol=1e-5, atol=1e-4)
    np.testing.assert_array_equal(site.absmax, np.abs(given).max(0))
    np.testing.assert_allclose(site.mean, given.mean(0), rtol=1e-5, atol=1e-5)
    made = (given @ w.reshape(-1, 4)).mean(0)
    np.testing.assert_allclose(site.output_mean, made, rtol=1e-5, atol=1e-5)
    assert site.tokens == len(given)


def test_rows_of_a_kernel_are_in_the_order_of_its_leaf():
    """Channels first, as torch and equinox keep them."""
    w = numbers(4, 3, 2, 2)

    def function(w, x):
        return lax.conv(x, w, (1, 1), "VALID")

    (site,) = of(function, w, np.moveaxis(IMAGE, -1, 1)).values()
    given = patches(IMAGE, 2, 1, 0).reshape(-1, 4, 3).swapaxes(1, 2).reshape(-1, 12)
    np.testing.assert_allclose(site.mean, given.mean(0), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(site.hessian, given.T @ given, rtol=1e-5, atol=1e-4)
    made = (given @ w.reshape(4, -1).T).mean(0)
    np.testing.assert_allclose(site.output_mean, made, rtol=1e-5, atol=1e-5)


def test_patches_of_a_transposed_convolution_are_jaxs():
    w, x = numbers(3, 3, 3, 4), IMAGE
    numbers_ = ("NHWC", "HWIO", "NHWC")
    options = {"lhs_dilation": (2, 2), "dimension_numbers": numbers_}

    def function(w, x):
        return lax.conv_general_dilated(x, w, (1, 1), ((1, 2), (1, 2)), **options)

    (site,) = of(function, w, x).values()
    given = lax.conv_general_dilated_patches(
        jnp.asarray(x), (3, 3), (1, 1), ((1, 2), (1, 2)), **options
    )
    given = np.asarray(given, np.float64).reshape(-1, 3, 9).swapaxes(1, 2)
    given = given.reshape(-1, 27)
    np.testing.assert_allclose(site.hessian, given.T @ given, rtol=1e-5, atol=1e-4)


def test_groups_of_a_convolution_are_a_stack():
    w, x = numbers(2, 2, 2, 6), numbers(2, 5, 5, 4)

    def function(w, x):
        return lax.conv_general_dilated(
            x,
            w,
            (1, 1),
            "VALID",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=2,
        )

    (site,) = of(function, w, x).values()
    given = np.stack([patches(part, 2, 1, 0) for part in np.split(x, 2, axis=-1)])
    made = np.stack(
        [g @ k.reshape(8, 3) for g, k in zip(given, np.split(w, 2, -1), strict=True)]
    )
    np.testing.assert_allclose(site.mean, given.mean(1), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(site.output_mean, made.mean(1), rtol=1e-5, atol=1e-5)
    assert site.hessian.shape == (2, 8, 8)


def test_a_body_shared_by_two_calls_is_measured_for_each():
    """JAX keeps one body for both."""
    layer = jax.jit(lambda w, x: jnp.tanh(x @ w))

    def function(v, x):
        return layer(v["a"], layer(v["b"], layer(v["b"], x)))

    v = {"a": SQUARE[0], "b": SQUARE[1]}
    found = of(function, v, X)
    given, made = layers([v["b"], v["b"], v["a"]], X)
    assert set(found) == {"a", "b", "b#1"}
    for key, place in (("b", 0), ("b#1", 1), ("a", 2)):
        check(found[key], given[place], made[place], computed=True)


def test_a_condition_of_a_loop_is_measured_whenever_it_is_computed():
    w = 0.1 * numbers(4, 4)

    def function(w, x):
        go = lambda x: jnp.abs(x @ w).max() > 0.01  # noqa: E731
        return lax.while_loop(go, lambda x: x * 0.5, x)

    x = numbers(2, 4, seed=1)
    found = of(function, w, x)
    given = [x]
    while np.abs(given[-1] @ w).max() > 0.01:
        given.append(given[-1] * np.float32(0.5))
    assert len(given) > 3
    check(found["variables"], np.concatenate(given))


def test_a_branch_is_measured_when_it_is_taken_alone():
    def function(v, x):
        return lax.cond(x[0, 0] > 0, lambda x: x @ v["a"], lambda x: x @ v["b"], x)

    program = mc.trace(function, {"a": W, "b": W}, X)
    plus, minus = np.abs(X), -np.abs(X)
    found = calibrate(program, [plus, minus, 2 * minus]).sites
    check(found["a"], plus)
    check(found["b"], np.concatenate([minus, 2 * minus]))


def test_a_branch_in_a_scan_is_measured_in_its_turns():
    """Every second layer is left out."""

    def function(w, x):
        def layer(h, given):
            i, w = given
            return lax.cond(i % 2 == 0, lambda h: jnp.tanh(h @ w), lambda h: h, h), None

        return lax.scan(layer, x, (jnp.arange(3), w))[0]

    program = mc.trace(function, SQUARE, X)
    found = calibrate(program, [X])
    site = found.sites["variables"]
    assert site.count.tolist() == [24, 0, 24]
    assert not site.ran
    with pytest.raises(CalibrationError, match=r"never ran in turn \[1\] of its loops"):
        found.range("variables")


def test_a_mapped_loop_is_measured_until_all_are_done():
    """Examples take different numbers of turns; JAX goes on for all of them."""
    w = 0.3 * numbers(6, 6)

    def function(w, x):
        go = lambda h: (h**2).sum() > 0.1  # noqa: E731
        return jax.vmap(lambda x: lax.while_loop(go, lambda h: h @ w, x))(x)

    program = mc.trace(function, w, X)
    (outputs, found) = jax.jit(observe(program.graph))([w], [X])
    np.testing.assert_array_equal(outputs[0], program(X))
    h, given = X.astype(np.float64), []
    while (go := (h**2).sum(1) > 0.1).any():
        given.append(h)
        h = np.where(go[:, None], h @ w, h)
    assert 1 < len(given) < 20
    given = np.concatenate(given)
    assert found["variables"]["count"] == given.size
    np.testing.assert_allclose(found["variables"]["sum"], given.sum(0), rtol=1e-5)


def test_devices_measure_together():
    mesh = jax.make_mesh((1,), ("rows",), axis_types=(jax.sharding.AxisType.Auto,))
    rows, whole = jax.P("rows"), jax.P()

    def function(w, x):
        run = jax.shard_map(
            jnp.matmul, mesh=mesh, in_specs=(rows, whole), out_specs=rows
        )
        return run(x, w)

    (site,) = of(function, W, X).values()
    check(site, X, X @ W)


def test_experts_of_a_ragged_product_have_one_range():
    w, sizes = numbers(2, 6, 5), np.array([1, 3], np.int32)
    (site,) = of(lambda w, x, sizes: lax.ragged_dot(x, w, sizes), w, X, sizes).values()
    assert site.kind == "ragged"
    assert "depends on values" in site.why
    assert site.high == X.max()
    assert site.mean is None


def test_custom_derivatives_are_seen_through():
    @jax.custom_vjp
    def product(x, w):
        return x @ w

    product.defvjp(lambda x, w: (x @ w, (x, w)), lambda r, g: (g @ r[1].T, r[0].T @ g))
    (site,) = of(lambda w, x: product(x, w), W, X).values()
    check(site, X, X @ W)


def test_gradients_inside_are_measured_like_anything_else():
    def function(w, x):
        return jax.grad(lambda x: jnp.tanh(x @ w).sum())(x)

    found = of(function, W, X)
    check(found["variables"], X, X @ W)
    slope = 1 - np.tanh(X @ W) ** 2
    assert found["variables#1"].high == pytest.approx(slope.max(), rel=1e-5)
    assert found["variables#1"].count == slope.size


FIRST, SECOND = numbers(6, 7, seed=8), numbers(7, 5, seed=9)


class LinenMlp(nn.Module):
    @nn.compact
    def __call__(self, x):
        first = nn.Dense(7, use_bias=False, name="first")
        return nn.Dense(5, use_bias=False, name="second")(nn.relu(first(x)))


def linen_mlp():
    kernels = {"first": {"kernel": FIRST}, "second": {"kernel": SECOND}}
    return LinenMlp().apply, {"params": kernels}


class NnxMlp(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.Linear(6, 7, use_bias=False, rngs=rngs)
        self.second = nnx.Linear(7, 5, use_bias=False, rngs=rngs)

    def __call__(self, x):
        return self.second(nnx.relu(self.first(x)))


def nnx_mlp():
    graph, specs = nnx.split(nnx.eval_shape(lambda: NnxMlp(nnx.Rngs(0))))
    state = filled(specs, {6: FIRST, 7: SECOND})
    return (lambda s, x: nnx.merge(graph, s)(x)), state


def equinox_mlp():
    def build():
        key = jax.random.key(0)
        return eqx.nn.MLP(6, 5, 7, 1, use_bias=False, use_final_bias=False, key=key)

    net = eqx.filter_eval_shape(build)
    specs, static = eqx.partition(net, lambda x: isinstance(x, jax.ShapeDtypeStruct))
    arrays = filled(specs, {7: FIRST.T, 5: SECOND.T})
    return (lambda v, x: jax.vmap(eqx.combine(v, static))(x)), arrays


def haiku_mlp():
    net = hk.transform(lambda x: hk.nets.MLP([7, 5], with_bias=False)(x))
    params = {"mlp/~/linear_0": {"w": FIRST}, "mlp/~/linear_1": {"w": SECOND}}
    return hk.without_apply_rng(net).apply, params


def plain_mlp():
    v = {"first": FIRST, "second": SECOND}
    return (lambda v, x: jax.nn.relu(x @ v["first"]) @ v["second"]), v


def filled(specs, arrays):
    """Kernels in the place of shapes, by the extent of their first axis."""
    return jax.tree.map(lambda spec: jnp.asarray(arrays[spec.shape[0]]), specs)


@pytest.mark.parametrize(
    "build", [linen_mlp, nnx_mlp, equinox_mlp, haiku_mlp, plain_mlp]
)
def test_all_frameworks_are_measured_alike(build):
    first, second = of(*build(), X).values()
    hidden = np.maximum(X @ FIRST, 0)
    check(first, X, X @ FIRST)
    check(second, hidden, hidden @ SECOND, computed=True)


SAMPLED = (
    "plain while",
    "plain custom derivatives",
    "mixture",
    "nested scan",
    "switch",
    "checkpointed",
)


@pytest.mark.parametrize("name", SAMPLED, ids=lambda name: name.replace(" ", "-"))
def test_outputs_are_those_of_the_program_bit_for_bit(name):
    function, variables, inputs = CORPUS[name]()
    program = mc.trace(function, variables, *inputs)
    run = jax.jit(observe(program.graph, ("histogram", "absmax", "sum")))
    outputs, found = run(program.values, jax.tree.leaves(inputs))
    for got, want in zip(outputs, jax.tree.leaves(program(*inputs)), strict=True):
        assert got.dtype == want.dtype
        np.testing.assert_array_equal(got, want)
    sites = {k for k, site in keyed(program.graph).items() if site.kind != "lookup"}
    assert set(found) == sites


def test_the_observed_function_maps():
    def function(w, x):
        return lax.scan(lambda h, w: (jnp.tanh(h @ w), None), x, w)[0]

    program = mc.trace(function, SQUARE, X)
    observed = observe(program.graph, ("low", "absmax", "sum", "histogram"))
    many = np.stack([X, 2 * X, -X])
    outputs, found = jax.jit(jax.vmap(lambda x: observed([SQUARE], [x])))(many)
    run = jax.jit(lambda x: observed([SQUARE], [x]))
    for i, x in enumerate(many):
        one, alone = run(x)
        np.testing.assert_allclose(outputs[0][i], one[0], rtol=1e-5, atol=1e-5)
        for name, value in alone["variables"].items():
            got = found["variables"][name][i]
            assert (got.shape, got.dtype) == (value.shape, value.dtype), name
            if name == "histogram":  # a number may cross into the next bin
                assert np.abs(got.astype(int) - value.astype(int)).sum() <= 4
            else:
                np.testing.assert_allclose(got, value, rtol=1e-5, atol=1e-4)


def test_batches_merge_to_one_large_batch():
    program = mc.trace(lambda w, x: jnp.einsum("ti,lio->lto", x, w), SQUARE, X)
    large = numbers(11, 6, seed=5)
    parts = [large[:4], large[4:8], large[8:]]  # the last is smaller
    some = calibrate(program, parts, hessians=True).sites["variables"]
    whole = calibrate(program, [large], hessians=True).sites["variables"]
    for name in ("count", "tokens", "low", "high", "histogram", "absmax"):
        assert np.array_equal(getattr(some, name), getattr(whole, name)), name
    for name in ("mean", "output_mean", "hessian"):
        got, want = getattr(some, name), getattr(whole, name)
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


def test_the_moving_average_starts_with_the_first_batch():
    program = mc.trace(lambda w, x: x @ w, W, X)
    batches = [numbers(4, 6, seed=i) for i in range(4)]
    found = calibrate(program, batches, momentum=0.75)
    low, high = batches[0].min(), batches[0].max()
    for x in batches[1:]:
        low, high = 0.75 * low + 0.25 * x.min(), 0.75 * high + 0.25 * x.max()
    got = found.range("variables", "moving_average", symmetric=False)
    np.testing.assert_allclose(got, (low, high), rtol=1e-6)
    got = found.range("variables", "moving_average")
    np.testing.assert_allclose(got, (-max(-low, high), max(-low, high)), rtol=1e-6)


OBSERVERS = ("minmax", "moving_average", "percentile", "mse", "entropy")
BATCHES = {
    "normal": X,
    "positive": np.abs(X) + 1,
    "zeros": np.zeros_like(X),
    "one": np.full((1, 6), 0.3, np.float32),
}


@functools.cache
def calibrated(name):
    return calibrate(mc.trace(lambda w, x: x @ w, W, X), [BATCHES[name]])


@functools.cache
def calibrated_layers():
    def function(w, x):
        return lax.scan(lambda h, w: (jnp.tanh(h @ w), None), x, w)[0]

    return calibrate(mc.trace(function, SQUARE, X), [X])


@pytest.mark.parametrize("symmetric", [True, False])
def test_every_observer_works_on_one_pass(symmetric):
    found = calibrated_layers()
    given, _ = layers(SQUARE, X)
    for observer in OBSERVERS:
        low, high = found.range("variables", observer, symmetric)
        assert low.shape == high.shape == (3,)
        assert low.dtype == high.dtype == np.float32
        assert (low <= 0).all()
        assert (high > 0).all()
        assert (high <= np.abs(given).max((1, 2)) * (1 + 1e-5)).all()
        if symmetric:
            assert np.array_equal(low, -high)
    _, high = found.range("variables", ("percentile", 90), symmetric)
    magnitudes = np.abs(given) if symmetric else given
    want = np.percentile(magnitudes, 90, axis=(1, 2))
    assert (np.abs(high - want) <= 2 * RESOLUTION * want).all()


@pytest.mark.parametrize("observer", OBSERVERS)
def test_zero_is_inside_every_range(observer):
    low, high = calibrated("positive").range("variables", observer, symmetric=False)
    assert low == 0
    assert high <= np.abs(X).max() + 1
    if observer in ("minmax", "moving_average"):
        assert high == np.abs(X).max() + 1


@pytest.mark.parametrize("observer", OBSERVERS)
@pytest.mark.parametrize("symmetric", [True, False])
def test_nothing_but_zeros_is_a_range_of_nothing(observer, symmetric):
    low, high = calibrated("zeros").range("variables", observer, symmetric)
    assert low == high == 0


@pytest.mark.parametrize("observer", OBSERVERS)
def test_one_sample_is_enough(observer):
    low, high = calibrated("one").range("variables", observer)
    assert high == pytest.approx(0.3, rel=0.05)
    assert low == -high


def test_few_bits_and_integers_are_measured():
    w = jnp.asarray(W, jnp.bfloat16)
    x = jnp.asarray(X, jnp.bfloat16)
    (site,) = of(lambda w, x: x @ w, w, x).values()
    check(site, np.asarray(x, np.float32), computed=True)
    tokens = np.array([[1, 2, 3], [3, 0, 1]])

    def embedded(v, tokens):
        return v["e"][tokens] @ v["e"].T

    e = numbers(5, 6)
    found = of(embedded, {"e": e}, tokens)
    assert list(found) == ["e#1"]  # the first is a look-up
    check(found["e#1"], e[tokens].reshape(6, 6))
    codes = np.arange(-12, 12, dtype=np.int8).reshape(4, 6)
    product = functools.partial(lax.dot, preferred_element_type=jnp.float32)
    (site,) = of(lambda w, x: product(x, w.astype(jnp.int8)), W, codes).values()
    assert site.low == -12
    assert site.high == 11


def test_empty_batches_count_for_nothing():
    program = mc.trace(lambda w, x: x @ w, W, X)
    found = calibrate(program, [X[:0], X])
    check(found.sites["variables"], X, X @ W)
    kernel, image = numbers(4, 3, 2, 2), np.moveaxis(IMAGE, -1, 1)
    convolution = mc.trace(lambda w, x: lax.conv(x, w, (1, 1), "SAME"), kernel, image)
    (site,) = calibrate(convolution, [image[:0]], hessians=True).sites.values()
    assert site.count == site.tokens == 0
    assert not site.hessian.any()
    alone = calibrate(program, [X[:0]])
    with pytest.raises(CalibrationError, match="never ran in 1 batches"):
        alone.range("variables")


def test_no_batches_are_refused():
    program = mc.trace(lambda w, x: x @ w, W, X)
    with pytest.raises(CalibrationError, match="expected at least one batch, got none"):
        calibrate(program, [])
    with pytest.raises(CalibrationError, match="expected an iterable of batches, got "):
        calibrate(program, X)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_told_with_its_place_and_batch(bad):
    program = mc.trace(
        lambda v, x: jnp.tanh(x @ v["a"]) @ v["b"], {"a": SQUARE[0], "b": W}, X
    )
    wrong = X.copy()
    wrong[1, 2] = bad
    with pytest.raises(
        CalibrationError,
        match=r"^a \(.*test_calibrate.*\): expected "
        r"finite activations, got 1 infinite or nan of 24, in batch 2",
    ):
        calibrate(program, [X, wrong])


def test_a_product_that_never_ran_is_told_when_its_range_is_asked():
    def function(v, x):
        return lax.cond(x[0, 0] > 0, lambda x: x @ v["a"], lambda x: x @ v["b"], x)

    found = calibrate(mc.trace(function, {"a": W, "b": W}, X), [np.abs(X)])
    assert not found.sites["b"].ran
    assert found.sites["a"].ran
    with pytest.raises(
        CalibrationError,
        match=r"b \(.*\): .*never ran in 1 batches.*"
        r"Add a batch that runs it, or leave it out with skip=\('b',\)",
    ):
        found.range("b")
    assert "never ran" in str(found)


def test_an_unknown_product_is_told_with_those_there_are():
    found = calibrate(mc.trace(lambda v, x: x @ v["w"], {"w": W}, X), [X])
    with pytest.raises(CalibrationError, match=r"W: expected the key .* one of w"):
        found.range("W")


def test_a_batch_of_another_kind_is_the_programs_own_error():
    program = mc.trace(lambda v, x, y: (x * y) @ v["w"], {"w": W}, X, X)
    check(calibrate(program, [(X, 2 * X)]).sites["w"], X * (2 * X), computed=True)
    check(calibrate(program, [[X, 2 * X]]).sites["w"], X * (2 * X), computed=True)
    with pytest.raises(InputMismatchError, match="Call it as it was traced"):
        calibrate(program, [X])
    with pytest.raises(InputMismatchError, match="Reshape it, or cast it"):
        calibrate(program, [(X, X.astype(np.int32))])
    with pytest.raises(InputMismatchError, match="which it does not take"):
        calibrate(program, [(X[:, :3], X[:, :3])])


def test_a_program_without_arrays_cannot_be_measured():
    spec = jax.ShapeDtypeStruct((6, 5), jnp.float32)
    program = mc.trace(lambda w, x: x @ w, spec, X)
    with pytest.raises(VariablesMismatchError, match="traced on shapes alone"):
        calibrate(program, [X])


def test_a_momentum_that_is_none_is_refused():
    program = mc.trace(lambda w, x: x @ w, W, X)
    with pytest.raises(ValueError, match="momentum: expected 0 <= momentum < 1, got 1"):
        calibrate(program, [X], momentum=1)


def test_a_program_of_symbolic_extents_is_measured():
    (batch,) = jax.export.symbolic_shape("b")
    spec = jax.ShapeDtypeStruct((batch, 6), jnp.float32)
    program = mc.trace(lambda w, x: x @ w, W, spec)
    check(calibrate(program, [X, X[:1]]).sites["variables"], np.vstack([X, X[:1]]))


def test_it_is_compiled_once_for_each_shape():
    traced = []

    def function(w, x):
        traced.append(x.shape)
        return x @ w

    program = mc.trace(function, W, X)
    traced.clear()
    calibrate(program, [X, X[:2], X, X[:2], X])
    assert traced == [(2, 6)]


def test_it_prints_a_line_for_each_product():
    def function(v, x):
        h = lax.scan(lambda h, w: (jnp.tanh(h @ w), None), x, v["stack"])[0]
        return h @ jnp.exp(v["w"])

    found = calibrate(mc.trace(function, {"stack": SQUARE, "w": normal(6, 5)}, X), [X])
    head, line = str(found).splitlines()
    assert head.split() == [
        "product",
        "kind",
        "loops",
        "values",
        "min",
        "max",
        "99.9%",
        "features",
    ]
    assert line.split()[:4] == ["stack", "dot", "3", "72"]
    assert repr(found) == "Calibration(1 products, 1 batches)"
