"""Passes have names, and a recipe is JSON."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

import compiler as mc
from mapping import build, from_config, to_config
from mapping.errors import ConfigError
from mapping.registry import entries

RECIPES = [
    mc.fold(),
    mc.quantize.weights("int8", skip=("head/*",)),
    mc.fold() >> mc.quantize.weights("int8"),
]


@pytest.mark.parametrize("recipe", RECIPES, ids=range(3))
def test_a_recipe_survives_json(recipe):
    assert from_config(json.loads(json.dumps(to_config(recipe)))) == recipe


def test_a_decided_recipe_does_the_same_again():
    rng = np.random.default_rng(0)
    w = {"a": jnp.asarray(rng.normal(size=(8, 8)), jnp.float32), "b": jnp.ones((8,))}

    def run(w, x):
        return x @ (w["a"] * w["b"][:, None])

    x = jnp.asarray(rng.normal(size=(3, 8)), jnp.float32)
    program = mc.trace(run, w, x)
    decided = mc.fold().decide(program)
    again = from_config(json.loads(json.dumps(to_config(decided))))
    assert again == decided
    np.testing.assert_array_equal(again(program)(x), mc.fold()(program)(x))


def test_passes_are_found_by_name():
    assert build("pass", "fold") == mc.fold()
    assert {"fold", "pipeline", "quantize_weights"} <= {e.name for e in entries("pass")}


def test_a_pass_of_ones_own_without_a_name_is_told_how():
    class Own(mc.Pass):
        pass

    with pytest.raises(ConfigError, match=r"Own is not registered"):
        to_config(Own())
