"""Saved programs: the same function in a process that has none of its code."""

import subprocess
import sys
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from zoo import ZOO, normal, relative_error

import compiler as mc
import mapping as mp
from compiler.errors import ArtifactError, InputMismatchError

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
    assert loaded.variables["variables"].dtype == leaf.dtype
    assert relative_error(loaded(X), program(X)) < 1e-6


def test_trees_of_inputs_and_outputs_come_back(tmp_path):
    def function(v, x, more):
        return {"y": [x @ v["w"], None], "z": (more["a"],)}

    program = mc.trace(function, V, X, {"a": X})
    loaded = mc.load(program.save(tmp_path / "program"))
    got = loaded(X, {"a": X * 2.0})
    assert jax.tree.structure(got) == jax.tree.structure(program(X, {"a": X}))
    assert relative_error(got["z"], (X * 2.0,)) == 0


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
