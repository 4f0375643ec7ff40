"""Zeros in the weights of any function, where numpy says they belong."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from adapters import conv, ragged, scanned, skipped
from corpus import CORPUS
from zoo import normal

import compiler as mc
from compiler.errors import (
    NonFiniteWeightsError,
    UnknownPathError,
    VariablesMismatchError,
)
from compiler.passes.prune.masks import (
    Mask,
    at_random,
    by_masks,
    magnitude,
    masks,
    sparsity,
)
from mapping import from_config, to_config
from mapping.core import Variables
from mapping.sparse import apply_masks, erk


def fired(program):
    return {event.path: event.what for event in program.history[-1].events.fired}


def zeros(program, path):
    place = program.graph.paths.index(path)
    return np.asarray(program.values[place]) == 0


def dense(v, x):
    return x @ v["w"]


X = normal(3, 8)
OIHW = ("NCHW", "OIHW", "NCHW")
IMAGE, CHANNELS = normal(2, 6, 6, 8), normal(2, 8, 6, 6)
TOKENS = normal(6, 8)


def experts(w, x):
    return jnp.einsum("etd,edf->etf", x.reshape(2, 3, 8), w)


def heads(w, x):
    return jnp.einsum("tab,bca->tc", x.reshape(3, 2, 4), w)


def looped(w, x):
    return jax.lax.fori_loop(0, 2, lambda _, h: jnp.tanh(h @ w), x)


# A function, its weight, its input; the axes that number matrices, and the ones along
# which neighbours are summed over, with the order in which these are merged.
USES = {
    "dense": (lambda w, x: x @ w, normal(8, 5), X, (), (0,)),
    "transposed": (lambda w, x: x @ w.T, normal(5, 8), X, (), (1,)),
    "two axes": (heads, normal(4, 6, 2), X, (), (0, 2)),
    "layers": (scanned, normal(3, 8, 8), X, (0,), (1,)),
    "experts": (experts, normal(2, 8, 5), TOKENS, (0,), (1,)),
    "ragged": (ragged, normal(2, 8, 5), normal(4, 8), (0,), (1,)),
    "kernel": (conv, normal(3, 3, 8, 4), IMAGE, (), (2,)),
    "channels first": (
        lambda w, x: conv(w, x, numbers=OIHW),
        normal(4, 8, 3, 3),
        CHANNELS,
        (),
        (1,),
    ),
    "groups": (
        lambda w, x: conv(w, x, feature_group_count=2),
        normal(3, 3, 4, 6),
        IMAGE,
        (),
        (2,),
    ),
    "loop": (looped, normal(8, 8), X, (), (0,)),
}


@pytest.fixture(params=USES, ids=lambda name: name.replace(" ", "-"))
def use(request):
    function, weight, x, stack, along = USES[request.param]
    program = mc.trace(lambda v, x: function(v["w"], x), {"w": weight}, x)
    return program, stack, along


def groups_of(array, along, size):
    """Numbers that are neighbours along some axes, `[groups, size]`."""
    order = [axis for axis in range(array.ndim) if axis not in along] + [*along]
    return np.asarray(array).transpose(order).reshape(-1, size)


def test_two_of_four_are_kept_along_what_a_product_sums_over(use):
    program, _, along = use
    small = program >> magnitude(pattern="2:4")
    before, after = (np.abs(p.variables["w"]) for p in (program, small))
    expected = np.zeros((before.size // 4, 4))
    groups = groups_of(before, along, 4)
    for row, group in zip(expected, groups, strict=True):
        best = sorted(group)[2:]
        row[:] = [value if value in best else 0 for value in group]
    np.testing.assert_array_equal(groups_of(after, along, 4), expected)


def test_each_matrix_keeps_its_largest_numbers(use):
    program, stack, _ = use
    small = program >> magnitude(0.7)
    old, new = np.asarray(program.variables["w"]), np.asarray(small.variables["w"])
    size = old.size
    for axis in stack:
        size //= old.shape[axis]
    matrices = (array.reshape(-1, size) for array in (old, new))
    for before, after in zip(*matrices, strict=True):
        kept = int(0.3 * size + 0.5)
        threshold = np.sort(np.abs(before))[size - kept]
        expected = np.where(np.abs(before) >= threshold, before, 0)
        np.testing.assert_array_equal(after, expected)
    assert "w" in fired(small)


STEPS = [
    magnitude(0.6),
    magnitude(0.6, distribution="global"),
    magnitude(0.6, distribution="erk"),
    magnitude(pattern="1:4"),
    magnitude(0.5, pattern=(2, 3)),
    at_random(0.6, seed=3),
    at_random(pattern="2:4"),
    magnitude(0.6, train=True),
]


def two(v, x):
    return jnp.tanh(x @ v["a"]) @ v["b"] + v["c"][None]


def two_program(dtype=jnp.float32):
    v = {"a": normal(8, 12), "b": normal(12, 3), "c": normal(3)}
    v = jax.tree.map(lambda leaf: leaf.astype(dtype), v)
    return mc.trace(two, v, X.astype(dtype))


@pytest.mark.parametrize("step", STEPS, ids=str)
def test_a_second_time_changes_nothing(step):
    once = two_program() >> step
    twice = once >> step
    assert fired(once)
    assert not fired(twice)
    assert twice.graph is once.graph
    for one, other in zip(once.values, twice.values, strict=True):
        np.testing.assert_array_equal(one, other)


def test_zeros_go_on_from_zeros():
    half = two_program() >> at_random(0.5)
    more, less = half >> magnitude(0.8), half >> magnitude(0.3)
    lot = half >> at_random(0.8, seed=9)
    for path in ("a", "b"):
        assert zeros(more, path)[zeros(half, path)].all()
        assert zeros(lot, path)[zeros(half, path)].all()
        np.testing.assert_array_equal(zeros(less, path), zeros(half, path))
    for one in (more, lot):
        assert sparsity(one)["a"].share == pytest.approx(0.8, abs=0.5 / 96)
    assert not fired(less)


def test_all_weights_compete_for_one_threshold():
    program = two_program()
    small = program >> magnitude(0.75, distribution="global")
    old, new = (
        np.concatenate([np.ravel(p.variables[k]) for k in "ab"])
        for p in (program, small)
    )
    threshold = np.sort(np.abs(old))[-33]  # a quarter of 132 numbers
    np.testing.assert_array_equal(new, np.where(np.abs(old) >= threshold, old, 0))
    with_rule = program >> magnitude(0.75, distribution="global", rules={"b": 0.5})
    assert sparsity(with_rule)["a"].zeros == 72
    assert sparsity(with_rule)["b"].zeros == 18


def test_small_weights_keep_more_by_shape():
    program = two_program()
    shares = erk().densities({"a": (8, 12), "b": (12, 3)}, 0.4)
    small = sparsity(program >> magnitude(0.6, distribution="erk"))
    assert small["b"].share < 0.6 < small["a"].share
    assert small.share == pytest.approx(0.6, abs=1 / 132)
    for path, size in (("a", 96), ("b", 36)):
        assert small[path].zeros == size - int(float(shares[path]) * size + 0.5)


def test_whole_blocks_of_features_and_outputs_are_kept():
    program = mc.trace(lambda v, x: x @ v["w"].T, {"w": normal(6, 8)}, X)
    small = program >> magnitude(0.5, pattern=(4, 2))
    old, new = (np.asarray(p.variables["w"]).T for p in (program, small))
    sums = np.abs(old).reshape(2, 4, 3, 2).sum((1, 3))
    kept = sums >= np.sort(sums.ravel())[3]
    expected = np.where(kept.repeat(4, 0).repeat(2, 1), old, 0)
    np.testing.assert_array_equal(new, expected)


def test_rules_say_what_weights_get_and_the_first_counts():
    program = two_program()
    rules = {"a": "2:4", "b*": None, "*": 0.1, "nothing": 0.3}
    small = program >> magnitude(0.9, rules=rules)
    assert groups_of(~zeros(small, "a"), (0,), 4).sum(1).tolist() == [2] * 24
    assert not zeros(small, "b").any()
    assert skipped(small)["b"] == "left out by rule b*"
    assert skipped(small)["c"].startswith("reaches no product")
    assert skipped(small)["nothing"] == "matched nothing"
    ignored = program >> magnitude(0.9, ignore=("a", "c"))
    assert not zeros(ignored, "a").any()
    assert zeros(ignored, "b").mean() == pytest.approx(0.9, abs=0.5 / 36)
    with pytest.raises(UnknownPathError, match="d: names no leaf"):
        program >> magnitude(0.9, ignore="d")


def test_a_table_is_pruned_where_it_is_multiplied_or_asked_for():
    def tied(v, tokens):
        return jnp.tanh(v["table"][tokens]) @ v["table"].T

    def looked_up(v, tokens):
        return v["table"][tokens] * 2.0

    v, tokens = {"table": normal(8, 4)}, jnp.arange(5)
    small = mc.trace(tied, v, tokens) >> magnitude(pattern="2:4")
    assert groups_of(~zeros(small, "table"), (1,), 4).sum(1).tolist() == [2] * 8
    alone = mc.trace(looked_up, v, tokens)
    assert "looked up only" in skipped(alone >> magnitude(0.5))["table"]
    asked = alone >> magnitude(0.5, rules={"table": 0.25})
    assert zeros(asked, "table").sum() == 8


def test_what_cannot_be_pruned_is_told():
    def function(v, x):
        gained = v["standard"] - v["standard"].mean(0, keepdims=True)
        x = x @ gained
        return jnp.einsum(
            "tgi,gio->tgo", x.reshape(3, 2, 4), v["mixed"].reshape(2, 4, 3)
        )

    v = {"standard": normal(8, 8), "mixed": normal(8, 3), "unused": normal(2, 2)}
    program = mc.trace(function, v, X)
    small = program >> magnitude(pattern="2:4")
    assert "arithmetic before its product may fill them" in fired(small)["standard"]
    assert "a part of an axis" in skipped(small)["mixed"]
    assert "reaches no product" in skipped(small)["unused"]
    narrow = mc.trace(conv, normal(3, 3, 2, 4), normal(2, 6, 6, 2))
    why = skipped(narrow >> magnitude(pattern="2:4"))["variables"]
    assert why == "has 2 input features: nothing to choose 2:4 of"
    integer = mc.trace(dense, {"w": jnp.ones((8, 2), jnp.int32)}, jnp.ones((3, 8), int))
    assert skipped(integer >> magnitude(0.5))["w"] == "not floating: int32"
    empty = mc.trace(dense, {"w": jnp.ones((8, 0))}, X)
    assert skipped(empty >> magnitude(0.5))["w"] == "is empty"


def test_a_training_step_keeps_its_weights():
    def step(v, x):
        return jax.tree.map(lambda w, g: w - 0.1 * g, v, jax.grad(loss)(v, x))

    def loss(v, x):
        return (dense(v, x) ** 2).sum()

    program = mc.trace(step, {"w": normal(8, 4)}, X)
    assert "returned by the function" in skipped(program >> magnitude(0.5))["w"]


@pytest.mark.parametrize("name", ["nnx gru", "equinox mlp", "haiku attention"])
def test_functions_of_any_framework_compute_with_the_zeros(name):
    function, variables, inputs = CORPUS[name]()
    program = mc.trace(function, variables, *inputs)
    small = program >> magnitude(0.5)
    trained = program >> magnitude(0.5, train=True)
    assert sparsity(small).share == pytest.approx(0.5, abs=0.02)
    for path in masks(small):
        place = program.graph.paths.index(path)
        old, new = (np.asarray(p.values[place]) for p in (program, small))
        assert ((new == old) | (new == 0)).all()
    # The original function, on what is left of its own variables.
    new = iter(small.values)
    left = jax.tree.map(
        lambda x: next(new) if isinstance(x, jax.Array) else x, variables
    )
    want = function(left, *inputs)
    np.testing.assert_allclose(trained(*inputs), want, rtol=1e-5, atol=1e-6)
    assert sparsity(trained).total == sparsity(small).total


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_small_floats_are_compared_exactly(dtype):
    program = two_program(dtype)
    small = program >> magnitude(0.5)
    old, new = (np.asarray(p.variables["a"], np.float32) for p in (program, small))
    assert small.variables["a"].dtype == dtype
    assert (new == 0).sum() == 48
    assert np.abs(old[new == 0]).max() <= np.abs(new[new != 0]).min()


def test_the_recipe_is_data_and_serves_other_shapes_and_weights():
    step = magnitude(0.5, rules={"b": "1:3", "c": None}, pattern=(2, 2), train=True)
    assert from_config(to_config(step)) == step
    assert eval(repr(step), {"Magnitude": type(step)}) == step
    small = two_program() >> magnitude(0.5)
    again = from_config(to_config(small.recipe[0]))
    assert again == magnitude(0.5)
    assert small(normal(5, 8)).shape == (5, 3)
    other = {"a": normal(8, 12, seed=1), "b": normal(12, 3, seed=1), "c": normal(3)}
    moved = mc.trace(two, other, X) >> small.recipe[0]
    old = np.abs(other["a"])
    np.testing.assert_array_equal(zeros(moved, "a"), old < np.sort(old.ravel())[48])


def test_random_zeros_depend_on_the_seed_alone():
    program = two_program()
    first, again, other = (program >> at_random(0.5, seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(zeros(first, "a"), zeros(again, "a"))
    assert (zeros(first, "a") != zeros(other, "a")).any()
    same = mc.trace(
        lambda v, x: x @ v["a"] @ v["b"],
        {"a": normal(4, 4), "b": normal(4, 4)},
        X[:, :4],
    )
    small = same >> at_random(0.5)
    assert (zeros(small, "a") != zeros(small, "b")).any()


def fitted(program, steps=5):
    """The params after some steps with momentum and decay."""
    decay = optax.add_decayed_weights(0.1)
    optimizer = optax.chain(decay, optax.sgd(1e-2, momentum=0.9))
    params, state = program.variables.params, program.variables.state

    def loss(params):
        return ((program.function(Variables(params, state), X) - 1.0) ** 2).mean()

    @jax.jit
    def step(params, moments):
        updates, moments = optimizer.update(jax.grad(loss)(params), moments, params)
        return optax.apply_updates(params, updates), moments

    moments = optimizer.init(params)
    for _ in range(steps):
        params, moments = step(params, moments)
    return Variables(params, state), loss(params) < loss(program.variables.params)


def test_masks_that_are_leaves_hold_the_zeros_in_training():
    program = two_program() >> magnitude(0.6, train=True)
    assert program.graph.paths[-2:] == ["state/a/mask", "state/b/mask"]
    assert "the mask is a leaf" in fired(program)["a"]
    variables, better = fitted(program)
    assert better
    for name in "ab":
        mask = np.asarray(program.variables.state[name]["mask"])
        new, old = variables.params[name], program.variables.params[name]
        np.testing.assert_array_equal(np.asarray(new) != 0, mask)
        assert (np.asarray(new) != np.asarray(old))[mask].all()
    # Whatever stands where zeros belong is not used, and has no gradient.
    full = Variables(jax.tree.map(jnp.ones_like, variables.params), variables.state)
    grads = jax.grad(lambda p: program.function(Variables(p, full.state), X).sum())
    slopes = grads(full.params)["a"]
    assert not np.asarray(slopes)[~np.asarray(full.state["a"]["mask"])].any()
    lone = jax.vmap(lambda x: program.function(full, x[None])[0])(X)
    np.testing.assert_allclose(lone, program.function(full, X), rtol=1e-6)


def test_fold_takes_masks_into_the_weights():
    program = two_program() >> magnitude(0.6, train=True)
    trained = program.with_variables(fitted(program)[0])
    plain = trained >> mc.fold()
    assert plain.graph.paths == ["params/a", "params/b", "params/c"]
    np.testing.assert_allclose(plain(X), trained(X), rtol=1e-6)
    assert sparsity(plain).share == sparsity(trained).share


def test_a_mask_that_is_a_leaf_gets_narrower_when_more_is_pruned():
    half = two_program() >> magnitude(0.5, train=True)
    for more in (magnitude(0.8, train=True), magnitude(0.8)):
        small = half >> more
        assert small.graph is half.graph
        mask = np.asarray(small.variables.state["a"]["mask"])
        assert mask.sum() == 19
        np.testing.assert_array_equal(mask, ~zeros(small, "params/a"))
        assert sparsity(small)["params/a"].zeros == 77


def test_collections_stay_what_they_are_called():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.BatchNorm(use_running_average=True)(nn.Dense(6)(x))

    variables = Net().init(jax.random.key(0), X)
    program = mc.trace(Net().apply, variables, X) >> magnitude(0.5, train=True)
    assert set(program.variables) == {"params", "batch_stats", "state"}
    grads = jax.grad(
        lambda p: program.function({**program.variables, "params": p}, X).sum()
    )(program.variables["params"])
    kernel, mask = (
        tree["Dense_0"]["kernel"] for tree in (grads, program.variables["state"])
    )
    np.testing.assert_array_equal(np.asarray(kernel) != 0, np.asarray(mask["mask"]))


def test_masks_are_data_and_go_to_other_weights():
    small = two_program() >> magnitude(0.7) >> magnitude(0.5)
    kept = masks(small)
    assert set(kept) == {"a", "b"}
    np.testing.assert_array_equal(kept["a"], ~zeros(small, "a"))
    other = {"a": normal(8, 12, seed=5), "b": normal(12, 3, seed=5), "c": normal(3)}
    step = by_masks(kept)
    ticket = mc.trace(two, other, X) >> step
    expected = apply_masks(other, kept)
    np.testing.assert_array_equal(ticket.variables["a"], expected["a"])
    again = from_config(to_config(ticket.recipe[0]))
    assert again == step
    assert [m.path for m in again.masks] == ["a", "b"]
    assert not fired(ticket >> again)
    trained = mc.trace(two, other, X) >> by_masks(kept, train=True)
    np.testing.assert_array_equal(masks(trained)["params/a"], kept["a"])
    assert "bits" not in str(step)


def test_masks_that_fit_nothing_are_refused():
    program = two_program()
    with pytest.raises(UnknownPathError, match="d: a mask of no leaf"):
        program >> by_masks({"d": np.ones((2, 2), bool)})
    with pytest.raises(UnknownPathError, match="c reaches no product"):
        program >> by_masks({"c": np.ones(3, bool)})
    with pytest.raises(VariablesMismatchError, match=r"expected a mask \[8, 12\]"):
        program >> by_masks({"a": np.ones((12, 8), bool)})
    with pytest.raises(ValueError, match="the bits of 9 numbers, got 1 bytes"):
        Mask("a", (3, 3), "sA==")
    with pytest.raises(ValueError, match="expected bits in base 64"):
        Mask("a", (3, 3), "no bits")


@pytest.mark.parametrize("scheme", ["int8", "int4", "nf4"])
def test_formats_with_a_zero_keep_the_zeros(scheme):
    w = {"w": normal(64, 64)}
    program = mc.trace(dense, w, normal(3, 64)) >> magnitude(0.5)
    small = program >> mc.quantize.weights(scheme)
    assert sparsity(small)["w"].zeros >= 2048
    after = sparsity(mc.trace(dense, w, normal(3, 64)) >> mc.quantize.weights(scheme))
    assert after["w"].zeros < sparsity(small)["w"].zeros
    assert "quantized already" in skipped(small >> magnitude(0.5))["w/values"]


def test_folding_before_and_after_keeps_the_zeros():
    def normalised(v, x):
        return (x @ v["w"] - v["mean"][None]) * v["scale"][None]

    v = {"w": normal(8, 4), "mean": normal(4), "scale": normal(4) + 2.0}
    program = mc.trace(normalised, v, X)
    folded = program >> mc.fold()
    assert sparsity(folded >> magnitude(0.5)).share == 0.5
    assert sparsity(program >> magnitude(0.5) >> mc.fold()).share == 0.5


def test_adapters_stand_beside_the_zeros_and_merging_fills_them():
    program = mc.trace(dense, {"w": normal(8, 8)}, X) >> magnitude(0.5)
    adapted = program >> mc.lora(rank=2)
    assert skipped(adapted >> magnitude(0.5))["params/w/lora_a"] == "is an adapter"
    moved = Variables(
        jax.tree.map(jnp.ones_like, adapted.variables.params), adapted.variables.state
    )
    trained = adapted.with_variables(moved)
    assert sparsity(trained)["state/w"].share == 0.5
    np.testing.assert_array_equal(masks(adapted)["state/w"], masks(program)["w"])
    merged = trained >> mc.merge()
    assert sparsity(merged).share == 0.0
    again = merged >> by_masks(masks(program))
    assert sparsity(again).share == 0.5


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: magnitude(), "expected a sparsity from 0 to 1, got none"),
        (lambda: magnitude(1.5), r"expected a sparsity from 0 to 1, got 1\.5"),
        (lambda: magnitude(True), "got True"),
        (lambda: magnitude(0.7, pattern="2:4"), r"makes a sparsity of 0\.5, got 0\.7"),
        (lambda: magnitude(pattern="4:2"), "expected 'n:m' such as '2:4'"),
        (lambda: magnitude(pattern="half"), "expected 'n:m' .* got 'half'"),
        (lambda: magnitude(0.5, pattern=(2, 0)), "a pair of block sizes"),
        (lambda: magnitude(0.5, pattern=(2, 2, 2)), r"pair .* got \(2, 2, 2\)"),
        (lambda: magnitude(0.5, distribution="all"), "expected a distribution of"),
        (
            lambda: magnitude(pattern="2:4", distribution="global"),
            "chosen in each weight for itself",
        ),
        (
            lambda: magnitude(pattern="2:4", distribution="erk"),
            "leaves nothing to distribute",
        ),
        (lambda: magnitude(0.5, rules={"a": 2.0}), "rule 'a': expected a sparsity"),
        (lambda: magnitude(0.5, rules={"a": "a"}), "expected 'n:m'"),
    ],
)
def test_fields_that_make_no_sense_are_refused(make, match):
    with pytest.raises(ValueError, match=match):
        make()


def test_weights_without_numbers_are_refused():
    spec = {"w": jax.ShapeDtypeStruct((8, 4), jnp.float32)}
    abstract = mc.trace(dense, spec, X)
    for ask in (magnitude(0.5), sparsity):
        with pytest.raises(VariablesMismatchError, match="traced on shapes alone"):
            ask(abstract)
    bad = mc.trace(dense, {"w": normal(8, 4).at[0, 0].set(jnp.inf)}, X)
    with pytest.raises(
        NonFiniteWeightsError, match="w: expected finite weights, got 1"
    ):
        bad >> magnitude(0.5)
    assert not fired(bad >> magnitude(0.5, ignore="w"))


def test_nothing_and_everything_can_be_pruned():
    program = two_program()
    assert not fired(program >> magnitude(0.0))
    none = program >> magnitude(1.0)
    assert sparsity(none).share == 1.0
    np.testing.assert_array_equal(none(X)[0], program.variables["c"])
    text = str(sparsity(none)).splitlines()
    assert text[1].split() == ["a", "96", "96", "100.0%"]
    assert text[-1].split() == ["all", "weights", "132", "132", "100.0%"]
