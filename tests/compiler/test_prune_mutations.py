"""Each rule is broken in each of its faces, and a judge sees it.

Labels are broken in three ways: everything stays, nothing is tied, and everything is
tied to its neighbour. A face for shrinking or masking is left out.
"""

import functools

import numpy as np
import pytest
from architectures import ARCHITECTURES
from architectures.oracles import TOLERANCE, Case

from compiler.passes.prune.structure import RULES, Rule
from compiler.passes.prune.structure.registry import emit_alike, frozen
from compiler.passes.prune.structure.rules.shapes import sized

ALONG, POINTWISE = "plain operations along time", "plain pointwise operations"
OVER = "plain operations over units"

SHOWN_BY = {
    "plain custom derivatives": "custom_jvp_call custom_vjp_call",
    "plain dropout by key": "random_bits",
    "plain einsum convolution": "pad reshape squeeze",
    "plain elman": "scan",
    "plain equilibrium": "cond while",
    "plain fused lstm": "concatenate",
    "plain graph attention": "scatter-add",
    "plain hypernetwork": "split",
    "plain kolmogorov arnold": "iota",
    "plain memory lookup": "dynamic_update_slice scatter",
    "plain sorted experts": "ragged_dot_general",
    "plain spatial transformer": "conv_general_dilated gather",
    "equinox stacked blocks": "remat2",
    ALONG: """
        abs add argmax argmin broadcast_in_dim cholesky convert_element_type
        cumlogsumexp cummax cummin cumprod cumsum div dot_general dynamic_slice eigh fft
        gt jit logistic lu mul qr real reduce_and reduce_max reduce_min reduce_or
        reduce_prod reduce_sum reduce_window reduce_window_max reduce_window_min
        reduce_window_sum reduce_xor rev scatter-max scatter-min scatter-mul scatter-sub
        select_n slice sort stack svd tile top_k transpose triangular_solve
        unstack
    """,
    POINTWISE: """
        acos acosh and asin asinh atan atan2 atanh bessel_i0e bessel_i1e
        bitcast_convert_type cbrt ceil clamp clz complex conj copy cos cosh device_put
        digamma eq erf erf_inv erfc exp exp2 expm1 floor ge igamma igammac imag
        integer_pow is_finite le lgamma log log1p lt max min name ne neg nextafter not
        optimization_barrier or polygamma population_count pow reduce_precision
        regularized_incomplete_beta rem round rsqrt shift_left shift_right_arithmetic
        shift_right_logical sign sin sinh sqrt square stop_gradient sub tan tanh xor
        zeta
    """,
}
"""The architecture a primitive's broken rules are tried on."""

SHOWN = {name: at for at, names in SHOWN_BY.items() for name in names.split()}

ELSEWHERE = {
    ("shrink", "conv_general_dilated"): "plain grouped dilated",
    ("shrink", "pad"): "linen residual v2 padded",
    ("mask", "cond"): "plain early exit",
    **{(wrong, "reduce_max"): "plain maxout" for wrong in ("stays", "untied")},
    **{("mask", f"arg{which}"): OVER for which in ("max", "min")},
    **{
        ("mask", f"reduce_{name}"): OVER
        for name in ["and", "max", "min", "or", "prod", "sum", "xor"]
    },
    **{("mask", name): OVER for name in ["div", "jit", "mul", "top_k"]},
    **{("shrink", name): OVER for name in ["div", "jit", "mul", "tile"]},
}
"""Where another architecture is needed for a face."""

UNSEEN = """
    add_any closed_call copy_p eq_to igamma_grad_a layout_constraint le_to lt_to mul_add
    nan_to_num pcast pvary select_and_gather_add select_and_scatter_add
    sharding_constraint threefry2x32
    approx_top_k eig geqrf householder_product schur tridiagonal
    log2 one_minus_square
"""
"""No architecture has them: they are of derivatives, of several devices, inside other
operations, of a later JAX, or share the rule of a primitive that is judged."""

THE_SAME = {
    ("untied", "iota"): "what it makes is free",
    ("untied", "random_bits"): "what it makes is free",
}
"""Broken rules that are none."""


def untied(place):
    """Labels that tie nothing."""
    shapes = [getattr(var.aval, "shape", ()) for var in place.equation.outvars]
    return [tuple(map(place.labels.fresh, shape)) for shape in shapes]


def turned(labels):
    """Labels that tie each index to its neighbour."""

    def rule(place):
        return [
            tuple(v if v is None else np.roll(v, 1, axis=0) for v in axes)
            for axes in labels(place)
        ]

    return rule


def broken(primitive):
    """The rules that a primitive should not have, by what is wrong."""
    rule = RULES.of(primitive)
    found = {
        "stays": Rule(frozen, rule.shrink, rule.mask),
        "untied": Rule(untied, rule.shrink, rule.mask),
    }
    if rule.shrink is not emit_alike:
        found["shrink"] = Rule(rule.labels, emit_alike, rule.mask)
    if rule.mask is not emit_alike:
        found["mask"] = Rule(rule.labels, rule.shrink, emit_alike)
    return found


MUTANTS = [
    (wrong, primitive)
    for primitive in sorted(SHOWN)
    for wrong in broken(primitive)
    if (wrong, primitive) not in THE_SAME
]

TURNED = """
    abs add and atan2 broadcast_in_dim cos cumsum custom_jvp_call custom_vjp_call div
    dot_general exp jit max mul select_n sort sqrt tanh
"""
"""Primitives that are tried with labels in another order."""


@functools.cache
def traced(name):
    return Case(ARCHITECTURES[name])


@pytest.fixture
def put():
    """Puts a rule in a primitive's place for as long as a test takes."""
    before = {}

    def replace(primitive, rule):
        before[primitive] = RULES.of(primitive)
        RULES.replace(primitive, rule)

    yield replace
    for primitive, rule in before.items():
        RULES.replace(primitive, rule)


def is_seen(name, wrong):
    """Whether the judges see that something is wrong with a primitive."""
    try:
        case = traced(name).again()
        if wrong == "mask":
            return not case.masked() <= TOLERANCE
        judge = case.zeroed if case.architecture.unlike else case.rebuilt
        return not judge() <= TOLERANCE
    except Exception:
        return True


@pytest.mark.parametrize(("wrong", "primitive"), MUTANTS)
def test_a_broken_rule_is_seen(wrong, primitive, put):
    rules = broken(primitive)
    put(primitive, rules[wrong])
    assert is_seen(ELSEWHERE.get((wrong, primitive), SHOWN[primitive]), wrong)


@pytest.mark.parametrize("primitive", TURNED.split())
def test_labels_in_another_order_are_seen(primitive, put):
    rule = RULES.of(primitive)
    put(primitive, Rule(turned(rule.labels), rule.shrink, rule.mask))
    with pytest.raises(AssertionError, match=r"differ|order"):
        _ = traced(SHOWN[primitive]).again().named


@pytest.mark.parametrize(
    ("primitive", "name"),
    [
        ("iota", "plain llama grouped interleaved"),
        ("iota", "plain radiance field"),
        ("random_bits", "plain dropout by key"),
    ],
)
def test_indices_that_are_counted_anew_are_seen(primitive, name, put):
    """What is left keeps its position, its frequency and its place in a mask."""
    rule = RULES.of(primitive)
    put(primitive, Rule(rule.labels, sized("shape"), rule.mask))
    assert is_seen(name, "shrink")


@pytest.mark.parametrize("wrong", ["labels", "mask"])
def test_rules_that_are_right_are_not_complained_of(wrong):
    assert not is_seen("plain elman", wrong)


def test_every_primitive_with_a_rule_is_broken_or_stated():
    assert SHOWN.keys().isdisjoint(UNSEEN.split())
    assert set(RULES.primitives) == SHOWN.keys() | set(UNSEEN.split())
