"""Drawings of programs: what is in them, and how they look in a real browser."""

import html
import html.parser
import json
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from zoo import ZOO, disturbed, normal

import compiler as mc
from compiler.cost import cost
from compiler.errors import FormatError, MissingExtraError
from compiler.inspect.show import View
from compiler.inspect.view.align import align
from compiler.inspect.view.boxes import Box
from compiler.inspect.view.drawing import drawing, place, rectangles
from compiler.inspect.view.flow import flow
from compiler.inspect.view.grouping import tree
from compiler.inspect.view.layout import arrange
from compiler.inspect.view.opening import opened
from compiler.paths import flatten, operations

CHROMIUM = shutil.which("chromium")
browser = pytest.mark.skipif(
    CHROMIUM is None, reason="needs chromium (apt-get install chromium)"
)

SOME = [
    "linen scanned", "equinox attention", "plain tied embedding", "plain while",
    "plain cond", "plain gradient", "plain custom derivatives",
]  # fmt: skip
some = pytest.mark.parametrize("case", SOME, indirect=True)


class Document(html.parser.HTMLParser):
    """The elements of a page after its scripts ran, and what they say."""

    def __init__(self, text):
        super().__init__()
        self.elements, self._open = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        found = {"tag": tag, "text": "", **dict(attributes)}
        self.elements.append(found)
        if tag not in ("meta", "input", "path", "circle", "rect", "br"):
            self._open.append(found)

    def handle_endtag(self, tag):
        if self._open and self._open[-1]["tag"] == tag:
            self._open.pop()

    def handle_data(self, data):
        for element in self._open:
            element["text"] += data

    def by_class(self, *names):
        return [
            e
            for e in self.elements
            if set(names) <= set((e.get("class") or "").split())
        ]

    def boxes(self, *names):
        return {
            e["data-path"] + "|" + e["data-name"] for e in self.by_class("box", *names)
        }

    def by_id(self, name):
        return next(e for e in self.elements if e.get("id") == name)


def look(page, tmp_path, asked="", size="1400,2400"):
    """Opens a page in chromium; fails on any message on its console."""
    command = [
        CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom",
        f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={size}",
        "--enable-logging=stderr", "--virtual-time-budget=4000",
        f"file://{page}{asked}",
    ]  # fmt: skip
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120)
    said = [line for line in ran.stderr.splitlines() if "CONSOLE" in line]
    assert said == []
    return Document(ran.stdout)


def acting(page, script):
    """The same page with something done on it, as a user would."""
    text = page.read_text().replace("</body>", f"<script>{script}</script></body>")
    made = page.with_name("acting.html")
    made.write_text(text)
    return made


def stack(layers):
    """Plain JAX with scopes: each layer is a product, a sum and a tanh."""

    def function(v, x):
        for i, layer in enumerate(v):
            with jax.named_scope(f"layers_{i}"):
                x = jnp.tanh(x @ layer["kernel"] + layer["bias"])
        with jax.named_scope("head"):
            return x @ v[0]["kernel"]

    shape = jax.ShapeDtypeStruct
    layer = {"kernel": shape((8, 8), "float32"), "bias": shape((2, 8), "float32")}
    return mc.trace(function, [layer] * layers, shape((2, 8), "float32"))


@pytest.fixture(scope="module")
def pair():
    function, variables, inputs = ZOO["linen residual"]()
    before = mc.trace(function, variables, *inputs)
    return before, mc.fold()(before)


@pytest.fixture(scope="module")
def residual(pair, tmp_path_factory):
    return mc.show(pair[0], path=tmp_path_factory.mktemp("page") / "g.html")


@pytest.fixture(scope="module")
def deep(tmp_path_factory):
    return mc.show(stack(500), path=tmp_path_factory.mktemp("deep") / "g.html")


# What is in a drawing


@some
def test_every_equation_at_every_depth_is_one_box(case):
    function, variables, inputs = case
    graph = mc.trace(function, variables, *inputs).graph
    boxes = tree(graph).boxes
    found = [box for box in boxes if box.kind == "operation"]
    wanted = list(flatten(operations(graph)))
    assert len(found) == len(wanted) == boxes[0].count
    assert sorted(b.path for b in found) == sorted(o.path for o in wanted)
    assert [box.index for box in boxes] == list(range(len(boxes)))
    assert all(box.parent.index < box.index < box.parent.end for box in boxes[1:])


@some
def test_the_whole_costs_what_cost_counts(case):
    function, variables, inputs = case
    graph = mc.trace(function, variables, *inputs).graph
    root, counted = tree(graph).root, cost(graph)
    assert (root.flops, root.transcendentals) == (
        counted.flops,
        counted.transcendentals,
    )


def test_a_group_adds_up_what_is_in_it_and_a_shared_leaf_once():
    def function(v, x):
        with jax.named_scope("a"):
            x = x @ v["w"]
        with jax.named_scope("b"):
            return x @ v["w"] + v["b"]

    leaves = {"w": normal(8, 8), "b": normal(2, 8)}
    boxes = tree(mc.trace(function, leaves, normal(2, 8)).graph)
    named = {box.name: box for box in boxes.boxes if box.kind == "group"}
    assert (named["a"].flops, named["a"].bytes, named["a"].count) == (256, 256, 1)
    assert (named["b"].flops, named["b"].bytes, named["b"].count) == (272, 320, 2)
    assert (boxes.root.flops, boxes.root.bytes, boxes.root.count) == (528, 320, 3)
    assert boxes.share(named["a"]) == 256 / 528


def test_bodies_of_loops_branches_and_calls_are_groups():
    def function(w, x):
        def step(h, _):
            with jax.named_scope("cell"):
                return jax.checkpoint(lambda h: jnp.tanh(h @ w))(h), None

        h, _ = jax.lax.scan(step, x, None, length=3)
        h = jax.lax.while_loop(lambda h: h.sum() < 0, lambda h: h + 1.0, h)
        return jax.lax.cond(h.sum() > 0, lambda h: jax.nn.relu(h), lambda h: h @ w, h)

    boxes = tree(mc.trace(function, normal(4, 4), normal(2, 4)).graph).boxes
    inside = {(box.parent.name, box.name) for box in boxes[1:]}
    assert {
        ("cell", "remat2"), ("remat2", "dot_general"), ("while", "cond"),
        ("while", "body"), ("cond", "branch 0"), ("cond", "branch 1"),
    } <= inside  # fmt: skip
    product = next(b for b in boxes if b.name == "dot_general" and b.times == 3)
    assert product.flops == 3 * 2 * 2 * 4 * 4
    assert [leaf.path for leaf in product.reads] == ["variables"]
    named = {box.name: box for box in boxes}
    assert named["scan"].note == "3 iterations"
    assert "counted once" in named["while"].note


def test_data_flows_between_groups_also_out_of_bodies():
    def function(w, x):
        with jax.named_scope("first"):
            x = jnp.sin(x)
        with jax.named_scope("second"):
            h, _ = jax.lax.scan(lambda h, _: (h @ w + x, None), x, None, length=2)
        return h

    boxes = tree(mc.trace(function, normal(4, 4), normal(2, 4)).graph)
    names = [child.name for child in boxes.root.children]
    assert names == ["input 0", "first", "second", "output"]
    assert flow(boxes)[boxes.root] == [(0, 1), (1, 2), (2, 3)]


def test_alike_groups_are_one_box_and_others_are_not():
    def function(v, x):
        for i in range(9):
            with jax.named_scope(f"block_{i}"):
                x = x @ v if i < 6 else jnp.sin(x @ v)
            x = x + 1.0
        return x

    boxes = tree(mc.trace(function, normal(4, 4), normal(2, 4)).graph).boxes
    repeats = [box for box in boxes if box.kind == "repeat"]
    assert [box.name for box in repeats] == ["block_0 … block_5"]
    assert [len(box.children) for box in repeats] == [6]
    assert repeats[0].note == "6 alike"


def test_loose_operations_of_an_optimizer_are_boxed_by_function():
    params = {f"w{i}": normal(3, 3) for i in range(6)}
    optimizer = optax.adam(1e-3)

    def step(v, state, x):
        gradients = jax.grad(lambda v: sum((x @ w).sum() for w in v.values()))(v)
        updates, state = optimizer.update(gradients, state, v)
        return optax.apply_updates(v, updates), state

    state = optimizer.init(params)
    with jax.numpy_dtype_promotion("standard"):  # optax mixes dtypes
        boxes = tree(mc.trace(step, params, state, normal(2, 3)).graph)
    names = {box.name for box in boxes.root.children if box.kind == "function"}
    assert {"scale_by_adam()", "tree_update_moment()"} <= names
    loose = [box for box in boxes.root.children if box.kind == "operation"]
    assert len(loose) < boxes.root.count / 2


def test_a_group_of_one_function_stays_as_it_is():
    def function(v, x):
        with jax.named_scope("first"):
            for _ in range(30):
                x = jnp.sin(x)
        with jax.named_scope("second"):
            return jnp.cos(x)

    boxes = tree(mc.trace(function, {}, normal(2)).graph)
    assert {box.kind for box in boxes.boxes} == {
        "group", "operation", "input", "output",
    }  # fmt: skip
    assert [len(box.children) for box in boxes.root.children] == [0, 30, 1, 0]


def test_a_program_of_nothing_can_be_drawn(tmp_path):
    program = mc.trace(lambda v, x: x, {}, normal(2))
    assert mc.show(program, path=tmp_path / "g.html").exists()
    ET.fromstring(mc.show(program).svg)
    assert "0 operations" in str(mc.show(program))


def test_opening_is_by_level_and_bounded():
    boxes = tree(stack(500).graph)
    assert {box.name for box in opened(boxes, 0)} == {"program"}
    assert {box.name for box in opened(boxes, 1)} >= {"layers_0 … layers_499", "head"}
    seen = [child for box in opened(boxes) for child in box.children]
    assert len(seen) <= 40


# Two programs


@some
def test_a_program_beside_itself_has_nothing_changed(case):
    function, variables, inputs = case
    graph = mc.trace(function, variables, *inputs).graph
    before, after = tree(graph), tree(graph)
    counts = align(before, after)
    assert counts == {
        "same": before.root.count, "changed": 0, "only before": 0, "only after": 0,
    }  # fmt: skip
    assert all(box.pair.pair is box for box in before.boxes)
    assert all(box.pair.path == box.path for box in before.boxes)


def test_one_more_operation_is_the_only_difference():
    def plain(v, x):
        with jax.named_scope("dense"):
            x = x @ v
        return x + 1.0

    def more(v, x):
        with jax.named_scope("dense"):
            x = jnp.sin(x) @ v
        return x + 2.0

    before, after = (
        tree(mc.trace(f, normal(4, 4), normal(2, 4)).graph) for f in (plain, more)
    )
    counts = align(before, after)
    assert counts == {"same": 1, "changed": 1, "only before": 0, "only after": 1}
    marks = {box.name: box.mark for box in after.boxes if box.kind == "operation"}
    assert marks == {"sin": "only", "dot_general": "same", "add": "changed"}


def test_operations_add_up_after_a_pass(pair):
    before, after = tree(pair[0].graph), tree(pair[1].graph)
    counts = align(before, after)
    both = counts["same"] + counts["changed"]
    assert both + counts["only before"] == before.root.count
    assert both + counts["only after"] == after.root.count
    gone = {box.name for box in before.boxes if box.mark == "only"}
    assert {"sub", "rsqrt", "mul"} <= gone


def test_weights_stored_as_integers_leave_the_operations_paired(pair):
    before, after = pair[1], mc.quantize.weights("int8")(pair[1])
    one, other = tree(before.graph), tree(after.graph)
    counts = align(one, other)
    assert counts["only before"] == 0
    assert counts["same"] + counts["changed"] == one.root.count
    made = {box.name for box in other.boxes if box.mark == "only"}
    assert {"convert_element_type", "mul"} <= made


def test_the_text_of_two_is_their_difference(pair):
    text = str(mc.show(*pair))
    assert "9 same, 2 changed, 18 only before, 0 only after" in text
    lines = text.splitlines()
    assert sum(line.startswith("-") for line in lines) == 20
    assert sum(line.startswith("+") for line in lines) == 2
    assert any("10 → 1 ops" in line and "BatchNorm_0" in line for line in lines)
    assert "Fold(): " in text
    assert "fired    BatchNorm_0: scale merged" in text


def test_what_is_the_same_is_left_out_of_the_difference():
    def function(v, x, more=False):
        for _ in range(30):
            x = jnp.sin(x)
        return jnp.cos(x) if more else x

    before = mc.trace(function, {}, normal(2))
    after = mc.trace(lambda v, x: function(v, x, True), {}, normal(2))
    text = str(mc.show(before, after))
    assert "… 27 the same" in text
    assert text.count("sin") == 3
    assert [t.split()[0] for t in text.splitlines() if t[0] in "+-"] == ["+cos"]


# Layout


@settings(max_examples=80, deadline=None)
@given(st.integers(1, 14).flatmap(lambda n: st.tuples(
    st.lists(st.tuples(st.integers(1, 300), st.integers(1, 90)),
             min_size=n, max_size=n),
    st.lists(st.tuples(st.integers(0, n - 1), st.integers(0, n - 1)).filter(
        lambda e: e[0] != e[1]), max_size=24),
    st.sets(st.integers(0, n - 1)),
)))  # fmt: skip
def test_no_boxes_overlap_and_data_flows_down(drawn):
    sizes, edges, early = drawn
    found = arrange(sizes, edges, early)
    spots = list(zip(found.places, sizes, strict=True))
    for i, (p, (w, h)) in enumerate(spots):
        assert -1e-6 <= p.x <= p.x + w <= found.width + 1e-6
        assert 0 <= p.y <= p.y + h <= found.height + 1e-6
        for q, (v, k) in spots[:i]:
            apart = p.x + w <= q.x or q.x + v <= p.x or p.y + h <= q.y or q.y + k <= p.y
            assert apart
    for start, end in edges:
        if start < end:
            assert found.places[start].y + sizes[start][1] < found.places[end].y
    assert {(line.start, line.end) for line in found.lines} == set(edges)
    for line in found.lines:
        if line.lane is not None:
            assert all(not p.x < line.lane < p.x + w for p, (w, _) in spots)


def test_the_svg_is_well_formed_and_has_every_open_box(pair):
    trees = tree(pair[0].graph, "before"), tree(pair[1].graph, "after")
    align(*trees)
    root = ET.fromstring(drawing(trees, depth=1))
    groups = root.findall(".//{http://www.w3.org/2000/svg}g")
    wanted = [r.box for t in trees for r in rectangles(place(t, opened(t, 1)), 0, 0)]
    assert len(groups) == len(wanted)
    kinds = [set(group.get("class").split()) for group in groups]
    assert sum({"only", "before", "operation"} <= kind for kind in kinds) == 18
    assert sum("changed" in kind for kind in kinds) == 4
    closed = ET.fromstring(mc.show(pair[0], depth=0).svg)
    seen = closed.findall(".//{http://www.w3.org/2000/svg}g")
    assert len(seen) == len(trees[0].root.children)


# Formats


def test_the_ending_says_what_is_written(pair, tmp_path):
    path = mc.show(pair[0], path=tmp_path / "new" / "graph.txt")
    assert path == tmp_path / "new" / "graph.txt"
    assert path.read_text() == f"{mc.show(pair[0])}\n"
    assert mc.show(pair[0], path=tmp_path / "g.svg").read_text().startswith("<svg")
    other = mc.show(*pair, path=str(tmp_path / "page"), format="html")
    assert other.read_text().startswith("<!doctype html>")
    with pytest.raises(
        FormatError, match=r"g\.png: expected a path that ends in \.html"
    ):
        mc.show(pair[0], path=tmp_path / "g.png")
    with pytest.raises(FormatError, match=r"got format='dot'\. Name one"):
        mc.show(pair[0], path=tmp_path / "g.html", format="dot")


def test_a_graph_is_drawn_like_its_program(pair):
    assert str(mc.show(pair[0].graph)) == str(mc.show(pair[0]))


def test_a_notebook_gets_the_page_in_a_frame(pair):
    view = mc.show(*pair)
    assert isinstance(view, View)
    frame = Document(view._repr_html_()).elements[0]
    assert frame["tag"] == "iframe"
    assert frame["srcdoc"] == view.html


def test_tensorboard_reads_the_graph_back(tmp_path):
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator",
        reason="needs the extra tensorboard",
    )

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.relu(nn.Dense(4)(x))
            return nn.Dense(3)(x)

    variables = disturbed(Net().init(jax.random.key(0), normal(2, 5)))
    program = mc.trace(Net().apply, variables, normal(2, 5))
    folder = mc.show(program, path=tmp_path / "logs", format="tensorboard")
    read = accumulator.EventAccumulator(str(folder))
    read.Reload()
    nodes = {node.name: node for node in read.Graph().node}
    product = nodes["Dense_0/dot_general"]
    assert list(product.input) == ["input_0", "leaves/params/Dense_0/kernel"]
    assert product.attr["flops"].i == 2 * 2 * 5 * 4
    assert product.attr["shape"].s == b"float32[2, 4]"
    assert list(nodes["output"].input) == ["Dense_1/add"]
    kernel = nodes["leaves/params/Dense_0/kernel"].attr["_output_shapes"]
    assert [dim.size for dim in kernel.list.shape[0].dim] == [5, 4]
    assert all(name in nodes for node in nodes.values() for name in node.input)
    mc.show(program, mc.fold()(program), path=tmp_path / "two", format="tensorboard")
    assert {run.name for run in (tmp_path / "two").iterdir()} == {"before", "after"}


def test_without_tensorboard_the_extra_is_named(pair, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard.compat.proto.event_pb2", None)
    with pytest.raises(MissingExtraError, match=r"pip install mapping\[tensorboard\]"):
        mc.show(pair[0], path=tmp_path / "logs", format="tensorboard")


def test_five_hundred_layers_are_a_small_file(deep):
    assert deep.stat().st_size < 600_000


NASTY = ["</script><script>alert(1)</script>", "<!--", "/*data*/", "/*script*/", "a&b"]


def nasty():
    def function(v, x):
        for name in NASTY:
            with jax.named_scope(name):
                x = x @ v["<b>"]
        return x

    return mc.trace(function, {"<b>": normal(2, 2)}, normal(1, 2))


def test_text_of_the_program_is_never_markup(tmp_path):
    view = mc.show(nasty())
    assert "alert(1)</script>" not in view.html
    assert "<b>" not in view.html.partition('id="data">')[2].partition("</script>")[0]
    data = Document(view.html).by_id("data")["text"]
    assert "<b>" in json.loads(data)["sides"][0]["texts"]
    ET.fromstring(view.svg)
    pytest.importorskip("tensorboard", reason="needs the extra tensorboard")
    assert view.save(tmp_path / "logs", "tensorboard").exists()


# In a browser


@browser
def test_the_page_opens_collapsed_and_says_what_things_cost(deep, tmp_path):
    page = look(deep, tmp_path)
    assert page.elements[0].get("data-ready") == "true"
    names = page.boxes()
    assert names == {"|input 0", "|layers_0 … layers_499", "head|head", "|output"}
    run = page.by_class("box", "repeat")[0]
    assert run["aria-expanded"] == "false"
    assert "500 alike" in run["text"]
    assert "1,501 operations" in page.by_id("titles")["text"]
    assert len(page.by_class("tip")) == 3  # input -> layers -> head -> output


@browser
def test_a_search_opens_what_it_finds_and_marks_it(deep, tmp_path):
    page = look(deep, tmp_path, "#search=layers_377%20tanh")
    assert page.by_id("found")["text"] == "1 found"
    assert page.boxes("match") == {"layers_377|tanh"}
    assert "layers_377|layers_377" in page.boxes("open")
    assert "layers_376|layers_376" in page.boxes("closed")
    many = look(deep, tmp_path, "#search=float32[2,%208]")
    assert many.by_id("found")["text"].endswith(" found")
    assert many.boxes("has") == {"|layers_0 … layers_499", "head|head"}
    assert (
        look(deep, tmp_path, "#search=zebra").by_id("found")["text"] == "nothing found"
    )


@browser
def test_a_link_opens_selects_and_is_dark(residual, tmp_path):
    page = look(residual, tmp_path, "#expand=*&select=BatchNorm_0&theme=dark")
    assert "dark" in page.elements[0]["class"]
    assert page.boxes("selected") == {"BatchNorm_0|BatchNorm_0"}
    told = page.by_id("told")["text"]
    for word in ("Conv_0", "custom_jvp_call relu", "params/BatchNorm_0/scale", "FLOPs"):
        assert word in told
    assert "relu" in str(page.boxes("operation"))
    inner = look(residual, tmp_path, "#select=Conv_0")
    assert "Inputs" in inner.by_id("told")["text"]
    assert inner.by_class("told") != []


@browser
def test_keys_move_open_and_close(residual, tmp_path):
    press = (
        "for (const key of [%s]) document.querySelector('.canvas').dispatchEvent("
        "new KeyboardEvent('keydown', {key, bubbles: true}));"
    )
    page = look(acting(residual, press % "'Home', 'ArrowDown', 'ArrowLeft'"), tmp_path)
    assert page.boxes("selected") == {"Conv_0|Conv_0"}
    assert "Conv_0|Conv_0" in page.boxes("closed")
    keys = press % "'Home', 'ArrowDown', 'Enter', 'Enter', 'ArrowRight'"
    click = "document.querySelector('.box.closed .twist').click()"
    page = look(acting(residual, keys), tmp_path)
    assert page.boxes("selected") == {"Conv_0|conv_general_dilated"}
    page = look(acting(residual, click), tmp_path)
    assert page.boxes("selected") == {"|custom_jvp_call relu"}
    assert "|custom_jvp_call relu" in page.boxes("open")
    assert "|jit relu" in page.boxes("closed")


@browser
def test_two_programs_show_what_changed_and_which_pass_did_it(pair, tmp_path):
    path = mc.show(*pair, path=tmp_path / "g.html")
    go = "document.querySelector('#passes a[role=link]').click()"
    page = look(acting(path, go), tmp_path)
    counts = {e["data-count"]: e["text"] for e in page.elements if "data-count" in e}
    assert counts == {
        "changed": "Δ2 changed", "only before": "\u221218 only before",
        "only after": "+0 only after", "same": "9 same",
    }  # fmt: skip
    assert len(page.by_class("box", "only", "before")) == 18
    assert len(page.by_class("box", "only", "after")) == 0
    assert len(page.by_class("box", "changed")) == 4
    assert "14 fired" in page.by_id("passes")["text"]
    assert "scale merged into the kernel" in page.by_id("passes")["text"]
    chosen = page.by_class("box", "selected")
    assert {box["data-path"] for box in chosen} == {"BatchNorm_0"}


@browser
@pytest.mark.parametrize("name", ["linen scanned", "plain gradient"])
def test_the_browser_places_boxes_where_the_svg_does(name, tmp_path):
    function, variables, inputs = ZOO[name]()
    program = mc.trace(function, variables, *inputs)
    path = mc.show(program, path=tmp_path / "g.html")
    page = look(path, tmp_path, "#expand=*", size="3000,9000")
    found = {}
    for box in page.by_class("box"):
        style = dict(part.split(":") for part in box["style"].split(";") if part)
        found[int(box["data-id"])] = [
            float(style[k].removesuffix("px"))
            for k in ("left", "top", "width", "height")
        ]
    boxes = tree(program.graph)
    wanted = {
        r.box.index: [r.x, r.y, r.width, r.height]
        for r in rectangles(place(boxes, set(boxes.boxes)), 0, 0)
    }
    assert found.keys() == wanted.keys()
    for index, spot in wanted.items():
        assert found[index] == pytest.approx(spot, abs=1e-6)


@browser
def test_nasty_names_are_read_as_they_are(tmp_path):
    page = look(mc.show(nasty(), path=tmp_path / "g.html"), tmp_path, "#expand=*")
    seen = {box["data-path"] for box in page.by_class("box", "operation")}
    assert {"<!--", "a&b"} <= seen
    assert any("alert(1)" in path for path in seen)


@browser
def test_the_page_works_in_a_notebooks_frame(pair, tmp_path):
    frame = mc.show(*pair)._repr_html_()
    click = "app.select(0, 2)"
    inside = html.escape(f"<script>{click}</script></body>", quote=True)
    path = tmp_path / "notebook.html"
    path.write_text(f"<!doctype html>{frame.replace('&lt;/body&gt;', inside)}")
    look(path, tmp_path)


@browser
def test_looking_notices_errors_and_requests(residual, tmp_path):
    for script in ("missing()", "fetch('http://localhost:1/x')"):
        with pytest.raises(AssertionError):
            look(acting(residual, script), tmp_path)


def test_symbolic_extents_are_written_and_not_counted(tmp_path):
    rows = jax.ShapeDtypeStruct(jax.export.symbolic_shape("rows, 8"), "float32")

    def net(v, x):
        def step(carry, row):
            return carry + row @ v["w"], None

        return jnp.tanh(x + v["b"]), jax.lax.scan(step, jnp.zeros(8), x)[0]

    program = mc.trace(net, {"w": normal(8, 8), "b": rows}, rows)
    after = program >> mc.simplify()
    text = str(mc.show(program))
    assert "float32[rows, 8]" in text
    assert "rows iterations" in text
    assert "64 parameters (256 B), 0 FLOPs and what symbols say" in text
    assert "depends on symbols, not counted" in text
    for ending in ("html", "svg", "txt"):
        for pair in ((program,), (program, after)):
            path = mc.show(*pair, path=tmp_path / f"g.{ending}")
            assert "float32[rows, 8]" in path.read_text()


def test_a_box_knows_what_it_is_inside_of():
    outer, inner = Box("group", "a"), Box("group", "b")
    outer.add(inner)
    assert [box.name for box in inner.above()] == ["b", "a"]
