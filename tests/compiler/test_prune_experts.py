"""Experts under top-k routing: what numbers them is counted anew when some go."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from zoo import normal, relative_error

import compiler as mc
from compiler.passes.prune.structure import masked, structure

QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
"""Code that is compiled fast and runs slowly."""

EXPERTS, KEPT = 6, [0, 2, 3, 5]
X = normal(9, 5)
WEIGHTS = {
    "gate": normal(5, EXPERTS, seed=1),
    "up": normal(EXPERTS, 5, 7, seed=2),
    "down": normal(EXPERTS, 7, 5, seed=3),
}


def all_of_them(p, x):
    hidden = jax.nn.relu(jnp.einsum("td,edf->tef", x, p["up"]))
    return jnp.einsum("tef,efd->ted", hidden, p["down"])


def routed(p, x, k=2):
    gates = jax.nn.softmax(x @ p["gate"])
    values, chosen = jax.lax.top_k(gates, k)
    return values / values.sum(-1, keepdims=True), chosen


def weighted_sum(p, x):
    values, chosen = routed(p, x)
    hot = jax.nn.one_hot(chosen, p["gate"].shape[1])
    return jnp.einsum("tk,tke,ted->td", values, hot, all_of_them(p, x))


def gathered(p, x):
    values, chosen = routed(p, x)
    up, down = p["up"][chosen], p["down"][chosen]
    hidden = jax.nn.relu(jnp.einsum("td,tkdf->tkf", x, up))
    return jnp.einsum("tk,tkf,tkfd->td", values, hidden, down)


def top_one(p, x):
    gates = jax.nn.softmax(x @ p["gate"])
    chosen = jnp.argmax(gates, -1)
    value = jnp.take_along_axis(gates, chosen[:, None], -1)
    up, down = (jnp.take(p[name], chosen, axis=0) for name in ("up", "down"))
    return value * jnp.einsum("tf,tfd->td", jnp.einsum("td,tdf->tf", x, up), down)


def with_capacity(p, x, k=2, capacity=6):
    """Dispatch by cumulative sums, as in Switch and GShard: late tokens are dropped."""
    values, chosen = routed(p, x, k)
    count = p["gate"].shape[1]
    hot = jax.nn.one_hot(chosen, count)
    flat = jnp.swapaxes(hot, 0, 1).reshape(-1, count)
    before = jnp.swapaxes((jnp.cumsum(flat, 0) - flat).reshape(k, -1, count), 0, 1)
    fits = jnp.where(before < capacity, hot, 0.0)
    slot = jax.nn.one_hot((before * fits).sum(-1).astype(jnp.int32), capacity)
    dispatch = jnp.einsum("tke,tkc->tec", fits, slot)
    combine = jnp.einsum("tk,tke,tkc->tec", values, fits, slot)
    hidden = jax.nn.relu(jnp.einsum("tec,td,edf->ecf", dispatch, x, p["up"]))
    return jnp.einsum("tec,ecf,efd->td", combine, hidden, p["down"])


def sorted_and_ragged(p, x, k=2):
    values, chosen = routed(p, x, k)
    flat = chosen.reshape(-1)
    order = jnp.argsort(flat)
    sizes = jnp.bincount(flat, length=p["gate"].shape[1]).astype(jnp.int32)
    rows = jnp.repeat(x, k, axis=0)[order]
    hidden = jax.nn.relu(jax.lax.ragged_dot(rows, p["up"], sizes))
    result = jax.lax.ragged_dot(hidden, p["down"], sizes)
    back = jnp.zeros_like(result).at[order].set(result).reshape(-1, k, x.shape[1])
    return (back * values[..., None]).sum(1)


def scattered(p, x):
    """The gate is written into zeros at the experts chosen."""
    values, chosen = routed(p, x)
    rows = jnp.arange(x.shape[0])[:, None]
    full = jnp.zeros((x.shape[0], p["gate"].shape[1])).at[rows, chosen].set(values)
    return jnp.einsum("te,ted->td", full, all_of_them(p, x))


def one_token_at_a_time(p, x):
    def run(token):
        chosen = jnp.argmax(token @ p["gate"])
        return jax.nn.relu(token @ p["up"][chosen]) @ p["down"][chosen]

    return jax.lax.map(run, x) + jax.vmap(run)(x)


def in_a_checkpoint(p, x):
    return jax.checkpoint(gathered)(p, x)


def in_a_loop(p, x):
    def turn(carry):
        i, x, _ = carry
        chosen = jnp.argmax(x @ p["gate"], -1)
        return i + 1, jnp.tanh(x + jnp.einsum("td,tdf->tf", x, square[chosen])), chosen

    square = jnp.einsum("edf,efg->edg", p["up"], p["down"])
    first = jnp.zeros(x.shape[0], jnp.int32)
    _, x, last = jax.lax.while_loop(lambda c: c[0] < 3, turn, (0, x, first))
    return x + p["up"][last].sum((1, 2))[:, None]


FUNCTIONS = (
    weighted_sum,
    gathered,
    top_one,
    with_capacity,
    sorted_and_ragged,
    scattered,
    one_token_at_a_time,
    in_a_checkpoint,
    in_a_loop,
)


def fewer(weights, kept):
    rows = jnp.array(kept)
    return {
        "gate": weights["gate"][:, rows],
        "up": weights["up"][rows],
        "down": weights["down"][rows],
    }


def experts(program):
    (group,) = [g for g in structure(program.graph).groups if g.kind == "experts"]
    return group


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda f: f.__name__)
def test_what_is_left_is_the_model_with_fewer_experts(function):
    program = mc.trace(function, WEIGHTS, X)
    found, group = structure(program.graph), experts(program)
    # What the loop begins with names the first expert, which stays.
    assert group.size == EXPERTS - (function is in_a_loop)
    slot = group.slots[0]
    plan = found.plan({group.name: slot.unit[np.isin(slot.index, [1, 4])]})
    small = program >> mc.prune.apply(plan)
    assert {leaf.path: leaf.spec.shape for leaf in small.graph.leaves} == {
        "gate": (5, 4),
        "up": (4, 5, 7),
        "down": (4, 7, 5),
    }
    hides = masked(found, plan).evaluate

    @functools.partial(jax.jit, compiler_options=QUICK)
    def run(all_values, values, fewer, x):
        made = small.graph.evaluate(values, [x]), hides(all_values, [x])
        return *made, [function(fewer, x)]

    pruned, hidden, want = run(program.values, small.values, fewer(WEIGHTS, KEPT), X)
    assert relative_error(pruned, want) < 1e-6
    assert relative_error(hidden, want) < 1e-5


@pytest.mark.parametrize("function", [weighted_sum, one_token_at_a_time])
def test_as_many_stay_as_the_router_chooses(function):
    program = mc.trace(function, WEIGHTS, X)
    found = structure(program.graph)
    plan = found.plan({experts(program).name: range(EXPERTS)})
    left = len(plan.axes("up")[0])
    assert left == (2 if function is weighted_sum else 1)
    (program >> mc.prune.apply(plan)).graph.verify()


def computed(p, x):
    odd = routed(p, x)[1] * 2 + 1
    return jnp.where(odd.sum(-1, keepdims=True) > 5, gathered(p, x), 0.0)


def returned(p, x):
    return gathered(p, x), routed(p, x)[1]


def as_floats(p, x):
    return gathered(p, x) + routed(p, x)[1].astype(jnp.float32).sum(-1, keepdims=True)


@pytest.mark.parametrize(
    ("function", "why"),
    [
        (computed, "mul computes with numbers of its indices"),
        (returned, "output 1 has this axis"),
        (as_floats, "convert_element_type computes with numbers of its indices"),
    ],
    ids=lambda x: getattr(x, "__name__", ""),
)
def test_other_uses_of_the_numbers_let_all_experts_stay_and_say_why(function, why):
    program = mc.trace(function, WEIGHTS, X)
    assert all(group.size != EXPERTS for group in structure(program.graph).groups)
    assert why in str(mc.prune.why_not(program, "up", 0))


def test_an_expert_that_is_named_stays_and_the_others_are_counted_anew():
    def function(p, x):
        chosen = jnp.argmax(x @ p["gate"], -1)
        special = (chosen == 3)[:, None]
        picked = jnp.einsum("td,tdf->tf", x, p["up"][chosen])
        return jnp.where((chosen > 0)[:, None], jnp.where(special, -1.0, picked), 0.0)

    program = mc.trace(function, {k: WEIGHTS[k] for k in ("gate", "up")}, X)
    found = structure(program.graph)
    (group,) = [g for g in found.groups if g.name == "up:0" or g.name == "gate:1"]
    assert group.size == EXPERTS - 2  # 0 and 3 are named
    plan = found.plan({group.name: [0, 2]})  # experts 1 and 4
    small = program >> mc.prune.apply(plan)
    own = fewer(WEIGHTS, KEPT)

    def by_hand(p, x):
        chosen = jnp.argmax(x @ p["gate"], -1)
        picked = jnp.einsum("td,tdf->tf", x, p["up"][chosen])
        special = (chosen == 2)[:, None]
        return jnp.where((chosen > 0)[:, None], jnp.where(special, -1.0, picked), 0.0)

    assert relative_error(small(X), jax.jit(by_hand)(own, X)) < 1e-6


class Moe(nn.Module):
    count: int

    @nn.compact
    def __call__(self, x):
        gates = nn.Dense(self.count, use_bias=False, name="gate")(x)
        values, chosen = jax.lax.top_k(gates, 2)
        values = nn.softmax(values)
        experts = nn.vmap(
            nn.Dense,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=None,
            out_axes=1,
            axis_size=self.count,
        )
        every = experts(4, name="experts")(x)
        picked = jnp.take_along_axis(every, chosen[..., None], axis=1)
        return nn.Dense(3)((picked * values[..., None]).sum(1))


def test_a_module_of_experts_is_the_smaller_module():
    random = np.random.default_rng(0)
    shapes = jax.eval_shape(Moe(EXPERTS).init, jax.random.key(0), X)
    draw = lambda s: jnp.asarray(random.normal(size=s.shape), s.dtype)  # noqa: E731
    program = mc.trace(Moe(EXPERTS).apply, jax.tree.map(draw, shapes), X)
    found, group = structure(program.graph), experts(program)
    small = program >> mc.prune.apply(found.plan({group.name: [1, 4]}))
    want = jax.jit(Moe(4).apply)(small.variables, X)
    assert relative_error(small(X), want) < 1e-6
    kept = program.variables["params"]["experts"]["kernel"][jnp.array(KEPT)]
    assert np.array_equal(small.variables["params"]["experts"]["kernel"], kept)
