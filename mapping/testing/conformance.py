"""What is promised of every mapping, tried on one."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from collections.abc import Mapping as Dict
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mapping.config import from_config, to_config
from mapping.core import Mapping, Variables, leaf_paths, outline
from mapping.errors import ConformanceError, MappingError, MissingKeyError
from mapping.nesting import as_spec
from mapping.registry import Example, entry_of
from mapping.testing.probe import NAME, Probe, distance, expect, stacked

_SAME = 2e-5
"""Float32 results of one computation, arranged otherwise, relative to the largest."""


def check(mapping: Mapping, *inputs: Any, **flags: Any) -> None:
    """Tries every claim of [`CLAIMS`][] on a mapping of your own.

    Args:
        mapping: what is tried.
        *inputs: what it is called with: arrays, or specs that random ones are made for.
        **flags: those of [`Example`][] (`batched=False` for what knows one batch axis).

    Raises:
        ConformanceError: if a claim does not hold; it lists all that do not.

    >>> import mapping as mp
    >>> check(mp.layers.Dense(4), jax.ShapeDtypeStruct((2, 3), "float32"))
    """
    check_example(Example(mapping, inputs, **flags))


def check_example(example: Example) -> None:
    """Tries every claim on an example."""
    probe = Probe.of(example)
    broken = []
    for name, claim in CLAIMS.items():
        try:
            claim(probe)
        except Exception as error:
            broken.append(f"  {name}: {_said(error)}")
    if broken:
        listed = "\n".join(broken)
        raise ConformanceError(
            f"{example.mapping!r}: expected every claim to hold, {len(broken)} of "
            f"{len(CLAIMS)} did not:\n{listed}\nEach claim is a function of "
            "mapping.testing.conformance; its docstring says what is meant."
        )


def init_agrees_with_its_shapes(probe: Probe) -> None:
    """`init` makes nested dicts of arrays, of the shapes found without computing."""
    variables, outputs = outline(probe.example.mapping, *probe.inputs)
    expect(
        as_spec(probe.variables) == variables,
        f"init made {as_spec(probe.variables)}, its outline says {variables}",
    )
    found = as_spec(probe.run()[0])
    expect(found == outputs, f"apply returned {found}, the outline says {outputs}")
    for tree in (probe.variables.params, probe.variables.state):
        _check_names(tree)


def jit_equals_eager(probe: Probe) -> None:
    """Compiling changes nothing, in inference and in training."""
    for train in (False, True):
        eager = probe.eager(probe.variables, probe.inputs, _key(), train)
        compiled = probe.run(train=train, key=_key())
        _close(compiled, eager, _SAME, f"jit (train={train}) differs from eager")


def vmap_equals_a_loop(probe: Probe) -> None:
    """A batch of calls is the calls of the batch."""
    if not jax.tree.leaves(probe.inputs):
        return
    pair = (probe.inputs, probe.other_inputs())
    looped = stacked(*(probe.run(inputs=inputs) for inputs in pair))
    mapped = jax.vmap(lambda inputs: probe.run(inputs=inputs))(stacked(*pair))
    _close(mapped, looped, _SAME, "vmap differs from a loop")


def gradients_agree_with_differences(probe: Probe) -> None:
    """Derivatives along a random direction are finite and what differences say."""
    if not probe.example.differentiable:
        return
    with jax.enable_x64(True):
        variables, inputs = probe.cast("float64")
        moving, still = _split((variables.params, inputs))
        rng = np.random.default_rng(2)
        along = [jnp.asarray(rng.normal(size=x.shape)) for x in moving]

        @jax.jit
        def objective(step: Any) -> Any:
            moved = [x + step * d for x, d in zip(moving, along, strict=True)]
            params, given = still(moved)
            own = Variables(params, variables.state)
            outputs, _ = probe.run(own, given, train=True, key=_key())
            return _weighed(outputs)

        step = 1e-5
        numerical = (objective(step) - objective(-step)) / (2 * step)
        exact = jax.jit(jax.grad(objective))(0.0)
        expect(bool(jnp.isfinite(exact)), "the derivative is not finite")
        apart = abs(float(exact - numerical))
        bound = 1e-4 * max(1.0, abs(float(numerical)))
        expect(
            apart <= bound,
            f"the derivative is {float(exact):.6g}, differences say "
            f"{float(numerical):.6g}",
        )


def bfloat16_stays_bfloat16(probe: Probe) -> None:
    """In half the bits, the same up to what the bits can say; no silent promotion."""
    variables, inputs = probe.cast("bfloat16")
    got, wanted = probe.run(variables, inputs)[0], probe.run()[0]
    for path, leaf in leaf_paths(got).items():
        if probe.example.keeps_dtype and jnp.issubdtype(leaf.dtype, jnp.floating):
            expect(leaf.dtype == jnp.bfloat16, f"{path or 'output'} is {leaf.dtype}")
    _close(got, wanted, probe.example.tolerance, "bfloat16 differs from float32")


def equal_ones_are_equal(probe: Probe) -> None:
    """It equals its copy, its pickle and what its configuration describes."""
    own = probe.example.mapping
    if not probe.example.value:
        return
    copies = {
        "copy": copy.deepcopy(own),
        "pickle": pickle.loads(pickle.dumps(own)),  # noqa: S301  (just made here)
    }
    if entry_of(type(own)):  # a configuration names only what is registered
        copies["configuration"] = from_config(to_config(own))
    for how, other in copies.items():
        expect(other == own, f"its {how} is {other!r}")
        expect(hash(other) == hash(own), f"the hash of its {how} differs")


def equal_ones_are_traced_once(probe: Probe) -> None:
    """Rebuilding a mapping compiles nothing anew."""
    own, traces = probe.example.mapping, []

    def run(mapping: Mapping, variables: Variables, inputs: Any) -> Any:
        traces.append(mapping)
        probe = Probe(Example(mapping, ()), variables, inputs)
        return probe.eager(variables, inputs, None, False)[0]

    compiled = jax.jit(run, static_argnums=0)
    again = copy.deepcopy(own) if probe.example.value else own
    for mapping in (own, again):
        compiled(mapping, probe.variables, probe.inputs)
    expect(len(traces) == 1, "an equal mapping was traced again")


def state_moves_only_in_training(probe: Probe) -> None:
    """Inference returns the state it was given; training keeps its structure."""
    state = probe.variables.state
    moved = probe.run()[1]
    if not probe.example.caches:
        expect(distance(moved, state) == 0, "the state moved in inference")
    trained = probe.run(train=True, key=_key())[1]
    expect(
        as_spec(trained) == as_spec(state),
        f"training made the state {as_spec(trained)} of {as_spec(state)}",
    )


def leading_axes_are_batch(probe: Probe) -> None:
    """What stands before the axes of the example is more of the batch."""
    if not (probe.example.batched and jax.tree.leaves(probe.inputs)):
        return
    pair = (probe.inputs, probe.other_inputs())
    looped = stacked(*(probe.run(inputs=inputs)[0] for inputs in pair))
    expect(
        as_spec(looped) == outline(probe.example.mapping, *stacked(*pair))[1],
        "a leading axis is not kept. Pass batched=False for what reduces over the "
        "batch, or knows exactly one batch axis",
    )
    together = probe.run(inputs=stacked(*pair))[0]
    _close(
        together,
        looped,
        _SAME,
        "a leading axis is not more of the batch (batched=False, if none is)",
    )


def randomness_needs_a_key(probe: Probe) -> None:
    """A draw needs a key, names the path without one, and repeats itself."""
    first = probe.run(train=True, key=_key())
    _close(probe.run(train=True, key=_key()), first, 0.0, "one key gave two results")
    try:
        without = probe.run(train=True)
    except MissingKeyError as error:
        expect(NAME in str(error), f"the error names no path: {error}")
        return
    _close(without, first, 0.0, "without a key the result is another, silently")


def missing_variables_are_told(probe: Probe) -> None:
    """Applied without its params, it says so in our words and names the path."""
    if not jax.tree.leaves(probe.variables.params):
        return
    try:
        probe.run(Variables({}, probe.variables.state))
    except MappingError as error:
        expect(NAME in str(error), f"the error names no path: {error}")
        return
    raise ConformanceError("it ran without its params")


CLAIMS: dict[str, Callable[[Probe], None]] = {
    claim.__name__: claim
    for claim in (
        init_agrees_with_its_shapes,
        jit_equals_eager,
        vmap_equals_a_loop,
        gradients_agree_with_differences,
        bfloat16_stays_bfloat16,
        equal_ones_are_equal,
        equal_ones_are_traced_once,
        state_moves_only_in_training,
        leading_axes_are_batch,
        randomness_needs_a_key,
        missing_variables_are_told,
    )
}
"""Everything that is promised of every mapping."""


def _said(error: Exception) -> str:
    plain = isinstance(error, ConformanceError)
    return str(error) if plain else f"{type(error).__name__}: {error}"


def _key() -> jax.Array:
    return jax.random.key(7)


def _close(got: Any, wanted: Any, bound: float, what: str) -> None:
    apart = distance(got, wanted)
    expect(apart <= bound, f"{what} by {apart:.2g} (bound {bound:.2g})")


def _check_names(tree: Any, path: str = "") -> None:
    expect(isinstance(tree, Dict), f"{path or 'variables'}: {type(tree)} is no dict")
    for name, child in tree.items():
        where = f"{path}/{name}".lstrip("/")
        expect(isinstance(name, str), f"{where}: the name is no string")
        expect(name, f"{where}: the name is empty")
        expect("/" not in name, f"{where}: the name contains /")
        if not hasattr(child, "shape"):
            _check_names(child, where)


def _split(tree: Any) -> tuple[list[Any], Callable[[list[Any]], Any]]:
    """The floating leaves of a tree, and what puts others in their place."""
    leaves, structure = jax.tree.flatten(tree)
    where = [i for i, x in enumerate(leaves) if jnp.issubdtype(x.dtype, jnp.floating)]

    def join(moved: list[Any]) -> Any:
        whole = list(leaves)
        for i, leaf in zip(where, moved, strict=True):
            whole[i] = leaf
        return jax.tree.unflatten(structure, whole)

    return [leaves[i] for i in where], join


def _weighed(outputs: Any) -> Any:
    """One number in which every output takes part."""
    rng, total = np.random.default_rng(3), jnp.zeros(())
    for leaf in leaf_paths(outputs).values():
        if jnp.issubdtype(leaf.dtype, jnp.floating):
            weight = jnp.asarray(rng.normal(size=leaf.shape), leaf.dtype)
            total = total + jnp.sum(leaf * weight).astype(total.dtype)
    return total
