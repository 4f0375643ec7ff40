"""Budgets are kept and used up; rounds add up; regularisers are what they say."""

import dataclasses
import importlib
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import compiler as mc
from compiler.errors import BudgetError, PlanError, UnknownPartError
from compiler.passes.prune import Remove, Structured, importance
from compiler.passes.prune.choice.budget import Budget, budget, fit
from compiler.passes.prune.choice.ranking import Ranking
from compiler.passes.prune.choice.search import cheapest
from compiler.passes.prune.history import History, Round
from compiler.passes.prune.iterate import iterate
from compiler.passes.prune.regularize import regularizer
from compiler.passes.prune.structure import structure
from mapping import from_config, to_config


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def cnn(v, x):
    dims = ("NHWC", "HWIO", "NHWC")
    for name in ("a", "b"):
        own = v[name]
        x = jax.lax.conv_general_dilated(
            x, own["kernel"], (1, 1), "SAME", dimension_numbers=dims
        )
        x = jax.nn.relu(x * own["gain"][None, None, None])
    return x.mean((1, 2)) @ v["c"]["kernel"]


def build(first, second):
    """The network, of any width."""
    return {
        "a": {"kernel": normal(0, 3, 3, 2, first), "gain": normal(1, first)},
        "b": {"kernel": normal(2, 3, 3, first, second), "gain": normal(3, second)},
        "c": {"kernel": normal(4, second, 5)},
    }


@pytest.fixture(scope="module")
def net():
    return mc.trace(cnn, build(12, 16), normal(5, 2, 6, 6, 2))


@pytest.fixture(scope="module")
def shapes(net):
    """The network without arrays: nothing is compiled where it is pruned."""
    specs = tuple(jax.ShapeDtypeStruct(w.shape, w.dtype) for w in net.values)
    return dataclasses.replace(net, values=specs)


def mlp(v, x):
    return jnp.tanh(x @ v["a"] * v["gain"][None]) @ v["b"]


@pytest.fixture(scope="module")
def small():
    v = {"a": normal(0, 3, 12), "gain": jnp.arange(1.0, 13.0), "b": normal(1, 12, 2)}
    return mc.trace(mlp, v, normal(2, 1, 3))


@pytest.fixture(scope="module")
def scored(net):
    found = structure(net.graph)
    return found, importance.l2().scores(net, found)


def params(first, second):
    return 18 * first + first + 9 * first * second + second + 5 * second


def every(ranking, scored):
    """What is left at any ratio, by sizes that are re-built and not cut."""
    found, scores = scored
    first, second = (group.name for group in found.groups)
    made = []
    for ratio in np.unique(
        np.concatenate([np.arange(n + 1) / n for n in (12, 16, 28)])
    ):
        gone = ranking.at(float(ratio)).rank(found, scores)
        made.append((12 - len(gone.get(first, ())), 16 - len(gone.get(second, ()))))
    return made


@pytest.mark.parametrize("order", ["local", "global"])
@pytest.mark.parametrize("share", [0.75, 0.3, 0.08])
def test_parameters_stay_within_the_budget_and_use_it_up(shapes, scored, order, share):
    ranking = Ranking(order=order)
    made = fit(shapes, *scored, ranking, budget(params=share))
    counts = [params(*sizes) for sizes in every(ranking, scored)]
    assert made.limit == share * params(12, 16) == share * shapes.size
    assert made.amount == max(n for n in counts if n <= made.limit)
    small = shapes >> Remove(made.plan)
    assert small.size == made.amount
    assert small.bytes == 4 * made.amount


def test_flops_are_those_of_a_network_built_at_that_width(shapes, scored):
    ranking = Ranking(round_to=4)
    made = fit(shapes, *scored, ranking, budget(flops=0.4))

    def flops(first, second):
        x = normal(5, 2, 6, 6, 2)
        return mc.cost(mc.trace(cnn, build(first, second), x)).flops

    known = {sizes: flops(*sizes) for sizes in set(every(ranking, scored))}
    fits = [n for n in known.values() if n <= 0.4 * mc.cost(shapes).flops]
    assert made.amount == max(fits)
    assert mc.cost(shapes >> Remove(made.plan)).flops == made.amount


def test_bytes_count_what_leaves_take(shapes, scored):
    made = fit(shapes, *scored, Ranking(), budget(bytes=4000))
    assert 3000 < made.amount == (shapes >> Remove(made.plan)).bytes <= 4000


def test_nothing_goes_where_the_budget_is_kept_already(shapes, scored):
    made = fit(shapes, *scored, Ranking(0.9), budget(params=10_000))
    assert (made.ratio, made.removed, len(made.plan)) == (0.0, {}, 0)


def test_rules_keep_their_ratios_under_a_budget(shapes, scored):
    found, scores = scored
    made = fit(shapes, found, scores, Ranking(rules={"a": 0.25}), budget(params=0.4))
    first, second = (group.name for group in found.groups)
    assert len(made.removed[first]) == 3
    assert len(made.removed[second]) > 4


def test_a_budget_that_cannot_be_reached_says_what_can(net, scored):
    least = params(1, 1)
    with pytest.raises(
        BudgetError, match=rf"at least {least} parameters .*, got 3\. Allow"
    ):
        fit(net, *scored, Ranking(), budget(params=3))
    with pytest.raises(BudgetError, match="let more go: kinds="):
        fit(net, *scored, Ranking(ignore="[ab]"), budget(flops=0.9))


class Clock:
    """Tells times that depend on the sizes alone."""

    def __init__(self, program, found):
        self.calls, self.now = 0, 1.0

    def __call__(self, plan):
        self.calls += 1
        drift = 1.0 + self.calls  # the machine gets slower and slower
        return drift, drift * plan.kept_share


def test_a_share_of_the_time_is_measured_beside_the_whole(net, scored, monkeypatch):
    module = importlib.import_module("compiler.passes.prune.choice.budget")
    monkeypatch.setattr(module, "Stopwatch", Clock)
    made = fit(net, *scored, Ranking(), budget(latency=0.5))
    assert 0.4 < made.amount <= 0.5
    assert made.amount == pytest.approx(made.plan.kept_share)


def test_the_stopwatch_measures_the_smaller_program(net, scored):
    found, scores = scored
    made = fit(net, found, scores, Ranking(), budget(seconds=1e3))
    assert (made.ratio, made.limit) == (0.0, 1e3)
    assert 0 < made.amount < 1e3


def test_the_search_finds_the_least_ratio_in_few_trials():
    ratios = (np.arange(2001) / 2000).tolist()
    for limit in (0.9, 0.25, 0.01, 3e-4):
        tried = []

        def amount(ratio, tried=tried):
            tried.append(ratio)
            return (1 - ratio) ** 2 + 0.0

        found, _ = cheapest(ratios, amount, limit)
        assert found.ratio == min(r for r in ratios if (1 - r) ** 2 <= limit)
        assert len(tried) <= 16
        few, _ = cheapest(ratios, amount, limit, few=True)
        assert few.amount <= limit


def test_the_search_halves_where_it_cannot_interpolate():
    ratios, tried = (np.arange(2001) / 2000).tolist(), []

    def amount(ratio):
        tried.append(ratio)
        return 1.0 if ratio < 0.7312 else 0.0

    found, _ = cheapest(ratios, amount, 0.999999)
    assert found.ratio == min(ratio for ratio in ratios if ratio >= 0.7312)
    assert len(tried) <= 2 + 2 * 11


def test_the_search_ends_on_amounts_that_do_not_fall():
    noise = np.random.default_rng(0).random(101)
    ratios = (np.arange(101) / 100).tolist()
    for limit in noise[1:-1:7]:
        found, least = cheapest(ratios, lambda r: noise[round(100 * r)], limit)
        assert found is None or found.amount <= limit
        assert (found is None) == (least.amount > limit and noise[0] > limit)


def test_budgets_are_values_and_refuse_nonsense():
    for one in (budget(flops=0.25), budget(latency=0.5), budget(seconds=1e-3)):
        assert from_config(to_config(one)) == one
    assert budget(latency=0.5) == Budget("seconds", 0.5, share=True)
    assert budget(seconds=0.5) == Budget("seconds", 0.5)
    with pytest.raises(ValueError, match=r"expected one of params, .*, got none"):
        budget()
    with pytest.raises(ValueError, match=r"got params, flops. Give one"):
        budget(params=1, flops=1)
    with pytest.raises(ValueError, match="expected a positive limit, got -1"):
        budget(bytes=-1)
    with pytest.raises(ValueError, match=r"a measure of params, .* got 'energy'"):
        Budget("energy", 1.0)


SCHEDULED = {
    "linear": [1 / 3, 2 / 3, 1],
    "geometric": [1 - 2 ** (-1 / 3), 1 - 2 ** (-2 / 3), 0.5],
    "cubic": [1 - (2 / 3) ** 3, 1 - (1 / 3) ** 3, 1],
    (0.5, 0.9, 1.0): [0.5, 0.9, 1.0],
}


@pytest.mark.parametrize("schedule", SCHEDULED)
def test_rounds_follow_the_schedule_and_end_where_one_shot_does(shapes, schedule):
    step = Structured(importance.random(), Ranking(0.5, rules={"b": 0.5}))
    small, history = iterate(shapes, step, rounds=3, schedule=schedule)
    want = SCHEDULED[schedule]
    want = want if schedule == "geometric" else [0.5 * share for share in want]
    assert [r.ratio for r in history.rounds] == pytest.approx([0.0, *want])
    sizes = [(12 - int(12 * r + 1e-9), 16 - int(16 * r + 1e-9)) for r in (0, *want)]
    assert [r.params for r in history.rounds] == [params(*s) for s in sizes]
    assert small.size == (shapes >> step).size == history.rounds[-1].params
    assert history.rounds[-1].flops == mc.cost(small).flops


def test_the_whole_plan_counts_in_the_original(small):
    step = Structured(importance.l1(), Ranking(0.5))
    made, history = iterate(small, step, rounds=2)
    again = small >> Remove(history.plan)
    assert jax.tree.all(jax.tree.map(jnp.array_equal, again.variables, made.variables))
    x = normal(6, 5, 3)
    assert jnp.array_equal(again(x), made(x))


def test_scores_are_those_of_the_weights_trained_so_far(small):
    """Training turns the order of importance round; only the first round sees it."""

    def train(program, number):
        v = program.variables
        turned = jnp.arange(v["gain"].size, 0, -1).astype(jnp.float32)
        return program.with_variables(v | {"gain": turned})

    step = Structured(importance.batch_norm_scale(), Ranking(0.5))
    _, history = iterate(small, step, train, rounds=2)
    gone = {path: held for path, _, held in history.plan.removed}
    assert gone["gain"] == (0, 1, 2, 9, 10, 11)


def test_pruning_stops_and_goes_on(small):
    seen = []

    def train(program, number):
        seen.append(number)
        scaled = jax.tree.map(lambda w: w * 0.5, program.variables)
        return program.with_variables(scaled)

    def metric(program):
        return float(np.asarray(program.variables["b"]).sum())

    step = Structured(importance.l2(), Ranking(0.5, "global"))
    options = {"rounds": 3, "metric": metric}
    whole, history = iterate(small, step, train, **options)
    saved = []

    def save(program, history):
        saved.append((program, history.to_json()))
        if len(saved) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        iterate(small, step, train, checkpoint=save, **options)
    seen.clear()
    half = History.from_json(saved[-1][1])
    rest, again = iterate(saved[-1][0], step, train, history=half, **options)
    assert seen == [3]
    assert again == history == from_config(to_config(history))
    assert jax.tree.all(jax.tree.map(jnp.array_equal, rest.variables, whole.variables))
    with pytest.raises(PlanError, match=r"2 rounds left, got .* to the history"):
        iterate(small, step, train, history=half, **options)


def test_a_budget_is_reached_in_rounds(shapes):
    net = shapes
    step = Structured(importance.random(), Ranking(), budget(flops=0.3))
    small, history = iterate(net, step, rounds=3)
    begun = history.rounds[0].flops
    shares = (1 - 0.7 / 3, 1 - 1.4 / 3, 0.3)
    for done, share in zip(history.rounds[1:], shares, strict=True):
        assert 0.8 * share * begun < done.flops <= share * begun
    assert mc.cost(small).flops == history.rounds[-1].flops
    step = dataclasses.replace(step, budget=budget(params=800))
    small, history = iterate(net, step, rounds=2)
    assert history.rounds[1].params <= (800 + net.size) / 2
    assert 600 < small.size <= 800
    with pytest.raises(ValueError, match="a share of the time"):
        iterate(net, dataclasses.replace(step, budget=budget(seconds=1.0)))


def test_rounds_refuse_nonsense(shapes):
    net = shapes
    step = Structured(importance.random(), Ranking(0.5))
    with pytest.raises(ValueError, match=r"linear, geometric, cubic .* got 'cosine'"):
        iterate(net, step, schedule="cosine")
    with pytest.raises(ValueError, match="one round or more, got 'linear' and 0"):
        iterate(net, step, rounds=0)
    with pytest.raises(ValueError, match="rising shares"):
        iterate(net, step, schedule=(0.5, 0.2))
    with pytest.raises(
        TypeError, match="expected it to return a program, got NoneType"
    ):
        iterate(net, step, lambda program, number: None)
    with pytest.raises(PlanError, match="expected a history"):
        History.from_json("[]")
    assert str(History((Round(0, 0.0, 9, 36, 20, 0.5),))).endswith(" 20  0.5")


def unit_rows(v):
    """All weights and gains of each unit, group by group."""
    first = [
        np.concatenate(
            [
                v["a"]["kernel"][..., i].ravel(),
                v["a"]["gain"][i : i + 1],
                v["b"]["kernel"][:, :, i].ravel(),
            ]
        )
        for i in range(12)
    ]
    second = [
        np.concatenate(
            [
                v["b"]["kernel"][..., i].ravel(),
                v["b"]["gain"][i : i + 1],
                v["c"]["kernel"][i],
            ]
        )
        for i in range(16)
    ]
    return first, second


def test_group_lasso_is_the_weighted_sum_of_norms(net):
    v = jax.tree.map(np.asarray, net.variables)
    want = 0.01 * sum(
        np.sqrt(len(row)) * np.linalg.norm(row.astype(np.float64))
        for row in itertools.chain(*unit_rows(v))
    )
    penalty = jax.jit(regularizer(net, rate=0.01))
    assert float(penalty(net.variables)) == pytest.approx(want, rel=1e-5)


def test_group_norm_presses_the_smaller_harder(net):
    v = jax.tree.map(np.asarray, net.variables)
    want = 0.0
    for rows in unit_rows(v):
        s = np.array([np.linalg.norm(row.astype(np.float64)) for row in rows])
        gamma = 2 ** (4 * (s.max() - s) / (s.max() - s.min()))
        want += 0.005 * (gamma * s**2).sum()
    penalty = jax.jit(jax.value_and_grad(regularizer(net, "group_norm", rate=0.01)))
    got, gradient = penalty(net.variables)
    assert float(got) == pytest.approx(want, rel=1e-5)
    # The weights of c are in one group: their decay is rate times gamma, no more.
    s = np.array([np.linalg.norm(row.astype(np.float64)) for row in unit_rows(v)[1]])
    gamma = 2 ** (4 * (s.max() - s) / (s.max() - s.min()))
    want = 0.01 * gamma[:, None] * v["c"]["kernel"]
    np.testing.assert_allclose(gradient["c"]["kernel"], want, rtol=1e-4)


def test_gains_are_pressed_by_their_magnitudes(net):
    penalty = jax.jit(
        jax.value_and_grad(regularizer(net, "batch_norm_scale", rate=0.1))
    )
    v = net.variables
    gains = [np.asarray(v[name]["gain"], np.float64) for name in "ab"]
    got, gradient = penalty(v)
    assert float(got) == pytest.approx(0.1 * sum(abs(g).sum() for g in gains), rel=1e-6)
    np.testing.assert_allclose(gradient["b"]["gain"], 0.1 * np.sign(gains[1]))
    assert not gradient["c"]["kernel"].any()


def test_growing_regularisation_grows_for_the_chosen_units_alone(net):
    ranking = Ranking(0.25, rules={"b": 0.0})
    penalty = jax.jit(
        regularizer(net, "growing", rate=0.1, ranking=ranking, every=5, limit=0.25)
    )
    v = jax.tree.map(np.asarray, net.variables)
    found = structure(net.graph)
    (gone,) = ranking.rank(found, importance.l1().scores(net, found)).values()
    total = sum((unit_rows(v)[0][i].astype(np.float64) ** 2).sum() for i in gone)
    for step, now in ((0, 0.0), (4, 0.0), (5, 0.1), (14, 0.2), (15, 0.25), (99, 0.25)):
        assert float(penalty(net.variables, step)) == pytest.approx(
            0.5 * now * total, rel=1e-5
        )


@pytest.mark.parametrize(
    "kind", ["group_lasso", "group_norm", "batch_norm_scale", "growing"]
)
def test_penalties_can_be_differentiated_at_zero(small, kind):
    penalty = regularizer(small, kind)
    zeros = jax.tree.map(np.zeros_like, small.variables)
    gradients = jax.jit(jax.grad(lambda v: penalty(v, 3)))(zeros)
    assert all(not g.any() for g in jax.tree.leaves(gradients))


def test_group_lasso_makes_whole_units_small(small):
    """Steps along it bring a small unit to zero before the others."""
    penalty = jax.jit(jax.grad(regularizer(small, rate=1.0)))
    v = jax.tree.map(np.asarray, small.variables)
    v["a"], v["b"], v["gain"] = v["a"] * 1.0, v["b"] * 1.0, np.ones(12, np.float32)
    v["a"][:, 3], v["b"][3], v["gain"][3] = 0.05, 0.05, 0.05

    def norms(v):
        rows = np.concatenate([v["a"], v["gain"][None], v["b"].T])
        return np.linalg.norm(rows, axis=0)

    start = norms(v)
    for _ in range(60):
        v = jax.tree.map(lambda w, g: np.asarray(w - 1e-3 * g), v, penalty(v))
    fallen = norms(v) / start
    assert fallen[3] < 0.05
    assert (np.delete(fallen, 3) > 0.5).all()


def test_regularizers_leave_out_what_is_not_pruned(net):
    penalty = regularizer(net, ranking=Ranking(ignore="b"))
    gradient = jax.jit(jax.grad(penalty))(net.variables)
    assert gradient["a"]["gain"].all()
    assert not gradient["c"]["kernel"].any()
    with pytest.raises(UnknownPartError, match=r"group_lasso, .* got 'ridge'"):
        regularizer(net, "ridge")
