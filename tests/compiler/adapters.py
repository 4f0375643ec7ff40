"""Functions that use one weight in every way an adapter meets, and what tests ask."""

import collections

import jax
import jax.numpy as jnp
import numpy as np
from zoo import normal

from compiler import jaxprs
from mapping.core import Variables

W = normal(24, 32)
X = normal(4, 24)
IMAGE = normal(2, 8, 8, 12)
KERNEL = normal(3, 3, 12, 16)


def events(program):
    return {e.path: e.what for e in program.history[-1].events.fired}


def skipped(program):
    return {e.path: e.what for e in program.history[-1].events.skipped}


def disturbed(program, seed=0):
    """The program with adapters that are not zero any more."""
    random = np.random.default_rng(seed)

    def move(leaf):
        return leaf + jnp.asarray(0.1 * random.normal(size=leaf.shape), leaf.dtype)

    own = program.variables
    moved = Variables(jax.tree.map(move, own.params), own.state)
    return program.with_variables(moved)


def primitives(program):
    names = (
        e.primitive.name
        for e, _ in jaxprs.nested(program.graph.jaxpr)
        if not jaxprs.is_plain_jit(e)
    )
    return collections.Counter(names)


def conv(v, x, strides=(1, 1), numbers=("NHWC", "HWIO", "NHWC"), **options):
    return jax.lax.conv_general_dilated(
        x, v, strides, ((1, 1), (2, 1)), dimension_numbers=numbers, **options
    )


def scanned(v, x):
    return jax.lax.scan(lambda c, w: (jnp.tanh(c @ w), None), x, v)[0]


def ragged(v, x):
    return jax.lax.ragged_dot(x, v, jnp.array([1, 3], jnp.int32))


def remat_scan(v, x):
    body = jax.checkpoint(lambda c, w: (jnp.tanh(c @ w), None))
    return jax.lax.scan(body, x, v)[0]


# function, weight, input; then the update of the weight, from A and B, by numpy
SITES = {
    "x @ w": (lambda v, x: x @ v, W, X, "ir,ro->io"),
    "x @ w.T": (lambda v, x: x @ v.T, W.T, X, "ir,ro->oi"),
    "on the left": (lambda v, x: v @ x.T, W.T, X, "ir,ro->oi"),
    "heads": (
        lambda v, x: jnp.einsum("bi,iho->bho", x, v),
        W.reshape(24, 4, 8),
        X,
        "ir,rho->iho",
    ),
    "out of heads": (
        lambda v, x: jnp.einsum("bhi,hio->bo", x.reshape(4, 4, 6), v),
        W.reshape(4, 6, 32),
        X,
        "hir,ro->hio",
    ),
    "scanned": (scanned, normal(3, 24, 24) / 5, X, "lir,lro->lio"),
    "remat in a scan": (remat_scan, normal(3, 24, 24) / 5, X, "lir,lro->lio"),
    "ragged": (ragged, normal(2, 24, 8), X, "gir,gro->gio"),
    "conv": (conv, KERNEL, IMAGE, "hwir,ro->hwio"),
    "strided": (
        lambda v, x: conv(v, x, (2, 1), rhs_dilation=(1, 2)),
        KERNEL,
        IMAGE,
        "hwir,ro->hwio",
    ),
    "transposed": (
        lambda v, x: conv(v, x, lhs_dilation=(2, 2)),
        KERNEL,
        IMAGE,
        "hwir,ro->hwio",
    ),
    "grouped": (
        lambda v, x: conv(v, x, feature_group_count=4),
        normal(3, 3, 3, 16),
        IMAGE,
        "hwir,ro->hwio",
    ),
    "in a branch": (
        lambda v, x: jax.lax.cond(x.sum() > 0, lambda x: x, lambda x: x @ v, x),
        normal(24, 24),
        -jnp.abs(X),
        "ir,ro->io",
    ),
    "tied": (
        lambda v, x: v[jnp.arange(4)] @ v.T,
        normal(30, 24),
        X,
        "ir,ro->oi",
    ),
}
