"""JAX's primitives, by what they do to memory and how much they compute."""

from __future__ import annotations


def _names(*lines: str) -> frozenset[str]:
    return frozenset(name for line in lines for name in line.split())


VIEWS = _names(
    "reshape squeeze stop_gradient name bitcast_convert_type random_wrap random_unwrap",
    "random_clone optimization_barrier sharding_constraint layout_constraint reshard",
    "pvary copy_p tie pin unpin",
)
"""Those whose result is the operand's own memory."""

READ_IN_PART = _names("slice dynamic_slice gather")
"""Those that read as much of their first operand as they give back."""

WRITTEN_IN_PART = _names(
    "dynamic_update_slice scatter scatter-add scatter-sub scatter-mul scatter-min",
    "scatter-max",
)
"""Those that change a part of their first operand, in place if it is not needed."""

SPREADING = _names("broadcast_in_dim broadcast_to iota")
"""Those that are cheaper to repeat than to store."""

MOVING = (
    VIEWS
    | READ_IN_PART
    | SPREADING
    | _names(
        "transpose concatenate dynamic_update_slice scatter pad rev copy split stack",
        "unstack tile convert_element_type reduce_precision real imag complex",
        "device_put empty empty2 random_seed dim_as_value dimension_size from_edtype",
        "platform_index axis_index with_memory_space_constraint create_token to_edtype",
        "after_all all_gather all_to_all ppermute pbroadcast debug_callback check",
        "lu_pivots_to_permutation debug_print",
    )
)
"""Those that move or reinterpret data and compute nothing."""

ARITHMETIC = _names(
    "add add_any sub mul div rem neg abs sign max min and or xor not eq ne ge gt le lt",
    "eq_to le_to lt_to select_n clamp floor ceil round is_finite square conj nextafter",
    "shift_left shift_right_logical shift_right_arithmetic population_count clz mulhi",
    "psum pmax pmin reduce_scatter psum_invariant",
)
"""Elementwise ones of about one step for each element of the result."""

TRANSCENDENTAL = _names(
    "exp exp2 expm1 log log1p logistic tanh tan sin cos sinh cosh asin acos atan asinh",
    "acosh atanh atan2 pow sqrt rsqrt cbrt erf erfc erf_inv lgamma digamma polygamma",
    "igamma igammac igamma_grad_a random_gamma random_gamma_grad zeta bessel_i0e",
    "bessel_i1e regularized_incomplete_beta rng_uniform",
)
"""Elementwise ones that are evaluated by a polynomial, a table or an iteration."""

ELEMENTWISE = ARITHMETIC | TRANSCENDENTAL | _names("integer_pow")

REDUCTIONS = _names(
    "reduce_sum reduce_prod reduce_max reduce_min reduce_and reduce_or reduce_xor",
    "reduce argmax argmin",
)

FUSIBLE = (
    ELEMENTWISE
    | READ_IN_PART
    | SPREADING
    | _names(
        "transpose convert_element_type concatenate pad rev copy real imag complex",
        "reduce_precision",
    )
)
"""Those a fusing compiler computes where their result is used."""

IN_PLACE = ELEMENTWISE | WRITTEN_IN_PART | _names("while scan")
"""Those that may write their result over an operand."""
