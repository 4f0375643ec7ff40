"""Counted arithmetic against XLA's own count, and against arithmetic."""

import jax
import jax.numpy as jnp
import pytest
from zoo import normal

import compiler as mc
from compiler.cost import cost


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
