"""Ahead-of-time compilation: what it takes, what it tells, what it refuses."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from zoo import normal

import compiler as mc
from compiler.errors import (
    CompileError,
    InputMismatchError,
    VariablesMismatchError,
)
from compiler.executable import Executable, latency
from compiler.executable import compile as compiled


def mlp(params, x, scale=0.5):
    return {"y": jnp.tanh(x @ params["w"]) * scale}


def program(function=mlp, variables=None, *inputs):
    variables = {"w": normal(16, 8)} if variables is None else variables
    return mc.trace(function, variables, *(inputs or (normal(4, 16),)))


def train(carry, x, y):
    params, state = carry
    loss, grads = jax.value_and_grad(
        lambda params: jnp.mean(jnp.square(mlp(params, x)["y"] - y))
    )(params)
    updates, state = optax.adam(1e-2).update(grads, state, params)
    return (optax.apply_updates(params, updates), state), loss


def training():
    params = {"w": normal(16, 8)}
    carry = (params, optax.adam(1e-2).init(params))
    with jax.numpy_dtype_promotion("standard"):  # optax counts on it
        return mc.trace(train, carry, normal(4, 16), normal(4, 8, seed=1)), carry


@contextlib.contextmanager
def heard(event):
    """Counts what JAX reports, without leaving a listener that counts on."""
    counts = [0]
    listening = [True]

    def listen(name, **_):
        counts[0] += listening[0] and name == event

    jax.monitoring.register_event_listener(listen)
    yield counts
    listening[0] = False


def test_it_computes_what_the_program_computes_with_its_own_variables_or_others():
    traced, x = program(), normal(4, 16, seed=3)
    executable = compiled(traced, x)
    np.testing.assert_array_equal(executable(x)["y"], traced(x)["y"])
    other = {"w": normal(16, 8, seed=5)}
    np.testing.assert_array_equal(
        executable(other, x)["y"], traced.function(other, x)["y"]
    )


def test_it_is_compiled_for_shapes_alone_and_other_than_the_samples():
    traced = program()
    assert compiled(traced)(normal(4, 16))["y"].shape == (4, 8)
    executable = compiled(traced, jax.ShapeDtypeStruct((7, 16), "float32"))
    assert executable(normal(7, 16))["y"].shape == (7, 8)


def test_nothing_is_compiled_or_traced_when_it_is_called():
    traces = []

    def function(params, x):
        traces.append(None)
        return mlp(params, x)

    traced, x = program(function), normal(4, 16)
    executable = compiled(traced, x)
    traces.clear()
    with heard("/jax/compilation_cache/compile_requests_use_cache") as requests:
        for _ in range(3):
            executable(x)
    assert (traces, requests) == ([], [0])


@pytest.mark.parametrize(
    ("arguments", "error", "told"),
    [
        ((normal(5, 16),), InputMismatchError,
         r"inputs: compiled for float32\[4, 16\], got float32\[5, 16\]. Compile"),
        ((jnp.zeros((4, 16), jnp.int32),), InputMismatchError,
         r"compiled for float32\[4, 16\], got int32\[4, 16\]"),
        ((), InputMismatchError, r"expected 1 inputs, or variables and inputs, got 0"),
        (({"x": normal(4, 16)},), InputMismatchError, r"compiled for PyTreeDef"),
        (({"v": normal(16, 8)}, normal(4, 16)), VariablesMismatchError,
         r"missing \['w'\], not expected \['v'\]"),
        (({"w": normal(16, 9)}, normal(4, 16)), VariablesMismatchError,
         r"w: expected float32\[16, 8\], got float32\[16, 9\]"),
    ],
)  # fmt: skip
def test_what_it_was_not_compiled_for_is_told(arguments, error, told):
    executable = compiled(program())
    with pytest.raises(error, match=told):
        executable(*arguments)


def test_a_program_does_not_compile_for_what_it_does_not_take():
    with pytest.raises(InputMismatchError, match=r"got float32\[4, 3\], which it does"):
        compiled(program(), normal(4, 3))


def test_memory_and_cost_are_the_compilers_own():
    executable = compiled(program())
    memory, x, w, y = executable.memory, 4 * 4 * 16, 4 * 16 * 8, 4 * 4 * 8
    assert (memory.arguments, memory.outputs, memory.aliased) == (x + w, y, 0)
    assert memory.total == sum(memory)
    assert executable.cost.flops == 2 * 4 * 16 * 8 + 4 * 8
    assert executable.cost.transcendentals == 4 * 8
    assert executable.cost.bytes >= x + w + y
    assert executable.text.startswith("HloModule")
    assert isinstance(executable.lowered, jax.stages.Lowered)
    assert isinstance(executable.compiled, jax.stages.Compiled)


def test_an_operation_the_compiler_cannot_count_is_not_counted():
    executable = compiled(program(lambda w, x: jax.lax.top_k(x, 2), {}))
    assert np.isnan(executable.cost.flops)


def test_a_training_step_writes_over_the_variables_it_is_given():
    step, carry = training()
    x, y = normal(4, 16), normal(4, 8, seed=1)
    want, _ = step(x, y)
    executable = compiled(step, x, y, donate="variables")
    assert executable.memory.aliased > 0.9 * step.bytes
    given = jax.tree.map(jnp.copy, carry)
    got, _ = executable(given, x, y)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7)
    assert given[0]["w"].is_deleted()
    assert not carry[0]["w"].is_deleted()
    for _ in range(3):  # a loop that carries them on
        got, loss = executable(got, x, y)
    assert loss < executable(got, x, y)[1] * 2


def test_variables_that_are_given_up_have_to_be_given():
    step, _ = training()
    executable = compiled(step, donate=("variables",))
    with pytest.raises(VariablesMismatchError, match=r"gives its variables up"):
        executable(normal(4, 16), normal(4, 8))
    abstract = program(mlp, {"w": jax.ShapeDtypeStruct((16, 8), "float32")})
    with pytest.raises(VariablesMismatchError, match=r"has no arrays"):
        compiled(abstract)(normal(4, 16))
    assert compiled(abstract)({"w": normal(16, 8)}, normal(4, 16))["y"].shape == (4, 8)


def test_inputs_are_given_up_by_place():
    traced = mc.trace(lambda w, a, b: (a + w, b * w), normal(8), normal(8), normal(8))
    executable = compiled(traced, donate=(1,))
    a, b = normal(8, seed=1), normal(8, seed=2)
    executable(a, b)
    assert (a.is_deleted(), b.is_deleted()) == (False, True)
    both = compiled(traced, donate=("inputs",))
    both(a, normal(8))
    assert a.is_deleted()
    with pytest.raises(InputMismatchError, match=r'donate: expected "variables"'):
        compiled(traced, donate=(2,))


def test_latency_waits_and_survives_donation():
    step, carry = training()
    executable = compiled(step, donate=("variables",))
    times = executable.latency(carry, normal(4, 16), normal(4, 8), seconds=0.003)
    assert 0 < times < 1
    assert not carry[0]["w"].is_deleted()
    slow = program(lambda w, x: jax.lax.fori_loop(
        0, 2000, lambda _, c: jnp.sin(c @ w), x), normal(16, 16))  # fmt: skip
    loop = compiled(slow).latency(normal(4, 16), rounds=3, seconds=0.001)
    assert loop > 20 * latency({"": lambda: None}, rounds=3, seconds=0.001)[""]
    assert loop > 1e-4


def test_the_cache_is_used_for_this_program_alone(tmp_path):
    x = normal(4, 16)
    names = [n for n in dir(jax.config) if "compilation_cache" in n or "persist" in n]
    before = {name: getattr(jax.config, name) for name in names}
    hits = "/jax/compilation_cache/cache_hits"
    with heard(hits) as first:
        compiled(program(), x, cache=tmp_path)
    kept = sorted(path.name for path in tmp_path.iterdir())
    with heard(hits) as second:
        executable = compiled(program(), x, cache=tmp_path)
    assert (first, second) == ([0], [1])
    assert kept
    assert executable(x)["y"].shape == (4, 8)
    assert {name: getattr(jax.config, name) for name in names} == before
    compiled(program(lambda w, x: x @ w["w"]), x)
    assert sorted(path.name for path in tmp_path.iterdir()) == kept


def test_the_settings_return_when_the_compiler_fails(tmp_path):
    before = jax.config.jax_compilation_cache_dir
    with pytest.raises(CompileError, match=r"No such compile option"):
        compiled(program(), cache=tmp_path, options={"xla_nope": 1})
    assert jax.config.jax_compilation_cache_dir == before != str(tmp_path)


def test_options_are_of_this_program():
    traced, x = program(), normal(4, 16)
    fast = compiled(traced, x, options={"xla_cpu_enable_fast_math": False})
    np.testing.assert_allclose(fast(x)["y"], traced(x)["y"], rtol=1e-6)
    with pytest.raises(CompileError, match=r"with \{'xla_nope': 1\}.*Check the opt"):
        compiled(traced, x, options={"xla_nope": 1})


@pytest.mark.parametrize("target", ["tpu", "gpu"])
def test_for_a_platform_that_is_not_here_it_is_lowered_and_says_so(target):
    executable = compiled(program(), target=target)
    assert executable.platform == {"gpu": "cuda"}.get(target, target)
    assert executable.text.startswith("module @jit_")
    assert executable.memory is None
    assert executable.cost.transcendentals == 32
    with pytest.raises(CompileError, match=r"this one has cpu. It was lowered only"):
        executable(normal(4, 16))


def test_lowering_for_another_platform_is_that_platforms():
    def function(_, x):
        return jax.lax.platform_dependent(x, tpu=jnp.sin, default=jnp.cos)

    traced = program(function, {})
    tpu, cpu = (compiled(traced, target=t).lowered.as_text() for t in ("tpu", "cpu"))
    assert "stablehlo.sine" in tpu
    assert "stablehlo.sine" not in cpu


def test_an_unknown_platform_is_told():
    with pytest.raises(CompileError, match=r"cpu, cuda, rocm, tpu, got 'abacus'"):
        compiled(program(), target="abacus")


def test_rewritten_programs_compile_too():
    traced, x = program(lambda w, x: (x @ w["w"]) * 2.0), normal(4, 16)
    small = traced >> mc.fold()
    np.testing.assert_allclose(compiled(small)(x), traced(x), rtol=1e-6)
    assert compiled(small).cost.flops < compiled(traced).cost.flops
    assert isinstance(compiled(small), Executable)
