"""Prunes the micro-models in flax with this compiler, and tells what became of each."""

import jax
import numpy as np
from rivals.cases import CASES, NARROW, SEEDS, batch, filled, verdict, worst
from rivals.jax_models import MODELS

import compiler as mc
from mapping.core import path_string


def outcome(name, seed=0):
    """The share of numbers that is left, and a verdict."""
    x, random = batch(name), np.random.default_rng(seed)
    shapes = jax.eval_shape(MODELS[name].init, jax.random.key(0), x)
    variables = jax.tree.map_with_path(
        lambda path, spec: filled(spec.shape, path_string(path), random), shapes
    )
    program = mc.trace(MODELS[name].apply, variables, x)
    plan = mc.prune.structured(0.5).decide(program).plan
    pruned = program >> mc.prune.apply(plan)
    left = pruned.size / program.size
    if left == 1:
        return left, "not pruned"
    if name in NARROW:
        narrow = MODELS[name].clone(share=2)
        return left, verdict(pruned(x), narrow.apply(pruned.variables, x))
    zeroed = jax.tree.map_with_path(
        lambda path, value: plan.zeroed(value, path_string(path)), variables
    )
    return left, verdict(pruned(x), MODELS[name].apply(zeroed, x))


def outcomes():
    """What became of each case."""
    return {name: worst([outcome(name, seed) for seed in SEEDS]) for name in CASES}
