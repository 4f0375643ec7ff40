"""Counted arithmetic against XLA's own count, and against arithmetic."""

import dataclasses
import time

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest
from zoo import normal

import compiler as mc
from compiler.cost import Machine, calibrate, cost, roofline
from compiler.errors import InputMismatchError
from compiler.executable import compile as compiled


def flops(function, variables, *inputs):
    return cost(mc.trace(function, variables, *inputs).graph).flops


def xla_flops(function, *inputs):
    return jax.jit(function).lower(*inputs).compile().cost_analysis()["flops"]


def conv(x, w, strides=(1, 1), **options):
    numbers = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(
        x, w, strides, ((0, 0), (0, 0)), dimension_numbers=numbers, **options
    )


PRODUCTS = {
    "matrix": (lambda w, x: x @ w, normal(64, 32), normal(8, 64)),
    "batched": (lambda w, x: jnp.einsum("ebi,eio->ebo", x, w), normal(3, 8, 4),
                normal(3, 5, 8)),
    "convolution": (lambda w, x: conv(x, w), normal(3, 3, 8, 16), normal(2, 9, 9, 8)),
    "strided": (lambda w, x: conv(x, w, (2, 2)), normal(3, 3, 8, 16),
                normal(2, 9, 9, 8)),
    "grouped": (lambda w, x: conv(x, w, feature_group_count=4), normal(3, 3, 2, 16),
                normal(2, 9, 9, 8)),
}  # fmt: skip


@pytest.mark.parametrize("name", PRODUCTS)
def test_products_cost_what_xla_counts(name):
    function, w, x = PRODUCTS[name]
    assert flops(function, w, x) == xla_flops(function, w, x)


def test_a_scan_costs_its_body_times_its_length():
    def function(w, x):
        return jax.lax.scan(lambda c, _: (c @ w, None), x, None, length=7)[0]

    assert flops(function, normal(8, 8), normal(2, 8)) == 7 * 2 * 2 * 8 * 8


def test_nested_scans_multiply():
    def function(w, x):
        inner = lambda c, _: (c @ w, None)  # noqa: E731
        outer = lambda c, _: (jax.lax.scan(inner, c, None, length=3)[0], None)  # noqa: E731
        return jax.lax.scan(outer, x, None, length=5)[0]

    assert flops(function, normal(8, 8), normal(2, 8)) == 15 * 2 * 2 * 8 * 8


def test_of_a_cond_the_dearest_branch_counts():
    def function(w, x):
        return jax.lax.cond(x[0, 0] > 0, lambda x: x @ w @ w, lambda x: x @ w, x)

    products = 2 * 2 * 2 * 8 * 8
    assert products <= flops(function, normal(8, 8), normal(2, 8)) <= products + 4


def test_a_loop_of_unknown_length_counts_once_and_is_named():
    def function(w, x):
        return jax.lax.while_loop(lambda c: c.sum() < 9, lambda c: c @ w, x)

    found = cost(mc.trace(function, normal(8, 8), normal(2, 8)).graph)
    assert "while" in found.uncounted
    assert found.flops >= 2 * 2 * 8 * 8


def test_moving_data_is_free():
    def function(w, x):
        return jnp.concatenate([x.T.reshape(-1), w[::-1]])[None].astype(jnp.bfloat16)

    assert flops(function, normal(4), normal(2, 8)) == 0


def test_cost_is_told_by_scope():
    def function(w, x):
        with jax.named_scope("first"):
            x = x @ w
        with jax.named_scope("second"):
            return x @ w

    found = cost(mc.trace(function, normal(8, 8), normal(2, 8)).graph).by_scope
    assert found["first"] == found["second"] == 2 * 2 * 8 * 8


def test_convolutions_cost_what_xla_counts_whatever_pads_and_spreads():
    x, w = normal(2, 9, 9, 8), normal(3, 3, 8, 16)
    forms = [
        {"padding": "SAME"},
        {"padding": ((2, 0), (0, 5))},
        {"padding": "SAME", "window_strides": (2, 3)},
        {"padding": "SAME", "rhs_dilation": (2, 3)},
        {"padding": ((1, 1), (1, 2)), "lhs_dilation": (3, 2)},
        {"padding": ((4, 4),) * 2, "lhs_dilation": (2, 2), "window_strides": (3, 3)},
        {"padding": ((-1, -2), (0, 0))},
    ]
    for form in forms:
        options = {"window_strides": (1, 1)} | form

        def function(w, x, options=options):
            numbers = ("NHWC", "HWIO", "NHWC")
            return jax.lax.conv_general_dilated(x, w, dimension_numbers=numbers,
                                                **options)  # fmt: skip

        assert flops(function, w, x) == xla_flops(function, w, x), form


def test_the_backward_pass_of_a_convolution_costs_two_of_the_forward_pass():
    def function(w, x):
        loss = lambda w, x: conv(x, w, (2, 2)).sum()  # noqa: E731
        return jax.value_and_grad(loss, (0, 1))(w, x)

    w, x = normal(3, 3, 8, 16), normal(2, 9, 9, 8)
    products = 2 * 2 * 4 * 4 * 16 * 9 * 8
    forward = 3 * products + 2 * 4 * 4 * 16 - 1  # whose result is summed
    assert flops(function, w, x) == forward


@pytest.mark.parametrize(
    ("function", "each"),
    [(lambda x: x * 2.0 + 1.0, (2, 0)), (lambda x: x**2, (1, 0)),
     (lambda x: x**5, (3, 0)), (lambda x: x**-2, (2, 0)), (jnp.tanh, (0, 1)),
     (jnp.exp2, (1, 1)), (lambda x: jnp.where(x > 0, x, -x), (3, 0)),
     (jnp.maximum, (1, 0)), (jax.lax.rsqrt, (0, 1)), (jnp.floor, (1, 0)),
     (lambda x: x**2.5, (0, 1)), (jax.nn.sigmoid, (3, 1))],
)  # fmt: skip
def test_elementwise_arithmetic_is_what_xla_counts(function, each):
    x = normal(16, 8)
    inputs = (x, x) if function is jnp.maximum else (x,)
    found = cost(mc.trace(lambda _, *x: function(*x), {}, *inputs))
    assert (found.flops, found.transcendentals) == (128 * each[0], 128 * each[1])
    told = jax.jit(function).lower(*inputs).compile().cost_analysis()
    assert found.flops == told.get("flops", 0)
    assert found.transcendentals == told.get("transcendentals", 0)


def test_reductions_windows_and_scatters_are_what_xla_counts():
    x = normal(16, 8)
    functions = [
        lambda x: x.sum(0),
        lambda x: x.max(),
        lambda x: jax.lax.reduce_window(x, 0.0, jax.lax.add, (2, 2), (2, 2), "VALID"),
        lambda x: jax.lax.dynamic_slice(x, (3, 0), (2, 8)).min(1),
    ]
    for function in functions:
        assert flops(lambda _, x, f=function: f(x), {}, x) == xla_flops(function, x)


COUNTED = {
    "fft": (lambda x: jnp.fft.fft(x.astype(jnp.complex64)), (4, 64), 4 * 5 * 64 * 6),
    "rfft": (jnp.fft.rfft, (4, 64), 4 * 5 * 64 * 6 // 2),
    "irfft": (lambda x: jnp.fft.irfft(x.astype(jnp.complex64)), (4, 33), 4 * 960),
    "fft2": (lambda x: jnp.fft.fft2(x.astype(jnp.complex64)), (8, 16), 5 * 128 * 7),
    "sort": (lambda x: jax.lax.sort(x, dimension=1), (4, 64), 4 * 64 * 6),
    "top k": (lambda x: jax.lax.top_k(x, 3)[0], (4, 64), 4 * 64 * 2),
    "cholesky": (lambda x: jax.lax.linalg.cholesky(x, symmetrize_input=False),
                 (3, 6, 6), 3 * 72 + 36 * 5),
    "lu": (lambda x: jax.lax.linalg.lu(x)[0], (6, 6), 144),
    "qr": (lambda x: jax.lax.linalg.qr(x, full_matrices=False)[0], (8, 6), 864),
    "singular values": (lambda x: jax.lax.linalg.svd(x, compute_uv=False), (8, 6),
                        4 * 8 * 36 - 288),
    "triangular solve": (lambda x: jax.lax.linalg.triangular_solve(
        x[:, :6], x[:, 6:], left_side=True), (6, 10), 6 * 6 * 4),
    "running sum": (lambda x: jax.lax.cumsum(x, 1), (4, 8), 4 * 7),
    "argmax": (lambda x: jnp.argmax(x, 1), (4, 8), 4 * 7),
    "complex product": (lambda x: x.astype(jnp.complex64) @ x.astype(jnp.complex64),
                        (4, 4), 8 * 64),
    "random bits": (lambda x: jax.random.bits(jax.random.key(0), x.shape), (4, 8),
                    16 * 117),
    "select and scatter": (jax.grad(lambda x: jax.lax.reduce_window(
        x, -jnp.inf, jax.lax.max, (2, 2), (2, 2), "VALID").sum()), (4, 8), 8 * 3 + 8 * 4
        + 7),
}  # fmt: skip


@pytest.mark.parametrize("name", COUNTED)
def test_other_arithmetic_is_the_textbook_count(name):
    function, shape, expected = COUNTED[name]
    found = cost(mc.trace(lambda _, x: function(x), {}, normal(*shape)))
    assert found.flops == expected
    assert not found.uncounted


def test_a_scatter_adds_its_updates():
    numbers = jax.lax.ScatterDimensionNumbers((1,), (0,), (0,))

    def function(w, x):
        return jax.lax.scatter_add(x, w, x[:3] + 1.0, numbers)

    assert flops(function, jnp.array([[3], [5], [5]]), normal(16, 8)) == 24 + 24


def test_each_row_of_a_ragged_product_meets_one_matrix():
    sizes = jnp.array([3, 1], jnp.int32)
    function = lambda w, x: jax.lax.ragged_dot(x, w, sizes)  # noqa: E731
    assert flops(function, normal(2, 5, 7), normal(4, 5)) == 2 * 4 * 5 * 7


def test_a_linear_solve_costs_its_factorization_and_two_triangles():
    found = cost(mc.trace(jnp.linalg.solve, normal(6, 6), normal(6, 4)))
    least = 144 + 2 * 6 * 6 * 4
    assert least <= found.flops <= least + 50


def test_a_kernel_costs_what_its_author_says_and_else_is_named():
    from jax.experimental import pallas as pl

    def double(x_ref, o_ref):
        o_ref[...] = x_ref[...] * 2.0

    def call(x, **options):
        spec = jax.ShapeDtypeStruct(x.shape, x.dtype)
        return pl.pallas_call(double, out_shape=spec, interpret=True, **options)(x)

    told = pl.CostEstimate(flops=77, transcendentals=5, bytes_accessed=0)
    x = normal(4, 4)
    found = cost(mc.trace(lambda _, x: call(x, cost_estimate=told), {}, x))
    assert (found.flops, found.transcendentals, found.uncounted) == (77, 5, ())
    assert cost(mc.trace(lambda _, x: call(x), {}, x)).uncounted == ("pallas_call",)


def test_bytes_of_a_chain_fused_and_not():
    def function(w, x):
        return jnp.tanh(x @ w * 2.0 + 1.0)

    found = cost(mc.trace(function, normal(16, 8), normal(4, 16))).total
    w, x, y = 4 * 16 * 8, 4 * 4 * 16, 4 * 4 * 8
    assert (found.read, found.written) == (w + x + y, 2 * y)
    assert (found.unfused_read, found.unfused_written) == (w + x + 3 * y, 4 * y)
    assert (found.params, found.bytes) == (w, w + x + 3 * y)


def test_what_two_kernels_read_is_written():
    def function(_, x):
        y = jnp.exp(x)  # read by the sum and by the quotient
        return y / y.sum()

    x = 4 * 64
    found = cost(mc.trace(function, {}, normal(64))).total
    assert (found.read, found.written) == (x + x + x + 4, x + 4 + x)


def test_a_diamond_of_elementwise_steps_is_one_kernel():
    def function(_, x):
        y = x + 1.0
        return y * jax.nn.sigmoid(y)

    found = cost(mc.trace(function, {}, normal(64))).total
    assert (found.read, found.written) == (256, 256)
    told = jax.jit(lambda x: function(None, x)).lower(normal(64)).compile()
    assert found.bytes == told.cost_analysis()["bytes accessed"]


def test_slices_and_updates_move_their_part_only():
    found = cost(mc.trace(lambda _, x: jnp.sin(x[3:5]), {}, normal(64, 8))).total
    assert (found.read, found.written) == (64, 64)

    def update(_, x, part):
        return jax.lax.dynamic_update_slice(x, part, (3, 0))

    found = cost(mc.trace(update, {}, normal(64, 8), normal(2, 8))).total
    assert (found.read, found.written) == (64, 64)


def test_bytes_of_a_scan_are_those_of_its_steps():
    def function(w, x):
        return jax.lax.scan(lambda c, w: (c @ w, None), x, w)[0]

    found = cost(mc.trace(function, normal(5, 8, 8), normal(2, 8))).total
    assert (found.read, found.written) == (5 * (256 + 64), 5 * 64)


def test_the_peak_of_a_chain_is_two_neighbours_besides_what_is_held():
    def function(w, x):
        for _ in range(3):
            x = x @ w
        return x

    found = cost(mc.trace(function, normal(8, 8), normal(4, 8)))
    assert found.peak == found.fused_peak == 256 + 128 + 2 * 128
    given = cost(mc.trace(function, normal(8, 8), normal(4, 8)), donate=("inputs",))
    assert given.peak == 256 + 2 * 128
    assert sum(amount.live for amount in found.by_path.values()) == found.peak


def test_a_value_used_late_is_held_until_then():
    def function(w, x):
        y = x @ w
        z = jnp.sin(y)
        for _ in range(2):
            z = z @ w
        return z @ y.T

    found = cost(mc.trace(function, normal(8, 8), normal(4, 8)))
    assert found.peak == 256 + 128 + 3 * 128  # w, x, y and two of the chain


def test_the_stack_of_a_scan_is_part_of_the_peak():
    def function(w, x):
        return jax.lax.scan(lambda c, _: (c @ w, c), x, None, length=10)

    found = cost(mc.trace(function, normal(8, 8), normal(4, 8)))
    # w, x, the final carry, ten kept, and one step's new carry
    assert found.peak == 256 + 128 + 128 + 10 * 128 + 128


def test_donated_variables_are_written_over():
    def step(w, x):
        return w * x.sum()

    program = mc.trace(step, normal(64, 64), normal(4, 64))
    kept, given = cost(program), cost(program, donate=("variables",))
    assert kept.fused_peak - given.fused_peak == 4 * 64 * 64
    memory = compiled(program, donate=("variables",)).memory
    assert given.fused_peak == pytest.approx(memory.total, rel=0.1)


VIEWED = {
    "reshape": lambda: jax.lax.reshape(jnp.float32(3.0), (1,)),
    "stop_gradient": lambda: jax.lax.stop_gradient(2.0),
    "barrier": lambda: jax.lax.optimization_barrier(2.0),
    "bitcast": lambda: jax.lax.bitcast_convert_type(jnp.int32(2), jnp.float32),
}


@pytest.mark.parametrize("name", VIEWED)
def test_views_of_numbers_are_free(name):
    found = cost(mc.trace(lambda _, x: x + VIEWED[name](), (), normal(3)))
    assert found.flops == 3


def test_symbolic_extents_have_no_cost_until_they_have_numbers():
    rows = jax.ShapeDtypeStruct(jax.export.symbolic_shape("rows, 8"), "float32")
    program = mc.trace(lambda w, x: x @ w, normal(8, 2), rows)
    wanted = r"input 0 is float32\[rows, 8\]\. Trace .* on an input with numbers"
    for refused in (
        lambda: cost(program),
        lambda: mc.report(program, program),
        lambda: mc.summary(program),
        lambda: roofline(program, Machine(peak_flops=1e9, bandwidth=1e9)),
    ):
        with pytest.raises(InputMismatchError, match=wanted):
            refused()
    given = program.specialise([jax.ShapeDtypeStruct((4, 8), "float32")])
    assert cost(given).flops == 2 * 4 * 8 * 2
    leaf = mc.trace(lambda v, x: x * v["w"], {"w": rows}, normal(1, 8))
    with pytest.raises(InputMismatchError, match=r"w is float32\[rows, 8\]"):
        cost(leaf)


def test_unknown_donation_is_told():
    with pytest.raises(ValueError, match=r'donate: expected "variables", "inputs" or'):
        cost(mc.trace(lambda w, x: x @ w, normal(8, 8), normal(2, 8)), donate=(3,))


def test_costs_are_found_by_path_in_every_framework():
    layers = eqx.nn.MLP(8, 4, 16, 1, key=jax.random.key(0))
    found = cost(mc.trace(lambda net, x: jax.vmap(net)(x), layers, normal(2, 8)))
    assert found["layers/0"].flops == 2 * 2 * 8 * 16 + 2 * 2 * 16
    assert found["layers"].flops == found[""].flops == found.flops
    assert found["layers"].params == 4 * (8 * 16 + 16 + 16 * 4 + 4)
    assert set(found.grouped(1).by_path) == {"layers", ""}
    with pytest.raises(KeyError, match=r"'nope': not counted. There are: .*layers/0"):
        found["nope"]
    text = str(found).splitlines()
    assert text[0].split()[:3] == ["path", "FLOPs", "transc."]
    assert f"{found.flops:,}" in text[-2]


def test_integers_keys_scalars_and_empty_arrays_cost_something_sane():
    def function(w, x, n):
        key = jax.random.fold_in(jax.random.key(0), n)
        drawn = jax.random.bernoulli(key, 0.5, x.shape)
        return jnp.where(drawn, x, 0.0)[:0] @ w, n + 1, n.astype(jnp.bfloat16)

    x = normal(4, 8)
    found = cost(mc.trace(function, normal(8, 8), x, jnp.int32(3)))
    assert found.flops > 117
    assert not found.uncounted
    assert found.peak > x.nbytes


def test_counting_is_linear_in_the_number_of_equations():
    def chain(length):
        def function(w, x):
            for _ in range(length):
                x = jnp.sin(x) + w
            return x

        return mc.trace(function, normal(4), normal(4))

    def took(program):
        began = time.perf_counter()
        cost(program)
        return time.perf_counter() - began

    few, many = chain(250), chain(2000)
    assert min(took(many) for _ in range(3)) < 24 * min(took(few) for _ in range(3))


def test_the_roofline_is_the_longer_of_computing_and_moving():
    def function(w, x):
        with jax.named_scope("product"):
            x = x @ w
        with jax.named_scope("act"):
            return jnp.tanh(x)

    program = mc.trace(function, normal(64, 64), normal(64, 64))
    machine = Machine(peak_flops=1e9, bandwidth=1e9, transcendentals=1e8, dispatch=1e-6)
    found = roofline(program, machine)
    size = 4 * 64 * 64
    assert found["product"].limit == "compute"
    assert found["product"].seconds == pytest.approx(2 * 64**3 / 1e9)
    assert found["act"].limit == "compute"
    assert found["act"].seconds == pytest.approx(64 * 64 / 1e8)
    quick = dataclasses.replace(machine, transcendentals=None)
    assert roofline(program, quick)["act"].limit == "memory"
    assert roofline(program, quick)["act"].seconds == pytest.approx(2 * size / 1e9)
    parts = found["product"].seconds + found["act"].seconds
    assert found.seconds == pytest.approx(1e-6 + parts)
    assert "compute" in str(found)
    with pytest.raises(KeyError, match=r"'nope': does nothing"):
        found["nope"]


def test_no_program_is_faster_than_the_roofline_of_this_machine():
    machine = calibrate(seconds=0.03, megabytes=16)
    assert machine.source == "measured"
    x = normal(512, 512)
    program = mc.trace(lambda w, x: x @ w @ w, x, x)
    taken = compiled(program).latency(x)
    least = roofline(program, machine).seconds
    assert least < 3 * taken  # what else runs here may slow either
    assert taken < 100 * least
