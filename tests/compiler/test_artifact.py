"""Saved programs: the same function in a process that has none of its code."""

import dataclasses
import subprocess
import sys
import warnings
from collections import OrderedDict
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.experimental import io_callback
from zoo import ZOO, normal, relative_error

import compiler as mc
import mapping as mp
from compiler.errors import ArtifactError, InputMismatchError, TraceError
from compiler.paths import flatten, operations

V = {"w": normal(4, 3), "b": normal(1, 3)}
X = normal(2, 4)


def affine(v, x):
    return jnp.tanh(x @ v["w"] + v["b"])


@pytest.fixture
def program():
    return mc.trace(affine, V, X)


@pytest.mark.parametrize("recipe", ["traced", "folded", "quantized"])
def test_every_program_of_the_zoo_comes_back(case, recipe, tmp_path):
    function, variables, inputs = case
    program = mc.trace(function, variables, *inputs)
    if recipe != "traced":
        program = program >> mc.fold()
    if recipe == "quantized":
        program = program >> mc.quantize.weights()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        path = program.save(tmp_path / "program")
    fixed = {normal(5, 2, 6).shape, normal(5, 4, 8).shape}  # time-major; one an expert
    assert len(told) == (inputs[0].shape in fixed)
    loaded = mc.load(path)
    assert relative_error(loaded(*inputs), program(*inputs)) < 1e-5
    assert loaded.graph.paths == program.graph.paths
    assert loaded.bytes == program.bytes


FRESH = """
import sys
import numpy as np
import compiler as mc
program = mc.load(sys.argv[1])
for batch in (1, 2, 5):
    x = np.load(f"{sys.argv[2]}/x{batch}.npy")
    np.save(f"{sys.argv[2]}/y{batch}.npy", program(x))
foreign = {"flax", "optax", "zoo", "equinox"} & {m.split(".")[0] for m in sys.modules}
sys.exit(f"imported {foreign}" if foreign else 0)
"""


def test_a_fresh_process_computes_the_same_for_any_batch_without_flax(tmp_path):
    function, variables, _ = ZOO["linen residual"]()
    recipe = mc.fold() >> mc.quantize.weights("int8")
    program = recipe(mc.trace(function, variables, normal(4, 8, 8, 3)))
    path = program.save(tmp_path / "net.mapping")
    for batch in (1, 2, 5):
        np.save(tmp_path / f"x{batch}.npy", normal(batch, 8, 8, 3, seed=batch))
    subprocess.run([sys.executable, "-c", FRESH, path, tmp_path], check=True)
    for batch in (1, 2, 5):
        want = program(normal(batch, 8, 8, 3, seed=batch))
        assert relative_error(np.load(tmp_path / f"y{batch}.npy"), want) < 1e-6


def test_a_mapping_comes_back_with_its_variables(tmp_path):
    net = mp.Serial(hidden=mp.layers.Dense(8), norm=mp.layers.BatchNorm())
    variables = net.init(jax.random.key(0), X)
    loaded = mc.load(mc.trace(net, variables, X).save(tmp_path / "net"))
    assert isinstance(loaded.variables, mp.Variables)
    assert jax.tree.structure(loaded.variables) == jax.tree.structure(variables)
    assert relative_error(loaded.variables, variables) == 0


@pytest.mark.parametrize(
    "dtype", ["bfloat16", "float16", "float8_e4m3fn", "int8", "uint8", "bool", "int4"]
)
def test_leaves_of_every_dtype_come_back(dtype, tmp_path):
    leaf = (jnp.arange(12).reshape(4, 3) % 2).astype(dtype)
    program = mc.trace(lambda v, x: x @ v.astype(jnp.float32), leaf, X)
    loaded = mc.load(program.save(tmp_path / "program"))
    assert loaded.variables.dtype == leaf.dtype
    assert relative_error(loaded(X), program(X)) < 1e-6


def test_trees_of_inputs_and_outputs_come_back(tmp_path):
    def function(v, x, more):
        return {"y": [x @ v["w"], None], "z": (more["a"],)}

    program = mc.trace(function, V, X, {"a": X})
    loaded = mc.load(program.save(tmp_path / "program"))
    got = loaded(X, {"a": X * 2.0})
    assert jax.tree.structure(got) == jax.tree.structure(program(X, {"a": X}))
    assert relative_error(got["z"], (X * 2.0,)) == 0


class Pair(NamedTuple):
    z: Any
    a: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Both:
    z: Any
    a: Any


def ordered(z, a):
    return OrderedDict(z=z, a=a)


def twice_from(program, folder):
    loaded = mc.load(program.save(folder / "one"))
    return loaded, mc.load(loaded.save(folder / "two"))


@pytest.mark.parametrize("kind", [Pair, Both, ordered])
def test_fields_that_are_not_in_the_order_of_their_names_keep_theirs(kind, tmp_path):
    def function(v, x):
        z, a = jax.tree.leaves(x)
        return kind(z * 10.0 + v["b"], a.sum(1)), a

    z, a = normal(2, 3), normal(2, 5)
    program = mc.trace(function, V, kind(z, a))
    wanted = jax.tree.leaves(function(V, kind(z, a)))
    for loaded in twice_from(program, tmp_path):
        got, rest = loaded({"z": z, "a": a})
        assert sorted(got) == ["a", "z"]
        assert relative_error([got["z"], got["a"], rest], wanted) < 1e-6
        bigger, _ = loaded({"z": normal(7, 3), "a": normal(7, 5)})
        assert bigger["z"].shape == (7, 3)
        with pytest.raises(InputMismatchError, match=r"takes .*,n1\], .*,3\], got"):
            loaded({"z": normal(2, 4), "a": normal(2, 5)})


def test_whole_numbers_as_keys_come_back(tmp_path):
    def function(v, x):
        return {i: x[i] + 10.0 * i for i in range(12)}

    inputs = {i: jnp.full(1, i) * 1.0 for i in range(12)}
    program = mc.trace(function, V, inputs)
    for loaded in twice_from(program, tmp_path):
        got = loaded(inputs)
        assert jax.tree.structure(got) == jax.tree.structure(inputs)
        assert relative_error(got, function(V, inputs)) == 0


def test_keys_that_cannot_be_kept_become_strings_in_their_place(tmp_path):
    inputs = {(i,): jnp.full(1, i) * 1.0 for i in range(12)}
    program = mc.trace(lambda v, x: {k: x[k] + 10.0 * k[0] for k in x}, V, inputs)
    named = {str(key): value for key, value in inputs.items()}
    wanted = {str(key): value * 11.0 for key, value in inputs.items()}
    for loaded in twice_from(program, tmp_path):
        assert relative_error(loaded(named), wanted) < 1e-6


@pytest.mark.parametrize(
    "optimizer",
    [optax.adamw(0.1), optax.MultiSteps(optax.adamw(0.1), 2)],
    ids=["adamw", "multi_steps"],
)
def test_a_training_step_is_looped_after_it_is_loaded(optimizer, tmp_path):
    def step(state, x):
        gradient = jax.grad(lambda v: (affine(v, x) ** 2).mean())(state["params"])
        with jax.numpy_dtype_promotion("standard"):  # optax counts in int32
            updates, new = optimizer.update(gradient, state["moments"], state["params"])
        return {"params": optax.apply_updates(state["params"], updates), "moments": new}

    start = {"params": V, "moments": optimizer.init(V)}
    program = mc.trace(step, start, X)
    wanted = start
    for _ in range(5):
        wanted = jax.jit(step)(wanted, X)
    for loaded in twice_from(program, tmp_path):
        state = loaded.variables
        for _ in range(5):
            state = loaded.function(state, X)
        assert relative_error(state["params"], wanted["params"]) < 1e-5


def test_a_batch_of_no_rows_is_saved_for_it_and_says_so(tmp_path):
    program = mc.trace(affine, V, jnp.ones((0, 4)))
    with pytest.warns(UserWarning, match=r"\[0, 4\] only: .*that is not empty"):
        path = program.save(tmp_path / "program")
    loaded = mc.load(path)
    assert loaded(jnp.ones((0, 4))).shape == (0, 3)
    with pytest.raises(InputMismatchError, match=r"takes .*\[0,4\], got .*\[3, 4\]"):
        loaded(normal(3, 4))


def test_functions_saved_together_cannot_be_told_apart_and_say_so(tmp_path):
    functions = {"up": lambda v, x: x + v["b"], "down": lambda v, x: x - v["b"]}
    both = mc.trace(functions, V, {"up": normal(2, 3), "down": normal(2, 3)})
    loaded = mc.load(both.save(tmp_path / "both"))
    got = loaded({"up": (V["b"],), "down": (V["b"],)})
    assert relative_error(got["up"], 2.0 * V["b"]) == 0
    with pytest.raises(TraceError, match=r"program\.member\('up'\)\.save\(path\)"):
        loaded.member("up")
    apart = mc.load(both.member("up").save(tmp_path / "up"))
    assert relative_error(apart(normal(5, 3)), normal(5, 3) + V["b"]) < 1e-6


@pytest.mark.parametrize("recipe", [None, mc.fold() >> mc.simplify()])
@pytest.mark.parametrize("loud", ["loud", "a/(b)"])
def test_effects_of_the_weights_alone_stay_with_their_function(loud, recipe):
    log = []

    def noisy(v, x):
        with jax.named_scope("inner"):
            total = jax.jit(lambda w: jnp.sin(w).sum())(v["w"] / (1.0 + 0.0))
            io_callback(log.append, None, total, ordered=True)
            return x + v["b"] * 2.0 * 3.0

    def quiet(v, x):
        with jax.named_scope("outer"):
            return x * 1.0 + v["b"]

    functions = {loud: noisy, "still": quiet}
    program = mc.trace(functions, V, {loud: normal(2, 3), "still": normal(2, 3)})
    program = program if recipe is None else program >> recipe
    paths = {o.path for o in flatten(operations(program.graph))}
    assert paths == {"inner", "outer"}
    program.member("still")(normal(5, 3))
    jax.effects_barrier()
    assert not log
    program.member(loud)(normal(5, 3))
    jax.effects_barrier()
    assert len(log) == 1


def test_a_loaded_program_can_be_jitted_and_saved_again(program, tmp_path):
    loaded = mc.load(program.save(tmp_path / "one"))
    again = mc.load(loaded.save(tmp_path / "two"))
    run = jax.jit(again.function)
    assert relative_error(run(again.variables, X), program(X)) < 1e-6


def test_a_program_saved_for_it_can_be_differentiated(program, tmp_path):
    loaded = mc.load(mc.save(program, tmp_path / "program", vjp_order=1))
    got = jax.grad(lambda x: loaded.function(loaded.variables, x).sum())(X)
    want = jax.grad(lambda x: affine(V, x).sum())(X)
    assert relative_error(got, want) < 1e-5


def test_a_function_for_one_shape_is_saved_for_it_and_says_so(tmp_path):
    def fixed(v, x):
        return (x.reshape(2, 4) @ v["w"]).sum()

    program = mc.trace(fixed, V, normal(2, 4))
    with pytest.warns(UserWarning, match=r"batch size of float32\[2, 4\] only"):
        path = program.save(tmp_path / "program")
    loaded = mc.load(path)
    assert relative_error(loaded(X), fixed(V, X)) < 1e-6
    with pytest.raises(InputMismatchError, match=r"takes .*\[2,4\], got .*\[3, 4\]"):
        loaded(normal(3, 4))


def test_what_calls_back_into_python_is_refused_with_a_reason(tmp_path):
    def talks(v, x):
        jax.debug.print("{}", x[0, 0])
        return x @ v["w"]

    with pytest.raises(ArtifactError, match=r"cannot be exported.*jax\.debug\.print"):
        mc.trace(talks, V, X).save(tmp_path / "program")
    assert not (tmp_path / "program").exists()


def test_a_random_key_among_the_leaves_is_refused_by_path(tmp_path):
    program = mc.trace(
        lambda v, x: x + jax.random.normal(v["key"], x.shape),
        {"key": jax.random.key(0)},
        X,
    )
    with pytest.raises(ArtifactError, match="key: is a random key"):
        program.save(tmp_path / "program")


def test_saving_again_replaces_the_program_and_leaves_nothing_behind(program, tmp_path):
    path = program.save(tmp_path / "program")
    bigger = program.with_variables({"w": V["w"] * 2.0, "b": V["b"]})
    bigger.save(path)
    assert relative_error(mc.load(path)(X), bigger(X)) < 1e-6
    assert [p.name for p in tmp_path.iterdir()] == ["program"]


def test_something_else_at_the_path_is_not_overwritten(program, tmp_path):
    folder = tmp_path / "precious"
    folder.mkdir()
    (folder / "thesis.txt").write_text("irreplaceable")
    with pytest.raises(ArtifactError, match="found something else"):
        program.save(folder)
    assert (folder / "thesis.txt").read_text() == "irreplaceable"


def test_an_exported_file_of_another_version_is_an_artifact_error(program, tmp_path):
    from compiler import sealed

    path = program.save(tmp_path / "program")
    files = sealed.read(path)
    files["program.jaxexport"] = b"from the future"
    sealed.write(path, files)
    with pytest.raises(ArtifactError, match=r"was written by jax .* cannot be read"):
        mc.load(path)
