"""Measured time by path: where it must lie, that it adds up, and by which method."""

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from zoo import normal

import compiler as mc
from compiler import jaxprs
from compiler.cost import Machine
from compiler.errors import CompileError, InputMismatchError, VariablesMismatchError
from compiler.inspect.events import Instruction, Interval, instructions, shared_out
from compiler.inspect.marks import mark, shares
from compiler.inspect.profile import profile
from compiler.paths import flatten, operations


def two(w, x):
    with jax.named_scope("cheap"):
        x = jnp.tanh(x)
    with jax.named_scope("dear"):
        return jax.lax.fori_loop(0, 20, lambda _, c: jnp.sin(c @ w), x)


def traced(function=two, w=None, x=None):
    w, x = normal(128, 128) if w is None else w, normal(64, 128) if x is None else x
    return mc.trace(function, w, x), x


@pytest.mark.parametrize("method", ["trace", "segments"])
def test_the_dear_part_takes_the_time_and_all_adds_up(method):
    program, x = traced()
    found = profile(program, x, seconds=0.1, method=method)
    assert found.method == method
    assert found.rows[0].path == "dear"
    assert found["dear"].seconds > 4 * found["cheap"].seconds
    together = sum(row.seconds for row in found.rows) + found.unattributed
    assert together == pytest.approx(found.seconds)
    assert found["dear"].amount.flops == 20 * 2 * 64 * 128 * 128 + 20
    assert found["dear"].rate > 0
    text = str(found).splitlines()
    assert text[0].split() == ["path", "time", "share", "divided", "FLOP/s"]
    assert any(line.startswith("unattributed") for line in text)
    assert text[-2].split()[-1] == "100.0%"
    with pytest.raises(KeyError, match=r"'nope': took no time. There are: dear"):
        found["nope"]


def test_of_a_machine_the_share_that_was_reached_is_told():
    program, x = traced()
    machine = Machine(peak_flops=1e9, bandwidth=1e9)
    found = profile(program, x, seconds=0.05, machine=machine)
    row = found["dear"]
    assert row.least == pytest.approx(20 * 2 * 64 * 128 * 128 / 1e9, rel=0.05)
    assert row.reached == pytest.approx(row.least / row.seconds)
    assert "of limit" in str(found)


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(4, name="head")(nn.tanh(nn.Dense(256, name="hidden")(x)))


class Nnx(nnx.Module):
    def __init__(self, rngs):
        self.hidden = nnx.Linear(128, 256, rngs=rngs)
        self.head = nnx.Linear(256, 4, rngs=rngs)

    def __call__(self, x):
        return self.head(jnp.tanh(self.hidden(x)))


def of_linen(x):
    return (
        Linen().apply,
        jax.jit(Linen().init)(jax.random.key(0), x),
        {"hidden", "head"},
    )


def of_nnx(x):
    graph, state = nnx.split(Nnx(nnx.Rngs(0)))
    return lambda s, x: nnx.merge(graph, s)(x), state, {"hidden", "head"}


def of_equinox(x):
    net = eqx.nn.MLP(128, 4, 256, 1, key=jax.random.key(0))
    return lambda net, x: jax.vmap(net)(x), net, {"layers/0", "layers/1"}


@pytest.mark.parametrize("framework", [of_linen, of_nnx, of_equinox])
def test_paths_are_those_of_every_framework(framework):
    x = normal(256, 128)
    function, variables, paths = framework(x)
    found = profile(mc.trace(function, variables, x), x, seconds=0.05)
    assert paths <= {row.path for row in found.rows} <= paths | {""}


def test_depth_groups_and_a_path_holds_what_is_below_it():
    def function(w, x):
        for name in ("a/x", "a/y", "b/x"):
            with jax.named_scope(name):
                x = jax.lax.sort(x @ w)
        return x

    program, x = traced(function)
    fine = profile(program, x, seconds=0.05)
    assert {row.path for row in fine.rows} == {"a/x", "a/y", "b/x"}
    parts = fine["a/x"].seconds + fine["a/y"].seconds
    assert fine["a"].seconds == pytest.approx(parts)
    assert fine["a"].amount.flops == fine["a/x"].amount.flops * 2
    coarse = profile(program, x, seconds=0.05, depth=1)
    assert {row.path for row in coarse.rows} == {"a", "b"}


def test_scanned_layers_and_gradients_are_found_inside_loops():
    def function(w, x):
        def layer(c, w):
            with jax.named_scope("block/product"):
                c = c @ w
            with jax.named_scope("block/act"):
                return jax.lax.sort(c), None

        def loss(w):
            y = jax.lax.scan(layer, x, w)[0]
            with jax.named_scope("head"):
                return jnp.square(y).sum()

        return jax.grad(loss)(w)

    program, x = traced(function, normal(4, 128, 128))
    found = profile(program, x, seconds=0.05)
    paths = {row.path for row in found.rows}
    assert {"block/product", "block/act"} <= paths
    assert found["block"].seconds > 0.5 * (found.seconds - found.unattributed)


def everything(w, x):
    """Every kind of body, keys, custom derivatives and two calls of one function."""

    @jax.custom_jvp
    def own(x):
        return jnp.sin(x)

    own.defjvp(lambda primals, tangents: (own(*primals), tangents[0] * 2.0))

    def step(c, key):
        c = c @ w + jax.random.normal(key, c.shape)
        return jax.checkpoint(own)(c), c.sum()

    x, sums = jax.lax.scan(step, x, jax.random.split(jax.random.key(0), 3))
    x = jax.lax.cond(sums[0] > 0, jax.nn.relu, own, jax.nn.relu(x))
    x = jax.lax.while_loop(lambda x: x.sum() < 9, lambda x: x + 1.0, x)
    kind = (jax.sharding.AxisType.Auto,)
    mesh = jax.make_mesh((1,), ("i",), axis_types=kind)
    spec = jax.sharding.PartitionSpec("i")
    shared = jax.shard_map(lambda x: x * 2.0, mesh=mesh, in_specs=spec, out_specs=spec)
    return shared(x)


def test_what_is_marked_is_the_same_program():
    w, x = normal(8, 8), normal(4, 8)
    program = mc.trace(everything, w, x)
    marked, numbered = mark(program.graph)
    marked.verify()
    assert len(numbered) == len(list(flatten(operations(program.graph))))

    def written(graph):
        return [
            (e.primitive.name, times, [v.aval for v in (*e.invars, *e.outvars)])
            for e, times in jaxprs.nested(graph.jaxpr)
        ]

    assert written(marked) == written(program.graph)
    graphs = (marked, program.graph)
    got, want = (jax.jit(g.evaluate)(program.values, [x]) for g in graphs)
    assert all((a == b).all() for a, b in zip(got, want, strict=True))


def test_a_profiler_that_is_silent_is_told_and_replaced(monkeypatch):
    program, x = traced()
    monkeypatch.setattr("compiler.inspect.measure.traced", lambda *_: [])
    with pytest.raises(CompileError, match=r"tells nothing of operations. Use method="):
        profile(program, x, seconds=0.02, method="trace")
    assert profile(program, x, seconds=0.02).method == "segments"


def test_inside_another_profile_it_measures_segments(tmp_path):
    program, x = traced()
    with jax.profiler.trace(tmp_path):
        assert profile(program, x, seconds=0.02).method == "segments"


def test_bad_arguments_are_told():
    program, _ = traced()
    with pytest.raises(InputMismatchError, match=r"got float32\[3\]"):
        profile(program, normal(3))
    abstract = mc.trace(two, jax.ShapeDtypeStruct((8, 8), "float32"), normal(4, 8))
    with pytest.raises(VariablesMismatchError, match=r"traced on shapes alone"):
        profile(abstract, normal(4, 8))


TEXT = """HloModule jit_f, is_scheduled=true

%fused (p: f32[4]) -> f32[4] {
  %p = f32[4]{0} parameter(0)
  %a.1 = f32[4]{0} exponential(%p), metadata={op_name="jit(f)/one/exp"}
  ROOT %b.1 = f32[4]{0} negate(%a.1), metadata={op_name="jit(f)/two/neg"}
}

ENTRY %main (x: f32[4]) -> (f32[4], s32[]) {
  %x = f32[4]{0} parameter(0), metadata={op_name="x"}
  %loop = (f32[4]{0}, s32[]) while(%t), condition=%c, body=%d, metadata={op_name="w"}
  ROOT %neg_fusion = f32[4]{0} fusion(%x), kind=kLoop, calls=%fused
}
"""


def test_a_fusion_is_divided_by_the_arithmetic_of_its_paths():
    def function(w, x):
        with jax.named_scope("one"):
            x = x @ w
        with jax.named_scope("two"):
            return (x + 1.0) * 2.0

    program, _ = traced(function)
    _, numbered = mark(program.graph)
    scopes = [f"jit(f)/mapping.at-{i}/x" for i in range(3)]
    assert shares(scopes[2], scopes, numbered) == {"one": 128 / 129, "two": 1 / 129}
    assert shares(scopes[2], (), numbered) == {"two": 1.0}
    assert shares("jit(f)/copy", (), numbered) == {"": 1.0}


def test_what_the_compiler_makes_one_kernel_is_still_told_apart():
    def function(kernels, x):
        for i, kernel in enumerate(kernels):
            with jax.named_scope(f"conv_{i}"):
                numbers = ("NHWC", "HWIO", "NHWC")
                x = jax.lax.conv_general_dilated(
                    x, kernel, (2, 2), "SAME", dimension_numbers=numbers
                )
                x = jnp.maximum(x, 0.0)
        return x.mean((1, 2))

    kernels = [normal(3, 3, 3, 16), normal(3, 3, 16, 32), normal(3, 3, 32, 32)]
    x = normal(8, 32, 32, 3)
    found = profile(mc.trace(function, kernels, x), x, seconds=0.05)
    assert {"conv_0", "conv_1", "conv_2"} <= {row.path for row in found.rows}


def test_a_fusion_is_read_with_its_last_step_and_all_the_others():
    found = instructions(TEXT)
    assert found["loop"] == Instruction("while", "w")
    fusion = found["neg_fusion"]
    assert (fusion.kind, fusion.scope) == ("fusion", "jit(f)/two/neg")
    assert fusion.scopes == ("jit(f)/one/exp", "jit(f)/two/neg")


def test_every_instant_is_given_out_once():
    kinds = {"w": Instruction("while", ""), "a": Instruction("fusion", "")}
    ran = [
        Interval("w", 0, 100, 100),  # a loop, around all of it
        Interval("a", 10, 30, 30),
        Interval("b", 20, 40, 40),  # on another thread, half shared with a
        Interval("a", 50, 55, 80),  # goes on without the thread that started it
        Interval("b", 60, 70, 70),
        Interval("c", 120, 130, 130),
    ]
    spent = shared_out(ran, kinds)
    assert spent == {"a": 10 + 5 + 5 + 5 + 10, "b": 5 + 10 + 10,
                     "w": 10 + 10 + 20, "c": 10}  # fmt: skip
