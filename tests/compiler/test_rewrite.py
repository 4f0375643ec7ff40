"""The walk: rules reach everywhere, and what has no rule is left as it was."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from zoo import ZOO, normal, relative_error

import compiler as mc
from compiler.errors import RuleError
from compiler.passes.base import by_rules
from compiler.rewrite import Rules, Walk

SINE_TO_COSINE = Rules()


@SINE_TO_COSINE.on("sin")
def cosine(site, x):
    site.fired("sin -> cos")
    return [jnp.cos(x.value)]


def rewritten(rules, function, *inputs):
    jaxpr = jax.make_jaxpr(function)(*inputs)
    walk = Walk(rules)
    new = walk.rewrite(jaxpr, [False] * len(inputs))
    return (lambda *xs: jax.core.eval_jaxpr(new.jaxpr, new.consts, *xs)), walk.events


def test_without_rules_the_walk_returns_the_very_same_graph(case):
    function, variables, inputs = case
    graph = mc.trace(function, variables, *inputs).graph
    known = [False] * len(graph.jaxpr.jaxpr.invars)
    assert Walk(Rules()).rewrite(graph.jaxpr, known) is graph.jaxpr


X = normal(3, 4)


def in_scan(f):
    return lambda x: jax.lax.scan(lambda c, xi: (f(c) + xi, f(xi)), x[0], x)


def in_while(f):
    step = lambda c: (c[0] + 1, f(c[1]))  # noqa: E731
    return lambda x: jax.lax.while_loop(lambda c: c[0] < 3, step, (0, x))


def in_condition(f):
    going = lambda c: (f(c[1]) > 0.9).any() & (c[0] < 5)  # noqa: E731
    return lambda x: jax.lax.while_loop(going, lambda c: (c[0] + 1, c[1] * 0.5), (0, x))


def in_cond(f):
    return lambda x: jax.lax.cond(x.sum() > 0, f, lambda x: -f(x), x)


def in_switch(f):
    return lambda x: jax.lax.switch(1, [jnp.exp, f, jnp.tanh], x)


def in_remat(f):
    return jax.checkpoint(lambda x: f(x * 2.0))


def in_jit(f):
    return jax.jit(lambda x: f(x) + 1.0)


def in_custom_jvp(f):
    @jax.custom_jvp
    def g(x):
        return f(x)

    g.defjvp(lambda p, t: (g(*p), 5.0 * t[0]))
    return g


def in_custom_vjp(f):
    @jax.custom_vjp
    def g(x):
        return f(x)

    g.defvjp(lambda x: (g(x), None), lambda _, t: (3.0 * t,))
    return g


def nested(f):
    return in_scan(lambda x: in_cond(in_remat(f))(in_jit(f)(x)))


PLACES = [
    in_scan, in_while, in_condition, in_cond, in_switch, in_remat, in_jit,
    in_custom_jvp, in_custom_vjp, nested,
]  # fmt: skip


@pytest.mark.parametrize("place", PLACES, ids=lambda place: place.__name__)
def test_a_rule_fires_inside(place):
    got, events = rewritten(SINE_TO_COSINE, place(jnp.sin), X)
    want = jax.tree.leaves(place(jnp.cos)(X))
    assert events.fired
    assert relative_error(got(X), want) < 1e-6
    assert relative_error(jax.jit(got)(X), want) < 1e-6


@pytest.mark.parametrize("place", PLACES, ids=lambda place: place.__name__)
def test_applied_twice_a_rule_finds_nothing_left(place):
    got, _ = rewritten(SINE_TO_COSINE, place(jnp.sin), X)
    _, again = rewritten(SINE_TO_COSINE, got, X)
    assert not again.fired


@pytest.mark.parametrize(
    ("place", "slope"), [(in_custom_jvp, 5.0), (in_custom_vjp, 3.0)]
)
def test_custom_derivatives_survive_a_rewrite_of_their_primal(place, slope):
    got, events = rewritten(SINE_TO_COSINE, place(jnp.sin), X)
    assert events.fired
    gradient = jax.grad(lambda x: got(x)[0].sum())(X)
    assert gradient.tolist() == jnp.full_like(X, slope).tolist()


@pytest.mark.parametrize("transform", [jax.jit, jax.vmap, jax.grad, jax.linearize])
def test_a_rewritten_function_takes_every_transformation(transform):
    got, _ = rewritten(SINE_TO_COSINE, nested(jnp.sin), X)
    batch = normal(2, 3, 4, seed=3)
    if transform is jax.vmap:
        assert (
            relative_error(jax.vmap(got)(batch), jax.vmap(nested(jnp.cos))(batch))
            < 1e-6
        )
    elif transform is jax.grad:
        total = lambda f: lambda x: sum(y.sum() for y in jax.tree.leaves(f(x)))  # noqa: E731
        want = jax.grad(total(nested(jnp.cos)))(X)
        assert relative_error(jax.grad(total(got))(X), want) < 1e-6
    elif transform is jax.linearize:
        want = jax.jvp(nested(jnp.cos), (X,), (X,))[1]
        assert relative_error(jax.linearize(got, X)[1](X), want) < 1e-6
    else:
        assert relative_error(jax.jit(got)(X), nested(jnp.cos)(X)) < 1e-6


def test_rules_are_asked_in_order_and_may_decline():
    first = Rules()
    asked = []

    @first.on("sin")
    def decline(site, x):
        asked.append("first")

    got, events = rewritten(first | SINE_TO_COSINE, jnp.sin, X)
    assert asked == ["first"]
    assert len(events.fired) == 1
    assert relative_error(got(X), [jnp.cos(X)]) == 0


@pytest.mark.parametrize(
    ("result", "said"),
    [
        (lambda x: [x.value[0]], r"expected float32\[3, 4\], got float32\[4\]"),
        (lambda x: [x.value, x.value], "expected 1 outputs, got 2"),
        (lambda x: [x.value.astype(jnp.bfloat16)], "got bfloat16"),
    ],
)
def test_a_rule_that_returns_something_else_is_told_so(result, said):
    rules = Rules()

    @rules.on("sin")
    def wrong(site, x):
        return result(x)

    with pytest.raises(RuleError, match=said):
        rewritten(rules, jnp.sin, X)


def test_known_follows_the_weights_and_not_the_inputs():
    seen = {}
    rules = Rules()

    @rules.on("sin", "cos", "tan")
    def watch(site, x):
        seen[site.equation.primitive.name] = x.known

    def function(w, x):
        def step(carry, slices):
            kernel, row = slices
            return jnp.tan(carry), jnp.sin(kernel) + jnp.cos(row)

        return jax.lax.scan(step, w[0], (w, x))

    jaxpr = jax.make_jaxpr(function)(X, X)
    Walk(rules).rewrite(jaxpr, [True, False])
    assert seen == {"sin": True, "cos": False, "tan": False}


def test_effects_and_their_order_are_kept(capfd):
    def function(x):
        jax.debug.print("one {}", x[0, 0], ordered=True)
        y = jnp.sin(x)
        jax.debug.print("two", ordered=True)
        return y

    jaxpr = jax.make_jaxpr(function)(X)
    walk = Walk(SINE_TO_COSINE)
    new = walk.rewrite(jaxpr, [False])
    assert [e.primitive.name for e in new.eqns].count("debug_print") == 2 or (
        sum("callback" in e.primitive.name for e in new.eqns) == 2
    )
    jax.core.eval_jaxpr(new.jaxpr, new.consts, X)
    jax.effects_barrier()
    printed = capfd.readouterr().out
    assert printed.index("one") < printed.index("two")


def test_random_numbers_stay_the_same():
    def function(key, x):
        return jnp.sin(x) + jax.random.normal(key, x.shape)

    key = jax.random.key(3)
    jaxpr = jax.make_jaxpr(function)(key, X)
    new = Walk(SINE_TO_COSINE).rewrite(jaxpr, [False, False])
    got = jax.core.eval_jaxpr(new.jaxpr, new.consts, key, X)[0]
    assert relative_error(got, jnp.cos(X) + jax.random.normal(key, X.shape)) < 1e-6


def test_every_function_of_the_zoo_keeps_its_scopes():
    function, variables, inputs = ZOO["linen conv net"]()
    program = mc.trace(function, variables, *inputs) >> mc.fold()
    scopes = {str(e.source_info.name_stack) for e in program.graph.jaxpr.eqns}
    assert {"LinenConvNet/Conv_0", "LinenConvNet/Dense_0"} <= scopes


def test_the_walk_goes_through_what_every_shard_does():
    mesh = jax.make_mesh((1,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
    rows, whole = jax.sharding.PartitionSpec("d"), jax.sharding.PartitionSpec()

    def forward(w, x):
        def every(w, x):
            return jax.lax.psum(jnp.tanh(x @ w), "d")

        run = jax.shard_map(every, mesh=mesh, in_specs=(whole, rows), out_specs=whole)
        return run(w, x)

    rules = Rules()

    @rules.on("tanh")
    def to_sine(site, x):
        site.fired("sine")
        return [jnp.sin(x.value)]

    w, x = jnp.eye(3), jnp.linspace(0.0, 1.0, 6).reshape(2, 3)
    program = mc.trace(forward, w, x)
    rewrite = by_rules(program.graph, rules)
    assert [event.what for event in rewrite.events.fired] == ["sine"]
    run = lambda w, x: rewrite.graph.evaluate([w], [x])[0]  # noqa: E731
    np.testing.assert_allclose(jax.jit(run)(w, x), jnp.sin(x), rtol=1e-6)
    gradient = jax.grad(lambda x: run(w, x).sum())(x)
    np.testing.assert_allclose(gradient, jnp.cos(x), rtol=1e-6)


def test_a_rule_may_be_asked_at_some_paths_only():
    def forward(v, x):
        with jax.named_scope("first"):
            x = jnp.tanh(x)
        with jax.named_scope("second"), jax.named_scope("inner"):
            return jnp.tanh(x) * v

    rules = Rules()

    @rules.on("tanh", path="second")
    def dropped(site, x):
        site.fired("dropped")
        return [x.value]

    program = mc.trace(forward, 1.0, jnp.ones(2))
    rewrite = by_rules(program.graph, rules)
    assert [event.path for event in rewrite.events.fired] == ["second/inner"]


def test_what_cannot_be_seen_is_reported():
    def forward(v, x):
        shape = jax.ShapeDtypeStruct(x.shape, x.dtype)
        return jax.pure_callback(lambda x: x, shape, x) * v

    rewrite = by_rules(mc.trace(forward, 2.0, jnp.ones(2)).graph, Rules())
    (event,) = rewrite.events.skipped
    assert event.what == "pure_callback: its inside is left as it is"
    assert "test_rewrite.py" in event.source


def test_loops_of_a_shard_and_references_are_left_as_they_are():
    mesh = jax.make_mesh((1,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
    rows, whole = jax.sharding.PartitionSpec("d"), jax.sharding.PartitionSpec()

    def mean(w, x):
        def every(x, w):
            step = lambda c, row: (c + jax.lax.pmean(row, "d"), None)  # noqa: E731
            return jax.lax.scan(step, jnp.zeros(3), x @ w)[0]

        return jax.shard_map(every, mesh=mesh, in_specs=(rows, whole), out_specs=whole)(
            x, w
        )

    def written(w, x):
        r = jax.new_ref(x)

        def step(c, i):
            r[...] = r[...] * w
            return c, None

        jax.lax.scan(step, 0, jnp.arange(3))
        return r[...]

    w, x = normal(3, 3), normal(2, 3)
    folded = mc.trace(mean, w, x) >> mc.fold() >> mc.simplify()
    np.testing.assert_allclose(folded(x), mean(w, x), rtol=1e-6)
    folded = mc.trace(written, w[0], x[0]) >> mc.fold() >> mc.simplify()
    np.testing.assert_allclose(folded(x[0]), jax.jit(written)(w[0], x[0]), rtol=1e-6)


def test_bodies_without_operands_and_constants_in_rematerialised_ones_are_walked():
    rules = Rules()
    table = np.arange(3.0, dtype=np.float32)

    @rules.on("tanh")
    def shifted(site, x):
        site.fired("shifted")
        return [x.value + jnp.asarray(table)]

    def forward(v, x):
        block = jax.checkpoint(lambda x: jnp.sin(jnp.tanh(x)))
        return jax.lax.cond(x[0] > 0, lambda: 1.0, lambda: 2.0) * block(x)

    x = jnp.ones(3)
    rewrite = by_rules(mc.trace(forward, 1.0, x).graph, rules)
    np.testing.assert_allclose(
        jax.jit(rewrite.graph.evaluate)([], [x])[0], jnp.sin(x + table), rtol=1e-6
    )
