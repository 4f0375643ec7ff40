"""Weights and extents: a leaf means the same for every shape, or a call is refused.

And what else a stranger's functions once broke.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from zoo import normal, relative_error

import compiler as mc
from compiler.errors import InputMismatchError
from compiler.extents import Extent, extents, replace_extents

W = {"w": normal(4, 4)}


def per_batch(v, x):
    return x.reshape(2, -1, 4) @ (v["w"] / x.shape[0])


def per_length(v, x):
    return (x @ v["w"]) / x.shape[1]


def per_batch_beside_a_key(v, x, key):
    return x @ (v["w"] * x.shape[0]) + 0 * jax.random.normal(key, (1, 4))


def by_case(v, x):
    return x @ (v["w"] * (2.0 if x.shape[0] > 8 else 3.0))


def constants_of_its_own(v, x):
    with jax.ensure_compile_time_eval():
        ramp = jnp.full((1, 4), float(x.shape[0]))
    return (x @ v["w"]) * ramp


CASES = {
    "per batch": (per_batch, (normal(4, 4),), (normal(8, 4),)),
    "per length, as long as wide": (
        per_length, (normal(2, 4, 4),), (normal(2, 8, 4),)
    ),
    "two leading extents": (
        per_batch_beside_a_key,
        (normal(4, 4), jax.random.PRNGKey(0)),
        (normal(8, 4), jax.random.PRNGKey(0)),
    ),
    "constants of its own": (constants_of_its_own, (normal(4, 4),), (normal(5, 4),)),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_a_weight_scaled_by_an_extent_is_right_for_every_extent(name):
    function, sample, other = CASES[name]
    folded = mc.trace(function, W, *sample) >> mc.fold()
    assert relative_error(folded(*sample), function(W, *sample)) < 1e-5
    assert relative_error(folded(*other), function(W, *other)) < 1e-5


def test_where_the_leaves_would_be_others_the_call_is_refused():
    folded = mc.trace(by_case, W, normal(4, 4)) >> mc.fold()
    assert relative_error(folded(normal(5, 4)), by_case(W, normal(5, 4))) < 1e-5
    with pytest.raises(InputMismatchError, match="in another way"):
        folded(normal(9, 4))


def test_extents_group_axes_of_one_length_and_keep_the_leading_apart():
    spec = jax.ShapeDtypeStruct
    inputs = [spec((4, 8, 4), "float32"), spec((4, 8), "int32"), spec((), "float32")]
    found = extents(inputs)
    assert found == [
        Extent(4, ((0, 0), (1, 0))),
        Extent(8, ((0, 1), (1, 1))),
        Extent(4, ((0, 2),)),
    ]
    assert [extent.leading for extent in found] == [True, False, False]
    grown = replace_extents(inputs, {found[0]: 5, found[2]: 7})
    assert [s.shape for s in grown] == [(5, 8, 7), (5, 8), ()]


def test_half_precision_scales_are_not_merged_out_of_range():
    v = {"w": jnp.full((5, 5), 1e3, "float16"), "s": jnp.full((1, 5), 1e2, "float16")}
    x = jnp.full((3, 5), 1e-3, "float16")
    folded = mc.trace(lambda v, x: (x @ v["w"]) * v["s"], v, x) >> mc.fold()
    assert np.isfinite(np.asarray(folded(x), np.float32)).all()
    assert "float16" in folded.history[-1].events.skipped[0].what


def test_a_division_by_zero_is_left_where_it_was():
    v = {"w": normal(4, 4), "s": jnp.zeros((1, 4))}
    program = mc.trace(lambda v, x: (x @ v["w"]) / v["s"], v, jnp.ones((2, 4)))
    folded = program >> mc.fold()
    assert np.array_equal(folded(jnp.ones((2, 4))), program(jnp.ones((2, 4))))
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(folded.variables))


def test_random_keys_are_leaves_and_inputs_like_others(tmp_path):
    def function(v, x, key):
        noise = jax.random.normal(v["key"], x.shape) + jax.random.normal(key, x.shape)
        return x @ v["w"] + noise

    v = {**W, "key": jax.random.key(0)}
    program = mc.trace(function, v, normal(3, 4), jax.random.key(1)) >> mc.fold()
    assert "parameters in" in repr(program)
    assert program.bytes > 16 * 4

    keyed = mc.trace(
        lambda v, x, key: x @ v["w"] + jax.random.normal(key, x.shape),
        W, normal(3, 4), jax.random.key(1),
    )  # fmt: skip
    loaded = mc.load(keyed.save(tmp_path / "keyed"))
    x, key = normal(5, 4), jax.random.key(2)
    assert relative_error(loaded(x, key), keyed(x, key)) < 1e-6


def test_a_report_takes_trees_scalars_and_functions_of_one_batch_size():
    def function(v, batch, scale):
        return batch["x"].reshape(2, 4) @ v["w"] * scale

    batch = {"x": normal(2, 4), "more": None}
    program = mc.trace(function, W, batch, 2.0)
    report = mc.report(program, program >> mc.fold(), batch, 2.0, batch_sizes=(2, 3))
    assert report["latency, batch 2"].before > 0
    assert np.isnan(report["latency, batch 3"].before)
    assert "n/a" in str(report)


def test_a_report_of_what_cannot_be_saved_says_so():
    def talks(v, x):
        jax.debug.print("{}", x[0, 0])
        return x @ v["w"]

    program = mc.trace(talks, W, normal(2, 4))
    assert np.isnan(mc.report(program, program)["bytes on disk"].after)


def test_custom_linear_solvers_can_be_drawn(tmp_path):
    def function(v, x):
        a = v["w"] @ v["w"].T + 5 * jnp.eye(4)
        return jax.lax.custom_linear_solve(
            lambda y: a @ y, x[0], lambda m, b: jnp.linalg.solve(a, b), symmetric=True
        )

    program = mc.trace(function, W, normal(3, 4))
    assert mc.show(program, path=tmp_path / "g.html").exists()


def test_an_input_that_is_no_array_is_told():
    with pytest.raises(
        mc.errors.TraceError, match="expected arrays or numbers, got str"
    ):
        mc.trace(lambda v, x, mode: x, W, normal(2, 4), "fast")
