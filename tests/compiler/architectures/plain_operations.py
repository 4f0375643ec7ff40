"""Every operation once, each between weights of its own; no networks anyone would use.

They are here so that no rule of a primitive goes unjudged.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from architectures.declared import architecture, normal, plain

Operations = dict[str, Callable[..., jax.Array]]


def integer(x: jax.Array) -> jax.Array:
    return (x * 64.0).astype(jnp.int32)


def through(operation: Callable[..., Any]) -> Callable[..., jax.Array]:
    """An operation on integers, between floating numbers."""

    def apply(*operands: jax.Array) -> jax.Array:
        return operation(*map(integer, operands)).astype(jnp.float32) / 64.0

    return apply


def asked(question: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """A question that answers with zero or one."""
    return lambda *operands: question(*operands).astype(jnp.float32)


def called(names: str) -> Operations:
    """Operations of `jax.lax` by their names."""
    return {name: getattr(lax, name) for name in names.split()}


UNARY: Operations = {
    **called("abs acos asin asinh atan atanh bessel_i0e bessel_i1e cbrt ceil cos cosh"),
    **called("digamma erf erfc erf_inv exp exp2 expm1 floor lgamma log log1p logistic"),
    **called("neg round rsqrt sign sin sinh sqrt square stop_gradient tan tanh"),
    "acosh": lambda x: lax.acosh(1.0 + x),
    "clamp": lambda x: lax.clamp(0.4, x, 0.6),
    "clz": through(lax.clz),
    "complex": lambda x: lax.real(lax.conj(lax.complex(x, x) * 1j)),
    "convert_element_type": through(lambda x: x + 3),
    "copy": lambda x: lax.optimization_barrier(jnp.copy(x)),
    "imag": lambda x: lax.imag(lax.complex(x, -x)),
    "integer_pow": lambda x: lax.integer_pow(x, 3),
    "is_finite": asked(lambda x: lax.is_finite(1.0 / x)),
    "name": lambda x: checkpoint_name(x, "here"),
    "not": through(lax.bitwise_not),
    "population_count": through(lax.population_count),
    "reduce_precision": lambda x: lax.reduce_precision(x, 5, 3),
    "device_put": lambda x: jax.device_put(x, jax.devices()[0]),
    "bitcast_convert_type": lambda x: lax.bitcast_convert_type(
        lax.bitcast_convert_type(x, jnp.int32) & 0x7FFFFF00, jnp.float32
    ),
}
"""By name; they are given numbers between zero and one."""

BINARY: Operations = {
    **called("add atan2 div igamma igammac max min mul nextafter pow rem sub"),
    **{name: asked(ask) for name, ask in called("eq ge gt le lt ne").items()},
    "and": through(lax.bitwise_and),
    "or": through(lax.bitwise_or),
    "xor": through(lax.bitwise_xor),
    "shift_left": through(lambda x, y: lax.shift_left(x, y & 3)),
    "shift_right_arithmetic": through(
        lambda x, y: lax.shift_right_arithmetic(x, y & 3)
    ),
    "shift_right_logical": through(lambda x, y: lax.shift_right_logical(x, y & 3)),
    "polygamma": lambda x, y: lax.polygamma(jnp.floor(x) + 1.0, y + 1.0),
    "regularized_incomplete_beta": lambda x, y: lax.betainc(x, y, 0.3 * x + 0.2),
    "select_n": lambda x, y: lax.select(x > y, 2.0 * x, y),
    "zeta": lambda x, y: lax.zeta(x + 2.0, y + 1.0),
}
"""By name; likewise."""


def rows(names: Any, slots: str, across: str = "") -> str:
    """A table with one group for each name."""
    lines = (f"{n} 4 | {slots.replace('NAME', n)} | {across}" for n in names)
    return "\n".join(lines).replace("out/rev:", "~out/rev:")


@architecture(
    "plain",
    rows(UNARY, "in/NAME:1 out/NAME:0")
    + "\n"
    + rows(BINARY, "in/NAME:1 other/NAME:1 out/NAME:0"),
)
def pointwise_operations(w):
    def forward(p, x):
        results = {}
        for name, operation in (UNARY | BINARY).items():
            operands = [jax.nn.sigmoid(x @ p["in"][name])]
            if name in BINARY:
                operands.append(jax.nn.sigmoid(x @ p["other"][name]))
            results[name] = operation(*operands) @ p["out"][name]
        return results

    names = UNARY | BINARY
    shapes = {
        "in": {name: (3, w[name]) for name in names},
        "other": {name: (3, w[name]) for name in BINARY},
        "out": {name: (w[name], 2) for name in names},
    }
    return plain(forward, shapes, normal(2, 3))


def matrices(x: jax.Array) -> jax.Array:
    """Positive matrices, two by two, from `[batch, time, width]`."""
    x = x.swapaxes(1, 2)[..., :2]
    return x[..., :, None] * x[..., None, :] + jnp.eye(2)


def window(x: jax.Array, start: float, operation: Any) -> jax.Array:
    return lax.reduce_window(x, start, operation, (1, 2, 1), (1, 1, 1), "SAME")


def bits(x: jax.Array) -> jax.Array:
    return x > 0.5


ALONG: Operations = {
    "cumsum": lambda x: lax.cumsum(x, 1),
    "cumprod": lambda x: lax.cumprod(x, 1),
    "cummax": lambda x: lax.cummax(x, 1),
    "cummin": lambda x: lax.cummin(x, 1, reverse=True),
    "cumlogsumexp": lambda x: lax.cumlogsumexp(x, 1),
    "sort": lambda x: lax.sort(x, dimension=1),
    "rev": lambda x: lax.rev(x, (1, 2)),
    "argmax": lambda x: lax.argmax(x, 1, jnp.int32).astype(jnp.float32)[:, None],
    "argmin": lambda x: lax.argmin(x, 1, jnp.int32).astype(jnp.float32)[:, None],
    "top_k": lambda x: lax.top_k(x.swapaxes(1, 2), 2)[0].swapaxes(1, 2),
    "reduce_window_max": lambda x: window(x, -jnp.inf, lax.max),
    "reduce_window_min": lambda x: window(x, jnp.inf, lax.min),
    "reduce_window_sum": lambda x: window(x, 0.0, lax.add),
    "reduce_window": lambda x: window(x, 1.0, lax.mul),
    "reduced_min": lambda x: x.min(1, keepdims=True),
    "reduced_prod": lambda x: x.prod(1, keepdims=True),
    "reduced_and": lambda x: bits(x).all(1, keepdims=True).astype(jnp.float32),
    "reduced_or": lambda x: bits(x).any(1, keepdims=True).astype(jnp.float32),
    "reduced_xor": lambda x: asked(lax.reduce_xor)(integer(x), (1,))[:, None],
    "dynamic_slice": lambda x: lax.dynamic_slice_in_dim(
        x, (x.sum() < 99.0).astype(jnp.int32), 2, 1
    ),
    "fft": lambda x: jnp.fft.fft(x.swapaxes(1, 2)).real.swapaxes(1, 2),
    "unstack": lambda x: jnp.stack([2.0 * part for part in jnp.unstack(x, axis=1)], 1),
    "tile": lambda x: jnp.tile(x, (1, 2, 1)),
    "cholesky": lambda x: jnp.linalg.cholesky(matrices(x)).sum(-1).swapaxes(1, 2),
    "eigh": lambda x: jnp.linalg.eigvalsh(matrices(x)).swapaxes(1, 2),
    "lu": lambda x: jax.scipy.linalg.lu_factor(matrices(x))[0].sum(-1).swapaxes(1, 2),
    "qr": lambda x: jnp.abs(jnp.linalg.qr(matrices(x))[1]).sum(-1).swapaxes(1, 2),
    "svd": lambda x: jnp.linalg.svd(matrices(x), compute_uv=False).swapaxes(1, 2),
    "triangular_solve": lambda x: (
        lax.linalg.triangular_solve(
            matrices(x), matrices(x), left_side=True, lower=True
        )
        .sum(-1)
        .swapaxes(1, 2)
    ),
    **{
        name: lambda x, write=write: write(x, jnp.array([[1], [0]]), x[:, :2])
        for name, write in {
            "scatter-mul": lambda x, i, y: x.at[:, i[:, 0]].mul(y),
            "scatter-min": lambda x, i, y: x.at[:, i[:, 0]].min(y[::-1]),
            "scatter-max": lambda x, i, y: x.at[:, i[:, 0]].max(y[::-1]),
            "scatter-sub": lambda x, i, y: x.at[:, i[:, 0]].subtract(2.0 * y),
        }.items()
    },
}
"""Along time, which stays, for each of the units: `[batch, time, width]`."""

OVER: Operations = {
    "reduce_max": lambda x: x.max(-1),
    "reduce_min": lambda x: x.min(-1),
    "reduce_prod": lambda x: x.prod(-1),
    "reduce_and": lambda x: (x > 0.1).all(-1).astype(jnp.float32),
    "reduce_or": lambda x: (x > 0.97).any(-1).astype(jnp.float32),
    "reduce_xor": lambda x: lax.reduce_xor(integer(x), (2,)).astype(jnp.float32),
    "reduce_sum": lambda x: x.sum(-1),
    "multiplied": lambda x: x.sum(-1) * (1.0 / x.shape[-1]),
    "scaled": lambda x: 3.0 * x.sum(-1) / x.shape[-1],
    "chained": lambda x: x.sum(-1).mean(1, keepdims=True) / x.shape[-1],
    "squared": lambda x: jnp.einsum("btd,btd->bt", x, x) / x.shape[-1],
    "variance": lambda x: x.var(-1, ddof=1),
    "choice": lambda x: jnp.take_along_axis(
        jnp.exp(x), x.argmax(-1)[..., None], axis=-1
    )[..., 0],
    "least": lambda x: jnp.take_along_axis(
        jnp.exp(x), x.argmin(-1)[..., None], axis=-1
    )[..., 0],
    "best": lambda x: lax.top_k(x, 2)[0].sum(-1),
}
"""Over the units themselves."""


@architecture("plain", rows(ALONG, "in/NAME:1 out/NAME:0"))
def operations_along_time(w):
    def forward(p, x):
        return {
            name: operation(jax.nn.sigmoid(x @ p["in"][name])) @ p["out"][name]
            for name, operation in ALONG.items()
        }

    shapes = {
        "in": {name: (3, w[name]) for name in ALONG},
        "out": {name: (w[name], 2) for name in ALONG},
    }
    return plain(forward, shapes, normal(2, 4, 3))


@architecture(
    "plain", rows(OVER, "in/NAME:1", "a reduction of them") + "\ncopies 2 | tiled:0"
)
def operations_over_units(w):
    """What is put side by side is a product: here of copies, and the input's axis."""

    def forward(p, x):
        results = {"copied": jnp.tile(x[:, 0], (1, w["copies"])) @ p["tiled"]}
        for name, operation in OVER.items():
            results[name] = operation(jax.nn.sigmoid(x @ p["in"][name]))
        return results

    shapes = {
        "in": {name: (3, w[name]) for name in OVER},
        "tiled": (3 * w["copies"], 2),
    }
    return plain(forward, shapes, normal(2, 4, 3))


@architecture(
    "plain",
    """
    input  4 | in:1 up:1 gate:0
    hidden 6 | up:2 down:1
    """,
)
def sorted_experts(w):
    """Rows sorted by expert, how many for each is given, as one ragged product."""

    def forward(p, x, sizes):
        x = jnp.tanh(x @ p["in"])
        y = jax.nn.relu(lax.ragged_dot(x, p["up"], sizes))
        return lax.ragged_dot(y, p["down"], sizes) + x @ p["gate"]

    given, hidden = w["input"], w["hidden"]
    shapes = {"in": (3, given), "up": (3, given, hidden)}
    shapes |= {"down": (3, hidden, 2), "gate": (given, 2)}
    return plain(forward, shapes, normal(6, 3), jnp.array([1, 3, 2]))
