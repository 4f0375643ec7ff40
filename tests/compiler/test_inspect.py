"""Reports and pictures: they say what is there."""

import html.parser
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from zoo import ZOO, normal

import compiler as mc
from compiler.executable import latency
from compiler.inspect.layout import layered
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


def test_latency_tells_a_slow_call_from_a_fast_one():
    w = normal(256, 256)
    many = jax.jit(lambda: jax.lax.fori_loop(0, 200, lambda _, x: jnp.sin(x @ w), w))
    one = jax.jit(lambda: jnp.sin(w))
    times = latency({"many": many, "one": one}, rounds=3, seconds=0.01)
    assert times["many"] > 5 * times["one"]


class Page(html.parser.HTMLParser):
    """Counts nodes, collects text and what would be fetched."""

    def __init__(self, text):
        super().__init__()
        self.open, self.nodes, self.changed, self.fetched = [], 0, 0, []
        self.words = ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        classes = (found.get("class") or "").split()
        self.nodes += "node" in classes
        self.changed += "changed" in classes
        self.fetched += [v for k, v in attributes if k in ("src", "href")]
        if tag not in ("meta", "input", "rect", "path"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag in self.open:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.words += data


def test_the_picture_has_every_equation_and_fetches_nothing(pair, tmp_path):
    before, after, _ = pair
    page = Page(mc.show(before, after, path=tmp_path / "g.html").read_text())
    assert page.nodes == len(before.graph.jaxpr.eqns) + len(after.graph.jaxpr.eqns)
    assert page.fetched == []
    assert page.open == []
    for word in ("before", "after", "conv_general_dilated", "custom_jvp_call relu"):
        assert word in page.words


def test_a_program_beside_itself_has_nothing_changed(pair, tmp_path):
    before, after, _ = pair
    same = Page(mc.show(before, before, path=tmp_path / "same.html").read_text())
    other = Page(mc.show(before, after, path=tmp_path / "other.html").read_text())
    assert same.changed == 0
    assert other.changed > 0


def test_one_program_alone_can_be_drawn(case, tmp_path):
    function, variables, inputs = case
    program = mc.trace(function, variables, *inputs)
    page = Page(mc.show(program, path=tmp_path / "g.html").read_text())
    assert page.nodes == len(program.graph.jaxpr.eqns)


def test_names_are_escaped(tmp_path):
    def function(v, x):
        with jax.named_scope("<script>alert(1)</script>"):
            return x @ v["<b>"]

    program = mc.trace(function, {"<b>": normal(2, 2)}, normal(1, 2))
    text = mc.show(program, path=tmp_path / "g.html").read_text()
    assert "<script>alert" not in text
    assert "<b>" not in text


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 12).flatmap(lambda n: st.tuples(
    st.just(n),
    st.lists(st.tuples(st.integers(0, n - 1), st.integers(0, n - 1)), max_size=20),
    st.sets(st.integers(0, n - 1)),
)))  # fmt: skip
def test_no_two_nodes_stand_in_one_cell_and_parents_stand_above(drawn):
    count, edges, early = drawn
    names = [f"n{i}" for i in range(count)]
    parents = {name: [] for name in names}
    for a, b in edges:
        if a < b:
            parents[names[b]].append(names[a])
    side = {names[i] for i in early}
    for name in names:
        if name in side and any(p not in side for p in parents[name]):
            side.discard(name)
    places = layered(names, parents, side)
    cells = [(p.layer, p.column) for p in places.values()]
    assert len(set(cells)) == count
    assert min(cells)[0] >= 0
    for name in names:
        for parent in parents[name]:
            assert places[parent].layer < places[name].layer
