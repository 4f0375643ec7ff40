"""The engine on functions it was not written for: nothing is lost, nothing moves."""

from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from corpus import CORPUS
from jax.extend import core
from jax.interpreters.partial_eval import dce_jaxpr
from zoo import normal, relative_error

import compiler as mc
from compiler import jaxprs
from compiler.passes.base import by_rules
from compiler.rewrite import Rules
from mapping.foreign import lenient_promotion

CALLS = ("jit", "closed_call")
"""The walk inlines calls; everything else is emitted as often as it was."""


class Everything(Rules):
    """Emits every equation without a body again, one by one."""

    def of(self, primitive):
        return [again]


def again(site, *operands):
    if site.bodies or jaxprs.has_jaxprs(site.equation):
        return None
    site.fired("emitted again")
    return site.emit(*(operand.value for operand in operands))


def primitives(graph):
    """How often each primitive is needed, by JAX's own account of what is dead."""
    opened = graph.jaxpr.jaxpr
    live, _ = dce_jaxpr(opened, [True] * len(opened.outvars), instantiate=True)
    return Counter(name for name in names(live) if name not in CALLS)


def names(jaxpr):
    for equation in jaxpr.eqns:
        if not is_identity(equation):
            yield equation.primitive.name
        for body in core.jaxprs_in_params(equation.params):
            yield from names(getattr(body, "jaxpr", body))


def is_identity(equation):
    """A conversion JAX may leave out: of weak type alone, or of a number it knows."""
    if equation.primitive.name != "convert_element_type":
        return False
    (given,), (made,) = equation.invars, equation.outvars
    return given.aval.dtype == made.aval.dtype or given.aval.shape == ()


@pytest.fixture(scope="module", params=CORPUS, ids=lambda name: name.replace(" ", "-"))
def case(request):
    with lenient_promotion():
        yield CORPUS[request.param]()


def test_the_corpus_is_as_large_as_it_says():
    assert len(CORPUS) >= 50


def test_an_identity_rewrite_is_bit_exact_and_loses_no_equation(case):
    function, variables, inputs = case
    with lenient_promotion():
        program = mc.trace(function, variables, *inputs)
        rewrite = by_rules(program.graph, Everything())
        assert rewrite.events.fired
        assert primitives(rewrite.graph) == primitives(program.graph)
        flat = jax.tree.leaves(inputs)
        want = jax.jit(program.graph.evaluate)(program.values, flat)
        got = jax.jit(rewrite.graph.evaluate)(program.values, flat)
    for a, b in zip(got, want, strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def test_folding_and_simplifying_keep_outputs_and_gradients(case):
    function, variables, inputs = case
    with lenient_promotion():
        program = mc.trace(function, variables, *inputs)
        better = program >> mc.fold() >> mc.simplify()
        moved = relative_error(better(*inputs), program(*inputs))
        assert moved < 1e-6 or moved < 2 * rounding(program, function, case)
        assert sum(primitives(better.graph).values()) <= sum(
            primitives(program.graph).values()
        )
        want, got = gradients(program, inputs), gradients(better, inputs)
    if want is not None:
        assert relative_error(got, want) < 2e-6


def test_simplifying_twice_changes_nothing(case):
    function, variables, inputs = case
    with lenient_promotion():
        once = mc.trace(function, variables, *inputs) >> mc.simplify()
        twice = once >> mc.simplify()
    assert not twice.history[-1].events.fired


def rounding(program, function, case):
    """How far the function itself is from the same in float64.

    Where that is more than the tolerance, equality means to be no farther apart.
    """
    _, variables, inputs = case
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda x: np.asarray(x, np.float64), (variables, inputs))
        exact = function(wide[0], *wide[1])
    return relative_error(program(*inputs), exact)


def gradients(program, inputs):
    """In the floating inputs; None where there is no reverse mode or no such input."""
    flat, tree = jax.tree.flatten(inputs)
    moved = [i for i, x in enumerate(flat) if jnp.issubdtype(jnp.result_type(x), float)]
    names = primitives(program.graph)
    if (
        not moved
        or not jax.tree.leaves(flat)
        or {"while", "pure_callback"} & set(names)
    ):
        return None

    def total(*values):
        given = list(flat)
        for place, value in zip(moved, values, strict=True):
            given[place] = value
        outputs = program.function(program.variables, *jax.tree.unflatten(tree, given))
        real = [y for y in jax.tree.leaves(outputs) if jnp.issubdtype(y.dtype, float)]
        return sum(jnp.sum(y * normal(*y.shape, seed=8)) for y in real)

    return jax.grad(total, range(len(moved)))(*(flat[i] for i in moved))
