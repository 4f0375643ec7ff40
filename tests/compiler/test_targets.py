"""Products with weights in few bits: right in every layout, and never decoded whole."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from zoo import normal

from compiler import jaxprs, targets
from compiler.passes.quantize.storage.encoding import Encoding
from compiler.passes.quantize.storage.scheme import Scheme, as_scheme
from compiler.targets import choose, groups, matrices

GRAIN = 24
SCHEMES = {
    "int8": Scheme("int8"),
    "int8 tensor asymmetric": Scheme("int8", "tensor", symmetric=False),
    "int4 group 8": Scheme("int4", 8),
    "int4 uneven asymmetric": Scheme("int4", GRAIN, symmetric=False),
    "int2 channel": Scheme("int2", "channel", symmetric=False),
    "nf4": Scheme("nf4", 16),
    "float8": Scheme("float8_e4m3"),
    "mxfp4": as_scheme("mxfp4"),
}
INTEGERS = [name for name in SCHEMES if name.startswith("int")]
LAYOUTS = {
    "rows first": ((64, 40), (0,), ()),
    "rows last": ((40, 64), (1,), ()),
    "rows between": ((3, 64, 10), (1,), ()),
    "rows apart": ((8, 40, 8), (0, 2), ()),
    "a stack behind": ((64, 2, 20), (0,), (1,)),
    "two stacks": ((3, 64, 10, 2), (1,), (0, 3)),
}


@pytest.fixture
def tiny_tiles(monkeypatch):
    """As if these matrices were large: every size a few numbers."""
    sizes = {"_SMALL": 0, "_MEDIUM": 0, "_LARGE": 64, "_IN_CACHE": 256, "_ROWS": 24}
    sizes |= {"_SHARED": 512, "_INTEGER_ROWS": 24, "_COLUMNS": 8}
    for name, size in sizes.items():
        monkeypatch.setattr(choose, name, size)


def encoded(scheme, layout="rows first"):
    shape, rows, stack = LAYOUTS[layout] if isinstance(layout, str) else layout
    code = Encoding(scheme, shape, "float32", rows, stack)
    return code, {name: random(name, spec) for name, spec in code.specs.items()}


def random(name, spec):
    """Anything that could be stored."""
    draw = np.random.default_rng(len(name))
    if name == "scale":
        bits = draw.integers(120, 130, spec.shape)
        scale = bits if spec.dtype == np.uint8 else draw.uniform(0.5, 2, spec.shape)
        return jnp.asarray(scale, spec.dtype)
    if jnp.issubdtype(spec.dtype, jnp.floating):
        return jnp.asarray(draw.normal(size=spec.shape), jnp.float32).astype(spec.dtype)
    ends = np.iinfo(spec.dtype)
    values = draw.integers(ends.min, ends.max, spec.shape, endpoint=True)
    return jnp.asarray(values, spec.dtype)


def decoded(code, parts):
    return jax.jit(code.decode)(parts)


def as_matrices(code, array):
    """[*stack, rows, columns], in numpy."""
    own = code.rows + code.stack
    order = (*code.stack, *code.rows, *(a for a in range(array.ndim) if a not in own))
    stack = [array.shape[a] for a in code.stack]
    rows = math.prod(array.shape[a] for a in code.rows)
    return np.asarray(array, np.float64).transpose(order).reshape(*stack, rows, -1)


def assert_close(got, want, tolerance=2e-6):
    assert got.shape == want.shape
    assert np.abs(np.asarray(got) - want).max() <= tolerance * np.abs(want).max()


def integers(*shape, seed=0):
    values = np.random.default_rng(seed).integers(-128, 128, shape)
    return jnp.asarray(values, jnp.int8)


def primitives(function, *arguments):
    jaxpr = jaxprs.make(function, arguments)
    return [equation.primitive.name for equation, _ in jaxprs.nested(jaxpr)]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_weight_only_is_the_product_with_the_decoded_weight(layout):
    name = "int4 group 8" if len(layout) % 2 else "int8 tensor asymmetric"
    code, parts = encoded(SCHEMES[name], layout)
    matrix = as_matrices(code, decoded(code, parts))
    x = normal(*matrix.shape[:-2], 5, 64)
    y = jax.jit(lambda x, p: targets.weight_only(x, code, p))(x, parts)
    assert_close(y, np.asarray(x, np.float64) @ matrix)


@pytest.mark.parametrize(
    ("scheme", "layout"),
    [(scheme, "rows first") for scheme in SCHEMES]
    + [("int4 group 8", "rows last"), ("int8 tensor asymmetric", "two stacks")],
)
def test_tiles_give_the_same(scheme, layout, tiny_tiles):
    code, parts = encoded(SCHEMES[scheme], layout)
    matrix = as_matrices(code, decoded(code, parts))
    x = normal(*matrix.shape[:-2], 5, 64)
    product = jax.jit(lambda x, p: targets.weight_only(x, code, p))
    assert_close(product(x, parts), np.asarray(x, np.float64) @ matrix)
    assert "scan" in primitives(product, x, parts)


def test_rows_are_cut_where_they_are_stored_first(tiny_tiles):
    for name, stored, extent in (("int8", 64, 24), ("int4 group 8", 32, 16)):
        one, _ = matrices.normal(*encoded(SCHEMES[name]))
        assert choose.tiling(9, one, stored) == choose.Tiling(0, extent)
    uneven, _ = matrices.normal(*encoded(SCHEMES["int4 uneven asymmetric"]))
    assert choose.tiling(9, uneven, 32).axis == 1
    last, _ = matrices.normal(*encoded(SCHEMES["int8"], "rows last"))
    assert choose.tiling(9, last, 64).axis == 0 != last.axis


def test_small_weights_stay_plain():
    code, parts = encoded(SCHEMES["int8"])
    found = primitives(lambda x: targets.weight_only(x, code, parts), normal(5, 64))
    assert not {"scan", "cond", "platform_index"} & {*found}


def test_no_float_matrix_is_kept_for_the_derivative(tiny_tiles):
    code, parts = encoded(SCHEMES["nf4"], ((256, 96), (0,), ()))
    x = normal(2, 256)
    product = lambda x, parts: targets.weight_only(x, code, parts)  # noqa: E731
    back = jax.eval_shape(lambda x, p: jax.vjp(product, x, p)[1], x, parts)
    kept = [leaf for leaf in jax.tree.leaves(back) if hasattr(leaf, "dtype")]
    floats = [a.size for a in kept if jnp.issubdtype(a.dtype, jnp.floating)]
    assert kept
    assert max(floats, default=0) < 256 * 96 // 4


@pytest.mark.parametrize("scheme", ["int8", "int4 group 8"])
@pytest.mark.parametrize("layout", ["rows first", "rows last"])
def test_derivatives_are_those_of_the_decoded_product(scheme, layout, tiny_tiles):
    code, parts = encoded(SCHEMES[scheme], layout)
    x, back = normal(5, 64), normal(5, 40, seed=3)

    def loss(x, scale):
        y = targets.weight_only(x, code, parts | {"scale": scale})
        return jnp.sum(y * back)

    def plain(x, scale):
        w = code.decode(parts | {"scale": scale})
        w = w if layout == "rows first" else w.T
        return jnp.sum(jnp.matmul(x, w, precision="highest") * back)

    got = jax.jit(jax.grad(loss, (0, 1)))(x, parts["scale"])
    want = jax.jit(jax.grad(plain, (0, 1)))(x, parts["scale"])
    for a, b in zip(got, want, strict=True):
        assert_close(a, np.asarray(b))


def test_products_vmap_and_jvp(tiny_tiles):
    code, parts = encoded(SCHEMES["int4 group 8"])
    matrix = as_matrices(code, decoded(code, parts))
    x = normal(3, 2, 64)
    product = jax.jit(jax.vmap(lambda x: targets.weight_only(x, code, parts)))
    y, moved = jax.jvp(product, (x,), (2 * x,))
    assert_close(y, np.asarray(x, np.float64) @ matrix)
    assert_close(moved, 2 * np.asarray(y))


def test_products_export_for_other_platforms(tiny_tiles):
    code, parts = encoded(SCHEMES["int4 group 8"])
    whole = Encoding(Scheme("int8"), (64, 40), "float32", (0,))
    stored = whole.encode(normal(64, 40))

    def both(x, codes):
        total, scale = targets.integer_product(
            codes, jnp.ones((1, 1)), None, whole, stored
        )
        return targets.weight_only(x, code, parts), total, scale

    x, codes = normal(1, 64), integers(1, 64)
    platforms = ("cpu", "cuda", "tpu")
    exported = jax.export.export(jax.jit(both), platforms=platforms)(x, codes)
    for got, want in zip(exported.call(x, codes), jax.jit(both)(x, codes), strict=True):
        assert_close(got, np.asarray(want))


def test_the_sum_is_float32_for_bfloat16(tiny_tiles):
    code, parts = encoded(Scheme("int8"), ((4096, 8), (0,), ()))
    parts |= {"values": jnp.ones((4096, 8), jnp.int8), "scale": jnp.ones((1, 8))}
    y = targets.weight_only(jnp.ones((1, 4096), jnp.bfloat16), code, parts)
    assert y.dtype == jnp.bfloat16
    assert y.tolist() == [[4096.0] * 8]


def test_empty_products_are_zeros():
    code, parts = encoded(SCHEMES["int8"])
    assert targets.weight_only(jnp.zeros((0, 64)), code, parts).shape == (0, 40)
    total, _ = targets.integer_product(
        jnp.zeros((0, 64), jnp.int8), jnp.ones((0, 1)), None, code, parts
    )
    assert (total.shape, total.dtype) == ((0, 40), jnp.int32)


@pytest.mark.parametrize(
    ("scheme", "tiles", "tokens"),
    [
        ("int8 tensor asymmetric", False, 5),
        ("int8", True, 1),
        ("int2 channel", True, 5),
    ],
)
def test_integer_sums_are_those_of_numpy(scheme, tiles, tokens, request):
    if tiles:
        request.getfixturevalue("tiny_tiles")
    for layout in ("rows first",) if tiles else ("rows apart", "two stacks"):
        code, parts = encoded(SCHEMES[scheme], layout)
        ones = parts | {"scale": jnp.ones_like(parts["scale"])}
        weight = as_matrices(code, decoded(code, ones)).astype(np.int64)
        x = integers(*weight.shape[:-2], tokens, 64)
        zero = integers(*x.shape[:-1], 1, seed=1)

        def product(x, zero, parts, code=code):
            unit = jnp.ones_like(zero, jnp.float32)
            return targets.integer_product(x, unit, zero, code, parts)

        total, scale = jax.jit(product)(x, zero, ones)
        want = (np.asarray(x, np.int64) - np.asarray(zero, np.int64)) @ weight
        assert total.dtype == jnp.int32
        np.testing.assert_array_equal(total, want)
        assert (np.broadcast_to(scale, total.shape) == 1).all()


@pytest.mark.parametrize("scheme", ["int4 group 8", "int4 uneven asymmetric"])
@pytest.mark.parametrize("tiles", [False, True])
def test_groups_are_summed_in_integers(scheme, tiles, request):
    if tiles:
        request.getfixturevalue("tiny_tiles")
    for layout in ("rows first",) if tiles else ("a stack behind",):
        code, parts = encoded(SCHEMES[scheme], layout)
        weight = as_matrices(code, decoded(code, parts))
        x = integers(*weight.shape[:-2], 5, 64)
        zero = integers(*x.shape[:-1], 1, seed=1).astype(jnp.float32)
        step = jnp.abs(normal(*x.shape[:-1], 1)) + 0.1
        product = jax.jit(
            lambda *given, code=code: targets.integer_product(
                *given[:3], code, given[3]
            )
        )
        y, scale = product(x, step, zero, parts)
        want = (np.asarray(x, np.float64) - zero) * step @ weight
        assert scale is None
        assert_close(y, want)


def test_sums_that_int32_cannot_hold_are_cut():
    rows = 3 * groups.EXACT
    code = Encoding(Scheme("int8", symmetric=False), (rows, 2), "float32", (0,))
    parts = {
        "values": jnp.full((rows, 2), 127, jnp.int8),
        "scale": jnp.ones((1, 2)),
        "zero": jnp.full((1, 2), -128, jnp.int8),
    }
    x, one = jnp.full((1, rows), 127, jnp.int8), jnp.ones((1, 1))
    product = jax.jit(
        lambda x, parts: targets.integer_product(x, one, zero, code, parts)
    )
    zero = -128 * one
    y, scale = product(x, parts)
    assert scale is None
    assert_close(y, np.full((1, 2), 255.0 * 255 * rows))


def test_float8_activations_are_multiplied_as_floats():
    code, parts = encoded(SCHEMES["int8"])
    x = normal(5, 64).astype(jnp.float8_e4m3fn)
    y, scale = targets.integer_product(x, jnp.full((1, 1), 2.0), None, code, parts)
    want = 2 * np.asarray(x, np.float64) @ as_matrices(code, decoded(code, parts))
    assert scale is None
    assert_close(y, want)


@pytest.mark.parametrize("count", [1, 2, 8])
def test_integer_convolutions_are_those_of_numpy(count):
    x, kernel = integers(2, 6, 6, 8), integers(3, 3, 8 // count, 16, seed=1)

    def conv(x, kernel):
        return lax.conv_general_dilated(
            x, kernel, (1, 1), "VALID", feature_group_count=count,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )  # fmt: skip

    floats = x.astype(jnp.float32), kernel.astype(jnp.float32)
    (equation,) = jaxprs.equations(jaxprs.make(conv, floats))
    got = jax.jit(lambda *given: targets.integer_convolution(equation, *given))(
        x, kernel
    )
    windows = np.lib.stride_tricks.sliding_window_view(
        np.asarray(x, np.int64), (3, 3), (1, 2)
    )
    want = [
        np.einsum(
            "nhwckl,klco->nhwo", windows[:, :, :, i::1][:, :, :, : 8 // count], part
        )
        for i, part in zip(
            range(0, 8, 8 // count),
            np.split(np.asarray(kernel, np.int64), count, -1),
            strict=True,
        )
    ]
    assert got.dtype == jnp.int32
    np.testing.assert_array_equal(got, np.concatenate(want, -1))
