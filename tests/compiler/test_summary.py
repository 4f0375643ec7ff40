"""The table by path."""

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

import compiler as mc
import mapping as mp
from compiler.errors import TraceError
from mapping.layers import BatchNorm, Conv, Dense, Flatten

X = jax.ShapeDtypeStruct((5, 4), "float32")
NET = mp.Serial(
    first=Dense(4),
    body=mp.Repeat(mp.Serial(dense=Dense(4), norm=BatchNorm(), act=jnp.tanh), 3),
    side=mp.Ensemble(model=Dense(4) >> jnp.sin, size=2),
    head=Dense(2),
)


def test_a_mapping_is_listed_in_its_order_with_everything_below_it():
    table = mc.summary(NET, X)
    assert [line.path for line in table.lines] == [
        "first", "body", "body/dense", "body/norm", "body/act",
        "side", "side/model", "side/model/dense", "side/model/sin", "head",
    ]  # fmt: skip
    body = table["body"]
    assert (body.params, body.state, body.bytes) == (3 * 28, 3 * 8, 4 * 108)
    assert table["body/dense"].flops == 3 * (2 * 5 * 4 * 4 + 5 * 4)
    assert table["body/dense"].output == "float32[3, 5, 4]"
    assert table["side"].output == "float32[5, 4]"
    assert table["head"].output == table.total.output == "float32[5, 2]"


def test_the_total_is_that_of_the_program():
    table = mc.summary(NET, X)
    variables = NET.init(jax.random.key(0), X)
    program = mc.trace(NET, variables, X)
    assert table.total.flops == mc.cost(program).flops
    assert table.total.bytes == program.bytes
    sizes = [leaf.size for leaf in jax.tree.leaves(variables.params)]
    assert table.total.params == sum(sizes)
    top = [line for line in table.lines if "/" not in line.path]
    assert sum(line.share for line in top) == pytest.approx(1)
    assert sum(line.params for line in top) == table.total.params


def test_no_weight_is_allocated():
    wide = mp.Serial(a=Dense(200_000), b=Dense(200_000))
    assert mc.summary(wide, X).total.params == 200_000 * 5 + 200_000 * 200_001


def test_depth_limits_what_is_told_apart_and_loses_nothing():
    whole, top = mc.summary(NET, X), mc.summary(NET, X, depth=1)
    assert [line.path for line in top.lines] == ["first", "body", "side", "head"]
    assert all(line == whole[line.path] for line in top.lines)


class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.BatchNorm(use_running_average=True)(nn.Dense(3)(x))
        return nn.Dense(2, name="head")(nn.relu(x))


def test_a_program_of_linen_is_listed_by_its_own_names():
    variables = jax.eval_shape(Net().init, jax.random.key(0), X)
    table = mc.summary(mc.trace(Net().apply, variables, X))
    assert [line.path for line in table.lines] == ["Dense_0", "BatchNorm_0", "head"]
    norm = table["BatchNorm_0"]
    assert (norm.params, norm.state, norm.output) == (6, 6, "float32[5, 3]")
    assert table.total.output == "float32[5, 2]"


def test_a_program_of_equinox_is_listed_by_its_leaves():
    net = eqx.nn.MLP(4, 2, 8, 1, key=jax.random.key(0))
    table = mc.summary(mc.trace(lambda net, x: jax.vmap(net)(x), net, X))
    assert table.total.params == 4 * 8 + 8 + 8 * 2 + 2
    assert {"layers/0", "layers/1"} <= {line.path for line in table.lines}
    assert table["layers/0"].flops == 2 * 5 * 4 * 8 + 2 * 5 * 8  # bias and relu
    assert table["layers"].flops == table.total.flops


def test_text_and_notebook_show_every_path():
    net = mp.Serial(conv=Conv(3), flat=Flatten(), head=Dense(1))
    table = mc.summary(net, jax.ShapeDtypeStruct((2, 4, 4, 1), "float32"))
    text = str(table).splitlines()
    assert text[0].split() == ["path", "output", "params", "state", "bytes", "FLOPs",
                               "share"]  # fmt: skip
    assert len({len(line) for line in text if line.endswith("%")}) == 1
    page = table._repr_html_()
    assert page.count("<tr>") == 5
    assert all(name in page for name in ("conv", "flat", "head", "float32[2, 48]"))


def test_what_is_neither_is_told_how():
    with pytest.raises(
        TraceError, match=r"expected a mapping and inputs, or a program"
    ):
        mc.summary(jnp.sin, X)
    with pytest.raises(KeyError, match=r"'nope': not listed"):
        mc.summary(NET, X)["nope"]
