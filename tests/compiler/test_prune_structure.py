"""What can be removed from a function, and that what is left computes the right thing.

The zoo of architectures is in test_prune_architectures; here is each idea by itself.
"""

import importlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from zoo import normal, relative_error

import compiler as mc
from compiler.errors import PlanError, UnknownPathError
from compiler.passes.prune.structure import Registry, masked, shrink, structure

X = normal(4, 3)


def params(width=8, seed=0):
    return {
        "first": normal(3, width, seed=seed),
        "bias": normal(width, seed=seed + 1),
        "last": normal(width, 2, seed=seed + 2),
    }


def pruned(function, variables, *inputs, gone=(1, 4, 5)):
    """A program without some units of its first group, and the plan."""
    program = mc.trace(function, variables, *inputs)
    found = structure(program.graph)
    plan = found.plan({found.groups[0].name: np.asarray(gone)})
    return program >> mc.prune.apply(plan), plan


def hidden(change):
    """A function whose hidden units meet an operation, written for any width."""

    def function(v, x):
        h = change(jnp.tanh(x @ v["first"] + v["bias"][None]))
        return h @ v["last"]

    return function


def mean_square(h):
    return jnp.einsum("bd,bd->b", h, h) / h.shape[-1]


def two_passes(h):
    return ((h * h).sum(-1) - h.sum(-1) ** 2 / h.shape[-1]) / (h.shape[-1] - 1)


def root(h):
    return np.float32(h.shape[-1] ** 0.5)


def scaled_sum(h):
    return h - h.sum(-1, keepdims=True) / h.shape[-1]


CHANGES = {
    "mean": lambda h: h - h.mean(-1, keepdims=True),
    "sum over the extent": scaled_sum,
    "times one over it": lambda h: h - h.sum(-1, keepdims=True) * (1 / h.shape[-1]),
    "negated": lambda h: h + -h.sum(-1, keepdims=True) / h.shape[-1],
    "variance": lambda h: h * lax.rsqrt(h.var(-1, keepdims=True) + 1e-3),
    "unbiased variance": lambda h: h / h.std(-1, ddof=1, keepdims=True),
    "in two steps": lambda h: h - (h**2).sum(0).sum() / (h.shape[0] * h.shape[1]),
    "mean of both": lambda h: h - h.mean(),
    "in a chain": lambda h: h - h.sum(-1).mean(0) / h.shape[-1],
    "mean times its count": lambda h: h - (h.mean(-1) * h.shape[-1])[:, None],
    "counted by ones": lambda h: h - (h.sum(-1) / jnp.ones_like(h).sum(-1))[:, None],
    "variance in two passes": lambda h: h * two_passes(h)[:, None],
    "root mean square": lambda h: h * lax.rsqrt(mean_square(h) + 1e-3)[:, None],
    "norm times a root": lambda h: h / jnp.linalg.norm(h, axis=-1)[:, None] * root(h),
    "softmax": lambda h: jax.nn.softmax(h, -1),
    "maximum": lambda h: h / h.max(-1, keepdims=True),
    "product": lambda h: h + h.prod(-1, keepdims=True),
    "reversed twice": lambda h: h[:, ::-1][:, ::-1],
    "relu": jax.nn.relu,
    "gelu": jax.nn.gelu,
    "logsumexp": lambda h: h - jax.nn.logsumexp(h, -1, keepdims=True),
    "layer norm": lambda h: (h - h.mean(-1, keepdims=True)) / h.std(-1, keepdims=True),
    "checkpoint": jax.checkpoint(lambda h: jnp.sin(h) - h.mean(-1, keepdims=True)),
    "jit": jax.jit(lambda h: jnp.sin(h) - h.mean(-1, keepdims=True)),
    "loop": lambda h: lax.fori_loop(
        0, 3, lambda i, a: a - a.mean(-1, keepdims=True), h
    ),
    "branch": lambda h: lax.cond(h.shape[0] > 2, lambda a: a - a.mean(), jnp.sin, h),
    "concatenated": lambda h: jnp.concatenate([h, h * 2], -1)[:, : h.shape[-1]],
    "dropped out": lambda h: jnp.where(
        jax.random.bernoulli(jax.random.key(0), 1.0, h.shape), h, 0.0
    ),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=list(CHANGES))
def test_what_is_left_is_the_function_written_for_fewer_units(change):
    function, v = hidden(change), params()
    small, plan = pruned(function, v, X)
    cut = {name: plan.cut(a, name) for name, a in v.items()}
    assert cut["first"].shape == (3, 5)
    assert relative_error(small(X), function(cut, X)) < 1e-5
    of_pruned = jax.grad(lambda v: (small.function(v, X) ** 2).sum())(small.variables)
    of_written = jax.grad(lambda v: (function(v, X) ** 2).sum())(cut)
    for name in cut:
        assert relative_error(of_pruned[name], of_written[name]) < 1e-4


def test_an_extent_and_one_less_are_told_apart_when_they_are_large():
    function = hidden(lambda h: h / h.std(-1, ddof=1, keepdims=True))
    gone = np.arange(505)
    small, plan = pruned(function, params(width=512), X, gone=gone)
    cut = {name: plan.cut(a, name) for name, a in params(width=512).items()}
    assert relative_error(small(X), function(cut, X)) < 1e-5


def test_a_number_that_is_near_an_extent_and_is_none_stays():
    function = hidden(lambda h: h - h.sum(-1, keepdims=True) / 510.0)
    small, plan = pruned(function, params(width=512), X, gone=np.arange(256))
    cut = {name: plan.cut(a, name) for name, a in params(width=512).items()}
    assert relative_error(small(X), function(cut, X)) < 1e-5


def test_masking_leaves_shapes_and_gives_the_same_numbers():
    function, v = hidden(CHANGES["layer norm"]), params()
    small, plan = pruned(function, v, X)
    program = mc.trace(function, v, X)
    graph = masked(structure(program.graph), plan)
    garbage = [jnp.where(jnp.isfinite(a), a, a) for a in program.values]
    assert graph.leaves == program.graph.leaves
    assert relative_error(graph.evaluate(garbage, [X])[0], small(X)) < 1e-5


def test_it_holds_for_other_batches_and_for_saved_programs(tmp_path):
    function = hidden(CHANGES["mean of both"])
    small, plan = pruned(function, params(), X)
    cut = {name: plan.cut(a, name) for name, a in params().items()}
    x = normal(7, 3, seed=5)
    assert relative_error(small(x), function(cut, x)) < 1e-5
    loaded = mc.load(small.save(tmp_path / "small"))
    assert relative_error(loaded(x), function(cut, x)) < 1e-5


def test_a_mean_over_extents_that_are_symbols_is_over_what_is_left(tmp_path):
    def function(v, x):
        h = lax.conv_general_dilated(
            x, v["k"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        mean = h.mean((1, 2, 3), keepdims=True)
        variance = h.var((1, 2, 3), ddof=1, keepdims=True)
        return ((h - mean) / jnp.sqrt(variance)).max((1, 2)) @ v["out"]

    v = {"k": normal(3, 3, 2, 8), "out": normal(8, 2)}
    small, plan = pruned(function, v, normal(2, 4, 4, 2))
    cut = {name: plan.cut(a, name) for name, a in v.items()}
    x = normal(3, 6, 6, 2, seed=1)
    loaded = mc.load(small.save(tmp_path / "small"))
    assert relative_error(loaded(x), function(cut, x)) < 1e-5


def test_a_pass_applied_again_changes_nothing():
    small, plan = pruned(hidden(jnp.sin), params(), X)
    again = small >> mc.prune.apply(plan)
    assert again.graph is small.graph
    assert not again.history[-1].events.fired
    assert "already" in again.history[-1].events.skipped[0].what


def test_shapes_are_enough():
    specs = jax.eval_shape(params)
    program = mc.trace(
        hidden(jnp.sin), specs, jax.ShapeDtypeStruct((4, 3), jnp.float32)
    )
    (group,) = mc.prune.groups(program)
    assert (group.size, group.kind) == (8, "channels")
    plan = structure(program.graph).plan({group.name: [0]})
    small = program >> mc.prune.apply(plan)
    assert small.size == program.size - 6


# Derivatives inside


def test_a_derivative_inside_is_right_or_left_alone():
    """The gradient of a mean holds a count that nobody can tell."""

    def slope(v, x):
        def energy(x):
            h = jnp.tanh(x @ v["first"])
            return (h * h).mean() + (h @ v["last"]).sum()

        return jax.grad(energy)(x)

    program = mc.trace(slope, params(), X)
    assert not structure(program.graph).groups
    why = str(mc.prune.why_not(program, "first", 1))
    assert "transpose" in why


def inner_product_mean(h):
    return jnp.vdot(h, h) / h.size


def row_means(h):
    return (jnp.einsum("bd,bd->b", h, h) / h.shape[-1]).sum()


@pytest.mark.parametrize("energy", [inner_product_mean, row_means])
def test_the_derivative_of_a_mean_of_squares_is_left_alone(energy):
    def slope(v, x):
        return jax.grad(lambda x: energy(jnp.tanh(x @ v["first"])))(x)

    program = mc.trace(slope, params(), X)
    assert not structure(program.graph).groups


@jax.custom_vjp
def fused_norm(h):
    return h * lax.rsqrt((h * h).mean(-1, keepdims=True))


def _fused_forward(h):
    r = lax.rsqrt((h * h).mean(-1, keepdims=True))
    return h * r, (h, r)


def _fused_backward(kept, g):
    h, r = kept
    return (r * g - h * r**3 * (g * h).sum(-1, keepdims=True) / h.shape[-1],)


fused_norm.defvjp(_fused_forward, _fused_backward)


def test_a_derivative_without_a_mean_is_pruned():
    def slope(v, x):
        return jax.grad(lambda x: (jnp.tanh(x @ v["first"]) @ v["last"]).sum())(x)

    small, plan = pruned(slope, params(), X)
    cut = {name: plan.cut(a, name) for name, a in params().items()}
    assert cut["first"].shape == (3, 5)
    assert relative_error(small(X), slope(cut, X)) < 1e-5


def test_a_training_step_is_pruned_where_that_is_right():
    def step(v, x):
        def loss(v):
            return ((jnp.tanh(x @ v["first"] + v["bias"][None]) @ v["last"]) ** 2).sum()

        return jax.tree.map(lambda w, g: w - 0.1 * g, v, jax.grad(loss)(v))

    small, plan = pruned(step, params(), X)
    cut = {name: plan.cut(a, name) for name, a in params().items()}
    want, got = step(cut, X), small(X)
    assert got["first"].shape == (3, 5)
    for name in cut:
        assert relative_error(got[name], want[name]) < 1e-5


@jax.custom_vjp
def rounded(x):
    return jnp.round(x * 4) / 4


rounded.defvjp(lambda x: (rounded(x), x.shape[0]), lambda rows, g: (g * 2.0,))


@jax.custom_jvp
def softened(x):
    return jnp.abs(x)


softened.defjvp(lambda p, t: (softened(p[0]), jnp.tanh(p[0]) * t[0]))


@pytest.mark.parametrize("change", [rounded, softened, jax.nn.relu, fused_norm])
def test_derivative_rules_of_functions_survive(change):
    function, v = hidden(change), params()
    small, plan = pruned(function, v, X)
    cut = {name: plan.cut(a, name) for name, a in v.items()}
    got = jax.grad(lambda v: small.function(v, X).sum())(small.variables)
    want = jax.grad(lambda v: function(v, X).sum())(cut)
    for name in cut:
        assert relative_error(got[name], want[name]) < 1e-5


# State, and several functions of one set of weights


class Normed(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        x = nn.BatchNorm(use_running_average=not train)(nn.Dense(8)(x))
        return nn.Dense(2)(nn.relu(x))


def test_statistics_that_are_returned_become_smaller():
    model = Normed()
    variables = model.init(jax.random.key(0), X, train=False)

    def train(v, x):
        return model.apply(v, x, train=True, mutable=["batch_stats"])

    serving = mc.trace(lambda v, x: model.apply(v, x, train=False), variables, X)
    found = structure(serving.graph)
    plan = found.plan({found.groups[0].name: [0, 3]})
    small = mc.trace(train, variables, X) >> mc.prune.apply(plan)
    outputs, new = small(X)
    want, stats = train(variables, X)
    kept = [1, 2, 4, 5, 6, 7]
    got = new["batch_stats"]["BatchNorm_0"]["mean"]
    assert outputs.shape == want.shape
    mean = stats["batch_stats"]["BatchNorm_0"]["mean"][jnp.asarray(kept)]
    assert relative_error(got, mean) < 1e-6


def test_a_plan_for_one_function_is_refused_where_it_is_not_closed():
    v = {"a": normal(3, 4), "b": normal(4, 2)}
    alone = mc.trace(lambda v, x: (x @ v["a"]).sum(-1), v, X)
    plan = structure(alone.graph).plan({"a:1": [0]})
    both = mc.trace(lambda v, x: x @ v["a"] @ v["b"], v, X)
    with pytest.raises(PlanError, match="a, axis 1: expected a plan that removes what"):
        both >> mc.prune.apply(plan)


def test_a_plan_for_other_shapes_is_refused():
    _, plan = pruned(hidden(jnp.sin), params(), X)
    wider = mc.trace(hidden(jnp.sin), params(width=9), X)
    with pytest.raises(PlanError, match=r"expected the shape \(8,\)"):
        wider >> mc.prune.apply(plan)
    other = mc.trace(lambda v, x: x * v["z"], {"z": jnp.ones(())}, X)
    with pytest.raises(PlanError, match="expected a program with leaves of the plan"):
        other >> mc.prune.apply(plan)


def test_groups_and_units_that_are_not_there_are_refused():
    program = mc.trace(hidden(jnp.sin), params(), X)
    found = structure(program.graph)
    with pytest.raises(PlanError, match="expected the name of a group"):
        found.plan({"nowhere:0": [0]})
    with pytest.raises(PlanError, match="expected units from 0 to 7, got 3 to 8"):
        found.plan({found.groups[0].name: [3, 8]})


def test_nothing_becomes_empty():
    def parts(v, x):
        h = x @ v["w"]
        return h[:, :2].sum(-1) + jnp.sin(h[:, 2:]).sum(-1)

    program = mc.trace(parts, {"w": normal(3, 6)}, X)
    found = structure(program.graph)
    everything = {group.name: np.arange(group.size) for group in found.groups}
    plan = found.plan(everything)
    kept = plan.axes("w")[1]
    assert any(kept < 2)
    assert any(kept >= 2)
    small = program >> mc.prune.apply(plan)
    assert small(X).shape == (4,)


# Why not


def test_heads_and_their_size_are_told_from_channels():
    model = nn.MultiHeadDotProductAttention(num_heads=4, qkv_features=12)
    x = normal(2, 5, 6)
    variables = model.init(jax.random.key(0), x)
    program = mc.trace(model.apply, variables, x)
    kinds = sorted((g.kind, g.size) for g in mc.prune.groups(program))
    assert kinds == [("head_dim", 3), ("head_dim", 3), ("heads", 4)]


FIXED = {
    "input": (lambda v, x: (x @ v["w"]).sum(-1), "w", 0, "dot_general joins it with"),
    "output": (lambda v, x: x @ v["w"], "w", 1, "output 0 has this axis"),
    "sorted": (lambda v, x: jnp.sort(x @ v["w"], -1).sum(-1), "w", 1, "sort orders"),
    "summed up": (
        lambda v, x: jnp.cumsum(x @ v["w"], 1).sum(1),
        "w",
        1,
        "cumsum goes",
    ),
    "looked up": (
        lambda v, x: v["w"][x[:, 0].astype(jnp.int32)].sum(-1),
        "w",
        0,
        "gather looks it up",
    ),
    "scanned": (
        lambda v, x: lax.associative_scan(jnp.add, x @ v["w"], axis=1).sum(-1),
        "w",
        1,
        "slice picks one index",
    ),
    "unknown": (
        lambda v, x: jnp.linalg.det(v["w"].T @ v["w"]) + x.sum(),
        "w",
        1,
        "lu works on matrices",
    ),
}


@pytest.mark.parametrize("case", FIXED.values(), ids=list(FIXED))
def test_the_reason_names_the_equation_and_the_line(case):
    function, path, axis, what = case
    program = mc.trace(function, {"w": normal(3, 4)}, X)
    why = mc.prune.why_not(program, path, axis)
    extent = program.graph.leaves[0].spec.shape[axis]
    assert sorted(i for r in why.reasons for i in r.indices) == list(range(extent))
    assert what in str(why)
    if "output" not in what:
        assert __file__.rsplit("/", 1)[1] in str(why)


def test_the_reason_is_the_first_that_froze_it_with_what_leads_there():
    def function(v, x):
        a = jnp.sort(x @ v["a"], -1)
        return (a * (x @ v["b"])).sum(-1)

    program = mc.trace(function, {"a": normal(3, 4), "b": normal(3, 4)}, X)
    (reason,) = mc.prune.why_not(program, "b", 1).reasons
    assert reason.what == "sort orders its indices"
    assert "mul" in reason.through


def test_what_makes_a_pass_is_told_from_the_pass():
    program = mc.trace(hidden(jnp.sin), params(), X)
    with pytest.raises(TypeError, match=r"expected a ratio in .*, got a Program"):
        mc.prune.structured(program)
    with pytest.raises(TypeError, match="expected importance to be of Importance"):
        mc.prune.structured(importance=mc.prune.l1)
    with pytest.raises(TypeError, match=r"expected a Plan, got str"):
        mc.prune.apply("plan.json")
    with pytest.raises(TypeError, match=r"expected a program, got function"):
        mc.prune.groups(hidden(jnp.sin))
    with pytest.raises(TypeError, match="expected a ratio or a budget"):
        mc.prune.heads(0.75, budget=mc.prune.budget(flops=0.5))


def test_that_nothing_can_go_is_said(tmp_path):
    program = mc.trace(lambda v, x: x @ v["w"], {"w": normal(3, 2)}, X)
    with pytest.raises(PlanError, match="found none: every axis stays"):
        program >> mc.prune.structured(0.5)
    loaded = mc.load(mc.trace(hidden(jnp.sin), params(), X).save(tmp_path / "p"))
    with pytest.raises(PlanError, match="found none: every axis stays"):
        loaded >> mc.prune.structured(0.5)
    with pytest.raises(PlanError, match="of 1 groups none is of these kinds"):
        mc.trace(hidden(jnp.sin), params(), X) >> mc.prune.heads(0.5)


def test_questions_about_what_is_not_there_are_answered_with_what_is():
    program = mc.trace(hidden(jnp.sin), params(), X)
    with pytest.raises(
        UnknownPathError,
        match=r"nowhere: expected the path of a leaf, got none\. The nearest",
    ):
        mc.prune.why_not(program, "nowhere", 0)
    with pytest.raises(UnknownPathError, match="expected an axis below 2, got 2"):
        mc.prune.why_not(program, "first", 2)
    assert str(mc.prune.why_not(program, "first", -1)).endswith("nothing keeps it")


# Rules


def test_a_primitive_nobody_knows_is_left_alone_until_a_rule_is_given(monkeypatch):
    module = importlib.import_module("compiler.passes.prune.structure.structure")

    def function(v, x):
        return jnp.tanh(x @ v["first"]) @ v["last"]

    empty = Registry()
    for name in ("dot_general", "reduce_sum"):
        empty.replace(name, mc.prune.RULES.of(name))
    monkeypatch.setattr(module, "RULES", empty)
    before = mc.trace(function, params(), X)
    assert not structure(before.graph).groups
    assert "tanh has no rule" in str(mc.prune.why_not(before, "first", 1))

    @empty.on("tanh")
    def tanh(place):
        return [place.operands[0]]

    after = mc.trace(function, params(), X)
    found = structure(after.graph)
    names = [group.name for group in found.groups]
    assert names == ["first:1"]
    small = shrink(found, found.plan({"first:1": [0, 1]}))
    assert small.leaves[1].spec.shape == (3, 6)
