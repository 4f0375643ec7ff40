"""Half of every group of every architecture goes, and judges see no difference.

The judges are in `architectures/oracles.py`; they are stated there.
"""

import jax
import numpy as np
import pytest
from architectures import ARCHITECTURES
from architectures.oracles import (
    TOLERANCE,
    Case,
    arrays,
    error,
    evaluated,
    foreign,
    run,
)

import compiler as mc

ONE_OF_EACH = (
    "linen mobilenet v3",
    "nnx low rank adapted",
    "equinox siamese",
    "haiku vector quantized",
    "plain llama repeated keys",
)


def spelled(name):
    return name.replace(" ", "-")


@pytest.mark.parametrize("name", ARCHITECTURES, ids=spelled)
def test_half_of_every_group_goes_and_nothing_else_changes(name):
    case = Case(ARCHITECTURES[name])
    assert {n: group.size for n, group in case.named.items()} == case.widths.full
    assert {n: 2 * kept for n, kept in case.widths.items()} == case.widths.full
    zeroed = case.zeroed()
    assert zeroed is None or zeroed <= TOLERANCE
    assert case.masked() <= TOLERANCE
    if not case.architecture.unlike:
        assert case.rebuilt() <= TOLERANCE


def test_there_are_seventy_architectures_of_five_styles():
    styles = {a.framework for a in ARCHITECTURES.values()}
    assert styles == {"linen", "nnx", "equinox", "haiku", "plain"}
    assert len(ARCHITECTURES) >= 70


@pytest.mark.parametrize("name", ONE_OF_EACH, ids=spelled)
def test_what_is_removed_mattered(name):
    case = Case(ARCHITECTURES[name])
    graph = case.program.graph
    whole = evaluated(graph, case.leaves(lambda value, path: value), case.inputs)
    assert error(case.pruned, whole) > 1e-2


@pytest.mark.parametrize(
    "name", [*ONE_OF_EACH, "plain custom derivatives"], ids=spelled
)
def test_gradients_are_those_of_the_model_built_small(name):
    case = Case(ARCHITECTURES[name])
    rebuilt, leaves = case.rebuild()
    inputs = jax.tree.leaves(case.inputs)

    def total(outputs):
        parts = [np.random.default_rng(1).normal(size=x.shape) for x in outputs]
        pairs = zip(outputs, parts, strict=True)
        return sum((x * part.astype("f4")).sum() for x, part in pairs)

    def small(values):
        return total(case.small.evaluate(values, inputs))

    def fresh(values):
        return total(jax.tree.leaves(rebuilt(values, *case.inputs)))

    got = run(jax.grad(small), case.leaves(case.whole.cut))
    assert error(arrays(got), arrays(run(jax.grad(fresh), leaves))) <= TOLERANCE


@pytest.mark.parametrize("name", ONE_OF_EACH, ids=spelled)
def test_a_program_pruned_again_by_the_plan_is_itself(name):
    case = Case(ARCHITECTURES[name])
    prune = mc.prune.apply(case.whole)
    once = case.program >> prune
    twice = once >> prune
    assert twice.graph.jaxpr is once.graph.jaxpr
    assert [x.spec for x in twice.graph.leaves] == [x.spec for x in once.graph.leaves]


@pytest.mark.parametrize("name", ONE_OF_EACH, ids=spelled)
def test_another_batch_is_pruned_the_same(name):
    case = Case(ARCHITECTURES[name])
    rebuilt, leaves = case.rebuild()
    more = jax.tree.map(lambda x: np.concatenate([x, x[:1]]), case.inputs)
    with foreign():
        got = (case.program >> mc.prune.apply(case.whole))(*more)
    assert error(arrays(got), arrays(run(rebuilt, leaves, *more))) <= TOLERANCE
