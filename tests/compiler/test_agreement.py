"""Differences: of every dtype, without rounding them away."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import compiler as mc
from compiler.errors import VerifyError


def apart(a, b):
    return mc.difference(lambda: a, lambda: b)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (jnp.ones(2), jnp.ones(2, jnp.bfloat16)),
        (jnp.ones(2), jnp.ones(2, jnp.int32)),
        (jnp.ones(2, bool), jnp.ones(2, jnp.int8)),
        (jnp.ones(2, jnp.complex64), jnp.ones(2)),
    ],
)
def test_other_dtypes_do_not_compare(a, b):
    with pytest.raises(VerifyError, match=f"output: expected {a.dtype}, got {b.dtype}"):
        apart(a, b)


def test_weak_types_compare_as_what_they_are():
    weak, strong = jnp.asarray(1.0), jnp.float32(1.0)
    assert jax.typeof(weak).weak_type != jax.typeof(strong).weak_type
    assert apart(weak, strong).absolute == 0


BIG = 2**60


@pytest.mark.parametrize(
    ("a", "b", "absolute", "largest"),
    [
        (np.int64(BIG), np.int64(BIG + 1), 1, BIG),
        (np.int64(-(2**63)), np.int64(2**63 - 1), 2**64 - 1, 2**63),
        (np.uint64(2**64 - 1), np.uint64(2**64 - 2), 1, 2**64 - 1),
        (np.uint64(0), np.uint64(2**64 - 1), 2**64 - 1, 0),
        (np.int8(-128), np.int8(127), 255, 128),
        (np.uint8(3), np.uint8(5), 2, 3),
    ],
)
def test_integers_are_compared_as_integers(a, b, absolute, largest):
    found = apart(np.array([0, 0, a], a.dtype), np.array([0, 0, b], b.dtype))
    assert found.absolute == float(absolute)
    assert found.relative == (absolute / largest if largest else np.inf)


def test_truth_values_keys_and_few_bits_are_compared():
    assert apart(jnp.array([True, False]), jnp.array([True, True])).absolute == 1
    assert apart(jnp.array([True]), jnp.array([True])) == (0.0, 0.0, "")
    assert apart(jnp.array([-8], jnp.int4), jnp.array([7], jnp.int4)).absolute == 15
    same = apart(jax.random.key(3), jax.random.key(3))
    assert same.absolute == 0
    assert apart(jax.random.key(3), jax.random.key(4)).absolute == 1
    assert apart(jnp.zeros((0,), jnp.int32), jnp.zeros((0,), jnp.int32)).absolute == 0
