"""What mixed precision computes in few bits: three tables, by primitive.

After the lists of `torch.autocast`
(https://docs.pytorch.org/docs/stable/amp.html#autocast-op-reference) and the policies
of jmp (https://github.com/google-deepmind/jmp), with one difference: what merely
stands between two products follows them, and nothing else does, so an optimizer, a
loss or a statistic is never rounded, wherever its operands come from.
"""

from __future__ import annotations

LOW = ("dot_general", "conv_general_dilated", "ragged_dot_general")
"""Products: operands are rounded, sums are accumulated in float32 by the hardware."""

FOLLOW = ("add", "mul")
"""Arithmetic that is done in few bits between products: of a product's result (and
weights), for products alone. Biases, gains, masks of gradients."""

EXACT = (
    *("reshape", "transpose", "broadcast_in_dim", "squeeze", "slice", "dynamic_slice"),
    *("gather", "concatenate", "dynamic_update_slice", "pad", "rev", "copy", "split"),
    *("stack", "unstack", "tile", "stop_gradient", "name", "sharding_constraint"),
    *("layout_constraint", "all_gather", "all_to_all", "ppermute", "pmax", "pmin"),
    *("select_n", "max", "min", "neg", "abs", "sign", "clamp", "is_finite"),
    *("eq", "ne", "lt", "le", "gt", "ge", "argmax", "argmin", "sort", "top_k"),
    *("reduce_max", "reduce_min", "reduce_window_max", "reduce_window_min"),
    *("cummax", "cummin"),
)
"""Moves, choices and comparisons: done in few bits whenever their operands have few,
which changes nothing. Everything in no table stays as it is."""

ISLANDS = (
    *("sub", "div", "rem", "pow", "integer_pow", "square", "sqrt", "rsqrt", "cbrt"),
    *("exp", "exp2", "expm1", "log", "log1p", "tanh", "logistic", "erf", "erfc"),
    *("erf_inv", "sin", "cos", "tan", "sinh", "cosh", "asin", "acos", "atan"),
    *("atan2", "asinh", "acosh", "atanh", "floor", "ceil", "round", "add_any"),
    *("reduce_sum", "reduce_prod", "reduce_window_sum", "select_and_scatter_add"),
    *("cumsum", "cumprod", "cumlogsumexp"),
)
"""What stays in float32: differences and quotients (they cancel and overflow), powers,
exponentials, logarithms, squashing functions, sums and means. Norms, softmax and
losses are made of these."""
