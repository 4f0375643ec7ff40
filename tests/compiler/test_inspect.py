"""Reports: they say what is there."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from zoo import ZOO, normal

import compiler as mc
from compiler.executable import latency
from compiler.inspect.report import largest_difference


@pytest.fixture(scope="module")
def pair():
    function, variables, inputs = ZOO["linen residual"]()
    before = mc.trace(function, variables, *inputs)
    return before, (mc.fold() >> mc.quantize.weights())(before), inputs[0]


def test_the_report_measures_both_programs(pair):
    before, after, x = pair
    mean = lambda y: float(np.mean(y))  # noqa: E731
    report = mc.report(before, after, x, metrics={"mean": mean}, batch_sizes=(1, 3))
    count = sum(leaf.size for leaf in jax.tree.leaves(before.variables))
    assert report["parameters"].before == count
    assert report["bytes in memory"].after == after.bytes < before.bytes / 3
    assert report["bytes on disk"].after > after.bytes
    assert report["latency, batch 3"].before > 0
    assert report["mean"].before == pytest.approx(mean(before(x)))
    assert report.difference == largest_difference(before(x), after(x)) > 0
    text = str(report)
    assert "Fold(): " in text
    assert "scale merged" in text
    with pytest.raises(KeyError, match=r"not measured.*parameters"):
        report["speed"]


def test_a_report_without_inputs_times_nothing(pair):
    before, after, _ = pair
    report = mc.report(before, after)
    assert math.isnan(report.difference)
    assert "latency" not in str(report)


def test_a_pass_that_changed_nothing_says_so():
    program = mc.trace(lambda w, x: x @ w, normal(4, 4), normal(2, 4)) >> mc.fold()
    assert "Fold(): 0 fired, 0 skipped (nothing changed)" in str(
        mc.report(program, program)
    )


def test_a_report_says_where_each_pass_did_what():
    def net(v, x):
        for number in range(5):
            with jax.named_scope(f"block{number}"):
                x = x @ v[f"w{number}"] * 2.0
        return x

    variables = {f"w{number}": normal(4, 4) for number in range(5)}
    before = mc.trace(net, variables, normal(2, 4))
    after = (mc.fold() >> mc.quantize.weights())(before, sample=(normal(2, 4),))
    told = str(mc.report(before, after)).splitlines()
    line = next(i for i, text in enumerate(told) if "scale merged" in text)
    assert told[line].split()[0] == "5"
    found = re.fullmatch(
        r" +at block0 \((test_inspect\.py:\d+)\), block1 \(\1\), block2 \(\1\), "
        r"and 2 more",
        told[line + 1],
    )
    assert found, told[line + 1]
    fold, weights = (text for text in told if " fired, " in text)
    assert re.search(r"relative difference \d.*e-0\d$|difference 0$", fold)
    assert re.search(r"relative difference 0\.00\d+$", weights)


def test_a_report_counts_what_one_place_did_often_and_lists_no_place_twice():
    def net(_, x):
        with jax.named_scope("outer"), jax.named_scope("block"):
            for _ in range(3):
                x = jnp.sin(x) * 1.0
        with jax.named_scope("head"):
            return jnp.cos(x) * 1.0

    program = mc.trace(net, (), normal(4)) >> mc.simplify()
    told = str(mc.report(program, program)).splitlines()
    line = next(i for i, text in enumerate(told) if "multiplication by one" in text)
    assert told[line].split() == ["4", "multiplication", "by", "one"]
    assert told[line + 1].count("test_inspect.py:") == 2
    assert "more" not in told[line + 1]


def test_latency_tells_a_slow_call_from_a_fast_one():
    w = normal(256, 256)
    many = jax.jit(lambda: jax.lax.fori_loop(0, 200, lambda _, x: jnp.sin(x @ w), w))
    one = jax.jit(lambda: jnp.sin(w))
    times = latency({"many": many, "one": one}, rounds=3, seconds=0.01)
    assert times["many"] > 5 * times["one"]
