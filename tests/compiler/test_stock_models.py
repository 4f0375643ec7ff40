"""The compiler rewrites every stock model, and lists it."""

import jax
import numpy as np
import pytest

import compiler as mc
from compiler import jaxprs
from mapping.registry import entries
from mapping.testing.probe import Probe

EXAMPLES = [
    pytest.param(entry.make_examples()[0], id=entry.name)
    for entry in entries("model")
    if entry.target.__module__.startswith("mapping.")
]


def equations(program):
    """How many equations there are at every depth, calls not counted."""
    nested = jaxprs.nested(program.graph.jaxpr)
    return sum(1 for equation, _ in nested if not jaxprs.is_plain_jit(equation))


@pytest.mark.parametrize("example", EXAMPLES)
def test_a_folded_model_computes_the_same_and_its_summary_is_whole(example):
    probe = Probe.of(example)
    program = mc.trace(example.mapping, probe.variables, *probe.inputs)
    folded = mc.fold()(program)
    assert equations(folded) <= equations(program)
    wanted = jax.tree.leaves(program(*probe.inputs))
    for got, leaf in zip(jax.tree.leaves(folded(*probe.inputs)), wanted, strict=True):
        np.testing.assert_allclose(got, leaf, rtol=1e-4, atol=1e-4)
    table = mc.summary(example.mapping, *probe.inputs)
    sizes = [leaf.size for leaf in jax.tree.leaves(probe.variables.params)]
    assert table.total.params == sum(sizes)
    assert sum(x.params for x in table.lines if "/" not in x.path) == sum(sizes)
