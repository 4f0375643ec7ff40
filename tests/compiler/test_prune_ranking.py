"""Which units go, against sorting by hand."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import compiler as mc
from compiler.errors import UnknownPartError, UnknownPathError
from compiler.passes.prune import importance
from compiler.passes.prune.choice.choose import choose
from compiler.passes.prune.choice.naming import signature
from compiler.passes.prune.choice.ranking import Ranking
from compiler.passes.prune.structure import structure
from mapping import from_config, to_config


def mlp(params, x):
    for name in ("a", "b", "c"):
        x = jnp.tanh(x @ params[name]["kernel"] + params[name]["bias"][None])
    return x @ params["d"]["kernel"]


def net(*widths):
    sizes = (3, *widths, 2)
    params = {
        name: {"kernel": jnp.ones((m, n)), "bias": jnp.zeros(n)}
        for name, m, n in zip("abcd", sizes[:-1], sizes[1:], strict=True)
    }
    return mc.trace(mlp, params, jnp.ones((1, 3)))


@pytest.fixture(scope="module")
def found():
    return structure(net(10, 20, 6).graph)


def scores(found, seed=0):
    draw = np.random.default_rng(seed)
    return {group.name: draw.random(group.size) for group in found.groups}


def names(found):
    """Of the groups of the first, second and third layer."""
    return [
        next(g.name for g in found.groups if g.size == size) for size in (10, 20, 6)
    ]


def counts(removed, found):
    return [len(removed.get(name, ())) for name in names(found)]


def test_local_removes_the_least_of_each_group(found):
    own = scores(found)
    removed = Ranking(0.5).rank(found, own)
    for group in found.groups:
        want = sorted(np.argsort(own[group.name])[: group.size // 2])
        assert removed[group.name].tolist() == want


def test_global_removes_the_least_of_all(found):
    own = scores(found)
    removed = Ranking(0.5, "global").rank(found, own)
    limit = np.sort(np.concatenate(list(own.values())))[18]
    for name, units in removed.items():
        assert units.tolist() == np.flatnonzero(own[name] < limit).tolist()


def test_global_leaves_what_has_to_stay_and_takes_it_elsewhere(found):
    own = scores(found)
    first, second, third = names(found)
    own[third] = own[third] - 10.0
    removed = Ranking(0.5, "global", minimum=2).rank(found, own)
    assert len(removed[third]) == 4
    assert sum(map(len, removed.values())) == 18
    removed = Ranking(0.5, "global", max_ratio=0.5).rank(found, own)
    assert len(removed[third]) == 3
    assert max(len(removed[first]) / 10, len(removed[second]) / 20) <= 0.5


def test_isomorphic_compares_groups_that_are_built_alike():
    def two(params, x):
        for name in ("a", "b"):
            own = params[name]
            x = jnp.tanh(x @ own["up"]) @ own["down"]
        return jnp.tanh(x @ params["gated"] * params["gain"][None]) @ params["out"]

    shapes = {"up": (3, 4), "down": (4, 3)}
    params = {n: {k: jnp.ones(s) for k, s in shapes.items()} for n in "ab"}
    params |= {"gated": jnp.ones((3, 4)), "gain": jnp.ones(4), "out": jnp.ones((4, 2))}
    program = mc.trace(two, params, jnp.ones((1, 3)))
    graph, groups = program.graph, structure(program.graph).groups
    paths = {
        graph.paths[g.slots[0].leaf].split("/")[0]: g for g in groups if g.size == 4
    }
    alike = signature(paths["a"], graph) == signature(paths["b"], graph)
    other = next(g for g in groups if g not in (paths["a"], paths["b"]) and g.size == 4)
    assert alike
    assert signature(other, graph) != signature(paths["a"], graph)
    own = {g.name: np.arange(g.size) / 100 + 5.0 for g in groups}  # what joins them
    own[paths["a"].name] -= 1.0
    own[paths["b"].name] -= 2.0
    removed = Ranking(4 / 14, "isomorphic").rank(structure(graph), own)
    found = {name: len(units) for name, units in removed.items()}
    # One of b has to stay; the gated group is no such group and ranked by itself.
    assert found == {paths["b"].name: 3, paths["a"].name: 1, other.name: 1}


def test_what_makes_units_differs_from_what_reads_them():
    def gated(v, x):
        return (jnp.tanh(x @ v["a"]) * (x @ v["b"])) @ v["c"]

    def read_twice(v, x):
        hidden = jnp.tanh(x @ v["a"])
        return hidden @ v["b"].T + hidden @ v["c"]

    def transposed(v, x):
        return (jnp.tanh(x @ v["a"].T) * (x @ v["b"].T)) @ v["c"].T

    v = {"a": jnp.ones((3, 4)), "b": jnp.ones((3, 4)), "c": jnp.ones((4, 3))}
    turned = {name: w.T for name, w in v.items()}
    made = []
    for function, own in ((gated, v), (read_twice, v), (transposed, turned)):
        graph = mc.trace(function, own, jnp.ones((1, 3))).graph
        (one,) = structure(graph).groups
        made.append(signature(one, graph))
    assert made[0] == made[2] != made[1]


def test_of_equal_scores_the_first_stay(found):
    same = {group.name: np.ones(group.size) for group in found.groups}
    for order in ("local", "global", "isomorphic"):
        for name, units in Ranking(0.5, order).rank(found, same).items():
            size = found.group(name).size
            assert units.tolist() == list(range(size - len(units), size)), order


def test_the_first_rule_that_names_a_group_gives_its_ratio(found):
    rules = {"a": 0.2, "b/kernel": 0.4, "*": 0.0}
    removed = Ranking(0.5, rules=rules).rank(found, scores(found))
    assert counts(removed, found) == [2, 8, 0]


def test_a_glob_names_what_makes_units_and_not_what_reads_them(found):
    removed = Ranking(0.5, ignore="b").rank(found, scores(found))
    assert counts(removed, found) == [5, 0, 3]  # not those of a, which b reads
    removed = Ranking(0.5, ignore="b/kernel:0").rank(found, scores(found))
    assert counts(removed, found) == [0, 10, 3]
    removed = Ranking(0.5, ignore=names(found)[2]).rank(found, scores(found))
    assert counts(removed, found) == [5, 10, 0]


def test_groups_of_one_rule_are_ranked_together_if_it_is_global(found):
    own = scores(found)
    first, _, third = names(found)
    own[first] += 5.0
    removed = Ranking(0.0, "global", rules={"[ab]": 0.5}).rank(found, own)
    assert counts(removed, found) == [0, 15, 0]
    assert third not in removed


def test_a_glob_that_names_nothing_is_an_error_with_the_nearest(found):
    for ranking in (Ranking(rules={"e/kernel": 0.1}), Ranking(ignore=("e/kernel",))):
        with pytest.raises(UnknownPathError, match=r"e/kernel: .*nearest .*a/kernel"):
            ranking.rank(found, scores(found))


def test_what_stays_and_rules_that_do_nothing_are_told(found):
    own = scores(found)
    first, _, third = names(found)
    del own[first]
    ranking = Ranking(rules=[("b", 0.1), ("b/*", 0.3)], round_to=8)
    assert dict(ranking.skipped(found, own)) == {
        first: "not scored by this importance",
        third: "its 6 units cannot be fewer: kept are multiples of 8",
        "b/*": "rule unused: others come before it",
    }
    why = "channels are not in kinds=('heads',)"
    skipped = Ranking(kinds="heads").skipped(found, own)
    assert skipped == [(group.name, why) for group in found.groups]
    assert dict(Ranking(ignore="[abc]").skipped(found, own))[third] == "ignored"


@settings(max_examples=60, deadline=None)
@given(
    ratio=st.floats(0, 1),
    order=st.sampled_from(["local", "global", "isomorphic"]),
    multiple=st.sampled_from([1, 2, 4, 8]),
    minimum=st.integers(1, 7),
    most=st.floats(0, 1),
    seed=st.integers(0, 5),
)
def test_limits_hold_for_any_ratio(found, ratio, order, multiple, minimum, most, seed):
    own = scores(found, seed)
    ranking = Ranking(ratio, order, round_to=multiple, minimum=minimum, max_ratio=most)
    removed = ranking.rank(found, own)
    total = sum(len(units) for units in removed.values())
    assert total <= ratio * 36 + 1e-6
    for group in found.groups:
        gone = removed.get(group.name, np.arange(0))
        kept = group.size - len(gone)
        assert kept >= min(group.size, max(1, minimum))
        assert len(gone) <= most * group.size + 1e-6
        assert kept % multiple == 0 or kept == group.size
        stays = np.setdiff1d(np.arange(group.size), gone)
        if len(gone):
            assert own[group.name][gone].max() < own[group.name][stays].min()
        if order == "local":
            assert len(gone) <= ratio * group.size + 1e-6


@given(seed=st.integers(0, 9), order=st.sampled_from(["local", "global"]))
@settings(max_examples=20, deadline=None)
def test_a_higher_ratio_removes_what_a_lower_one_did_and_more(found, seed, order):
    own = scores(found, seed)
    before = {}
    for ratio in np.linspace(0, 1, 9):
        removed = Ranking(float(ratio), order).rank(found, own)
        for name, units in before.items():
            assert set(units) <= set(removed.get(name, ()))
        before = removed


def test_shares_of_what_there_was_at_first_count_what_is_gone(found):
    own = scores(found)
    first, second, third = names(found)
    initial = {first: 12, second: 40, third: 6}
    removed = Ranking(0.5, initial=initial).rank(found, own)
    assert counts(removed, found) == [4, 0, 3]


def test_heads_are_rounded_only_if_asked_for():
    ranking = Ranking(round_to=8)
    assert [ranking.multiple(kind) for kind in ("channels", "heads", "head_dim")] == [
        8,
        1,
        8,
    ]
    ranking = Ranking(round_to={"heads": 2})
    assert [ranking.multiple(kind) for kind in ("channels", "heads")] == [1, 2]


def test_a_ranking_is_a_value():
    ranking = Ranking(
        0.3, "global", {"a": 0.5}, ["b"], "channels", {"channels": 8}, 2, 0.9
    )
    assert from_config(to_config(ranking)) == ranking
    assert hash(ranking) == hash(ranking.at(0.3)) != hash(ranking.at(0.4))


def test_what_is_out_of_range_is_refused():
    with pytest.raises(
        UnknownPartError, match="one of local, global, isomorphic, got 'all'"
    ):
        Ranking(order="all")
    with pytest.raises(UnknownPartError, match=r"kinds: .* got 'filters'"):
        Ranking(kinds=("channels", "filters"))
    with pytest.raises(
        ValueError, match=r"ratio: expected a share in \[0, 1\], got 1.5"
    ):
        Ranking(1.5)
    with pytest.raises(ValueError, match=r"rules\['a'\]: expected a share .* got -1"):
        Ranking(rules={"a": -1})
    with pytest.raises(ValueError, match="minimum: expected at least 1, got 0"):
        Ranking(minimum=0)
    with pytest.raises(ValueError, match=r"round_to\['heads'\]: expected at least 1"):
        Ranking(round_to={"heads": 0})


def test_a_choice_closes_over_every_leaf_of_a_unit(found):
    program = net(10, 20, 6)
    kernel = program.variables["a"]["kernel"].at[:, 3].set(0.5).at[:, 7].set(0.25)
    program = program.with_variables(
        program.variables | {"a": program.variables["a"] | {"kernel": kernel}}
    )
    choice = choose(program, importance.l1(), Ranking(0.2, rules={"[bc]": 0.0}))
    assert choice.plan.removed == (
        ("a/bias", 0, (3, 7)), ("a/kernel", 1, (3, 7)), ("b/kernel", 0, (3, 7))
    )  # fmt: skip
